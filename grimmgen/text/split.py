"""Splits: which documents are the training set, which the validation set and which the test set.

The default split depends on the documents' names alone, unless a set would be empty. A split stores the hashes of the
documents, so that a changed document is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from grimmgen.errors import IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.text.corpus import GRIMM, Corpus, Document

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Split:
    """A training, a validation and a test set.

    Attributes:
        parts: the documents of each part.
        by_story: whether each document belongs to one part; else every document is cut into the three.
    """

    parts: Mapping[Part, tuple[Document, ...]]
    by_story: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value for `from_json`: the documents of each part, with the hashes of their files."""
        return {
            "by_story": self.by_story,
            "parts": {
                part: [{"name": d.name, "sha256": d.sha256 or d.digest(), "part": list(d.span)} for d in documents]
                for part, documents in self.parts.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any, corpus: Corpus) -> Split:
        """Restore a split; a document that has changed since is noticed when it is read.

        Args:
            value: of `to_json`.
            corpus: as it is now.

        Raises:
            IntegrityError: the value is damaged, or a document is missing.
        """
        known = {document.name: document for document in corpus.documents}
        try:
            parts: dict[Part, tuple[Document, ...]] = {}
            for part in PARTS:
                entries = value["parts"][part]
                if missing := [entry["name"] for entry in entries if entry["name"] not in known]:
                    raise IntegrityError(
                        f"the corpus {corpus.name} no longer has the story {missing[0]!r}",
                        "restore it, or train again",
                    )
                parts[part] = tuple(
                    _with_span(known[entry["name"]], str(entry["sha256"]), tuple(map(float, entry["part"])))
                    for entry in entries
                )
            return cls(parts, bool(value["by_story"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise IntegrityError("the split stored with the run cannot be read", "train again") from None

    @property
    def sha256(self) -> str:
        """A hash of all documents and their parts."""
        digest = hashlib.sha256()
        for part, documents in self.to_json()["parts"].items():
            for document in documents:
                line = f"{part}\0{document['name']}\0{document['sha256']}\0{document['part']}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def split_by_hash(corpus: Corpus) -> Split:
    """Split 80/10/10 by a hash of the documents' names, so that a document keeps its part when others are added.

    If a part would be empty, as with a single document, every document is cut instead: the first 80 % of its text
    are for training, the next 10 % for validation and the last 10 % for the test.
    """
    chosen: dict[Part, list[Document]] = {part: [] for part in PARTS}
    for document in corpus.documents:
        digest = hashlib.sha256(f"grimmgen/{document.name}".encode("utf-8", "surrogateescape")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        chosen["train" if place < 0.8 else "valid" if place < 0.9 else "test"].append(document)
    if all(chosen.values()):
        return Split({part: tuple(documents) for part, documents in chosen.items()})
    spans: dict[Part, tuple[float, float]] = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
    return Split(
        {part: tuple(replace(d, span=span) for d in corpus.documents) for part, span in spans.items()},
        by_story=False,
    )


def split_by_file(corpus: Corpus, path: Path) -> Split:
    """Read a split from a JSON file: `{"train": [names], "valid": [names], "test": [names]}`.

    Documents that the file does not name are left out.

    Raises:
        UsageError: the file has another form, or names a document twice, or one that the corpus does not have.
    """
    form = 'give a JSON file like {"train": ["001"], "valid": ["002"], "test": ["003"]}'
    try:
        value = files.read_json(path)
    except FileNotFoundError:
        raise UsageError(f"there is no split file {path}", form) from None
    except IntegrityError as error:
        raise UsageError(error.what, form) from None
    known = {document.name: document for document in corpus.documents}
    seen: set[str] = set()
    for part in PARTS:
        names = value.get(part) if isinstance(value, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UsageError(f"the split file {path} names no {part} stories", form)
        for name in names:
            if name in seen:
                raise UsageError(f"the split file {path} names the story {name!r} twice", "name it once")
            seen.add(name)
    if missing := sorted(seen - known.keys()):
        remedy = "fetch it first" if corpus.source == GRIMM else "check the names"
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(f"the corpus {corpus.name} does not have the story {missing[0]!r}{others}", remedy)
    return Split({part: tuple(known[name] for name in value[part]) for part in PARTS})


def _with_span(document: Document, sha256: str, span: tuple[float, ...]) -> Document:
    begin, end = span
    if not 0.0 <= begin <= end <= 1.0:
        raise ValueError(span)
    return replace(document, sha256=sha256, span=(begin, end))

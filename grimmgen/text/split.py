"""Splits: which documents are the training set, which the validation set and which the test set.

The default split depends on the documents' names alone, or on their texts where they are parts of files, unless a set
would be empty. A split is stored with hashes, so that a changed document is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.text.corpus import GRIMM, Corpus, Document, ExtractedDocuments, open_corpus

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
_REMEDY = "restore it, or train again"


@dataclass(frozen=True)
class Split:
    """A training, a validation and a test set.

    Attributes:
        parts: the documents of each part.
        by_story: whether each document belongs to one part; else every document is cut into the three.
        sources: where documents are parts of files, the name and the hash of each file; the split then follows from
            the texts of the documents, so that it is stored without naming any.
    """

    parts: Mapping[Part, Sequence[Document]]
    by_story: bool = True
    sources: tuple[tuple[str, str], ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value for `from_json`: the documents of each part with their hashes, or the hashes of files."""
        if self.sources is not None:
            return {"by_story": self.by_story, "by_content": [list(source) for source in self.sources]}
        return {
            "by_story": self.by_story,
            "parts": {
                part: [{"name": d.name, "sha256": d.sha256 or d.digest(), "part": list(d.span)} for d in documents]
                for part, documents in self.parts.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any, corpus: Corpus) -> Split:
        """Restore a split.

        Args:
            value: of `to_json`; the text of a document without a hash (None) is not checked.
            corpus: as it is now. A named document that has changed since is noticed when it is read.

        Raises:
            IntegrityError: the value is damaged, a document is missing, or a file whose parts are documents has
                changed.
        """
        try:
            if "by_content" in value:
                sources = tuple((str(name), str(digest)) for name, digest in value["by_content"])
                return _of_unchanged(corpus, sources, bool(value["by_story"]))
            known = {document.name: document for document in corpus.documents}
            empty = {one.name.removesuffix(".txt") for one in corpus.skipped if one.reason == "empty"}
            parts: dict[Part, Sequence[Document]] = {}
            for part in PARTS:
                # Earlier versions stored empty documents, too.
                entries = [entry for entry in value["parts"][part] if entry["name"] not in empty]
                parts[part] = tuple(
                    _with_span(
                        _find(entry["name"], entry["sha256"], known, corpus),
                        entry["sha256"],
                        tuple(map(float, entry["part"])),
                    )
                    for entry in entries
                )
            return cls(parts, bool(value["by_story"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise IntegrityError("the split stored with the run cannot be read", "train again") from None

    @property
    def sha256(self) -> str:
        """A hash of all documents and their parts."""
        digest = hashlib.sha256()
        value = self.to_json()
        for name, sha256 in value.get("by_content", []):
            digest.update(f"{name}\0{sha256}\n".encode("utf-8", "surrogateescape"))
        for part, documents in value.get("parts", {}).items():
            for document in documents:
                line = f"{part}\0{document['name']}\0{document['sha256']}\0{document['part']}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def reopen(
    stored: Mapping[str, Any],
    options: Configuration,
    moved_to: Sequence[str] = (),
    notify: Callable[[str], None] | None = None,
) -> tuple[Corpus, Split]:
    """Open the corpus of a run again, and restore its split.

    Args:
        stored: `source` of the corpus and `split`, as they were stored with the run.
        options: of the run.
        moved_to: where the text is now; empty if it is where it was.
        notify: see `open_corpus`.

    Raises:
        GrimmgenError: the corpus does not exist any more.
        IntegrityError: what was stored is damaged, or the text is not that of the run.
    """
    source = [stored["source"]] if isinstance(stored["source"], str) else stored["source"]
    if not isinstance(source, list) or not all(isinstance(path, str) for path in source):
        raise IntegrityError("the corpus stored with the run cannot be read", "train again")
    try:
        corpus = open_corpus([*moved_to] or source, options, _names(stored["split"]), notify)
    except UsageError as error:
        if moved_to:
            raise
        raise GrimmgenError(error.what, "if the text has moved, give its new place with --corpus") from None
    try:
        split = Split.from_json(stored["split"], corpus)
        for document in (document for part in PARTS for document in split.parts[part] if moved_to):
            document.check()
    except IntegrityError as error:
        if not moved_to:
            raise
        raise UsageError(
            f"--corpus {' '.join(moved_to)} is not the text of the run: {error.what}",
            "give the place of the same text, or train again",
        ) from None
    return corpus, split


def _names(value: Any) -> set[str] | None:
    """The names of the files, or of the documents named like them, that a stored split has; None if it is damaged."""
    try:
        if "by_content" in value:
            return {str(name) for name, _ in value["by_content"]}
        return {str(entry["name"]) for part in PARTS for entry in value["parts"][part]}
    except (KeyError, TypeError, ValueError):
        return None


def split_by_hash(corpus: Corpus) -> Split:
    """Split 80/10/10 by a hash of each document, so that it keeps its part when others are added.

    It is a hash of the document's name, or of its text where documents are parts of files, such as lines; documents
    with the same text are then in the same part.

    If a part would be empty, as with a single document, every document is cut instead: the first 80 % of its text
    are for training, the next 10 % for validation and the last 10 % for the test.
    """
    documents, sources = corpus.documents, _sources(corpus)
    if sources is None:
        places = np.array([_place(document.name) for document in documents])
    else:
        assert isinstance(documents, ExtractedDocuments)
        places = documents.hashes() / 2.0**64
    numbers = np.searchsorted([0.8, 0.9], places, side="right")
    chosen = [np.flatnonzero(numbers == number) for number in range(len(PARTS))]
    if all(map(len, chosen)):
        return Split({p: _select(documents, at) for p, at in zip(PARTS, chosen, strict=True)}, sources=sources)
    spans: dict[Part, tuple[float, float]] = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
    everything = np.arange(len(documents))
    parts = {part: _select(documents, everything, span) for part, span in spans.items()}
    return Split(parts, by_story=False, sources=sources)


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


def _place(name: str) -> float:
    """A hash of a document's name, from 0 to 1."""
    digest = hashlib.sha256(f"grimmgen/{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _select(
    documents: Sequence[Document], chosen: NDArray[np.int64], span: tuple[float, float] | None = None
) -> Sequence[Document]:
    """Some documents; cut to a span, if one is given."""
    if isinstance(documents, ExtractedDocuments):
        return documents.select(chosen, span)
    return tuple(replace(documents[i], span=span or documents[i].span) for i in chosen.tolist())


def _sources(corpus: Corpus) -> tuple[tuple[str, str], ...] | None:
    """The name and the hash of each file whose parts are documents."""
    if not corpus.row_by_row:
        return None
    assert isinstance(corpus.documents, ExtractedDocuments)
    return tuple((source.name, source.sha256) for source in corpus.documents.text.sources)


def _of_unchanged(corpus: Corpus, stored: tuple[tuple[str, str], ...], by_story: bool) -> Split:
    """The split of a corpus whose documents are parts of files, after a check that the files are those stored."""
    found = _sources(corpus) or ()
    if [digest for _, digest in found] != [digest for _, digest in stored]:
        now = dict(found)
        for name, digest in stored:
            if name not in now:
                raise IntegrityError(f"the corpus {corpus.name} no longer has the file {name!r}", _REMEDY)
            if now[name] != digest:
                raise IntegrityError(f"the file {name!r} of the corpus {corpus.name} has changed", _REMEDY)
        raise IntegrityError(f"the corpus {corpus.name} has more files than before", _REMEDY)
    split = split_by_hash(corpus)
    if split.by_story != by_story:
        raise ValueError(by_story)
    return replace(split, sources=stored)


def _find(name: str, sha256: object, known: Mapping[str, Document], corpus: Corpus) -> Document:
    """The document of a name; if there is none, the one with the same text, as of a file that was renamed."""
    if name in known:
        return known[name]
    for document in known.values():
        if (document.sha256 or document.digest()) == sha256:
            return document
    raise IntegrityError(f"the corpus {corpus.name} no longer has the story {name!r}", _REMEDY)


def _with_span(document: Document, sha256: object, span: tuple[float, ...]) -> Document:
    begin, end = span
    if not 0.0 <= begin <= end <= 1.0:
        raise ValueError(span)
    return replace(document, sha256=document.sha256 if sha256 is None else str(sha256), span=(begin, end))

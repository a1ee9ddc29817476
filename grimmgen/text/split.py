"""Which documents are for training, which for validation and which for the test.

Knows documents by their names and hashes, and nothing of what they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from grimmgen.errors import IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.text.corpus import GRIMM, Corpus, Document

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Split:
    """Which stories are learnt from, which decide, which judge.

    Attributes:
        parts: the stories of each part.
        by_story: whether each story belongs to one part; else every story is cut into the three.
    """

    parts: Mapping[Part, tuple[Document, ...]]
    by_story: bool = True

    def to_json(self) -> dict[str, Any]:
        """A value that `from_json` reads: for each part its stories, with the hash of each one's file."""
        return {
            "by_story": self.by_story,
            "parts": {
                part: [{"name": s.name, "sha256": s.sha256 or s.digest(), "part": list(s.part)} for s in stories]
                for part, stories in self.parts.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any, corpus: Corpus) -> Split:
        """The split that `to_json` wrote, over the corpus as it is now.

        Raises:
            IntegrityError: a story is gone; one that has changed is noticed when it is read.
        """
        now = {story.name: story for story in corpus.documents}
        try:
            parts: dict[Part, tuple[Document, ...]] = {}
            for part in PARTS:
                entries = value["parts"][part]
                if gone := [entry["name"] for entry in entries if entry["name"] not in now]:
                    raise IntegrityError(
                        f"the corpus {corpus.name} no longer has the story {gone[0]!r}",
                        "put it back, or train anew",
                    )
                parts[part] = tuple(
                    _pinned(now[entry["name"]], str(entry["sha256"]), tuple(map(float, entry["part"])))
                    for entry in entries
                )
            return cls(parts, bool(value["by_story"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise IntegrityError("the split stored with the run cannot be read", "train anew") from None

    @property
    def sha256(self) -> str:
        """One hash over all stories and their parts."""
        digest = hashlib.sha256()
        for part, stories in self.to_json()["parts"].items():
            for story in stories:
                line = f"{part}\0{story['name']}\0{story['sha256']}\0{story['part']}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def split_by_hash(corpus: Corpus) -> Split:
    """80/10/10 by story, decided by a hash of the story's name, so that adding stories moves none.

    If that leaves a part without a story (a corpus of one file, or of few), every story is cut instead: the
    first 80 % of its text are learnt from, the next 10 % decide, the last 10 % judge.
    """
    chosen: dict[Part, list[Document]] = {part: [] for part in PARTS}
    for story in corpus.documents:
        digest = hashlib.sha256(f"grimmgen/{story.name}".encode("utf-8", "surrogateescape")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        chosen["train" if place < 0.8 else "valid" if place < 0.9 else "test"].append(story)
    if all(chosen.values()):
        return Split({part: tuple(stories) for part, stories in chosen.items()})
    cuts: dict[Part, tuple[float, float]] = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
    return Split(
        {part: tuple(_pinned(s, s.sha256, cut) for s in corpus.documents) for part, cut in cuts.items()},
        by_story=False,
    )


def split_by_file(corpus: Corpus, path: Path) -> Split:
    """The split that a JSON file names: `{"train": [names], "valid": [names], "test": [names]}`.

    Stories that it does not name are left out.

    Raises:
        UsageError: the file is not such a split, names a story twice, or one that the corpus does not have.
    """
    form = 'give a JSON file like {"train": ["001"], "valid": ["002"], "test": ["003"]}'
    try:
        value = files.read_json(path)
    except FileNotFoundError:
        raise UsageError(f"there is no split file {path}", form) from None
    except IntegrityError as error:
        raise UsageError(error.what, form) from None
    named = {story.name: story for story in corpus.documents}
    seen: set[str] = set()
    for part in PARTS:
        names = value.get(part) if isinstance(value, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UsageError(f"the split file {path} names no {part} stories", form)
        for name in names:
            if name in seen:
                raise UsageError(f"the split file {path} names the story {name!r} twice", "name it once")
            seen.add(name)
    if missing := sorted(seen - named.keys()):
        remedy = "fetch it first" if corpus.source == GRIMM else "check the names"
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(f"the corpus {corpus.name} does not have the story {missing[0]!r}{others}", remedy)
    return Split({part: tuple(named[name] for name in value[part]) for part in PARTS})


def _pinned(story: Document, sha256: str | None, part: tuple[float, ...]) -> Document:
    begin, end = part
    if not 0.0 <= begin <= end <= 1.0:
        raise ValueError(part)
    return Document(story.name, story.path, sha256, story.latin1, (begin, end))

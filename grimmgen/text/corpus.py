"""Stories: where they come from, how they are cached, and which part of a split each belongs to.

A corpus is a named set of stories: the fetched Grimm tales (`grimm`), the bundled ones (`sampler`), or any
file or directory of the user's. A story is read when it is used, and is checked against what is known of it.
Knows text files, and nothing of n-grams.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import importlib.resources
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, paths

GRIMM = "grimm"
SAMPLER = "sampler"
# What is read takes some twenty times its size in memory, as text, as codes and as ids.
_LARGEST_STORY = 128 << 20
MANIFEST = "manifest.json"
# What is read at a time, in bytes: little enough to stay in a processor's cache while it is worked on.
_PIECE = 1 << 17
# A file of this size or more is hashed once, for as long as its size and times stay what they were.
_LARGE = 1 << 24
_DIGESTS: dict[tuple[object, ...], str] = {}
_WITHIN_A_LETTER = bytes(range(0x80, 0xC0))  # in UTF-8, all bytes of a letter but its first


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: of the story within its corpus.
        path: the file that holds it.
        sha256: what the file's content must hash to; None takes any.
        latin1: whether bytes that are not UTF-8 are Latin-1 (the CMU page is older than UTF-8).
        part: the share of the text that this story is, from and to; all of it, unless a corpus has too few
            stories to split by story.
    """

    name: str
    path: Path | Traversable
    sha256: str | None = None
    latin1: bool = False
    part: tuple[float, float] = (0.0, 1.0)

    @property
    def size(self) -> int:
        """Bytes of this share of the file, about; 0 where it cannot be read."""
        begin, end = self.part
        try:
            whole = self.path.stat().st_size if isinstance(self.path, Path) else len(self.path.read_bytes())
        except OSError:
            return 0
        return round((end - begin) * whole)

    def digest(self) -> str:
        """The SHA-256 of the whole file, as it is now; a large file is read piece by piece, and once.

        Raises:
            GrimmgenError: the file cannot be read.
        """
        with self._opened() as file:
            if not isinstance(self.path, Path):
                return _digest(file)
            now = self.path.stat()
            known = (str(self.path), now.st_size, now.st_mtime_ns, now.st_ino, now.st_dev)
            if known not in _DIGESTS:
                digest = _digest(file)
                if now.st_size < _LARGE:
                    return digest
                _DIGESTS[known] = digest
            return _DIGESTS[known]

    def content(self) -> bytes:
        """The bytes of the whole file, checked.

        Raises:
            GrimmgenError: the file cannot be read, or is too large.
            IntegrityError: it is not what was fetched.
        """
        with self._opened() as file:
            content = file.read(_LARGEST_STORY + 1)
        if len(content) > _LARGEST_STORY:
            raise GrimmgenError(
                f"{self.path} is larger than {_LARGEST_STORY >> 20} MB", "cut it into several files"
            )
        self._check(files.sha256(content) if self.sha256 else None)
        return content

    def pieces(self) -> Iterator[str]:
        """The text, a piece at a time, so that a text of any size takes little memory; not yet folded in any way.

        It is UTF-8, a byte order mark dropped.

        Raises:
            GrimmgenError: the file cannot be read, or is not text (file and place are told).
            IntegrityError: it is not what was fetched.
        """
        if self.latin1:
            # Such a story was fetched: it is small, and only all of it tells how it is encoded.
            content = self.content()
            try:
                content.decode()
                encoding = "utf-8"
            except UnicodeDecodeError:
                encoding = "latin-1"
            yield from self._decoded(io.BytesIO(content), encoding)
            return
        self._check(self.digest() if self.sha256 else None)
        with self._opened() as file:
            yield from self._decoded(file, "utf-8")

    def read(self) -> str:
        """The text; see `pieces`."""
        return "".join(self.pieces())

    @property
    def _remedy(self) -> str:
        return "run `grimmgen fetch` to repair it" if self.latin1 else "put it back as it was, or train anew"

    def _check(self, sha256: str | None) -> None:
        if sha256 != self.sha256:
            raise IntegrityError(f"{self.path} has changed", self._remedy)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.BufferedIOBase]:
        if isinstance(self.path, Path) and self.sha256 is not None and self.latin1:
            if self.path.is_symlink():
                raise IntegrityError(f"{self.path} is a link, not the story that was fetched", self._remedy)
            if self.path.exists() and not self.path.is_file():
                raise IntegrityError(f"{self.path} is not a file", self._remedy)
        try:
            # Also what has been put in the place of a text since is not waited for.
            with files.open_regular(self.path) if isinstance(self.path, Path) else self.path.open("rb") as file:
                yield cast(io.BufferedIOBase, file)
        except FileNotFoundError:
            raise IntegrityError(f"{self.path} is gone", self._remedy) from None
        except OSError as error:
            raise GrimmgenError(f"cannot read {self.path} ({error.strerror})", self._remedy) from error

    def _decoded(self, file: io.BufferedIOBase, encoding: str) -> Iterator[str]:
        """This share of a file's text."""
        at, end = (_place(file, share) for share in self.part)
        file.seek(at)
        decoder = codecs.getincrementaldecoder(encoding)()
        while at < end:
            block = file.read(min(_PIECE, end - at))
            if not block:
                raise IntegrityError(f"{self.path} has changed", self._remedy)
            if at + len(block) < end:
                # To the last word's beginning, where there is one: pieces of words would have to be put together.
                block = block[: block.rfind(b" ") + 1] or block
                file.seek(at + len(block))
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=at + len(block) == end)
            except UnicodeDecodeError as error:
                raise GrimmgenError(
                    f"{self.path} is not UTF-8 (byte {at - waiting + error.start})",
                    "convert it, as with iconv -t UTF-8",
                ) from None
            at += len(block)
            yield text


@dataclass(frozen=True)
class Corpus:
    """A named set of stories, in the order of their names.

    Attributes:
        name: for people.
        source: what opens it again: `grimm`, `sampler` or an absolute path.
        documents: at least one.
    """

    name: str
    source: str
    documents: tuple[Document, ...]


def open_corpus(source: str) -> Corpus:
    """Open `grimm` (what was fetched), `sampler` (bundled), or a file or directory of the user's.

    Raises:
        GrimmgenError: nothing was fetched yet, or there is no text there.
        UsageError: there is no such file or directory.
    """
    if source == GRIMM:
        return _fetched()
    if source == SAMPLER:
        tales = importlib.resources.files("grimmgen") / "data" / SAMPLER
        found = [Document(t.name[:-4], t) for t in tales.iterdir() if t.name.endswith(".txt")]
        return Corpus(SAMPLER, SAMPLER, tuple(sorted(found, key=lambda s: s.name)))
    if not source:
        raise UsageError("--corpus is empty", f"give {GRIMM}, {SAMPLER}, or the path of a text file or directory")
    path = Path(source)
    try:
        path = path.expanduser().resolve(strict=True)
        if path.is_dir():
            stories = [
                Document(file.relative_to(path).as_posix()[:-4], file)
                for file in path.rglob("*.txt")
                if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
            ]
        elif path.is_file():
            stories = [Document(path.stem, path)]
        else:
            # A pipe could be read but once, and a device for ever.
            raise UsageError(f"{path} is not a file", "copy what it holds into a text file, and give that")
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):
        # RuntimeError: links in a circle, or the home of a user who does not exist.
        raise UsageError(
            f"there is no corpus {source!r}", f"give {GRIMM}, {SAMPLER}, or the path of a text file or directory"
        ) from None
    except OSError as error:
        raise GrimmgenError(f"cannot read {path} ({error.strerror})", "check the permissions") from error
    if not stories:
        raise GrimmgenError(f"{path} has no .txt file in it", "give a directory with text files, or one file")
    return Corpus(path.stem or str(path), str(path), tuple(sorted(stories, key=lambda s: s.name)))


def is_sound(path: Path, entry: Mapping[str, Any] | None) -> bool:
    """Whether a cached file is the one that the manifest describes."""
    try:
        return (
            entry is not None
            and path.is_file()
            and not path.is_symlink()
            and path.stat().st_size == entry["bytes"]
            and files.sha256(path.read_bytes()) == entry["sha256"]
        )
    except OSError:
        return False


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """What was fetched, by name; an unreadable manifest is as good as none: everything is fetched again."""
    try:
        value = files.read_json(directory / MANIFEST)
        return {
            str(name): {
                "url": str(entry["url"]),
                "bytes": int(entry["bytes"]),
                "sha256": str(entry["sha256"]),
                "time": str(entry["time"]),
            }
            for name, entry in value["stories"].items()
            if re.fullmatch(r"[0-9]{3}", name)
        }
    except (FileNotFoundError, IntegrityError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}


def _fetched() -> Corpus:
    directory = paths.corpus_directory(GRIMM)
    manifest = read_manifest(directory)
    if not manifest:
        raise GrimmgenError(
            "no tales have been fetched yet",
            f"run `grimmgen fetch`, or take the bundled ones with --corpus {SAMPLER}",
        )
    stories = (
        Document(name, directory / f"{name}.txt", entry["sha256"], latin1=True)
        for name, entry in sorted(manifest.items())
    )
    return Corpus(GRIMM, GRIMM, tuple(stories))


def _digest(file: io.BufferedIOBase) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _place(file: io.BufferedIOBase, share: float) -> int:
    """Where a share of a file's text ends, in bytes: at the next line's (else word's, else letter's) beginning."""
    file.seek(0)
    first = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    last = file.seek(0, io.SEEK_END)
    at = first + round(share * (last - first))
    if at in {first, last}:
        return at
    file.seek(at)
    ahead = file.read(2000)
    for separator in b"\n", b" ":
        if (found := ahead.find(separator)) >= 0:
            return at + found + 1
    return at + len(ahead) - len(ahead.lstrip(_WITHIN_A_LETTER))

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
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from grimmgen import downloads, files, paths
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

CMU = "https://www.cs.cmu.edu/~spok/grimmtmp/"
GRIMM = "grimm"
SAMPLER = "sampler"
STORIES_ON_THE_PAGE = 209
_SIZES = range(200, 1 << 20)
# What is read takes some twenty times its size in memory, as text, as codes and as ids.
_LARGEST_STORY = 128 << 20
_LOCK_TIMEOUT = 600.0
_MANIFEST = "manifest.json"
# What is read at a time, in bytes: little enough to stay in a processor's cache while it is worked on.
_PIECE = 1 << 17
# A file of this size or more is hashed once, for as long as its size and times stay what they were.
_LARGE = 1 << 24
_DIGESTS: dict[tuple[object, ...], str] = {}
_WITHIN_A_LETTER = bytes(range(0x80, 0xC0))  # in UTF-8, all bytes of a letter but its first


@dataclass(frozen=True)
class Story:
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
            with files.opened(self.path) if isinstance(self.path, Path) else self.path.open("rb") as file:
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
        stories: at least one.
    """

    name: str
    source: str
    stories: tuple[Story, ...]


@dataclass(frozen=True)
class Split:
    """Which stories are learnt from, which decide, which judge.

    Attributes:
        parts: the stories of each part.
        by_story: whether each story belongs to one part; else every story is cut into the three.
    """

    parts: Mapping[Part, tuple[Story, ...]]
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
        now = {story.name: story for story in corpus.stories}
        try:
            parts: dict[Part, tuple[Story, ...]] = {}
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


def open_corpus(source: str) -> Corpus:
    """Open `grimm` (what was fetched), `sampler` (bundled), or a file or directory of the user's.

    Raises:
        GrimmgenError: nothing was fetched yet, or there is no text there.
        UsageError: there is no such file or directory.
    """
    if source == GRIMM:
        return _fetched()
    if source == SAMPLER:
        tales = importlib.resources.files("grimmgen") / SAMPLER
        found = [Story(t.name[:-4], t) for t in tales.iterdir() if t.name.endswith(".txt")]
        return Corpus(SAMPLER, SAMPLER, tuple(sorted(found, key=lambda s: s.name)))
    if not source:
        raise UsageError("--corpus is empty", f"give {GRIMM}, {SAMPLER}, or the path of a text file or directory")
    path = Path(source)
    try:
        path = path.expanduser().resolve(strict=True)
        if path.is_dir():
            stories = [
                Story(file.relative_to(path).as_posix()[:-4], file)
                for file in path.rglob("*.txt")
                if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
            ]
        elif path.is_file():
            stories = [Story(path.stem, path)]
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


def split_by_hash(corpus: Corpus) -> Split:
    """80/10/10 by story, decided by a hash of the story's name, so that adding stories moves none.

    If that leaves a part without a story (a corpus of one file, or of few), every story is cut instead: the
    first 80 % of its text are learnt from, the next 10 % decide, the last 10 % judge.
    """
    chosen: dict[Part, list[Story]] = {part: [] for part in PARTS}
    for story in corpus.stories:
        digest = hashlib.sha256(f"grimmgen/{story.name}".encode("utf-8", "surrogateescape")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        chosen["train" if place < 0.8 else "valid" if place < 0.9 else "test"].append(story)
    if all(chosen.values()):
        return Split({part: tuple(stories) for part, stories in chosen.items()})
    cuts: dict[Part, tuple[float, float]] = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
    return Split(
        {part: tuple(_pinned(s, s.sha256, cut) for s in corpus.stories) for part, cut in cuts.items()},
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
    named = {story.name: story for story in corpus.stories}
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


# --- fetching ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FetchStarted:
    """What there is to do: stories asked for, and how many of them are not there yet."""

    asked: int
    missing: int
    directory: Path


@dataclass(frozen=True)
class StoryFetched:
    """One story has taken its place."""

    name: str
    size: int


@dataclass(frozen=True)
class StoryFailed:
    """One story could not be had; the others go on."""

    name: str
    error: GrimmgenError


FetchEvent = FetchStarted | StoryFetched | StoryFailed


def story_numbers(asked: str) -> list[int]:
    """The numbers that `--stories` names: how many from the first, `all`, or numbers and ranges.

    >>> story_numbers("3"), story_numbers("1-2,35")
    ([1, 2, 3], [1, 2, 35])

    Raises:
        UsageError: it names none, or one that the page does not have.
    """
    last = STORIES_ON_THE_PAGE
    error = UsageError(f"--stories {asked!r} is not clear", f"give 1 to {last}, all, or a list like 1-20,35")
    if asked == "all":
        return list(range(1, last + 1))
    if re.fullmatch(r"\s*[0-9]{1,4}\s*", asked):
        asked = f"1-{asked.strip()}"
    numbers: set[int] = set()
    for item in asked.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", item)
        if not match:
            raise error
        first, final = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= final <= last:
            raise error
        numbers.update(range(first, final + 1))
    return sorted(numbers)


def fetch(
    numbers: Sequence[int],
    url: str = CMU,
    jobs: int = 8,
    force: bool = False,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[FetchEvent]:
    """Bring stories of the page into the cache, several at once; a generator of what happens.

    Each story is checked to be plain text of a sane size before it takes its name, and its URL, size, SHA-256
    and time are written to the manifest. What is there already is not asked for again.

    Args:
        numbers: of the stories, from 1.
        url: the place that serves `001.txt` and so on.
        jobs: how many at once.
        force: fetch again what is there.
        waiting: told if another process is fetching.

    Raises:
        UsageError: the URL cannot be used.
        GrimmgenError: the cache cannot be written.
    """
    base = url if url.endswith("/") else url + "/"
    try:
        parsed = urlsplit(base)
        usable = parsed.scheme in {"http", "https"} and parsed.hostname and parsed.port != 0
    except ValueError:
        usable = False
    if not usable or not base.isprintable():
        raise UsageError(f"--url {url!r} cannot be used", "give an http or https address")
    if not 1 <= jobs <= 64:
        raise UsageError(f"--jobs {jobs} is out of range", "give 1 to 64")
    directory = paths.corpus_directory(GRIMM)
    names = [f"{number:03d}" for number in numbers]
    if not force and not (missing := _missing(directory, _manifest(directory), names)):
        yield FetchStarted(len(names), 0, directory)
        return
    files.make_directory(directory)
    with files.locked(directory / ".lock", "the cache of tales", _LOCK_TIMEOUT, waiting):
        files.sweep(directory)
        manifest = _manifest(directory)
        missing = names if force else _missing(directory, manifest, names)
        yield FetchStarted(len(names), len(missing), directory)
        yield from _fetch_missing(directory, manifest, missing, base, jobs)


def _fetch_missing(
    directory: Path, manifest: dict[str, dict[str, Any]], missing: Sequence[str], base: str, jobs: int
) -> Iterator[FetchEvent]:
    written = time.monotonic()
    waiting, done = queue.SimpleQueue[str](), queue.SimpleQueue[tuple[str, bytes | Exception]]()
    for name in missing:
        waiting.put(name)
    with downloads.Downloader(jobs) as downloader:

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while not downloader.stopped:
                    name = waiting.get_nowait()
                    try:
                        done.put((name, downloader.get(f"{base}{name}.txt")))
                    except Exception as error:
                        done.put((name, error))

        # Daemons, since who is stopped does not wait for a host that does not answer.
        for _ in range(min(jobs, len(missing))):
            threading.Thread(target=work, name="fetch", daemon=True).start()
        try:
            for _ in missing:
                name, content = done.get()
                try:
                    if isinstance(content, Exception):
                        raise content
                    _check_story(f"{base}{name}.txt", content)
                except GrimmgenError as error:
                    yield StoryFailed(name, error)
                    continue
                path = directory / f"{name}.txt"
                entry = {
                    "url": f"{base}{name}.txt",
                    "bytes": len(content),
                    "sha256": files.sha256(content),
                    "time": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                files.make_way(path)
                try:
                    files.write_atomically(path, content)
                finally:
                    # Also when the user stops just as it has taken its place.
                    if _sound(path, entry):
                        manifest[name] = entry
                if time.monotonic() - written > 1.0:
                    _write_manifest(directory, manifest)
                    written = time.monotonic()
                yield StoryFetched(name, len(content))
        finally:
            # Also when the user stops: what has its place is remembered, what waits is not begun.
            downloader.stop()
            if missing:
                _write_manifest(directory, manifest)


def _check_story(url: str, content: bytes) -> None:
    """Refuse what is not plain text of a sane size: an error page, a binary, an empty body."""
    remedy = "check the --url"
    if len(content) not in _SIZES:
        raise IntegrityError(f"{url}: {len(content)} bytes are not a story", remedy)
    if re.search(rb"<\s*(!doctype|html|head|body|script)\b", content[:4096], re.IGNORECASE):
        raise IntegrityError(f"{url}: that is a web page, not a story", remedy)
    controls = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in content)
    if b"\0" in content or controls > len(content) // 100:
        raise IntegrityError(f"{url}: that is not plain text", remedy)


def _missing(directory: Path, manifest: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """The names whose file is not there as the manifest has it."""
    return [name for name in names if not _sound(directory / f"{name}.txt", manifest.get(name))]


def _sound(path: Path, entry: Mapping[str, Any] | None) -> bool:
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


def _manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """What was fetched, by name; an unreadable manifest is as good as none: everything is fetched again."""
    try:
        value = files.read_json(directory / _MANIFEST)
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


def _write_manifest(directory: Path, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    files.write_json(directory / _MANIFEST, {"format": 1, "stories": dict(sorted(manifest.items()))})


def _fetched() -> Corpus:
    directory = paths.corpus_directory(GRIMM)
    manifest = _manifest(directory)
    if not manifest:
        raise GrimmgenError(
            "no tales have been fetched yet",
            f"run `grimmgen fetch`, or take the bundled ones with --corpus {SAMPLER}",
        )
    stories = (
        Story(name, directory / f"{name}.txt", entry["sha256"], latin1=True)
        for name, entry in sorted(manifest.items())
    )
    return Corpus(GRIMM, GRIMM, tuple(stories))


def _pinned(story: Story, sha256: str | None, part: tuple[float, ...]) -> Story:
    begin, end = part
    if not 0.0 <= begin <= end <= 1.0:
        raise ValueError(part)
    return Story(story.name, story.path, sha256, story.latin1, (begin, end))


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

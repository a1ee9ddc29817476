"""Repair: what conversions have left in a text, and how to undo it.

A text may have been decoded wrongly once before (`Ã©` for é, mojibake), or have invisible characters, ligatures and
hyphens at line ends, as from a PDF. What belongs to the writing stays: joiners in Persian, in Indic scripts and between
emoji, marks of direction in Hebrew and Arabic, zero width spaces between Thai words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from grimmgen.configuration import Configuration
from grimmgen.errors import UsageError
from grimmgen.io import files
from grimmgen.reading import formats
from grimmgen.reading.formats import Reading
from grimmgen.reading.sources import Source

REPLACEMENT = "\ufffd"
_TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
_LIGATURES = dict(zip("ﬀﬁﬂﬃﬄﬅﬆ", ["ff", "fi", "fl", "ffi", "ffl", "st", "st"], strict=True))
# Characters by the byte that they stand for in Windows-1252, in which five bytes are control characters, or in Latin-1.
_BYTES = {
    **{chr(code): code for code in range(0x80, 0x100)},
    **{bytes([code]).decode("cp1252", "ignore"): code for code in range(0x80, 0x100)},
}
_BYTES.pop("", None)


def _characters(first: int, last: int) -> str:
    return re.escape("".join(character for character, code in _BYTES.items() if first <= code <= last))


_CONTINUATION = f"[{_characters(0x80, 0xBF)}]"
# UTF-8 in Windows-1252: what occurs in no other text, and any.
_CERTAIN = re.compile(
    f"(?<![A-ZÀ-Þ])[ÂÃ]{_CONTINUATION}|â[€\x80]{_CONTINUATION}|â[\u201a\x82]¬|ï»¿|ï¿½|ð[Ÿ\x9f]{_CONTINUATION}{{2}}"
)
_ANY = re.compile(
    f"[{_characters(0xC2, 0xDF)}]{_CONTINUATION}|[{_characters(0xE0, 0xEF)}]{_CONTINUATION}{{2}}"
    f"|[{_characters(0xF0, 0xF4)}]{_CONTINUATION}{{3}}"
)
_LIGATURE = re.compile(f"[{''.join(_LIGATURES)}]")
_LEAD = re.compile("[Â-ô]")
# Share of the characters beyond ASCII that look like UTF-8 in Windows-1252, from which on all of these are restored. In
# other texts, “à »” with a no-break space looks like it, too.
_MOJIBAKE_SHARE = 0.6
# Text may have been decoded wrongly several times.
_ROUNDS = 3
# Characters that have no place in a text, or only beside certain others: control characters, invisible ones, those for
# private use, and U+FFFD for what could not be decoded.
_STRAYS = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069"
    "\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufffd-\uffff\U000f0000-\U0010ffff]"
)
# Of these, joiners belong beside letters of some scripts and emoji, marks of direction near Hebrew or Arabic letters.
_JOINERS = frozenset("\u200b\u200c\u200d")
_DIRECTIONS = frozenset("\u061c\u200e\u200f")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_NEAR = 200
_HYPHENATED = re.compile(r"(\w+)-[ \t]*\r?\n[ \t]*([^\W\d_]+)([^\s\w]*)[ \t]?")
_LINE_END_HYPHEN = re.compile(r"-[ \t]*\r?\n[ \t]*([^\W\d_]+)")
_COMPOUND = re.compile(r"\w+-\w+")
# Lines that end with a hyphen inside a word, least number and share, in a text that was laid out in lines.
_LEAST_HYPHENS, _HYPHEN_SHARE = 3, 0.02
_LONGEST_LINE = 1 << 20
# Code points below which no script needs joiners.
_JOINED_SCRIPTS = 0x0590


@dataclass
class Defects:
    """What has to be repaired in a text.

    Attributes:
        characters: occurrences of each character that has no place in a text.
        ligatures: of each ligature.
        mojibake: wrongly decoded characters.
        everywhere: whether most of what is not ASCII is wrongly decoded.
        hyphens: words that are split between lines.
    """

    characters: Counter[str] = field(default_factory=Counter)
    ligatures: Counter[str] = field(default_factory=Counter)
    mojibake: int = 0
    everywhere: bool = False
    hyphens: int = 0

    def __bool__(self) -> bool:
        return bool(self.characters or self.ligatures or self.mojibake or self.hyphens)


def find_defects(pieces: Iterable[str]) -> Defects:
    """Find what has to be repaired in a text.

    Args:
        pieces: of the text, cut anywhere.
    """
    found = Defects()
    lines = others = certain = possible = covered = 0
    for text in _whole_lines(pieces):
        lines += text.count("\n")
        found.hyphens += sum(
            match[1].islower() and text[match.start() - 1 : match.start()].isalpha()
            for match in _LINE_END_HYPHEN.finditer(text)
        )
        for match in _STRAYS.finditer(text):
            if _is_stray(text, match.start()):
                found.characters[match[0]] += 1
        if text.isascii():
            continue
        found.ligatures.update(_LIGATURE.findall(text))
        others += len(text) - len(text.encode("ascii", "ignore"))
        if _LEAD.search(text):
            certain += len(_CERTAIN.findall(text))
            for match in _ANY.finditer(text):
                if _restored(match) != match[0]:
                    possible += 1
                    covered += len(match[0])
    found.everywhere = covered > _MOJIBAKE_SHARE * others
    found.mojibake = possible if found.everywhere else certain
    if found.mojibake:
        # These may be parts of wrongly decoded characters.
        found.characters = Counter({c: n for c, n in found.characters.items() if c not in _BYTES})
    if found.hyphens < max(_LEAST_HYPHENS, _HYPHEN_SHARE * lines):
        found.hyphens = 0
    return found


def compounds_of(pieces: Iterable[str]) -> set[str]:
    """Return the words of a text that have a hyphen inside a line, in lower case."""
    return {word.lower() for text in _whole_lines(pieces) for word in _COMPOUND.findall(text)}


def repaired(pieces: Iterable[str], defects: Defects, compounds: Collection[str] = ()) -> Iterator[str]:
    """Yield the text without its defects, piece by piece.

    Args:
        pieces: of the text, cut anywhere.
        defects: of `find_defects` for the same text.
        compounds: words that keep their hyphen where it is at a line end, too.
    """
    for text in _whole_lines(pieces):
        if defects.mojibake:
            text = _without_mojibake(text, defects.everywhere)
        if defects.ligatures:
            text = _LIGATURE.sub(lambda match: _LIGATURES[match[0]], text)
        if defects.characters or defects.mojibake:
            text = _STRAYS.sub(_without_stray, text)
        if defects.hyphens:
            text = _HYPHENATED.sub(_joiner(compounds), text)
        yield text


def is_repairable(character: str) -> bool:
    """Return whether `repaired` removes a stray character; others stand for something that is not known."""
    return character != REPLACEMENT and unicodedata.category(character) not in {"Co", "Cs"}


def _without_mojibake(text: str, everywhere: bool) -> str:
    if everywhere:
        text = _ANY.sub(_restored, text)
    for _ in range(_ROUNDS):
        text = _CERTAIN.sub(_restored, text)
    return text


def _restored(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTES[character] for character in match[0]).decode()
    except (UnicodeDecodeError, KeyError):
        return match[0]


def write_repaired(sources: Sequence[Source], options: Configuration, directory: Path) -> None:
    """Write the repaired text of each source to a file: a text as it is named, a table as JSON lines.

    Args:
        sources: of a corpus.
        options: how they are read (`grimmgen.configuration.READING`).
        directory: that is made; it must not have any files.

    Raises:
        UsageError: the directory has files.
        GrimmgenError: a source cannot be read, or the directory cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is there already", "give the name of a new directory")
    for source in sources:
        name = source.name
        content: Iterator[str]
        if formats.is_table(source):
            name = name if name.lower().endswith((".jsonl", ".ndjson")) else f"{name}.jsonl"
            content = (
                json.dumps({"text": "".join(repaired([text], find_defects([text])))}, ensure_ascii=False) + "\n"
                for text in formats.read_records(source, options, Reading())
            )
        else:
            name = name if name.lower().endswith(_TEXT_SUFFIXES) else f"{name}.txt"
            read = partial(formats.read_text, source, options)
            defects = find_defects(read(Reading()))
            compounds = compounds_of(read(Reading())) if defects.hyphens else ()
            content = repaired(read(Reading()), defects, compounds)
        path = directory / name
        files.make_directory(path.parent)
        with files.atomic_writer(path) as file:
            for piece in content:
                file.write(piece.encode())


def _without_stray(match: re.Match[str]) -> str:
    character = match[0]
    if not is_repairable(character) or not _is_stray(match.string, match.start()):
        return character
    # A control character of Latin-1 is Windows-1252.
    return bytes([ord(character)]).decode("cp1252", "ignore") if "\x80" <= character <= "\x9f" else ""


def _is_stray(text: str, at: int) -> bool:
    """Return whether a character that _STRAYS matches is not needed where it is."""
    if text[at] in _DIRECTIONS:
        return not _RIGHT_TO_LEFT.search(text, max(0, at - _NEAR), at + _NEAR)
    neighbours = text[max(0, at - 1) : at] + text[at + 1 : at + 2]
    return text[at] not in _JOINERS or all(ord(neighbour) < _JOINED_SCRIPTS for neighbour in neighbours)


def _joiner(compounds: Collection[str]) -> Callable[[re.Match[str]], str]:
    """The replacement of a word that is split between lines: joined, unless it has its hyphen elsewhere, too."""

    def join(match: re.Match[str]) -> str:
        first, second, sign = match[1], match[2], match[3]
        if not second.islower():
            return match[0]
        hyphen = "-" if f"{first}-{second}".lower() in compounds else ""
        return f"{first}{hyphen}{second}{sign}\n"

    return join


def _whole_lines(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, cut at line ends that no word is split by, if lines are not too long."""
    rest = ""
    for piece in pieces:
        text = rest + piece
        at = text.rfind("\n")
        while at > 0 and text[:at].rstrip(" \t\r").endswith("-"):
            at = text.rfind("\n", 0, at)
        if at < 0 and len(text) > _LONGEST_LINE:
            at = len(text) - 1
        rest = text[at + 1 :]
        if at >= 0:
            yield text[: at + 1]
    if rest:
        yield rest

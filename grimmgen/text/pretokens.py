"""Pre-tokens: words, punctuation and white space, before they are cut into the tokens of a vocabulary.

A word and a run of punctuation have the space before them, as in GPT-2 (Radford et al. 2019): `the king's` is
`the`, ` king`, `'`, `s`. Other white space is a pre-token of its own. Together they are the whole text.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

import numpy as np

from grimmgen.configuration import Normalisation
from grimmgen.text.documents import END, JoinedText
from grimmgen.text.normalisation import CodePoints, Text, code_points, normalised_pieces, pieces_of

# Characters of a pre-token besides the space before it, at most: a longer run is several.
LONGEST = 32
# Different pre-tokens that are counted; when there are more, those that occurred once are dropped.
_MOST_COUNTED = 1 << 20


def split(text: str) -> list[str]:
    """Split a text into its pre-tokens.

    >>> split("the king's  “house”")
    ['the', ' king', "'", 's', ' ', ' “', 'house', '”']
    """
    return _pattern().findall(text)


class PretokenCutter:
    """Cuts a normalised text that arrives in pieces between two pre-tokens."""

    def __init__(self) -> None:
        self._rest = ""

    def add(self, codes: CodePoints) -> CodePoints:
        """Add a piece; return the characters of the pre-tokens that are complete now."""
        text = self._rest + text_of(codes)
        end = last_begin(text)
        self._rest = text[end:]
        return code_points(text[:end])

    def rest(self) -> CodePoints:
        """Return the characters of the last pre-token, which may be none."""
        return code_points(self._rest)


def last_begin(text: str) -> int:
    """Where the last pre-token of a text begins: what follows the text cannot change those before it."""
    # A pre-token begins with each run of white space, so that not all of a long text has to be split.
    begin = len(text.rstrip())
    if begin == len(text):
        begin = len(text[: max(text.rfind(" "), text.rfind("\n")) + 1].rstrip())
    for match in _pattern().finditer(text, begin):
        begin = match.start()
    return begin


def count_pretokens(texts: Iterable[Text], normalisation: Normalisation) -> tuple[Counter[str], Counter[str]]:
    """Count the pre-tokens of texts.

    Args:
        texts: as they were read; they are normalised, piece by piece.
        normalisation: of the texts.

    Returns:
        The occurrences of each pre-token; and those of the characters of rare pre-tokens that were not counted, to
        bound the memory. Without a million different ones there are none of these.
    """
    counted, dropped = Counter[str](), Counter[str]()
    for text in texts:
        cutter = PretokenCutter()
        for codes in normalised_pieces(pieces_of(text), normalisation):
            counted.update(split(text_of(cutter.add(codes))))
            if len(counted) > _MOST_COUNTED:
                dropped.update("".join(pretoken for pretoken, count in counted.items() if count == 1))
                counted = Counter({pretoken: count for pretoken, count in counted.items() if count > 1})
        counted.update(split(text_of(cutter.rest())))
        if isinstance(text, JoinedText):
            del counted[END]
    return counted, dropped


def text_of(codes: CodePoints) -> str:
    """The text of code points; the inverse of `grimmgen.text.normalisation.code_points`."""
    encoding = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[codes.dtype.itemsize]
    little_endian = np.ascontiguousarray(codes, codes.dtype.newbyteorder("<"))
    return little_endian.tobytes().decode(encoding, "surrogatepass" if encoding != "latin-1" else "strict")


@functools.cache
def _pattern() -> re.Pattern[str]:
    # Marks and joiners are parts of words, as in Hindi, Thai and Persian, but not of `\w`.
    marks = "".join(
        f"{chr(run[0])}-{chr(run[-1])}"
        for is_mark, group in groupby([*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)], _is_mark)
        if is_mark and (run := list(group))
    )
    word, several = rf"\w{marks}", f"{{1,{LONGEST}}}"
    return re.compile(
        rf" ?[{word}]{several}| ?[^\s\0{word}]{several}|\s{several}?(?= ?[^\s\0])|\s{several}|\0",
    )


def _is_mark(code: int) -> bool:
    return code in (0x200C, 0x200D) or unicodedata.category(chr(code)).startswith("M")

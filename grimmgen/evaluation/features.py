"""Nameable properties of a text, as one number for each token: what a unit's state may follow.

Karpathy, Johnson and Li (2015), "Visualizing and Understanding Recurrent Networks", arXiv 1506.02078, found cells that
follow the position in a line and cells that are on inside quotation marks. Knows texts, and nothing of models.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.text.normalisation import code_points

Values = NDArray[np.float64]

_SENTENCE_ENDS = ".!?…。！？।۔؟"  # noqa: RUF001 - the full-width forms are meant
_QUOTATION_MARKS = re.compile('["“”„«»]')
_VOWELS = frozenset("aeiouаеёиоуыэюяαεηιουω")  # noqa: RUF001 - the letters of three alphabets
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Feature:
    """A property of a text.

    Attributes:
        name: for tables.
        of_characters: (text, cased) → one value for each character. `cased` is the text before it was converted to
            lower case.
        average: whether a token has the mean of its characters' values; otherwise that of its last character.
    """

    name: str
    of_characters: Callable[[str, str], Values]
    average: bool = False


def token_features(text: str, cased: str, lengths: Sequence[int]) -> Values:
    """The value of each feature for each token, [F, N], in the order of FEATURES.

    Args:
        text: normalised.
        cased: the same before it was converted to lower case, of the same length.
        lengths: characters of each token, [N]; together they are the text.
    """
    counts = np.asarray(lengths, np.int64)
    ends = np.cumsum(counts)
    begins = ends - counts
    rows = []
    for feature in FEATURES:
        values = feature.of_characters(text, cased)
        if feature.average:
            sums = np.concatenate([[0.0], np.cumsum(values)])
            rows.append((sums[ends] - sums[begins]) / np.maximum(1, counts))
        else:
            rows.append(values[np.maximum(ends - 1, 0)])
    return np.stack(rows)


# --- the features ----------------------------------------------------------------------------------------------


def _where(text: str, predicate: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Whether each character has a property, [characters]."""
    codes, places = np.unique(code_points(text), return_inverse=True)
    return np.array([predicate(chr(code)) for code in codes], np.bool_)[places]


def _since(marks: NDArray[np.bool_]) -> Values:
    """The characters since the last mark, 0 at a mark; before the first one those since the beginning, from 1 on."""
    places = np.arange(len(marks))
    return (places - np.maximum.accumulate(np.where(marks, places, -1))).astype(np.float64)


def _indicator(predicate: Callable[[str], bool]) -> Callable[[str, str], Values]:
    return lambda text, _: _where(text, predicate).astype(np.float64)


def _distance(predicate: Callable[[str], bool]) -> Callable[[str, str], Values]:
    # A state is bounded or saturates: it can follow the logarithm of a distance further than the distance itself.
    def of_characters(text: str, _: str) -> Values:
        marks = _where(text, predicate)
        return np.log1p(_since(marks)) if marks.any() else np.zeros(len(text))

    return of_characters


def _is_punctuation(character: str) -> bool:
    # An apostrophe or a hyphen is part of a word.
    return unicodedata.category(character)[0] == "P" and character not in "'’-_"  # noqa: RUF001


def _is_vowel(character: str) -> bool:
    return unicodedata.normalize("NFD", character)[0].lower() in _VOWELS


def _in_quotation(text: str, _: str) -> Values:
    """1 from an opening quotation mark to before the closing one."""
    inside = np.zeros(len(text))
    begin, opened = 0, False
    for match in _QUOTATION_MARKS.finditer(text):
        at = match.start()
        if opened:
            inside[begin:at] = 1.0
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        # A mark opens if it stands before a word. It does not if the one before it was never closed, either.
        starts = not before or before.isspace() or before in "([–—-"
        begin, opened = at, starts and (match[0] == "«" or bool(after.strip()))
    if opened:
        inside[begin:] = 1.0
    return inside


def _bracket_depth(text: str, _: str) -> Values:
    """The number of open brackets; one that closes nothing is ignored."""
    steps = _where(text, "([{".__contains__).astype(np.int64) - _where(text, ")]}".__contains__)
    depth = np.cumsum(steps)
    return (depth - np.minimum.accumulate(np.minimum(depth, 0))).astype(np.float64)


def _in_name(_: str, cased: str) -> Values:
    """1 in a capitalised word within a sentence."""
    inside = np.zeros(len(cased))
    for match in _WORD.finditer(cased):
        word, at = match[0], match.start()
        if len(word) < 2 or not word[0].isupper() or word[1].isupper():
            continue
        space = at
        while space and cased[space - 1].isspace():
            space -= 1
        before = cased[space - 1 : space]
        if before and (before.isalnum() or before in ",;"):
            inside[at : match.end()] = 1.0
    return inside


def _indentation(text: str, _: str) -> Values:
    """The number of spaces, or tabs, at the beginning of the line."""
    depths = [np.full(len(line), len(line) - len(line.lstrip(" \t"))) for line in text.splitlines(keepends=True)]
    return np.concatenate([np.zeros(0), *depths])


FEATURES = (
    Feature("inside quotation marks", _in_quotation),
    Feature("inside brackets", _bracket_depth),
    Feature("in a name", _in_name),
    Feature("vowel", _indicator(_is_vowel), average=True),
    Feature("digit", _indicator(str.isdigit), average=True),
    Feature("space", _indicator(str.isspace), average=True),
    Feature("punctuation", _indicator(_is_punctuation), average=True),
    Feature("end of a sentence", _indicator(_SENTENCE_ENDS.__contains__), average=True),
    Feature("position in the word", _distance(lambda character: not character.isalnum())),
    Feature("position in the clause", _distance(_is_punctuation)),
    Feature("position in the sentence", _distance(_SENTENCE_ENDS.__contains__)),
    Feature("position in the line", _distance("\n".__contains__)),
    Feature("indentation of the line", _indentation),
    Feature("position in the text", lambda text, _: np.log1p(np.arange(len(text)))),
)

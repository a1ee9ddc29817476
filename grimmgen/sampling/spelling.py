"""Spelling with the words of a lexicon: which tokens may follow a text, for any tokenizer. Knows no networks.

V  vocabulary size
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from grimmgen.sampling.logits import Logits, forbid
from grimmgen.text.vocabulary import END, Vocabulary

# Beginnings of words whose misspellings are remembered: each takes at most 8·V bytes.
_REMEMBERED = 4096


class Speller:
    """Finds the tokens that spell other words than those of a lexicon.

    Args:
        words: the lexicon; a character that none of them has separates words.
        vocabulary: the vocabulary of the model.
    """

    def __init__(self, words: Collection[str], vocabulary: Vocabulary) -> None:
        self._letters = frozenset("".join(words))
        self._words, self._sorted = frozenset(words), sorted(words)
        self._beginnings = frozenset(word[:end] for word in words for end in range(len(word) + 1)) | {""}
        # What a token does to the word before it: the letters that it adds, and whether it ends it.
        kinds: dict[tuple[str, bool], int] = {}
        self._kind_of = np.zeros(len(vocabulary), np.int64)
        # The words that a token has whole, and the beginning of one at its end.
        within: list[tuple[list[str], str]] = []
        for token in range(END, len(vocabulary)):
            runs = [
                "".join(run)
                for _, run in itertools.groupby(vocabulary.decode([token]), self._letters.__contains__)
            ]
            first = runs.pop(0) if runs and runs[0][0] in self._letters else ""
            last = runs.pop() if runs and runs[-1][0] in self._letters else ""
            within.append(([run for run in runs if run[0] in self._letters], last))
            kind = first, bool(runs) or token == END
            self._kind_of[token] = kinds.setdefault(kind, len(kinds))
        self._kinds = list(kinds)
        # What tokens add that are nothing but letters, and what the others begin with.
        self._inner, self._final = ({added for added, ends in kinds if ends is final} for final in (False, True))
        self._longest = max(map(len, self._inner), default=0)
        self._can_spell, self._is_beginning = cache(self._ends_in), cache(self._is_spellable)
        wrong = [not (self._is_beginning(last) and self._words.issuperset(whole)) for whole, last in within]
        self._misspelt = np.array([True, *wrong])
        self.misspellings = lru_cache(_REMEMBERED)(self._misspellings)

    def last_word(self, text: str) -> str:
        """Return the letters at the end of a text: a word, or the beginning of one."""
        begin = len(text)
        while begin and text[begin - 1] in self._letters:
            begin -= 1
        return text[begin:]

    def _is_spellable(self, beginning: str) -> bool:
        """Return whether tokens can complete a beginning, which may be empty, to some word."""
        for at in range(bisect.bisect_left(self._sorted, beginning), len(self._sorted)):
            if not self._sorted[at].startswith(beginning):
                break
            if self._can_spell(self._sorted[at][len(beginning) :]):
                return True
        return not beginning

    def _ends_in(self, rest: str) -> bool:
        """Return whether tokens can spell the rest of a word, and end it."""
        if not rest or rest in self._final:
            return True
        ends = range(1, min(len(rest), self._longest) + 1)
        return any(rest[:end] in self._inner and self._can_spell(rest[end:]) for end in ends)

    def _misspellings(self, word: str) -> NDArray[np.int64]:
        """Return the ids of the tokens that must not follow the beginning of a word, which may be empty.

        A word that the lexicon does not have, such as one of the prompt, may go on in any way.
        """
        wrong = self._misspelt
        if self._is_beginning(word):
            # Most of what tokens would make of it begins no word.
            right = [
                not (whole := word + added)
                or (whole in self._words if ends else whole in self._beginnings and self._is_beginning(whole))
                for added, ends in self._kinds
            ]
            wrong = wrong | ~np.array(right)[self._kind_of]
        return np.flatnonzero(wrong)


class Spelling:
    """The step that leaves the right spellings of one text.

    Args:
        speller: knows the lexicon.
        text: what the text begins with.
    """

    def __init__(self, speller: Speller, text: str) -> None:
        self._speller = speller
        self._word = speller.last_word(text)

    def apply(self, logits: Logits) -> Logits:
        """Forbid misspellings in logits [V], unless that would leave no token, as after some prompts."""
        right = forbid(logits, self._speller.misspellings(self._word))
        return logits if np.isneginf(right).all() else right

    def append(self, piece: str) -> None:
        """Append the text of a token."""
        self._word = self._speller.last_word(self._word + piece)

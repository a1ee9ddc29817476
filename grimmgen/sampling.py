"""N-gram after n-gram, drawn as `Decoding` says, for several stories side by side.

Temperature and top-k are drawn by the compiled step; all else takes the logits from it and decides in NumPy.
Knows ids and what they spell, and nothing of prompts or stories' ends.

    N  n-grams told    B  stories told at once    V  vocabulary size
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grimmgen import decoding
from grimmgen.decoding import Decoding
from grimmgen.vocabulary import END, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from grimmgen.kernels.stepping import Ids, Stepper
    from grimmgen.novelty import CopyLimit

# N-grams that the repetition penalty remembers: a sentence or two.
_REMEMBERED = 64


class Sampler:
    """Draws n-grams.

    Args:
        stepper: has read what the stories go on from.
        vocabulary: of the model.
        options: how to draw.
        random_seeds: one a story, [B].
        generators: made of them, [B]; what the initial state took of them is gone.
        read: the ids that were read last, of all stories.
        limits: one a story, [B], or none.
    """

    def __init__(
        self,
        stepper: Stepper,
        vocabulary: Vocabulary,
        options: Decoding,
        random_seeds: Sequence[int],
        generators: Sequence[np.random.Generator],
        read: Sequence[int],
        limits: list[CopyLimit],
    ) -> None:
        self._stepper, self._vocabulary, self._options = stepper, vocabulary, options
        self._generators, self.limits = generators, limits
        # What is drawn again has its own: every n-gram takes one number of the first, however many are set aside.
        self._again = [np.random.default_rng([seed, 1]) for seed in random_seeds]
        self._recent = [deque(read[-_REMEMBERED:], _REMEMBERED) for _ in generators]
        self._ended = np.zeros(len(generators), np.bool_)

    def tell(self, most: int, begun: str = "", candidates: list[int] | None = None) -> Ids:
        """Draw up to so many n-grams a story, at least one.

        Args:
            most: n-grams.
            begun: the characters of the first one that have been told already.
            candidates: the ids to choose the first one among; with them no more than that is drawn.

        Returns:
            Their ids, [N, B]; of a story that is over `<end>`.
        """
        if candidates is None and self._options.plain:
            if count := min(most, *(limit.clear // self._vocabulary.ngram for limit in self.limits), most):
                return self._drawn_by_the_step(count)
            most = 1
        numbers = self._numbers(1 if candidates is not None else most)
        ids = np.full(numbers.shape, END)
        for row, chosen in zip(numbers, ids, strict=True):
            for b in np.flatnonzero(~self._ended).tolist():
                chosen[b] = self._choose(b, row[b], begun, candidates)
                self._recent[b].append(int(chosen[b]))
                if self.limits:
                    self.limits[b].go_on(self._spelt(int(chosen[b]))[len(begun) :])
            self._stepper.step(chosen)
            self._ended = chosen == END
            if self._ended.all():
                break
        return ids

    def _drawn_by_the_step(self, count: int) -> Ids:
        ids = self._stepper.tell(
            self._numbers(count),
            top_k=self._options.best,
            temperature=self._options.heat,
            never=[UNKNOWN],
            end=END,
        )
        # A step by itself, between two calls, has made the stories that are over begin again.
        ids[:, self._ended] = END
        self._ended = ids[-1] == END
        for limit, row in zip(self.limits, ids.T.tolist(), strict=False):
            limit.go_on(self._vocabulary.decode(row))
        return ids

    def _choose(self, b: int, number: float, begun: str, candidates: list[int] | None) -> int:
        logits = decoding.forbid(self._stepper.logits[b], [UNKNOWN])
        if candidates is not None:
            logits = decoding.allow_only(logits, candidates)
        while True:
            token = decoding.draw(self._options.narrow(logits, self._recent[b]), number)
            if not self.limits or self.limits[b].allows(self._spelt(token)[len(begun) :]):
                return token
            logits[token] = -np.inf
            if np.isneginf(logits).all():
                return self._least_copied(b, begun, candidates)
            number = self._again[b].random()

    def _least_copied(self, b: int, begun: str, candidates: list[int] | None) -> int:
        possible = range(END + 1, len(self._vocabulary)) if candidates is None else candidates
        return min(possible, key=lambda token: self.limits[b].copied(self._spelt(token)[len(begun) :]))

    def _spelt(self, token: int) -> str:
        return self._vocabulary.decode([token])

    def _numbers(self, count: int) -> NDArray[np.float64]:
        return np.stack([generator.random(count) for generator in self._generators], axis=1)

"""N-gram after n-gram, drawn as `SamplingOptions` says, for several stories side by side.

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

from grimmgen.sampling import options
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import CopyLimit
    from grimmgen.network.backends.numpy import Ids, Stepper

# N-grams that the repetition penalty remembers: a sentence or two.
_REMEMBERED = 64
# N-grams that are told before somebody looks whether they copy too much, at most.
_MOST_AHEAD = 256


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
        options: SamplingOptions,
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
        self._left = np.zeros((0, len(generators)))
        self._ahead = _MOST_AHEAD

    def tell(self, most: int, begun: str = "", candidates: list[int] | None = None) -> Ids:
        """Draw up to so many n-grams a story, at least one.

        Args:
            most: n-grams.
            begun: the characters of the first one that have been told already.
            candidates: the ids to choose the first one among; with them no more than that is drawn.

        Returns:
            Their ids, [N, B]; of a story that is over `<end>`.
        """
        if candidates is not None:
            most = 1
        elif self._options.plain:
            if len(ids := self._drawn_by_the_step(min(most, self._ahead))):
                return ids
            most = 1
        numbers = self._numbers(most)
        ids = np.full(numbers.shape, END)
        for row, chosen in zip(numbers, ids, strict=True):
            for b in np.flatnonzero(~self._ended).tolist():
                chosen[b] = self._choose(b, row[b], begun, candidates)
                self._recent[b].append(int(chosen[b]))
            self._stepper.step(chosen)
            self._ended = chosen == END
            if self._ended.all():
                break
        return ids

    def _drawn_by_the_step(self, count: int) -> Ids:
        """Up to so many n-grams, [N, B], none of which would copy too much."""
        numbers = self._numbers(count)
        if not self.limits:
            return self._told(numbers)
        before, ended = self._stepper.remember(), self._ended
        ids = self._told(numbers)
        pieces = [self._vocabulary.decode(row) for row in ids.T.tolist()]
        kept = count
        for limit, piece, row in zip(self.limits, pieces, ids.T.tolist(), strict=True):
            if (allowed := limit.allowed_length(piece)) < len(piece):
                kept = min(kept, self._whole(row, allowed))
        if kept == count:
            self._ahead = min(2 * self._ahead, _MOST_AHEAD)
        else:
            # Back to where a story has begun to copy too much: what it takes there is chosen with more care.
            self._ahead = max(1, self._ahead // 2)
            self._stepper.go_back(before)
            self._ended = ended
            self._left = np.concatenate([numbers[kept:], self._left])
            ids = self._told(numbers[:kept])
            pieces = [self._vocabulary.decode(row) for row in ids.T.tolist()]
        for limit, piece in zip(self.limits, pieces, strict=True):
            limit.append(piece)
        return ids

    def _told(self, numbers: NDArray[np.float64]) -> Ids:
        ids = self._stepper.tell(
            numbers, top_k=self._options.best, temperature=self._options.heat, never=[UNKNOWN], end=END
        )
        # A step by itself, between two calls, has made the stories that are over begin again.
        ids[:, self._ended] = END
        if len(ids):
            self._ended = ids[-1] == END
        return ids

    def _whole(self, ids: list[int], characters: int) -> int:
        """How many of these n-grams lie within so many characters."""
        ends = np.cumsum([len(self._spelt(token)) for token in ids])
        return int(np.searchsorted(ends, characters, side="right"))

    def _choose(self, b: int, number: float, begun: str, candidates: list[int] | None) -> int:
        logits = options.forbid(self._stepper.logits[b], [UNKNOWN])
        if candidates is not None:
            logits = options.allow_only(logits, candidates)
        while True:
            token = options.draw(self._options.narrow(logits, self._recent[b]), number)
            if not self.limits:
                return token
            piece = self._spelt(token)[len(begun) :]
            if self.limits[b].allows(piece):
                self.limits[b].append(piece)
                return token
            logits[token] = -np.inf
            if np.isneginf(logits).all():
                return self._least_copied(b, begun, candidates)
            number = self._again[b].random()

    def _least_copied(self, b: int, begun: str, candidates: list[int] | None) -> int:
        """Where every way on is a copy that is too long, the one that is the shortest."""
        limit = self.limits[b]
        possible = range(END + 1, len(self._vocabulary)) if candidates is None else candidates
        copied = {token: limit.copied(self._spelt(token)[len(begun) :]) for token in possible}
        token = min(copied, key=lambda token: copied[token])
        limit.append(self._spelt(token)[len(begun) :], copied[token])
        return token

    def _spelt(self, token: int) -> str:
        return self._vocabulary.decode([token])

    def _numbers(self, count: int) -> NDArray[np.float64]:
        """Random numbers, [count, B]: first those that were drawn for n-grams that were taken back."""
        missing = max(0, count - len(self._left))
        fresh = [generator.random(missing) for generator in self._generators]
        numbers = np.concatenate([self._left, np.stack(fresh, axis=1)])
        self._left = numbers[count:]
        return numbers[:count]

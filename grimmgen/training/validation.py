"""The evaluation of a model on the validation set while it is trained, within the time that there is for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grimmgen.evaluation.static import (
    EncodedDocument,
    EvaluationStoppedError,
    evaluate,
    seconds_to_evaluate,
)
from grimmgen.network.model import LanguageModel
from grimmgen.training.distributed import ProcessGroup

# Of a budget, the largest share that an evaluation may take.
_SHARE = 1 / 12
# The fewest n-grams that are evaluated, and the batch rows that a part of the validation set is cut into.
_FEWEST, _ROWS = 1 << 10, 64


class Validation:
    """Evaluates a model on the validation set, or on as much of it as a budget allows.

    An evaluation of the whole set may take longer than a budget. Then its first n-grams are evaluated, as many as
    take a twelfth of the budget at most, and the same ones each time, so that the scores of a run are comparable.

    Args:
        model: on any device.
        documents: the validation set.
        encode: returns its first n-grams, as many as it is asked for.
        group: the processes that evaluate together.
        clock: returns seconds.

    Attributes:
        ngrams: number of n-grams that are evaluated; 0 is all.
        seconds: the expected duration of an evaluation.
    """

    def __init__(
        self,
        model: LanguageModel,
        documents: Sequence[EncodedDocument],
        encode: Callable[[int], Sequence[EncodedDocument]],
        group: ProcessGroup,
        clock: Callable[[], float],
    ) -> None:
        self._model, self._documents, self._encode, self._clock = model, documents, encode, clock
        self._group, self._shard = group, (group.rank, group.size)
        self._part: int | None = None
        self.ngrams = 0
        self.seconds = self._expected()

    def fit(self, budget: float) -> int:
        """Evaluate only as much as there is time for in a budget, in seconds; returns `ngrams`."""
        time = budget * _SHARE
        if self.seconds > time:
            self.limit(_ROWS * 128)
            evaluated = sum(len(document.ids) for document in self._documents)
            affordable = max(_FEWEST, int(evaluated * time / self.seconds))
            self.limit(1 << (affordable.bit_length() - 1))
        return self.ngrams

    def limit(self, ngrams: int) -> None:
        """Evaluate only that many n-grams, in many rows, which take less time than a few long ones."""
        self.ngrams, self._part = ngrams, ngrams // _ROWS + 1
        self._documents = self._encode(ngrams)
        self.seconds = self._expected()

    def scores(self, stopped: Callable[[], bool]) -> tuple[float, float] | None:
        """The perplexity and the bits per character; None if it was stopped.

        Args:
            stopped: asked before each window whether to stop.
        """
        try:
            total = evaluate(self._model, self._documents, self._shard, self._group.sum, stopped, self._part).total
        except EvaluationStoppedError:
            return None
        perplexity, bits_per_character = self._group.broadcast(
            lambda: [total.perplexity, total.bits_per_character]
        )
        return perplexity, bits_per_character

    def _expected(self) -> float:
        return seconds_to_evaluate(self._model, self._documents, self._clock, self._shard, self._part)

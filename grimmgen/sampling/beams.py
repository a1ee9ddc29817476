"""Beam search: grow several continuations side by side, then choose one of them.

From the section of the book that follows the tutorial's. A beam is a continuation of the text. Beams grow by
`depth` tokens; after each of these, the `width` most probable of all continuations are kept. Then one beam is
sampled in proportion to its probability under the model, because always taking the best soon leads into a loop.

    B  documents of the batch    W  beams per document    D  depth of a beam    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grimmgen.sampling.logits import draw, log_probabilities, temper
from grimmgen.sampling.options import SamplingOptions
from grimmgen.sampling.sampler import FirstToken
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import CopyLimit
    from grimmgen.network.backends.numpy import Ids, Stepper
    from grimmgen.sampling.combined import CombinedStepper

# Continuations to examine for each beam that is kept, because several may have the same text.
_CANDIDATES_PER_BEAM = 4


@dataclass(frozen=True)
class Beam:
    """A continuation of the text.

    Attributes:
        score: the natural logarithm of its probability.
        ids: its tokens; after `<end>` only `<end>`.
        text: the text of the tokens.
        copy_limit: the copy limit of the document after this continuation; None for no limit.
        parent: the row of the beam that this one extends.
    """

    score: float = 0.0
    ids: tuple[int, ...] = ()
    text: str = ""
    copy_limit: CopyLimit | None = field(default=None, compare=False)
    parent: int = 0

    @property
    def ended(self) -> bool:
        """Whether the document ends with this beam."""
        return self.ids[-1:] == (END,)


def grow(
    beams: Sequence[Beam], log_p: NDArray[np.float64], width: int, vocabulary: Vocabulary, prefix: str = ""
) -> list[Beam]:
    """Extend beams by one token and keep the best continuations, the most probable first.

    Beams with the same text are merged: the merged beam has the sum of their probabilities and the state of the
    more probable one.

    Args:
        beams: at least one.
        log_p: the log-probabilities of the token after each beam, [beams, V].
        width: the number of beams to keep, at most.
        vocabulary: the vocabulary of the model.
        prefix: the characters of these tokens that the prompt has already.
    """
    scores = log_p + np.array([beam.score for beam in beams])[:, None]
    for row, beam in zip(scores, beams, strict=True):
        if beam.ended:
            row[:] = -np.inf
            row[END] = beam.score
    kept: dict[tuple[str, bool], Beam] = {}
    rejected: list[tuple[int, Beam]] = []
    copied = 0
    examined = _CANDIDATES_PER_BEAM * width
    for number, index in enumerate(_descending(scores.ravel(), examined)):
        parent, token = divmod(index, scores.shape[1])
        beam, score = beams[parent], float(scores[parent, token])
        if score == -np.inf or (len(kept) == width and number >= examined):
            break
        piece = vocabulary.decode([token])[len(prefix) :]
        new = Beam(score, (*beam.ids, token), beam.text + piece, beam.copy_limit, parent)
        if (same := kept.get((new.text, new.ended))) is not None:
            kept[new.text, new.ended] = replace(same, score=float(np.logaddexp(same.score, score)))
        elif len(kept) == width:
            continue
        elif beam.copy_limit is not None and not beam.copy_limit.allows(piece):
            rejected.append((beam.copy_limit.copied(piece), new))
        else:
            kept[new.text, new.ended] = new
    grown = list(kept.values())
    if not grown:
        # Every continuation exceeds the copy limit: keep the one with the shortest copy.
        copied, shortest = min(rejected, key=lambda pair: pair[0])
        grown = [shortest]
    updated = (
        beam
        if beam.copy_limit is None
        else replace(beam, copy_limit=beam.copy_limit.appended(beam.text[len(beams[beam.parent].text) :], copied))
        for beam in grown
    )
    return sorted(updated, key=lambda beam: -beam.score)


def _descending(scores: NDArray[np.float64], first: int) -> Iterator[int]:
    """Iterate over the indices of scores in descending order; only the first ones are sorted in advance."""
    if first < scores.size:
        best = np.argpartition(-scores, first - 1)[:first]
        yield from best[np.argsort(-scores[best], kind="stable")].tolist()
        scores = scores.copy()
        scores[best] = -np.inf
    yield from np.argsort(-scores, kind="stable").tolist()


class BeamSearch:
    """Samples one beam after another, with the interface of `grimmgen.sampling.sampler.Sampler`.

    Args:
        stepper: B·W rows, of which the first of each W has read the context of its document.
        vocabulary: the vocabulary of the model.
        options: width and depth of the beams, and the temperature at which one is sampled.
        generators: one per document, [B].
        copy_limits: one per document, [B], or an empty list for no limit.
    """

    def __init__(
        self,
        stepper: Stepper | CombinedStepper,
        vocabulary: Vocabulary,
        options: SamplingOptions,
        generators: Sequence[np.random.Generator],
        copy_limits: list[CopyLimit],
    ) -> None:
        assert options.beam_width is not None
        self._stepper, self._vocabulary, self._options = stepper, vocabulary, options
        self._width = options.beam_width
        self._generators = generators
        self.copy_limits = copy_limits
        self._ended = [False] * len(generators)

    def sample(self, count: int, firsts: Sequence[FirstToken] | None = None) -> Ids:
        """Search, and sample a beam for each document.

        Args:
            count: ignored; a beam always has the depth of the options.
            firsts: what the first token of each document has to be, [B].

        Returns:
            The ids of the beams, [D, B]; `<end>` for documents that have ended.
        """
        del count
        W, depth = self._width, self._options.effective_beam_depth
        documents = range(len(self._generators))
        copy_limits: Sequence[CopyLimit | None] = self.copy_limits or [None] * len(documents)
        beams = [
            [Beam(ids=(END,) if ended else (), copy_limit=copy_limit)]
            for ended, copy_limit in zip(self._ended, copy_limits, strict=True)
        ]
        for d in range(depth):
            rows, ids = np.zeros((2, len(documents), W), np.int64)
            for b in documents:
                first = FirstToken() if d or firsts is None else firsts[b]
                log_p = _log_probabilities(self._stepper.logits[b * W : b * W + len(beams[b])], first.candidates)
                beams[b] = grow(beams[b], log_p, W, self._vocabulary, first.prefix)
                # Rows without a beam repeat the best one.
                padded = beams[b] + beams[b][:1] * (W - len(beams[b]))
                rows[b], ids[b] = [b * W + beam.parent for beam in padded], [beam.ids[-1] for beam in padded]
            self._stepper.select_rows(rows.ravel())
            self._stepper.step(ids.ravel())
        indices = [self._choose(b, beams[b]) for b in documents]
        self._stepper.select_rows(np.repeat([b * W + index for b, index in enumerate(indices)], W))
        chosen = [beams[b][index] for b, index in enumerate(indices)]
        self._ended = [beam.ended for beam in chosen]
        self.copy_limits = [beam.copy_limit for beam in chosen if beam.copy_limit is not None]
        return np.array([beam.ids[-depth:] for beam in chosen]).T

    def _choose(self, b: int, beams: Sequence[Beam]) -> int:
        scores = np.array([beam.score for beam in beams], np.float32)
        return draw(temper(scores, self._options.effective_temperature), self._generators[b].random())


def _log_probabilities(logits: NDArray[np.float32], candidates: list[int] | None) -> NDArray[np.float64]:
    """Log-probabilities [..., V] without `<unk>`, renormalised over `candidates` where these are given."""
    log_p = log_probabilities(logits)
    log_p[:, UNKNOWN] = -np.inf
    if candidates is not None:
        rest = np.setdiff1d(np.arange(log_p.shape[1]), candidates)
        log_p[:, rest] = -np.inf
        log_p -= np.logaddexp.reduce(log_p, axis=-1, keepdims=True)
    return log_p

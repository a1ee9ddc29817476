"""Beam search: whole beams of n-grams are weighed before one of them is told.

The section of the book that follows the tutorial's: from where the story stands, beams grow by `depth` n-grams,
after each of which the `width` best of all their continuations stay; then one of them is told, drawn in
proportion, since the best alone soon leads in a circle. Their probabilities are the model's own.

    B  stories told at once    W  beams of each    D  their depth    V  vocabulary size
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grimmgen.sampling import options
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import CopyLimit
    from grimmgen.network.backends.numpy import Ids, Stepper

# A word of the text that follows, or marks between two, known to have ended; and the n-grams that it has at most.
_WORD = re.compile(r"\s*(?:[\w'\u2019-]+(?=[^\w'\u2019-])|[^\w\s]+(?=[\w\s]))")
_LONGEST_WORD = 16
# Continuations that are looked at for each that stays, because others may spell the same.
_SPARE = 4


@dataclass(frozen=True)
class Beam:
    """One way on.

    Attributes:
        score: the logarithm of its probability.
        ids: its n-grams; after `<end>` nothing but that.
        text: what they spell.
        limit: watches over what it copies.
        parent: the row of the beam that it has grown from.
    """

    score: float = 0.0
    ids: tuple[int, ...] = ()
    text: str = ""
    limit: CopyLimit | None = field(default=None, compare=False)
    parent: int = 0

    @property
    def ended(self) -> bool:
        """Whether the story ends with it."""
        return self.ids[-1:] == (END,)


def grow(
    beams: Sequence[Beam], log_p: NDArray[np.float64], width: int, vocabulary: Vocabulary, begun: str = ""
) -> list[Beam]:
    """The best continuations of these beams by one n-gram, the best first.

    Beams that spell the same are one, with the sum of their probabilities and the state of the likelier.

    Args:
        beams: at least one.
        log_p: of the n-gram that follows each of them, [beams, V].
        width: so many stay, at most.
        vocabulary: of the model.
        begun: the characters of these n-grams that have been told already.
    """
    scores = log_p + np.array([beam.score for beam in beams])[:, None]
    for row, beam in zip(scores, beams, strict=True):
        if beam.ended:
            row[:] = -np.inf
            row[END] = beam.score
    found: dict[tuple[str, bool], Beam] = {}
    copying: list[tuple[int, Beam]] = []
    copied = 0
    for seen, place in enumerate(_best_first(scores.ravel(), _SPARE * width)):
        parent, token = divmod(place, scores.shape[1])
        beam, score = beams[parent], float(scores[parent, token])
        if score == -np.inf or (len(found) == width and seen >= _SPARE * width):
            break
        piece = vocabulary.decode([token])[len(begun) :]
        new = Beam(score, (*beam.ids, token), beam.text + piece, beam.limit, parent)
        if (known := found.get((new.text, new.ended))) is not None:
            both = float(np.logaddexp(known.score, score))
            found[new.text, new.ended] = replace(known, score=both)
        elif len(found) == width:
            continue
        elif beam.limit is not None and not beam.limit.allows(piece):
            copying.append((beam.limit.copied(piece), new))
        else:
            found[new.text, new.ended] = new
    grown = list(found.values())
    if not grown:
        copied, least = min(copying, key=lambda pair: pair[0])
        grown = [least]
    watched = (
        beam
        if beam.limit is None
        else replace(beam, limit=beam.limit.appended(beam.text[len(beams[beam.parent].text) :], copied))
        for beam in grown
    )
    return sorted(watched, key=lambda beam: -beam.score)


def _best_first(scores: NDArray[np.float64], first: int) -> Iterator[int]:
    """The places of numbers, the largest first; those after so many are sorted only if they are asked for."""
    if first < scores.size:
        best = np.argpartition(-scores, first - 1)[:first]
        yield from best[np.argsort(-scores[best], kind="stable")].tolist()
        scores = scores.copy()
        scores[best] = -np.inf
    yield from np.argsort(-scores, kind="stable").tolist()


class BeamSearch:
    """Tells beam by beam; with the same calls as `grimmgen.sampling.sampler.Sampler`.

    Args:
        stepper: of B·W rows, the first of each W of which has read what its story goes on from.
        vocabulary: of the model.
        options: width, depth, and how a beam is drawn: in proportion at their temperature, or always the best.
        generators: one a story, [B].
        limits: one a story, [B], or none.
    """

    def __init__(
        self,
        stepper: Stepper,
        vocabulary: Vocabulary,
        options: SamplingOptions,
        generators: Sequence[np.random.Generator],
        limits: list[CopyLimit],
    ) -> None:
        assert options.beam_width is not None
        self._stepper, self._vocabulary, self._options = stepper, vocabulary, options
        self._width = options.beam_width
        self._generators = generators
        self.limits = limits
        self._ended = [False] * len(generators)

    def tell(self, most: int, begun: str = "", candidates: list[int] | None = None) -> Ids:
        """Search, and choose a beam for each story.

        Args:
            most: n-grams a story, about; a beam is as deep as it was asked for.
            begun: the characters of the first n-gram that have been told already.
            candidates: the ids to choose the first one among.

        Returns:
            The ids of its n-grams, [D, B]; of a story that is over `<end>`.
        """
        del most
        W, stories = self._width, range(len(self._generators))
        limits: Sequence[CopyLimit | None] = self.limits or [None] * len(stories)
        beams = [
            [Beam(ids=(END,) if ended else (), limit=limit)]
            for ended, limit in zip(self._ended, limits, strict=True)
        ]
        for depth in range(self._options.depth):
            rows, ids = np.zeros((2, len(stories), W), np.int64)
            for b in stories:
                log_p = _log_p(
                    self._stepper.logits[b * W : b * W + len(beams[b])], candidates if depth == 0 else None
                )
                beams[b] = grow(beams[b], log_p, W, self._vocabulary, begun if depth == 0 else "")
                # Rows without a beam of their own follow the best one.
                grown = beams[b] + beams[b][:1] * (W - len(beams[b]))
                rows[b], ids[b] = [b * W + beam.parent for beam in grown], [beam.ids[-1] for beam in grown]
            _go_on(self._stepper, rows.ravel())
            self._stepper.step(ids.ravel())
        chosen = [self._choose(b, beams[b]) for b in stories]
        _go_on(self._stepper, np.repeat([b * W + number for b, number in enumerate(chosen)], W))
        told = [beams[b][number] for b, number in enumerate(chosen)]
        self._ended = [beam.ended for beam in told]
        self.limits = [beam.limit for beam in told if beam.limit is not None]
        return np.array([beam.ids[-self._options.depth :] for beam in told]).T

    def _choose(self, b: int, beams: Sequence[Beam]) -> int:
        scores = np.array([beam.score for beam in beams], np.float32)
        return options.draw(options.temper(scores, self._options.heat), self._generators[b].random())


def next_words(
    stepper: Stepper, vocabulary: Vocabulary, begun: str = "", candidates: list[int] | None = None
) -> list[tuple[str, float]]:
    """Words that the text may go on with and their probabilities, the best first: all that beams come upon.

    Args:
        stepper: of as many rows as there are beams, the first of which has read the text.
        vocabulary: of the model.
        begun: the characters of the next n-gram that the text has already.
        candidates: the ids of the n-grams that begin so.
    """
    width = len(stepper.logits)
    words: dict[str, float] = {}
    beams = [Beam()]
    for depth in range(_LONGEST_WORD):
        log_p = _log_p(stepper.logits[: len(beams)], candidates if depth == 0 else None)
        grown = grow(beams, log_p, width, vocabulary, begun if depth == 0 else "")
        beams = []
        for beam in grown:
            word = _WORD.match(beam.text)
            if word or (beam.ended and beam.text.strip()):
                found = word[0] if word else beam.text
                words[found] = words.get(found, 0.0) + math.exp(beam.score)
            elif not beam.ended:
                beams.append(beam)
        if not beams:
            break
        rows = beams + beams[:1] * (width - len(beams))
        _go_on(stepper, np.array([beam.parent for beam in rows]))
        stepper.step([beam.ids[-1] for beam in rows])
    return sorted(words.items(), key=lambda pair: -pair[1])


def _log_p(logits: NDArray[np.float32], candidates: list[int] | None) -> NDArray[np.float64]:
    """The logarithms of the probabilities of what may be told, [..., V]; of the candidates among each other."""
    log_p = options.log_probabilities(logits)
    log_p[:, UNKNOWN] = -np.inf
    if candidates is not None:
        rest = np.setdiff1d(np.arange(log_p.shape[1]), candidates)
        log_p[:, rest] = -np.inf
        log_p -= np.logaddexp.reduce(log_p, axis=-1, keepdims=True)
    return log_p


def _go_on(stepper: Stepper, rows: NDArray[np.int64]) -> None:
    """Let each row be where another was."""
    stepper.h[:], stepper.c[:] = stepper.h[:, rows], stepper.c[:, rows]
    stepper.logits[:] = stepper.logits[rows]

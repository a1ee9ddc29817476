"""Sample tokens one after another for a batch of documents, as `SamplingOptions` specifies.

`grimmgen.sampling.logits.filter_logits` defines the order of the options. The compiled stepper implements the same
order for temperature and top-k alone (`CompiledStepper.sample`) and is used where the options need no more.
Knows ids and their text; prompts and stop conditions belong to `grimmgen.sampling.generator`.

    N  tokens    B  documents of the batch    V  vocabulary size
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from grimmgen.network.backends.cpu.stepper import CompiledStepper
from grimmgen.sampling.logits import Logits, allow_only, draw, filter_logits, forbid
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import CopyLimit
    from grimmgen.network.backends.numpy import Ids, Stepper
    from grimmgen.sampling.combined import CombinedStepper

# The repetition penalty applies to this many of the latest tokens: a sentence or two of bigrams.
_PENALTY_WINDOW = 64
# With a copy limit the compiled stepper samples at most this many tokens before they are checked.
_MAX_LOOKAHEAD = 256


class FirstToken(NamedTuple):
    """What the first token of a document has to be.

    Attributes:
        prefix: the characters of it that the prompt has already.
        candidates: the ids that it may have; None for all.
    """

    prefix: str = ""
    candidates: list[int] | None = None


class Step(Protocol):
    """What the text of one document so far does to the logits [V] of its next token."""

    def apply(self, logits: Logits) -> Logits:
        """Return new logits, or the same array unchanged."""

    def append(self, piece: str) -> None:
        """Append the text of a token."""


class Sampler:
    """Samples tokens.

    Args:
        stepper: has read the context of every document; B rows.
        vocabulary: the vocabulary of the model.
        options: the sampling options.
        random_seeds: one per document, [B].
        generators: one per document, [B], seeded with `random_seeds`; may have been used for the initial state.
        contexts: the ids that each document has read, [B].
        copy_limits: one per document, [B], or an empty list for no limit.
        steps: those of each document, [B], which are applied before the options; or an empty list for none.
    """

    def __init__(
        self,
        stepper: Stepper | CombinedStepper,
        vocabulary: Vocabulary,
        options: SamplingOptions,
        random_seeds: Sequence[int],
        generators: Sequence[np.random.Generator],
        contexts: Sequence[Sequence[int]],
        copy_limits: list[CopyLimit],
        steps: Sequence[Sequence[Step]] = (),
    ) -> None:
        self._stepper, self._vocabulary, self._options = stepper, vocabulary, options
        self._generators, self.copy_limits, self._steps = generators, copy_limits, steps
        # Separate generators for rejected draws, so that each token uses exactly one number of the first
        # generator, however many draws were rejected.
        self._retry_generators = [np.random.default_rng([seed, 1]) for seed in random_seeds]
        self._recent = [deque(context[-_PENALTY_WINDOW:], _PENALTY_WINDOW) for context in contexts]
        self._ended = np.zeros(len(generators), np.bool_)
        self._unused_uniforms = np.zeros((0, len(generators)))
        self._lookahead = _MAX_LOOKAHEAD

    def sample(self, count: int, firsts: Sequence[FirstToken] | None = None) -> Ids:
        """Sample at least one and at most `count` tokens per document.

        Args:
            count: tokens per document.
            firsts: what the first token of each document has to be, [B]; with these only one token is sampled.

        Returns:
            The ids, [N, B]; `<end>` for documents that have ended.
        """
        if firsts is not None:
            count = 1
        elif isinstance(self._stepper, CompiledStepper) and not self._steps and _needs_only_top_k(self._options):
            if len(ids := self._sample_compiled(self._stepper, min(count, self._lookahead))):
                return ids
            # The very next token would copy too much.
            count = 1
        uniforms = self._uniforms(count)
        ids = np.full(uniforms.shape, END)
        for row, sampled in zip(uniforms, ids, strict=True):
            for b in np.flatnonzero(~self._ended).tolist():
                sampled[b] = self._sample_one(b, row[b], FirstToken() if firsts is None else firsts[b])
                self._recent[b].append(int(sampled[b]))
            self._stepper.step(sampled)
            self._ended = sampled == END
            if self._ended.all():
                break
        return ids

    def _sample_one(self, b: int, uniform: float, first: FirstToken) -> int:
        """Sample the next id of document b."""
        logits, steps = self._stepper.logits[b], self._steps[b] if self._steps else ()
        if first.candidates is not None:
            logits = allow_only(logits, first.candidates)
        free = logits
        for step in steps:
            logits = step.apply(logits)
        token = self._draw(b, logits, uniform, first)
        if token is None and steps:
            # The copy limit has precedence.
            token = self._draw(b, free, self._retry_generators[b].random(), first)
        if token is None:
            token = self._least_copied(b, first)
        for step in steps:
            step.append(self._text(token))
        return token

    def _draw(self, b: int, logits: Logits, uniform: float, first: FirstToken) -> int | None:
        """Draw an id for document b, again and again until the copy limit allows it; None if it allows none."""
        forbidden = [UNKNOWN]
        while True:
            token = draw(
                filter_logits(logits, self._options, forbidden=forbidden, recent=self._recent[b]), uniform
            )
            if not self.copy_limits:
                return token
            piece = self._text(token)[len(first.prefix) :]
            if self.copy_limits[b].allows(piece):
                self.copy_limits[b].append(piece)
                return token
            forbidden.append(token)
            if np.isneginf(forbid(logits, forbidden)).all():
                return None
            uniform = self._retry_generators[b].random()

    def _least_copied(self, b: int, first: FirstToken) -> int:
        """The id that extends a copy the least, for when every id exceeds the copy limit."""
        limit, (prefix, candidates) = self.copy_limits[b], first
        possible = range(END + 1, len(self._vocabulary)) if candidates is None else candidates
        copied = {token: limit.copied(self._text(token)[len(prefix) :]) for token in possible}
        token = min(copied, key=lambda token: copied[token])
        limit.append(self._text(token)[len(prefix) :], copied[token])
        return token

    def _sample_compiled(self, stepper: CompiledStepper, count: int) -> Ids:
        """Sample up to `count` tokens, [N, B], none of which exceeds the copy limit; N may be 0."""
        uniforms = self._uniforms(count)
        if not self.copy_limits:
            return self._run_compiled(stepper, uniforms)
        snapshot, ended = stepper.snapshot(), self._ended
        ids = self._run_compiled(stepper, uniforms)
        pieces = [self._vocabulary.decode(row) for row in ids.T.tolist()]
        accepted = count
        for limit, piece, row in zip(self.copy_limits, pieces, ids.T.tolist(), strict=True):
            if (allowed := limit.allowed_length(piece)) < len(piece):
                accepted = min(accepted, self._whole_tokens(row, allowed))
        if accepted == count:
            self._lookahead = min(2 * self._lookahead, _MAX_LOOKAHEAD)
        else:
            # Return to the last token before a document exceeds its limit; the next one is sampled one by one.
            self._lookahead = max(1, self._lookahead // 2)
            stepper.restore(snapshot)
            self._ended = ended
            self._unused_uniforms = np.concatenate([uniforms[accepted:], self._unused_uniforms])
            ids = self._run_compiled(stepper, uniforms[:accepted])
            pieces = [self._vocabulary.decode(row) for row in ids.T.tolist()]
        for limit, piece in zip(self.copy_limits, pieces, strict=True):
            limit.append(piece)
        return ids

    def _run_compiled(self, stepper: CompiledStepper, uniforms: NDArray[np.float64]) -> Ids:
        options = self._options
        ids = stepper.sample(
            uniforms,
            top_k=options.effective_top_k,
            temperature=options.effective_temperature,
            forbidden=[UNKNOWN],
            end=END,
        )
        # A step between two calls clears the stepper's own record of the documents that have ended.
        ids[:, self._ended] = END
        if len(ids):
            self._ended = ids[-1] == END
        return ids

    def _whole_tokens(self, ids: list[int], characters: int) -> int:
        """Count the leading tokens that fit completely into so many characters."""
        ends = np.cumsum([len(self._text(token)) for token in ids])
        return int(np.searchsorted(ends, characters, side="right"))

    def _text(self, token: int) -> str:
        return self._vocabulary.decode([token])

    def _uniforms(self, count: int) -> NDArray[np.float64]:
        """Random numbers in [0, 1), [count, B]; those of tokens that were taken back are used first."""
        missing = max(0, count - len(self._unused_uniforms))
        fresh = [generator.random(missing) for generator in self._generators]
        uniforms = np.concatenate([self._unused_uniforms, np.stack(fresh, axis=1)])
        self._unused_uniforms = uniforms[count:]
        return uniforms[:count]


def _needs_only_top_k(options: SamplingOptions) -> bool:
    """Whether the options need no more than temperature and top-k, which the compiled stepper implements."""
    return options.top_p == 1.0 and options.min_p == 0.0 and options.repetition_penalty == 1.0

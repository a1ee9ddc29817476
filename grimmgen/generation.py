"""Telling: a trained model, a prompt, and n-grams drawn one after the other (tutorial, "Generating new text").

Needs no PyTorch, so that a story begins at once. Knows models and text, and nothing of terminals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from grimmgen import decoding, kernels
from grimmgen.checkpoint import Checkpoint
from grimmgen.errors import UsageError
from grimmgen.vocabulary import END, UNKNOWN

if TYPE_CHECKING:
    from grimmgen.kernels.stepping import Stepper

InitialState = Literal["random", "zeros"]

# The tutorial's standard deviation of the state that a story begins with.
_STATE_DEVIATION = 0.05
_MOST_STORIES = 1024
# N-grams that are told at once, and the seconds that a piece may take before it is no longer made longer.
_MOST_AT_ONCE = 256
_WAIT = 0.02

# What each of several stories goes on with.
Pieces = list[str]


@dataclass(frozen=True)
class Decoding:
    """How the next n-gram is chosen.

    Attributes:
        length: characters to tell after the prompt, at most; the story may end before.
        top_k: draw among this many best n-grams, in proportion (tutorial: 3); 0 is all.
        temperature: above 1 bolder, below 1 safer, 0 always the best.
        random_seed: makes the story the same again.
        state: what the network begins with: normal with σ 0.05 as in the tutorial, or zeros.

    Raises:
        UsageError: a value is out of range.
    """

    length: int = 500
    top_k: int = 3
    temperature: float = 1.0
    random_seed: int = 0
    state: InitialState = "random"

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 10**9:
            raise UsageError(f"--length {self.length} is out of range", "give 1 to 1000000000 characters")
        if self.top_k < 0:
            raise UsageError(f"--top-k {self.top_k} is out of range", "give 1 or more, or 0 for all")
        if not (0.0 <= self.temperature <= 1e6):
            raise UsageError(f"--temperature {self.temperature:g} is out of range", "give 0 to 1000000")
        if not 0 <= self.random_seed < 2**63:
            raise UsageError(f"--random-seed {self.random_seed} is out of range", "give 0 to 2^63 - 1")


class Storyteller:
    """A trained model that tells.

    Args:
        name: of the run or file that it comes from.
        checkpoint: its weights and its vocabulary.
    """

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.vocabulary = checkpoint.vocabulary

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        top_k: int = 3,
        temperature: float = 1.0,
        random_seed: int = 0,
        state: InitialState = "random",
    ) -> str:
        """The prompt, folded as the corpus was, and what the model tells after it; see `Decoding`."""
        return "".join(self.tell(prompt, Decoding(length, top_k, temperature, random_seed, state)))

    def tell(self, prompt: str, decoding_: Decoding) -> Iterator[str]:
        """The story in pieces as it is made: first the prompt, folded as the corpus was.

        The prompt is read as the beginning of a story. Where it ends within an n-gram, its last characters
        are not lost: the next n-gram is drawn among those that begin with them. N-grams that the model does
        not know are read as `<unk>`, which itself is never told. `<end>` ends the story.

        Raises:
            UsageError: top-k is more than there are n-grams.
        """
        return (piece for (piece,) in self._tell(prompt, decoding_, 1))

    def tell_several(self, prompt: str, decoding_: Decoding, stories: int) -> list[str]:
        """Several stories, each with the prompt, told side by side as one batch.

        Story number i, from 0, is what `tell` tells with the random seed `random_seed` + i.

        Raises:
            UsageError: top-k is more than there are n-grams, or there is no story to tell.
        """
        if not 1 <= stories <= _MOST_STORIES:
            raise UsageError(f"--stories {stories} is out of range", f"give 1 to {_MOST_STORIES}")
        if decoding_.random_seed + stories > 2**63:
            raise UsageError(
                f"--random-seed {decoding_.random_seed} leaves none for {stories} stories", "give a smaller one"
            )
        return ["".join(pieces) for pieces in zip(*self._tell(prompt, decoding_, stories), strict=True)]

    def _tell(self, prompt: str, options: Decoding, stories: int) -> Iterator[Pieces]:
        if options.top_k > len(self.vocabulary):
            raise UsageError(
                f"--top-k {options.top_k} is more than the {len(self.vocabulary)} n-grams of the vocabulary",
                "give less, or 0 for all",
            )
        return self._pieces(self.vocabulary.normalise(prompt), options, stories)

    def _pieces(self, prompt: str, options: Decoding, stories: int) -> Iterator[Pieces]:
        vocabulary = self.vocabulary
        generators = [np.random.default_rng(options.random_seed + number) for number in range(stories)]
        stepper = self._stepper(generators, options.state)
        if prompt:
            yield [prompt] * stories
        whole = len(prompt) - len(prompt) % vocabulary.ngram
        begun = prompt[whole:]
        ids = [END, *vocabulary.encode(prompt[:whole]).tolist()]
        if begun and not (candidates := self._beginning_with(begun)):
            # No n-gram that the model may tell begins so: it is read as one it does not know.
            ids.append(UNKNOWN)
            begun = ""
        logits = stepper.read(np.broadcast_to(np.array(ids)[:, None], (len(ids), stories)))
        left = [options.length] * stories
        if begun:
            # A story ends only where it could have ended: not within an n-gram that the prompt began.
            drawn = [
                decoding.draw(
                    decoding.top_k(
                        decoding.temper(decoding.allow_only(row, candidates), options.temperature), options.top_k
                    ),
                    generator.random(),
                )
                for row, generator in zip(logits, generators, strict=True)
            ]
            pieces = [vocabulary.token(token)[len(begun) :][: options.length] for token in drawn]
            left = [options.length - len(piece) for piece in pieces]
            yield pieces
            stepper.step(drawn)
        at_once = 1
        while longest := max(left):
            began = time.perf_counter()
            count = min(at_once, -(-longest // vocabulary.ngram))
            told = stepper.tell(
                np.stack([generator.random(count) for generator in generators], axis=1),
                top_k=options.top_k,
                temperature=options.temperature,
                never=[UNKNOWN],
                end=END,
            )
            pieces = [vocabulary.decode(row)[:rest] for row, rest in zip(told.T.tolist(), left, strict=True)]
            left = [
                0 if last == END else rest - len(piece)
                for rest, piece, last in zip(left, pieces, told[-1].tolist(), strict=True)
            ]
            # The first piece at once, then more at a time, as long as it does not become a wait.
            if time.perf_counter() - began < _WAIT:
                at_once = min(2 * at_once, _MOST_AT_ONCE)
            if any(pieces):
                yield pieces

    def _stepper(self, generators: Sequence[np.random.Generator], state: InitialState) -> Stepper:
        configuration = self.checkpoint.configuration
        shape = (2, configuration.layers, 1, configuration.hidden)
        if state == "random":
            rows = [generator.normal(0.0, _STATE_DEVIATION, shape) for generator in generators]
            h, c = np.concatenate(rows, axis=2).astype(np.float32)
        else:
            h, c = np.zeros((2, configuration.layers, len(generators), configuration.hidden), np.float32)
        return kernels.stepper(configuration, self.checkpoint.weights, h, c)

    def _beginning_with(self, characters: str) -> list[int]:
        return [
            token
            for token in range(END + 1, len(self.vocabulary))
            if self.vocabulary.token(token).startswith(characters)
            and len(self.vocabulary.token(token)) > len(characters)
        ]


def fresh_random_seed() -> int:
    """A random seed for who gives none: short enough to be typed again."""
    return int(np.random.default_rng().integers(0, 10**6))

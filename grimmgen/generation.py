"""Telling: a trained model, a prompt, and n-grams drawn one after the other (tutorial, "Generating new text").

Runs on NumPy alone, so that a story begins at once. Knows models and text, and nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from grimmgen import decoding
from grimmgen.checkpoint import Checkpoint
from grimmgen.errors import UsageError
from grimmgen.kernels.stepping import Stepper
from grimmgen.vocabulary import END, UNKNOWN

InitialState = Literal["random", "zeros"]

# The tutorial's standard deviation of the state that a story begins with.
_STATE_DEVIATION = 0.05


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
        vocabulary = self.vocabulary
        if decoding_.top_k > len(vocabulary):
            raise UsageError(
                f"--top-k {decoding_.top_k} is more than the {len(vocabulary)} n-grams of the vocabulary",
                "give less, or 0 for all",
            )
        return self._tell(vocabulary.normalise(prompt), decoding_)

    def _tell(self, prompt: str, options: Decoding) -> Iterator[str]:
        vocabulary = self.vocabulary
        random = np.random.default_rng(options.random_seed)
        stepper = self._stepper(random, options.state)
        whole = len(prompt) - len(prompt) % vocabulary.ngram
        logits = stepper.step([END])[0]
        if prompt:
            yield prompt
        for token in vocabulary.encode(prompt[:whole]).tolist() if whole else []:
            logits = stepper.step([token])[0]

        begun = prompt[whole:]
        if begun and not (candidates := self._beginning_with(begun)):
            # No n-gram that the model may tell begins so: it is read as one it does not know.
            logits = stepper.step([UNKNOWN])[0]
            begun = ""
        told = 0
        while told < options.length:
            # A story ends only where it could have ended: not within an n-gram that the prompt began.
            left = decoding.allow_only(logits, candidates) if begun else decoding.forbid(logits, [UNKNOWN])
            left = decoding.temper(left, options.temperature)
            if options.top_k:
                left = decoding.top_k(left, options.top_k)
            token = decoding.draw(left, random)
            if token == END:
                return
            piece = vocabulary.token(token)[len(begun) :][: options.length - told]
            told += len(piece)
            begun = ""
            yield piece
            logits = stepper.step([token])[0]

    def _stepper(self, random: np.random.Generator, state: InitialState) -> Stepper:
        configuration = self.checkpoint.configuration
        shape = (2, configuration.layers, 1, configuration.hidden)
        if state == "random":
            h, c = random.normal(0.0, _STATE_DEVIATION, shape).astype(np.float32)
        else:
            h, c = np.zeros(shape, np.float32)
        return Stepper(configuration, self.checkpoint.weights, h, c)

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

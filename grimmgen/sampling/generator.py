"""Telling: a trained model, a prompt, and n-grams drawn one after the other (tutorial, "Generating new text").

Needs no PyTorch, so that a story begins at once. Knows models and text, and nothing of terminals.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from grimmgen.errors import UsageError
from grimmgen.network import backends
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.sampling import options
from grimmgen.sampling.options import LONGEST, SamplingOptions
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import CopyIndex, CopyLimit
    from grimmgen.network.backends.numpy import Stepper
    from grimmgen.sampling.beams import BeamSearch
    from grimmgen.sampling.sampler import Sampler

# The tutorial's standard deviation of the state that a story begins with.
_STATE_DEVIATION = 0.05
_MOST_STORIES = 1024
# N-grams that are told at once, and the seconds that a piece may take before it is no longer made longer.
_MOST_AT_ONCE = 256
_WAIT = 0.02
# A sentence ends with one of these, what closes around it, and a space.
_CLOSING = "'\")\\]\u00bb\u2019\u201d\u300d\u300f\uff09"
_SENTENCE_END = re.compile(
    # In Chinese and Japanese without the space.
    f"[.!?\u2026][{_CLOSING}]*(?=\\s)|[\u3002\uff01\uff1f][{_CLOSING}]*(?=[^{_CLOSING}])"
)
# A paragraph ends before an empty line.
_PARAGRAPH_END = re.compile(r"(?<=\S)(?=\n[ \t]*\n)")
# What closes around a sentence's end, or the space in an empty line, is no longer.
_STRETCH = 16

# What each of several stories goes on with.
Pieces = list[str]


@dataclass
class Told:
    """One story, as far as it has been told.

    Attributes:
        prompt: what it began with, folded as the corpus was.
        decoding: how it was told, with its own random seed.
        pieces: what has been told after the prompt; empty if nobody kept it.
        ids: the n-grams of that, `<end>` among them.
        ending: why it is over: the model's `<end>`, the length, or what it was told until; None if it is not.
        copied: the longest copy that had to be taken for want of another way on; 0 if there is none.
    """

    prompt: str
    decoding: SamplingOptions
    pieces: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    ending: Literal["end", "length", "until"] | None = None
    copied: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join([self.prompt, *self.pieces])


class Telling(Iterator[Pieces]):
    """Stories on their way: iterate over what each goes on with, first the prompt.

    Attributes:
        stories: what is known of each by now.
    """

    def __init__(self, stories: list[Told], pieces: Iterator[Pieces]) -> None:
        self.stories = stories
        self._pieces = pieces

    def __next__(self) -> Pieces:
        return next(self._pieces)


class TextGenerator:
    """A trained model that tells.

    Args:
        name: of the run or file that it comes from.
        checkpoint: its weights and its vocabulary.
        index: makes or finds the index of its training stories, for `max_copy`; None if nobody knows them.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, index: Callable[[], CopyIndex] | None = None) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.vocabulary = checkpoint.vocabulary
        self._index = None if index is None else cache(index)

    @classmethod
    def load(cls, run_or_path: str | None) -> TextGenerator:
        """That of a run, of the latest one (None), or of a checkpoint file.

        Raises:
            GrimmgenError: there is none, or it is not what it should be.
        """
        name, checkpoint = registry.find_checkpoint(run_or_path)
        return cls(name, checkpoint, lambda: training_index(run_or_path))

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The prompt, folded as the corpus was, and what the model tells after it.

        Args:
            prompt: any text.
            options: of `SamplingOptions`, as in `generate("the king", length=300, top_p=0.9)`.
        """
        return "".join(self.tell(prompt, SamplingOptions(**options)))

    def tell(self, prompt: str, options: SamplingOptions) -> Iterator[str]:
        """The story in pieces as it is made: first the prompt, folded as the corpus was.

        Raises:
            UsageError: see `begin`.
        """
        return (piece for (piece,) in self.begin(prompt, options))

    def tell_several(self, prompt: str, options: SamplingOptions, stories: int) -> list[Told]:
        """Several stories, each with the prompt, told side by side as one batch.

        Story number i, from 0, is what `tell` tells with the random seed `random_seed` + i.

        Raises:
            UsageError: see `begin`.
        """
        telling = self.begin(prompt, options, stories, keep=True)
        for _ in telling:
            pass
        return telling.stories

    def begin(self, prompt: str, options: SamplingOptions, stories: int = 1, keep: bool = False) -> Telling:
        """Begin stories.

        The prompt is read as the beginning of a story; without one a story begins as stories begin. Where it ends
        within an n-gram, its last characters are not lost: the next n-gram is drawn among those that begin with
        them. N-grams that the model does not know are read as `<unk>`, which itself is never told. `<end>` ends
        a story.

        Args:
            prompt: any text.
            options: how to tell.
            stories: so many side by side, each with a random seed one higher than that of the one before.
            keep: keep what is told in `Telling.stories`, too.

        Raises:
            UsageError: top-k is more than there are n-grams, there is no story to tell, the model knows no
                paragraphs, or nobody knows the stories that must not be copied.
        """
        if options.best > len(self.vocabulary) and options.top_k is not None:
            raise UsageError(
                f"--top-k {options.top_k} is more than the {len(self.vocabulary)} n-grams of the vocabulary",
                "give less, or 0 for all",
            )
        if not 1 <= stories <= _MOST_STORIES:
            raise UsageError(f"--stories {stories} is out of range", f"give 1 to {_MOST_STORIES}")
        if options.random_seed + stories > 2**63:
            raise UsageError(
                f"--random-seed {options.random_seed} leaves none for {stories} stories", "give a smaller one"
            )
        if options.until == "paragraph" and "\n" not in self.vocabulary.alphabet:
            raise UsageError(
                f"{self.name} has learnt no line ends: it knows no paragraphs",
                "wait for --until sentence, or train with --newlines keep",
            )
        if options.max_copy is not None and self._index is None:
            raise UsageError("--max-copy has no training stories to look at", "load the model of a run")
        prompt = self.vocabulary.normalise(prompt)
        told = [
            Told(prompt, replace(options, random_seed=options.random_seed + number)) for number in range(stories)
        ]
        return Telling(told, self._pieces(prompt, options, told, keep))

    def log_probability(self, told: Told) -> float:
        """The logarithm (natural) of the model's own probability of what was told after the prompt.

        It is that of the text: where the prompt had begun an n-gram, or the length has cut one, all n-grams that
        have the same characters there are counted. `<end>` counts where it ended the story.
        """
        context, begun, _ = self._read(told.prompt)
        stepper = self._stepper(_generators([told]), told.decoding.state)
        logits = stepper.read(np.array(context)[:, None])[0]
        left, total = sum(map(len, told.pieces)), 0.0
        for token in told.ids:
            log_p = options.log_probabilities(logits)
            spelt = self.vocabulary.decode([token])
            seen = spelt[: len(begun) + left]
            meant = [token] if seen == spelt else self._beginning_with(seen)
            total += float(np.logaddexp.reduce(log_p[meant]))
            if begun:
                total -= float(np.logaddexp.reduce(log_p[self._beginning_with(begun)]))
            left -= len(seen) - len(begun)
            begun = ""
            logits = stepper.step([token])[0]
        return total

    def next_words(
        self, text: str, count: int = 8, random_seed: int = 0, state: options.InitialState = "random"
    ) -> list[tuple[str, float]]:
        """The most probable next words of a text, with their probabilities, the best first.

        A word, or the marks between two, brings the space before it, if there is one; where the text ends within
        a word it is the rest of that.

        Args:
            text: any.
            count: so many, at most.
            random_seed: of the initial state.
            state: what the network begins with.
        """
        from grimmgen.sampling.beams import next_words

        context, begun, candidates = self._read(self.vocabulary.normalise(text))
        stepper = self._stepper([np.random.default_rng(random_seed)], state)
        stepper.read(np.array(context)[:, None])
        return next_words(self._widened(stepper, 4 * count), self.vocabulary, begun, candidates)[:count]

    def unknown_in(self, prompt: str) -> tuple[list[str], list[str]]:
        """What the model reads as `<unk>` in a prompt: characters never seen, and n-grams of others.

        Both in the order of their appearance, each once.
        """
        vocabulary = self.vocabulary
        characters = vocabulary.unseen(prompt)
        prompt = vocabulary.normalise(prompt)
        n, whole = vocabulary.ngram, len(prompt) - len(prompt) % vocabulary.ngram
        hidden = np.flatnonzero(vocabulary.encode(prompt[:whole]) == UNKNOWN).tolist()
        grams = [prompt[n * place : n * (place + 1)] for place in hidden]
        if (begun := prompt[whole:]) and not self._beginning_with(begun):
            grams.append(begun)
        return characters, [gram for gram in dict.fromkeys(grams) if not set(gram) & set(characters)]

    def _pieces(self, prompt: str, options: SamplingOptions, told: list[Told], keep: bool) -> Iterator[Pieces]:
        generators = _generators(told)
        stepper = self._stepper(generators, options.state)
        if prompt:
            yield [prompt] * len(told)
        context, begun, candidates = self._read(prompt)
        stepper.read(np.broadcast_to(np.array(context)[:, None], (len(context), len(told))))
        source = self._source(stepper, options, told, generators, context)
        ways = [_Way(story, self.vocabulary, keep) for story in told]
        at_once = 1
        while longest := max(way.left for way in ways):
            began = time.perf_counter()
            ids = source.tell(min(at_once, -(-longest // self.vocabulary.ngram)), begun, candidates)
            pieces = [way.take(row, begun) for way, row in zip(ways, ids.T.tolist(), strict=True)]
            for story, limit in zip(told, source.limits, strict=False):
                story.copied = limit.longest
            begun, candidates = "", None
            # The first piece at once, then more at a time, as long as it does not become a wait.
            if time.perf_counter() - began < _WAIT:
                at_once = min(2 * at_once, _MOST_AT_ONCE)
            if any(pieces):
                yield pieces

    def _read(self, prompt: str) -> tuple[list[int], str, list[int] | None]:
        """The ids to read before a story goes on, the characters of the next n-gram that the prompt has begun, and
        the n-grams to choose it among; None if all will do.
        """  # noqa: D205
        whole = len(prompt) - len(prompt) % self.vocabulary.ngram
        begun = prompt[whole:]
        if not prompt:
            return [END], "", self._beginnings()
        ids = [END, *self.vocabulary.encode(prompt[:whole]).tolist()]
        if begun and (candidates := self._beginning_with(begun)):
            # A story ends only where it could have ended: not within an n-gram that the prompt began.
            return ids, begun, candidates
        # No n-gram that the model may tell begins so: it is read as one it does not know.
        return ([*ids, UNKNOWN] if begun else ids), "", None

    def _source(
        self,
        stepper: Stepper,
        options: SamplingOptions,
        told: list[Told],
        generators: Sequence[np.random.Generator],
        context: Sequence[int],
    ) -> Sampler | BeamSearch:
        limits: list[CopyLimit] = []
        if options.max_copy is not None:
            from grimmgen.evaluation.novelty import CopyLimit

            assert self._index is not None
            index = self._index()
            limits = [CopyLimit(index, options.max_copy, story.prompt, self.vocabulary.ngram) for story in told]
        if options.beam_width is None:
            from grimmgen.sampling.sampler import Sampler

            seeds = [story.decoding.random_seed for story in told]
            return Sampler(stepper, self.vocabulary, options, seeds, generators, context, limits)
        from grimmgen.sampling.beams import BeamSearch

        wide = self._widened(stepper, options.beam_width)
        return BeamSearch(wide, self.vocabulary, options, generators, limits)

    def _widened(self, stepper: Stepper, width: int) -> Stepper:
        """A stepper with so many rows for each row, where that one is."""
        h, c = (np.repeat(state, width, axis=1) for state in (stepper.h, stepper.c))
        wide = backends.stepper(self.checkpoint.configuration, self.checkpoint.weights, h, c)
        wide.logits[:] = np.repeat(stepper.logits, width, axis=0)
        return wide

    def _stepper(self, generators: Sequence[np.random.Generator], state: options.InitialState) -> Stepper:
        configuration = self.checkpoint.configuration
        shape = (2, configuration.layers, 1, configuration.hidden)
        if state == "random":
            rows = [generator.normal(0.0, _STATE_DEVIATION, shape) for generator in generators]
            h, c = np.concatenate(rows, axis=2).astype(np.float32)
        else:
            h, c = np.zeros((2, configuration.layers, len(generators), configuration.hidden), np.float32)
        return backends.stepper(configuration, self.checkpoint.weights, h, c)

    def _beginnings(self) -> list[int] | None:
        """The n-grams that training stories begin with, if the checkpoint says so; it may be a stranger's.

        A model that has learnt stories from their second character on, too (phases), would begin there as often.
        """
        known = self.checkpoint.provenance.get("beginnings")
        ids = known if isinstance(known, list) else []
        return [i for i in ids if type(i) is int and END < i < len(self.vocabulary)] or None

    def _beginning_with(self, characters: str) -> list[int]:
        return [
            token
            for token in range(END + 1, len(self.vocabulary))
            if self.vocabulary.token(token).startswith(characters)
            and len(self.vocabulary.token(token)) > len(characters)
        ]


def training_index(asked: str | None) -> CopyIndex:
    """The index of what a run, or the latest one (None), has learnt from: made once, then found in the cache.

    Raises:
        UsageError: it is the file of a checkpoint, which does not say what was learnt from.
        GrimmgenError: the training stories cannot be read.
    """
    from grimmgen.evaluation.novelty import index_of

    if asked is not None and ("/" in asked or asked.endswith(".safetensors")):
        raise UsageError(f"{asked} does not bring the stories it has learnt from", "give --run a run's name")
    run = registry.find(asked)
    configuration = run.configuration
    return index_of(run.split().parts["train"], configuration.lower, configuration.newlines)


def fresh_random_seed() -> int:
    """A random seed for who gives none: short enough to be typed again."""
    return int(np.random.default_rng().integers(0, 10**6))


def _generators(told: Sequence[Told]) -> list[np.random.Generator]:
    return [np.random.default_rng(story.decoding.random_seed) for story in told]


class _Way:
    """One story on its way: takes n-grams until it is over."""

    def __init__(self, story: Told, vocabulary: Vocabulary, keep: bool) -> None:
        self.left = LONGEST if story.decoding.length is None else story.decoding.length
        self._story, self._vocabulary, self._keep = story, vocabulary, keep
        self._stop = _Stop(story.decoding.until, vocabulary)

    def take(self, ids: list[int], begun: str) -> str:
        """What these n-grams, of the first of which some characters have been told, add to the text."""
        story = self._story
        if story.ending:
            return ""
        piece = self._vocabulary.decode(ids)[len(begun) :][: self.left]
        self.left -= len(piece)
        if (end := self._stop.within(piece)) is not None:
            piece, story.ending = piece[:end], "until"
        elif self.left == 0:
            story.ending = "length"
        elif ids[-1] == END:
            story.ending = "end"
        if story.ending:
            self.left = 0
        if self._keep:
            story.pieces.append(piece)
            room = len(begun) + len(piece)
            for token in ids:
                if room <= 0 and (token != END or story.ending != "end"):
                    break
                story.ids.append(token)
                room -= len(self._vocabulary.decode([token]))
                if token == END:
                    break
        return piece


class _Stop:
    """Finds the place that a story is to be told until."""

    def __init__(self, until: str | None, vocabulary: Vocabulary) -> None:
        self._before = ""
        self._kept = _STRETCH
        match until:
            case None:
                self._sought = None
            case options.SENTENCE:
                self._sought = _SENTENCE_END
            case "paragraph":
                self._sought = _PARAGRAPH_END
            case _:
                folded = vocabulary.normalise(until)
                self._sought = re.compile(re.escape(folded))
                self._kept = len(folded) - 1

    def within(self, piece: str) -> int | None:
        """How much of what is told next belongs to the story; None if it goes on."""
        if self._sought is None:
            return None
        text = self._before + piece
        if found := self._sought.search(text):
            return max(0, found.end() - len(self._before))
        self._before = text[max(0, len(text) - self._kept) :]
        return None

"""Generate text with a trained model (tutorial, "Generating new text").

`TextGenerator._run` is the whole of generation in five phases: initial state, prompt, sample, stop, pieces.
Needs no PyTorch, so that generation starts at once. Knows models and text; printing belongs to `grimmgen.cli`.

    B  documents generated side by side    S  states of the cell    L  layers    H  hidden units
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from grimmgen.errors import IntegrityError, UsageError
from grimmgen.network import backends
from grimmgen.network.cells import cells
from grimmgen.runs import registry
from grimmgen.runs.registry import TrainedModel
from grimmgen.sampling.ending import PlannedEnding, sample_length
from grimmgen.sampling.logits import draw, keep_probable, log_probabilities, temper
from grimmgen.sampling.options import (
    LINE,
    LONGEST,
    PAGE,
    PAGE_LENGTHS,
    PARAGRAPH,
    SENTENCE,
    STORY_END,
    InitialState,
    SamplingOptions,
    with_defaults,
)
from grimmgen.sampling.sampler import FirstToken, Sampler, Step
from grimmgen.sampling.spelling import Speller, Spelling
from grimmgen.text import encoding
from grimmgen.text.graphemes import cluster_boundary
from grimmgen.text.lexicon import LONGEST_WORD, lexicon
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import CopyIndex
    from grimmgen.network.backends.numpy import Stepper
    from grimmgen.sampling.beams import BeamSearch
    from grimmgen.sampling.combined import CombinedStepper

# Standard deviation of the random initial state, as in the tutorial.
_STATE_DEVIATION = 0.05
_LONGEST_TITLE = 100  # characters
_MAX_COUNT = 1024
# Batches in a row without an acceptable text, after which the model is taken to have no more of them.
_MAX_REJECTED = 10
# The longest plan, as a share of the maximum length, so that the ending is found before that.
_PLANNED = 0.8
# Tokens per piece: doubled up to this number while a piece takes less than this time.
_MAX_CHUNK = 256
_MAX_CHUNK_SECONDS = 0.02
# A sentence ends with a mark of any script, the quotes and brackets that close after it, and a space; after the full
# stops of Chinese and Japanese there is none.
_CLOSING = r"[\p{Pe}\p{Pf}'\"]"
_SENTENCE_END = (
    rf"[\p{{Sentence_Terminal}}\u2026]{_CLOSING}*(?=\s)|[\u3002\uff01\uff1f]{_CLOSING}*(?=[^\p{{Pe}}\p{{Pf}}'\"])"
)
# A paragraph ends before an empty line; a line ends where the generated part of it has text.
_LINE_ENDS = {PARAGRAPH: r"(?<=\S)(?=\n[ \t]*\n)", LINE: r"(?<=\S)(?=[ \t]*\n)"}
# Maximum characters of a match of either pattern: closing marks, or the spaces of an empty line.
_MAX_MATCH = 16

# Characters that are searched for the beginning of a grapheme cluster.
_LONGEST_CLUSTER = 32

# The next piece of each document, [B].
Pieces = list[str]


@dataclass
class Generation:
    """One generated document, complete or as far as it has been generated.

    Attributes:
        prompt: the prompt, normalised as the corpus was.
        options: the sampling options, with the random seed of this document.
        pieces: the generated text after the prompt; empty unless it is kept.
        ids: the tokens of that text, including a final `<end>`; empty unless they are kept.
        context: the ids that were read before the first token was sampled.
        prefix: the characters of the first token that the prompt has already.
        ending: why generation stopped: the model's `<end>`, the length, or `until`; None if it has not.
        copied: the longest copy, in characters, that was unavoidable in spite of `max_copy`; 0 if there is none.
    """

    prompt: str
    options: SamplingOptions
    pieces: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    prefix: str = ""
    ending: Literal["end", "length", "until"] | None = None
    copied: int = 0

    @property
    def text(self) -> str:
        """The prompt and the generated text."""
        return "".join([self.prompt, *self.pieces])


class GenerationStream(Iterator[Pieces]):
    """An iterator over the pieces of documents as they are generated; the first piece is the prompt.

    Attributes:
        generations: the documents as far as they have been generated, [B].
    """

    def __init__(self, generations: list[Generation], pieces: Iterator[Pieces]) -> None:
        self.generations = generations
        self._pieces = pieces

    def __next__(self) -> Pieces:
        return next(self._pieces)


class TextGenerator:
    """Generates text with a trained model.

    Args:
        model: the trained model.
        copy_index: the index of its training set, for `max_copy`; None builds that of the model's run when it is
            needed.
        others: more models of the same vocabulary, whose probabilities are averaged with those of the first.

    Raises:
        UsageError: the models have different vocabularies.
    """

    def __init__(
        self, model: TrainedModel, copy_index: CopyIndex | None = None, others: Sequence[TrainedModel] = ()
    ) -> None:
        for other in others:
            if other.checkpoint.vocabulary != model.checkpoint.vocabulary:
                raise UsageError(
                    f"{model.name} and {other.name} have different vocabularies",
                    "give runs that were trained on the same stories with the same --tokens",
                )
        self.model, self.others = model, tuple(others)
        self.name = model.name
        self.checkpoint = model.checkpoint
        self.vocabulary = model.checkpoint.vocabulary
        if copy_index is not None:
            self._copy_index = copy_index

    @property
    def names(self) -> list[str]:
        """The names of all models, that of the first one first."""
        return [self.name, *(other.name for other in self.others)]

    @classmethod
    def load(
        cls, run_or_path: str | None, moved_to: Sequence[str] | None = None, others: Sequence[str] = ()
    ) -> TextGenerator:
        """Load the model of a run, of the latest run (None), or of a checkpoint file; see `registry.load_model`.

        Args:
            run_or_path: the name or the path.
            moved_to: where the corpus of the run is now, for `max_copy`; None if it is where it was.
            others: names or paths of more models, whose probabilities are averaged with those of the first.

        Raises:
            GrimmgenError: there is no such run or file, or it cannot be read.
            IntegrityError: the file is damaged.
            UsageError: the models have different vocabularies.
        """
        return cls(registry.load_model(run_or_path, moved_to), others=[*map(registry.load_model, others)])

    def generate(self, prompt: str = "", **options: Any) -> str:
        """Generate a text; returns the prompt, normalised as the corpus was, and its continuation.

        Args:
            prompt: any text.
            options: those of `SamplingOptions`, as in `generate("the king", length=300, top_p=0.9)`; see `options`.

        Raises:
            UsageError: an option is out of range; see also `start`.
        """
        return "".join(self.stream(prompt, self.options(**options)))

    def stream(self, prompt: str, options: SamplingOptions) -> Iterator[str]:
        """Generate a text piece by piece; the first piece is the prompt, normalised as the corpus was.

        Raises:
            UsageError: see `start`.
        """
        return (piece for (piece,) in self.start(prompt, options))

    def generate_batch(self, prompt: str, options: SamplingOptions, count: int) -> list[Generation]:
        """Generate several texts from the same prompt as one batch.

        Text i, from 0, is the one that `stream` generates with the random seed `random_seed` + i.

        Raises:
            UsageError: see `start`.
        """
        stream = self.start(prompt, options, count, keep=True)
        for _ in stream:
            pass
        return stream.generations

    def titles(self, options: SamplingOptions, count: int) -> list[str]:
        """Generate titles: the first lines of documents, with their line ends.

        Title i, from 0, is that of the random seed `random_seed` + i.

        Raises:
            UsageError: the model's documents have one line; or see `start`.
        """
        if "\n" not in self.vocabulary.alphabet or self.checkpoint.configuration.documents == "line":
            raise UsageError(f"{self.name} was trained without line ends and knows no titles", "leave out --title")
        options = replace(options, until=LINE, length=_LONGEST_TITLE)
        return [generation.text.strip("\n") + "\n" for generation in self.generate_batch("", options, count)]

    def generate_distinct(
        self, prompt: str, options: SamplingOptions, count: int, *, unique: bool = True, novel: bool = False
    ) -> Iterator[Generation]:
        """Generate texts in batches, and yield those that are accepted, at most `count`.

        There are fewer if _MAX_REJECTED batches in a row have none. Each text is the one that `stream` generates with
        its own random seed; seeds of rejected texts are skipped.

        Args:
            prompt: any text.
            options: the sampling options; the random seed is that of the first text.
            count: the number of texts wanted.
            unique: accept no text twice.
            novel: accept no text that is a whole document of the training set.

        Raises:
            UsageError: see `start`; or the training set is needed and the model is a checkpoint file.
            GrimmgenError: a training document cannot be read.
        """
        from grimmgen.evaluation.novelty import document_key, training_document_keys

        excluded = set(training_document_keys(self.model)) if novel else set[bytes]()
        accepted = rejected = 0
        while accepted < count and rejected < _MAX_REJECTED:
            rejected += 1
            for generation in self.generate_batch(prompt, options, count):
                key = document_key(generation.text)
                if key not in excluded and accepted < count:
                    accepted, rejected = accepted + 1, 0
                    if unique:
                        excluded.add(key)
                    yield generation
            options = replace(options, random_seed=options.random_seed + count)

    def start(self, prompt: str, options: SamplingOptions, count: int = 1, keep: bool = False) -> GenerationStream:
        """Start to generate texts; iterating over the result generates them.

        The prompt is read as the beginning of a document; without one the document begins as the training
        documents do. Where the prompt ends within a token, the next token is sampled from those that begin with its
        last characters; where its end can be read in several ways, one is sampled first, in proportion to their
        probabilities. What is unknown is read as `<unk>`, which itself is never sampled. `<end>` ends a document.

        Args:
            prompt: any text.
            options: the sampling options.
            count: the number of documents, with consecutive random seeds.
            keep: whether to collect the text and its tokens in `GenerationStream.generations`.

        Raises:
            UsageError: top-k exceeds the vocabulary, the count is out of range, the model's corpus has no
                paragraphs, or its training documents, which must not be copied, are unknown.
        """
        if options.effective_top_k > len(self.vocabulary) and options.top_k is not None:
            raise UsageError(
                f"--top-k {options.top_k} is more than the {len(self.vocabulary)} tokens of the vocabulary",
                "give less, or 0 for all",
            )
        if not 1 <= count <= _MAX_COUNT:
            raise UsageError(f"--stories {count} is out of range", f"give 1 to {_MAX_COUNT}")
        if options.random_seed + count > 2**63:
            raise UsageError(
                f"--random-seed {options.random_seed} is too large for {count} stories", "give a smaller one"
            )
        if options.until in {PARAGRAPH, LINE} and "\n" not in self.vocabulary.alphabet:
            raise UsageError(
                f"{self.name} was trained without line ends and cannot end a {options.until}",
                "give --until sentence, or train with --newlines keep",
            )
        # What may be missing, before anything is generated.
        if options.max_copy is not None:
            _ = self._copy_index
        if options.lexicon:
            _ = self._speller
        prompt = self.vocabulary.normalise(prompt)
        generations = [
            Generation(prompt, replace(options, random_seed=options.random_seed + number))
            for number in range(count)
        ]
        return GenerationStream(generations, self._run(prompt, options, generations, keep))

    def _run(
        self, prompt: str, options: SamplingOptions, generations: list[Generation], keep: bool
    ) -> Iterator[Pieces]:
        # 1. Initial state: random or zeros.
        generators = _generators(generations)
        stepper = self._initial_stepper(generators, options.state)
        # 2. Prompt: read its tokens; the last one may be incomplete.
        if prompt:
            yield [prompt] * len(generations)
        self._read_prompt(stepper, prompt, generations, generators)
        combined = self._combined(stepper, generations, options.beam_width or 1)
        sampler = self._sampler(combined, options, generations, generators)
        outputs = [_Output(generation, self.vocabulary, keep) for generation in generations]
        firsts = self._first_tokens(generations)
        chunk = 1
        while remaining := max(output.remaining for output in outputs):
            started = time.perf_counter()
            # 3. Sample: up to `chunk` tokens of each document.
            self._check_logits(combined)
            enough = math.ceil(remaining / self.vocabulary.characters_per_token)
            ids = sampler.sample(min(chunk, enough), firsts)
            # 4. Stop: cut each document at its end, its length or its stop condition.
            pieces = [output.append(row) for output, row in zip(outputs, ids.T.tolist(), strict=True)]
            for generation, copy_limit in zip(generations, sampler.copy_limits, strict=False):
                generation.copied = copy_limit.longest
            firsts = None
            # 5. Pieces: the first one at once, then larger ones as long as they arrive without a noticeable delay.
            if time.perf_counter() - started < _MAX_CHUNK_SECONDS:
                chunk = min(2 * chunk, _MAX_CHUNK)
            if any(pieces):
                yield pieces

    def log_probability(self, generation: Generation) -> float:
        """Compute the natural logarithm of the model's probability of the generated text after the prompt.

        Where the prompt ends, or the length cuts, within a token, all tokens with the same characters there are
        counted, so that of n-grams it is the probability of the characters. `<end>` counts where it ended the document.

        Args:
            generation: a document whose text and tokens were kept.
        """
        stepper = self._initial_stepper(_generators([generation]), generation.options.state)
        stepper.read(np.array(generation.context)[:, None])
        combined = self._combined(stepper, [generation])
        prefix, remaining, total = generation.prefix, sum(map(len, generation.pieces)), 0.0
        for token in generation.ids:
            log_p = log_probabilities(combined.logits[0])
            text = self.vocabulary.decode([token])
            visible = text[: len(prefix) + remaining]
            matching = [token] if visible == text else self.vocabulary.starting_with(visible)
            total += float(np.logaddexp.reduce(log_p[matching]))
            if prefix:
                total -= float(np.logaddexp.reduce(log_p[self.vocabulary.starting_with(prefix)]))
            remaining -= len(visible) - len(prefix)
            prefix = ""
            combined.step(np.array([token]))
        return total

    def unknown_in(self, prompt: str) -> tuple[list[str], list[str]]:
        """Find the parts of a prompt that the model reads as `<unk>`.

        Returns:
            The unknown characters, and the unknown n-grams of known characters; both without duplicates and in the
            order of their appearance.
        """
        vocabulary = self.vocabulary
        characters = vocabulary.unseen(prompt)
        prompt = vocabulary.normalise(prompt)
        ids, [end, *_] = vocabulary.read_prompt(prompt)
        ids += end.ids
        texts = vocabulary.cut(prompt, np.array(ids, np.int32))
        ngrams = [text for text, token in zip(texts, ids, strict=True) if token == UNKNOWN]
        return characters, [ngram for ngram in dict.fromkeys(ngrams) if not set(ngram) & set(characters)]

    def options(self, **chosen: Any) -> SamplingOptions:
        """Return these options, with the model's own defaults for the others.

        Raises:
            UsageError: an option is out of range.
        """
        return with_defaults(chosen, self.checkpoint.provenance.get("decoding"))

    @cached_property
    def _copy_index(self) -> CopyIndex:
        from grimmgen.evaluation.novelty import training_index

        return training_index(self.model)

    def _read_prompt(
        self,
        stepper: Stepper,
        prompt: str,
        generations: Sequence[Generation],
        generators: Sequence[np.random.Generator],
    ) -> None:
        """Read a normalised prompt; where its end can be read in several ways, sample one for each document."""
        ids, ends = self.vocabulary.read_prompt(prompt)
        B = len(generations)

        def read(ids: Sequence[int]) -> None:
            stepper.read(np.broadcast_to(np.array(ids)[:, None], (len(ids), B)))
            self._check_logits(stepper)

        read([END, *ids])
        before = stepper.snapshot()
        log_p, read_ends = np.zeros((len(ends), B)), []
        for row, end in zip(log_p, ends, strict=True):
            stepper.restore(before)
            for token in end.ids:
                row += log_probabilities(stepper.logits)[:, token]
                read([token])
            if end.prefix and len(ends) > 1:
                candidates = log_probabilities(stepper.logits)[:, self.vocabulary.starting_with(end.prefix)]
                row += np.logaddexp.reduce(candidates, axis=1)
            read_ends.append(stepper.snapshot())
        for b, (generation, generator) in enumerate(zip(generations, generators, strict=True)):
            chosen = 0
            if len(ends) > 1:
                options = generation.options
                logits = temper(log_p[:, b].astype(np.float32), options.effective_temperature)
                chosen = draw(keep_probable(logits, options), generator.random())
            stepper.state[:, :, b] = read_ends[chosen].state[:, :, b]
            stepper.logits[b] = read_ends[chosen].logits[b]
            generation.context = [END, *ids, *ends[chosen].ids]
            generation.prefix = ends[chosen].prefix

    def _check_logits(self, stepper: Stepper | CombinedStepper) -> None:
        if not stepper.logits.max() < np.inf:  # NaN, too
            raise IntegrityError(f"the logits of {self.name} are not finite", "use another checkpoint")

    def _first_tokens(self, generations: Sequence[Generation]) -> list[FirstToken] | None:
        """What the first token of each document has to be; None if it may be any."""
        if not generations[0].prompt:
            beginnings = self._first_ids()
            return None if beginnings is None else [FirstToken(candidates=beginnings)] * len(generations)
        if not any(generation.prefix for generation in generations):
            return None
        # `<end>` is not among the candidates: a document does not end within a token.
        candidates = {prefix: self.vocabulary.starting_with(prefix) for prefix in {g.prefix for g in generations}}
        return [FirstToken(g.prefix, candidates[g.prefix] if g.prefix else None) for g in generations]

    def _combined(
        self, stepper: Stepper, generations: Sequence[Generation], beams: int = 1
    ) -> Stepper | CombinedStepper:
        """Combine the network of the first model, which has read the contexts, with counts and other models.

        Args:
            stepper: of the first model, B rows.
            generations: the documents, [B].
            beams: rows of the result for each document.
        """
        options = generations[0].options
        models = [self.model, *self.others]
        steppers = [stepper]
        for number, model in enumerate(self.others, 1):
            generators = [np.random.default_rng([g.options.random_seed, 2 + number]) for g in generations]
            steppers.append(self._initial_stepper(generators, options.state, model))
            _read_contexts(steppers[-1], [generation.context for generation in generations])
        if beams > 1:
            steppers = [self._repeat_rows(*both, beams) for both in zip(steppers, models, strict=True)]
        mixtures = [None if options.mix == 0.0 else model.checkpoint.mixture for model in models]
        if len(models) == 1 and mixtures[0] is None:
            return steppers[0]
        from grimmgen.sampling.combined import CombinedStepper

        histories = [generation.context for generation in generations for _ in range(beams)]
        return CombinedStepper([*zip(steppers, mixtures, strict=True)], histories, options.mix)

    def _initial_stepper(
        self,
        generators: Sequence[np.random.Generator],
        state: InitialState,
        model: TrainedModel | None = None,
    ) -> Stepper:
        """A stepper of a model, by default the first, with a random or a zero state, one row per generator."""
        checkpoint = (model or self.model).checkpoint
        configuration = checkpoint.configuration
        S, L, H = len(cells()[configuration.cell].states), configuration.layers, configuration.hidden
        values = np.zeros((S, L, len(generators), H), np.float32)
        if state == "random":
            for b, generator in enumerate(generators):
                # Two states are drawn even for a cell with one, so that random seeds keep giving the same texts.
                values[:, :, b] = generator.normal(0.0, _STATE_DEVIATION, (max(2, S), L, H))[:S]
        return backends.stepper(configuration, checkpoint.weights, values)

    def _sampler(
        self,
        stepper: Stepper | CombinedStepper,
        options: SamplingOptions,
        generations: list[Generation],
        generators: Sequence[np.random.Generator],
    ) -> Sampler | BeamSearch:
        copy_limits = []
        if options.max_copy is not None:
            from grimmgen.evaluation.novelty import CopyLimit

            copy_limits = [
                CopyLimit(self._copy_index, options.max_copy, generation.prompt, self.vocabulary.longest_token)
                for generation in generations
            ]
        if options.beam_width is None:
            seeds = [generation.options.random_seed for generation in generations]
            contexts = [generation.context for generation in generations]
            steps = [self._steps(generation) for generation in generations]
            return Sampler(
                stepper,
                self.vocabulary,
                options,
                seeds,
                generators,
                contexts,
                copy_limits,
                steps if any(steps) else (),
            )
        from grimmgen.sampling.beams import BeamSearch

        return BeamSearch(stepper, self.vocabulary, options, generators, copy_limits)

    def _steps(self, generation: Generation) -> list[Step]:
        """What the text of a document does to its logits, in the documented order."""
        steps = list[Step]()
        options, text = generation.options, generation.prompt.removesuffix(generation.prefix)
        if options.lexicon:
            steps.append(Spelling(self._speller, text))
        if options.until == STORY_END and (lengths := self._document_lengths()):
            longest = _PLANNED * (options.length or LONGEST)
            length = sample_length(lengths, longest, np.random.default_rng([options.random_seed, 2]))
            steps.append(PlannedEnding(length, text, self.vocabulary))
        return steps

    def _repeat_rows(self, stepper: Stepper, model: TrainedModel, times: int) -> Stepper:
        """A stepper in which each row of the given one, of this model, is repeated so many times."""
        state = np.repeat(stepper.state, times, axis=2)
        repeated = backends.stepper(model.checkpoint.configuration, model.checkpoint.weights, state)
        repeated.logits[:] = np.repeat(stepper.logits, times, axis=0)
        return repeated

    @cached_property
    def _speller(self) -> Speller:
        stored = self.checkpoint.provenance.get("lexicon")
        words = [w for w in stored.split() if len(w) <= LONGEST_WORD] if isinstance(stored, str) else []
        if stored is None and self.model.run is not None:
            # The run was trained with an earlier version.
            training = encoding.joined(self.model.split().parts["train"])
            words = lexicon([training], self.checkpoint.configuration.normalisation)
        if not words:
            raise UsageError(f"{self.name} has no lexicon", "leave out --lexicon")
        return Speller(words, self.vocabulary)

    def _document_lengths(self) -> list[int]:
        """Quantiles of the lengths of training documents in characters; none if the checkpoint has not two."""
        value = self.checkpoint.provenance.get("lengths")
        lengths = [n for n in value if type(n) is int and n > 0] if isinstance(value, list) else []
        return sorted(lengths) if len(lengths) > 1 else []

    def _first_ids(self) -> list[int] | None:
        """The tokens that training documents begin with, if the checkpoint has them.

        A model trained with `phases` has also read documents from their second character on, and would begin there
        as often. The checkpoint may come from anyone, so its list is checked.
        """
        value = self.checkpoint.provenance.get("beginnings")
        ids = value if isinstance(value, list) else []
        return [i for i in ids if type(i) is int and END < i < len(self.vocabulary)] or None


def fresh_random_seed() -> int:
    """A new random seed of at most six digits, short enough to type again."""
    return int(np.random.default_rng().integers(0, 10**6))


def _read_contexts(stepper: Stepper, contexts: Sequence[Sequence[int]]) -> None:
    """Read another context with each row of a stepper, [B]."""
    before, after = stepper.snapshot(), stepper.snapshot()
    for context in {*map(tuple, contexts)}:
        stepper.restore(before)
        stepper.read(np.broadcast_to(np.array(context)[:, None], (len(context), len(contexts))))
        rows = [b for b, of_row in enumerate(contexts) if tuple(of_row) == context]
        after.state[:, :, rows] = stepper.state[:, :, rows]
        after.logits[rows] = stepper.logits[rows]
    stepper.restore(after)


def _generators(generations: Sequence[Generation]) -> list[np.random.Generator]:
    return [np.random.default_rng(generation.options.random_seed) for generation in generations]


class _Output:
    """Decodes the tokens of one document until it ends.

    Attributes:
        remaining: maximum number of characters still to generate; 0 if the document has ended.
    """

    def __init__(self, generation: Generation, vocabulary: Vocabulary, keep: bool) -> None:
        options = generation.options
        longest = PAGE_LENGTHS[1] if options.until == PAGE else LONGEST
        self.remaining = longest if options.length is None else options.length
        self._generation, self._vocabulary, self._keep = generation, vocabulary, keep
        # The end of the text so far, in which a grapheme cluster may have begun.
        self._tail = generation.prompt[-_LONGEST_CLUSTER:]
        self._prefix = generation.prefix
        self._stop = _StopCondition(options.until, vocabulary)

    def append(self, ids: list[int]) -> str:
        """Append tokens; returns the new text, without what the prompt has of the first token."""
        generation, prefix = self._generation, self._prefix
        if generation.ending:
            return ""
        self._prefix = ""
        piece = self._vocabulary.decode(ids)[len(prefix) :]
        self.remaining -= len(piece)
        if self.remaining <= 0:
            # The length cuts the text, but no grapheme cluster.
            known = self._tail + piece
            piece = piece[: max(0, cluster_boundary(known, len(known) + self.remaining) - len(self._tail))]
            self.remaining = 0
        self._tail = (self._tail + piece)[-_LONGEST_CLUSTER:]
        if (end := self._stop.find(piece)) is not None:
            piece, generation.ending = piece[:end], "until"
        elif self.remaining == 0:
            generation.ending = "length"
        elif ids[-1] == END:
            generation.ending = "end"
        if generation.ending:
            self.remaining = 0
        if self._keep:
            generation.pieces.append(piece)
            generation.ids += self._ids_of(ids, len(prefix) + len(piece))
        return piece

    def _ids_of(self, ids: list[int], characters: int) -> Iterator[int]:
        """The leading tokens that have so many characters, and the `<end>` that ended the document."""
        for token in ids:
            if characters <= 0 and (token != END or self._generation.ending != "end"):
                break
            yield token
            characters -= len(self._vocabulary.decode([token]))
            if token == END:
                break


class _StopCondition:
    """Finds where `until` ends a text that arrives in pieces."""

    def __init__(self, until: str | None, vocabulary: Vocabulary) -> None:
        self._until = None if until is None or until == STORY_END else until
        self._normalise = vocabulary.normalise
        # Position before which no end counts, and of the next piece.
        self._least = PAGE_LENGTHS[0] if until == PAGE else 0
        self._position = 0
        # The end of the text so far, in which a match may have begun.
        self._tail = ""

    def find(self, piece: str) -> int | None:
        """Find the end in the next piece; returns the number of characters before it, or None."""
        text, begin = self._tail + piece, self._position
        self._position += len(piece)
        if self._until is None:
            return None
        if self._position >= self._least:
            for match in self._pattern.finditer(text):
                end = int(match.end()) - len(self._tail)
                if begin + end >= self._least:
                    return max(0, end)
        self._tail = text[max(0, len(text) - self._tail_length) :]
        return None

    @cached_property
    def _pattern(self) -> Any:
        assert self._until is not None
        if self._until in {SENTENCE, PAGE}:
            import regex  # has the Unicode properties; takes 25 ms

            return regex.compile(_SENTENCE_END)
        return re.compile(_LINE_ENDS.get(self._until) or re.escape(self._normalise(self._until)))

    @cached_property
    def _tail_length(self) -> int:
        known = self._until in {SENTENCE, PAGE, *_LINE_ENDS}
        return _MAX_MATCH if known else len(self._normalise(self._until or "")) - 1

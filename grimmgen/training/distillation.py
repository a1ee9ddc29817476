"""Distillation: train a network towards the predictions of others, its teachers (Hinton et al. 2015, arXiv 1503.02531).

Teachers are trained networks; together they predict better than each of them, and a network that is trained towards
their predictions keeps a part of that gain in a single file. With the token y of the text and the distribution q of
the teachers, the mean of theirs, the loss of a prediction p is

    (1 - SHARE) · -log p(y)  +  SHARE · Σ q(v) · -log p(v)

Its gradient is the expected value of that of a single target: with the probability SHARE a sample of q, else y. So the
targets are sampled, and a training step needs no other loss. A number of samples for each token are drawn before the
first update, and kept with the run: the teachers are not needed afterwards. A document's `<end>` stays its last target.

    N  tokens of the training set    K  samples of each    V  vocabulary size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from grimmgen.configuration import UNLIMITED_EPOCHS, Configuration
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.evaluation.static import EncodedDocument, load_network, windows_of
from grimmgen.network.model import LanguageModel, State
from grimmgen.runs.registry import TrainedModel
from grimmgen.text import id_cache
from grimmgen.text.batches import IdSequence, RaggedIds
from grimmgen.text.vocabulary import Block, Vocabulary
from grimmgen.training.distributed import ProcessGroup
from grimmgen.training.text import TrainingText

SHARE = 0.5
# Samples of a token; each epoch uses one. There are fewer for a large training set, which is read a few times only.
_SAMPLES, _LARGEST = 16, 1 << 28
# With teachers, dropout and epochs are by these factors what they are without (benchmarks/README.md).
_DROPOUT, _EPOCHS = 0.75, 1.25


def with_teachers(configuration: Configuration, chosen: Collection[str]) -> Configuration:
    """The options of a training with teachers, from those of one without.

    Targets that differ from epoch to epoch are harder to learn by heart, and take longer to learn.

    Args:
        configuration: of a training without.
        chosen: the names of the options that the user chose, which are kept.
    """
    dropouts = "dropout", "weight_drop"
    values: dict[str, Any] = {name: round(_DROPOUT * getattr(configuration, name), 3) for name in dropouts}
    if configuration.schedule == "cosine" and configuration.epochs < UNLIMITED_EPOCHS:
        values["epochs"] = round(_EPOCHS * configuration.epochs)
    return dataclasses.replace(configuration, **{n: v for n, v in values.items() if n not in chosen})


@dataclass(frozen=True)
class SampledTargets:
    """Samples of the teachers' predictions.

    Attributes:
        vocabulary: of the teachers.
        samples: K times the N tokens, in the order of those of the training set.
    """

    vocabulary: Vocabulary
    samples: RaggedIds

    @classmethod
    def draw(
        cls,
        teachers: Sequence[TrainedModel],
        text: TrainingText,
        device: torch.device,
        random_seed: int,
        notify: Callable[[str], None] | None = None,
    ) -> SampledTargets:
        """Read the training set with the teachers.

        Args:
            teachers: at least one.
            text: the encoded text.
            device: computes.
            random_seed: of the samples.
            notify: called with a message at the beginning.

        Raises:
            UsageError: a teacher has other tokens than the text.
        """
        for teacher in teachers:
            if teacher.checkpoint.vocabulary != text.vocabulary:
                raise UsageError(
                    f"{teacher.name} has other tokens than this training set",
                    "give --distil runs of the same text, --split, --tokens and --min-count",
                )
        models = [load_network(teacher, device) for teacher in teachers]
        if notify:
            notify(f"sampling targets from {', '.join(teacher.name for teacher in teachers)}")
        ids, (V, N) = text.training.ids, (len(text.vocabulary), len(text.training.ids))
        found = np.zeros((min(_SAMPLES, max(1, _LARGEST // N)), N), text.vocabulary.id_type)
        generator = torch.Generator().manual_seed(random_seed)
        some = text.training.lengths > 0
        begins, lengths = text.training.begins[some], text.training.lengths[some]
        spans = zip(begins.tolist(), (begins + lengths).tolist(), strict=True)
        documents = [EncodedDocument(f"{begin:020}", ids[begin:end], 0.0, 0) for begin, end in spans]
        for batch in windows_of(documents, V):
            states = dict[LanguageModel, State]()
            for window, rows in batch:
                predicted = torch.zeros(())
                for model in models:
                    inputs = model.inputs(window)
                    before = states[model] if model in states else model.zero_state(len(rows))
                    before = tuple(part[:, : len(rows)] for part in before)
                    logits, states[model] = model.logits(inputs.ids, before, inputs.resets)
                    predicted = predicted + logits.softmax(dim=-1).cpu()
                drawn = torch.multinomial(predicted.view(-1, V), len(found), replacement=True, generator=generator)
                sampled = drawn.view(*window.targets.shape, -1).numpy()
                for column, (document, begin, end) in enumerate(rows):
                    at = int(begins[document])
                    # The target after a document's last token is <end>.
                    stop = min(end, int(lengths[document]))
                    found[:, at + begin : at + stop] = sampled[: stop - begin, column].T
        samples = RaggedIds.of_lengths(found.ravel(), np.full((len(found), 1), N))
        return cls(text.vocabulary, samples)

    @classmethod
    def read(cls, path: Path, text: TrainingText) -> SampledTargets:
        """Read the samples of a run.

        Raises:
            IntegrityError: they are missing, damaged, or those of another text.
        """
        try:
            found = cls(*id_cache.read(path))
        except FileNotFoundError:
            raise IntegrityError(f"{path}, which the run is trained with, is missing", "train a new run") from None
        if found.vocabulary != text.vocabulary or {*found.samples.lengths.ravel()} != {len(text.training.ids)}:
            raise IntegrityError(f"{path} does not belong to the text of the run", "train a new run")
        return found

    @classmethod
    def shared(cls, make: Callable[[], SampledTargets], text: TrainingText, group: ProcessGroup) -> SampledTargets:
        """The samples that the first process makes, in all processes."""
        if group.size == 1:
            return make()
        own = make() if group.first else None
        count = group.broadcast(lambda: 0 if own is None else len(own.samples.lengths))
        N = len(text.training.ids)
        samples = torch.zeros(count * N, dtype=torch.int32)
        if own is not None:
            samples.copy_(torch.from_numpy(own.samples.ids[:].astype(np.int32)))
        group.copy([samples])
        return cls(text.vocabulary, RaggedIds.of_lengths(samples.numpy(), np.full((count, 1), N)))

    def write(self, path: Path) -> None:
        """Write the samples to a file, as the cache of encoded texts does.

        Raises:
            GrimmgenError: the file cannot be written.
        """
        no_costs, no_ends = np.zeros(0), np.zeros(0, np.int64)
        phases = []
        for [samples] in zip(*self.samples, strict=True):
            ends = np.array([len(samples)])
            phases.append([Block(samples, no_costs, 0, ends, no_ends)])
        id_cache.write(path, self.vocabulary, phases)

    def of_epoch(self, ids: IdSequence, random_seed: int, number: int) -> IdSequence:
        """The targets of one epoch of training, for each token of the training set.

        Args:
            ids: the tokens of the training set, [N].
            random_seed: of the run.
            number: of the epoch, from 0.
        """
        generator = np.random.default_rng([random_seed, number, 1])
        sampled = generator.random(len(ids), np.float32) < SHARE
        first = int(self.samples.begins[number % len(self.samples.begins), 0])
        return _Targets(ids, self.samples.ids, first, sampled)


@dataclass(frozen=True)
class _Targets:
    """The targets of an epoch: the text's own ids, and samples in place of some of them."""

    ids: IdSequence
    samples: IdSequence
    first: int
    sampled: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, cut: slice, /) -> NDArray[Any]:
        return self.take(np.arange(*cut.indices(len(self))))

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        return np.where(self.sampled[indices], self.samples.take(self.first + indices), self.ids.take(indices))

"""Evaluate trained models on the same documents, rank them, and test the differences for significance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.evaluation import static
from grimmgen.evaluation.baseline import KneserNey
from grimmgen.evaluation.dynamic import evaluate_dynamically
from grimmgen.evaluation.scores import Difference, Evaluation, Score, compare
from grimmgen.network.model import LanguageModel
from grimmgen.runs.registry import TrainedModel
from grimmgen.text.corpus import Document, digest_of
from grimmgen.text.normalisation import normalise
from grimmgen.text.split import Part


@dataclass(frozen=True)
class Result:
    """The scores of one model.

    Attributes:
        name: of the run or file, or `Kneser-Ney`.
        static: scores with fixed weights.
        dynamic: scores under dynamic evaluation; None without it.
        ngrams: whether its predictions are n-grams; those of the baseline are characters.
        difference: to the best model; None for the best, and if the models are not comparable.
    """

    name: str
    static: Evaluation
    dynamic: Evaluation | None = None
    ngrams: bool = True
    difference: Difference | None = None

    @property
    def total(self) -> tuple[Score, Score | None]:
        """The static score of all documents, and the dynamic one."""
        return self.static.total, self.dynamic.total if self.dynamic else None

    @property
    def documents(self) -> list[tuple[Score, Score | None]]:
        """The static score of each document, and the dynamic one."""
        dynamic = self.dynamic.documents if self.dynamic else [None] * len(self.static.documents)
        return list(zip(self.static.documents, dynamic, strict=True))


@dataclass(frozen=True)
class Comparison:
    """The results of several models.

    Attributes:
        results: by ascending bits per character.
        warning: why the models cannot be compared; empty if they can.
    """

    results: tuple[Result, ...]
    warning: str


def evaluate_models(
    models: Sequence[TrainedModel],
    documents: Sequence[Document],
    part: Part,
    device: torch.device,
    dynamic: bool = False,
    baseline: bool = False,
    notify: Callable[[str], None] | None = None,
    notify_done: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Evaluate and compare models.

    Args:
        models: at least one.
        documents: to evaluate on; if empty, each model is evaluated on a part of its own run's split.
        part: that part.
        device: of the models.
        dynamic: also evaluate dynamically.
        baseline: also evaluate a Kneser-Ney model of characters, trained on the first model's training set.
        notify: receives a message for each model.
        notify_done: receives (model name, documents done, documents) during dynamic evaluation.

    Raises:
        UsageError: a checkpoint file is to be evaluated on its run's documents, or is the first with `baseline`.
        GrimmgenError: there is no text, or a document cannot be read.
    """
    if baseline and models[0].run is None:
        raise UsageError(f"{models[0].name} does not include its training stories", "give a run's name first")
    read = [documents or documents_of(model, part) for model in models]
    warning = _why_not_comparable(models, read)
    results = []
    for model, own in zip(models, read, strict=True):
        if notify:
            notify(f"reading {len(own)} text{'' if len(own) == 1 else 's'} with {model.name}")
        results.append(_evaluate(model, own, device, dynamic, notify_done))
    if baseline:
        results.append(_evaluate_baseline(models[0], read[0]))
    results.sort(key=lambda result: result.static.total.bits_per_character)
    best, *others = results
    if not warning:
        others = [replace(other, difference=compare(other.static, best.static)) for other in others]
    return Comparison((best, *others), warning)


def documents_of(model: TrainedModel, part: Part) -> Sequence[Document]:
    """The documents of a part of a model's split.

    Raises:
        UsageError: the model is a checkpoint file.
        GrimmgenError: the part is empty, or the corpus is gone.
    """
    if model.run is None:
        raise UsageError(f"{model.name} does not include its stories", "give a FILE to read, or a run's name")
    documents = model.split().parts[part]
    if not documents:
        raise GrimmgenError(f"the run {model.name} has no {part} stories", "give a FILE to read")
    return documents


def _why_not_comparable(models: Sequence[TrainedModel], read: Sequence[Sequence[Document]]) -> str:
    contents = [digest_of(documents) for documents in read] if len(models) > 1 else []
    if len({*contents}) > 1:
        return "the runs have different stories: to compare them on the same text, give FILEs"
    configurations = [model.checkpoint.configuration for model in models]
    if len({configuration.normalisation for configuration in configurations}) > 1:
        return (
            "the runs normalise text differently (--keep-case, --newlines, --language), so their scores are not"
            " comparable"
        )
    return ""


def _evaluate(
    trained: TrainedModel,
    documents: Sequence[Document],
    device: torch.device,
    dynamic: bool,
    notify_done: Callable[[str, int, int], None] | None,
) -> Result:
    checkpoint = trained.checkpoint
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(device)
    model.load_weights(checkpoint.weights)
    encoded = static.encode_documents_for_evaluation(documents, checkpoint.vocabulary)
    result = Result(trained.name, static.evaluate(model, encoded))
    if not dynamic:
        return result

    def notify(done: int) -> None:
        if notify_done:
            notify_done(trained.name, done, len(encoded))

    return replace(result, dynamic=evaluate_dynamically(model, encoded, notify_done=notify))


def _evaluate_baseline(trained: TrainedModel, documents: Sequence[Document]) -> Result:
    configuration = trained.checkpoint.configuration
    fold = partial(normalise, options=configuration.normalisation)
    model = KneserNey([fold(document.read()) for document in trained.split().parts["train"]])
    texts = [(document.name, fold(document.read())) for document in documents]
    return Result("Kneser-Ney", model.evaluate([(name, text) for name, text in texts if text]), ngrams=False)

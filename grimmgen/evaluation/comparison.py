"""Evaluate trained models on the same documents, rank them, and test the differences for significance.

A model with counts is evaluated as a network alone and as a mixture of both. Several models that share a vocabulary are
also evaluated as an ensemble, which averages their probabilities of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from grimmgen.counts.mixture import TokenScores
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.evaluation import static
from grimmgen.evaluation.baseline import KneserNey
from grimmgen.evaluation.dynamic import evaluate_dynamically
from grimmgen.evaluation.scores import Difference, Evaluation, Score, compare
from grimmgen.evaluation.static import EncodedDocument
from grimmgen.runs.registry import TrainedModel
from grimmgen.text.corpus import Document, digest_of
from grimmgen.text.normalisation import normalise
from grimmgen.text.split import Part

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """The scores of one model.

    Attributes:
        name: of the run or file, or `Kneser-Ney`; that of a mixture or an ensemble says so.
        static: scores with fixed weights.
        dynamic: scores under dynamic evaluation; None without it.
        ngrams: whether its predictions are n-grams; those of the baseline are characters.
        difference: to the best model; None for the best, and if the models are not comparable.
        kind: what predicted.
        run: the run or file; empty for the baseline and an ensemble.
    """

    name: str
    static: Evaluation
    dynamic: Evaluation | None = None
    ngrams: bool = True
    difference: Difference | None = None
    kind: Literal["network", "mixture", "ensemble", "baseline"] = "network"
    run: str = ""

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
    mix: float | None = None,
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
        mix: constant weight of the counts; None is that of the fitted gate, 0 evaluates networks alone.

    Raises:
        UsageError: a checkpoint file is to be evaluated on its run's documents, or is the first with `baseline`.
        GrimmgenError: there is no text, or a document cannot be read.
    """
    if baseline and not models[0].has_split:
        raise UsageError(f"{models[0].name} does not include its training stories", "give a run's name first")
    read = [documents or documents_of(model, part) for model in models]
    warning = _why_not_comparable(models, read)
    vocabularies = [model.checkpoint.vocabulary for model in models]
    alike = len(models) > 1 and not warning and all(own == vocabularies[0] for own in vocabularies)
    results, members = list[Result](), list[_Predictions]()
    for model, own in zip(models, read, strict=True):
        if notify:
            notify(f"reading {len(own)} text{'' if len(own) == 1 else 's'} with {model.name}")
        encoded = static.encode_documents_for_evaluation(own, model.checkpoint.vocabulary)
        if not alike and (model.checkpoint.mixture is None or mix == 0.0):
            results.append(_evaluate(model, encoded, device, dynamic, notify_done))
            continue
        predictions = _predict(model, encoded, device, dynamic, mix, notify_done)
        results += [prediction.result(encoded) for prediction in predictions]
        members.append(predictions[-1])
    if alike:
        results.append(_ensemble(members).result(encoded))
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
    if not model.has_split:
        raise UsageError(f"{model.name} does not include its stories", "give a FILE to read, or a run's name")
    documents = model.split().parts[part]
    if not documents:
        raise GrimmgenError(f"{model.name} has no {part} stories", "give a FILE to read")
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


@dataclass(frozen=True)
class _Predictions:
    """What a model, a mixture or an ensemble says of each token of the documents, in nats, [N] for each document.

    Attributes:
        name: of the result.
        kind: of the result.
        run: of the result.
        static: with fixed weights.
        dynamic: under dynamic evaluation; None without it.
    """

    name: str
    kind: Literal["network", "mixture", "ensemble"]
    run: str
    static: Sequence[Floats]
    dynamic: Sequence[Floats] | None

    def result(self, documents: Sequence[EncodedDocument]) -> Result:
        found = [
            nats and Evaluation(tuple(d.score(float(n.sum())) for d, n in zip(documents, nats, strict=True)))
            for nats in (self.static, self.dynamic)
        ]
        assert found[0]
        return Result(self.name, found[0], found[1] or None, kind=self.kind, run=self.run)


def _notify(
    trained: TrainedModel, documents: int, notify_done: Callable[[str, int, int], None] | None
) -> Callable[[int], None]:
    return lambda done: notify_done(trained.name, done, documents) if notify_done else None


def _evaluate(
    trained: TrainedModel,
    encoded: Sequence[EncodedDocument],
    device: torch.device,
    dynamic: bool,
    notify_done: Callable[[str, int, int], None] | None,
) -> Result:
    model = static.load_network(trained, device)
    result = Result(trained.name, static.evaluate(model, encoded), run=trained.name)
    if not dynamic:
        return result
    notify = _notify(trained, len(encoded), notify_done)
    return replace(result, dynamic=evaluate_dynamically(model, encoded, notify_done=notify))


def _predict(
    trained: TrainedModel,
    encoded: Sequence[EncodedDocument],
    device: torch.device,
    dynamic: bool,
    mix: float | None,
    notify_done: Callable[[str, int, int], None] | None,
) -> list[_Predictions]:
    """The predictions of the network alone, and with counts those of the mixture."""
    model, mixture = static.load_network(trained, device), trained.checkpoint.mixture
    scores = [static.token_scores(model, encoded), list[TokenScores]()]
    if dynamic:
        notify = _notify(trained, len(encoded), notify_done)
        evaluate_dynamically(model, encoded, notify_done=notify, token_scores=scores[1])
    network = [[score.nats for score in of_kind] for of_kind in scores]
    found = [_Predictions(trained.name, "network", trained.name, network[0], network[1] or None)]
    if mixture is not None and mix != 0.0:
        ids, ends = [document.ids for document in encoded], np.cumsum([len(d.ids) + 1 for d in encoded])[:-1]
        mixed = [
            np.split(mixture.nats(ids, of_kind, number == 1, mix), ends) if of_kind else None
            for number, of_kind in enumerate(scores)
        ]
        assert mixed[0]
        found.append(_Predictions(f"{trained.name} + counts", "mixture", trained.name, mixed[0], mixed[1]))
    return found


def _ensemble(members: Sequence[_Predictions]) -> _Predictions:
    """Average the probabilities of each token."""

    def average(parts: Sequence[Sequence[Floats]]) -> list[Floats]:
        return [
            np.log(len(members)) - np.logaddexp.reduce([-nats for nats in of_document], axis=0)
            for of_document in zip(*parts, strict=True)
        ]

    dynamic = [member.dynamic for member in members if member.dynamic is not None]
    return _Predictions(
        f"ensemble of {len(members)}",
        "ensemble",
        "",
        average([member.static for member in members]),
        average(dynamic) if dynamic else None,
    )


def _evaluate_baseline(trained: TrainedModel, documents: Sequence[Document]) -> Result:
    configuration = trained.checkpoint.configuration
    fold = partial(normalise, options=configuration.normalisation)
    model = KneserNey([fold(document.read()) for document in trained.split().parts["train"]])
    texts = [(document.name, fold(document.read())) for document in documents]
    found = model.evaluate([(name, text) for name, text in texts if text])
    return Result("Kneser-Ney", found, ngrams=False, kind="baseline")

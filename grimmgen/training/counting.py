"""The counts of a training: made before its first update, mixed with the best network after the last one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from grimmgen.counts.gate import BATCH, STEPS, Gate
from grimmgen.counts.index import ContextIndex
from grimmgen.counts.kneser_ney import CountModel
from grimmgen.counts.mixture import Mixture
from grimmgen.evaluation.static import EncodedDocument, token_scores
from grimmgen.network.model import LanguageModel
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.training.text import TrainingText

# Tokens of the validation set that the mixture is fitted on, at most.
_TOKENS = 1 << 16
# Steps of a gate's fit that its duration is estimated from.
_PROBE = 10


class Counting:
    """Counts the training set, and fits the mixture with the network.

    Args:
        text: the encoded text.
        clock: returns seconds.
        evaluation_seconds: expected duration of an evaluation of the validation set.

    Attributes:
        seconds: the expected duration of `finish`.
    """

    def __init__(self, text: TrainingText, clock: Callable[[], float], evaluation_seconds: float) -> None:
        began = clock()
        self._counts = CountModel.build(ContextIndex.build(text.training, text.vocabulary))
        self._documents = _first(text.validation, _TOKENS)
        counted = clock()
        # Looking up the validation set takes no longer than counting the training set did.
        tokens = min(BATCH, sum(len(document.ids) + 1 for document in self._documents))
        features, experts = 3 * self._counts.index.longest + 3, 3
        Gate.fit(np.ones((tokens, features)), np.zeros((tokens, experts)), _PROBE)
        fitting = (clock() - counted) * 2 * STEPS / _PROBE
        self.seconds = counted - began + fitting + 2 * evaluation_seconds

    def finish(self, path: Path, model: LanguageModel) -> None:
        """Add the counts and the fitted mixture to a checkpoint.

        Args:
            path: of the checkpoint, which is replaced.
            model: receives its weights.
        """
        checkpoint = Checkpoint.read(path)
        model.load_weights(checkpoint.weights)
        scores = token_scores(model, self._documents)
        mixture = Mixture.fit(self._counts, [document.ids for document in self._documents], scores)
        dataclasses.replace(checkpoint, mixture=mixture).write(path)


def _first(documents: Sequence[EncodedDocument], tokens: int) -> list[EncodedDocument]:
    """The first documents, with as many tokens together; the last one may be cut."""
    found = list[EncodedDocument]()
    for document in documents:
        if tokens <= 0:
            break
        found.append(dataclasses.replace(document, ids=document.ids[:tokens]))
        tokens -= len(document.ids)
    return found

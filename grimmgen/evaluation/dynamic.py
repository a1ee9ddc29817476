"""Dynamic evaluation: adapt a model to each document while evaluating it (Krause et al., arXiv 1709.07432).

After each segment the weights θ, initially the trained weights θ₀, are updated with the segment's gradient g:

    θ  ←  θ  -  rate · g / (r + damping · r̄)  +  decay · (θ₀ - θ)

where r is the root mean square of a weight's gradient over many segments, and r̄ is the mean of r over all
weights. Krause et al. compute r on the training text. Here it is computed on text sampled from the model itself,
each n-gram from the full distribution (r² is then the diagonal of the Fisher information), so that a checkpoint is
all that is needed.

    T  time steps of a segment    B  batch rows    V  vocabulary size    L  layers    H  hidden units
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grimmgen.counts.mixture import TokenScores
from grimmgen.evaluation.scores import Evaluation, Score
from grimmgen.evaluation.static import EncodedDocument
from grimmgen.network.model import LanguageModel, State
from grimmgen.network.model import token_scores as model_scores
from grimmgen.text.batches import NO_TARGET, Window, evaluation_windows
from grimmgen.text.vocabulary import END

# Sampled streams, and segments of each, for the gradient statistics; more do not change the scores.
_STREAMS = 16
_SEGMENTS = 8


def evaluate_dynamically(
    model: LanguageModel,
    documents: Sequence[EncodedDocument],
    rate: float = 0.0005,
    decay: float = 0.003,
    damping: float = 0.3,
    segment: int = 32,
    notify_done: Callable[[int], None] | None = None,
    token_scores: list[TokenScores] | None = None,
) -> Evaluation:
    """Score each document with a model that is trained on it as it goes.

    Each segment is scored with the weights adapted to the segments before it, and then used to update them. Each
    document starts from the trained weights. The defaults were chosen on the validation set of the tales.

    Args:
        model: its weights are restored at the end, also after an exception.
        documents: at least one, none of them empty.
        rate: step size, relative to r.
        decay: fraction of the way back to the trained weights, after each step.
        damping: bounds the steps of weights whose r is near zero.
        segment: T, the n-grams of a segment.
        notify_done: called after each document with the number of documents scored so far.
        token_scores: receives what the adapted network says of each token, for a mixture or an ensemble.
    """
    weights = dict(model.named_parameters())
    trained = {name: weight.clone() for name, weight in weights.items()}
    step = _Step(model, segment)
    rms = gradient_rms(model, step, segment)
    mean = sum(float(r.sum()) for r in rms.values()) / sum(r.numel() for r in rms.values())
    # At least 1e-30: all gradients of a model can be zero.
    rates = {name: rate / (r + max(damping * mean, 1e-30)) for name, r in rms.items()}
    evaluated = list[Score]()
    try:
        for document in documents:
            state, found = model.zero_state(1), list[NDArray[np.float64]]()
            for window in evaluation_windows([document.ids], segment):
                scores, gradients, state = step(window, state)
                found.append(scores[:, window.targets[:, 0] != NO_TARGET])
                for name, weight in weights.items():
                    weight.addcmul_(gradients[name], rates[name], value=-1.0).lerp_(trained[name], decay)
            of_document = TokenScores(*np.concatenate(found, axis=1))
            evaluated.append(document.score(float(of_document.nats.sum())))
            if token_scores is not None:
                token_scores.append(of_document)
            _restore(weights, trained)
            if notify_done:
                notify_done(len(evaluated))
    finally:
        _restore(weights, trained)
    return Evaluation(tuple(evaluated))


class _Step:
    """Scores a segment, [T, 1], and computes its gradients, by what is least work for so few tokens.

    Args:
        model: its weights may change between calls, in place.
        segment: T.
    """

    def __init__(self, model: LanguageModel, segment: int) -> None:
        self._model, self._backend = model, model.backend()
        self._short = segment < model.vocabulary_size

    def __call__(self, window: Window, state: State) -> tuple[NDArray[np.float64], dict[str, Tensor], State]:
        """The scores of the tokens, [3, T], the gradients of their mean loss by the weights, and the state after."""
        model, backend, inputs = self._model, self._backend, self._model.inputs(window)
        bias = model.weights_by_name["output.bias"]
        with backend.threads():
            done = model.forward(backend, inputs.ids, state, inputs.resets, short=self._short)
            targets = inputs.targets.view(-1)
            scores = model_scores(done.hidden @ done.output_weight + bias, targets)
            _, d_hidden, d_weight, d_bias = backend.cross_entropy(done.hidden, done.output_weight, bias, targets)
            gradients = model.backward(backend, done, inputs.ids, d_hidden, d_weight, d_bias)
        return scores, gradients, done.state


def gradient_rms(model: LanguageModel, step: _Step, segment: int) -> dict[str, Tensor]:
    """The root mean square of each weight's gradient over segments sampled from the model.

    Args:
        model: on any device.
        step: computes its gradients.
        segment: T, the n-grams of a segment.

    Returns:
        For each weight, by name, a tensor of its shape.
    """
    squares = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    sampled = sample(model, _STREAMS, _SEGMENTS * segment)
    for row in range(_STREAMS):
        state = model.zero_state(1)
        for begin in range(0, _SEGMENTS * segment, segment):
            cut = (slice(begin, begin + segment), slice(row, row + 1))
            window = Window(sampled.inputs[cut], sampled.targets[cut], sampled.starts[cut])
            _, gradients, state = step(window, state)
            for name, total in squares.items():
                total.addcmul_(gradients[name], gradients[name])
    return {name: total.div_(_STREAMS * _SEGMENTS).sqrt_() for name, total in squares.items()}


def sample(model: LanguageModel, rows: int, steps: int, random_seed: int = 0) -> Window:
    """Sample streams of documents from the model, each n-gram from the full distribution.

    Args:
        model: on any device.
        rows: B, the streams sampled side by side.
        steps: T, the n-grams of each.
        random_seed: of the draws.

    Returns:
        The streams as a window: inputs, targets and starts, [T, B].
    """
    generator = torch.Generator(model.device).manual_seed(random_seed)
    state = model.zero_state(rows)
    ids = [torch.full((rows,), END, device=model.device)]  # T + 1 times [B]
    for _ in range(steps):
        starts = (ids[-1] == END)[None] if model.configuration.reset_state else None
        logits, state = model.logits(ids[-1][None], state, starts, short=rows < model.vocabulary_size)  # [1, B, V]
        probabilities = logits[0].softmax(dim=1)  # [B, V]
        ids.append(torch.multinomial(probabilities, 1, generator=generator)[:, 0])
    stream = torch.stack(ids).to("cpu", torch.int32).numpy()  # [T + 1, B]
    return Window(stream[:-1], stream[1:], stream[:-1] == END)


def _restore(weights: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(trained[name])

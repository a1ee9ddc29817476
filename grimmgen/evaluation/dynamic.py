"""Dynamic evaluation: adapt a model to each document while evaluating it (Krause et al., arXiv 1709.07432).

After each segment the weights θ, initially the trained weights θ₀, are updated with the segment's gradient g:

    θ  ←  θ  -  rate · g / (r + damping · r̄)  +  decay · (θ₀ - θ)

where r is the root mean square of a weight's gradient over many segments, and r̄ is the mean of r over all
weights. Krause et al. compute r on the training text. Here it is computed on text sampled from the model itself,
each token from the full distribution (r² is then the diagonal of the Fisher information), so that a checkpoint is
all that is needed.

The products of large networks are bfloat16 where the CPU has instructions for it, as in training: twice as fast, and
within 10⁻⁵ bits per character of float32 on the tales.

    T  time steps of a segment    B  batch rows    V  vocabulary size    L  layers    H  hidden units
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grimmgen.counts.mixture import TokenScores
from grimmgen.evaluation.scores import Evaluation, Score
from grimmgen.evaluation.static import EncodedDocument
from grimmgen.network.backends import stepper
from grimmgen.network.model import LanguageModel, State
from grimmgen.network.model import token_scores as model_scores
from grimmgen.network.precision import one_row_precision
from grimmgen.network.train_step import GradientStep
from grimmgen.text.batches import NO_TARGET, Window, evaluation_windows
from grimmgen.text.vocabulary import END

# Sampled streams, and segments of each, for the gradient statistics; more do not change the scores.
_STREAMS = 16
_SEGMENTS = 8
# Threads, each with a copy of the weights and with its gradients in memory.
_MOST_WORKERS = 16

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def evaluate_dynamically(
    model: LanguageModel,
    documents: Sequence[EncodedDocument],
    rate: float = 0.0015,
    decay: float = 0.009,
    damping: float = 0.3,
    segment: int = 64,
    notify_done: Callable[[int], None] | None = None,
    token_scores: list[TokenScores] | None = None,
) -> Evaluation:
    """Score each document with a model that is trained on it as it goes.

    Each segment is scored with the weights adapted to the segments before it, and then used to update them. Each
    document starts from the trained weights. The defaults were chosen on the validation set of the tales.

    On the CPU, documents are evaluated side by side, one by each thread: the time steps of a single one follow from
    each other, and are too small to be shared.

    Args:
        model: its weights are not changed: each thread adapts a copy of them.
        documents: at least one, none of them empty.
        rate: step size, relative to r.
        decay: fraction of the way back to the trained weights, after each step.
        damping: bounds the steps of weights whose r is near zero.
        segment: T, the tokens of a segment.
        notify_done: called after each document, in their order, with the number of documents scored so far.
        token_scores: receives what the adapted network says of each token, for a mixture or an ensemble.
    """
    rms = gradient_rms(model, segment)
    mean = sum(float(r.sum()) for r in rms.values()) / sum(r.numel() for r in rms.values())
    # At least 1e-30: all gradients of a model can be zero.
    rates = {name: rate / (r + max(damping * mean, 1e-30)) for name, r in rms.items()}
    trained = dict(model.named_parameters())

    def adapt(step: _Step, document: EncodedDocument) -> TokenScores:
        weights = dict(step.model.named_parameters())
        for name, weight in weights.items():
            weight.copy_(trained[name])
        state, found = step.model.zero_state(1), list[NDArray[np.float64]]()
        for window in evaluation_windows([document.ids], segment):
            scores, gradients, state = step(window, state)
            found.append(scores[:, window.targets[:, 0] != NO_TARGET])
            for name, weight in weights.items():
                weight.addcmul_(gradients[name], rates[name], value=-1.0).lerp_(trained[name], decay)
        return TokenScores(*np.concatenate(found, axis=1))

    evaluated = list[Score]()
    with contextlib.closing(_side_by_side(model, segment, adapt, documents)) as adapted:
        for document, scores in zip(documents, adapted, strict=True):
            evaluated.append(document.score(float(scores.nats.sum())))
            if token_scores is not None:
                token_scores.append(scores)
            if notify_done:
                notify_done(len(evaluated))
    return Evaluation(tuple(evaluated))


class _Step:
    """Scores a segment, [T, 1], and computes its gradients.

    Args:
        model: its weights may change between calls, in place.
        segment: T.
        stopped: when set, the next call raises CancelledError.
    """

    def __init__(self, model: LanguageModel, segment: int, stopped: threading.Event | None = None) -> None:
        self.model, self._stopped = model, stopped
        backend = model.backend(one_row_precision(model, segment))
        self._gradients = GradientStep(model, backend, (segment, 1), dropout=False, scored=True)

    def __call__(self, window: Window, state: State) -> tuple[NDArray[np.float64], dict[str, Tensor], State]:
        """The scores of the tokens, [3, T], the gradients of their mean loss by the weights, and the state after.

        The next call may overwrite the gradients.
        """
        if self._stopped is not None and self._stopped.is_set():
            raise CancelledError
        computed = self._gradients(window, state)
        logits = computed.hidden @ computed.output_weight + self.model.weights_by_name["output.bias"]
        targets = torch.from_numpy(window.targets[:, 0].astype(np.int64)).to(logits.device)
        return model_scores(logits, targets), computed.gradients, computed.state


def _side_by_side(
    model: LanguageModel, segment: int, function: Callable[[_Step, _Item], _Result], items: Sequence[_Item]
) -> Generator[_Result]:
    """The function's result for each item, in their order; on the CPU the items are shared by threads.

    Args:
        model: on any device.
        segment: T.
        function: called with a step of a copy of the model, whose weights it may change, and an item.
        items: at least one.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items), _MOST_WORKERS) if model.device.type == "cpu" else 1
    own, stopped = threading.local(), threading.Event()

    def begin() -> None:
        # The number of PyTorch's threads, which the kernels follow, is that of the calling thread.
        torch.set_num_threads(threads // workers)
        own.step = _Step(copy.deepcopy(model), segment, stopped)

    try:
        with ThreadPoolExecutor(workers, "dynamic", begin) as executor:
            try:
                yield from executor.map(lambda item: function(own.step, item), items)
            finally:
                stopped.set()
    finally:
        # The last number that any thread has set is also that of threads yet to be started.
        torch.set_num_threads(threads)


def gradient_rms(model: LanguageModel, segment: int) -> dict[str, Tensor]:
    """The root mean square of each weight's gradient over segments sampled from the model.

    Args:
        model: on any device.
        segment: T, the tokens of a segment.

    Returns:
        For each weight, by name, a tensor of its shape.
    """
    sampled = sample(model, _STREAMS, _SEGMENTS * segment)

    def squares_of(step: _Step, row: int) -> dict[str, Tensor]:
        state, squares = step.model.zero_state(1), dict[str, Tensor]()
        for begin in range(0, _SEGMENTS * segment, segment):
            cut = (slice(begin, begin + segment), slice(row, row + 1))
            window = Window(sampled.inputs[cut], sampled.targets[cut], sampled.starts[cut])
            _, gradients, state = step(window, state)
            for name, gradient in gradients.items():
                square = squares.setdefault(name, torch.zeros_like(gradient))
                square.addcmul_(gradient, gradient)
        return squares

    squares = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    with contextlib.closing(_side_by_side(model, segment, squares_of, range(_STREAMS))) as found:
        for of_row in found:
            for name, total in squares.items():
                total.add_(of_row[name])
    return {name: total.div_(_STREAMS * _SEGMENTS).sqrt_() for name, total in squares.items()}


def sample(model: LanguageModel, rows: int, steps: int, random_seed: int = 0) -> Window:
    """Sample streams of documents from the model, each token from the full distribution.

    Args:
        model: on any device.
        rows: B, the streams sampled side by side.
        steps: T, the tokens of each.
        random_seed: of the draws.

    Returns:
        The streams as a window: inputs, targets and starts, [T, B].
    """
    random = np.random.default_rng(random_seed)
    state = np.stack([part.cpu().numpy() for part in model.zero_state(rows)])  # [S, L, B, H]
    network = stepper(model.configuration, model.weights(), state)
    stream = np.full((steps + 1, rows), END, np.int32)
    for t in range(steps):
        if model.configuration.reset_state:
            state[:, :, stream[t] == END] = 0
        # The largest of the logits and Gumbel noise is a sample of their softmax.
        stream[t + 1] = (network.step(stream[t]) + random.gumbel(size=network.logits.shape)).argmax(axis=1)
    return Window(stream[:-1], stream[1:], stream[:-1] == END)

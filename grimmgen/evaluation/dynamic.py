"""Dynamic evaluation: a model that learns from a story while it reads it (Krause et al., arXiv 1709.07432).

After each segment the weights θ, in training θ₀, take a step against its gradient g, and one back:

    θ  ←  θ  -  rate · g / (r + damping · r̄)  +  decay · (θ₀ - θ)

where r is how large a weight's gradients usually are, the root of the mean of their squares over many segments,
and r̄ the mean of r over all weights: what usually hardly moves moves little. Krause et al. take r from the
training text. Here the model tells that text itself, each n-gram drawn with its probability (which makes r² the
diagonal of the Fisher information), so that a checkpoint is enough to be judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grimmgen.evaluation.scores import Evaluation
from grimmgen.evaluation.static import EncodedDocument, score_of
from grimmgen.network.model import LanguageModel
from grimmgen.text.batches import Window, evaluation_windows
from grimmgen.text.vocabulary import END

# Streams told, and segments of each, to see how large gradients are: more change nothing in the figures.
_STREAMS = 16
_SEGMENTS = 8


def evaluate_dynamically(
    model: LanguageModel,
    stories: Sequence[EncodedDocument],
    rate: float = 0.0005,
    decay: float = 0.003,
    damping: float = 0.3,
    segment: int = 32,
    told: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score each story by a model that learns from it as it reads it.

    A segment is scored with what was learnt from the segments before it, then learnt from. Each story begins
    with the trained weights anew: none profits from another. The defaults were chosen on the tales' validation
    stories.

    Args:
        model: its weights are as they were afterwards.
        stories: at least one, none of them empty.
        rate: of the steps, relative to the gradients' usual size.
        decay: share of the way back to the trained weights, after each step.
        damping: keeps steps small where gradients are usually nearly zero.
        segment: n-grams scored, then learnt from.
        told: told how many stories are done.
    """
    weights = dict(model.named_parameters())
    trained = [weight.detach().clone() for weight in weights.values()]
    sizes = usual_gradients(model, segment)
    mean = sum(float(size.sum()) for size in sizes) / sum(size.numel() for size in sizes)
    # A model whose gradients are all zero has nothing to learn, and is not to be divided by zero.
    rates = [rate / (size + max(damping * mean, 1e-30)) for size in sizes]
    scores = []
    try:
        for story in stories:
            state, nats = model.zero_state(1), 0.0
            for window in evaluation_windows([story.ids], segment):
                model.zero_grad(set_to_none=True)
                loss, state = model.loss(window, state, None)
                loss.backward()  # type: ignore[no-untyped-call]
                # The loss is the mean over the window's steps; those after the story's end add nothing to it.
                nats += loss.item() * window.targets.size
                with torch.no_grad():
                    for weight, its_rate, start in zip(weights.values(), rates, trained, strict=True):
                        assert weight.grad is not None
                        weight.addcmul_(weight.grad, its_rate, value=-1.0).lerp_(start, decay)
            scores.append(score_of(story, nats))
            _restore(model, trained)
            if told:
                told(len(scores))
    finally:
        model.zero_grad(set_to_none=True)
        _restore(model, trained)
    return Evaluation(tuple(scores))


def usual_gradients(model: LanguageModel, segment: int) -> list[Tensor]:
    """The root mean square of each weight's gradient by the loss of a segment that the model has told itself.

    Args:
        model: in the order of its parameters; the gradients they hold are lost.
        segment: n-grams.
    """
    sums = [torch.zeros_like(weight) for weight in model.parameters()]
    told = sample(model, _STREAMS, _SEGMENTS * segment)
    for row in range(_STREAMS):
        state = model.zero_state(1)
        for begin in range(0, _SEGMENTS * segment, segment):
            cut = (slice(begin, begin + segment), slice(row, row + 1))
            model.zero_grad(set_to_none=True)
            loss, state = model.loss(Window(told.inputs[cut], told.targets[cut], told.starts[cut]), state, None)
            loss.backward()  # type: ignore[no-untyped-call]
            for total, weight in zip(sums, model.parameters(), strict=True):
                assert weight.grad is not None
                total.addcmul_(weight.grad, weight.grad)
    return [total.div_(_STREAMS * _SEGMENTS).sqrt_() for total in sums]


@torch.no_grad()
def sample(model: LanguageModel, rows: int, steps: int, random_seed: int = 0) -> Window:
    """What the model tells, each n-gram drawn with its probability; one story follows the other.

    Args:
        model: on any device.
        rows: streams told side by side.
        steps: n-grams of each.
        random_seed: of the draws.
    """
    generator = torch.Generator(model.device).manual_seed(random_seed)
    state = model.zero_state(rows)
    ids = [torch.full((rows,), END, device=model.device)]
    for _ in range(steps):
        starts = (ids[-1] == END)[None] if model.configuration.reset_state else None
        hidden, state = model(ids[-1][None], state, starts)
        probabilities = model.logits(hidden)[0].softmax(dim=1)
        ids.append(torch.multinomial(probabilities, 1, generator=generator)[:, 0])
    drawn = torch.stack(ids).to("cpu", torch.int32).numpy()
    return Window(drawn[:-1], drawn[1:], drawn[:-1] == END)


def _restore(model: LanguageModel, trained: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, start in zip(model.parameters(), trained, strict=True):
            weight.copy_(start)

"""How well a model foretells stories: perplexity per n-gram and bits per character.

Every story is read from its first n-gram to its `<end>`, the state carried through it, zero at its start.
What training reports after each epoch and what `grimmgen eval` prints come from `evaluate` alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from grimmgen.batches import NO_TARGET, together
from grimmgen.errors import GrimmgenError
from grimmgen.model import LanguageModel
from grimmgen.scores import Evaluation, Score
from grimmgen.vocabulary import UNKNOWN, Ids, Vocabulary

# Rows read side by side and steps at a time: of no influence on the figures beyond the last digits.
_ROWS = 64
_STEPS = 128


@dataclass(frozen=True)
class EncodedStory:
    """A story as the network reads it.

    Attributes:
        name: of the story.
        ids: its n-grams, [N].
        spelling: nats that spelling each n-gram adds, [N]; zero but for `<unk>`.
        characters: of the normalised text.
    """

    name: str
    ids: Ids
    spelling: NDArray[np.float64]
    characters: int

    @classmethod
    def of(cls, name: str, text: str, vocabulary: Vocabulary) -> EncodedStory:
        """Encode a text."""
        return cls(name, *vocabulary.encode_with_costs(text))


def encode_stories(texts: Iterable[tuple[str, str]], vocabulary: Vocabulary) -> list[EncodedStory]:
    """Encode (name, text) pairs; empty texts are left out.

    Raises:
        GrimmgenError: there is no text at all.
    """
    encoded = [EncodedStory.of(name, text, vocabulary) for name, text in texts]
    if not (encoded := [story for story in encoded if story.characters]):
        raise GrimmgenError("there is no text to evaluate", "give a file that is not empty")
    return encoded


def evaluate(model: LanguageModel, stories: Sequence[EncodedStory]) -> Evaluation:
    """Score each story; no dropout.

    Args:
        model: on any device.
        stories: at least one, none of them empty.
    """
    # Stories of like length side by side: little is read in vain. The result does not depend on the order
    # in which they are given.
    order = sorted(range(len(stories)), key=lambda i: (-len(stories[i].ids), stories[i].name))
    nats = np.zeros(len(stories))
    for begin in range(0, len(order), _ROWS):
        rows = order[begin : begin + _ROWS]
        state = model.zero_state(len(rows))
        for window in together([stories[i].ids for i in rows], _STEPS):
            losses, state = model.losses(window, state)
            assert not losses[window.targets == NO_TARGET].any()
            nats[rows] += losses.sum(axis=0)
    return Evaluation(tuple(_score(story, float(n)) for story, n in zip(stories, nats, strict=True)))


def evaluate_dynamically(
    model: LanguageModel,
    stories: Sequence[EncodedStory],
    rate: float = 0.0003,
    segment: int = 32,
    told: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score each story by a model that learns from it as it reads it (Krause et al., arXiv 1709.07432).

    A segment is scored with what was learnt from the segments before it, then learnt from in one step of Adam.
    Each story begins with the trained weights anew: none profits from another.

    Args:
        model: its weights are as they were afterwards.
        stories: at least one, none of them empty.
        rate: Adam's.
        segment: n-grams scored, then learnt from.
        told: told how many stories are done.
    """
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    scores = []
    for story in stories:
        optimiser = torch.optim.Adam(model.parameters(), rate, fused=True)
        state, nats = model.zero_state(1), 0.0
        for window in together([story.ids], segment):
            losses, _ = model.losses(window, state)
            nats += float(losses.sum())
            optimiser.zero_grad(set_to_none=True)
            loss, state = model.loss(window, state, None)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), model.configuration.clip)
            optimiser.step()
        scores.append(_score(story, nats))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(trained[name])
        if told:
            told(len(scores))
    return Evaluation(tuple(scores))


def _score(story: EncodedStory, nats: float) -> Score:
    return Score(
        story.name,
        nats + float(story.spelling.sum()),
        len(story.ids) + 1,
        story.characters,
        int(np.count_nonzero(story.ids == UNKNOWN)),
    )

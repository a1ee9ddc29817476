"""From ids to the (T, B) windows that the network reads, with the places where stories begin.

    T  unrolled steps, the length of a window          B  batch rows, the streams read side by side

A story of n tokens is n + 1 predictions: it is entered through `<end>` (the story before it has ended), and
its last target is `<end>` again. Knows ids, and nothing of text or networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.vocabulary import END, Ids

NO_TARGET = -1


@dataclass(frozen=True)
class Window:
    """T steps of B rows.

    Attributes:
        inputs: ids [T, B], int32.
        targets: the ids that follow them [T, B], int32; NO_TARGET where a row has run out of text.
        starts: [T, B], true where a story (or a row) begins: the state that enters that step is zero.
    """

    inputs: Ids
    targets: Ids
    starts: NDArray[np.bool_]

    @property
    def predictions(self) -> int:
        """How many targets there are."""
        return int(np.count_nonzero(self.targets != NO_TARGET))


@dataclass(frozen=True)
class Stream:
    """Stories laid end to end: inputs, targets and story starts, each [N]."""

    inputs: Ids
    targets: Ids
    starts: NDArray[np.bool_]

    @classmethod
    def of(cls, stories: Sequence[Ids]) -> Stream:
        """Lay these stories end to end, each with its `<end>`."""
        lengths = np.array([len(story) + 1 for story in stories])
        targets = np.concatenate([part for story in stories for part in (story, [END])]).astype(np.int32)
        inputs = np.concatenate([[END], targets[:-1]]).astype(np.int32)
        starts = np.zeros(len(targets), np.bool_)
        starts[np.cumsum(lengths) - lengths] = True
        return cls(inputs, targets, starts)


def epoch(stories: Sequence[Sequence[Ids]], rows: int, steps: int, random_seed: int, number: int) -> list[Window]:
    """The windows of one epoch of training.

    The stories, in an order drawn from (random_seed, number) alone, are laid end to end and cut into `rows`
    streams of equal length, which are read side by side, `steps` at a time. Every token is read once: what
    is missing from the last window has no target.

    Args:
        stories: ids, for each story the ways in which it may be cut; one of them is drawn.
        rows: B.
        steps: T; shorter where a whole stream is.
        random_seed: the run's.
        number: of the epoch, from 0.
    """
    draw = np.random.default_rng([random_seed, number])
    order = draw.permutation(len(stories))
    stream = Stream.of([stories[i][int(draw.integers(len(stories[i])))] for i in order])
    return list(_windows(_side_by_side(stream, rows), steps))


def window_count(stories: Sequence[Sequence[Ids]], rows: int, steps: int) -> int:
    """How many windows an epoch has, every story cut in its first way."""
    length = -(-sum(len(ways[0]) + 1 for ways in stories) // rows)
    return -(-length // min(steps, length))


def together(stories: Sequence[Ids], steps: int) -> Iterator[Window]:
    """Windows for evaluation: each story in a row of its own, from its start to its end.

    Args:
        stories: ids, one array a story; the k-th is row k.
        steps: T.
    """
    length = max(len(story) for story in stories) + 1
    rows = [_padded(Stream.of([story]), length) for story in stories]
    whole = Window(
        np.stack([row.inputs for row in rows], axis=1),
        np.stack([row.targets for row in rows], axis=1),
        np.stack([row.starts for row in rows], axis=1),
    )
    return _windows(whole, steps)


def _side_by_side(stream: Stream, rows: int) -> Window:
    """Cut a stream into `rows` rows of equal length, [length, rows]; the last may run out of text."""
    length = -(-len(stream.inputs) // rows)
    stream = _padded(stream, length * rows)
    window = Window(
        stream.inputs.reshape(rows, length).T,
        stream.targets.reshape(rows, length).T,
        stream.starts.reshape(rows, length).T,
    )
    # A row that begins within a story begins with no memory of it: nothing was read before.
    window.starts[0] = True
    return window


def _padded(stream: Stream, length: int) -> Stream:
    missing = length - len(stream.inputs)
    return Stream(
        np.concatenate([stream.inputs, np.full(missing, END, np.int32)]),
        np.concatenate([stream.targets, np.full(missing, NO_TARGET, np.int32)]),
        np.concatenate([stream.starts, np.zeros(missing, np.bool_)]),
    )


def _windows(whole: Window, steps: int) -> Iterator[Window]:
    length = len(whole.inputs)
    steps = min(steps, length)
    missing = -length % steps
    fill = [(0, missing), (0, 0)]
    inputs = np.pad(whole.inputs, fill, constant_values=END)
    targets = np.pad(whole.targets, fill, constant_values=NO_TARGET)
    starts = np.pad(whole.starts, fill)
    for begin in range(0, length, steps):
        cut = slice(begin, begin + steps)
        yield Window(inputs[cut], targets[cut], starts[cut])

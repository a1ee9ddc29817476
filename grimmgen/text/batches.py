"""From ids to the (T, B) windows that the network reads, with the places where stories begin.

    T  unrolled steps, the length of a window          B  batch rows, the streams read side by side

A story of n tokens is n + 1 predictions: it is entered through `<end>` (the story before it has ended), and
its last target is `<end>` again. Knows ids, and nothing of text or networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from grimmgen.text.vocabulary import END, Ids

NO_TARGET = -1
# Windows that are made at a time.
_BLOCK = 64


class IdSequence(Protocol):
    """Ids that are read a slice at a time: an array, or what stands for one that is in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, cut: slice, /) -> NDArray[Any]: ...


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

    def first(self, rows: int) -> Window:
        """Its first rows, [T, rows]."""
        return Window(self.inputs[:, :rows], self.targets[:, :rows], self.starts[:, :rows])


class Stream:
    """Stories laid end to end, each with its `<end>`; read a part at a time, wherever their ids are kept.

    Args:
        stories: ids.
    """

    def __init__(self, stories: Sequence[IdSequence]) -> None:
        self._stories = stories
        # Where each story begins, and where the last one ends.
        self._begins = np.cumsum([0, *(len(story) + 1 for story in stories)])

    def __len__(self) -> int:
        """N, the predictions."""
        return int(self._begins[-1])

    def read(self, begin: int, end: int) -> Window:
        """The predictions from `begin` to `end`, as [end - begin]."""
        # Where nothing is written a story ends; the first is entered through the <end> of the one before it.
        ids = np.full(end - begin + 1, END, np.int32)
        starts = np.zeros(end - begin, np.bool_)
        before = begin - 1  # what the first input is
        number = max(0, int(np.searchsorted(self._begins, before, side="right")) - 1)
        while number < len(self._stories) and (first := int(self._begins[number])) < end:
            story = self._stories[number][max(0, before - first) : end - first]
            place = max(0, first - before)
            ids[place : place + len(story)] = story
            if begin <= first:
                starts[first - begin] = True
            number += 1
        return Window(ids[:-1], ids[1:], starts)


class Windows(Sequence[Window]):
    """Windows of rows that are read side by side; made when they are asked for, some at a time.

    Args:
        rows: for each row the stream that it reads, from where, and to where.
        steps: T; shorter where a whole row is.
        own: of the rows, those that the windows have; another process reads the others.
    """

    def __init__(self, rows: Sequence[tuple[Stream, int, int]], steps: int, own: slice = slice(None)) -> None:
        self._rows = rows[own]
        self._lengths = np.array([end - begin for _, begin, end in rows])
        self._length = int(self._lengths.max())
        self._steps = min(steps, self._length)
        self._block = -1
        self._read: list[Window] = []

    def __len__(self) -> int:
        return -(-self._length // self._steps)

    def predictions(self, index: int) -> int:
        """How many targets the k-th window has, in all rows."""
        return int(np.clip(self._lengths - index * self._steps, 0, self._steps).sum())

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...

    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        """The k-th window, its arrays [T, B]."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        block, place = divmod(range(len(self))[index], _BLOCK)
        if block != self._block:
            self._read = list(self._windows(block * _BLOCK, min(len(self), (block + 1) * _BLOCK)))
            self._block = block
        return self._read[place]

    def _windows(self, first: int, last: int) -> Iterator[Window]:
        steps, shape = self._steps, ((last - first) * self._steps, len(self._rows))
        # What is missing at the end of a row has no target.
        inputs, targets = np.full(shape, END, np.int32), np.full(shape, NO_TARGET, np.int32)
        starts = np.zeros(shape, np.bool_)
        for row, (stream, begin, end) in enumerate(self._rows):
            at, stop = (min(end, begin + k * steps) for k in (first, last))
            part = stream.read(at, stop)
            inputs[: stop - at, row] = part.inputs
            targets[: stop - at, row] = part.targets
            starts[: stop - at, row] = part.starts
        if first == 0:
            # A row that begins within a story begins with no memory of it: nothing was read before.
            starts[0] = True
        for cut in (slice(begin, begin + steps) for begin in range(0, shape[0], steps)):
            yield Window(inputs[cut], targets[cut], starts[cut])


def epoch(
    stories: Sequence[Sequence[IdSequence]],
    rows: int,
    steps: int,
    random_seed: int,
    number: int,
    own: slice = slice(None),
) -> Windows:
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
        own: of the rows, those that the windows have.
    """
    draw = np.random.default_rng([random_seed, number])
    order = draw.permutation(len(stories))
    stream = Stream([stories[i][int(draw.integers(len(stories[i])))] for i in order])
    length = -(-len(stream) // rows)
    begins = (min(row * length, len(stream)) for row in range(rows))
    return Windows([(stream, begin, min(begin + length, len(stream))) for begin in begins], steps, own)


def window_count(stories: Sequence[Sequence[IdSequence]], rows: int, steps: int) -> int:
    """How many windows an epoch has, every story cut in its first way."""
    length = -(-sum(len(ways[0]) + 1 for ways in stories) // rows)
    return -(-length // min(steps, length))


def together(
    stories: Sequence[IdSequence], steps: int, parts: Sequence[tuple[int, int]] | None = None
) -> Sequence[Window]:
    """Windows for evaluation: each story in a row of its own, from its start to its end.

    Args:
        stories: ids, one array a story; the k-th is row k.
        steps: T.
        parts: of each story the predictions that its row reads, from and to; None reads them all.
    """
    streams = [Stream([story]) for story in stories]
    parts = parts or [(0, len(stream)) for stream in streams]
    return Windows([(stream, *part) for stream, part in zip(streams, parts, strict=True)], steps)

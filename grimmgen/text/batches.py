"""Batches: windows of ids with their targets, and the positions at which documents start.

    T  time steps of a window          B  batch rows          N  predictions of a stream

A document of n tokens has n + 1 predictions: its first input is `<end>`, as if another document had ended before
it, and its last target is `<end>` again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from grimmgen.text.vocabulary import END, Ids

NO_TARGET = -1
# Windows that are read at once.
_BLOCK = 64


class IdSequence(Protocol):
    """Ids that are read in parts: an array, or a part of a mapped file."""

    def __len__(self) -> int: ...

    def __getitem__(self, cut: slice, /) -> NDArray[Any]: ...

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """Return the ids at these places."""


@dataclass(frozen=True)
class RaggedIds(Sequence[list[NDArray[Any]]]):
    """The ids of N documents, each cut in P ways (one for each phase).

    Attributes:
        ids: of all documents.
        begins: where in `ids` those of each document begin, [P, N].
        lengths: how many each document has, [P, N].
    """

    ids: IdSequence
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of_lengths(cls, ids: IdSequence, lengths: NDArray[np.int64]) -> RaggedIds:
        """Documents whose ids follow each other, those of the first phase first; those without any ids are left out."""
        ends = np.cumsum(lengths).reshape(lengths.shape)
        some = lengths[0] > 0
        return cls(ids, (ends - lengths)[:, some], lengths[:, some])

    def __len__(self) -> int:
        """N, the number of documents."""
        return int(self.lengths.shape[1])

    @overload
    def __getitem__(self, index: int) -> list[NDArray[Any]]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[NDArray[Any]]]: ...

    def __getitem__(self, index: int | slice) -> list[NDArray[Any]] | list[list[NDArray[Any]]]:
        """Return the ids of a document in each phase."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        begins, lengths = self.begins[:, index].tolist(), self.lengths[:, index].tolist()
        return [self.ids[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]


@dataclass(frozen=True)
class Window:
    """T time steps of B rows.

    Attributes:
        inputs: ids [T, B], int32.
        targets: the ids that follow [T, B], int32; NO_TARGET beyond the end of a row.
        starts: true where a document (or a row) starts, so that the state before this step is zero, [T, B].
    """

    inputs: Ids
    targets: Ids
    starts: NDArray[np.bool_]

    @property
    def predictions(self) -> int:
        """Number of targets."""
        return int(np.count_nonzero(self.targets != NO_TARGET))

    def first(self, rows: int) -> Window:
        """Return the first rows, [T, rows]."""
        return Window(self.inputs[:, :rows], self.targets[:, :rows], self.starts[:, :rows])


class Stream:
    """Documents one after the other, each followed by `<end>`.

    Args:
        ids: of all documents.
        begins: where in `ids` those of each document begin, [N].
        lengths: how many each document has, [N].
        targets: the id to predict in place of each of `ids`; None is these themselves.
    """

    def __init__(
        self,
        ids: IdSequence,
        begins: NDArray[np.int64],
        lengths: NDArray[np.int64],
        targets: IdSequence | None = None,
    ) -> None:
        self._ids, self._begins, self._lengths, self._targets = ids, begins, lengths, targets
        # Position of each document's first prediction, and N.
        self._firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + 1)])

    @classmethod
    def joined(cls, documents: Sequence[IdSequence]) -> Stream:
        """The documents with these ids."""
        [ids] = documents if len(documents) == 1 else [np.concatenate([document[:] for document in documents])]
        lengths = np.array([len(document) for document in documents])
        return cls(ids, np.cumsum(lengths) - lengths, lengths)

    def __len__(self) -> int:
        """N, the number of predictions."""
        return int(self._firsts[-1])

    def read(self, begin: int, end: int) -> Window:
        """Read the predictions from `begin` to `end`; the arrays are [end - begin]."""
        # Positions that no document fills are the <end> after each, and the one before the first.
        ids = np.full(end - begin + 1, END, np.int32)
        starts = np.zeros(end - begin, np.bool_)
        before = begin - 1  # position of the target that is the first input
        number = max(0, int(np.searchsorted(self._firsts, before, side="right")) - 1)
        beyond = min(len(self._lengths), int(np.searchsorted(self._firsts, end)))
        firsts = self._firsts[number:beyond]
        # Each document's part of the window: its first position, and how many ids it has.
        begins = np.maximum(firsts, before)
        sizes = np.maximum(0, np.minimum(firsts + self._lengths[number:beyond], end) - begins)
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = np.repeat(self._begins[number:beyond] + begins - firsts, sizes) + within
        filled = np.repeat(begins - before, sizes) + within
        ids[filled] = self._ids.take(places)
        starts[firsts[firsts >= begin] - begin] = True
        targets = ids
        if self._targets is not None:
            targets = ids.copy()
            targets[filled] = self._targets.take(places)
        return Window(ids[:-1], targets[1:], starts)


class Windows(Sequence[Window]):
    """A sequence of windows, which are read from the streams when they are needed.

    Args:
        rows: for each row a stream, and the predictions of it that the row reads, from and to.
        steps: T; windows are shorter if the longest row is.
        local_rows: the rows that the windows have; other processes read the others.
    """

    def __init__(
        self, rows: Sequence[tuple[Stream, int, int]], steps: int, local_rows: slice = slice(None)
    ) -> None:
        self._rows = rows[local_rows]
        self._lengths = np.array([end - begin for _, begin, end in rows])
        self._length = int(self._lengths.max())
        self._steps = min(steps, self._length)
        self._block = -1
        self._read: list[Window] = []

    def __len__(self) -> int:
        return -(-self._length // self._steps)

    def predictions(self, index: int) -> int:
        """Return the number of targets of the window at `index`, in the rows of all processes."""
        return int(np.clip(self._lengths - index * self._steps, 0, self._steps).sum())

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...

    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        """Return the window at an index, its arrays [T, B]."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        block, place = divmod(range(len(self))[index], _BLOCK)
        if block != self._block:
            self._read = list(self._windows(block * _BLOCK, min(len(self), (block + 1) * _BLOCK)))
            self._block = block
        return self._read[place]

    def _windows(self, first: int, last: int) -> Iterator[Window]:
        steps, shape = self._steps, ((last - first) * self._steps, len(self._rows))
        # Steps beyond the end of a row have no target.
        inputs, targets = np.full(shape, END, np.int32), np.full(shape, NO_TARGET, np.int32)
        starts = np.zeros(shape, np.bool_)
        for row, (stream, begin, end) in enumerate(self._rows):
            at, stop = (min(end, begin + k * steps) for k in (first, last))
            part = stream.read(at, stop)
            inputs[: stop - at, row] = part.inputs
            targets[: stop - at, row] = part.targets
            starts[: stop - at, row] = part.starts
        if first == 0:
            # A row that begins inside a document starts with a zero state, too.
            starts[0] = True
        for cut in (slice(begin, begin + steps) for begin in range(0, shape[0], steps)):
            yield Window(inputs[cut], targets[cut], starts[cut])


def epoch(
    documents: RaggedIds | Sequence[Sequence[IdSequence]],
    rows: int,
    steps: int,
    random_seed: int,
    number: int,
    local_rows: slice = slice(None),
    targets: IdSequence | None = None,
) -> Windows:
    """Return the windows of one epoch of training.

    The documents are shuffled, concatenated and cut into `rows` streams of equal length, one for each batch row.
    Every token is read once. The order depends on (random_seed, number) alone.

    Args:
        documents: for each document its ids in each phase it may be cut from; one is drawn.
        rows: B.
        steps: T; windows are shorter if the streams are.
        random_seed: of the run.
        number: of the epoch, from 0.
        local_rows: the rows that the windows have; other processes read the others.
        targets: the id to predict in place of each id of `documents`; None is these themselves.
    """
    generator = np.random.default_rng([random_seed, number])
    order = generator.permutation(len(documents))
    if isinstance(documents, RaggedIds):
        drawn = generator.integers(len(documents.lengths), size=len(documents)), order
        stream = Stream(documents.ids, documents.begins[drawn], documents.lengths[drawn], targets)
    else:
        stream = Stream.joined([documents[i][int(generator.integers(len(documents[i])))] for i in order])
    length = -(-len(stream) // rows)
    begins = (min(row * length, len(stream)) for row in range(rows))
    return Windows([(stream, begin, min(begin + length, len(stream))) for begin in begins], steps, local_rows)


def window_count(documents: RaggedIds | Sequence[Sequence[IdSequence]], rows: int, steps: int) -> int:
    """Return the number of windows of an epoch in which every document is cut from its first character on."""
    if isinstance(documents, RaggedIds):
        predictions = int(documents.lengths[0].sum()) + len(documents)
    else:
        predictions = sum(len(cuts[0]) + 1 for cuts in documents)
    length = -(-predictions // rows)
    return -(-length // min(steps, length))


def evaluation_windows(
    documents: Sequence[IdSequence], steps: int, spans: Sequence[tuple[int, int]] | None = None
) -> Sequence[Window]:
    """Return windows for evaluation, in which each document has a row of its own.

    Args:
        documents: ids of each, [B].
        steps: T.
        spans: for each document the predictions that its row reads, from and to; None reads all of them.
    """
    streams = [Stream.joined([document]) for document in documents]
    spans = spans or [(0, len(stream)) for stream in streams]
    return Windows([(stream, *span) for stream, span in zip(streams, spans, strict=True)], steps)

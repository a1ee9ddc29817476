"""Windows of ids, compared with a plain walk over the documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from grimmgen.text.batches import NO_TARGET, Stream, Window, epoch, evaluation_windows, window_count
from grimmgen.text.vocabulary import END, Ids

# No deadline, so that a busy machine does not fail the test.
no_deadline = settings(deadline=None)
DOCUMENTS = st.lists(st.lists(st.sampled_from([0, 2, 3, 4]), max_size=12), min_size=1, max_size=6)
ROWS, STEPS = st.integers(1, 6), st.integers(1, 7)


def arrays(documents: list[list[int]]) -> list[Ids]:
    return [np.array(document, np.int32) for document in documents]


def one_phase(documents: list[list[int]]) -> list[list[Ids]]:
    """Documents that are always cut from their first character on."""
    return [[document] for document in arrays(documents)]


def predictions(documents: list[list[int]]) -> list[tuple[int, int, bool]]:
    """Return (input, target, start) of every prediction, document after document."""
    steps = []
    last = END
    for document in documents:
        for place, target in enumerate([*document, END]):
            steps.append((last, target, place == 0))
            last = target
    return steps


def column(windows: Sequence[Window], row: int) -> list[tuple[int, int, bool]]:
    """Return (input, target, start) of one row in all windows."""
    return [
        (int(window.inputs[t, row]), int(window.targets[t, row]), bool(window.starts[t, row]))
        for window in windows
        for t in range(len(window.inputs))
    ]


def documents_in(targets: list[int]) -> list[list[int]]:
    documents: list[list[int]] = [[]]
    for target in targets:
        if target == END:
            documents.append([])
        else:
            documents[-1].append(target)
    assert documents.pop() == [], "the last document has its <end>"
    return documents


def order_of(windows: Sequence[Window]) -> list[list[int]]:
    """Return the documents in the order of an epoch: those of the first row, of the second, and so on."""
    rows = range(windows[0].inputs.shape[1])
    return documents_in([target for row in rows for _, target, _ in column(windows, row) if target != NO_TARGET])


@no_deadline
@given(DOCUMENTS, ROWS, STEPS, st.integers(0, 2**63 - 1), st.integers(0, 9))
@example([[]], 1, 1, 0, 0)
@example([[2]], 6, 7, 0, 0)  # fault 21: more rows and steps than there is text
def test_epoch_predicts_every_token_once(
    documents: list[list[int]], rows: int, steps: int, random_seed: int, number: int
) -> None:
    windows = epoch(one_phase(documents), rows, steps, random_seed, number)
    order = order_of(windows)
    assert sorted(order) == sorted(documents)
    stream = predictions(order)
    length = -(-len(stream) // rows)
    for row in range(rows):
        expected = stream[row * length : (row + 1) * length]
        if expected:
            expected[0] = (*expected[0][:2], True)  # the first step of a row starts with a zero state
        read = column(windows, row)
        assert read[: len(expected)] == expected
        padding = [(i, target) for i, target, _ in read[len(expected) :]]
        assert padding == [(END, NO_TARGET)] * len(padding)
        assert not any(start for _, _, start in read[max(1, len(expected)) :])


@no_deadline
@given(DOCUMENTS, ROWS, STEPS)
def test_windows_have_equal_shapes_and_expected_count(documents: list[list[int]], rows: int, steps: int) -> None:
    windows = epoch(one_phase(documents), rows, steps, 1, 2)
    tokens = len(predictions(documents))
    assert len(windows) == window_count(one_phase(documents), rows, steps)
    assert sum(window.predictions for window in windows) == tokens
    assert windows[-1].targets[:, 0].max() != NO_TARGET, "no window is empty"
    shape = (min(steps, -(-tokens // rows)), rows)
    for window in windows:
        assert window.inputs.shape == window.targets.shape == window.starts.shape == shape
        assert [str(a.dtype) for a in (window.inputs, window.targets, window.starts)] == ["int32", "int32", "bool"]


def test_small_epoch_equals_hand_written_windows() -> None:
    [first, second] = epoch(one_phase([[5, 6, 7, 8, 9, 10]]), rows=2, steps=3, random_seed=0, number=0)
    # Row 0 reads <end> 5 6 7, row 1 reads 8 9 10; the rest of the second window is padding.
    assert first.inputs.T.tolist() == [[1, 5, 6], [8, 9, 10]]
    assert first.targets.T.tolist() == [[5, 6, 7], [9, 10, 1]]
    assert first.starts.T.tolist() == [[True, False, False]] * 2
    assert second.inputs.T.tolist() == [[7, 1, 1], [1, 1, 1]]
    assert second.targets.T.tolist() == [[8, -1, -1], [-1, -1, -1]]
    assert not second.starts.any()
    assert (first.predictions, second.predictions) == (6, 1)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    documents = [[i] for i in range(2, 52)]

    def order(random_seed: int, number: int, rows: int = 3, steps: int = 4) -> list[list[int]]:
        return order_of(epoch(one_phase(documents), rows, steps, random_seed, number))

    assert order(0, 0) == order(0, 0, rows=7, steps=1) == order(0, 0, rows=1, steps=1000)
    orders = [order(random_seed, number) for random_seed in (0, 1, 2**63 - 1) for number in (0, 1, 2)]
    assert all(orders.count(one) == 1 for one in orders)
    assert documents not in orders


@no_deadline
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(0, 2**63 - 1), st.integers(0, 9))
def test_epoch_reads_each_document_from_one_phase(phases: list[int], random_seed: int, number: int) -> None:
    # Document i consists of the token i + 2, in phase k of k + 1 of them.
    documents = [arrays([[i + 2] * (k + 1) for k in range(count)]) for i, count in enumerate(phases)]
    drawn = order_of(epoch(documents, 3, 4, random_seed, number))
    assert sorted(document[0] - 2 for document in drawn) == list(range(len(phases)))
    assert all(
        document == [document[0]] * len(document) and len(document) <= phases[document[0] - 2]
        for document in drawn
    )
    # The order does not depend on rows and steps.
    assert drawn == order_of(epoch(documents, 1, 50, random_seed, number))
    # Without a choice of phases, the order is the generator's first permutation, as in a run without --phases.
    if set(phases) == {1}:
        order = np.random.default_rng([random_seed, number]).permutation(len(phases))
        assert [document[0] - 2 for document in drawn] == order.tolist()


def test_phases_are_drawn_uniformly_over_epochs() -> None:
    documents = [arrays([[i] * 3, [i] * 5]) for i in range(2, 22)]
    epochs = [sorted(map(tuple, order_of(epoch(documents, 2, 9, 4, number)))) for number in range(100)]
    lengths = np.array([[len(document) for document in drawn] for drawn in epochs])  # [epochs, documents]
    assert set(lengths.flat) == {3, 5}
    longer = (lengths == 5).mean(axis=0)
    # The share in 100 fair draws is between 0.3 and 0.7 with a probability of 99.99 %.
    assert longer.min() > 0.3
    assert longer.max() < 0.7
    # Phases are drawn independently for each document and epoch.
    assert len({tuple(row) for row in lengths}) == 100
    others = [sorted(map(tuple, order_of(epoch(documents, 2, 9, 5, number)))) for number in range(100)]
    assert all(a != b for a, b in zip(epochs, others, strict=True))


def test_window_count_is_of_the_first_phase() -> None:
    assert window_count([arrays([[2] * 9, [3] * 90]), arrays([[2] * 9])], rows=2, steps=3) == 4


def test_windows_do_not_alias_the_ids() -> None:
    documents = arrays([[5, 6, 7], [8, 9]])
    windows = [*epoch([[document] for document in documents], 2, 2, 0, 0), *evaluation_windows(documents, 2)]
    for window in windows:
        window.inputs[:], window.targets[:] = 77, 77
    assert [document.tolist() for document in documents] == [[5, 6, 7], [8, 9]]


@no_deadline
@given(st.lists(st.lists(st.sampled_from([0, 2, 3]), max_size=5), min_size=1, max_size=4))
def test_any_range_of_a_stream_is_read_correctly(documents: list[list[int]]) -> None:
    stream, expected = Stream.joined(arrays(documents)), predictions(documents)
    assert len(stream) == len(expected)
    for begin in range(len(expected) + 1):
        for end in range(begin, len(expected) + 1):
            part = stream.read(begin, end)
            assert list(zip(part.inputs, part.targets, part.starts, strict=True)) == expected[begin:end]


@no_deadline
@given(DOCUMENTS, STEPS)
@example([[], [2, 3]], 7)
def test_evaluation_windows_have_a_row_per_document(documents: list[list[int]], steps: int) -> None:
    windows = list(evaluation_windows(arrays(documents), steps))
    assert {window.inputs.shape for window in windows} == {
        (min(steps, 1 + max(map(len, documents))), len(documents))
    }
    for row, document in enumerate(documents):
        read = column(windows, row)
        expected = predictions([document])
        assert read == expected + [(END, NO_TARGET, False)] * (len(read) - len(expected))


class CountedReads:
    """Ids that count how many of them were read."""

    def __init__(self, length: int) -> None:
        self.length, self.read = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, cut: slice, /) -> Ids:
        begin, end, _ = cut.indices(self.length)
        self.read += end - begin
        return np.arange(begin + 2, end + 2, dtype=np.int32)

    def take(self, indices: NDArray[np.int64], /) -> Ids:
        self.read += len(indices)
        return (indices + 2).astype(np.int32)


def test_window_is_read_without_those_before_it() -> None:
    document, whole = CountedReads(10**7), CountedReads(10**7)
    windows, late = epoch([[document]], 64, 50, 0, 0), epoch([[whole]], 64, 50, 0, 0)
    assert len(windows) == 3126
    for window, expected in zip(windows[1000:1100], (late[k] for k in range(1000, 1100)), strict=True):
        assert window.inputs.tolist() == expected.inputs.tolist()
        assert (window.targets - window.inputs == 1).all()
    assert windows[1000].inputs[0].tolist() == [row * 156251 + 50_000 + 1 for row in range(64)]
    assert document.read < 4 * 64 * 64 * 51
    with pytest.raises(IndexError):
        windows[3126]


@no_deadline
@given(st.lists(st.sampled_from([0, 2, 3]), min_size=3, max_size=12), STEPS, st.data())
def test_spans_of_a_document_are_predicted_once(document: list[int], steps: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(document)))
    windows = list(evaluation_windows(arrays([document, document]), steps, [(0, cut), (cut, len(document) + 1)]))
    expected = predictions([document])
    expected[cut] = (*expected[cut][:2], True)
    read = [[step for step in column(windows, row) if step[1] != NO_TARGET] for row in (0, 1)]
    assert read == [expected[:cut], expected[cut:]]


@pytest.mark.parametrize(("tokens", "rows", "steps", "windows"), [(1, 1, 50, 1), (100, 10, 5, 2), (101, 10, 5, 3)])
def test_window_count_of_simple_cases(tokens: int, rows: int, steps: int, windows: int) -> None:
    assert window_count([[np.zeros(tokens - 1, np.int32)]], rows, steps) == windows

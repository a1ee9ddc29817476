"""Windows and story starts, held against a plain walk over the stories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grimmgen.text.batches import NO_TARGET, Stream, Window, epoch, together, window_count
from grimmgen.text.vocabulary import END, Ids

# A busy machine is no failure.
patiently = settings(deadline=None)
STORIES = st.lists(st.lists(st.sampled_from([0, 2, 3, 4]), max_size=12), min_size=1, max_size=6)
ROWS, STEPS = st.integers(1, 6), st.integers(1, 7)


def arrays(stories: list[list[int]]) -> list[Ids]:
    return [np.array(story, np.int32) for story in stories]


def cuts(stories: list[list[int]]) -> list[list[Ids]]:
    """Stories that may be cut in one way alone."""
    return [[story] for story in arrays(stories)]


def walked(stories: list[list[int]]) -> list[tuple[int, int, bool]]:
    """(input, target, start) of every prediction, one story after the other."""
    steps = []
    last = END
    for story in stories:
        for place, target in enumerate([*story, END]):
            steps.append((last, target, place == 0))
            last = target
    return steps


def column(windows: Sequence[Window], row: int) -> list[tuple[int, int, bool]]:
    """What a row reads through all windows."""
    return [
        (int(window.inputs[t, row]), int(window.targets[t, row]), bool(window.starts[t, row]))
        for window in windows
        for t in range(len(window.inputs))
    ]


def stories_in(targets: list[int]) -> list[list[int]]:
    stories: list[list[int]] = [[]]
    for target in targets:
        if target == END:
            stories.append([])
        else:
            stories[-1].append(target)
    assert stories.pop() == [], "the last story has its <end>"
    return stories


def told_order(windows: Sequence[Window]) -> list[list[int]]:
    """The stories in the order in which the rows, one below the other, hold them."""
    rows = range(windows[0].inputs.shape[1])
    return stories_in([target for row in rows for _, target, _ in column(windows, row) if target != NO_TARGET])


@patiently
@given(STORIES, ROWS, STEPS, st.integers(0, 2**63 - 1), st.integers(0, 9))
@example([[]], 1, 1, 0, 0)
@example([[2]], 6, 7, 0, 0)  # fault 21: more rows, and longer ones, than there is text
def test_epoch_predicts_every_token_once(
    stories: list[list[int]], rows: int, steps: int, random_seed: int, number: int
) -> None:
    windows = epoch(cuts(stories), rows, steps, random_seed, number)
    order = told_order(windows)
    assert sorted(order) == sorted(stories)
    text = walked(order)
    length = -(-len(text) // rows)
    for row in range(rows):
        mine = text[row * length : (row + 1) * length]
        if mine:
            mine[0] = (*mine[0][:2], True)  # whatever was read before the row, it does not remember
        read = column(windows, row)
        assert read[: len(mine)] == mine
        filler = [(i, target) for i, target, _ in read[len(mine) :]]
        assert filler == [(END, NO_TARGET)] * len(filler)
        assert not any(start for _, _, start in read[max(1, len(mine)) :])


@patiently
@given(STORIES, ROWS, STEPS)
def test_windows_have_equal_shapes_and_expected_count(stories: list[list[int]], rows: int, steps: int) -> None:
    windows = epoch(cuts(stories), rows, steps, 1, 2)
    tokens = len(walked(stories))
    assert len(windows) == window_count(cuts(stories), rows, steps)
    assert sum(window.predictions for window in windows) == tokens
    assert windows[-1].targets[:, 0].max() != NO_TARGET, "no window is empty"
    shape = (min(steps, -(-tokens // rows)), rows)
    for window in windows:
        assert window.inputs.shape == window.targets.shape == window.starts.shape == shape
        assert [str(a.dtype) for a in (window.inputs, window.targets, window.starts)] == ["int32", "int32", "bool"]


def test_small_epoch_equals_hand_written_windows() -> None:
    [one, two] = epoch(cuts([[5, 6, 7, 8, 9, 10]]), rows=2, steps=3, random_seed=0, number=0)
    # Row 0 reads <end> 5 6 7, row 1 goes on with 8 9 10; the last place of row 1 and two steps are filled up.
    assert one.inputs.T.tolist() == [[1, 5, 6], [8, 9, 10]]
    assert one.targets.T.tolist() == [[5, 6, 7], [9, 10, 1]]
    assert one.starts.T.tolist() == [[True, False, False]] * 2
    assert two.inputs.T.tolist() == [[7, 1, 1], [1, 1, 1]]
    assert two.targets.T.tolist() == [[8, -1, -1], [-1, -1, -1]]
    assert not two.starts.any()
    assert (one.predictions, two.predictions) == (6, 1)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    stories = [[i] for i in range(2, 52)]

    def order(random_seed: int, number: int, rows: int = 3, steps: int = 4) -> list[list[int]]:
        return told_order(epoch(cuts(stories), rows, steps, random_seed, number))

    assert order(0, 0) == order(0, 0, rows=7, steps=1) == order(0, 0, rows=1, steps=1000)
    orders = [order(random_seed, number) for random_seed in (0, 1, 2**63 - 1) for number in (0, 1, 2)]
    assert all(orders.count(one) == 1 for one in orders)
    assert stories not in orders


@patiently
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(0, 2**63 - 1), st.integers(0, 9))
def test_epoch_reads_each_document_from_one_phase(ways: list[int], random_seed: int, number: int) -> None:
    # The k-th way of the i-th story is k + 1 times the token i + 2.
    stories = [arrays([[i + 2] * (k + 1) for k in range(count)]) for i, count in enumerate(ways)]
    drawn = told_order(epoch(stories, 3, 4, random_seed, number))
    assert sorted(story[0] - 2 for story in drawn) == list(range(len(ways)))
    assert all(story == [story[0]] * len(story) and len(story) <= ways[story[0] - 2] for story in drawn)
    # Rows and steps have no part in it, nor has what was drawn before.
    assert drawn == told_order(epoch(stories, 1, 50, random_seed, number))
    # Where there is nothing to choose, the order is what the generator gives first: that of a run without phases.
    if set(ways) == {1}:
        order = np.random.default_rng([random_seed, number]).permutation(len(ways))
        assert [story[0] - 2 for story in drawn] == order.tolist()


def test_phases_are_drawn_uniformly_over_epochs() -> None:
    stories = [arrays([[i] * 3, [i] * 5]) for i in range(2, 22)]
    epochs = [sorted(map(tuple, told_order(epoch(stories, 2, 9, 4, number)))) for number in range(100)]
    lengths = np.array([[len(story) for story in drawn] for drawn in epochs])  # [epochs, stories]
    assert set(lengths.flat) == {3, 5}
    longer = (lengths == 5).mean(axis=0)
    # A fair coin stays within 0.2 of a half in 99.99 of 100 rows of a hundred throws.
    assert longer.min() > 0.3
    assert longer.max() < 0.7
    # The stories are drawn apart, and every epoch anew.
    assert len({tuple(row) for row in lengths}) == 100
    others = [sorted(map(tuple, told_order(epoch(stories, 2, 9, 5, number)))) for number in range(100)]
    assert all(a != b for a, b in zip(epochs, others, strict=True))


def test_window_count_is_of_the_first_phase() -> None:
    assert window_count([arrays([[2] * 9, [3] * 90]), arrays([[2] * 9])], rows=2, steps=3) == 4


def test_windows_do_not_alias_the_ids() -> None:
    stories = arrays([[5, 6, 7], [8, 9]])
    windows = [*epoch([[story] for story in stories], 2, 2, 0, 0), *together(stories, 2)]
    for window in windows:
        window.inputs[:], window.targets[:] = 77, 77
    assert [story.tolist() for story in stories] == [[5, 6, 7], [8, 9]]


@patiently
@given(st.lists(st.lists(st.sampled_from([0, 2, 3]), max_size=5), min_size=1, max_size=4))
def test_any_range_of_a_stream_is_read_correctly(stories: list[list[int]]) -> None:
    stream, right = Stream(arrays(stories)), walked(stories)
    assert len(stream) == len(right)
    for begin in range(len(right) + 1):
        for end in range(begin, len(right) + 1):
            part = stream.read(begin, end)
            assert list(zip(part.inputs, part.targets, part.starts, strict=True)) == right[begin:end]


@patiently
@given(STORIES, STEPS)
@example([[], [2, 3]], 7)
def test_evaluation_windows_have_a_row_per_document(stories: list[list[int]], steps: int) -> None:
    windows = list(together(arrays(stories), steps))
    assert {window.inputs.shape for window in windows} == {(min(steps, 1 + max(map(len, stories))), len(stories))}
    for row, story in enumerate(stories):
        read = column(windows, row)
        mine = walked([story])
        assert read == mine + [(END, NO_TARGET, False)] * (len(read) - len(mine))


class Watched:
    """Ids that tell how many of them were read."""

    def __init__(self, length: int) -> None:
        self.length, self.read = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, cut: slice, /) -> Ids:
        begin, end, _ = cut.indices(self.length)
        self.read += end - begin
        return np.arange(begin + 2, end + 2, dtype=np.int32)


def test_window_is_read_without_those_before_it() -> None:
    story, whole = Watched(10**7), Watched(10**7)
    windows, late = epoch([[story]], 64, 50, 0, 0), epoch([[whole]], 64, 50, 0, 0)
    assert len(windows) == 3126
    for window, right in zip(windows[1000:1100], (late[k] for k in range(1000, 1100)), strict=True):
        assert window.inputs.tolist() == right.inputs.tolist()
        assert (window.targets - window.inputs == 1).all()
    assert windows[1000].inputs[0].tolist() == [row * 156251 + 50_000 + 1 for row in range(64)]
    assert story.read < 4 * 64 * 64 * 51
    with pytest.raises(IndexError):
        windows[3126]


@patiently
@given(st.lists(st.sampled_from([0, 2, 3]), min_size=3, max_size=12), STEPS, st.data())
def test_spans_of_a_document_are_predicted_once(story: list[int], steps: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(story)))
    windows = list(together(arrays([story, story]), steps, [(0, cut), (cut, len(story) + 1)]))
    right = walked([story])
    right[cut] = (*right[cut][:2], True)
    read = [[step for step in column(windows, row) if step[1] != NO_TARGET] for row in (0, 1)]
    assert read == [right[:cut], right[cut:]]


@pytest.mark.parametrize(("tokens", "rows", "steps", "windows"), [(1, 1, 50, 1), (100, 10, 5, 2), (101, 10, 5, 3)])
def test_window_count_of_simple_cases(tokens: int, rows: int, steps: int, windows: int) -> None:
    assert window_count([[np.zeros(tokens - 1, np.int32)]], rows, steps) == windows

"""The baseline: its numbers are those worked out by hand and by a plain recursion, and they sum to one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grimmgen.evaluation.baseline import KneserNey, _discounts

UNSEEN_COST = math.log(0x110000)
texts = st.lists(st.text("abé\0", max_size=30), min_size=1, max_size=4)
orders = st.integers(1, 5)


def probabilities(model: KneserNey, text: str) -> list[float]:
    return [math.exp(-cost) for cost in model.costs(text)]


def test_the_numbers_of_a_tiny_text_are_those_worked_out_by_hand() -> None:
    # Bigrams of "aab": ^a aa ab b$, once each. Before a stand ^ and a, before b an a, before $ a b: counts 2, 1, 1
    # of 4; too few for an estimate, D = 1/2, 1. What is kept back, (1/2 + 1/2 + 1) / 4 = 1/2, goes to the four of
    # the uniform distribution: p(a) = 1/4 + 1/8, p(b) = p($) = 1/8 + 1/8, and 1/8 for a character never seen.
    model = KneserNey(["aab"], order=2)
    # p(a|^) = 1/2 + 1/2 p(a); p(a|a) = 1/4 + 1/2 p(a); p(b|a) = 1/4 + 1/2 p(b); p($|b) = 1/2 + 1/2 p($).
    assert probabilities(model, "aab") == pytest.approx([0.6875, 0.4375, 0.375, 0.625])
    # p(z|a) = 1/2 · 1/8, then which of all characters it is; what follows it is the unigram's.
    p = probabilities(model, "az")
    assert p[1:] == pytest.approx([0.0625 / 0x110000, 0.25])
    # p($|a) = 1/2 p($).
    assert probabilities(model, "a")[1] == pytest.approx(0.125)
    # Alone, the unigrams count what there is: a 2, b 1, $ 1.
    assert probabilities(KneserNey(["aab"], order=1), "ab") == pytest.approx([0.375, 0.25, 0.25])


def plainly(stories: list[str], order: int, context: str, symbol: str) -> float:
    """p(symbol | context) from dictionaries, one order after the other; ^ stands before a story, $ at its end."""
    padded = ["^" * (order - 1) + story + "$" for story in stories]
    seen = {
        n: Counter(p[i - n + 1 : i + 1] for p in padded for i in range(order - 1, len(p)))
        for n in range(1, order + 1)
    }
    p = 1 / (len(set("".join(stories))) + 2)
    for n in range(1, order + 1):
        counts: Counter[str] = Counter()
        if n == order:
            counts = seen[n]
        else:
            counts.update(gram[1:] for gram in seen[n + 1])
        having = Counter(counts.values())
        d = [0.0, *_discounts([having[k] for k in range(5)])]
        following = defaultdict(list)
        for gram, count in counts.items():
            following[gram[:-1]].append(count)
        h = ("^" * order + context)[len(context) + order - n + 1 :]
        if h in following:
            total = sum(following[h])
            count = counts[h + symbol]
            kept_back = sum(d[min(c, 3)] for c in following[h])
            p = max(0.0, count - d[min(count, 3)]) / total + kept_back / total * p
    return p


@settings(max_examples=150, deadline=None)
@given(texts, orders, st.text("abéz", max_size=8))
def test_the_numbers_are_those_of_a_plain_recursion(stories: list[str], order: int, text: str) -> None:
    known = set("".join(stories))
    expected = []
    for place, symbol in enumerate(text + "$"):
        unseen = symbol not in known and symbol != "$"
        p = plainly(stories, order, text[:place], symbol)
        expected.append(-math.log(p) + (UNSEEN_COST if unseen else 0.0))
    assert KneserNey(stories, order).costs(text).tolist() == pytest.approx(expected)


@settings(max_examples=150, deadline=None)
@given(texts, orders, st.text("abéz", max_size=8))
def test_the_probabilities_of_all_that_may_follow_sum_to_one(stories: list[str], order: int, context: str) -> None:
    model, place = KneserNey(stories, order), len(context)
    total = probabilities(model, context)[place]
    total += sum(probabilities(model, context + c)[place] for c in set("".join(stories)))
    total += math.exp(UNSEEN_COST - model.costs(context + "中")[place])
    assert total == pytest.approx(1.0)


def test_discounts_are_estimated_where_there_is_enough_and_never_leave_their_range() -> None:
    assert _discounts([0, 40, 20, 10, 5]) == (0.5, 1.25, 2.0)
    assert _discounts([9, 40, 20, 10, 0]) == (0.5, 1.0, 1.5)
    assert _discounts([9, 2, 1, 90, 5]) == (0.5, 1.0, 1.5)


def test_a_longer_memory_foretells_better_and_scores_add_up() -> None:
    story = "the king went to the forest and found geese. " * 20
    texts = [("a", "the king went."), ("b", "the fox!")]
    short, long = (KneserNey([story], order).evaluate(texts) for order in (1, 5))
    assert long.total.bits_per_character < 0.7 * short.total.bits_per_character
    assert [(s.name, s.characters, s.predictions, s.unknown) for s in long.documents] == [
        ("a", 14, 15, 0),
        ("b", 8, 9, 2),
    ]
    assert long.documents[0].nats == pytest.approx(KneserNey([story], 5).costs(texts[0][1]).sum())

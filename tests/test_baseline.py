"""The Kneser-Ney baseline against a hand-computed example and a plain recursive implementation."""

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


def test_probabilities_match_a_hand_computed_example() -> None:
    # The bigrams of "aab" are ^a aa ab b$, once each. Distinct predecessors: 2 of a (^ a), 1 of b (a), 1 of $ (b),
    # 4 in all. They are too few to estimate the discounts, so D = 1/2, 1. The discounted mass,
    # (1/2 + 1/2 + 1) / 4 = 1/2, is divided among the four symbols of the uniform distribution:
    # p(a) = 1/4 + 1/8, p(b) = p($) = 1/8 + 1/8, and 1/8 for an unseen character.
    model = KneserNey(["aab"], order=2)
    # p(a|^) = 1/2 + 1/2 p(a); p(a|a) = 1/4 + 1/2 p(a); p(b|a) = 1/4 + 1/2 p(b); p($|b) = 1/2 + 1/2 p($).
    assert probabilities(model, "aab") == pytest.approx([0.6875, 0.4375, 0.375, 0.625])
    # p(z|a) = 1/2 · 1/8, divided by the number of code points; after z the unigram probability is used.
    p = probabilities(model, "az")
    assert p[1:] == pytest.approx([0.0625 / 0x110000, 0.25])
    # p($|a) = 1/2 p($).
    assert probabilities(model, "a")[1] == pytest.approx(0.125)
    # At the highest order, unigrams are counted by occurrence: a 2, b 1, $ 1.
    assert probabilities(KneserNey(["aab"], order=1), "ab") == pytest.approx([0.375, 0.25, 0.25])


def recursive(documents: list[str], order: int, context: str, symbol: str) -> float:
    """p(symbol | context) computed with dictionaries; ^ pads the start of a document, $ is its end."""
    padded = ["^" * (order - 1) + document + "$" for document in documents]
    occurrences = {
        n: Counter(p[i - n + 1 : i + 1] for p in padded for i in range(order - 1, len(p)))
        for n in range(1, order + 1)
    }
    p = 1 / (len(set("".join(documents))) + 2)
    for n in range(1, order + 1):
        counts: Counter[str] = Counter()
        if n == order:
            counts = occurrences[n]
        else:
            counts.update(gram[1:] for gram in occurrences[n + 1])
        counts_of_counts = Counter(counts.values())
        d = [0.0, *_discounts([counts_of_counts[k] for k in range(5)])]
        following = defaultdict(list)
        for gram, count in counts.items():
            following[gram[:-1]].append(count)
        h = ("^" * order + context)[len(context) + order - n + 1 :]
        if h in following:
            total = sum(following[h])
            count = counts[h + symbol]
            discounted = sum(d[min(c, 3)] for c in following[h])
            p = max(0.0, count - d[min(count, 3)]) / total + discounted / total * p
    return p


@settings(max_examples=150, deadline=None)
@given(texts, orders, st.text("abéz", max_size=8))
def test_costs_match_a_recursive_implementation(documents: list[str], order: int, text: str) -> None:
    alphabet = set("".join(documents))
    expected = []
    for position, symbol in enumerate(text + "$"):
        unseen = symbol not in alphabet and symbol != "$"
        p = recursive(documents, order, text[:position], symbol)
        expected.append(-math.log(p) + (UNSEEN_COST if unseen else 0.0))
    assert KneserNey(documents, order).costs(text).tolist() == pytest.approx(expected)


@settings(max_examples=150, deadline=None)
@given(texts, orders, st.text("abéz", max_size=8))
def test_probabilities_of_all_symbols_sum_to_one(documents: list[str], order: int, context: str) -> None:
    model, position = KneserNey(documents, order), len(context)
    total = probabilities(model, context)[position]
    total += sum(probabilities(model, context + c)[position] for c in set("".join(documents)))
    total += math.exp(UNSEEN_COST - model.costs(context + "中")[position])
    assert total == pytest.approx(1.0)


def test_discounts_fall_back_to_constants() -> None:
    assert _discounts([0, 40, 20, 10, 5]) == (0.5, 1.25, 2.0)
    assert _discounts([9, 40, 20, 10, 0]) == (0.5, 1.0, 1.5)
    assert _discounts([9, 2, 1, 90, 5]) == (0.5, 1.0, 1.5)


def test_higher_order_has_fewer_bits_per_character() -> None:
    text = "the king went to the forest and found geese. " * 20
    texts = [("a", "the king went."), ("b", "the fox!")]
    short, long = (KneserNey([text], order).evaluate(texts) for order in (1, 5))
    assert long.total.bits_per_character < 0.7 * short.total.bits_per_character
    assert [(s.name, s.characters, s.predictions, s.unknown) for s in long.documents] == [
        ("a", 14, 15, 0),
        ("b", 8, 9, 2),
    ]
    assert long.documents[0].nats == pytest.approx(KneserNey([text], 5).costs(texts[0][1]).sum())

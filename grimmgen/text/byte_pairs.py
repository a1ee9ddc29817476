"""Byte-pair encoding over characters: which neighbours become one token (Sennrich et al. 2016, arXiv 1508.07909).

Training begins with the characters of all pre-tokens and repeats: the most frequent concatenation of two neighbours
becomes a token, and these neighbours are joined wherever they occur. Encoding joins in the same order. A token is
identified by its text: how it was joined does not matter.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping

# Characters of a token, at most.
LONGEST = 16


def learn(counted: Mapping[str, int], most: int, min_count: int) -> list[str]:
    """Learn the tokens of more than one character, in the order in which they are joined.

    Args:
        counted: occurrences of each pre-token.
        most: number of tokens to learn; fewer if no other is frequent enough.
        min_count: occurrences that a token needs when it is learnt.
    """
    ranks: dict[str, int] = {}
    words = [(list(pretoken), count) for pretoken, count in counted.items() if len(pretoken) > 1]
    pairs, places = Counter[str](), defaultdict[str, set[int]](set)
    for number, (parts, count) in enumerate(words):
        for pair in _pairs(parts):
            pairs[pair] += count
            places[pair].add(number)
    # The most frequent first, ties by code point. Counts change later: an entry that is out of date is put back.
    queue = [(-count, pair) for pair, count in pairs.items() if count >= min_count]
    heapq.heapify(queue)
    while queue and len(ranks) < most:
        stale, pair = heapq.heappop(queue)
        count = pairs[pair]
        if count != -stale:
            if count >= min_count:
                heapq.heappush(queue, (-count, pair))
            continue
        ranks[pair] = len(ranks)
        changed = set[str]()
        for number in places.pop(pair):
            parts, weight = words[number]
            before = _pairs(parts)
            if not join(parts, ranks):
                continue
            for old in before:
                pairs[old] -= weight
            for new in _pairs(parts):
                pairs[new] += weight
                places[new].add(number)
                changed.add(new)
        for new in changed:
            if pairs[new] >= min_count:
                heapq.heappush(queue, (-pairs[new], new))
    return list(ranks)


def join(parts: list[str], ranks: Mapping[str, int]) -> bool:
    """Join neighbours in a list of parts until none are a token: those of the lowest rank first, then from the left.

    Args:
        parts: of one pre-token; changed.
        ranks: the place of each token in the order in which they were learnt.

    Returns:
        Whether any were joined.
    """
    joined = False
    while True:
        first, place = None, 0
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            if rank is not None and (first is None or rank < first):
                first, place = rank, i
        if first is None:
            return joined
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        joined = True


def _pairs(parts: list[str]) -> list[str]:
    """The concatenations of neighbours that are not too long to be a token."""
    return [pair for left, right in itertools.pairwise(parts) if len(pair := left + right) <= LONGEST]

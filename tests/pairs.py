"""Choose a few of all combinations of parameters, such that every two values still meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any


def pairs(*parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations, one value of each parameter, in which every two values of different parameters meet.

    Where three values have to meet, give two of their parameters as one (`itertools.product`). The choice is greedy
    and always the same: a combination is taken if no other has more pairs that have not met.
    """
    values = [list(parameter) for parameter in parameters]
    unmet = {
        combination: {*itertools.combinations(enumerate(combination), 2)}
        for combination in itertools.product(*(range(len(options)) for options in values))
    }
    chosen = []
    while unmet:
        best = max(unmet, key=lambda combination: len(unmet[combination]))
        met = unmet[best].copy()
        chosen.append(tuple(options[k] for options, k in zip(values, best, strict=True)))
        unmet = {combination: rest for combination, others in unmet.items() if (rest := others - met)}
    return chosen

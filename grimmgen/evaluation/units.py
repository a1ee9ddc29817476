"""Units whose state follows a feature of the text, by correlation, with a control for chance.

The control is the same correlation with the feature shifted in a circle against the states, at every distance but
small ones: it keeps how slowly both of them vary, and breaks what they have to do with each other. At each shift the
largest correlation of any unit counts, which corrects for the number of units (Westfall and Young 1993, the
distribution of the maximum); the threshold and the p-values are corrected for the number of features (Bonferroni).

    N  tokens    U  units    F  features
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.network.backends.numpy import Floats, Ids

# The corrected probability with which any unit would pass for any feature by chance.
SIGNIFICANCE = 0.05
# Shifts by less than this share of the tokens are not used: there the feature may still resemble itself.
_LEAST_SHIFT = 0.02
# Units whose Fourier transforms are in memory at a time.
_BLOCK = 64


@dataclass(frozen=True)
class Correlation:
    """The units that follow one feature best.

    Attributes:
        feature: its index.
        units: their indices, the best first.
        coefficients: Pearson's correlation of each, from -1 to 1.
        beyond_token: the correlation of the first one, after the mean of each token's occurrences was subtracted from
            both its state and the feature: what the last token alone does not explain.
        chance: the absolute correlation that the best of all units has to exceed.
        p: the corrected probability of as large a correlation as the first one's by chance.
    """

    feature: int
    units: tuple[int, ...]
    coefficients: tuple[float, ...]
    beyond_token: float
    chance: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the best unit follows the feature more than chance explains."""
        return abs(self.coefficients[0]) > self.chance


def correlate(
    states: Floats,
    features: NDArray[np.float64],
    ids: Ids,
    count: int = 5,
    notify_done: Callable[[int], None] | None = None,
) -> list[Correlation]:
    """Correlate all units with all features.

    Args:
        states: of each unit after each token, [N, U].
        ids: of the tokens, [N].
        features: [F, N]; those that are constant are left out, and not counted in the correction.
        count: number of units to return for each.
        notify_done: called now and then with the number of units done so far.

    Returns:
        One for each feature that is not constant, in descending order of the ratio of correlation to chance; none if
        the text is too short for a control.
    """
    N = _smooth(len(states))
    least = max(1, round(_LEAST_SHIFT * N))
    varying = [int(i) for i in np.flatnonzero(np.ptp(features[:, :N], axis=1) > 0)] if N else []
    # Fewer shifts than this cannot show significance.
    if not varying or N - 2 * least < len(varying) / SIGNIFICANCE:
        return []
    spectra = [np.fft.rfft(_standardised(features[i, :N])).conj().astype(np.complex64) for i in varying]
    coefficients = np.empty((len(varying), states.shape[1]), np.float32)
    largest = np.zeros((len(varying), N), np.float32)  # of any unit, at each shift
    for begin in range(0, states.shape[1], _BLOCK):
        block = slice(begin, begin + _BLOCK)
        transformed = np.fft.rfft(_standardised(states[:N, block].T)).astype(np.complex64)
        for row, spectrum in enumerate(spectra):
            at_shifts = np.fft.irfft(transformed * spectrum, N)  # [units, N]
            coefficients[row, block] = at_shifts[:, 0]
            np.maximum(largest[row], np.abs(at_shifts).max(axis=0), out=largest[row])
        if notify_done:
            notify_done(min(begin + _BLOCK, states.shape[1]))
    found = []
    for row, feature in enumerate(varying):
        best = np.argsort(-np.abs(coefficients[row]), kind="stable")[:count]
        by_chance = largest[row, least : N - least]
        chance = float(np.quantile(by_chance, 1 - SIGNIFICANCE / len(varying)))
        reached = np.count_nonzero(by_chance >= abs(coefficients[row, best[0]]))
        p = min(1.0, len(varying) * (1 + int(reached)) / (1 + len(by_chance)))
        pair = np.stack([states[:N, best[0]], features[feature, :N]])
        beyond, followed = _standardised(_without_means(pair, ids[:N]))
        values = tuple(float(value) for value in coefficients[row, best])
        found.append(Correlation(feature, tuple(map(int, best)), values, float(beyond @ followed), chance, p))
    return sorted(found, key=lambda one: abs(one.coefficients[0]) / max(one.chance, 1e-9), reverse=True)


def passage(
    state: NDArray[np.floating], feature: NDArray[np.float64], lengths: Sequence[int], characters: int
) -> tuple[slice, float]:
    """The passage of a text in which a state and a feature vary together most.

    Args:
        state: of one unit after each token, [N].
        feature: [N].
        lengths: characters of each token, [N].
        characters: of the passage, at least 1.

    Returns:
        The tokens of the passage, all if the text is shorter, and the absolute covariance within it.
    """
    ends = np.cumsum(lengths)
    begins = np.flatnonzero(ends[-1] - (ends - lengths) >= characters)
    begins = begins if len(begins) else np.zeros(1, np.int64)
    stops = np.searchsorted(ends, (ends - lengths)[begins] + characters, side="right")
    stops = np.minimum(np.maximum(stops, begins + 1), len(ends))

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        found: NDArray[np.float64] = (sums[stops] - sums[begins]) / (stops - begins)
        return found

    # Centred, so that the difference below loses no digits.
    a, b = state.astype(np.float64) - state.mean(dtype=np.float64), feature - feature.mean()
    covariances = np.abs(means(a * b) - means(a) * means(b))
    best = int(covariances.argmax())
    return slice(int(begins[best]), int(stops[best])), float(covariances[best])


def _without_means(values: NDArray[np.float64], ids: Ids) -> NDArray[np.float64]:
    """Values, [k, N], minus the mean of the values at the same token."""
    counts = np.maximum(1, np.bincount(ids))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.stack([row - (np.bincount(ids, row) / counts)[ids] for row in values])


def _standardised(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The values with mean 0 and norm 1 along the last axis; zeros for constant ones."""
    # The weights of an untrusted checkpoint may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        centred = values.astype(np.float64) - values.mean(axis=-1, keepdims=True, dtype=np.float64)
        norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    # Rounding leaves something of a constant. The comparison is false for nan.
    least = 1e-6 * np.sqrt(values.shape[-1]) * np.abs(values).max(axis=-1, keepdims=True)
    known = (norm > np.maximum(1e-30, least)) & np.isfinite(norm)
    found: NDArray[np.float64] = np.where(known, centred / np.where(known, norm, 1.0), 0.0)
    return found


def _smooth(limit: int) -> int:
    """The largest product of powers of 2, 3 and 5 up to a number: for fast Fourier transforms.

    >>> _smooth(1000), _smooth(1001), _smooth(7), _smooth(0)
    (1000, 1000, 6, 0)
    """
    best, three = 0, 1
    while three <= limit:
        five = three
        while five <= limit:
            best = max(best, five << (limit // five).bit_length() - 1)
            five *= 5
        three *= 3
    return best

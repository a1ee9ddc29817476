"""The gate of a mixture: a small network that weighs several probabilities of a token by what is known before it.

    w = softmax(tanh(x U + u) W + b),   p = Σ w_e p_e

It is fitted on the validation set, which neither the network nor the counts were trained on. A normal prior keeps it
near one constant weight for each expert where the set is small.

    N  tokens    F  features    D  units of the gate    E  experts: network, counts, …
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNITS = 16
# A batch is small enough for BLAS to multiply it in one thread: threads triple the time of such products.
STEPS, BATCH = 400, 256
_RATE = 0.01
# Precision of the prior, relative to that of one token.
_PRIOR = 1.0


@dataclass(frozen=True)
class Gate:
    """A fitted gate.

    Attributes:
        feature_weight: U, [F, D].
        feature_bias: u, [D].
        expert_weight: W, [D, E].
        expert_bias: b, [E].
    """

    feature_weight: NDArray[Any]
    feature_bias: NDArray[Any]
    expert_weight: NDArray[Any]
    expert_bias: NDArray[Any]

    def log_weights(self, features: Floats) -> Floats:
        """The natural logarithms of the experts' weights, [N, E], for features [N, F]."""
        y = np.tanh(features @ self.feature_weight + self.feature_bias) @ self.expert_weight + self.expert_bias
        y -= y.max(axis=1, keepdims=True)
        log_w: Floats = y - np.log(np.exp(y).sum(axis=1, keepdims=True))
        return log_w

    def nats(self, features: Floats, log_p: Floats) -> Floats:
        """The negative log-likelihood of each token under the mixture, [N].

        Args:
            features: known before each token, [N, F].
            log_p: of each token under each expert, [N, E].
        """
        nats: Floats = -np.logaddexp.reduce(self.log_weights(features) + log_p, axis=1)
        return nats

    @classmethod
    def fit(cls, features: Floats, log_p: Floats, steps: int = STEPS) -> Gate:
        """Fit a gate by Adam; the same arguments give the same gate.

        Args:
            features: known before each token, [N, F].
            log_p: of each token under each expert, [N, E].
            steps: of Adam.
        """
        mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-3
        x = (features - mean) / deviation
        random = np.random.default_rng(0)
        (N, F), E = x.shape, log_p.shape[1]
        scale = 1 / np.sqrt(F)
        parameters = [random.normal(0, scale, (F, UNITS)), np.zeros(UNITS), np.zeros((UNITS, E)), np.zeros(E)]
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
        # The last bias has no prior: a small set settles the constant weights.
        priors = [_PRIOR / N] * 3 + [0.0]
        for step in range(steps):
            batch = random.integers(N, size=min(N, BATCH))
            gradients = _gradients(parameters, x[batch], log_p[batch])
            rate = _RATE * (1 - step / steps)
            for p, g, prior, (m, v) in zip(parameters, gradients, priors, moments, strict=True):
                g += prior * p
                m += 0.1 * (g - m)
                v += 0.01 * (g * g - v)
                p -= rate * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.99 ** (step + 1))) + 1e-8)
        U, u, W, b = parameters
        U = U / deviation[:, None]
        return cls(*(part.astype(np.float32) for part in (U, u - mean @ U, W, b)))


def _gradients(parameters: list[Floats], x: Floats, log_p: Floats) -> list[Floats]:
    """The gradients of the mean negative log-likelihood of a batch by the parameters."""
    U, u, W, b = parameters
    h = np.tanh(x @ U + u)  # (1)
    y = h @ W + b  # (2)
    w = np.exp(y - np.logaddexp.reduce(y, axis=1, keepdims=True))  # (3)
    joint = np.log(w) + log_p
    posterior = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))  # (4)
    d_y = (w - posterior) / len(x)  # (4), (3)
    d_W, d_b = h.T @ d_y, d_y.sum(axis=0)  # (2)
    d_h = (d_y @ W.T) * (1 - h * h)  # (2), (1)
    return [x.T @ d_h, d_h.sum(axis=0), d_W, d_b]  # (1)

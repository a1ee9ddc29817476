"""The mixture of a network with counts of its training set, and with those of the document that is evaluated.

Where text is scarce, a network remembers less of it than counts do; its mixture with them predicts better than either.
The weights of the mixture follow from how sure the network is, and how often the contexts before the token
have occurred (`grimmgen.counts.gate`).

    N  tokens    K  longest context in tokens    V  vocabulary size
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grimmgen.counts.document import DocumentCounts
from grimmgen.counts.gate import Gate
from grimmgen.counts.kneser_ney import CountModel
from grimmgen.text.vocabulary import END

Floats = NDArray[np.float64]

# Tokens that are looked up together.
_AT_ONCE = 1 << 17


class TokenScores(NamedTuple):
    """What a network says of the tokens of a document, its `<end>` included, [N] each.

    Attributes:
        nats: the negative log-likelihood of the token.
        entropy: of the network's distribution, in nats.
        largest: the logarithm of the probability of the most probable token.
    """

    nats: Floats
    entropy: Floats
    largest: Floats


@dataclass(frozen=True)
class Mixture:
    """Counts with the gates that mix them with a network.

    Attributes:
        counts: of the training set.
        gate: for network and counts.
        dynamic_gate: for network, counts, and the network with the counts of the document so far.
    """

    counts: CountModel
    gate: Gate
    dynamic_gate: Gate

    @classmethod
    def fit(cls, counts: CountModel, documents: Sequence[NDArray[Any]], scores: Sequence[TokenScores]) -> Mixture:
        """Fit the gates.

        Args:
            counts: of the training set.
            documents: the ids of the validation set.
            scores: the network's of each document.
        """
        features, log_p, own_features, own_log_p = _Experts.of(counts, documents, scores)
        return cls(
            counts,
            Gate.fit(features, log_p),
            Gate.fit(np.hstack([features, own_features]), np.hstack([log_p, own_log_p])),
        )

    def nats(
        self,
        documents: Sequence[NDArray[Any]],
        scores: Sequence[TokenScores],
        dynamic: bool = False,
        weight: float | None = None,
    ) -> Floats:
        """The negative log-likelihood of each token under the mixture, those of all documents in a row, [N].

        Args:
            documents: the ids of each.
            scores: of the network for each, `<end>` included.
            dynamic: whether counts of the document so far take part.
            weight: of the counts of the training set, constant; None is the gate's.
        """
        groups = (slice(*bounds) for bounds in _groups([*map(len, documents)]))
        return np.concatenate([self._nats(documents[g], scores[g], dynamic, weight) for g in groups])

    def _nats(
        self,
        documents: Sequence[NDArray[Any]],
        scores: Sequence[TokenScores],
        dynamic: bool,
        weight: float | None,
    ) -> Floats:
        features, log_p, own_features, own_log_p = _Experts.of(self.counts, documents, scores)
        if weight is not None:
            network = own_log_p[:, 0] if dynamic else log_p[:, 0]
            return -_mixed(network, log_p[:, 1], weight)
        if dynamic:
            return self.dynamic_gate.nats(np.hstack([features, own_features]), np.hstack([log_p, own_log_p]))
        return self.gate.nats(features, log_p)

    def log_probabilities(self, history: Sequence[int], log_p: Floats, weight: float | None = None) -> Floats:
        """The log-probabilities of the next token, [V].

        Args:
            history: the tokens before it; only the last K matter.
            log_p: of the network, [V].
            weight: of the counts, constant; None is the gate's.
        """
        p, occurrences, backoff = self.counts.distribution(history)
        if weight is None:
            levels = self.counts.index.longest + 1
            missing = levels - len(occurrences)
            features = _features(
                np.array([-np.dot(np.exp(log_p), np.maximum(log_p, -1e3))]),
                np.array([log_p.max()]),
                np.array([*occurrences, *[0] * missing])[:, None],
                np.array([*backoff, *[1.0] * missing])[:, None],
            )
            weight = float(np.exp(self.gate.log_weights(features)[0, 1]))
        mixed: Floats = np.log((1 - weight) * np.exp(log_p) + weight * p)
        return mixed


class _Experts(NamedTuple):
    """What the gates mix for the tokens of a document: features and log-probabilities, [N, …].

    Attributes:
        features: of the gate.
        log_p: of network and counts.
        own_features: more features for the dynamic gate.
        own_log_p: one more expert, the network with the counts of the document so far.
    """

    features: Floats
    log_p: Floats
    own_features: Floats
    own_log_p: Floats

    @classmethod
    def of(cls, counts: CountModel, documents: Sequence[NDArray[Any]], scores: Sequence[TokenScores]) -> _Experts:
        ids = [np.concatenate([[END], document, [END]]).astype(np.int64) for document in documents]
        sizes = np.array([*map(len, ids)])
        begins = np.repeat(np.cumsum(sizes) - sizes, sizes)
        targets = begins != np.arange(len(begins))
        found = counts.predictions(np.concatenate(ids), begins)
        own = [DocumentCounts.of(document[1:], counts.index.longest) for document in ids]
        nats, entropy, largest = (np.concatenate(parts) for parts in zip(*scores, strict=True))
        return cls(
            _features(entropy, largest, found.occurrences[:, targets], found.backoff[:, targets]),
            np.stack([-nats, np.log(found.p[targets])], axis=1),
            np.log1p(np.concatenate([one.contexts for one in own], axis=1)).T,
            np.concatenate([c.log_probabilities(-s.nats) for c, s in zip(own, scores, strict=True)])[:, None],
        )


def _groups(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of documents that are looked up together: as many tokens as bound the memory, or one document."""
    begin = tokens = 0
    for number, size in enumerate(sizes):
        if number > begin and tokens + size > _AT_ONCE:
            yield begin, number
            begin, tokens = number, 0
        tokens += size
    yield begin, len(sizes)


def _features(entropy: Floats, largest: Floats, occurrences: NDArray[Any], backoff: Floats) -> Floats:
    """The features of the gate, [N, 2 + K + K + 1], for occurrences and backoff [K + 1, N]."""
    # A hostile index may have no backoff.
    return np.vstack([entropy, largest, np.log1p(occurrences[1:]), np.log(np.maximum(backoff, 1e-9))]).T


def _mixed(network: Floats, counts: Floats, weight: float) -> Floats:
    """The log-probabilities of the mixture with a constant weight of the counts."""
    parts = [log_p + math.log(w) for log_p, w in ((network, 1 - weight), (counts, weight)) if w]
    mixed: Floats = np.logaddexp.reduce(parts, axis=0)
    return mixed

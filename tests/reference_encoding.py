"""The vocabulary in plain Python, for whole texts: the oracle for `grimmgen.text`."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from grimmgen.configuration import Newlines


def normalise(text: str, lower: bool, newlines: Newlines = "keep") -> str:
    """Normalise line ends, case and composed characters."""
    text = re.sub("\r\n?|\n", "\n" if newlines == "keep" else " ", text)
    return unicodedata.normalize("NFC", text.lower() if lower else text)


def cut(text: str, n: int) -> list[str]:
    """Cut a text into n-grams that do not overlap; the last one may be shorter."""
    return [text[i : i + n] for i in range(0, len(text), n)]


class ReferenceVocabulary:
    """See `grimmgen.text.ngrams.NgramVocabulary.build` for the arguments.

    Attributes:
        kept: n-gram → occurrences, for those with an id, in the order of the ids.
        ids: n-gram → id.
        alphabet: characters of the texts, sorted.
        unknown_characters: occurrences inside the n-grams without an id; "" is an empty place.
    """

    def __init__(
        self,
        texts: Iterable[str],
        n: int,
        min_count: int,
        lower: bool = True,
        newlines: Newlines = "keep",
        phases: bool = False,
    ) -> None:
        self.n, self.lower, self.newlines = n, lower, newlines
        texts = list(texts)
        counts = Counter(
            gram for text in texts for phase in range(n if phases else 1) for gram in self.cut(text, phase)
        )
        ranked = sorted(counts, key=lambda gram: (-counts[gram], [ord(c) for c in gram]))
        self.kept = {gram: counts[gram] for gram in ranked if counts[gram] >= min_count}
        self.ids = {gram: i for i, gram in enumerate(self.kept, start=2)}
        self.alphabet = sorted({c for text in texts for c in self.normalise(text)})
        self.unknown_characters = Counter(
            place
            for gram in counts
            if gram not in self.kept
            for place in self.places(gram)
            for _ in range(counts[gram])
        )

    def normalise(self, text: str) -> str:
        """Normalise a text as the training set."""
        return normalise(text, self.lower, self.newlines)

    def cut(self, text: str, phase: int = 0) -> list[str]:
        """The n-grams of the normalised text from its `phase`-th character on."""
        return cut(self.normalise(text)[phase:], self.n)

    def places(self, gram: str) -> list[str]:
        """The n places of an n-gram, "" for an empty one."""
        return [*gram, *[""] * (self.n - len(gram))]

    def encode(self, text: str, phase: int = 0) -> list[int]:
        """The ids of a text; 0 is unknown."""
        return [self.ids.get(gram, 0) for gram in self.cut(text, phase)]

    def cost(self, gram: str) -> float:
        """The spelling cost of an n-gram in nats."""
        known = {"", *self.alphabet}
        total = sum(self.unknown_characters.values()) + len(self.alphabet) + 2
        counts = self.unknown_characters
        p = [(counts[c] + 1 if c in known else 1 / 0x110000) / total for c in self.places(gram)]
        return 0.0 if gram in self.ids else -math.log(math.prod(p))

"""What the units of a model do while it reads: their states and gates after each token. Needs NumPy only.

The state of a unit is the last of its cell's states: the cell state c of an LSTM, the hidden state h of a GRU. Units
and layers are counted from 0, as in the names and columns of the weights.

    N  tokens of all texts    L  layers    G  gates    B  batch rows    H  hidden units
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.network.backends.numpy import Floats, Ids, TracingStepper
from grimmgen.network.cells import cells
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.text.normalisation import normalise
from grimmgen.text.vocabulary import END, Vocabulary

# A gate below the first or above the second is saturated (Karpathy, Johnson and Li 2015, section 4.2).
CLOSED, OPEN = 0.1, 0.9
# Tokens that are recorded at most, and numbers that their states are at most (256 MB).
_MOST_TOKENS = 1 << 16
_MOST_STATES = 1 << 26
# Texts that are read side by side: more would wait for the longest of them.
_ROWS = 16
# No tokenizer has more characters in an average token.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class TokenisedText:
    """A text as a model reads it.

    Attributes:
        name: of the document.
        tokens: their texts, which together are the normalised text.
        ids: of the tokens.
        spelling: nats for spelling out the characters of each token that is unknown, [tokens].
        cased: the normalised text before it was converted to lower case, or as it is if that changed its length.
    """

    name: str
    tokens: tuple[str, ...]
    ids: Ids
    spelling: NDArray[np.float64]
    cased: str

    @property
    def text(self) -> str:
        """The normalised text."""
        return "".join(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """The characters of each token."""
        return [len(token) for token in self.tokens]

    @classmethod
    def of(cls, name: str, text: str, vocabulary: Vocabulary) -> TokenisedText:
        """Tokenise a text, which is not normalised."""
        ids, spelling, _ = vocabulary.encode_with_costs(text)
        cased, text = normalise(text, vocabulary.normalisation._replace(lower=False)), vocabulary.normalise(text)
        tokens = tuple(vocabulary.cut(text, ids))
        return cls(name, tokens, ids.astype(np.int64), spelling, cased if len(cased) == len(text) else text)

    def first(self, count: int) -> TokenisedText:
        """The text up to this many tokens."""
        tokens = self.tokens[:count]
        cased = self.cased[: sum(map(len, tokens))]
        return TokenisedText(self.name, tokens, self.ids[:count], self.spelling[:count], cased)


def token_limit(configuration: Configuration) -> int:
    """The tokens that `record` reads at most, so that the states of all units take 256 MB."""
    return min(_MOST_TOKENS, _MOST_STATES // (configuration.layers * configuration.hidden))


def tokenise(
    texts: Iterable[tuple[str, Iterable[str]]], vocabulary: Vocabulary, limit: int
) -> list[TokenisedText]:
    """Tokenise (name, pieces of the text) pairs up to a number of tokens; empty texts are left out."""
    found, left = list[TokenisedText](), limit
    for name, pieces in texts:
        if left <= 0:
            break
        read, characters = [], 0
        for piece in pieces:
            read.append(piece)
            if (characters := characters + len(piece)) > _CHARACTERS_PER_TOKEN * left:
                break
        tokenised = TokenisedText.of(name, "".join(read), vocabulary).first(left)
        left -= len(tokenised.ids)
        if len(tokenised.ids):
            found.append(tokenised)
    return found


@dataclass(frozen=True)
class Activations:
    """The activations of all units over some texts.

    Attributes:
        states: of each unit after each token, [N, L·H], layer by layer; text by text.
        closed: the share of tokens at which each gate was below CLOSED, [L, G, H]; NaN for the candidate.
        open: likewise above OPEN.
    """

    states: Floats
    closed: NDArray[np.float64]
    open: NDArray[np.float64]


def record(
    checkpoint: Checkpoint, texts: Sequence[TokenisedText], notify_done: Callable[[int], None] | None = None
) -> Activations:
    """Read each text from a zero state, and record all units.

    Args:
        checkpoint: the model.
        texts: at least one; together of at most `token_limit` tokens.
        notify_done: called now and then with the number of tokens read so far.
    """
    configuration = checkpoint.configuration
    cell, layers, hidden = cells()[configuration.cell], configuration.layers, configuration.hidden
    lengths = np.array([len(text.ids) for text in texts])
    firsts = np.cumsum(lengths) - lengths
    states = np.empty((int(lengths.sum()), layers * hidden), np.float32)
    closed, opened = np.zeros((2, layers, len(cell.gates), hidden))
    order, done = np.argsort(-lengths, kind="stable"), 0
    for rows in np.split(order, range(_ROWS, len(order), _ROWS)):
        for step, (of_units, gates) in enumerate(_read(checkpoint, [texts[row].ids for row in rows])):
            # The longest text is first: those that have ended are the last rows.
            active = int((lengths[rows] > step).sum())
            states[firsts[rows[:active]] + step] = of_units[:, :active].swapaxes(0, 1).reshape(active, -1)
            closed += (gates[:, :, :active] < CLOSED).sum(axis=2)
            opened += (gates[:, :, :active] > OPEN).sum(axis=2)
            done += active
            if notify_done and step % 64 == 0:
                notify_done(done)
    candidate = cell.gates.index(cell.candidate)
    closed[:, candidate] = opened[:, candidate] = np.nan
    return Activations(states, closed / len(states), opened / len(states))


@dataclass(frozen=True)
class UnitTrace:
    """One unit over a text.

    Attributes:
        tokens: the texts of the tokens.
        states: after each token, [N].
        gates: the values of each gate, and of the candidate, by name, [N].
    """

    tokens: tuple[str, ...]
    states: Floats
    gates: dict[str, Floats]


def trace_unit(checkpoint: Checkpoint, text: TokenisedText, layer: int, unit: int) -> UnitTrace:
    """Read a text from a zero state, and record one unit.

    Args:
        checkpoint: the model.
        text: at least one token.
        layer: of the unit, from 0.
        unit: its number in the layer, from 0.
    """
    names = cells()[checkpoint.configuration.cell].gates
    read = [(states[layer, 0, unit], gates[layer, :, 0, unit]) for states, gates in _read(checkpoint, [text.ids])]
    gates = np.array([of_gates for _, of_gates in read], np.float32).T
    return UnitTrace(
        text.tokens, np.array([state for state, _ in read], np.float32), dict(zip(names, gates, strict=True))
    )


def _read(checkpoint: Checkpoint, rows: Sequence[Ids]) -> Iterator[tuple[Floats, Floats]]:
    """Read rows of ids side by side, the longest first, each as a document.

    Yields:
        After each token the states of all units, [L, B, H], which are overwritten at the next one, and their gates,
        [L, G, B, H]. A row that has ended goes on with `<end>`.
    """
    configuration = checkpoint.configuration
    count = len(cells()[configuration.cell].states)
    state = np.zeros((count, configuration.layers, len(rows), configuration.hidden), np.float32)
    stepper = TracingStepper(configuration, checkpoint.weights, state)
    ids = np.full((len(rows[0]), len(rows)), END, np.int64)
    for row, of_row in enumerate(rows):
        ids[: len(of_row), row] = of_row
    stepper.trace(np.full(len(rows), END))
    for at_step in ids:
        gates = stepper.trace(at_step)
        yield state[-1], gates

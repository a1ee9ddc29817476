"""What a run is made of: the options of training, and the shapes of the weights that follow from them.

Everything here is checked when it is made, so that what holds a configuration can trust it. Neither PyTorch
nor NumPy: help texts show the defaults, and the registry shows configurations, without waiting for them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from grimmgen.errors import IntegrityError, UsageError

Initialisation = Literal["auto", "normal", "xavier"]

GATES = 4
LONGEST_NGRAM = 8
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Configuration:
    """The options of a run; the defaults are the tutorial's.

    Attributes:
        hidden: H, units a layer (tutorial: num_nodes).
        layers: L, cells on top of each other.
        dropout: probability with which an output is dropped, for the next layer and the next step alike.
        initialisation: of the weights: `normal` (truncated, σ 0.02: the tutorial's), `xavier` (Glorot), or
            `auto`: normal for one layer, xavier for more, as the tutorial advises.
        batch_size: B, rows read side by side.
        unroll: T, steps of truncated back-propagation through time (tutorial: num_unrollings).
        learning_rate: of Adam, before any decay.
        clip: largest global norm of the gradient.
        decay_factor: what the rate is multiplied with when validation perplexity stops falling.
        decay_patience: evaluations without a new minimum until that happens (tutorial: decay_threshold).
        epochs: passes over the training stories, at most.
        budget: seconds of training, at most; None is no limit.
        reset_state: whether the state is put to zero where a story starts.
        random_seed: everything random follows from it.
        ngram: characters of a token.
        min_count: occurrences that a token needs in the training stories.
        lower: whether text is folded to lower case.

    Raises:
        UsageError: a value is out of range.
    """

    hidden: int = 128
    layers: int = 1
    dropout: float = 0.2
    initialisation: Initialisation = "auto"
    batch_size: int = 64
    unroll: int = 50
    learning_rate: float = 0.001
    clip: float = 5.0
    decay_factor: float = 0.5
    decay_patience: int = 5
    epochs: int = 180
    budget: float | None = None
    reset_state: bool = True
    random_seed: int = 0
    ngram: int = 2
    min_count: int = 10
    lower: bool = True

    def __post_init__(self) -> None:
        _within("--hidden", self.hidden, 1, 1 << 15)
        _within("--layers", self.layers, 1, 64)
        _within("--dropout", self.dropout, 0.0, 0.99)
        _within("--batch-size", self.batch_size, 1, _LARGEST)
        _within("--unroll", self.unroll, 1, _LARGEST)
        _within("--lr", self.learning_rate, 1e-12, 1e6)
        _within("--clip", self.clip, 1e-12, 1e12)
        _within("--decay-factor", self.decay_factor, 1e-6, 1.0)
        _within("--decay-patience", self.decay_patience, 1, _LARGEST)
        _within("--epochs", self.epochs, 1, 1 << 30)
        if self.budget is not None:
            _within("--budget", self.budget, 1e-3, 1e9, " (as in 30s, 10m, 1h)")
        _within("--random-seed", self.random_seed, 0, 2**63 - 1)
        _within("--ngram", self.ngram, 1, LONGEST_NGRAM)
        _within("--min-count", self.min_count, 1, 1 << 40)
        if self.initialisation not in get_args(Initialisation):
            raise UsageError(
                f"--init {self.initialisation[:80]!r} is not known",
                f"give {' or '.join(get_args(Initialisation))}",
            )

    def to_json(self) -> dict[str, Any]:
        """A value that `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Configuration:
        """The configuration that `to_json` wrote.

        Raises:
            IntegrityError: an option is missing, unknown, of the wrong type or out of range.
        """
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or set(value) != set(fields):
            raise IntegrityError("the configuration has other options than this grimmgen", "train anew")
        for name, default in fields.items():
            right = (float, int, type(None)) if name == "budget" else type(default)
            if isinstance(default, float) and type(value[name]) is int:
                right = int
            if not isinstance(value[name], right) or (
                isinstance(value[name], bool) and not isinstance(default, bool)
            ):
                raise IntegrityError(f"the configuration's {name} has the wrong type", "train anew")
        try:
            return cls(**value)
        except UsageError as error:
            raise IntegrityError(f"the configuration cannot be: {error.what}", "train anew") from error


def weight_shapes(configuration: Configuration, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every weight of a model.

    With H hidden units and V n-grams: the first layer's input weight is [V, 4H], one row an n-gram; the
    further layers' is [H, 4H]. The gates stand side by side in the order i, f, c, o.
    """
    gates = GATES * configuration.hidden
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(configuration.layers):
        inputs = vocabulary_size if layer == 0 else configuration.hidden
        shapes[f"layers.{layer}.input_weight"] = (inputs, gates)
        shapes[f"layers.{layer}.recurrent_weight"] = (configuration.hidden, gates)
        shapes[f"layers.{layer}.bias"] = (gates,)
    shapes["output.weight"] = (configuration.hidden, vocabulary_size)
    shapes["output.bias"] = (vocabulary_size,)
    return shapes


def parameter_count(configuration: Configuration, vocabulary_size: int) -> int:
    """How many numbers a model learns."""
    return sum(math.prod(shape) for shape in weight_shapes(configuration, vocabulary_size).values())


def _within(option: str, value: float, low: float, high: float, form: str = "") -> None:
    # Written so that a value that is not a number is outside.
    if not low <= value <= high:
        raise UsageError(
            f"{option} {_shown(value)} is out of range", f"give {_shown(low)} to {_shown(high)}{form}"
        )


def _shown(number: float) -> str:
    # A whole number in full, as it was typed; hundreds of digits help nobody, and have no form as a float.
    if isinstance(number, float):
        return f"{number:g}"
    return str(number) if -(10**40) < number < 10**40 else "(a number of more than 40 digits)"

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

Cell = Literal["lstm", "peephole", "gru", "mogrifier"]
Initialisation = Literal["auto", "normal", "xavier"]
DropoutMode = Literal["tutorial", "output", "locked"]
Schedule = Literal["plateau", "cosine"]
Newlines = Literal["keep", "space"]
# What a product of matrices rounds its factors to; `auto` is not decided yet.
Products = Literal["fp32", "bf16"]
Precision = Literal["auto", Products]

# How many gates stand side by side in the columns of a cell's weights.
GATES: dict[Cell, int] = {"lstm": 4, "peephole": 4, "gru": 3, "mogrifier": 4}
LONGEST_NGRAM = 8
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Configuration:
    """The options of a run; the defaults are the tutorial's.

    Attributes:
        cell: `lstm` (the tutorial's), `peephole`, `gru`, or `mogrifier`.
        rounds: how often input and state modulate each other in a mogrifier, before each step.
        hidden: H, units a layer (tutorial: num_nodes).
        layers: L, cells on top of each other.
        embedding: E, numbers a token is looked up as before the first layer; 0 looks the gates up directly, as
            one-hot tokens do in the tutorial.
        tied: whether the softmax layer uses the embedding once more, through a projection of H to E.
        dropout: probability with which an output is dropped.
        dropout_mode: `tutorial`: anew at each step, for the next layer and the next step alike; `output`: anew
            at each step, for the next layer alone; `locked`: for the next layer alone, one mask a window.
        input_dropout: probability with which a number of an n-gram's embedding is dropped, one mask a window.
        weight_drop: probability with which a recurrent weight is dropped, one mask a window.
        initialisation: of the weights: `normal` (truncated, σ 0.02: the tutorial's), `xavier` (Glorot), or
            `auto`: normal for one layer, xavier for more, as the tutorial advises.
        batch_size: B, rows read side by side.
        unroll: T, steps of truncated back-propagation through time (tutorial: num_unrollings).
        learning_rate: of Adam, before any decay.
        clip: largest global norm of the gradient.
        weight_decay: what a weight is pulled to zero by, decoupled from the gradient, times the rate.
        schedule: of the rate: `plateau` lowers it when validation perplexity stops falling, `cosine` warms it up
            and lowers it smoothly to the end of `epochs` or `budget`.
        warmup: share of the training over which `cosine` raises the rate from zero.
        decay_factor: what the rate is multiplied with when validation perplexity stops falling.
        decay_patience: evaluations without a new minimum until that happens (tutorial: decay_threshold).
        precision: of the matrix products in training: `fp32`, or `bf16`, which rounds the factors to bfloat16 and
            adds up in float32, faster where the processor can do that; `auto` leaves the choice to
            `kernels.resolve_precision`. Weights, states, gates, loss and optimiser are float32 in any case, and
            so is all of evaluation and generation.
        epochs: passes over the training stories, at most.
        budget: seconds of training, at most; None is no limit.
        reset_state: whether the state is put to zero where a story starts.
        random_seed: everything random follows from it.
        ngram: characters of a token.
        min_count: occurrences that a token needs in the training stories.
        lower: whether text is folded to lower case.
        newlines: whether line ends are kept, or read as spaces.
        phases: whether a story may be cut in all n ways, one drawn each epoch: one text, n times the patterns.

    Raises:
        UsageError: a value is out of range.
    """

    cell: Cell = "lstm"
    rounds: int = 5
    hidden: int = 128
    layers: int = 1
    embedding: int = 0
    tied: bool = False
    dropout: float = 0.2
    dropout_mode: DropoutMode = "tutorial"
    input_dropout: float = 0.0
    weight_drop: float = 0.0
    initialisation: Initialisation = "auto"
    batch_size: int = 64
    unroll: int = 50
    learning_rate: float = 0.001
    clip: float = 5.0
    weight_decay: float = 0.0
    schedule: Schedule = "plateau"
    warmup: float = 0.02
    decay_factor: float = 0.5
    decay_patience: int = 5
    precision: Precision = "auto"
    epochs: int = 180
    budget: float | None = None
    reset_state: bool = True
    random_seed: int = 0
    ngram: int = 2
    min_count: int = 10
    lower: bool = True
    newlines: Newlines = "keep"
    phases: bool = False

    def __post_init__(self) -> None:
        _among("--cell", self.cell, get_args(Cell))
        _within("--rounds", self.rounds, 0, 20)
        _within("--hidden", self.hidden, 1, 1 << 15)
        _within("--layers", self.layers, 1, 64)
        _within("--embedding", self.embedding, 0, 1 << 15)
        _within("--dropout", self.dropout, 0.0, 0.99)
        _within("--input-dropout", self.input_dropout, 0.0, 0.99)
        _within("--weight-drop", self.weight_drop, 0.0, 0.99)
        _within("--weight-decay", self.weight_decay, 0.0, 1e3)
        _within("--warmup", self.warmup, 0.0, 1.0)
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
        _among("--init", self.initialisation, get_args(Initialisation))
        _among("--dropout-mode", self.dropout_mode, get_args(DropoutMode))
        _among("--schedule", self.schedule, get_args(Schedule))
        _among("--precision", self.precision, get_args(Precision))
        _among("--newlines", self.newlines, get_args(Newlines))
        if self.cell == "mogrifier" and not self.embedding:
            raise UsageError(
                "--cell mogrifier needs an embedding to modulate", "give --embedding, as in --embedding 256"
            )
        if self.tied and not self.embedding:
            raise UsageError(
                "--tied needs an embedding to use once more", "give --embedding, as in --embedding 256"
            )
        if self.input_dropout and not self.embedding:
            raise UsageError(
                "--input-dropout needs an embedding to drop from", "give --embedding, as in --embedding 256"
            )

    def departures(self) -> dict[str, Any]:
        """The options that are not the tutorial's."""
        defaults = Configuration().to_json()
        return {name: value for name, value in self.to_json().items() if value != defaults[name]}

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


_STRONG: dict[str, Any] = {
    "hidden": 512,
    "embedding": 256,
    "tied": True,
    "initialisation": "xavier",
    "dropout": 0.5,
    "dropout_mode": "output",
    "input_dropout": 0.1,
    "learning_rate": 0.008,
    "clip": 1.0,
    "schedule": "cosine",
    "phases": True,
    "epochs": 40,
}

# What the departures from the tutorial add up to, by purpose; README has what each is good for.
PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "quick": {
        "hidden": 256,
        "initialisation": "xavier",
        "dropout": 0.3,
        "dropout_mode": "output",
        "learning_rate": 0.008,
        "clip": 1.0,
        "batch_size": 32,
        "schedule": "cosine",
        "phases": True,
        "epochs": 10,
    },
    "strong": _STRONG,
    "large": {
        **_STRONG,
        "hidden": 1024,
        "embedding": 384,
        "dropout": 0.6,
        "learning_rate": 0.006,
        "epochs": 50,
    },
}


def layer_shapes(configuration: Configuration, inputs: int) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every weight of one layer of cells that reads vectors of so many numbers.

    With H hidden units and G gates, which stand side by side in the columns: the input weight [inputs, GH], the
    recurrent weight [H, GH], the bias [GH], and what the cell has besides.
    """
    H, rounds = configuration.hidden, configuration.rounds
    gates = GATES[configuration.cell] * H
    shapes: dict[str, tuple[int, ...]] = {
        "input_weight": (inputs, gates),
        "recurrent_weight": (H, gates),
        "bias": (gates,),
    }
    match configuration.cell:
        case "peephole":
            shapes["peephole"] = (3, H)
        case "gru":
            shapes["recurrent_bias"] = (H,)
        case "mogrifier":
            shapes["q"] = (-(-rounds // 2), H, inputs)
            shapes["r"] = (rounds // 2, inputs, H)
        case "lstm":
            pass
    return shapes


def weight_shapes(configuration: Configuration, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every weight of a model.

    With H hidden units, V n-grams and an embedding of E, the first layer reads one-hot n-grams (V numbers) or the
    embedding [V, E], the further ones H numbers. The softmax layer has a weight [H, V], or, tied, a projection
    [H, E] to the embedding.
    """
    H, E, V = configuration.hidden, configuration.embedding, vocabulary_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, E)} if E else {}
    for layer in range(configuration.layers):
        of_layer = layer_shapes(configuration, (E or V) if layer == 0 else H)
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    if configuration.tied:
        shapes["output.projection"] = (H, E)
    else:
        shapes["output.weight"] = (H, V)
    shapes["output.bias"] = (V,)
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


def _among(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value[:80]!r} is not known", f"give {' or '.join(known)}")

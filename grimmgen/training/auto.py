"""`--preset auto`: the options that suit a text, a budget and the speed of the machine.

Two numbers decide: the characters of the training set, and the work that the training can do, which is its budget
times the speed of the machine. They select a row of a table of measured runs, `RECOMMENDED`: the last one wherever the
work suffices for it, else the nearest. The other rows come from `benchmarks/auto.py`; its record,
`benchmarks/auto.jsonl`, says which runs stand behind them, and `benchmarks/README.md` those behind the last one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from grimmgen.configuration import OPTIONS, PRESETS, UNLIMITED_EPOCHS, Configuration, base_options, merge_options
from grimmgen.evaluation.static import encode_documents_for_evaluation, evaluate, load_network
from grimmgen.network.model import LanguageModel, choose_device
from grimmgen.network.optimiser import AdamW
from grimmgen.network.precision import choose_precision
from grimmgen.network.shapes import weight_shapes
from grimmgen.network.train_step import TrainStep
from grimmgen.text.batches import Window
from grimmgen.text.corpus import Document, marked_pieces, size_of
from grimmgen.text.documents import END
from grimmgen.training.distributed import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    import torch

    from grimmgen.runs.registry import TrainedModel

# Characters of the training set that are looked at, to know its kind.
_SAMPLE = 1 << 20
# Documents with fewer characters in the mean are names, words and the like.
_SHORT_DOCUMENT = 40
# A script with more characters than this writes most words with one or two of them.
_LARGE_ALPHABET = 500
# In seconds: the speed is measured for so long, and a training without a budget is planned as if it had this one.
_MEASURED, _PLANNED = 0.3, 600.0
# Tokens of the training set that a model is tried on before training starts from it, and of a part of them.
_READ_BY_BASE, _PART = 8192, 128


class Recommended(NamedTuple):
    """A row of the table: what was best for so much text and work.

    Attributes:
        characters: of the training set.
        work: floating-point operations of the training; see `operations_per_token`.
        epochs: after which validation no longer improves.
        options: besides those of the preset `auto`.
    """

    characters: float
    work: float
    epochs: int
    options: Mapping[str, Any]


RECOMMENDED = (
    Recommended(1e4, 0.2e12, 60, {"hidden": 128, "batch_size": 8, "learning_rate": 0.004, "dropout": 0.5}),
    Recommended(1e5, 0.8e12, 16, {"hidden": 128, "batch_size": 8, "learning_rate": 0.006, "dropout": 0.5}),
    Recommended(1e6, 0.8e12, 20, {"hidden": 128, "batch_size": 8, "learning_rate": 0.006, "dropout": 0.0}),
    Recommended(1e6, 2.5e12, 20, {"hidden": 192, "batch_size": 8, "learning_rate": 0.006, "dropout": 0.1}),
    Recommended(1e6, 6e12, 20, {"hidden": 320, "batch_size": 8, "learning_rate": 0.005, "dropout": 0.1}),
    Recommended(1e6, 30e12, 30, PRESETS["strong"]),
)
# The last row is the best for any text, if the work suffices for so many epochs and so large a product of epochs and
# updates (benchmarks/README.md).
_STRONG, _STRONG_EPOCHS, _STRONG_PRODUCT = Configuration(**PRESETS["strong"]), 4, 5500


@dataclass(frozen=True)
class TextFacts:
    """What the choice depends on in a training set.

    Attributes:
        characters: of all documents, estimated from the first million.
        alphabet: different characters of these.
        document: characters of a document, in the mean.
    """

    characters: float
    alphabet: int
    document: float

    @classmethod
    def of(cls, documents: Sequence[Document]) -> TextFacts:
        """Look at the beginning of a training set."""
        characters, size, seen = 0, 0, set[str]()
        for piece in marked_pieces(documents):
            characters += len(piece)
            size += len(piece.encode("utf-8", "surrogatepass"))
            seen |= {*piece}
            if characters >= _SAMPLE:
                break
        total = characters if characters < _SAMPLE else characters * size_of(documents) / size
        return cls(max(1.0, total), len(seen - {END}), total / max(1, len(documents)))


class Choice(NamedTuple):
    """The options of a training, and why they were chosen, in one line."""

    configuration: Configuration
    reason: str


def choose(
    chosen: Mapping[str, Any],
    text: TextFacts,
    speed: float,
    base: Configuration | None = None,
    bits_per_character: float = math.inf,
) -> Choice:
    """Choose the options of a training that the user has not chosen.

    Args:
        chosen: the options that the user chose, by the names of their fields.
        text: about the training set.
        speed: floating-point operations of training that the machine does in a second.
        base: that of the model that training starts from, which keeps its architecture and its tokens.
        bits_per_character: that this model needs for the text.

    Raises:
        UsageError: a value is out of range, or an option contradicts the base.
    """
    budget = chosen.get("budget")
    work = speed * (_PLANNED if budget is None else budget)
    row = min(RECOMMENDED, key=lambda row: _distance(row, text.characters, work))
    if _suffices_for_strong(text.characters, work):
        row = RECOMMENDED[-1]
    # A text that is larger than that of the row needs as many updates, not as many epochs.
    most = max(1, round(row.epochs * min(1.0, row.characters / text.characters)))
    values = merge_options({**PRESETS["auto"], **row.options, "epochs": most, **_of_kind(text)}, chosen)
    if base is not None:
        values = base_options(base, values, chosen)
    made = Configuration(**values)
    epochs = float(made.epochs)
    if budget is not None:
        affordable = _epochs(made, text.characters, work)
        epochs = min(epochs, affordable)
        if "epochs" not in chosen and affordable < most / 2:
            # The rate anneals to the end of the budget.
            made = dataclasses.replace(made, epochs=UNLIMITED_EPOCHS)
    largest = round(_largest_dropout(epochs), 2)
    limited = {
        name: min(getattr(made, name), largest) for name in ("dropout", "weight_drop") if name not in chosen
    }
    made = dataclasses.replace(made, **limited)
    if base is not None and "learning_rate" not in chosen:
        rate = made.learning_rate * _share_of_rate(bits_per_character)
        made = dataclasses.replace(made, learning_rate=float(f"{rate:.2g}"))
    limit = "no time limit" if budget is None else OPTIONS["budget"].typed(budget)
    reason = (
        f"for {_magnitude(text.characters)} characters and {limit} at {speed / 1e9:.0f} GFLOP/s (about {epochs:.2g}"
        f" epochs): {made.tokens}, {made.hidden} units, {made.batch_size} rows, rate {made.learning_rate:.2g}, dropout"
        f" {made.dropout:g}"
    )
    return Choice(made, reason)


def adapt(
    chosen: Mapping[str, Any],
    documents: Sequence[Document],
    device: str = "auto",
    group: ProcessGroup = SINGLE_PROCESS,
    base: TrainedModel | None = None,
) -> Choice:
    """Look at a training set and at the speed of the machine, and `choose`.

    Args:
        chosen: as for `choose`.
        documents: the training set.
        device: `auto`, `cpu` or `cuda`.
        group: the processes that train together.
        base: the model that training starts from.

    Raises:
        UsageError: there is no such device, or as for `choose`.
    """
    # All at the same time, since they share the processor.
    place = group.place(choose_device(device))
    speed = measure_speed(place)

    def make() -> tuple[dict[str, Any], str]:
        facts, total = TextFacts.of(documents), group.size * speed
        if base is None:
            choice = choose(chosen, facts, total)
        else:
            vocabulary = base.checkpoint.vocabulary
            encoded = encode_documents_for_evaluation(documents, vocabulary, _READ_BY_BASE, exact=True)
            # In short parts, which are read side by side.
            bits = evaluate(load_network(base, place), encoded, part=_PART).total.bits_per_character
            choice = choose(chosen, facts, total, base.checkpoint.configuration, bits)
        return choice.configuration.to_json(), choice.reason

    made, reason = group.broadcast(make)
    return Choice(Configuration.from_json(made), reason)


def measure_speed(device: torch.device) -> float:
    """Measure the floating-point operations that training does in a second, with a network of medium size."""
    V, configuration = 1000, Configuration(hidden=256, batch_size=16, unroll=50)
    model = LanguageModel(configuration, V).to(device)
    model.initialise()
    optimiser = AdamW(model.named_parameters())
    choice = choose_precision(configuration, V, device)
    step = TrainStep(model, optimiser, choice.precision, kernels=choice.kernels)
    ids = np.random.default_rng(0).integers(2, V, (configuration.unroll + 1, configuration.batch_size), np.int32)
    window = Window(ids[:-1], ids[1:], np.zeros(ids[1:].shape, np.bool_))
    state = model.zero_state(configuration.batch_size)
    step(window, state, 1e-3, 0)  # includes what is done only once
    updates, seconds, began = 0, 0.0, time.monotonic()
    while seconds < _MEASURED or not updates:
        step(window, state, 1e-3, 0)
        updates, seconds = updates + 1, time.monotonic() - began
    return updates * ids[1:].size * operations_per_token(configuration, V) / seconds


def operations_per_token(configuration: Configuration, vocabulary_size: int = 1000) -> float:
    """The floating-point operations of the matrix products for a token: two forward and four backward per weight."""
    shapes = weight_shapes(configuration, vocabulary_size)
    # The product of embedding and input weight is computed once per window.
    shapes.pop("embedding" if configuration.embedding else "layers.0.input_weight")
    return 6.0 * sum(math.prod(shape) for shape in shapes.values())


def _epochs(configuration: Configuration, characters: float, work: float) -> float:
    """The epochs of a training that can do so much work."""
    return work / operations_per_token(configuration) / (characters / _characters_per_token(configuration))


def _suffices_for_strong(characters: float, work: float) -> bool:
    """Whether the preset `strong` can be trained long enough to be better than a smaller network."""
    epochs = _epochs(_STRONG, characters, work)
    updates = epochs * characters / _characters_per_token(_STRONG) / (_STRONG.batch_size * _STRONG.unroll)
    return epochs >= _STRONG_EPOCHS and epochs * updates >= _STRONG_PRODUCT


def _largest_dropout(epochs: float) -> float:
    """A text that is read a few times is not learnt by heart: dropout then only slows the training down."""
    return min(0.9, max(0.0, (epochs - 3.5) / 10))


def _share_of_rate(bits_per_character: float) -> float:
    """A model that predicts the text well already is only disturbed by large steps."""
    return min(1.0, max(0.08, (bits_per_character - 1.2) / 4))


def _of_kind(text: TextFacts) -> dict[str, Any]:
    """The tokens of texts that the table does not have: names and the like, and scripts of thousands of characters."""
    if text.document < _SHORT_DOCUMENT or text.alphabet > _LARGE_ALPHABET:
        return {"tokens": "char"}
    return {}


def _characters_per_token(configuration: Configuration) -> float:
    """The length of a token, in the mean of the texts measured."""
    kind, size = configuration.tokenization
    return float(size) if kind == "ngram" else 2.5


def _distance(row: Recommended, characters: float, work: float) -> float:
    """How far a row is from a training, in decades of text and work; a text counts more than the work."""
    return 2.0 * abs(math.log10(row.characters / characters)) + abs(math.log10(row.work / work))


def _magnitude(number: float) -> str:
    """A number in two digits.

    >>> _magnitude(1.234e6), _magnitude(1834)
    ('1.2 million', '1,800')
    """
    for unit, name in ((1e9, " billion"), (1e6, " million")):
        if number >= unit:
            return f"{float(f'{number / unit:.2g}'):g}{name}"
    return f"{float(f'{number:.2g}'):,.0f}"

"""Show what units, gates and memory do in a text: `eval --cells`; and a text by a unit's state: `eval --unit`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from grimmgen.cli import console, heatmap, options, page
from grimmgen.cli.page import Piece, Scale

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from grimmgen.configuration import Configuration
    from grimmgen.evaluation.activations import Activations, TokenisedText, UnitTrace
    from grimmgen.evaluation.context import ContextLoss
    from grimmgen.evaluation.surprisal import TokenSurprisal
    from grimmgen.evaluation.units import Correlation
    from grimmgen.runs.registry import TrainedModel
    from grimmgen.text.corpus import Document

# Passages that are shown, and the characters of each on a terminal and on a page.
_PASSAGES = 3
_CHARACTERS, _CHARACTERS_OF_PAGE = 240, 1200
# Bits per character that make no difference.
_NO_DIFFERENCE = 0.01
# Blue below the mean, orange above it; lightness is monotonic on either side.
SCALE = Scale(
    "s",
    (-1.5, -0.75, -0.25, 0.25, 0.75, 1.5),
    ("<-1.5", "<-0.75", "<-0.25", "mean", "≥0.25", "≥0.75", "≥1.5"),
    "standard deviations",
    light=(
        ("#2166ac", "#ffffff"),
        ("#7fb8da", "#111111"),
        ("#d8e9f3", "#111111"),
        ("#ffffff", "#111111"),
        ("#fee6cf", "#111111"),
        ("#f5a55f", "#111111"),
        ("#b35806", "#ffffff"),
    ),
    dark=(
        ("#87d7ff", "#000000"),
        ("#00afff", "#000000"),
        ("#005f87", "#ffffff"),
        ("#262626", "#d0d0d0"),
        ("#870000", "#eeeeee"),
        ("#d75f00", "#000000"),
        ("#ffd787", "#000000"),
    ),
    blank=3,
)


class Unit(NamedTuple):
    """A unit; the layer and its number in the layer are counted from 0."""

    layer: int
    number: int

    @classmethod
    def parse(cls, text: str, configuration: Configuration) -> Unit:
        """Read `UNIT` or `LAYER:UNIT`.

        Raises:
            UsageError: the model has no such unit.
        """
        from grimmgen.errors import UsageError

        match = re.fullmatch(r"(?:([0-9]{1,9}):)?([0-9]{1,9})", text)
        unit = cls(int(match[1] or 0), int(match[2])) if match else None
        layers, hidden = configuration.layers, configuration.hidden
        if unit is None or unit.layer >= layers or unit.number >= hidden:
            form = f"0 to {hidden - 1}" if layers == 1 else f"0:0 to {layers - 1}:{hidden - 1} (LAYER:UNIT)"
            raise UsageError(f"--unit {text!r}: the model has no such unit", f"give {form}")
        return unit

    def name(self, configuration: Configuration) -> str:
        """As `parse` reads it."""
        return f"{self.layer}:{self.number}" if configuration.layers > 1 else str(self.number)


# --- eval --cells --------------------------------------------------------------------------------------------


class _Report(NamedTuple):
    """All that `--cells` shows.

    Attributes:
        name: of the model.
        of_part: which part of the run's texts was read, with a space; empty for files.
        texts: that were read.
        features: of each token, [F, N].
        bits: bits per character with the whole context.
    """

    name: str
    of_part: str
    configuration: Configuration
    texts: list[TokenisedText]
    activations: Activations
    features: NDArray[np.float64]
    correlations: list[Correlation]
    bits: float
    contexts: list[ContextLoss]

    def unit(self, index: int) -> Unit:
        """The unit of an index in the activations."""
        return Unit(*divmod(index, self.configuration.hidden))


class _Table(NamedTuple):
    title: str
    columns: list[str]
    rows: list[list[str]]
    dispensable: tuple[str, ...] = ()


class _Passage(NamedTuple):
    title: str
    unit: Unit
    pieces: list[Piece]


def show_cells(
    model: TrainedModel,
    documents: Sequence[Document],
    part: options.Part,
    device: torch.device,
    target: Path | None,
    json: bool,
    quiet: bool,
) -> None:
    """Print the units that follow a feature of the texts, the gates and the memory, or write them to an HTML file.

    Args:
        model: of a run or a checkpoint file.
        documents: to read; if empty, a part of the run's split.
        part: that part.
        device: for the losses; states are computed on the CPU.
        target: the HTML file; None prints to standard output.
        json: print a JSON document in place of the tables.
        quiet: print no progress and no hints.

    Raises:
        UsageError: there are no documents, and the model is a checkpoint file.
        GrimmgenError: there is no text, or the file cannot be written.
    """
    from grimmgen.evaluation.comparison import documents_of
    from grimmgen.io import files

    output = None if target is None else files.output_path(target)
    read, of_part = (documents, "") if documents else (documents_of(model, part), f"{part} ")
    report = _measure(model, read, of_part, device, quiet or json)
    if output is not None:
        files.write_atomically(output, _page_of_report(report).encode("utf-8", "backslashreplace"))
    if json:
        console.document({"run": model.name, "split": None if documents else part, **_to_json(report)})
    elif target is None:
        _print_report(report, quiet)
    elif not quiet:
        console.note(f"written to {target}")


def _measure(
    model: TrainedModel, documents: Sequence[Document], of_part: str, device: torch.device, quiet: bool
) -> _Report:
    import numpy as np

    from grimmgen.errors import GrimmgenError
    from grimmgen.evaluation.activations import record, token_limit, tokenise
    from grimmgen.evaluation.context import context_losses
    from grimmgen.evaluation.features import token_features
    from grimmgen.evaluation.static import load_network
    from grimmgen.evaluation.units import correlate

    checkpoint = model.checkpoint
    configuration, vocabulary = checkpoint.configuration, checkpoint.vocabulary
    texts = tokenise(((d.name, d.pieces()) for d in documents), vocabulary, token_limit(configuration))
    if not texts:
        raise GrimmgenError("there is no text to evaluate", "give a file that is not empty")
    features = np.concatenate([token_features(text.text, text.cased, text.lengths) for text in texts], axis=1)
    ids = np.concatenate([text.ids for text in texts])
    with console.Bars(quiet) as progress:

        def bar(label: str, total: int) -> Callable[[int], None]:
            number = progress.add(label, total)
            return lambda done: progress.update(number, done, info="", short="")

        activations = record(checkpoint, texts, bar("tokens", len(ids)))
        correlations = correlate(
            activations.states, features, ids, notify_done=bar("units", activations.states.shape[1])
        )
        bits, contexts = context_losses(load_network(model, device), texts)
    return _Report(model.name, of_part, configuration, texts, activations, features, correlations, bits, contexts)


def _print_report(report: _Report, quiet: bool) -> None:
    for table in _tables(report):
        right = [column for column in table.columns[1:] if column != "gate"]
        console.table(table.columns, table.rows, table.title, right=right, dispensable=table.dispensable)
    for sentence in _sentences(report):
        console.sentence(sentence)
    passages = _passages(report, _CHARACTERS)
    for number, passage in enumerate(passages, 1):
        console.out()
        _print_text(passage.title, passage.pieces, with_legend=number == len(passages))
    if passages and not quiet:
        unit = passages[0].unit.name(report.configuration)
        console.hint(
            f"grimmgen eval --run {report.name} --unit {unit} story.txt", "a whole text by a unit's state"
        )


def _tables(report: _Report) -> list[_Table]:
    from grimmgen.evaluation.features import FEATURES
    from grimmgen.network.cells import cells

    cell, layers = cells()[report.configuration.cell], report.configuration.layers
    tables = []
    if report.correlations:
        columns = ["feature", "unit", "correlation", "by chance", "p", "beyond the token"]
        rows = [
            [
                FEATURES[found.feature].name,
                report.unit(found.units[0]).name(report.configuration) if found.significant else "–",
                f"{found.coefficients[0]:+.3f}",
                f"{found.chance:.3f}",
                f"{found.p:.3f}" if found.p >= 0.001 else "<0.001",
                f"{found.beyond_token:+.3f}",
            ]
            for found in report.correlations
        ]
        tables.append(_Table(f"units of {report.name}", columns, rows, ("p", "beyond the token", "by chance")))
    rows = [
        [str(layer), gate, f"{closed:.1%}", f"{opened:.1%}"]
        for layer in range(layers)
        for gate, closed, opened in zip(
            cell.gates,
            report.activations.closed[layer].mean(axis=1),
            report.activations.open[layer].mean(axis=1),
            strict=True,
        )
        if gate != cell.candidate
    ]
    tables.append(_Table("saturated gates", ["layer", "gate", "<0.1", ">0.9"], rows))
    if report.contexts:
        rows = [
            [
                str(one.first) if one.first == one.last else f"{one.first}–{one.last}",
                f"{report.bits + one.excess:.3f}",
                f"{one.excess:+.4f}",
                f"{1.96 * one.error:.4f}",
            ]
            for one in report.contexts
        ]
        columns = ["context", "bits/char", "more", "±"]
        rows.append(["all", f"{report.bits:.3f}", "", ""])
        tables.append(_Table("loss by tokens of context", columns, rows))
    return tables


def _sentences(report: _Report) -> list[str]:
    from grimmgen.evaluation.features import FEATURES

    count, units = report.activations.states.shape
    texts = f"{len(report.texts)} {report.of_part}text{'' if len(report.texts) == 1 else 's'}"
    sentences = [f"read: {count:,} tokens of {texts}, by {units:,} units"]
    if not report.correlations:
        sentences.append("too little text to tell a unit from chance: give more of it")
    else:
        sentences.append(
            "by chance: what the best of all units has to exceed; beyond the token: what is left of the correlation"
            " without what the last token alone explains"
        )
        varying = {found.feature for found in report.correlations}
        if constant := [feature.name for k, feature in enumerate(FEATURES) if k not in varying]:
            sentences.append(f"does not vary in this text: {', '.join(constant)}")
        if missed := [FEATURES[found.feature].name for found in report.correlations if not found.significant]:
            sentences.append(f"no unit follows more closely than by chance: {', '.join(missed)}")
    enough = next((one for one in report.contexts if one.excess < _NO_DIFFERENCE), None)
    if enough is not None:
        per_token = sum(map(len, (text.text for text in report.texts))) / len(report.activations.states)
        sentences.append(
            f"memory: with {enough.first} tokens of context, {enough.first * per_token:.0f} characters, the loss is"
            f" within {_NO_DIFFERENCE} bits per character of that with all of the text before"
        )
    return sentences


def _passages(report: _Report, characters: int) -> list[_Passage]:
    """The passages for the units that remember most: whose correlation is more than the last token explains."""
    from grimmgen.evaluation.features import FEATURES
    from grimmgen.evaluation.units import passage

    found, used = list[_Passage](), set[int]()
    for one in sorted(report.correlations, key=lambda one: -abs(one.beyond_token)):
        index = one.units[0]
        if not one.significant or index in used or len(found) == _PASSAGES:
            continue
        used.add(index)
        states, feature = report.activations.states[:, index], report.features[one.feature]
        best, most, begin = list[Piece](), -1.0, 0
        levels = _levels(states)
        for text in report.texts:
            of_text = slice(begin, begin + len(text.ids))
            tokens, covariance = passage(states[of_text], feature[of_text], text.lengths, characters)
            if covariance > most:
                shown = range(*tokens.indices(len(text.ids)))
                best = [
                    Piece(
                        text.tokens[k],
                        levels[begin + k],
                        f"{page.quoted(text.tokens[k])}: {states[begin + k]:+.2f}",
                    )
                    for k in shown
                ]
                most = covariance
            begin = of_text.stop
        unit, name = report.unit(index), FEATURES[one.feature].name
        title = f"unit {unit.name(report.configuration)}: {name} ({one.coefficients[0]:+.2f})"
        found.append(_Passage(title, unit, best))
    return found


def _page_of_report(report: _Report) -> str:
    parts = []
    for table in _tables(report):
        parts += [page.heading(table.title), page.table(table.columns, table.rows)]
    parts += map(page.paragraph, _sentences(report))
    passages = _passages(report, _CHARACTERS_OF_PAGE)
    if passages:
        parts.append(page.legend(SCALE))
    for passage in passages:
        parts += [page.heading(passage.title), page.coloured(SCALE, passage.pieces)]
    return page.page(
        f"Inside {page.visible(report.name)}",
        "Units whose state follows a feature of the text, by correlation, against the largest correlation of any unit"
        " with shifted features; the saturation of the gates; the loss by the length of the context.",
        [SCALE],
        "\n".join(parts),
    )


def _to_json(report: _Report) -> dict[str, Any]:
    from grimmgen.evaluation.features import FEATURES
    from grimmgen.network.cells import cells

    cell, found = cells()[report.configuration.cell], report.activations
    gates = [(k, gate) for k, gate in enumerate(cell.gates) if gate != cell.candidate]

    def unit(index: int, coefficient: float) -> dict[str, Any]:
        layer, number = report.unit(index)
        return {
            "layer": layer,
            "unit": number,
            "correlation": coefficient,
            "gates": {
                gate: {
                    "closed": float(found.closed[layer, k, number]),
                    "open": float(found.open[layer, k, number]),
                }
                for k, gate in gates
            },
        }

    return {
        "texts": [text.name for text in report.texts],
        "tokens": len(found.states),
        "units": found.states.shape[1],
        "features": [
            {
                "name": FEATURES[one.feature].name,
                "significant": one.significant,
                "chance": one.chance,
                "p": one.p,
                "beyond_token": one.beyond_token,
                "best": [unit(*pair) for pair in zip(one.units, one.coefficients, strict=True)],
            }
            for one in report.correlations
        ],
        "gates": [
            {
                "layer": layer,
                "gate": gate,
                "closed": float(found.closed[layer, k].mean()),
                "open": float(found.open[layer, k].mean()),
                "closed_by_unit": found.closed[layer, k].round(4).tolist(),
                "open_by_unit": found.open[layer, k].round(4).tolist(),
            }
            for layer in range(report.configuration.layers)
            for k, gate in gates
        ],
        "bits_per_character": report.bits,
        "context": [
            {"first": one.first, "last": one.last, "excess": one.excess, "error": one.error}
            for one in report.contexts
        ],
    }


# --- eval --unit ---------------------------------------------------------------------------------------------


def show_unit(
    model: TrainedModel, unit: Unit, documents: Sequence[Document], target: Path | None, json: bool, quiet: bool
) -> None:
    """Print each document coloured by a unit's state, or write all to an HTML file, beside their surprisal.

    Args:
        model: of a run or a checkpoint file.
        unit: of the model.
        documents: at least one.
        target: the HTML file; None prints to standard output.
        json: print a JSON document in place of the texts.
        quiet: do not report that the file was written.

    Raises:
        UsageError: a document is too large.
        GrimmgenError: a document is empty, or the file cannot be written.
    """
    from grimmgen.errors import GrimmgenError
    from grimmgen.evaluation.activations import TokenisedText, trace_unit
    from grimmgen.evaluation.surprisal import surprisal
    from grimmgen.io import files

    output = None if target is None else files.output_path(target)
    heatmap.check_sizes(documents)
    checkpoint = model.checkpoint
    read = [(document.name, document.read()) for document in documents]
    for name, text in read:
        if not text:
            raise GrimmgenError(f"{name} is empty", "give a file that is not")
    traces = [
        (name, trace_unit(checkpoint, TokenisedText.of(name, text, checkpoint.vocabulary), *unit))
        for name, text in read
    ]
    named = unit.name(checkpoint.configuration)
    if output is not None:
        surprisals = [surprisal(checkpoint, text, mix=0.0) for _, text in read]
        content = _page_of_unit(model.name, named, traces, surprisals)
        files.write_atomically(output, content.encode("utf-8", "backslashreplace"))
    if json:
        texts = [
            {
                "name": name,
                "tokens": [
                    {
                        "text": token,
                        "state": float(trace.states[k]),
                        "gates": {gate: float(values[k]) for gate, values in trace.gates.items()},
                    }
                    for k, token in enumerate(trace.tokens)
                ],
            }
            for name, trace in traces
        ]
        console.document({"run": model.name, "layer": unit.layer, "unit": unit.number, "texts": texts})
    elif target is None:
        for name, trace in traces:
            _print_text(f"{name}: unit {named}, {_summary(trace)}", _pieces(trace), with_legend=True)
    elif not quiet:
        console.note(f"written to {target}")


def _page_of_unit(
    run: str,
    unit: str,
    traces: Sequence[tuple[str, UnitTrace]],
    surprisals: Sequence[Sequence[TokenSurprisal]],
) -> str:
    sections = [page.beside(page.legend(SCALE), page.legend(heatmap.SCALE))]
    for (name, trace), tokens in zip(traces, surprisals, strict=True):
        state = page.paragraph(f"unit {unit}: {_summary(trace)}") + page.coloured(SCALE, _pieces(trace))
        surprise = page.paragraph(f"surprisal: {heatmap.summary(tokens)}")
        surprise += page.coloured(heatmap.SCALE, heatmap.pieces(tokens))
        sections += [page.heading(name), page.beside(state, surprise)]
    return page.page(
        f"Unit {unit} of {page.visible(run)}",
        "First the state of the unit after each token, with its gates on hover; beside it how little the"
        " model expected the token, with what it expected.",
        [SCALE, heatmap.SCALE],
        "\n".join(sections),
        wide=True,
    )


def _pieces(trace: UnitTrace) -> list[Piece]:
    """A text as pieces, with the state and the gates on hover."""
    found = []
    for k, (token, level) in enumerate(zip(trace.tokens, _levels(trace.states), strict=True)):
        gates = ", ".join(f"{gate} {values[k]:.2f}" for gate, values in trace.gates.items())
        found.append(Piece(token, level, f"{page.quoted(token)}: state {trace.states[k]:+.2f}; {gates}"))
    return found


def _summary(trace: UnitTrace) -> str:
    return f"mean {trace.states.mean():+.2f}, standard deviation {trace.states.std():.2f}"


def _levels(states: NDArray[np.float32]) -> list[int]:
    """The level of each state, by its distance from the mean in standard deviations."""
    deviation = float(states.std()) or 1.0
    return [SCALE.level(float(value)) for value in (states - states.mean()) / deviation]


def _print_text(title: str, pieces: Sequence[Piece], with_legend: bool) -> None:
    cells = [
        (page.visible(character), piece.level, character == "\n") for piece in pieces for character in piece.text
    ]
    console.heat(title, cells, SCALE.labels if with_legend else (), SCALE.unit, SCALE.dark, SCALE.blank)

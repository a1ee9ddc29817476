"""`grimmgen eval`: evaluate models, compare them, and show what is new or unexpected in a text."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grimmgen.cli import options
from grimmgen.configuration import OPTIONS, READING, Configuration

if TYPE_CHECKING:
    from grimmgen.evaluation.comparison import Comparison, Result
    from grimmgen.evaluation.scores import Difference, Score
    from grimmgen.text.corpus import Corpus, Report

_DISPENSABLE = ["<unk>", "characters", "tokens"]
# Documents that are shown by themselves; of more, only --json shows each.
_MOST_ROWS = 60


@options.accept(Configuration, *READING)
def evaluate(
    context: typer.Context,
    chosen: Mapping[str, Any],
    files: Annotated[
        list[Path] | None,
        options.argument(metavar="FILE", help="Texts to read; without any, stories of the run."),
    ] = None,
    run: Annotated[
        list[str] | None,
        options.option(
            "--run",
            help=f"{options.MODEL}; give several to compare them.",
            show_default=options.DEFAULT_MODEL,
            autocompletion=options.complete_models,
        ),
    ] = None,
    corpus: options.MovedCorpus = None,
    split: Annotated[
        options.Part, options.option(help="Which part of the run's own stories to read, if no FILE is given.")
    ] = "valid",
    baseline: Annotated[
        bool,
        options.option("--baseline", help="Also evaluate a Kneser-Ney character model, trained in seconds."),
    ] = False,
    dynamic: Annotated[
        bool,
        options.option("--dynamic", help="Also evaluate dynamically: adapt the model to each text as it reads."),
    ] = False,
    mix: options.Mix = None,
    novelty: Annotated[
        bool,
        options.option(
            "--novelty",
            help="Instead, report what occurs verbatim in the training stories; --split is the control.",
        ),
    ] = False,
    heatmap: Annotated[
        bool,
        options.option("--heatmap", help="Instead, show the FILEs coloured by the surprisal of each token."),
    ] = False,
    cells: Annotated[
        bool,
        options.option(
            "--cells", help="Instead, report which units follow a feature of the text, the gates and the memory."
        ),
    ] = False,
    unit: Annotated[
        str | None,
        options.option(metavar="[LAYER:]UNIT", help="Instead, show the FILEs coloured by the state of this unit."),
    ] = None,
    html: Annotated[
        Path | None,
        options.option(
            help="Write what --heatmap, --cells or --unit shows to this HTML file, with more on hover."
        ),
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure perplexity per token and bits per character, for each story and in total.

    Several runs are compared on the same stories, with a 95 % bootstrap interval for the difference. A run with counts
    is evaluated without and with them; runs that share a vocabulary also as an ensemble, which averages their
    probabilities.

    Example: grimmgen eval --split test

    Example: grimmgen eval --run sly-fox --run old-owl --baseline

    Example: grimmgen eval --novelty story.txt

    Example: grimmgen eval --heatmap story.txt --html surprise.html

    Example: grimmgen eval --cells --split test
    """
    from grimmgen.cli import console
    from grimmgen.errors import UsageError
    from grimmgen.runs import registry

    options.MIX.check(mix)
    views = {"--novelty": novelty, "--cells": cells, "--unit": unit is not None}
    views["--heatmap"] = heatmap or (html is not None and not cells and unit is None)
    wanted = [name for name, is_wanted in views.items() if is_wanted]
    view = wanted[0] if wanted else ""
    names: list[str | None] = [*dict.fromkeys(run)] if run else [None]
    typed = options.typed(context)
    if files and "split" in typed and not novelty:
        raise UsageError("--split has no effect with FILEs", "leave out one of them")
    if view not in {"", "--cells"} and "device" in typed:
        raise UsageError(f"--device has no effect with {view}, which runs on the CPU", "leave it out")
    if view and (len(names) > 1 or dynamic or baseline or len(wanted) > 1):
        raise UsageError(f"{view} takes one run and no other measure", "leave out the other options")
    if view not in {"", "--heatmap"} and "mix" in typed:
        raise UsageError(f"--mix has no effect with {view}", "leave it out")
    if view in {"--heatmap", "--unit"} and not files:
        raise UsageError(f"{view} needs a text", "give a FILE")

    if chosen and not files:
        flag = OPTIONS[next(iter(chosen))].flags[0]
        raise UsageError(f"{flag} has no effect without a FILE", f"leave out {flag}, or give a FILE")

    for file in files or []:
        if not (file.is_file() or file.is_dir() or str(file) == "-" or glob.has_magic(str(file))):
            what = f"{file} is not a file" if file.exists() else f"there is no file {file}"
            raise UsageError(what, "give the path of a text file")
    models = [registry.load_model(name, corpus) for name in names]
    if len(names) == 1:
        options.report_default(names[0], models[0], quiet)
    notify = None if quiet or json else console.note
    place = None
    if view in {"", "--cells"}:
        from grimmgen.network.model import choose_device

        place = choose_device(device)  # before a text is read
    read = _read(files, replace(models[0].checkpoint.configuration, **chosen), notify) if files else None
    documents = read.documents if read else []
    # A picture of the text shows by itself what was read.
    if read and (read.report.peculiarities or view not in {"--heatmap", "--unit", "--cells"}):
        options.show_report(read.report, notify)
    if novelty:
        from grimmgen.cli.novelty import show_novelty

        show_novelty(models[0], documents, split, json)
    elif view == "--heatmap":
        from grimmgen.cli.heatmap import show_heatmap

        show_heatmap(models[0], documents, html, json, quiet, mix)
    elif unit is not None:
        from grimmgen.cli.cells import Unit, show_unit

        show_unit(models[0], Unit.parse(unit, models[0].checkpoint.configuration), documents, html, json, quiet)
    elif cells:
        from grimmgen.cli.cells import show_cells

        assert place is not None
        show_cells(models[0], documents, split, place, html, json, quiet)
    else:
        from grimmgen.evaluation.comparison import evaluate_models

        assert place is not None
        bars: dict[str, int] = {}
        with console.Bars(quiet or json or not dynamic) as progress:

            def notify_done(name: str, done: int, count: int) -> None:
                if name not in bars:
                    bars[name] = progress.add("texts", count)
                progress.update(bars[name], done, info="dynamic evaluation", short="")

            comparison = evaluate_models(
                models, documents, split, place, dynamic, baseline, notify, notify_done, mix
            )
        _show(comparison, None if files else split, json, read.report if read else None)


def _read(paths: Sequence[Path], configuration: Configuration, notify: Callable[[str], None] | None) -> Corpus:
    """The FILEs as documents, which are called as they were typed where a FILE is one."""
    from grimmgen.text.corpus import ExtractedDocuments, open_corpus

    opened = open_corpus([*map(str, paths)], configuration, notify=notify)
    if not isinstance(opened.documents, ExtractedDocuments):
        return opened
    typed = {str(path.absolute().resolve()): str(path) for path in paths if path.is_file()}
    return replace(opened, documents=opened.documents.renamed(typed))


# --- rendering -----------------------------------------------------------------------------------------------


def _show(comparison: Comparison, split: options.Part | None, json: bool, read: Report | None) -> None:
    """Print a comparison on standard output; `split` is None if FILEs were read, and `read` if none were."""
    from grimmgen.cli import console

    results = comparison.results
    if comparison.warning:
        console.warn(comparison.warning)
    if json:
        console.document([_to_json(result, results[0].name, split, read) for result in results])
    elif len(results) == 1:
        title = results[0].name if split is None else f"{results[0].name}, {split} stories"
        _show_documents(results[0], title)
    else:
        if results[1].difference and 1 < len(results[0].static.documents) <= _MOST_ROWS:
            _show_documents_of_all(results)
        _show_ranking(results)
        for result in results:
            if result.difference:
                console.sentence(_sentence(results[0].name, result.name, result.difference))


def _show_documents(result: Result, title: str) -> None:
    """A table of one model, a row for each document and one for all."""
    from grimmgen.cli import console

    dynamic = result.dynamic is not None
    columns = _columns(dynamic)
    documents = result.documents
    shown = documents if len(documents) <= _MOST_ROWS else []
    rows = [[scores[0].name, *_cells(result, scores, dynamic)] for scores in shown]
    if len(documents) > 1:
        rows.append(["all", *_cells(result, result.total, dynamic)])
    console.table(["story", *columns], rows, title, right=columns, marked=len(rows) - 1, dispensable=_DISPENSABLE)
    if not shown:
        console.sentence(f"{len(documents):,} documents: --json has each")


def _show_documents_of_all(results: Sequence[Result]) -> None:
    """A table of bits per character, a row for each document and a column for each model."""
    from grimmgen.cli import console

    names = [result.name for result in results]
    scores = zip(*([*result.static.documents, result.static.total] for result in results), strict=True)
    rows = [[row[0].name, *(console.figure(score.bits_per_character, 4) for score in row)] for row in scores]
    rows[-1][0] = "all"
    console.table(["story", *names], rows, "bits per character", right=names, marked=len(rows) - 1)


def _show_ranking(results: Sequence[Result]) -> None:
    """A table of all models, the best first."""
    from grimmgen.cli import console

    dynamic = any(result.dynamic for result in results)
    columns = _columns(dynamic)
    rows = [
        [str(rank), result.name, *_cells(result, result.total, dynamic)] for rank, result in enumerate(results, 1)
    ]
    console.table(["", "run", *columns], rows, right=columns, marked=0, dispensable=[*_DISPENSABLE, "perplexity"])


def _columns(dynamic: bool) -> list[str]:
    return ["perplexity", "bits/char", *(["dynamic"] if dynamic else []), "tokens", "characters", "<unk>"]


def _cells(result: Result, scores: tuple[Score, Score | None], dynamic: bool) -> list[str]:
    """The figures of one row, in the order of `_columns`."""
    from grimmgen.cli import console

    static, adapted = scores
    return [
        console.figure(static.perplexity if result.ngrams else None, 3),
        console.figure(static.bits_per_character, 4),
        *([console.figure(adapted.bits_per_character if adapted else None, 4)] if dynamic else []),
        f"{static.predictions:,}" if result.ngrams else "–",
        f"{static.characters:,}",
        f"{static.unknown:,}",
    ]


def _to_json(result: Result, best: str, split: options.Part | None, read: Report | None) -> dict[str, Any]:
    name = result.run or result.name
    value: dict[str, Any] = {"run": name, "kind": result.kind, "split": split, **_figures(result, result.total)}
    value["read"] = read and read.to_json()
    value["stories"] = [{"name": scores[0].name, **_figures(result, scores)} for scores in result.documents]
    if found := result.difference:
        value["difference"] = {
            "to": best,
            "bits_per_character": found.mean,
            "low": found.low,
            "high": found.high,
            "real": found.significant,
        }
    return value


def _figures(result: Result, scores: tuple[Score, Score | None]) -> dict[str, float]:
    static, adapted = scores
    figures: dict[str, float] = {}
    if result.ngrams:
        figures |= {"perplexity": static.perplexity, "ngrams": static.predictions}
    figures |= {
        "bits_per_character": static.bits_per_character,
        "characters": static.characters,
        "unknown": static.unknown,
    }
    if adapted:
        figures["dynamic_perplexity"] = adapted.perplexity
        figures["dynamic_bits_per_character"] = adapted.bits_per_character
    return figures


def _sentence(best: str, other: str, found: Difference) -> str:
    from grimmgen.cli import console
    from grimmgen.evaluation.scores import MIN_DOCUMENTS

    mean, low, high = (console.figure(value, 4) for value in (found.mean, found.low, found.high))
    start = f"{best} needs {mean} bits per character less than {other}"
    if found.significant is None:
        return f"{start}; too few stories to test significance (at least {MIN_DOCUMENTS})"
    verdict = "significant at 95 %" if found.significant else "not significant at 95 %"
    return f"{start} (95 % interval {low} to {high}): {verdict}"

"""`grimmgen runs`: list, show, plot, locate and remove runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grimmgen.cli import formatting, options
from grimmgen.errors import UsageError

if TYPE_CHECKING:
    from grimmgen.evaluation.card import Card
    from grimmgen.runs.registry import Run

app = typer.Typer(
    cls=formatting.Group,
    help="List, show, plot, locate and remove runs.\n\nExample: grimmgen runs list",
    callback=formatting.help_without_command,
    invoke_without_command=True,
)

# Characters of the text in which `runs show --measure` looks for copies.
_GENERATED = 2_000

_Name = Annotated[
    str | None,
    options.argument(
        metavar="RUN", help="Name of the run; the latest by default.", autocompletion=options.complete_runs
    ),
]
_NameOfModel = Annotated[
    str | None,
    options.argument(
        metavar="RUN",
        help="Name of the run, or grimm, the bundled model; the latest run by default.",
        autocompletion=options.complete_models,
    ),
]


@app.command("list", cls=formatting.Command)
def list_(json: options.Json = False, quiet: options.Quiet = False) -> None:
    """List the runs, the latest first.

    Example: grimmgen runs list --json
    """
    from grimmgen.cli import console
    from grimmgen.runs import registry

    runs = [_summary(run) for run in reversed(registry.all_runs())]
    if json:
        console.document(runs)
        return
    if not runs:
        if not quiet:
            console.hint(
                "grimmgen train", f"no runs yet; there is the {registry.PRETRAINED_TITLE}; train your own"
            )
        return
    heads = ["run", "corpus", "cell", "units", "epochs", "perplexity", "bits/char", "age", "size", ""]
    rows = [
        [
            r["name"],
            r.get("corpus", "?"),
            r.get("cell", "?"),
            r.get("units", "?"),
            r.get("epochs", "?"),
            console.figure(r.get("perplexity"), 2),
            console.figure(r.get("bits_per_character"), 3),
            _age(r.get("created")),
            console.size(r["bytes"]),
            _state(r),
        ]
        for r in runs
    ]
    console.table(
        heads,
        rows,
        right=["units", "epochs", "perplexity", "bits/char", "age", "size"],
        dispensable=["size", "cell", "", "units", "bits/char", "corpus", "epochs", "age"],
    )


@app.command("show", cls=formatting.Command)
def show(
    name: _NameOfModel = None,
    measure: Annotated[
        bool,
        options.option(
            "--measure", help="Also compare the run with counts, and look for copies of its text (some seconds)."
        ),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the options, the evaluations and the learning curve of a run, and say what to try next.

    Example: grimmgen runs show latest
    """
    from grimmgen.cli import chart, console
    from grimmgen.errors import IntegrityError
    from grimmgen.runs import curves, registry

    if registry.is_pretrained(name):
        if measure:
            raise UsageError("--measure has no effect on the bundled model", "leave it out")
        _show_pretrained(json)
        return
    run = registry.find(name)
    info, log, summary = run.info(), run.log(), _summary(run)
    if json:
        measured = _card(run, log, measure).to_json() if measure else {}
        console.document({**summary, **measured, "path": run.path, "info": info, "log": log})
        return
    try:
        departures = options.as_typed(run.configuration)
        facts = [
            ("run", run.name),
            ("place", run.path),
            ("state", ": ".join(filter(None, (_state(summary), summary.get("error"))))),
            ("created", info["created"]),
            ("command", info["command"]),
            ("corpus", f"{info['corpus']['name']} ({info['corpus']['source']})"),
            *([("auto", info["reason"])] if "reason" in info else []),
            *([("from", info["base"]["name"])] if "base" in info else []),
            *([("distilled from", ", ".join(t["name"] for t in info["teachers"]))] if "teachers" in info else []),
            ("options", f"{departures}, else the tutorial's" if departures else "all the tutorial's"),
            ("versions", ", ".join(f"{k} {v}" for k, v in info["versions"].items())),
        ]
        scores = [event for event in log if event.get("event") == "evaluated"]
        rows: list[Sequence[object]] = [
            [
                event["epoch"],
                event["step"],
                console.figure(event["training_perplexity"], 2),
                console.figure(event["perplexity"], 2),
                console.figure(event["bits_per_character"], 3),
                f"{event['rate']:.3g}",
                console.seconds(event["seconds"]),
            ]
            for event in scores
        ]
        best = max((number for number, event in enumerate(scores) if event["best"]), default=None)
        curve = curves.read(run)
        card = _card(run, log, measure) if rows else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise IntegrityError(
            f"the description of the run {run.name} is damaged", f"remove it with `grimmgen runs rm {run.name}`"
        ) from None
    console.facts(facts)
    if rows:
        heads = ["epoch", "update", "training", "validation", "bits/char", "rate", "time"]
        # The first and the last evaluations; --json has all.
        shown = rows if len(rows) <= 24 else [*rows[:6], ["…"] * len(heads), *rows[-17:]]
        marked = shown.index(rows[best]) if best is not None and rows[best] in shown else None
        dispensable = ["update", "time", "bits/char", "rate", "training"]
        console.table(heads, shown, right=heads, marked=marked, dispensable=dispensable)
        glyphs = chart.UNICODE if console.has_unicode() else chart.ASCII
        styles = {
            glyphs.validation: "cyan",
            glyphs.best: "bold cyan",
            glyphs.training: "dim",
            glyphs.decay: "yellow",
        }
        console.drawing(chart.draw(curve, console.text_width(), glyphs), styles)
    if card is not None and not quiet:
        console.out()
        for sentence in card.sentences():
            console.sentence(f"{sentence[0].upper()}{sentence[1:]}.")
        for step in card.next_steps():
            console.sentence(f"Next: {step}.")


@app.command("plot", cls=formatting.Command)
def plot(
    names: Annotated[
        list[str] | None,
        options.argument(
            metavar="RUN", help="Names of the runs; the latest by default.", autocompletion=options.complete_runs
        ),
    ] = None,
    output: Annotated[Path, options.option("--output", "-o", help="Picture file: .svg, .png or .pdf.")] = Path(
        "curves.svg"
    ),
    over: Annotated[
        Literal["steps", "seconds"], options.option(help="Horizontal axis: steps (updates) or seconds.")
    ] = "steps",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Plot the learning curves of runs; needs matplotlib (pip install matplotlib).

    Example: grimmgen runs plot sly-fox old-owl --over seconds --output curves.svg
    """
    from grimmgen.cli import console
    from grimmgen.runs import curves, registry

    runs = [registry.find(name) for name in dict.fromkeys(names or [registry.LATEST])]
    curves.plot([curves.read(run) for run in runs], output, over)
    if json:
        console.document({"path": output, "runs": [run.name for run in runs], "over": over})
    elif not quiet:
        console.note(f"written to {output}")


@app.command("path", cls=formatting.Command)
def path(name: _Name = None, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Print the directory of a run.

    Example: cp "$(grimmgen runs path)/best.safetensors" tale.safetensors
    """
    from grimmgen.cli import console
    from grimmgen.runs import registry

    run = registry.find(name)
    if json:
        console.document({"name": run.name, "path": run.path})
    else:
        console.write(f"{run.path}\n")


@app.command("rm", cls=formatting.Command)
def rm(
    names: Annotated[
        list[str], options.argument(metavar="RUN", help="Names of the runs.", autocompletion=options.complete_runs)
    ],
    yes: Annotated[bool, options.option("--yes", "-y", help="Remove without confirmation.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove runs with all their checkpoints, after confirmation.

    Example: grimmgen runs rm sly-fox
    """
    from grimmgen.cli import console
    from grimmgen.runs import registry

    runs = [registry.find(name) for name in dict.fromkeys(names)]
    for run in runs:
        if not yes and not console.confirm(f"remove the run {run.name} ({console.size(run.size())})?"):
            raise UsageError(f"the run {run.name} was not removed", "answer y, or give --yes")
        run.remove()
        if not (quiet or json):
            console.note(f"removed {run.name}")
    if json:
        console.document({"removed": [run.name for run in runs]})


def _card(run: Run, log: Sequence[Mapping[str, Any]], measured: bool) -> Card:
    """The model card of a run that was evaluated at least once."""
    from grimmgen.evaluation.card import Card, Course, measure_card

    course = Course.of_log(log)
    if course is None:
        raise UsageError(f"the run {run.name} was not evaluated yet", "wait for its first evaluation")
    if not measured:
        return Card(course)
    from grimmgen.sampling.generator import TextGenerator

    model = run.load()
    return measure_card(model, course, TextGenerator(model).generate(length=_GENERATED, random_seed=1))


def _show_pretrained(json: bool) -> None:
    from grimmgen.cli import console
    from grimmgen.runs import registry

    model = registry.load_model(registry.PRETRAINED)
    configuration, provenance = model.checkpoint.configuration, model.checkpoint.provenance
    summary = {
        "name": model.name,
        "bytes": registry.PRETRAINED_PATH.stat().st_size,
        "corpus": provenance["corpus"],
        "cell": configuration.cell,
        "units": _units(configuration.hidden, configuration.layers),
        "epochs": provenance["epoch"],
        "perplexity": provenance["perplexity"],
        "bits_per_character": provenance["bits_per_character"],
        "state": "bundled",
    }
    if json:
        console.document({**summary, "path": registry.PRETRAINED_PATH, "info": model.info})
        return
    departures = options.as_typed(configuration)
    stories = "/".join(str(len(documents)) for documents in model.info["corpus"]["split"]["parts"].values())
    quality = f"perplexity {summary['perplexity']:.2f}, {summary['bits_per_character']:.3f} bits per character"
    console.facts(
        [
            ("model", registry.PRETRAINED_TITLE),
            ("place", f"{registry.PRETRAINED_PATH} ({console.size(summary['bytes'])})"),
            ("corpus", f"{summary['corpus']}, {stories} stories for train/valid/test"),
            ("options", f"{departures}, else the tutorial's"),
            ("epochs", summary["epochs"]),
            ("validation", quality),
            ("versions", ", ".join(f"{k} {v}" for k, v in model.info["versions"].items())),
        ]
    )


def _units(hidden: object, layers: Any) -> str:
    return f"{hidden}×{layers}" if layers > 1 else f"{hidden}"


def _summary(run: Run) -> dict[str, Any]:
    """Summarise a run; an unreadable one has the state `unreadable`."""
    from grimmgen.errors import GrimmgenError

    summary: dict[str, Any] = {"name": run.name, "bytes": run.size(), "saved": run.has_checkpoint}
    try:
        info, log = run.info(), run.log()
        configuration = info["configuration"]
        scores = [e for e in log if e.get("event") == "evaluated"]
        best = min(scores, key=lambda e: float(e["perplexity"])) if scores else {}
        finished = [e["reason"] for e in log if e.get("event") == "finished"]
        failed = [str(e["error"]) for e in log[-1:] if e.get("event") == "failed"]
        state = finished[-1] if finished else "failed" if failed else "unfinished"
        if failed:
            summary["error"] = failed[0]
        return summary | {
            "corpus": info["corpus"]["name"],
            "cell": configuration["cell"],
            "units": _units(configuration["hidden"], configuration["layers"]),
            "epochs": scores[-1]["epoch"] if scores else 0,
            "perplexity": best.get("perplexity"),
            "bits_per_character": best.get("bits_per_character"),
            "created": info["created"],
            "state": "training" if run.trainer else state,
        }
    except (GrimmgenError, KeyError, TypeError, ValueError, IndexError, OverflowError):
        return summary | {"state": "unreadable"}


def _state(summary: Mapping[str, Any]) -> str:
    """Return the state of a run for people; in JSON it is the reason of `Finished`."""
    state = str(summary["state"])
    state = {"epochs": "finished", "budget": "time is up"}.get(state, state)
    return state if summary["saved"] or state == "unreadable" else f"{state}, nothing saved"


def _age(created: object) -> str:
    try:
        age = (datetime.now(UTC) - datetime.fromisoformat(str(created))).total_seconds()
    except (TypeError, ValueError):
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= length:
            return f"{age / length:.0f} {unit}"
    return "now"

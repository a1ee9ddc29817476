"""`grimmgen eval`: how well a model foretells stories that it has not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grimmgen.cli import options

if TYPE_CHECKING:
    from grimmgen.text.corpus import Document
    from grimmgen.evaluation.scores import Difference, Evaluation, Score

_DISPENSABLE = ["<unk>", "characters", "n-grams"]
# Coloured it takes some seven hundred times its size in memory, and minutes.
_LARGEST_HEATMAP = 1 << 20


def evaluate(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, options.argument(metavar="FILE", help="Texts to read; else stories of the run.")
    ] = None,
    run: Annotated[
        list[str] | None,
        options.option(
            "--run",
            help="A run, or the path of a checkpoint file; give several to compare them.",
            show_default="the latest run",
            autocompletion=options.complete_runs,
        ),
    ] = None,
    split: Annotated[
        options.Part, options.option(help="Which part of the run's own stories to read, if no file is given.")
    ] = "valid",
    baseline: Annotated[
        bool,
        options.option(
            "--baseline", help="Compare with a Kneser-Ney model of characters, trained in seconds, too."
        ),
    ] = False,
    dynamic: Annotated[
        bool, options.option("--dynamic", help="Also let the model learn from each story as it reads it.")
    ] = False,
    novelty: Annotated[
        bool,
        options.option(
            "--novelty",
            help="Instead, tell what stands verbatim in the run's training stories; --split is the control.",
        ),
    ] = False,
    heatmap: Annotated[
        bool,
        options.option("--heatmap", help="Instead, show the FILEs coloured by how surprising each n-gram was."),
    ] = False,
    html: Annotated[
        Path | None, options.option(help="Write the heat-map to this HTML file, what was expected shown on hover.")
    ] = None,
    device: Annotated[str, options.option(help="auto, cpu or cuda.")] = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure perplexity per n-gram and bits per character, story by story and in total.

    Several runs are compared on the same stories, with a 95 % interval of what lies between them (bootstrap).

    Example: grimmgen eval --split test

    Example: grimmgen eval --run sly-fox --run old-owl --baseline

    Example: grimmgen eval --novelty story.txt

    Example: grimmgen eval --heatmap story.txt --html surprise.html
    """
    from grimmgen.cli import console
    from grimmgen.errors import UsageError
    from grimmgen.text.corpus import Document

    for path in files or []:
        if not path.is_file():
            what = f"{path} is not a file" if path.exists() else f"there is no file {path}"
            raise UsageError(what, "give the path of a text file")
    given = [Document(str(path), path) for path in files or []]
    typed = options.typed(context)
    if given and "split" in typed and not novelty:
        raise UsageError("--split has no say where FILEs are given", "leave out one of them")
    if (novelty or heatmap or html is not None) and "device" in typed:
        raise UsageError("--device has no say in that: it is done on the CPU", "leave it out")
    wanted: list[str | None] = [*dict.fromkeys(run)] if run else [None]
    heatmap = heatmap or html is not None
    if novelty or heatmap:
        if len(wanted) > 1 or dynamic or baseline or (novelty and heatmap):
            what = "--novelty" if novelty else "--heatmap"
            raise UsageError(f"{what} is shown of one run and nothing else", "leave out the other options")
        if heatmap and not given:
            raise UsageError("--heatmap has nothing to read", "give a FILE")
        if novelty:
            _show_novelty(wanted[0], given, split, json)
        else:
            _show_heatmap(wanted[0], given, html, json, quiet)
        return

    results, apart = _scored(wanted, given, split, device, dynamic, quiet or json)
    if baseline:
        results.append(_baseline(wanted[0], given, split))
    ranked = sorted(results, key=lambda result: result.static.total.bits_per_character)
    best = ranked[0]
    if apart:
        console.warn(apart)
    differences = [None if apart or result is best else _compare(result, best) for result in ranked]
    if json:
        console.document(
            [
                {
                    "run": result.name,
                    "split": None if files else split,
                    **result.figures(result.static.total, result.adapted.total if result.adapted else None),
                    "stories": [{"name": s.name, **result.figures(s, a)} for s, a in result.pairs()],
                    **({} if found is None else {"difference": _difference_to_json(best.name, found)}),
                }
                for result, found in zip(ranked, differences, strict=True)
            ]
        )
    elif len(ranked) == 1:
        what = "" if files else f", {split} stories"
        _show_stories(best, f"{best.name}{what}")
    else:
        _show_ranking(ranked, differences)
        for result, found in zip(ranked, differences, strict=True):
            if found is not None:
                console.sentence(_in_words(best.name, result.name, found))


@dataclass(frozen=True)
class _Result:
    """What one model makes of the stories.

    Attributes:
        name: of the run, or of the baseline.
        static: its scores.
        adapted: those of the model that learns as it reads, where that was asked for.
        ngrams: whether it foretells n-grams that runs have in common; the baseline foretells characters.
    """

    name: str
    static: Evaluation
    adapted: Evaluation | None = None
    ngrams: bool = True

    def pairs(self) -> list[tuple[Score, Score | None]]:
        adapted = self.adapted.documents if self.adapted else [None] * len(self.static.documents)
        return list(zip(self.static.documents, adapted, strict=True))

    def figures(self, static: Score, adapted: Score | None) -> dict[str, float]:
        figures: dict[str, float] = {"perplexity": static.perplexity, "ngrams": static.predictions}
        if not self.ngrams:
            figures = {}
        figures |= {
            "bits_per_character": static.bits_per_character,
            "characters": static.characters,
            "unknown": static.unknown,
        }
        if adapted:
            figures["dynamic_perplexity"] = adapted.perplexity
            figures["dynamic_bits_per_character"] = adapted.bits_per_character
        return figures

    def cells(self, static: Score, adapted: Score | None, dynamic: bool) -> list[str]:
        return [
            f"{static.perplexity:.3f}" if self.ngrams else "–",
            f"{static.bits_per_character:.4f}",
            *([f"{adapted.bits_per_character:.4f}" if adapted else "–"] if dynamic else []),
            f"{static.predictions:,}" if self.ngrams else "–",
            f"{static.characters:,}",
            f"{static.unknown:,}",
        ]


def _scored(
    wanted: Sequence[str | None],
    given: Sequence[Document],
    split: options.Part,
    device: str,
    dynamic: bool,
    quiet: bool,
) -> tuple[list[_Result], str]:
    """What each run makes of its stories or of the given ones, and why they cannot be compared, if so."""
    from grimmgen.cli import console
    from grimmgen.evaluation.dynamic import evaluate_dynamically
    from grimmgen.evaluation.static import encode_stories
    from grimmgen.evaluation.static import evaluate as score
    from grimmgen.network.model import LanguageModel, choose_device
    from grimmgen.runs import registry

    chosen = choose_device(device)
    loaded = [(asked, *registry.find_checkpoint(asked)) for asked in wanted]
    read = [given or _own_stories(name, asked, split) for asked, name, _ in loaded]
    contents = [[(story.name, story.part, story.digest()) for story in stories] for stories in read]
    results = []
    for (_, name, checkpoint), stories in zip(loaded, read, strict=True):
        if not quiet:
            texts = "1 text" if len(stories) == 1 else f"{len(stories)} texts"
            console.note(f"reading {texts} with {name}")
        model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(chosen)
        model.load_weights(checkpoint.weights)
        encoded = encode_stories(((s.name, s.pieces()) for s in stories), checkpoint.vocabulary)
        static = score(model, encoded)
        adapted = None
        if dynamic:
            with console.Bars(quiet) as bars:
                bar = bars.add("texts", len(encoded))
                told = partial(bars.update, bar, info="learning as it reads", short="")
                adapted = evaluate_dynamically(model, encoded, told=told)
        results.append(_Result(name, static, adapted))
    folded = {(c.configuration.lower, c.configuration.newlines) for _, _, c in loaded}
    if any(texts != contents[0] for texts in contents):
        return results, "the runs have different stories: to compare them on the same text, give FILEs"
    if len(folded) > 1:
        return results, "the runs fold text in different ways (--keep-case, --newlines), so it is not the same"
    return results, ""


def _baseline(asked: str | None, given: Sequence[Document], split: options.Part) -> _Result:
    """What a model of counted characters makes of the same stories, from the training stories of this run."""
    from grimmgen.errors import UsageError
    from grimmgen.evaluation.baseline import KneserNey
    from grimmgen.runs import registry
    from grimmgen.text.vocabulary import normalise

    if asked is not None and ("/" in asked or asked.endswith(".safetensors")):
        raise UsageError(f"{asked} does not bring the stories it has learnt from", "give a run's name first")
    run = registry.find(asked)
    lower, newlines = run.configuration.lower, run.configuration.newlines
    parts = run.split().parts
    texts = [(story.name, normalise(story.read(), lower, newlines)) for story in given or parts[split]]
    model = KneserNey([normalise(story.read(), lower, newlines) for story in parts["train"]])
    return _Result("Kneser-Ney", model.evaluate([(name, text) for name, text in texts if text]), ngrams=False)


def _compare(result: _Result, best: _Result) -> Difference:
    from grimmgen.evaluation.scores import compare

    return compare(result.static, best.static)


def _difference_to_json(best: str, found: Difference) -> dict[str, Any]:
    return {"to": best, "bits_per_character": found.mean, "low": found.low, "high": found.high, "real": found.real}


def _in_words(best: str, worse: str, found: Difference) -> str:
    from grimmgen.evaluation.scores import FEWEST_STORIES

    said = f"{best} needs {found.mean:.4f} bits per character less than {worse}"
    if found.real is None:
        return f"{said}; of fewer than {FEWEST_STORIES} stories nobody can say whether that is chance"
    interval = f"95 % interval {found.low:.4f} to {found.high:.4f}"
    return f"{said} ({interval}): {'a real difference' if found.real else 'that may be chance'}"


def _show_stories(result: _Result, title: str) -> None:
    """One model, story by story."""
    from grimmgen.cli import console

    dynamic = result.adapted is not None
    heads = _heads(dynamic)
    rows = [[s.name, *result.cells(s, a, dynamic)] for s, a in result.pairs()]
    if len(rows) > 1:
        total = result.adapted.total if result.adapted else None
        rows.append(["all", *result.cells(result.static.total, total, dynamic)])
    console.table(["story", *heads], rows, title, right=heads, marked=len(rows) - 1, dispensable=_DISPENSABLE)


def _show_ranking(ranked: Sequence[_Result], differences: Sequence[Difference | None]) -> None:
    """Several models: where they have read the same stories story by story, then all together."""
    from grimmgen.cli import console

    stories = ranked[0].static.documents
    if any(differences) and len(stories) > 1:
        heads = [result.name for result in ranked]
        columns = [[*result.static.documents, result.static.total] for result in ranked]
        rows = [
            [name, *(f"{score.bits_per_character:.4f}" for score in scores)]
            for name, *scores in zip([*(score.name for score in stories), "all"], *columns, strict=True)
        ]
        console.table(["story", *heads], rows, "bits per character", right=heads, marked=len(rows) - 1)
    dynamic = any(result.adapted for result in ranked)
    heads = _heads(dynamic)
    rows = [
        [
            str(place),
            result.name,
            *result.cells(result.static.total, result.adapted.total if result.adapted else None, dynamic),
        ]
        for place, result in enumerate(ranked, 1)
    ]
    console.table(["", "run", *heads], rows, right=heads, marked=0, dispensable=[*_DISPENSABLE, "perplexity"])


def _heads(dynamic: bool) -> list[str]:
    return ["perplexity", "bits/char", *(["dynamic"] if dynamic else []), "n-grams", "characters", "<unk>"]


def _show_novelty(asked: str | None, given: Sequence[Document], split: options.Part, json: bool) -> None:
    from grimmgen.cli import console, novelty
    from grimmgen.runs import registry

    judge = novelty.NoveltyReport(registry.load_model(asked), split)
    judged, control = judge.measure([(story.name, story.read()) for story in given]), judge.control
    if json:
        texts = [novelty.to_json(text) for text in judged]
        console.document({"run": judge.run, "split": split, "texts": texts, "control": novelty.to_json(control)})
    else:
        novelty.show(judge.run, judged, control)


def _show_heatmap(
    asked: str | None, given: Sequence[Document], html: Path | None, json: bool, quiet: bool
) -> None:
    from grimmgen.cli import console, heatmap
    from grimmgen.errors import UsageError
    from grimmgen.evaluation.surprisal import surprises
    from grimmgen.io import files
    from grimmgen.runs import registry

    target = None if html is None else files.output(html)
    for story in given:
        if story.size > _LARGEST_HEATMAP:
            raise UsageError(f"{story.name} is larger than {_LARGEST_HEATMAP >> 20} MB", "give a part of it")
    name, checkpoint = registry.find_checkpoint(asked)
    read = [(story.name, surprises(checkpoint, story.read())) for story in given]
    if target is not None:
        files.write_atomically(target, heatmap.page(name, read).encode("utf-8", "backslashreplace"))
    if json:
        texts = [{"name": title, **heatmap.to_json(found)} for title, found in read]
        console.document({"run": name, "texts": texts})
    elif html is None:
        for title, found in read:
            heatmap.show(title, found)
    elif not quiet:
        console.note(f"written to {html}")


def _own_stories(name: str, asked: str | None, part: options.Part) -> list[Document]:
    from grimmgen.errors import GrimmgenError, UsageError
    from grimmgen.runs import registry

    if name == asked and ("/" in asked or asked.endswith(".safetensors")):
        raise UsageError(f"{name} does not bring its stories", "give a FILE to read, or a run's name")
    stories = registry.find(name).split().parts[part]
    if not stories:
        raise GrimmgenError(f"the run {name} has no {part} stories", "give a FILE to read")
    return list(stories)

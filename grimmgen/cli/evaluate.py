"""`grimmgen eval`: how well a model foretells stories that it has not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from grimmgen.cli import options

if TYPE_CHECKING:
    from grimmgen.corpus import Story
    from grimmgen.evaluation import Evaluation, Score


_DISPENSABLE = ["<unk>", "characters", "n-grams"]


def evaluate(
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
    device: Annotated[str, options.option(help="auto, cpu or cuda.")] = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure perplexity per n-gram and bits per character, story by story and in total.

    Example: grimmgen eval --split test

    Example: grimmgen eval --novelty story.txt
    """
    from grimmgen import registry
    from grimmgen.cli import console
    from grimmgen.corpus import Story
    from grimmgen.errors import UsageError

    for path in files or []:
        if not path.is_file():
            raise UsageError(f"there is no file {path}", "give the path of a text file")
    given = [Story(str(path), path) for path in files or []]
    wanted: list[str | None] = [*run] if run else [None]
    if novelty:
        if len(wanted) > 1 or dynamic:
            raise UsageError(
                "--novelty is told of one run, without --dynamic", "give one --run, and no other task"
            )
        _show_novelty(wanted[0], given, split, json)
        return

    from grimmgen.evaluation import encode_stories, evaluate_dynamically
    from grimmgen.evaluation import evaluate as score
    from grimmgen.model import LanguageModel, choose_device

    chosen = choose_device(device)
    loaded = [(asked, *registry.find_checkpoint(asked)) for asked in wanted]
    read = [
        [(story.name, story.read()) for story in given or _own_stories(name, asked, split)]
        for asked, name, _ in loaded
    ]
    if any(texts != read[0] for texts in read):
        console.warn("the runs have different stories: to compare them on the same text, give FILEs")
    results: list[tuple[str, Evaluation, Evaluation | None]] = []
    for (_, name, checkpoint), texts in zip(loaded, read, strict=True):
        if not (quiet or json):
            stories = "1 text" if len(texts) == 1 else f"{len(texts)} texts"
            console.note(f"reading {stories} with {name}")
        model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(chosen)
        model.load_weights(checkpoint.weights)
        encoded = encode_stories(texts, checkpoint.vocabulary)
        static = score(model, encoded)
        adapted = None
        if dynamic:
            with console.Bars(quiet or json) as bars:
                bar = bars.add("texts", len(encoded))
                told = partial(bars.update, bar, info="learning as it reads", short="")
                adapted = evaluate_dynamically(model, encoded, told=told)
        results.append((name, static, adapted))
    ranked = sorted(results, key=lambda result: result[1].total.bits_per_character)
    if json:
        console.document(
            [
                {
                    "run": name,
                    "split": None if files else split,
                    **_figures(static.total, adapted.total if adapted else None),
                    "stories": [{"name": s.name, **_figures(s, a)} for s, a in _pairs(static, adapted)],
                }
                for name, static, adapted in ranked
            ]
        )
        return
    heads = ["perplexity", "bits/char", *(["dynamic"] if dynamic else []), "n-grams", "characters", "<unk>"]
    if len(ranked) > 1:
        rows = [
            [place, name, *_cells(s.total, d.total if d else None)] for place, (name, s, d) in enumerate(ranked, 1)
        ]
        console.table(["", "run", *heads], rows, right=heads, marked=0, dispensable=_DISPENSABLE)
        return
    name, static, adapted = ranked[0]
    rows = [[s.name, *_cells(s, a)] for s, a in _pairs(static, adapted)]
    if len(rows) > 1:
        rows.append(["all", *_cells(static.total, adapted.total if adapted else None)])
    what = "" if files else f", {split} stories"
    title = f"{name}{what}"
    console.table(["story", *heads], rows, title, right=heads, marked=len(rows) - 1, dispensable=_DISPENSABLE)


def _show_novelty(asked: str | None, given: Sequence[Story], split: options.Part, json: bool) -> None:
    from grimmgen.cli import console, novelty

    judge = novelty.Judge(asked, split)
    judged, control = judge.measure([(story.name, story.read()) for story in given]), judge.control()
    if json:
        texts = [novelty.to_json(text) for text in judged]
        console.document({"run": judge.run, "split": split, "texts": texts, "control": novelty.to_json(control)})
    else:
        novelty.show(judge.run, judged, control)


def _own_stories(name: str, asked: str | None, part: options.Part) -> list[Story]:
    from grimmgen import registry
    from grimmgen.errors import GrimmgenError, UsageError

    if name == asked and ("/" in asked or asked.endswith(".safetensors")):
        raise UsageError(f"{name} does not bring its stories", "give a FILE to read, or a run's name")
    stories = registry.find(name).split().parts[part]
    if not stories:
        raise GrimmgenError(f"the run {name} has no {part} stories", "give a FILE to read")
    return list(stories)


def _pairs(static: Evaluation, adapted: Evaluation | None) -> list[tuple[Score, Score | None]]:
    return list(zip(static.stories, adapted.stories if adapted else [None] * len(static.stories), strict=True))


def _figures(static: Score, adapted: Score | None) -> dict[str, float]:
    figures: dict[str, float] = {
        "perplexity": static.perplexity,
        "bits_per_character": static.bits_per_character,
        "ngrams": static.predictions,
        "characters": static.characters,
        "unknown": static.unknown,
    }
    if adapted:
        figures["dynamic_perplexity"] = adapted.perplexity
        figures["dynamic_bits_per_character"] = adapted.bits_per_character
    return figures


def _cells(static: Score, adapted: Score | None) -> list[str]:
    return [
        f"{static.perplexity:.3f}",
        f"{static.bits_per_character:.4f}",
        *([f"{adapted.bits_per_character:.4f}"] if adapted else []),
        f"{static.predictions:,}",
        f"{static.characters:,}",
        f"{static.unknown:,}",
    ]

"""`grimmgen eval`: how well a model foretells stories that it has not learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from grimmgen.cli import options

if TYPE_CHECKING:
    from grimmgen.corpus import Story
    from grimmgen.evaluation import Evaluation, Score


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
    device: Annotated[str, options.option(help="auto, cpu or cuda.")] = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure perplexity per n-gram and bits per character, story by story and in total.

    Example: grimmgen eval --split test
    """
    from grimmgen import registry
    from grimmgen.cli import console
    from grimmgen.corpus import Story
    from grimmgen.errors import UsageError
    from grimmgen.evaluation import encode_stories
    from grimmgen.evaluation import evaluate as score
    from grimmgen.model import LanguageModel, choose_device

    chosen = choose_device(device)
    for path in files or []:
        if not path.is_file():
            raise UsageError(f"there is no file {path}", "give the path of a text file")
    given = [Story(str(path), path) for path in files or []]
    wanted: list[str | None] = [*run] if run else [None]
    loaded = [(asked, *registry.find_checkpoint(asked)) for asked in wanted]
    read = [
        [(story.name, story.read()) for story in given or _own_stories(name, asked, split)]
        for asked, name, _ in loaded
    ]
    if any(texts != read[0] for texts in read):
        console.warn("the runs have different stories: to compare them on the same text, give FILEs")
    results: list[tuple[str, Evaluation]] = []
    for (_, name, checkpoint), texts in zip(loaded, read, strict=True):
        if not (quiet or json):
            stories = "1 text" if len(texts) == 1 else f"{len(texts)} texts"
            console.note(f"reading {stories} with {name}")
        model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(chosen)
        model.load_weights(checkpoint.weights)
        results.append((name, score(model, encode_stories(texts, checkpoint.vocabulary))))
    ranked = sorted(results, key=lambda result: result[1].total.bits_per_character)
    if json:
        console.document(
            [
                {
                    "run": name,
                    "split": None if files else split,
                    **_figures(evaluation.total),
                    "stories": [{"name": s.name, **_figures(s)} for s in evaluation.stories],
                }
                for name, evaluation in ranked
            ]
        )
        return
    heads = ["perplexity", "bits/char", "n-grams", "characters", "<unk>"]
    if len(ranked) > 1:
        rows = [[place, name, *_cells(e.total)] for place, (name, e) in enumerate(ranked, 1)]
        console.table(["", "run", *heads], rows, right=heads, marked=0)
        return
    name, evaluation = ranked[0]
    rows = [[s.name, *_cells(s)] for s in evaluation.stories]
    if len(rows) > 1:
        rows.append(["all", *_cells(evaluation.total)])
    what = "" if files else f", {split} stories"
    console.table(["story", *heads], rows, title=f"{name}{what}", right=heads, marked=len(rows) - 1)


def _own_stories(name: str, asked: str | None, part: options.Part) -> list[Story]:
    from grimmgen import registry
    from grimmgen.corpus import Split, open_corpus
    from grimmgen.errors import GrimmgenError, UsageError

    if name == asked and ("/" in asked or asked.endswith(".safetensors")):
        raise UsageError(f"{name} does not bring its stories", "give a FILE to read, or a run's name")
    info = registry.find(name).info()
    opened = open_corpus(str(info["corpus"]["source"]))
    stories = Split.from_json(info["corpus"]["split"], opened).parts[part]
    if not stories:
        raise GrimmgenError(f"the run {name} has no {part} stories", "give a FILE to read")
    return list(stories)


def _figures(score: Score) -> dict[str, float]:
    return {
        "perplexity": score.perplexity,
        "bits_per_character": score.bits_per_character,
        "ngrams": score.predictions,
        "characters": score.characters,
        "unknown": score.unknown,
    }


def _cells(score: Score) -> list[str]:
    return [
        f"{score.perplexity:.3f}",
        f"{score.bits_per_character:.4f}",
        f"{score.predictions:,}",
        f"{score.characters:,}",
        f"{score.unknown:,}",
    ]

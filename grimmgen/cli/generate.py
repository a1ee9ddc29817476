"""`grimmgen generate`: generate stories with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from grimmgen.cli import options
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.sampling.options import LONGEST, SamplingOptions

if TYPE_CHECKING:
    from grimmgen.sampling.generator import Generation, TextGenerator

# In bytes; a prompt is read n-gram by n-gram.
_MAX_PROMPT = 1 << 20


@options.accept(SamplingOptions)
def generate(
    chosen: Mapping[str, Any],
    run: options.RunOrFile = None,
    seed: Annotated[
        str, options.option(help="Text that the story begins with; - reads standard input.", show_default="none")
    ] = "",
    seed_file: Annotated[
        Path | None, options.option(help="File with the text that the story begins with.")
    ] = None,
    stories: Annotated[
        int, options.option(help="Number of stories to generate; the random seed increases by one for each.")
    ] = 1,
    unique: Annotated[bool, options.option("--unique", help="With --stories: generate none twice.")] = False,
    novel: Annotated[
        bool, options.option("--novel", help="Generate no story that is a whole story of the training set.")
    ] = False,
    lines: Annotated[
        bool, options.option("--lines", help="Break lines between words if standard output is a terminal.")
    ] = False,
    novelty: Annotated[
        bool,
        options.option("--novelty", help="Print what the story has in common with the training stories."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Generate stories with a trained model; only their text goes to standard output.

    One story is printed while it is generated, several when all are complete: one per line if the model was trained
    with --documents line, else separated by empty lines.

    Options apply in this order: --max-copy, --repetition-penalty, --temperature, --top-k, --top-p, --min-p.
    --json includes all that reproduces a story.

    Example: grimmgen generate --seed "the king" --top-k 3 > story.txt
    """
    from grimmgen.cli import console
    from grimmgen.sampling.generator import TextGenerator, fresh_random_seed

    sampling = SamplingOptions(**{"random_seed": fresh_random_seed(), **chosen})
    if lines and json:
        raise UsageError("--lines has no effect with --json", "leave out --lines")
    if unique and stories == 1:
        raise UsageError("--unique has no effect on one story", "give --stories as well")
    if seed and seed_file:
        raise UsageError("--seed and --seed-file exclude each other", "give one of them")
    prompt = _prompt(seed, seed_file)
    generator = TextGenerator.load(run)
    if not quiet and (warning := console.unknown(*generator.unknown_in(prompt))):
        console.warn(warning)
    report = None
    if novelty:
        from grimmgen.cli.novelty import NoveltyReport

        report = NoveltyReport(generator.model)

    if stories == 1 and not (json or novel):
        write = console.Lines().write if lines else console.write
        stream = generator.start(prompt, sampling, keep=report is not None)
        for [piece] in stream:
            write(piece)
        write("\n")
        generations = stream.generations
    else:
        if unique or novel:
            distinct = generator.generate_distinct(prompt, sampling, stories, unique=unique, novel=novel)
            generations = list(distinct)
        else:
            generations = generator.generate_batch(prompt, sampling, stories)
        if not json:
            write = console.Lines().write if lines else console.write
            between = "" if generator.checkpoint.configuration.documents == "line" else "\n"
            write(between.join(f"{generation.text}\n" for generation in generations))
    texts = ["".join(generation.pieces) for generation in generations]
    if json:
        records = [
            _record(generator, generation) | (report.to_json(text) if report else {})
            for generation, text in zip(generations, texts, strict=True)
        ]
        console.document(records if stories > 1 or not records else records[0])
    elif report:
        for number, text in enumerate(texts, 1):
            if stories > 1:
                console.note(f"story {number}:")
            report.print_summary(text)
    if generations and not quiet:
        _warn(generations)
    if len(generations) < stories:
        kind = " and ".join(["different"] * unique + ["new"] * novel)
        raise GrimmgenError(
            f"found only {len(generations)} of {stories} {kind} stories",
            "raise --temperature or --top-k, or lower --stories",
        )
    if "random_seed" not in chosen and sys.stderr.isatty() and not (json or quiet):
        count = f" --stories {stories}" if stories > 1 else ""
        kind = " --unique" * unique + " --novel" * novel
        reproduce = f"--run {generator.name} --random-seed {sampling.random_seed}{count}{kind}"
        console.hint(reproduce, "Reproduce with")


def _prompt(seed: str, seed_file: Path | None) -> str:
    """The prompt, from the command line, a file or standard input, without the line end that a shell adds."""
    from grimmgen.io import files

    if seed_file is not None:
        source = str(seed_file)
        with files.wrap_os_errors(f"cannot read {source}"), seed_file.open("rb") as file:
            content = file.read(_MAX_PROMPT + 1)
    elif seed == "-":
        source, content = "standard input", sys.stdin.buffer.read(_MAX_PROMPT + 1)
    else:
        return seed
    if len(content) > _MAX_PROMPT:
        raise UsageError(f"{source} is longer than {_MAX_PROMPT >> 20} MB", "give the last part of it")
    try:
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 (byte {error.start})", "convert it first") from None


def _record(generator: TextGenerator, generation: Generation) -> dict[str, Any]:
    """A story as JSON, with all that reproduces it."""
    from importlib.metadata import version

    return {
        "run": generator.name,
        "checkpoint_sha256": generator.checkpoint.sha256,
        "grimmgen": version("grimmgen"),
        "prompt": generation.prompt,
        "decoding": asdict(generation.options),
        "text": generation.text,
        "ending": generation.ending,
        "log_probability": generator.log_probability(generation),
    }


def _warn(generations: Sequence[Generation]) -> None:
    """Warn of copies that could not be avoided and of stories that were cut off."""
    from grimmgen.cli import console

    if copied := console.copied(max(generation.copied for generation in generations)):
        console.warn(copied)
    if any(generation.ending == "length" and generation.options.length is None for generation in generations):
        console.note(f"no end within {LONGEST:,} characters: raise --length")

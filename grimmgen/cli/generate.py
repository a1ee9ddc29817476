"""`grimmgen generate`: generate stories with a trained model."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grimmgen.cli import options
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.sampling.options import LONGEST, PAGE, SamplingOptions

if TYPE_CHECKING:
    from grimmgen.sampling.generator import Generation, TextGenerator

# In bytes; a prompt is read n-gram by n-gram.
_MAX_PROMPT = 1 << 20
# The parameters that may be given with --replay; the others are the record's own.
_WITH_REPLAY = {"replay", "run", "lines", "json", "quiet"}


@options.accept(SamplingOptions)
def generate(
    context: typer.Context,
    chosen: Mapping[str, Any],
    text: Annotated[
        str | None,
        options.argument(
            metavar="PROMPT",
            help="Text that the story begins with; that of a pipe if none is given.",
            show_default=False,
        ),
    ] = None,
    run: options.RunsOrFiles = None,
    seed: Annotated[
        str | None,
        options.option(
            "--seed", "--prompt", help="The same as PROMPT; - reads standard input.", show_default=False
        ),
    ] = None,
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
        bool, options.option("--lines/--no-lines", help="On a terminal, break lines between words.")
    ] = True,
    novelty: Annotated[
        bool,
        options.option("--novelty", help="Print what the story has in common with the training stories."),
    ] = False,
    corpus: options.MovedCorpus = None,
    title: Annotated[
        bool,
        options.option(
            "--title",
            help="Begin each story with a title, as documents begin whose first line is one; then the prompt.",
        ),
    ] = False,
    replay: Annotated[
        Path | None,
        options.option(help="Generate the story of a --json record again, and verify it; - reads standard input."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Generate stories with a trained model; only their text goes to standard output.

    One story is printed while it is generated, several when all are complete: one per line if the model was trained
    with --documents line, else separated by empty lines.

    Options apply in this order: --lexicon, --max-copy, --repetition-penalty, --temperature, --top-k, --top-p, --min-p.
    --json includes all that reproduces a story.
    --replay exits with code 3 if the text differs, and says what else does.

    Example: grimmgen generate "the king" --top-k 3 > story.txt
    """
    from grimmgen.cli import console
    from grimmgen.sampling.generator import TextGenerator, fresh_random_seed

    if json and "lines" in options.typed(context):
        raise UsageError("--lines has no effect with --json", "leave out --lines")
    if replay is not None:
        options.refuse_beside(context, "--replay", _WITH_REPLAY, "leave it out: the record has all options")
        _replay(replay, run, lines, json, quiet)
        return
    defaults: dict[str, Any] = {"random_seed": fresh_random_seed()}
    if "length" not in chosen:
        defaults["until"] = PAGE
    values = defaults | dict(chosen)
    SamplingOptions(**values)  # raises before the model is loaded
    if unique and stories == 1:
        raise UsageError("--unique has no effect on one story", "give --stories as well")
    if title and (unique or novel):
        raise UsageError(
            f"--title and --{'unique' if unique else 'novel'} exclude each other", "leave out one of them"
        )
    given = {"PROMPT": text, "--seed": seed, "--seed-file": seed_file}
    if len(used := [name for name, value in given.items() if value is not None]) > 1:
        raise UsageError(f"{' and '.join(used)} exclude each other", "give one of them")
    if seed is not None and seed.isdigit() and not quiet:
        console.hint(
            f"--random-seed {seed}", "--seed is what the story begins with; the seed of all randomness is"
        )
    prompt = _prompt(seed if text is None else text, seed_file)
    first, others = (run[0], run[1:]) if run else (None, [])
    generator = TextGenerator.load(first, corpus, others)
    sampling = generator.options(**values)
    options.report_default(first, generator.model, quiet)
    if not quiet and (warning := console.unknown(*generator.unknown_in(prompt))):
        console.warn(warning)
    prompts = [line + prompt for line in generator.titles(sampling, stories)] if title else [prompt]
    report = None
    if novelty:
        from grimmgen.cli.novelty import NoveltyReport

        report = NoveltyReport(generator.model)

    if stories == 1 and not (json or novel):
        write = console.Lines().write if lines else console.write
        stream = generator.start(prompts[0], sampling, keep=report is not None)
        for [piece] in stream:
            write(piece)
        write("\n")
        generations = stream.generations
    else:
        if unique or novel:
            distinct = generator.generate_distinct(prompt, sampling, stories, unique=unique, novel=novel)
            generations = list(distinct)
        elif title:
            seeded = [replace(sampling, random_seed=sampling.random_seed + number) for number in range(stories)]
            generations = [
                generator.generate_batch(line, one, 1)[0] for line, one in zip(prompts, seeded, strict=True)
            ]
        else:
            generations = generator.generate_batch(prompt, sampling, stories)
        if not json:
            _write_stories(generator, generations, lines)
    continuations = ["".join(generation.pieces) for generation in generations]
    if json:
        from grimmgen.sampling.records import to_record

        records = [
            to_record(generator, generation) | (report.to_json(continuation) if report else {})
            for generation, continuation in zip(generations, continuations, strict=True)
        ]
        console.document(records if stories > 1 or not records else records[0])
    elif report:
        for number, continuation in enumerate(continuations, 1):
            if stories > 1:
                console.note(f"story {number}:")
            report.print_summary(continuation)
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
        kind = " --unique" * unique + " --novel" * novel + " --title" * title
        names = " ".join(f"--run {name}" for name in generator.names)
        reproduce = f"{names} --random-seed {sampling.random_seed}{count}{kind}"
        console.hint(reproduce, "Reproduce with")


def _replay(path: Path, run: list[str] | None, lines: bool, json: bool, quiet: bool) -> None:
    """Generate the stories of a file of records again; none is printed unless all are reproduced."""
    from grimmgen.cli import console
    from grimmgen.sampling import records
    from grimmgen.sampling.generator import TextGenerator

    source, content = _read(None if str(path) == "-" else path, records.LARGEST, "it is no record")
    generations, documents, found = [], [], list[str]()
    generator = None
    for record in records.Record.parse_all(content, source):
        # The records of one file usually have one model.
        if generator is None or (run is None and record.names != generator.names):
            try:
                first, *others = run or record.names
                generator = TextGenerator.load(first, others=others)
            except IntegrityError:
                raise
            except GrimmgenError as error:
                raise error if run else UsageError(f"{source} {error.what}", "give its model with --run") from None
        generation, differences = records.replay(generator, record, source)
        generations.append(generation)
        documents.append(records.to_record(generator, generation) if json else {})
        found += differences
    if json:
        console.document(documents if len(documents) > 1 else documents[0])
    else:
        assert generator is not None
        _write_stories(generator, generations, lines)
    if not quiet:
        although = "".join(f", although {difference}" for difference in dict.fromkeys(found))
        console.note(f"{source} is reproduced{although}")


def _write_stories(generator: TextGenerator, generations: Sequence[Generation], lines: bool) -> None:
    """Write complete stories to standard output, separated by empty lines unless each is one line."""
    from grimmgen.cli import console

    write = console.Lines().write if lines else console.write
    between = "" if generator.checkpoint.configuration.documents == "line" else "\n"
    write(between.join(f"{generation.text}\n" for generation in generations))


def _read(path: Path | None, limit: int, remedy: str) -> tuple[str, bytes]:
    """The name in messages and the content of a file, or of standard input for None, of so many bytes at most."""
    from grimmgen.io import files

    if path is None:
        source, content = "standard input", sys.stdin.buffer.read(limit + 1)
    else:
        source = str(path)
        with files.wrap_os_errors(f"cannot read {source}"), path.open("rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise UsageError(f"{source} is longer than {limit >> 20} MB", remedy)
    return source, content


def _prompt(text: str | None, seed_file: Path | None) -> str:
    """The prompt, from the command line, a file or standard input, without the line end that a shell adds."""
    if seed_file is None and text != "-" and (text is not None or not _is_piped()):
        return text or ""
    from grimmgen.reading import file_kinds

    source, content = _read(seed_file, _MAX_PROMPT, "give the last part of it")
    try:
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        if kind := file_kinds.describe(content[: file_kinds.HEAD]):
            raise UsageError(f"{source} is {kind}", "give a text file") from None
        remedy = "convert it, as with iconv -f windows-1252 -t utf-8"
        raise UsageError(f"{source} is not UTF-8 (byte {error.start})", remedy) from None


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file; a terminal, /dev/null and a socket are not."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _warn(generations: Sequence[Generation]) -> None:
    """Warn of copies that could not be avoided and of stories that were cut off."""
    from grimmgen.cli import console

    if copied := console.copied(max(generation.copied for generation in generations)):
        console.warn(copied)
    unlimited = [g for g in generations if g.options.length is None and g.options.until != PAGE]
    if any(generation.ending == "length" for generation in unlimited):
        console.note(f"no end within {LONGEST:,} characters: raise --length")

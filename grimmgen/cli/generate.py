"""`grimmgen generate`: tell a story."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from grimmgen.cli import options

if TYPE_CHECKING:
    from grimmgen.sampling.generator import Generation, TextGenerator

# It is read n-gram by n-gram before the story goes on.
_LONGEST_PROMPT = 1 << 20


def generate(
    run: options.RunOrFile = None,
    seed: Annotated[
        str,
        options.option(
            help="The text that the story begins with; - reads it from standard input.",
            show_default="the model begins",
        ),
    ] = "",
    seed_file: Annotated[Path | None, options.option(help="The same from a file.")] = None,
    length: Annotated[
        int | None,
        options.option(
            help="Characters to tell after it, at most: the story may end before.",
            show_default="to the story's end, or 20000",
        ),
    ] = None,
    until: Annotated[
        str | None,
        options.option(
            help="Tell one sentence, one paragraph, or until a text has been told: sentence, paragraph or TEXT.",
            show_default="the story's end",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        options.option(
            help="Draw among this many best n-grams, in proportion; 0 is all.",
            show_default="3; all with --top-p or --min-p",
        ),
    ] = None,
    top_p: Annotated[
        float, options.option(help="Draw among the fewest best n-grams that have this probability together.")
    ] = 1.0,
    min_p: Annotated[
        float, options.option(help="Draw among those at least this many times as probable as the best one.")
    ] = 0.0,
    temperature: Annotated[float, options.option(help="Above 1 bolder, below 1 safer, 0 always the best.")] = 1.0,
    greedy: Annotated[bool, options.option("--greedy", help="Always the best n-gram, or the best beam.")] = False,
    repetition_penalty: Annotated[
        float, options.option(help="Above 1, what was told lately becomes less probable: p to this power.")
    ] = 1.0,
    beam_width: Annotated[
        int | None,
        options.option(help="Weigh so many beams of n-grams, then draw one of them.", show_default="no beams"),
    ] = None,
    beam_depth: Annotated[int | None, options.option(help="N-grams of a beam; 5 if not given.")] = None,
    max_copy: Annotated[
        int | None,
        options.option(
            help="Never more characters than that in a row as they stand in the run's training stories.",
            show_default="any",
        ),
    ] = None,
    random_seed: Annotated[
        int | None, options.option(help="Makes the story the same again.", show_default="a new one")
    ] = None,
    stories: Annotated[
        int, options.option(help="Tell so many, each with a random seed one higher than that of the one before.")
    ] = 1,
    state: Annotated[
        Literal["random", "zeros"],
        options.option(help="What the network begins with: a little noise as in the tutorial, or zeros."),
    ] = "random",
    lines: Annotated[
        bool, options.option("--lines", help="On a terminal, break lines between words; a pipe gets the raw text.")
    ] = False,
    novelty: Annotated[
        bool,
        options.option("--novelty", help="Then tell what of it stands verbatim in the run's training stories."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell a story with a trained model: the text goes to standard output as it is made, all else elsewhere.

    Several stories are told side by side, and come when all are complete, with an empty line between them.

    What may come next is narrowed in this order: --max-copy, --repetition-penalty, --temperature,
    --top-k, --top-p, --min-p. --json has all that it takes to tell a story again.

    Example: grimmgen generate --seed "the king" --top-k 3 > story.txt
    """
    from grimmgen.cli import console
    from grimmgen.errors import UsageError
    from grimmgen.sampling.generator import TextGenerator, fresh_random_seed
    from grimmgen.sampling.options import SamplingOptions

    chosen = SamplingOptions(
        length=length,
        until=until,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        temperature=temperature,
        greedy=greedy,
        repetition_penalty=repetition_penalty,
        beam_width=beam_width,
        beam_depth=beam_depth,
        max_copy=max_copy,
        random_seed=fresh_random_seed() if random_seed is None else random_seed,
        state=state,
    )
    if lines and json:
        raise UsageError("--lines is for a terminal, --json for a program", "leave out --lines")
    if seed and seed_file:
        raise UsageError("--seed and --seed-file both begin the story", "give one of them")
    prompt = _prompt(seed, seed_file)
    teller = TextGenerator.load(run)
    if not quiet and (warning := console.unknown(*teller.unknown_in(prompt))):
        console.warn(warning)
    judge = None
    if novelty:
        from grimmgen.cli.novelty import NoveltyReport

        judge = NoveltyReport(teller.model)
    write = console.Lines().write if lines else console.write
    if stories == 1 and not json:
        stream = teller.start(prompt, chosen, keep=judge is not None)
        for [piece] in stream:
            write(piece)
        write("\n")
        told = stream.generations
    else:
        told = teller.generate_batch(prompt, chosen, stories)
        if json:
            documents = [
                _record(teller, story) | ({} if judge is None else judge.to_json("".join(story.pieces)))
                for story in told
            ]
            console.document(documents if stories > 1 else documents[0])
        else:
            write("\n".join(f"{story.text}\n" for story in told))
    for number, story in enumerate(told, 1):
        if stories > 1 and judge is not None and not json:
            console.note(f"story {number}:")
        if judge is not None and not json:
            judge.print_summary("".join(story.pieces))
    if not quiet:
        _tell_about(told)
        if random_seed is None and sys.stderr.isatty() and not json:
            several = f" --stories {stories}" if stories > 1 else ""
            console.hint(
                f"--random-seed {chosen.random_seed}{several}", f"{teller.name} tells the same again with"
            )


def _prompt(seed: str, seed_file: Path | None) -> str:
    from grimmgen.errors import UsageError
    from grimmgen.io import files

    if seed_file is not None:
        where = str(seed_file)
        with files.wrap_os_errors(f"cannot read {where}"), seed_file.open("rb") as file:
            sent = file.read(_LONGEST_PROMPT + 1)
    elif seed == "-":
        where, sent = "standard input", sys.stdin.buffer.read(_LONGEST_PROMPT + 1)
    else:
        return seed
    if len(sent) > _LONGEST_PROMPT:
        raise UsageError(f"{where} is longer than {_LONGEST_PROMPT >> 20} MB", "give the last part of it")
    try:
        # One line end before the end of the input is the shell's, not the story's.
        return sent.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 (byte {error.start})", "convert it first") from None


def _record(teller: TextGenerator, story: Generation) -> dict[str, Any]:
    """All that is needed to tell a story again, and the story."""
    from importlib.metadata import version

    return {
        "run": teller.name,
        "checkpoint_sha256": teller.checkpoint.sha256,
        "grimmgen": version("grimmgen"),
        "prompt": story.prompt,
        "decoding": asdict(story.options),
        "text": story.text,
        "ending": story.ending,
        "log_probability": teller.log_probability(story),
    }


def _tell_about(told: Sequence[Generation]) -> None:
    """What may surprise about stories that have been told."""
    from grimmgen.cli import console
    from grimmgen.sampling.options import LONGEST

    if copied := console.copied(max(story.copied for story in told)):
        console.warn(copied)
    if any(story.ending == "length" and story.options.length is None for story in told):
        console.note(f"no end within {LONGEST:,} characters: --length gives it more")

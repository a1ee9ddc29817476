"""The command line: one module a subcommand, each of which parses, makes one call and renders.

Here they are put together, and here every error becomes one line and an exit code:
0 well, 1 failed, 2 usage, 3 integrity, 70 a bug of ours, 128+N signal N.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from grimmgen.cli import eval, fetch, generate, help, options, runs, train, vocab
from grimmgen.errors import GrimmgenError
from grimmgen.training import distributed

__all__ = ["app", "main"]

_BUG = 70
_FULL = "the memory is full: give less text, or a smaller network"
_INTERRUPTED = 130
_YES = {"1", "true", "t", "yes", "y", "on"}
_ISSUES = "https://github.com/grimmgen/grimmgen/issues"

app = typer.Typer(
    name="grimmgen",
    cls=help.Group,
    help="Train a recurrent language model, written from scratch, on folk tales or any text of yours,"
    " and tell new stories with it.",
    epilog="Begin with: grimmgen train --corpus sampler, then: grimmgen generate. Every option has a variable too:"
    " GRIMMGEN_TRAIN_UNROLL=50 is grimmgen train --unroll 50. GRIMMGEN_HOME moves cache and runs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "GRIMMGEN"},
)
app.command("fetch", cls=help.Command)(fetch.fetch)
app.command("vocab", cls=help.Command)(vocab.vocab)
app.command("train", cls=help.Command)(train.train)
app.command("eval", cls=help.Command)(eval.evaluate)
app.command("generate", cls=help.Command)(generate.generate)
app.add_typer(runs.app, name="runs")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"grimmgen {version('grimmgen')}")  # noqa: T201 - no more than this
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, options.option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, options.option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The options before the subcommand; `main` looks for --debug itself, so that it is known early."""


def main() -> None:
    """Run the command line and exit."""
    distributed.exit_process(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    _prepare_streams()
    # The words that typer reads as yes in a variable.
    debug = "--debug" in arguments or os.environ.get("GRIMMGEN_DEBUG", "").lower() in _YES
    from grimmgen.cli import console

    try:
        result = app(arguments, prog_name="grimmgen", standalone_mode=False)
        sys.stdout.flush()
    except GrimmgenError as error:
        if debug:
            console.trace()
        if distributed.reports_errors():
            console.error(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.note("stopped")
        return _INTERRUPTED
    except MemoryError:
        if debug:
            console.trace()
        console.error(_FULL)
        return 1
    except BrokenPipeError:
        _drop_output()
        return 0
    except SystemExit as leaving:
        # Typer and rich leave so, with exit code 1, where they meet a broken pipe.
        if not isinstance(leaving.__context__, BrokenPipeError):
            return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        _drop_output()
        return 0
    except OSError as error:
        if debug:
            console.trace()
        place = f" {error.filename}" if error.filename else ""
        console.error(f"the system refuses{place} ({error.strerror or error}): check the path and the disk")
        _drop_output()
        return 1
    except Exception as error:
        # Typer's own errors know how to say what they are; their class has moved between its versions.
        if (tell := getattr(error, "format_message", None)) is not None:
            if error.__class__.__name__ == "NoArgsIsHelpError":
                return 2
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else _command(arguments)
            if distributed.reports_errors():
                console.error(f"{_in_our_words(tell())}: see `{command} --help`")
            return int(getattr(error, "exit_code", 2))
        if debug:
            console.trace()
        torch = sys.modules.get("torch")  # not imported for this
        if torch is not None and isinstance(error, torch.OutOfMemoryError):
            console.error("the device is out of memory: give a smaller network, or --device cpu")
            return 1
        if "DefaultCPUAllocator" in str(error):
            # PyTorch's name for what is a MemoryError everywhere else.
            console.error(_FULL)
            return 1
        console.error(
            f"a bug of ours, {error.__class__.__name__}: {error}: please report it at {_ISSUES}"
            " with what `grimmgen --debug` shows"
        )
        return _BUG
    return result if isinstance(result, int) else 0


def _command(arguments: Sequence[str]) -> str:
    """The command that these arguments are for: an error that was met while they were read does not say.

    >>> _command(["--debug", "runs", "show", "--json="])
    'grimmgen runs show'
    """
    from typer.main import get_command

    path, at = ["grimmgen"], get_command(app)
    for argument in arguments:
        if (below := getattr(at, "commands", {}).get(argument)) is not None:
            path.append(argument)
            at = below
    return " ".join(path)


def _in_our_words(message: str) -> str:
    """What typer says of a wrong option or value, in one line that reads well before a colon.

    >>> _in_our_words("No such command 'trian'. Did you mean 'train'?")
    "No such command 'trian' (did you mean 'train'?)"
    >>> _in_our_words("Invalid value: Input should be a valid number, unable to parse string as a number")
    'Invalid value: not a number'
    """
    message = " ".join(message.split()).rstrip(".")
    message = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", message)
    message = re.sub(r"Input should be a valid integer\b.*", "not a whole number", message)
    message = re.sub(r"Input should be a valid number\b.*", "not a number", message)
    return message.replace(": Value error, ", ": ")


def _drop_output() -> None:
    """What is still buffered has nowhere to go: whoever read has read enough, or the disk is full."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_streams() -> None:
    """The same bytes everywhere: UTF-8 whatever the locale is, line ends as written."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Closed by whoever called: the next file opened would take its place. An input is empty, an output
            # fails (nothing is lost in silence), errors are not heard.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")

"""The command line: one module per command, each of which parses, makes one call and renders the result.

This module puts the commands together and turns every error into one line and an exit code: 0 success, 1 failure,
2 usage, 3 integrity, 70 a bug of grimmgen, 128+N signal N.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.main

from grimmgen.cli import console, export, fetch, formatting, generate, options, runs, train, variables, vocab
from grimmgen.cli import eval as eval_command
from grimmgen.errors import GrimmgenError, did_you_mean
from grimmgen.training import distributed

__all__ = ["app", "main"]

_BUG = 70
_INTERRUPTED = 130
# Below this limit of the address space in bytes, threads of the BLAS library are spared: each reserves some of it.
_SMALL_ADDRESS_SPACE = 2 << 30
# What the libraries of a command need at least; with less, PyTorch and BLAS abort the process instead of failing.
_LEAST_ADDRESS_SPACE = {"train": 700e6, "eval": 700e6, "generate": 150e6, "vocab": 150e6, "export": 150e6}
# The values that Typer reads as true in a variable.
_TRUE = {"1", "true", "t", "yes", "y", "on"}
_ISSUES = "https://github.com/grimmgen/grimmgen/issues"
# The base of Typer's errors about a command line, which Typer does not export by itself.
_CommandLineError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="grimmgen",
    cls=formatting.Group,
    help="Train a recurrent language model, written from scratch, on folk tales or your own text, and generate"
    " stories with it.",
    epilog="Start with: grimmgen generate, then: grimmgen train --corpus sampler. Environment variables set"
    " options, too: GRIMMGEN_TRAIN_UNROLL=50 is grimmgen train --unroll 50. GRIMMGEN_HOME is the directory of"
    " cache and runs, GRIMMGEN_DEBUG=1 shows tracebacks, GRIMMGEN_KERNEL=plain trains without compiled kernels.",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "GRIMMGEN"},
)
app.command("fetch", cls=formatting.Command)(fetch.fetch)
app.command("vocab", cls=formatting.Command)(vocab.vocab)
app.command("train", cls=formatting.Command)(train.train)
app.command("eval", cls=formatting.Command)(eval_command.evaluate)
app.command("generate", cls=formatting.Command)(generate.generate)
app.command("export", cls=formatting.Command)(export.export)
app.add_typer(runs.app, name="runs")


@app.command("help", cls=formatting.Command, hidden=True)
def _help(
    command: Annotated[
        list[str] | None,
        options.argument(metavar="COMMAND", help="The command; without one, grimmgen.", show_default=False),
    ] = None,
) -> None:
    """Show the help of a command, as --help does.

    Example: grimmgen help train
    """
    _command()([*(command or ()), "--help"], prog_name="grimmgen")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"grimmgen {version('grimmgen')}")  # noqa: T201 - rich is not imported for one line
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - `_version` handles it
        bool,
        options.option("--version", "-V", help="Print the version and exit.", callback=_version, is_eager=True),
    ] = False,
    debug: Annotated[  # noqa: ARG001 - `_run` looks for it, because it must be known before parsing
        bool, options.option("--debug", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """The options before the command."""
    formatting.help_without_command(context)


def main() -> None:
    """Run the command line and exit."""
    distributed.exit_process(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code."""
    _prepare_streams()
    if _address_space() < _SMALL_ADDRESS_SPACE:
        # Before NumPy is loaded.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    debug = "--debug" in arguments or os.environ.get("GRIMMGEN_DEBUG", "").lower() in _TRUE
    try:
        _check_address_space(arguments)
        code = _command()(arguments, prog_name="grimmgen", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        console.discard_output()
        return 0
    except SystemExit as leaving:
        # Typer exits with code 1 where it meets a broken pipe.
        if not isinstance(leaving.__context__, BrokenPipeError):
            return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        console.discard_output()
        return 0
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        if sys.stderr.isatty():
            console.note("")  # the terminal has echoed ^C
        console.note(str(interrupt) or "stopped")
        return _INTERRUPTED
    except _CommandLineError as error:
        if distributed.reports_errors():
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else _command_path(arguments)
            message = f"{_one_sentence(error.format_message())}{variables.cause(error)}"
            if "extra argument" in message and path.endswith(" generate"):
                message += ", put quotes around a prompt of several words"
            console.error(f"{message}: see `{path} --help`")
        return int(error.exit_code)
    except Exception as error:
        if debug:
            console.trace()
        code, message = _explain(error)
        if distributed.reports_errors() or not isinstance(error, GrimmgenError):
            console.error(message)
        if isinstance(error, OSError):
            console.discard_output()
        return code


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the message of an error."""
    torch = sys.modules.get("torch")  # not imported for this
    match error:
        case GrimmgenError():
            return error.exit_code, str(error)
        case MemoryError():
            return 1, _out_of_memory()
        case ImportError() if "failed to map segment" in str(error) or "allocate memory" in str(error):
            return 1, _out_of_memory()
        case RuntimeError() if "can't start new thread" in str(error):
            return 1, "no thread can be started: raise the limits of processes and memory (ulimit -u, ulimit -v)"
        case OSError():
            place = f" {error.filename}" if error.filename else ""
            return 1, f"system error{place} ({error.strerror or error}): check the path and the disk"
        case _ if torch is not None and isinstance(error, torch.OutOfMemoryError):
            return 1, "the device is out of memory: give a smaller network, or --device cpu"
        case _ if "DefaultCPUAllocator" in str(error):
            # PyTorch's equivalent of MemoryError.
            return 1, _out_of_memory()
        case _:
            return _BUG, (
                f"internal error, {error.__class__.__name__}: {error}: please report it at {_ISSUES}"
                " with the output of `grimmgen --debug`"
            )


def _address_space() -> float:
    """The limit of this process's address space in bytes."""
    if sys.platform == "win32":
        return math.inf
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _check_address_space(arguments: Sequence[str]) -> None:
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if _address_space() < _LEAST_ADDRESS_SPACE.get(command, 0) and not {"-h", "--help"} & {*arguments}:
        raise MemoryError


def _out_of_memory() -> str:
    if (limit := _address_space()) < math.inf:
        return f"the address space of {limit / 1e6:.0f} MB is too small: raise its limit (ulimit -v)"
    return "out of memory: give less text, or a smaller network"


def _command() -> Any:
    command: Any = typer.main.get_command(app)
    for parameter in command.params:
        parameter.show_envvar = False  # of Typer's own options for completion, as of all others
    return command


def _command_path(arguments: Sequence[str]) -> str:
    """The command that these arguments name, for an error that does not know its context.

    >>> _command_path(["--debug", "runs", "show", "--json="])
    'grimmgen runs show'
    """
    path, command = ["grimmgen"], _command()
    for argument in arguments:
        if (below := getattr(command, "commands", {}).get(argument)) is not None:
            path.append(argument)
            command = below
    return " ".join(path)


def _one_sentence(message: str) -> str:
    """Typer's message as a sentence that can precede a colon.

    >>> _one_sentence("No such command 'trian'. Did you mean 'train'?")
    "No such command 'trian', did you mean 'train'"
    >>> _one_sentence("Invalid value for '--top-k': Input should be a valid integer, unable to parse string")
    "Invalid value for '--top-k': not a valid integer"
    >>> _one_sentence("No such option: --topk (Possible options: --top-k, --top-p)")
    'No such option: --topk, did you mean --top-k or --top-p'
    """
    message = re.sub(r"Input should be a valid (integer|number)\b.*", r"not a valid \1", " ".join(message.split()))
    if several := re.search(r" \(Possible options: (.*)\)", message):
        message = f"{message[: several.start()]}, did you mean {several[1].replace(', ', ' or ')}"
    message = re.sub(r"[.?]? Did you mean ", ", did you mean ", message.rstrip(".?"))
    if refused := re.search(r"'([^']*)' is not one of (.*)", message):
        message += did_you_mean(refused[1], re.findall(r"'([^']*)'", refused[2]))
    return message.replace(": Value error, ", ": ")


def _prepare_streams() -> None:
    """Write the same bytes everywhere: UTF-8 in any locale, line ends unchanged."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The caller closed it, and the next file opened would take its number. Standard input becomes empty,
            # writing to standard output fails, standard error is discarded.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")

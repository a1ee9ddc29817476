"""Environment variables: only documented ones are read, and an error that one caused names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grimmgen.cli import _command
from tests.program import Ran

Program = Callable[..., Ran]


def commands(command: Any, path: tuple[str, ...] = ("GRIMMGEN",)) -> Iterator[tuple[str, Any, Any]]:
    """The prefix of its variables, each command, and its context."""
    context = command.context_class(command, info_name="grimmgen", auto_envvar_prefix="_".join(path))
    yield "_".join(path), command, context
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name.upper()))


def test_no_variable_sets_what_is_not_an_option_of_a_command() -> None:
    read = {
        f"{prefix}_{parameter.name.upper()}"
        for prefix, command, context in commands(_command())
        for parameter in command.get_params(context)
        if getattr(parameter, "allow_from_autoenv", False)
    }
    assert {"GRIMMGEN_TRAIN_HIDDEN", "GRIMMGEN_GENERATE_RUN", "GRIMMGEN_RUNS_RM_YES"} <= read
    assert not [name for name in read if name.endswith("_HELP") or name.count("_") < 2]


@pytest.mark.parametrize(
    "variable",
    ["VERSION", "HELP", "DEBUG", "RUNS_HELP", "RUNS_LIST_HELP", "INSTALL_COMPLETION", "SHOW_COMPLETION"],
)
def test_undocumented_variables_have_no_effect(
    variable: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GRIMMGEN_{variable}", "0.1.0")
    assert run("runs", "list").err.startswith("no runs yet; ")


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("HIDDEN", "many", "Invalid value for '--hidden': "),
        ("HIDDEN", "0", "--hidden 0 is out of range"),
        ("CELL", "rnn", "Invalid value for '--cell': "),
        ("BUDGET", "3x", "--budget '3x' is not a duration"),
        ("TIED", "1", "--tied has no effect without --embedding"),
        ("RUN", "../x", "'../x' cannot be the name of a run"),
        ("CORPUS", "gone", "there is no corpus 'gone'"),
        ("DEVICE", "tpu", "tpu"),
        ("MIN_COUNT", "1000000", "occurs 1000000 times"),
    ],
)
def test_an_error_names_the_variable(
    variable: str, value: str, part: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GRIMMGEN_TRAIN_{variable}", value)
    corpus = [] if variable == "CORPUS" else ["--corpus", "sampler"]
    ran = run("train", *corpus)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert part in ran.err
    assert f" (set by GRIMMGEN_TRAIN_{variable}): " in ran.err


def test_an_error_about_the_command_line_names_no_variable(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_TRAIN_HIDDEN", "5")
    monkeypatch.setenv("GRIMMGEN_TRAIN_CLIP", "0")
    for options in ["--clip", "1", "--layers", "0"], ["--clip", "1", "--hidden", "x"]:
        ran = run("train", "--corpus", "sampler", *options)
        assert ran.code == 2
        assert "GRIMMGEN" not in ran.err

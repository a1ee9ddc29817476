"""The command line as a whole: options, errors, exit codes and streams; the commands vocab, eval and runs.

`generate` and `train` have files of their own, `test_cli_generate.py` and `test_cli_train.py`.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from grimmgen.cli import app, console
from grimmgen.cli.chart import draw
from grimmgen.configuration import READING, Configuration, options_of
from grimmgen.evaluation.baseline import KneserNey
from grimmgen.runs import curves, registry
from grimmgen.runs.registry import Run
from grimmgen.sampling.options import SamplingOptions
from tests.program import PROGRAM, Ran, grimmgen, on_terminal, shell

Program = Callable[..., Ran]

# --- options ---------------------------------------------------------------------------------------------


def declared(options: type, *names: str) -> str:
    """The flags of declared options; docs/options.md, which a test keeps up to date, has the frozen list."""
    return " ".join(
        flag
        for name, option in options_of(options).items()
        if not names or name in names
        for flag in (*option.flags, option.alias)
    )


# All options. Those that no dataclass declares are frozen here: a new one has to be added on purpose.
OPTIONS = {
    "": "--version -V --debug --install-completion --show-completion",
    "fetch": "--stories --url --jobs --force",
    "vocab": "--corpus --split --top --check --repair "
    + declared(Configuration, "tokens", "min_count", "lower", "newlines", "language", "phases", *READING),
    "train": "--corpus --run --resume --from --distil --preset --device --split --log-to --sample-every "
    + declared(Configuration),
    "eval": "--run --corpus --split --dynamic --novelty --baseline --mix --heatmap --cells --unit --html --device "
    + declared(Configuration, *READING),
    "generate": "--run --corpus --seed --prompt --seed-file --replay --title --stories --unique --novel"
    " --lines --no-lines --novelty " + declared(SamplingOptions),
    "help": "",
    "export": "--run --html --onnx --onnx-window --torch --bits",
    "runs": "",
    "runs list": "",
    "runs show": "--measure",
    "runs plot": "--output -o --over",
    "runs path": "",
    "runs rm": "--yes -y",
}
GROUPS = {"", "runs", "help"}


def commands() -> dict[str, Any]:
    root: Any = typer.main.get_command(app)
    runs = root.commands["runs"]
    return {"": root, **root.commands, **{f"runs {name}": command for name, command in runs.commands.items()}}


def test_the_set_of_commands_is_frozen() -> None:
    assert set(commands()) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_set_of_options_is_frozen(name: str) -> None:
    options = [o for p in commands()[name].params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")]
    everywhere = [] if name in GROUPS else ["--json", "--quiet", "-q"]
    assert sorted(options) == sorted([*OPTIONS[name].split(), *everywhere])


def test_help_is_a_command_too(run: Program) -> None:
    assert run("help", "runs", "show") == run("runs", "show", "--help")
    assert run("help") == run("--help")
    assert run("-V") == run("--version")


def test_files_of_a_corpus_are_arguments_too(tmp_path: Path, run: Program) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the king and the fox\n" * 40)
    assert run("vocab", str(text)).out == run("vocab", "--corpus", str(text)).out
    assert run("train", str(text), "--hidden", "3", "--batch-size", "2", "--epochs", "1").code == 0
    assert run("train", "--resume", str(text), "--epochs", "2").code == 0
    assert run("vocab", str(text), "--corpus", "sampler").code == 2


@pytest.mark.parametrize("name", OPTIONS)
def test_help_has_an_example_and_describes_every_option(name: str, run: Program) -> None:
    shown = run(*name.split(), "--help")
    assert (shown.code, shown.err) == (0, "")
    assert run(*name.split(), "-h").out == shown.out
    assert re.search(rf"Example: .*grimmgen {name}", shown.out) or not name
    assert all(getattr(p, "help", None) for p in commands()[name].params if p.name != "context")
    assert "env var" not in shown.out


def test_help_shows_defaults_in_words(run: Program) -> None:
    # The square brackets are not read as markup.
    shown = " ".join(re.sub("[│ \n]+", " ", run("generate", "--help").out).split())
    assert "[default: (the latest run; grimm where there is none)]" in shown
    assert "[default: (a new one each time)]" in shown


@pytest.mark.parametrize("name", OPTIONS)
def test_help_on_a_narrow_terminal_cuts_nothing_off(
    name: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = run(*name.split(), "--help").out
    for columns in (40, 72, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = run(*name.split(), "--help").out
        assert "…" not in shown
        assert "..." not in shown.replace("]...", "").replace("}...", "")
        options = r"--[a-z][a-z-]+"
        assert set(re.findall(options, wide)) <= set(re.findall(options, re.sub(r"-[ │]*\n[ │]+", "-", shown)))
        # Choices are not broken: <tutorial|quick|strong|large>.
        assert all(len(line) <= columns for line in shown.splitlines() if "|" not in line)


def test_screens_show_the_help_of_every_command() -> None:
    shown = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "screens.py"))["HELPS"]
    assert {one.removesuffix("--help").strip() for one in shown} == set(commands()) - {"help"}


def test_help_names_the_package_for_plots(run: Program) -> None:
    assert "(pip install matplotlib)" in " ".join(run("runs", "plot", "--help").out.split())


def test_version(run: Program) -> None:
    assert run("--version") == (0, f"grimmgen {version('grimmgen')}\n", "")


# --- errors ----------------------------------------------------------------------------------------------


def error(ran: Ran) -> tuple[int, str]:
    """The exit code and the message of an error in one line, with nothing on standard output."""
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1
    return ran.code, ran.err[7:-1]


NO_TALES = "no tales have been fetched yet: run `grimmgen fetch`, or take the bundled ones with --corpus sampler"
NO_RUN = "there is no run yet: train one with `grimmgen train`"
NO_CORPUS = "there is no corpus 'gone.txt': give grimm, sampler, or the path of a text file or directory"
BAD_NAME = "use at most 64 letters, digits, dots, dashes and underscores, starting with a letter or digit"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train", 1, NO_TALES),
        ("vocab", 1, NO_TALES),
        ("vocab --corpus gone.txt", 2, NO_CORPUS),
        ("train --corpus gone.txt", 2, NO_CORPUS),
        ("runs show", 1, NO_RUN),
        ("runs path latest", 1, NO_RUN),
        ("runs plot", 1, NO_RUN),
        ("train --resume", 1, NO_RUN),
        ("generate --run sly-owl", 2, "there is no run sly-owl: train one with `grimmgen train`"),
        ("runs rm sly-owl", 2, "there is no run sly-owl: train one with `grimmgen train`"),
        ("runs show ../../etc", 2, f"'../../etc' cannot be the name of a run: {BAD_NAME}"),
        (
            "generate --run ./gone.safetensors",
            1,
            "cannot read gone.safetensors (No such file or directory): check the path",
        ),
        ("eval /dev/null", 2, "/dev/null is not a file: give the path of a text file"),
        ("eval gone.txt", 2, "there is no file gone.txt: give the path of a text file"),
        ("tell", 2, "No such command 'tell': see `grimmgen --help`"),
        ("runs tell", 2, "No such command 'tell': see `grimmgen runs --help`"),
        ("trian", 2, "No such command 'trian', did you mean 'train': see `grimmgen --help`"),
        (
            "train samplr",
            2,
            "there is no corpus 'samplr', did you mean sampler: give grimm, sampler, or the path of a text file or"
            " directory",
        ),
        ("generate --seed", 2, "Option '--seed' requires an argument: see `grimmgen generate --help`"),
        ("runs plot --over", 2, "Option '--over' requires an argument: see `grimmgen runs plot --help`"),
        (
            "eval --split all",
            2,
            "Invalid value for '--split': 'all' is not one of 'train', 'valid', 'test':"
            " see `grimmgen eval --help`",
        ),
        ("vocab --corpus sampler --top=-1", 2, "--top -1 is out of range: give 0 or more"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    line: str, code: int, message: str, run: Program, home: Path
) -> None:
    assert error(run(*line.split())) == (code, message)
    assert not home.exists()


def test_ctrl_c_is_said_in_every_command(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[Run]:
        raise KeyboardInterrupt

    # Typer would exit with the code alone.
    monkeypatch.setattr(registry, "all_runs", interrupted)
    for command in ("runs list", "eval --cells", "generate"):
        assert run(*command.split()) == (130, "", "stopped\n")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("generate --length x", "Invalid value for '--length': "),
        ("train --lr x", "Invalid value for '--lr': "),
        ("train --cell rnn", "'rnn' is not one of 'lstm', "),
        ("eval --split all", "'all' is not one of 'train', 'valid', 'test'"),
        ("generate --moral", "No such option: --moral"),
        ("train --epoch 3", ", did you mean --epochs: "),
        ("generate --topk 3", ", did you mean --top-k or --top-p: "),
        ("train --preset quik", ", did you mean quick: "),
        ("runs rm", "Missing argument 'RUN'"),
    ],
)
def test_a_parse_error_is_one_line_that_names_the_help(line: str, wrong: str, run: Program) -> None:
    code, message = error(run(*line.split()))
    assert code == 2
    assert wrong in message
    assert message.endswith(f": see `grimmgen {line.partition(' -')[0]} --help`")


@pytest.mark.usefixtures("trained")
def test_the_error_of_an_unknown_run_lists_the_known_ones(run: Program) -> None:
    assert error(run("generate", "--run", "sly-owl")) == (2, "there is no run sly-owl: the latest are: sly-fox")


def test_a_relative_home_is_refused(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_HOME", "here")
    message = "GRIMMGEN_HOME is 'here', which is not an absolute path: set GRIMMGEN_HOME to an absolute directory"
    assert error(run("runs", "list")) == (2, message)


@pytest.mark.parametrize("columns", ["80", "40"])
@pytest.mark.parametrize("group", [[], ["runs"]])
def test_without_a_command_help_and_exit_code_2(
    group: list[str], columns: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = run(*group)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: grimmgen" in ran.err


def test_an_internal_error_is_one_line_and_exit_code_70(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 44.
    def fail() -> None:
        raise ZeroDivisionError("[red]no\nfox")

    monkeypatch.setattr(registry, "all_runs", fail)
    code, message = error(run("runs", "list"))
    assert code == 70
    assert "ZeroDivisionError: [red]no fox: please report it at https://" in message
    debugged = run("--debug", "runs", "list")
    assert (debugged.code, debugged.out) == (70, "")
    assert debugged.err.startswith("Traceback (most recent call last):\n")
    assert debugged.err.endswith(f"error: {message}\n")
    monkeypatch.setenv("GRIMMGEN_DEBUG", "1")
    assert run("runs", "list") == debugged._replace(err=run("runs", "list").err)
    assert "Traceback" in run("runs", "list").err


# --- streams ---------------------------------------------------------------------------------------------


AGE = re.compile(r" *\b(\d+ (min|h|d)|now)\b")


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_output_does_not_depend_on_the_environment(
    tales: Path, tmp_path: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fault 18.
    (tmp_path / "köhler.txt").write_text((tales / "00.txt").read_text() + "中")
    asked = [
        ["generate", "--seed", "köhler 中", "--random-seed", "1"],
        ["vocab", "--corpus", str(tmp_path / "köhler.txt"), "--min-count", "1"],
        ["runs", "list"],
        ["runs", "show", "--json"],
    ]
    plain = {"LC_ALL": "C", "LANG": "C", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"}
    rich = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "300"}
    for name, value in rich.items():
        monkeypatch.setenv(name, value)
    for arguments in asked:
        one, other = grimmgen(*arguments, variables=plain), run(*arguments)
        assert one.code == other.code == 0
        # The age of a run may have changed.
        assert AGE.sub("", one.out) == AGE.sub("", other.out)
        assert "\x1b" not in one.out + one.err + other.out + other.err


@pytest.mark.parametrize("command", ["--version", "--help", "runs list", "runs show --json"])
@pytest.mark.usefixtures("trained")
def test_a_full_disk_is_an_error(command: str) -> None:
    # Fault 39.
    full = shell(f"grimmgen {command} > /dev/full")
    code, message = error(full)
    assert code == 1
    assert "No space left on device" in message


@pytest.mark.parametrize("command", ["--help", "vocab --corpus sampler"])
@pytest.mark.usefixtures("trained")
def test_a_closed_pipe_is_no_error(command: str) -> None:
    # Fault 39. `true` may leave before anything is written, or after.
    left = shell(f"grimmgen {command} | true")
    assert (left.code, left.err.replace("next: grimmgen train --corpus sampler\n", "")) == (0, "")


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_closed_streams_are_no_internal_error() -> None:
    lost = shell("grimmgen runs path >&-")
    assert error(lost) == (1, "system error (Bad file descriptor): check the path and the disk")
    assert shell("grimmgen runs show sly-owl 2>&-") == (2, "", "")
    closed = shell("grimmgen generate --seed - --length 5 --random-seed 1 <&-")
    assert (closed.code, len(closed.out), closed.err) == (0, 6, "")
    assert shell("grimmgen runs rm sly-fox <&-").code == 2


@pytest.mark.usefixtures("trained")
def test_names_of_files_are_not_read_as_markup(tmp_path: Path, run: Program) -> None:
    # Fault 40.
    directory = tmp_path / "[red]x"
    directory.mkdir()
    (directory / "[bold]y.txt").write_text("the king and the fox went to the sea. " * 9)
    assert run("vocab", "--corpus", str(directory)).out.startswith("[red]x: bigrams that do not overlap")
    assert "[bold]y.txt" in run("eval", str(directory / "[bold]y.txt")).out


# --- vocab -----------------------------------------------------------------------------------------------


@pytest.fixture
def abc(tmp_path: Path) -> Path:
    """A corpus of one file, split 80/10/10 into 40 `ab`; 5 bigrams, 2 of them `cd`; 5 `ab`."""
    path = tmp_path / "abc.txt"
    path.write_text("ab" * 40 + "abcdabcdab" + "ab" * 5)
    return path


def test_vocab_counts_a_corpus(abc: Path, run: Program) -> None:
    ran = run("vocab", "--corpus", str(abc), "--min-count", "9")
    assert ran.code == 0
    assert ran.err == f"1 document, 100 bytes from 1 file\nnext: grimmgen train --corpus {abc} --min-count 9\n"
    rows = [line.split() for line in ran.out.splitlines() if re.match(" (train|valid|test|all) ", line)]
    assert rows == [
        ["train", "1", "80", "40", "2.00", "1", "0.000%"],
        ["valid", "1", "10", "5", "2.00", "2", "40.000%"],
        ["test", "1", "10", "5", "2.00", "1", "0.000%"],
        ["all", "1", "100", "50", "2.00", "2"],
    ]
    vocabulary, *lists = [line for line in ran.out.splitlines()[9:] if line.strip()]
    assert vocabulary.startswith("vocabulary: 3 = 1 bigrams with 9 or more occurrences")
    assert lists == ["most frequent   'ab' 40", "least frequent  'ab' 40", f"first bigrams  {['ab'] * 16}"]


def test_vocab_json(abc: Path, run: Program) -> None:
    ran = run("vocab", "--corpus", str(abc), "--ngram", "1", "--min-count", "40", "--top", "1", "--json")
    assert (ran.code, ran.err) == (0, "")
    length = {"characters_per_token": 1.0}
    printed = json.loads(ran.out)
    assert [printed["read"][name] for name in ("documents", "bytes", "files", "skipped")] == [1, 100, 1, []]
    [source] = printed.pop("read")["sources"]
    assert (source["name"], source["place"], source["encoding"]) == (abc.name, str(abc), "utf-8")
    assert printed == {
        "corpus": str(abc),
        "tokens": "char",
        "min_count": 40,
        "parts": {
            "train": {"stories": 1, "characters": 80, "tokens": 80, "distinct": 2, "unknown": 0.0, **length},
            "valid": {"stories": 1, "characters": 10, "tokens": 10, "distinct": 4, "unknown": 0.4, **length},
            "test": {"stories": 1, "characters": 10, "tokens": 10, "distinct": 2, "unknown": 0.0, **length},
        },
        "total": {"stories": 1, "characters": 100, "tokens": 100, "distinct": 4},
        "vocabulary_size": 4,
        "kept": 2,
        "alphabet": "ab",
        "most_frequent": [["a", 40]],
        "least_frequent": [["b", 40]],
        "beginning": ["a", "b"] * 8,
    }


def test_vocab_quotes_the_path_in_its_hint(tmp_path: Path, run: Program) -> None:
    path = tmp_path / "two words.txt"
    path.write_text("ab" * 200)
    read, hint = run("vocab", "--corpus", str(path)).err.splitlines()
    assert read == "1 document, 400 bytes from 1 file"
    assert hint == f"next: grimmgen train --corpus '{path}'"
    assert run("vocab", "--corpus", str(path), "--quiet").err == ""


# --- eval ------------------------------------------------------------------------------------------------


def test_eval_equals_the_evaluation_during_training(trained: Run, run: Program) -> None:
    logged = [event for event in trained.log() if event["event"] == "evaluated" and event["best"]][-1]
    ran = run("eval", "--json")
    assert (ran.code, ran.err) == (0, "")
    [scores] = json.loads(ran.out)
    assert (scores["run"], scores["split"]) == ("sly-fox", "valid")
    assert scores["perplexity"] == logged["perplexity"]
    assert scores["bits_per_character"] == logged["bits_per_character"]
    assert [story["name"] for story in scores["stories"]] == ["05", "06", "07", "18", "20"]
    assert scores["characters"] == sum(story["characters"] for story in scores["stories"])


@pytest.mark.usefixtures("trained")
def test_eval_shows_each_story_and_the_total(run: Program) -> None:
    ran = run("eval", "--split", "test")
    assert ran.err == "reading 3 texts with sly-fox\n"
    title, *lines = [line for line in ran.out.splitlines() if line.strip()]
    assert title.strip() == "sly-fox, test stories"
    assert lines[0].split() == ["story", "perplexity", "bits/char", "tokens", "characters", "<unk>"]
    assert [line.split()[0] for line in lines[2:]] == ["25", "28", "29", "all"]
    assert run("eval", "--split", "test", "--quiet") == (0, ran.out, "")


def worse(trained: Run, name: str) -> None:
    """A copy of a run without the output bias, and so without the frequencies of bigrams."""
    shutil.copytree(trained.path, trained.path.with_name(name))
    other = registry.find(name)
    checkpoint = other.checkpoint()
    checkpoint.weights["output.bias"][:] = 0.0
    checkpoint.write(other.best_path)


def test_eval_ranks_runs_by_bits_per_character(trained: Run, run: Program) -> None:
    worse(trained, "sly-owl")
    ran = run("eval", "--run", "sly-owl", "--run", "sly-fox")
    assert ran.err == "reading 5 texts with sly-owl\nreading 5 texts with sly-fox\n"
    rows = [re.split(r" {2,}", line.strip())[:3] for line in ran.out.splitlines() if re.match(" [123] ", line)]
    assert [row[:2] for row in rows] == [["1", "sly-fox"], ["2", "ensemble of 2"], ["3", "sly-owl"]]
    assert float(rows[0][2]) < float(rows[1][2]) < float(rows[2][2])
    ranked = json.loads(run("eval", "--run", "sly-owl", "--run", "sly-fox", "--json").out)
    assert [result["run"] for result in ranked] == ["sly-fox", "ensemble of 2", "sly-owl"]
    assert [f"{result['perplexity']:.3f}" for result in ranked] == [row[2] for row in rows]


def test_eval_compares_runs_with_an_interval(trained: Run, run: Program, tales: Path) -> None:
    worse(trained, "sly-owl")
    runs = ["--run", "sly-owl", "--run", "sly-fox"]
    files = [str(tales / f"{number:02d}.txt") for number in range(8)]
    best, both, other = json.loads(run("eval", *runs, *files, "--json").out)
    assert "difference" not in best
    found = other["difference"]
    assert found["to"] == "sly-fox"
    assert found["bits_per_character"] == pytest.approx(other["bits_per_character"] - best["bits_per_character"])
    assert 0 < found["low"] < found["bits_per_character"] < found["high"]
    assert found["real"] is True
    ran = run("eval", *runs, *files)
    stories = {
        line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if ".txt" in line or " all" in line
    }
    for scores in zip(best["stories"], both["stories"], other["stories"], strict=True):
        assert stories[scores[0]["name"]] == [f"{s['bits_per_character']:.4f}" for s in scores]
    assert stories["all"] == [f"{s['bits_per_character']:.4f}" for s in (best, both, other)]
    assert ran.out.splitlines()[-1].endswith(
        f" (95 % interval {found['low']:.4f} to {found['high']:.4f}): significant at 95 %"
    )
    # The same model under two names has no difference; five stories are too few for an interval.
    shutil.copytree(trained.path, trained.path.with_name("old-owl"))
    twice = run("eval", "--run", "sly-fox", "--run", "old-owl", *files).out
    assert twice.endswith(" (95 % interval 0.0000 to 0.0000): not significant at 95 %\n")
    few = run("eval", *runs).out
    assert "95 % interval" not in few
    assert "too few stories" in few


def test_eval_baseline_is_a_character_model(trained: Run, run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = json.loads(run("eval", "--baseline", "--split", "test", "--json").out)
    [counted] = [result for result in ranked if result["run"] == "Kneser-Ney"]
    lower = [[story.read().lower() for story in trained.split().parts[part]] for part in ("train", "test")]
    expected = KneserNey(lower[0]).evaluate([("", text) for text in lower[1]])
    assert counted["bits_per_character"] == expected.total.bits_per_character
    assert [story["characters"] for story in counted["stories"]] == [len(text) for text in lower[1]]
    assert "perplexity" not in counted
    rows = [line.split()[1:4] for line in run("eval", "--baseline").out.splitlines() if re.match(" [12] ", line)]
    assert ["Kneser-Ney", "–"] in [row[:2] for row in rows]
    monkeypatch.chdir(trained.path)
    shutil.copy(trained.best_path, "x.safetensors")
    message = "./x.safetensors does not include its training stories: give a run's name first"
    text = str(trained.path / "run.json")
    code, said = (
        (ran := run("eval", "--baseline", "--run", "./x.safetensors", text)).code,
        ran.err.splitlines()[-1],
    )
    assert (code, said) == (2, f"error: {message}")


def test_runs_of_other_stories_are_not_compared(
    trained: Run, training: list[str], tmp_path: Path, run: Program
) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["00", "01"], "valid": ["02"], "test": ["03"]}))
    options = [*training, "--run", "sly-owl", "--epochs", "1", "--split", str(split), "--quiet"]
    assert run("train", *options).code == 0
    ran = run("eval", "--run", trained.name, "--run", "sly-owl")
    assert ran.err.endswith("the runs have different stories: to compare them on the same text, give FILEs\n")
    assert "needs" not in ran.out
    ranked = json.loads(run("eval", "--run", trained.name, "--run", "sly-owl", "--json").out)
    assert not any("difference" in result for result in ranked)


def test_runs_with_other_normalisation_are_not_compared(trained: Run, training: list[str], run: Program) -> None:
    options = [*training, "--run", "sly-owl", "--epochs", "1", "--newlines", "space", "--quiet"]
    assert run("train", *options).code == 0
    ran = run("eval", "--run", trained.name, "--run", "sly-owl")
    assert "(--keep-case, --newlines, --language)" in ran.err
    assert "needs" not in ran.out


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval --split test {}", "--split has no effect with FILEs"),
        ("eval --heatmap {} --device cpu", "--device has no effect with --heatmap"),
        ("eval --novelty --device cpu", "--device has no effect with --novelty"),
    ],
)
def test_eval_refuses_options_without_effect(
    run: Program, tales: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = line.format(tales / "00.txt").split()
    code, printed = error(run(*words))
    assert code == 2
    assert printed.startswith(message)
    # Variables set options for all calls, and may have no effect.
    monkeypatch.setenv("GRIMMGEN_EVAL_DEVICE", "cpu")
    monkeypatch.setenv("GRIMMGEN_EVAL_SPLIT", "test")
    assert run("eval", str(tales / "00.txt")).code == 0


def test_eval_reads_files_with_a_run_or_a_checkpoint(trained: Run, run: Program, tmp_path: Path) -> None:
    text, copied = tmp_path / "a.txt", tmp_path / "copied.safetensors"
    text.write_text("The king went to a mill and found 2 geese.\r\n")
    shutil.copy(trained.best_path, copied)
    scores = [json.loads(run("eval", str(text), "--json", *more).out)[0] for more in ([], ["--run", str(copied)])]
    assert scores[0] == {**scores[1], "run": "sly-fox"}
    assert scores[0]["split"] is None
    assert [(s["name"], s["characters"], s["ngrams"]) for s in scores[0]["stories"]] == [(str(text), 43, 23)]
    message = f"{copied} does not include its stories: give a FILE to read, or a run's name"
    assert error(run("eval", "--run", str(copied))) == (2, message)


# --- runs ------------------------------------------------------------------------------------------------


def test_runs_list(trained: Run, run: Program) -> None:
    worse(trained, "sly-owl")
    ran = run("runs", "list")
    assert (ran.code, ran.err) == (0, "")
    heads, _, *rows = [line.split() for line in ran.out.splitlines() if line.strip()]
    assert heads == ["run", "corpus", "cell", "units", "epochs", "perplexity", "bits/char", "age", "size"]
    assert [row[:5] for row in rows] == [[name, "tales", "lstm", "8", "2"] for name in ("sly-owl", "sly-fox")]
    assert [row[-1] for row in rows] == ["finished", "finished"]
    [first, second] = json.loads(run("runs", "list", "--json").out)
    assert (first["name"], second["name"]) == ("sly-owl", "sly-fox")
    assert f"{second['perplexity']:.2f}" == rows[1][5]


def test_runs_list_without_runs_prints_a_hint(run: Program) -> None:
    listed = run("runs", "list")
    assert (listed.code, listed.out, listed.err.count("\n")) == (0, "", 1)
    assert listed.err.startswith("no runs yet; ")
    assert run("runs", "list", "--json") == (0, "[]\n", "")


def test_runs_list_continues_past_an_unreadable_run(trained: Run, run: Program) -> None:
    broken = trained.path.with_name("broken")
    broken.mkdir()
    (broken / "run.json").write_text("{")
    rows = [line.split() for line in run("runs", "list").out.splitlines() if line.strip()][2:]
    assert [(row[0], row[-1]) for row in rows] == [("sly-fox", "finished"), ("broken", "unreadable")]


@pytest.mark.parametrize(
    "change",
    [{"corpus": 3}, {"created": None, "versions": []}, {"configuration": "x"}, {"created": "once", "corpus": {}}],
    ids=str,
)
def test_runs_show_reports_an_invalid_run(trained: Run, run: Program, change: dict[str, Any]) -> None:
    (trained.path / "run.json").write_text(json.dumps({**trained.info(), **change}))
    assert run("runs", "list").code == 0
    code, message = error(run("runs", "show"))
    assert code == 3
    assert message.endswith((": remove it with `grimmgen runs rm sly-fox`", ": train again"))


def test_runs_show(trained: Run, run: Program) -> None:
    ran = run("runs", "show", "sly-fox")
    assert (ran.code, ran.err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in ran.out.splitlines()[:8])
    assert facts["place"] == str(trained.path)
    assert facts["state"] == "finished"
    assert facts["options"] == (
        "--hidden 8 --batch-size 4 --unroll 10 --lr 0.01 --epochs 2 --random-seed 7 --min-count 9,"
        " else the tutorial's"
    )
    assert [line.split()[:2] for line in ran.out.splitlines()[11:13]] == [["1", "111"], ["2", "222"]]
    drawn = draw(curves.read(trained), 80)
    assert ran.out.splitlines()[14:][: len(drawn)] == drawn
    shown = json.loads(run("runs", "show", "--json").out)
    assert shown["info"] == trained.info()
    assert shown["log"] == trained.log()


def test_runs_path_prints_only_the_path(trained: Run, run: Program) -> None:
    assert run("runs", "path") == (0, f"{trained.path}\n", "")
    assert json.loads(run("runs", "path", "sly-fox", "--json").out) == {
        "name": "sly-fox",
        "path": str(trained.path),
    }


def test_runs_rm_without_a_terminal_requires_yes(trained: Run, run: Program) -> None:
    assert error(run("runs", "rm", "sly-fox")) == (2, "the run sly-fox was not removed: answer y, or give --yes")
    assert trained.path.is_dir()
    # Named twice, removed once.
    assert run("runs", "rm", "sly-fox", "sly-fox", "--yes") == (0, "", "removed sly-fox\n")
    assert registry.all_runs() == []


@pytest.mark.usefixtures("trained")
def test_runs_rm_json(run: Program) -> None:
    ran = run("runs", "rm", "sly-fox", "-y", "--json")
    assert (ran.code, json.loads(ran.out), ran.err) == (0, {"removed": ["sly-fox"]}, "")


def test_runs_rm_asks_on_a_terminal(trained: Run) -> None:
    ran = on_terminal(*PROGRAM, "runs", "rm", "sly-fox", typed=[(b"[y/N] ", b"y\n")])
    assert re.search(r"remove the run sly-fox \(\d+\.\d kB\)\? \[y/N\] ", ran.out)
    assert (ran.code, trained.path.exists()) == (0, False)


@pytest.mark.parametrize(("answer", "code"), [("YES", 0), ("n", 2), ("", 2)])
def test_runs_rm_removes_only_after_a_yes(
    trained: Run, answer: str, code: int, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = SimpleNamespace(isatty=lambda: True, readline=lambda: f"{answer}\n")
    monkeypatch.setattr(sys, "stdin", typed)
    assert run("runs", "rm", "sly-fox").code == code
    assert trained.path.exists() == (code != 0)


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        (100, ["run", "corpus", "cell", "units", "epochs", "perplexity", "bits/char", "age", "size"]),
        (40, ["run", "epochs", "perplexity", "age"]),
    ],
)
def test_a_table_drops_columns_on_a_narrow_terminal(trained: Run, columns: int, heads: list[str]) -> None:
    lines = on_terminal(*PROGRAM, "runs", "list", columns=columns).out.splitlines()
    shown = next(line for line in lines if "perplexity" in line)
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).split() == heads
    assert any(trained.name in line for line in lines)


def test_tables_fit_a_narrow_terminal(trained: Run) -> None:
    ran = on_terminal(*PROGRAM, "runs", "show", columns=48)
    lines = re.sub("\x1b\\[[0-9;]*m", "", ran.out).splitlines()
    assert max(map(len, lines)) <= 48
    assert str(trained.path) in "".join(line[10:].rstrip() for line in lines if not line.startswith("run "))


def test_eval_evaluates_a_repeated_run_once(trained: Run, run: Program) -> None:
    ran = run("eval", "--run", trained.name, "--run", trained.name)
    assert (ran.code, ran.out) == (0, run("eval", "--run", trained.name).out)


def test_a_part_of_a_short_text_is_not_called_empty(tmp_path: Path, run: Program) -> None:
    path = tmp_path / "short.txt"
    path.write_text("There was once a king.\nHe had a fox.\n\n", encoding="utf-8")
    assert "no text" not in run("vocab", "--corpus", str(path), "--check").out


@pytest.mark.parametrize(
    ("value", "digits", "width", "shown"),
    [
        (8.5, 2, 9, "8.50"),
        (999.994, 2, 6, "999.99"),
        (1234.5, 2, 6, "1234.5"),
        (123456.7, 2, 6, "123457"),
        (1234567.8, 2, 6, "1e+06"),
        (1234567.8, 3, 9, "1234567.8"),
        (999999999.9, 0, 9, "1e+09"),
        (1.0142320547350045e304, 2, 9, "1e+304"),
        (-1.5, 1, 9, "-1.5"),
        (0, 2, 9, "0.00"),
        (10**400, 2, 9, "–"),
        (None, 2, 9, "–"),
        ("8", 2, 9, "–"),
    ],
)
def test_a_figure_is_never_wider_than_its_column(value: object, digits: int, width: int, shown: str) -> None:
    assert console.figure(value, digits, width) == shown


@pytest.mark.slow
def test_figures_of_a_diverged_run_are_short(tales: Path, run: Program) -> None:
    options = "--hidden 8 --batch-size 16 --min-count 9 --lr 1e4 --clip 1e12 --epochs 2"
    ran = run("train", "--corpus", str(tales), "--run", "wild", *options.split())
    assert ran.code == 0, ran.err
    outputs = [ran, *(run(*command.split(), "--run", "wild") for command in ("eval", "eval --baseline"))]
    outputs += [run("runs", "list"), run("runs", "show")]
    for output in outputs:
        assert output.code == 0
        shown = re.sub(r"(?m)^(options|command) .*", "", output.out + output.err.replace("options:", "options "))
        assert "1e+304" in shown
        assert not re.search(r"\d{12}", shown)

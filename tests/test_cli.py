"""The command line as a whole: its options, its errors and exit codes, its streams; vocab, eval and runs.

`generate` and `train` have files of their own, `test_cli_generate.py` and `test_cli_train.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer.main

from grimmgen.cli import app
from grimmgen.cli.chart import draw
from grimmgen.evaluation.baseline import KneserNey
from grimmgen.runs import curves, registry
from grimmgen.runs.registry import Run
from tests.program import PROGRAM, Ran, grimmgen, on_terminal, shell

Program = Callable[..., Ran]

# --- options ---------------------------------------------------------------------------------------------

# All of them. One more has to be put here, into the README's text and into the completions' reach on purpose.
OPTIONS = {
    "": "--version --debug --install-completion --show-completion",
    "fetch": "--stories --url --jobs --force",
    "vocab": "--corpus --ngram --min-count --keep-case --newlines --phases --no-phases --split --top --check",
    "train": "--corpus --run --resume --preset --epochs --budget --random-seed --device --cell --rounds --hidden"
    " --layers --embedding --tied --untied --init --reset-state --no-reset-state --batch-size --unroll --lr --clip"
    " --dropout --dropout-mode --input-dropout --weight-drop --weight-decay --schedule --warmup --precision"
    " --decay-factor --decay-patience --ngram --min-count --keep-case --newlines --phases --no-phases --split",
    "eval": "--run --split --dynamic --novelty --baseline --heatmap --html --device",
    "generate": "--run --seed --seed-file --length --until --top-k --top-p --min-p --temperature --greedy"
    " --repetition-penalty --beam-width --beam-depth --max-copy --random-seed --stories --state --lines"
    " --novelty",
    "runs": "",
    "runs list": "",
    "runs show": "",
    "runs plot": "--output -o --over",
    "runs path": "",
    "runs rm": "--yes -y",
}
GROUPS = {"", "runs"}


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


@pytest.mark.parametrize("name", OPTIONS)
def test_help_has_an_example_and_every_option_says_what_it_is(name: str, run: Program) -> None:
    shown = run(*name.split(), "--help")
    assert (shown.code, shown.err) == (0, "")
    assert run(*name.split(), "-h").out == shown.out
    assert re.search(rf"Example: .*grimmgen {name}", shown.out) or not name
    assert all(getattr(p, "help", None) for p in commands()[name].params if p.name != "context")


def test_help_shows_the_defaults_that_are_no_values(run: Program) -> None:
    # In square brackets, which are not to be taken for markup.
    shown = " ".join(re.sub("[│ \n]+", " ", run("generate", "--help").out).split())
    assert "[default: (the latest run)]" in shown
    assert "[default: (a new one)]" in shown


@pytest.mark.parametrize("name", OPTIONS)
def test_help_on_a_narrow_terminal_cuts_nothing_off(
    name: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = run(*name.split(), "--help").out
    monkeypatch.setenv("COLUMNS", "40")
    shown = run(*name.split(), "--help").out
    assert "…" not in shown
    assert "..." not in shown.replace("]...", "").replace("}...", "")
    assert set(re.findall(r"--[a-z][a-z-]+", wide)) <= set(
        re.findall(r"--[a-z][a-z-]+", shown.replace("-\n  ", "-"))
    )
    # The values that one may choose from are one word.
    assert all(len(line) < 40 for line in shown.splitlines() if "|" not in line)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_tells_of_no_variable_at_every_option(name: str, run: Program) -> None:
    assert "env var" not in run(*name.split(), "--help").out


def test_help_says_how_to_install_what_draws(run: Program) -> None:
    # Square brackets would be read as markup there.
    assert "(pip install matplotlib)" in " ".join(run("runs", "plot", "--help").out.split())


def test_version(run: Program) -> None:
    assert run("--version") == (0, f"grimmgen {version('grimmgen')}\n", "")


# --- errors ----------------------------------------------------------------------------------------------


def error(ran: Ran) -> tuple[int, str]:
    """The exit code and the message of what failed in one line, with nothing on standard output."""
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1
    return ran.code, ran.err[7:-1]


NO_TALES = "no tales have been fetched yet: run `grimmgen fetch`, or take the bundled ones with --corpus sampler"
NO_RUN = "there is no run yet: train one with `grimmgen train`"
NO_CORPUS = "there is no corpus 'gone.txt': give grimm, sampler, or the path of a text file or directory"
BAD_NAME = "give letters, digits, dots, dashes and underscores, 64 at most, a letter or digit first"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train", 1, NO_TALES),
        ("vocab", 1, NO_TALES),
        ("vocab --corpus gone.txt", 2, NO_CORPUS),
        ("train --corpus gone.txt", 2, NO_CORPUS),
        ("generate", 1, NO_RUN),
        ("eval", 1, NO_RUN),
        ("runs show", 1, NO_RUN),
        ("runs path latest", 1, NO_RUN),
        ("runs plot", 1, NO_RUN),
        ("train --resume", 1, NO_RUN),
        ("generate --run sly-owl", 2, "there is no run sly-owl: the latest are: none"),
        ("runs rm sly-owl", 2, "there is no run sly-owl: the latest are: none"),
        ("runs show ../../etc", 2, f"'../../etc' cannot be the name of a run: {BAD_NAME}"),
        (
            "generate --run ./gone.safetensors",
            1,
            "cannot read gone.safetensors (No such file or directory): check the path",
        ),
        ("eval /", 2, "/ is not a file: give the path of a text file"),
        ("eval gone.txt", 2, "there is no file gone.txt: give the path of a text file"),
        ("tell", 2, "No such command 'tell': see `grimmgen --help`"),
        ("runs tell", 2, "No such command 'tell': see `grimmgen runs --help`"),
        ("trian", 2, "No such command 'trian' (did you mean 'train'?): see `grimmgen --help`"),
        ("generate --seed", 2, "Option '--seed' requires an argument: see `grimmgen generate --help`"),
        ("runs plot --over", 2, "Option '--over' requires an argument: see `grimmgen runs plot --help`"),
        (
            "generate --length x",
            2,
            "Invalid value for '--length': not a whole number: see `grimmgen generate --help`",
        ),
        ("train --lr x", 2, "Invalid value for '--lr': not a number: see `grimmgen train --help`"),
        (
            "eval --split all",
            2,
            "Invalid value for '--split': 'all' is not one of 'train', 'valid', 'test':"
            " see `grimmgen eval --help`",
        ),
        ("vocab --corpus sampler --top=-1", 2, "--top -1 is out of range: give 0 or more"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(line: str, code: int, message: str, run: Program, home: Path) -> None:
    assert error(run(*line.split())) == (code, message)
    assert not home.exists()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("generate --length x", "Invalid value for '--length'"),
        ("eval --split all", "'all' is not one of 'train', 'valid', 'test'"),
        ("generate --moral", "No such option: --moral"),
        ("runs rm", "Missing argument 'RUN'"),
    ],
)
def test_what_typer_refuses_is_told_in_one_line_too(line: str, wrong: str, run: Program) -> None:
    code, message = error(run(*line.split()))
    assert code == 2
    assert wrong in message
    assert message.endswith(f": see `grimmgen {line.partition(' -')[0]} --help`")


@pytest.mark.usefixtures("trained")
def test_an_unknown_run_is_told_which_there_are(run: Program) -> None:
    assert error(run("generate", "--run", "sly-owl")) == (2, "there is no run sly-owl: the latest are: sly-fox")


def test_a_home_that_is_relative_is_refused(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_HOME", "here")
    message = "GRIMMGEN_HOME is 'here', which is not an absolute path: set GRIMMGEN_HOME to an absolute directory"
    assert error(run("runs", "list")) == (2, message)


def test_without_a_command_there_is_help_and_exit_2(run: Program) -> None:
    for group in ([], ["runs"]):
        ran = run(*group)
        assert ran.code == 2
        assert "Usage: grimmgen" in ran.out + ran.err


def test_a_bug_of_ours_is_one_line_and_exit_70_with_a_traceback_only_for_debug(
    run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fault 44.
    def fail() -> None:
        raise ZeroDivisionError("[red]no\nfox")

    monkeypatch.setattr(registry, "all_runs", fail)
    message = (
        "a bug of ours, ZeroDivisionError: [red]no fox: please report it at"
        " https://github.com/grimmgen/grimmgen/issues with what `grimmgen --debug` shows"
    )
    assert error(run("runs", "list")) == (70, message)
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
def test_no_variable_changes_a_byte_of_standard_output(tales: Path, tmp_path: Path) -> None:
    # Fault 18.
    (tmp_path / "köhler.txt").write_text((tales / "00.txt").read_text() + "中")
    asked = [
        ["generate", "--seed", "köhler 中", "--random-seed", "1"],
        ["vocab", "--corpus", str(tmp_path / "köhler.txt"), "--min-count", "1"],
        ["runs", "list"],
        ["runs", "show", "--json"],
    ]
    plain = {"LC_ALL": "C", "LANG": "C", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"}
    rich = {"LC_ALL": "C.UTF-8", "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "300"}
    for arguments in asked:
        one, other = grimmgen(*arguments, variables=plain), grimmgen(*arguments, variables=rich)
        assert one.code == other.code == 0
        # How long ago a run was begun may have changed meanwhile.
        assert AGE.sub("", one.out) == AGE.sub("", other.out)
        assert "\x1b" not in one.out + one.err + other.out + other.err


@pytest.mark.parametrize(
    "command", ["--version", "--help", "runs list", "runs show --json", "vocab --corpus sampler"]
)
@pytest.mark.usefixtures("trained")
def test_a_full_disk_is_one_line_and_a_reader_who_has_left_is_none(command: str) -> None:
    # Fault 39.
    full = shell(f"grimmgen {command} > /dev/full")
    message = "error: the system refuses (No space left on device): check the path and the disk\n"
    assert (full.code, full.err) == (1, message)
    # `true` may leave before anything is written, or after.
    left = shell(f"grimmgen {command} | true")
    assert (left.code, left.err.replace("next: grimmgen train --corpus sampler\n", "")) == (0, "")


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_streams_that_are_closed_are_no_bug() -> None:
    lost = shell("grimmgen runs path >&-")
    assert error(lost) == (1, "the system refuses (Bad file descriptor): check the path and the disk")
    assert shell("grimmgen runs show sly-owl 2>&-") == (2, "", "")
    told = shell("grimmgen generate --seed - --length 5 --random-seed 1 <&-")
    assert (told.code, len(told.out), told.err) == (0, 6, "")
    assert shell("grimmgen runs rm sly-fox <&-").code == 2


@pytest.mark.usefixtures("trained")
def test_names_from_files_are_shown_as_they_are(tmp_path: Path, run: Program) -> None:
    # Fault 40.
    directory = tmp_path / "[red]x"
    directory.mkdir()
    (directory / "[bold]y.txt").write_text("the king and the fox went to the sea. " * 9)
    assert run("vocab", "--corpus", str(directory)).out.startswith("[red]x: bigrams that do not overlap")
    assert "[bold]y.txt" in run("eval", str(directory / "[bold]y.txt")).out


# --- vocab -----------------------------------------------------------------------------------------------


@pytest.fixture
def abc(tmp_path: Path) -> Path:
    """A corpus of one file, cut 80/10/10: 40 times `ab`; then 5 bigrams, 2 of them `cd`; then 5 `ab`."""
    path = tmp_path / "abc.txt"
    path.write_text("ab" * 40 + "abcdabcdab" + "ab" * 5)
    return path


def test_vocab_counts_what_a_corpus_has(abc: Path, run: Program) -> None:
    ran = run("vocab", "--corpus", str(abc), "--min-count", "9")
    assert ran.code == 0
    assert ran.err == f"next: grimmgen train --corpus {abc}\n"
    rows = [line.split() for line in ran.out.splitlines() if re.match(" (train|valid|test|all) ", line)]
    assert rows == [
        ["train", "1", "80", "40", "1", "0.000%"],
        ["valid", "1", "10", "5", "2", "40.000%"],
        ["test", "1", "10", "5", "1", "0.000%"],
        ["all", "1", "100", "50", "2"],
    ]
    assert [line for line in ran.out.splitlines()[9:] if line.strip()] == [
        "vocabulary: 3 = 1 bigrams seen 9 times or more in the training stories, <unk> for the rest,"
        " <end> for a story's end",
        "most frequent   'ab' 40",
        "least frequent  'ab' 40",
        f"a story begins  {['ab'] * 16}",
    ]


def test_vocab_json(abc: Path, run: Program) -> None:
    ran = run("vocab", "--corpus", str(abc), "--ngram", "1", "--min-count", "40", "--top", "1", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == {
        "corpus": str(abc),
        "ngram": 1,
        "min_count": 40,
        "parts": {
            "train": {"stories": 1, "characters": 80, "tokens": 80, "distinct": 2, "unknown": 0.0},
            "valid": {"stories": 1, "characters": 10, "tokens": 10, "distinct": 4, "unknown": 0.4},
            "test": {"stories": 1, "characters": 10, "tokens": 10, "distinct": 2, "unknown": 0.0},
        },
        "total": {"stories": 1, "characters": 100, "tokens": 100, "distinct": 4},
        "vocabulary_size": 4,
        "kept": 2,
        "alphabet": "ab",
        "most_frequent": [["a", 40]],
        "least_frequent": [["b", 40]],
        "beginning": ["a", "b"] * 8,
    }


def test_the_hint_of_vocab_can_be_typed_as_it_is(tmp_path: Path, run: Program) -> None:
    path = tmp_path / "two words.txt"
    path.write_text("ab" * 200)
    assert run("vocab", "--corpus", str(path)).err == f"next: grimmgen train --corpus '{path}'\n"
    assert run("vocab", "--corpus", str(path), "--quiet").err == ""


# --- eval ------------------------------------------------------------------------------------------------


def test_eval_agrees_with_training_to_the_last_digit(trained: Run, run: Program) -> None:
    logged = [event for event in trained.log() if event["event"] == "evaluated" and event["best"]][-1]
    ran = run("eval", "--json")
    assert (ran.code, ran.err) == (0, "")
    [judged] = json.loads(ran.out)
    assert (judged["run"], judged["split"]) == ("sly-fox", "valid")
    assert judged["perplexity"] == logged["perplexity"]
    assert judged["bits_per_character"] == logged["bits_per_character"]
    assert [story["name"] for story in judged["stories"]] == ["05", "06", "07", "18", "20"]
    assert judged["characters"] == sum(story["characters"] for story in judged["stories"])


@pytest.mark.usefixtures("trained")
def test_eval_shows_each_story_and_all_together(run: Program) -> None:
    ran = run("eval", "--split", "test")
    assert ran.err == "reading 3 texts with sly-fox\n"
    title, *lines = [line for line in ran.out.splitlines() if line.strip()]
    assert title.strip() == "sly-fox, test stories"
    assert lines[0].split() == ["story", "perplexity", "bits/char", "n-grams", "characters", "<unk>"]
    assert [line.split()[0] for line in lines[2:]] == ["25", "28", "29", "all"]
    assert run("eval", "--split", "test", "--quiet") == (0, ran.out, "")


def worse(trained: Run, name: str) -> None:
    """Another run, of the same stories, that has forgotten how often each bigram comes."""
    shutil.copytree(trained.path, trained.path.with_name(name))
    other = registry.find(name)
    checkpoint = other.checkpoint()
    checkpoint.weights["output.bias"][:] = 0.0
    checkpoint.write(other.best_path)


def test_eval_ranks_runs_by_bits_per_character(trained: Run, run: Program) -> None:
    worse(trained, "sly-owl")
    ran = run("eval", "--run", "sly-owl", "--run", "sly-fox")
    assert ran.err == "reading 5 texts with sly-owl\nreading 5 texts with sly-fox\n"
    rows = [line.split()[:3] for line in ran.out.splitlines() if re.match(" [12] ", line)]
    assert [row[:2] for row in rows] == [["1", "sly-fox"], ["2", "sly-owl"]]
    assert float(rows[0][2]) < float(rows[1][2])
    ranked = json.loads(run("eval", "--run", "sly-owl", "--run", "sly-fox", "--json").out)
    assert [result["run"] for result in ranked] == ["sly-fox", "sly-owl"]
    assert [f"{result['perplexity']:.3f}" for result in ranked] == [row[2] for row in rows]


def test_eval_compares_runs_story_by_story_and_says_which_difference_is_real(
    trained: Run, run: Program, tales: Path
) -> None:
    worse(trained, "sly-owl")
    runs = ["--run", "sly-owl", "--run", "sly-fox"]
    files = [str(tales / f"{number:02d}.txt") for number in range(8)]
    best, other = json.loads(run("eval", *runs, *files, "--json").out)
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
    for one, two in zip(best["stories"], other["stories"], strict=True):
        assert stories[one["name"]] == [f"{s['bits_per_character']:.4f}" for s in (one, two)]
    assert stories["all"] == [f"{s['bits_per_character']:.4f}" for s in (best, other)]
    assert ran.out.splitlines()[-1] == (
        f"sly-fox needs {found['bits_per_character']:.4f} bits per character less than sly-owl"
        f" (95 % interval {found['low']:.4f} to {found['high']:.4f}): significant at 95 %"
    )
    # The same model under two names: nothing lies between; and of five stories nothing can be said.
    shutil.copytree(trained.path, trained.path.with_name("old-owl"))
    twice = run("eval", "--run", "sly-fox", "--run", "old-owl", *files).out
    assert twice.endswith(" (95 % interval 0.0000 to 0.0000): not significant at 95 %\n")
    few = run("eval", *runs).out
    assert few.endswith("less than sly-owl; too few stories to test significance (at least 6)\n")


def test_eval_says_what_counting_characters_would_do(
    trained: Run, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_runs_of_other_stories_are_ranked_but_not_compared(
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


def test_runs_that_fold_text_in_different_ways_are_ranked_but_not_compared(
    trained: Run, training: list[str], run: Program
) -> None:
    options = [*training, "--run", "sly-owl", "--epochs", "1", "--newlines", "space", "--quiet"]
    assert run("train", *options).code == 0
    ran = run("eval", "--run", trained.name, "--run", "sly-owl")
    assert "the runs normalise text differently (--keep-case, --newlines)" in ran.err
    assert "needs" not in ran.out


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval --split test {}", "--split has no effect with FILEs: leave out one of them"),
        (
            "eval --heatmap {} --device cpu",
            "--device has no effect with --heatmap, which runs on the CPU: leave it out",
        ),
        (
            "eval --novelty --device cpu",
            "--device has no effect with --novelty, which runs on the CPU: leave it out",
        ),
    ],
)
def test_what_is_typed_in_vain_is_refused(
    run: Program, tales: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = line.format(tales / "00.txt").split()
    assert error(run(*words)) == (2, message)
    # What a variable sets is set for every call.
    monkeypatch.setenv("GRIMMGEN_EVAL_DEVICE", "cpu")
    monkeypatch.setenv("GRIMMGEN_EVAL_SPLIT", "test")
    assert run("eval", str(tales / "00.txt")).code == 0


def test_eval_reads_files_with_a_run_or_with_a_checkpoint_that_was_copied(
    trained: Run, run: Program, tmp_path: Path
) -> None:
    text, copied = tmp_path / "a.txt", tmp_path / "copied.safetensors"
    text.write_text("The king went to a mill and found 2 geese.\r\n")
    shutil.copy(trained.best_path, copied)
    judged = [json.loads(run("eval", str(text), "--json", *more).out)[0] for more in ([], ["--run", str(copied)])]
    assert judged[0] == {**judged[1], "run": "sly-fox"}
    assert judged[0]["split"] is None
    assert [(s["name"], s["characters"], s["ngrams"]) for s in judged[0]["stories"]] == [(str(text), 43, 23)]
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


def test_runs_list_without_runs_says_how_to_make_one(run: Program) -> None:
    assert run("runs", "list") == (0, "", "no runs yet; train one: grimmgen train\n")
    assert run("runs", "list", "--json") == (0, "[]\n", "")


def test_runs_list_goes_on_past_a_run_that_cannot_be_read(trained: Run, run: Program) -> None:
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
def test_runs_survives_a_run_that_is_described_in_another_way(
    trained: Run, run: Program, change: dict[str, Any]
) -> None:
    (trained.path / "run.json").write_text(json.dumps({**trained.info(), **change}))
    assert run("runs", "list").code == 0
    code, message = error(run("runs", "show"))
    assert code == 3
    assert message.endswith((": remove it with `grimmgen runs rm sly-fox`", ": train anew"))


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
    assert ran.out.splitlines()[14:] == draw(curves.read(trained), 80)
    shown = json.loads(run("runs", "show", "--json").out)
    assert shown["info"] == trained.info()
    assert shown["log"] == trained.log()


def test_runs_path_is_for_other_programs(trained: Run, run: Program) -> None:
    assert run("runs", "path") == (0, f"{trained.path}\n", "")
    assert json.loads(run("runs", "path", "sly-fox", "--json").out) == {
        "name": "sly-fox",
        "path": str(trained.path),
    }


def test_runs_rm_without_a_terminal_removes_nothing_unless_told(trained: Run, run: Program) -> None:
    assert error(run("runs", "rm", "sly-fox")) == (2, "the run sly-fox stays: answer y, or give --yes")
    assert trained.path.is_dir()
    # Named twice, removed once.
    assert run("runs", "rm", "sly-fox", "sly-fox", "--yes") == (0, "", "removed sly-fox\n")
    assert registry.all_runs() == []


@pytest.mark.usefixtures("trained")
def test_runs_rm_json(run: Program) -> None:
    ran = run("runs", "rm", "sly-fox", "-y", "--json")
    assert (ran.code, json.loads(ran.out), ran.err) == (0, {"removed": ["sly-fox"]}, "")


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES", 0), ("n", 2), ("", 2)])
def test_runs_rm_asks_on_a_terminal(trained: Run, answer: str, code: int) -> None:
    ran = on_terminal(*PROGRAM, "runs", "rm", "sly-fox", typed=[(b"[y/N] ", answer.encode() + b"\n")])
    assert re.search(r"remove the run sly-fox \(\d+\.\d kB\)\? \[y/N\] ", ran.out)
    assert (ran.code, trained.path.exists()) == (code, code != 0)


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        (100, ["run", "corpus", "cell", "units", "epochs", "perplexity", "bits/char", "age", "size"]),
        (40, ["run", "epochs", "perplexity", "age"]),
    ],
)
def test_a_table_leaves_out_what_a_narrow_terminal_has_no_room_for(
    trained: Run, columns: int, heads: list[str]
) -> None:
    lines = on_terminal(*PROGRAM, "runs", "list", columns=columns).out.splitlines()
    shown = next(line for line in lines if "perplexity" in line)
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).split() == heads
    assert any(trained.name in line for line in lines)


def test_tables_fit_a_narrow_terminal(trained: Run) -> None:
    ran = on_terminal(*PROGRAM, "runs", "show", columns=48)
    lines = re.sub("\x1b\\[[0-9;]*m", "", ran.out).splitlines()
    assert max(map(len, lines)) <= 48
    assert str(trained.path) in "".join(line[10:].rstrip() for line in lines if not line.startswith("run "))


def test_a_run_that_is_named_twice_is_judged_once(trained: Run, run: Program) -> None:
    ran = run("eval", "--run", trained.name, "--run", trained.name)
    assert (ran.code, ran.out) == (0, run("eval", "--run", trained.name).out)


def test_a_short_text_that_is_cut_into_parts_is_not_called_empty(tmp_path: Path, run: Program) -> None:
    path = tmp_path / "short.txt"
    path.write_text("There was once a king.\nHe had a fox.\n\n", encoding="utf-8")
    assert "no text" not in run("vocab", "--corpus", str(path), "--check").out

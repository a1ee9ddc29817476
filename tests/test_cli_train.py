"""`grimmgen train`: its output, refused options, signals, and resuming."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grimmgen.cli import progress
from grimmgen.configuration import PRESETS, Configuration, configure
from grimmgen.io.paths import id_cache_directory
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import Evaluated, Finished
from grimmgen.runs.registry import Run
from grimmgen.text import encoding
from tests.program import PROGRAM, Ran, begin, on_terminal, shell

Program = Callable[..., Ran]


def without_times(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A log's events without what differs from run to run."""
    return [{k: v for k, v in event.items() if k not in {"seconds", "run", "path"}} for event in log]


# --- output ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quiet_prints_only_the_result(training: list[str], run: Program) -> None:
    ran = run("train", "--quiet", "--run", "sly-owl", *training, "--epochs", "1")
    assert (ran.code, ran.err) == (0, "")
    owl = registry.find("sly-owl")
    best = owl.log()[-1]["best_perplexity"]
    facts = [line.split(maxsplit=1) for line in ran.out.splitlines()]
    assert re.fullmatch(r"1 \(111 updates in \d+:\d\d\)", facts.pop(1)[1])
    assert facts == [
        ["ended", "all epochs done"],
        ["validation", f"perplexity {best:.2f}, at epoch 1"],
        ["run", "sly-owl"],
        ["path", str(owl.path)],
    ]


def test_progress_goes_to_stderr_and_the_result_to_stdout(training: list[str], trained: Run, run: Program) -> None:
    ran = run("train", "--run", "sly-owl", *training)
    assert ran.code == 0
    read, began, text, network, typed, *lines = ran.err.splitlines()
    assert read == "30 documents, 12.0 kB from 30 files"
    assert began == "run sly-owl started: tales, 22/5/3 stories for train/valid/test"
    assert text == "text: 4,387 tokens, vocabulary 76, 111 updates per epoch"
    # [76, 32] and [8, 32], 32 biases; [8, 76] and 76 biases.
    assert network.startswith("LSTM: 1 × 8 units, 3,404 parameters, on cpu (")
    assert typed.startswith("options: --hidden 8 ")
    assert [re.sub(r"  \d+:\d\d$", "", line) for line in lines[:2]] == [
        f"epoch {e['epoch']:3d}  training {e['training_perplexity']:6.2f}  validation {e['perplexity']:6.2f} ★"
        f"  {e['bits_per_character']:.3f} bits/char"
        for e in trained.log()
        if e["event"] == "evaluated"
    ]
    # The prompt of the hint is what the sample begins with.
    [sample] = [line.removeprefix("Sample: ") for line in ran.out.splitlines() if line.startswith("Sample: ")]
    beginning = " ".join(sample.split()[:2])[:20]
    assert lines[2:] == [
        "saved at update 222 with new best weights",
        f'next: grimmgen generate --seed "{beginning}"',
    ]


def evaluated(epoch: int, perplexity: float, best: bool) -> Evaluated:
    return Evaluated(10 * epoch, epoch, 20.0, perplexity, 2.5, 0.001, best, 3.0 * epoch)


@pytest.mark.parametrize("live", [True, False])
def test_every_evaluation_is_printed(live: bool) -> None:
    lines: list[str] = []
    bars: Any = SimpleNamespace(live=live, narrow=False, line=lambda text, _="": lines.append(text))
    events = [evaluated(1, 9.0, True), evaluated(2, 9.5, False), evaluated(3, 9.25, False)]
    ended = Finished(30, 3, "patience", 9.0, 1, 9.0)
    texts = {2: "a fox"}
    followed = progress.follow(
        iter([*events, ended]), bars, False, lambda: None, sample=lambda e: texts.get(e, "")
    )
    assert followed.finished is ended
    assert [line.split("validation")[-1].split("bits")[0].split() for line in lines] == [
        ["9.00", "★", "2.500"],
        ["9.50", "2.500"],
        ["a", "fox"],
        ["9.25", "2.500"],
    ]


def test_training_stops_when_validation_does(training: list[str], run: Program) -> None:
    # With such a rate the weights do not change, and later evaluations are no better.
    ran = run("train", *training, "--lr", "1e-12", "--epochs", "9", "--patience", "2", "--run", "sly-owl")
    facts = dict(line.split(maxsplit=1) for line in ran.out.splitlines()[:4])
    log = registry.find("sly-owl").log()
    epochs = [event["epoch"] for event in log if event["event"] == "evaluated"]
    assert facts["ended"] == "validation has stopped improving (--patience 2)"
    assert re.fullmatch(
        rf"perplexity [\d.]+, at epoch {epochs[-1] - 2}, whose weights are kept", facts["validation"]
    )
    assert (log[-1]["reason"], log[-1]["best_epoch"]) == ("patience", epochs[-1] - 2)
    assert "raise --patience" in run("train", "--resume").err
    assert run("train", "--resume", "--patience", "0", "--quiet").code == 0
    assert registry.find("sly-owl").log()[-1]["reason"] != "patience"


def test_samples_are_shown_where_they_are_wanted(training: list[str], trained: Run, run: Program) -> None:
    ran = run("train", *training, "--sample-every", "2", "--run", "sly-owl")
    indented = [line for line in ran.err.splitlines() if line.startswith("  ")]
    assert len(indented) == 1
    assert indented[0].strip()
    # They change nothing.
    assert without_times(registry.find("sly-owl").log()) == without_times(trained.log())
    for flag in "--json", "--quiet":
        assert "--sample-every has no effect with " + flag in run("train", "--sample-every", "2", flag).err


def test_sample_of_a_list_has_several_lines(tmp_path: Path, run: Program) -> None:
    names = tmp_path / "names.txt"
    names.write_text(
        "".join(f"{first}{last}\n" for first in "klmnrst" for last in ("ana", "ira", "ola", "ena") * 3)
    )
    options = "--documents line --tokens char --min-count 1 --hidden 4 --batch-size 2 --lr 0.1 --epochs 2"
    ran = run("train", str(names), *options.split())
    assert ran.code == 0, ran.err
    [sample] = [line for line in ran.out.splitlines() if line.startswith("Sample: ")]
    assert sample.count(", ") >= 2
    assert ran.err.splitlines()[-1] == "next: grimmgen generate --stories 20 --unique"


def test_json_prints_every_event(training: list[str], run: Program) -> None:
    ran = run("train", "--json", *training)
    assert (ran.code, ran.err) == (0, "")
    events = [json.loads(line) for line in ran.out.splitlines()]
    names = [event["event"] for event in events]
    steps = ["stepped"] * 111
    assert names == ["read", "started", *steps, "evaluated", *steps, "evaluated", "saved", "finished"]
    assert (events[0]["documents"], events[0]["files"], events[0]["skipped"]) == (30, 30, [])
    assert events[1]["configuration"]["hidden"] == 8
    assert [event["step"] for event in events if event["event"] == "stepped"] == [*range(1, 223)]
    assert events[-1]["reason"] == "epochs"


def test_equal_options_give_equal_runs(training: list[str], trained: Run, run: Program) -> None:
    assert run("train", "--quiet", "--run", "sly-owl", *training).code == 0
    owl = registry.find("sly-owl")
    assert without_times(owl.log()) == without_times(trained.log())
    assert owl.info()["corpus"] == trained.info()["corpus"]
    assert owl.info()["configuration"] == trained.info()["configuration"]


@pytest.mark.slow
def test_a_closed_pipe_saves_the_run(training: list[str], trained: Run, run: Program) -> None:
    # Fault 39: training up to there is saved, and the reader's end is not a success.
    left = shell(f"grimmgen train --json --run sly-owl {' '.join(training)} | head -3")
    assert (left.code, left.out.count("\n")) == (128 + signal.SIGPIPE, 3)
    message = (
        r"error: cannot write the output \(Broken pipe\); saved at update (\d+): resume with"
        r" `grimmgen train --resume --run sly-owl`\n"
    )
    found = re.fullmatch(message, left.err)
    assert found
    assert (Checkpoint.read(registry.find("sly-owl").last_path).progress or {})["step"] == int(found[1])
    assert run("train", "--resume", "--quiet", "--run", "sly-owl").code == 0
    assert without_times(registry.find("sly-owl").log()) == without_times(trained.log())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "code", "reason"), [("2>&1 | head -3", 141, None), ("--json > /dev/full", 1, "No space left")]
)
def test_a_lost_output_saves_the_run(
    redirection: str, code: int, reason: str | None, training: list[str], trained: Run, run: Program
) -> None:
    # Fault 39: neighbours of the above, the lines of progress and a full disk.
    left = shell(f"grimmgen train --run sly-owl {' '.join(training)} {redirection}")
    assert left.code == code
    assert reason is None or (reason in left.err and left.err.count("\n") == 1)
    assert registry.find("sly-owl").last_path.exists()
    assert run("train", "--resume", "--quiet", "--run", "sly-owl").code == 0
    assert without_times(registry.find("sly-owl").log()) == without_times(trained.log())


# --- short and long texts (fault 21) ----------------------------------------------------------------------

KING = "the king and the queen of the hen went to the mill, and the fox went with them.\n"
SMALL = ["--epochs", "2", "--hidden", "8"]


@pytest.mark.parametrize(("size", "batch"), [(10_240, 64), (2048, 64), (2048, 1), (300, 8), (300, 64)])
def test_a_short_text_trains_in_short_windows(size: int, batch: int, tmp_path: Path, run: Program) -> None:
    path = tmp_path / "little.txt"
    path.write_text((KING * 200)[:size], encoding="utf-8")
    ran = run("train", "--corpus", str(path), *SMALL, "--batch-size", str(batch), "--min-count", "3")
    assert ran.code == 0, ran.err
    assert "ended       all epochs done" in ran.out


def test_a_thousand_one_line_documents_train(tmp_path: Path, run: Program) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.txt").write_text(KING[number % 40 :], encoding="utf-8")
    ran = run("train", "--corpus", str(tmp_path), *SMALL)
    assert ran.code == 0, ran.err
    assert re.search(r"started: .*, \d{3}/\d+/\d+ stories for train/valid/test\n", ran.err)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("the king", "no 2-gram occurs 10 times in the training stories: lower --min-count or give more text"),
        (
            KING,
            "no 2-gram occurs 10 times in the training stories: lower --min-count or give more text",
        ),
        (
            "the " * 15,
            "--batch-size 64 is more than the 27 tokens of the training set: ",
        ),
        ("ab" * 400 + "\n", "the text is too short for a validation set: give more text"),
    ],
)
def test_a_too_short_text_is_an_error_in_one_line(text: str, line: str, tmp_path: Path, run: Program) -> None:
    path = tmp_path / "little.txt"
    path.write_text(text, encoding="utf-8")
    ran = run("train", "--corpus", str(path))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith(f"error: {line}")
    assert registry.all_runs() == []


def test_many_unknown_tokens_are_reported(tmp_path: Path, run: Program) -> None:
    path = tmp_path / "little.txt"
    path.write_text((KING * 200)[:1000], encoding="utf-8")
    ran = run("train", "--corpus", str(path), *SMALL, "--min-count", "20")
    assert re.search(r"^\d\d% of the tokens are <unk>: lower --min-count\b", ran.err, re.MULTILINE)


def test_a_cached_text_trains_the_same_run(
    training: list[str], trained: Run, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)
    ran = run("train", "--run", "sly-owl", *training)
    assert re.match("encoding 0.0 GB of text, .*\n30 documents, .*\nrun sly-owl started: ", ran.err)
    owl = registry.find("sly-owl")
    assert without_times(owl.log()) == without_times(trained.log())
    assert [path.suffix for path in sorted(id_cache_directory().iterdir())] == ["", ".ids"]


# --- signals (fault 33) ----------------------------------------------------------------------------------


def at_update(process: subprocess.Popen[bytes], step: int) -> None:
    """Read JSON lines up to those of this update."""
    assert process.stdout
    for line in process.stdout:
        if json.loads(line).get("step") == step:
            return
    raise AssertionError(f"it ended before update {step}")


@pytest.mark.slow
def test_a_signal_saves_and_the_resumed_run_is_bit_equal(training: list[str], trained: Run, run: Program) -> None:
    # With each signal, and at each step, in faults/test_training.py.
    with begin("train", "--json", "--run", "sly-owl", *training) as process:
        at_update(process, 20)
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        assert process.stderr
        *_, saved, finished = map(json.loads, process.stdout)
        err = process.stderr.read().decode()
    assert process.returncode == 143
    assert (finished["event"], finished["reason"]) == ("finished", "interrupted")
    assert 20 <= saved["step"] == finished["step"] < 222
    assert err == (
        "\nfinishing the update and saving; once more to stop at once\n"
        "resume with: grimmgen train --resume --run sly-owl\n"
    )
    ran = run(*err.splitlines()[-1].split()[3:])
    assert ran.code == 0
    assert ran.err.startswith(f"run sly-owl resumed at update {saved['step']}: tales, ")
    owl = registry.find("sly-owl")
    assert without_times(owl.log()) == without_times(trained.log())
    assert owl.checkpoint().weights.keys() == trained.checkpoint().weights.keys()
    for name, weight in owl.checkpoint().weights.items():
        assert weight.tobytes() == trained.checkpoint().weights[name].tobytes()


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_removes_the_bars_and_reports(training: list[str]) -> None:
    train = [*PROGRAM, "train", "--run", "sly-owl", *training, "--epochs", "1000"]
    # There, each new best epoch has a sample, which is dim and indented.
    ran = on_terminal(*train, typed=[(b"\x1b[2m  ", b"\x03")])
    assert ran.code == 130
    bars, _, result = ran.out.partition("^C")
    assert re.search(r"\x1b\[2m  \w", bars)
    # The cursor is hidden while the bars move.
    assert "\x1b[?25l" in bars
    # The notice is drawn by the bars, so that it is removed with them.
    assert "\nfinishing the update and saving; once more to stop at once\n" not in result
    assert "\x1b[?25h" in result
    assert "interrupted" in result
    assert "grimmgen train --resume --run sly-owl" in result
    assert registry.find("sly-owl").last_path.exists()


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tales: Path) -> None:
    # An update of so many units takes a second or more.
    long = "--hidden 1500 --batch-size 64 --unroll 100 --min-count 1 --budget 60s"
    with begin("train", "--json", "--run", "sly-owl", "--corpus", str(tales), *long.split()) as process:
        assert process.stdout
        assert process.stderr
        assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["read", "started"]
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"\n"
        assert process.stderr.readline() == b"finishing the update and saving; once more to stop at once\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b""
    assert process.returncode == 130
    # Nothing was saved yet; files on disk are complete or absent.
    assert {p.name for p in registry.find("sly-owl").path.iterdir()} == {"run.json", "log.jsonl"}


# --- resuming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--hidden 16", "--hidden"),
        ("--batch-size 8 --lr 0.1", "--batch-size, --lr"),
        ("--no-reset-state", "--reset-state"),
    ],
)
def test_a_resumed_run_keeps_its_options(options: str, named: str, trained: Run, run: Program) -> None:
    before = {path.name: path.read_bytes() for path in trained.path.iterdir()}
    ran = run("train", "--resume", *options.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {named} cannot be given with --resume: ")
    assert {path.name: path.read_bytes() for path in trained.path.iterdir()} == before


def test_a_resumed_run_takes_a_new_limit(trained: Run, run: Program) -> None:
    ran = run("train", "--resume", "--epochs", "3", "--quiet")
    assert ran.code == 0
    assert [e["epoch"] for e in trained.log() if e["event"] == "evaluated"] == [1, 2, 3]
    assert trained.configuration.epochs == 3
    # A budget is that of the run: a second is more than it has had.
    spent = trained.log()[-1]["seconds"]
    ran = run("train", "--resume", "--epochs", "4", "--budget", "1h")
    assert re.search(rf"^budget: 0:0{int(spent)} of 1:00:00 are spent; ", ran.err, re.MULTILINE)


@pytest.mark.slow
def test_variables_do_not_prevent_a_resume(
    training: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_TRAIN_HIDDEN", "5")
    monkeypatch.setenv("GRIMMGEN_TRAIN_LAYERS", "2")
    monkeypatch.setenv("GRIMMGEN_TRAIN_EPOCHS", "3")
    # The command line overrides variables.
    assert run("train", "--quiet", "--run", "sly-owl", *training, "--hidden", "4", "--epochs", "1").code == 0
    owl = registry.find("sly-owl")
    assert (owl.configuration.hidden, owl.configuration.layers, owl.configuration.epochs) == (4, 2, 1)
    assert run("train", "--quiet", "--resume").code == 0
    assert (owl.configuration.hidden, owl.configuration.layers, owl.configuration.epochs) == (4, 2, 3)


# --- what is refused (fault 38) --------------------------------------------------------------------------

BAD = {
    "--corpus": "gone",
    "--from": "-rf con",
    "--run": "../x -rf latest con a\nb a\x1bb x.safetensors " + 65 * "x",
    "--preset": "best",
    "--cell": "rnn",
    "--rounds": "-1 21",
    "--embedding": "-1 32769",
    "--input-dropout": "-0.1 0.5 1 nan",
    "--weight-drop": "-0.1 1 nan",
    "--weight-decay": "-1 nan inf",
    "--dropout-mode": "none",
    "--schedule": "linear",
    "--precision": "fp16",
    "--warmup": "-0.1 1.1 nan",
    "--newlines": "drop",
    "--hidden": "0 -1 x 1.5 nan 32769 9223372036854775808 " + 60 * "9",
    "--layers": "0 -1 65",
    "--dropout": "-0.1 1 1.1 nan inf 1e400",
    "--init": "zeros",
    "--batch-size": "0 -1 9223372036854775808 100000",
    "--unroll": "0 -1 9223372036854775808",
    "--lr": "0 -1 nan inf 1e400",
    "--clip": "0 -1 nan inf",
    "--decay-factor": "0 -1 1.1 nan",
    "--decay-patience": "0 -1 1.5",
    "--patience": "-1 1.5 x",
    "--sample-every": "-1 x",
    "--epochs": "0 -1 9223372036854775808",
    "--budget": "0 -1 nan inf 1e400 1e400s 10x m 10m5",
    "--ngram": "0 -1 9",
    "--min-count": "0 -1 1000000",
    "--documents": "lines ( a*",
    "--encoding": "utf-9 rot13",
    "--column": "a\nb",
    "--field": "a\nb",
    "--split": "gone.json",
    "--distil": "no-such-run",
    "--random-seed": "-1 9223372036854775808",
    "--device": "gpu cuda:99",
    "--language": "de",
    "--log-to": "wandb",
    "--tokens": "words bpe:1 bpe:x ngram:0 ngram:9",
}


@pytest.mark.parametrize("option", BAD)
def test_a_bad_value_is_refused_before_a_run_is_created(
    option: str, training: list[str], run: Program, home: Path
) -> None:
    for value in BAD[option].split(" "):
        ran = run("train", *training, f"{option}={value}")
        assert (ran.code, ran.out) == (2, ""), value
        assert ran.err.startswith("error: ")
        assert ran.err.count("\n") == 1
        assert "\x1b" not in ran.err
        words = {
            "--corpus": "corpus",
            "--run": "run",
            "--from": "run",
            "--distil": "run",
            "--split": "split",
            "--min-count": "times",
        }
        assert option in ran.err or words[option] in ran.err
        assert not (home / "data" / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rounds 3", "--rounds has no effect with --cell lstm: leave it out, or give --cell mogrifier"),
        (
            "--weight-drop 0.1 --cell mingru",
            "--weight-drop has no effect with --cell mingru, which has no recurrent weight: leave it out",
        ),
        (
            "--warmup 0.1",
            "--warmup has no effect with --schedule plateau: leave it out, or give --schedule cosine",
        ),
        (
            "--preset quick --decay-patience 3",
            "--decay-patience has no effect with --schedule cosine: leave it out, or give --schedule plateau",
        ),
    ],
)
def test_an_option_without_effect_is_refused(
    options: str, message: str, training: list[str], run: Program, home: Path
) -> None:
    assert run("train", *training, *options.split()) == (2, "", f"error: {message}\n")
    assert not (home / "data" / "runs").exists()


@pytest.mark.parametrize(
    "options",
    ["--rounds 3 --cell mogrifier --embedding 8", "--warmup 0.1 --schedule cosine", "--decay-factor 0.7"],
)
def test_an_option_that_has_an_effect_is_accepted(options: str, training: list[str], run: Program) -> None:
    assert run("train", *training, "--epochs", "1", "--batch-size", "16", *options.split()).code == 0


def test_resuming_a_finished_run_names_the_limits(trained: Run, run: Program) -> None:
    ran = run("train", "--resume", "--run", trained.name)
    assert ran.code == 0
    assert ran.err.splitlines()[-1].startswith("nothing left to train: raise --epochs or --budget")
    assert "nothing left" not in run("train", "--resume", "--run", trained.name, "--epochs", "3").err


def test_every_option_of_train_has_a_bad_value_here() -> None:
    from tests.test_cli import OPTIONS

    without = {"--resume", "--reset-state", "--no-reset-state", "--keep-case", "--phases", "--no-phases"}
    without |= {"--tied", "--untied", "--keep-boilerplate", "--counts", "--no-counts"}
    assert set(BAD) | without == set(OPTIONS["train"].split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused(training: list[str], trained: Run, run: Program) -> None:  # fault 37
    for command in (["train", *training], ["eval", __file__]):
        ran = run(*command, "--device", "cuda")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert ran.err.startswith("error: --device cuda: PyTorch finds no CUDA GPU here")
        assert ran.err.endswith(": give --device cpu or auto\n")
    assert registry.all_runs() == [trained]


def test_an_existing_name_is_refused(training: list[str], trained: Run, run: Program) -> None:
    ran = run("train", "--run", "sly-fox", *training)
    assert (ran.code, ran.out) == (2, "")
    assert "sly-fox" in ran.err
    assert "give another --run, or " in ran.err
    assert registry.all_runs() == [trained]


# --- presets ---------------------------------------------------------------------------------------------


def test_options_override_a_preset() -> None:
    chosen = {"hidden": 32, "learning_rate": 0.5, "initialisation": "normal", "lower": False, "epochs": 7}
    assert configure("strong", chosen) == Configuration(**{**PRESETS["strong"], **chosen})
    assert configure("tutorial", {}) == Configuration()


def test_flags_and_variables_reach_the_configuration(
    training: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_TRAIN_LR", "0.02")
    monkeypatch.setenv("GRIMMGEN_TRAIN_INIT", "xavier")
    monkeypatch.setenv("GRIMMGEN_TRAIN_KEEP_CASE", "1")
    monkeypatch.setenv("GRIMMGEN_TRAIN_BUDGET", "10m")
    options = [*training, "--no-reset-state", "--lr", "0.03", "--epochs", "1", "--quiet"]
    assert run("train", *options).code == 0
    found = registry.find(None).configuration
    assert (found.learning_rate, found.initialisation, found.lower) == (0.03, "xavier", False)
    assert (found.budget, found.reset_state, found.phases) == (600.0, False, False)


def test_a_budget_lifts_the_limit_of_epochs_for_cosine() -> None:
    assert configure("strong", {"budget": 660.0}).epochs > 10**6
    assert configure("strong", {"budget": 660.0, "epochs": 7}).epochs == 7
    assert configure("strong", {}).epochs == PRESETS["strong"]["epochs"]
    assert configure("tutorial", {"budget": 660.0}).epochs == 180


# --- signals that are ignored ----------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_an_ignored_signal_stays_ignored() -> None:  # as nohup does
    from grimmgen.cli.console import Bars
    from grimmgen.cli.train import _stop_on_signal
    from grimmgen.training.distributed import SINGLE_PROCESS

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _stop_on_signal(None, [], SINGLE_PROCESS, Bars(quiet=True)):  # type: ignore[arg-type]
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)

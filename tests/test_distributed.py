"""Several processes that train one run: what each reads, that they train like one, and that they end together."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from grimmgen.cli import _run
from grimmgen.configuration import Configuration, DropoutMode
from grimmgen.errors import UsageError
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.network.model import LanguageModel, State, mask_count
from grimmgen.network.train_step import GradientStep
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import Evaluated, Stepped
from grimmgen.text.batches import Windows, epoch
from grimmgen.text.corpus import open_corpus
from grimmgen.training import distributed
from grimmgen.training.distributed import SINGLE_PROCESS, ProcessGroup, process_group
from grimmgen.training.session import Training
from tests.builders import NETWORKS, TEXT, tiny_configuration, tiny_vocabulary
from tests.program import Ran

_TIMEOUT = 300.0


def torchrun(*command: str) -> subprocess.Popen[bytes]:
    """Start two processes of a command."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen([*launcher, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Part(ProcessGroup):
    """One of several processes, without communication."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def parts(size: int) -> list[ProcessGroup]:
    return [Part(rank, size) for rank in range(size)]


# --- what each process reads -------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "size"), [(1, 1), (9, 1), (8, 2), (9, 2), (9, 4), (7, 7)])
def test_shares_of_rows_differ_by_one_at_most(batch_size: int, size: int) -> None:
    own = [part.rows(batch_size) for part in parts(size)]
    assert [row for rows in own for row in range(batch_size)[rows]] == list(range(batch_size))
    shares = [rows.stop - rows.start for rows in own]
    assert max(shares) - min(shares) <= 1


def test_fewer_rows_than_processes_are_refused() -> None:
    message = "--batch-size 3 is less than one row for each of 4 processes: "
    with pytest.raises(UsageError, match=message):
        Part(0, 4).rows(3)


@pytest.mark.parametrize(("ngrams", "rows"), [(50, 7), (50, 4), (9, 8), (3, 7)])
def test_windows_of_all_processes_are_those_of_one(ngrams: int, rows: int) -> None:
    # With rows that end early, and some that are empty.
    documents = [[np.arange(2, 2 + n, dtype=np.uint16)] for n in (ngrams, 1, 5)]
    whole = epoch(documents, rows, 4, 7, 0)
    shares = [epoch(documents, rows, 4, 7, 0, part.rows(rows)) for part in parts(3)]
    assert isinstance(whole, Windows)
    for number, window in enumerate(whole):
        for name in ("inputs", "targets", "starts"):
            together = np.concatenate([getattr(share[number], name) for share in shares], axis=1)
            assert np.array_equal(together, getattr(window, name))
        assert {share.predictions(number) for share in [whole, *shares]} == {window.predictions}
    assert {len(share) for share in shares} == {len(whole)}


MODES = [*zip(NETWORKS, itertools.cycle(get_args(DropoutMode)), strict=False)]
MODES += [(network, mode) for network in ("lstm1", "lstm2-tied") for mode in get_args(DropoutMode)]


@pytest.mark.parametrize(("network", "mode"), MODES)
def test_the_weighted_mean_of_gradients_is_that_of_one_process(network: str, mode: DropoutMode) -> None:
    options: dict[str, Any] = {**NETWORKS[network], "dropout": 0.4, "dropout_mode": mode, "weight_drop": 0.3}
    options |= {"input_dropout": 0.3} if "embedding" in options else {}
    configuration = tiny_configuration(batch_size=5, **options)
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10.0)
    documents = [[vocabulary.encode(TEXT)], [vocabulary.encode(TEXT[::-1])]]
    # The gradients of the mogrifier are ill-conditioned in float32.
    if configuration.cell == "mogrifier":
        model.double()
    draw = torch.Generator().manual_seed(3)
    zeros = model.zero_state(5)
    before: State = tuple(torch.randn(part.shape, generator=draw, dtype=part.dtype) for part in zeros)

    def gradients_of(own: slice) -> tuple[float, State, list[torch.Tensor]]:
        window = epoch(documents, 5, 4, 0, 0, own)[0]
        step = GradientStep(model, model.backend(), None, rows=own)
        state = tuple(part[:, own].contiguous() for part in before)
        loss, gradients, after, *_ = step(window, state, np.arange(mask_count(configuration)))
        return loss.item(), after, [gradients[name].clone() for name, _ in model.named_parameters()]

    mean, state, expected = gradients_of(slice(0, 5))
    own = [part.rows(5) for part in parts(2)]
    parts_of_batch = [gradients_of(rows) for rows in own]
    weights = [(rows.stop - rows.start) / 5 for rows in own]
    assert sum(w * loss for w, (loss, _, _) in zip(weights, parts_of_batch, strict=True)) == pytest.approx(mean)
    for which in range(len(state)):
        joined = torch.cat([after[which] for _, after, _ in parts_of_batch], dim=1)
        torch.testing.assert_close(joined, state[which])
    for number, gradient in enumerate(expected):
        mean_gradient = sum(
            (w * gradients[number] for w, (_, _, gradients) in zip(weights, parts_of_batch, strict=True)),
            torch.zeros_like(gradient),
        )
        torch.testing.assert_close(mean_gradient, gradient, rtol=1e-4, atol=1e-6)
    # The dropout masks of the two processes differ.
    other, _, _ = gradients_of(own[0])
    assert other == parts_of_batch[0][0] != parts_of_batch[1][0]


def test_each_document_is_evaluated_by_one_process() -> None:
    configuration = tiny_configuration()
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    documents = encode_for_evaluation([(str(n), TEXT[n:]) for n in range(5)], vocabulary)
    whole = evaluate(model, documents)
    spelling = [document.spelling for document in documents]
    shares = [
        [score.nats for score in evaluate(model, documents, (part.rank, part.size)).documents] for part in parts(7)
    ]
    read = np.array(shares) - spelling
    assert (np.count_nonzero(read, axis=0) == 1).all()
    assert read.sum(axis=0) + spelling == pytest.approx([score.nats for score in whole.documents])


# --- connecting ------------------------------------------------------------------------------------------


def test_without_torchrun_there_is_a_single_process() -> None:
    with process_group() as group:
        assert group is SINGLE_PROCESS


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"RANK": "0"},
            "RANK is set, but not WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start with"
            " torchrun, or unset it",
        ),
        (
            {
                "RANK": "1",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "localhost",
            },
            "RANK and WORLD_SIZE are set, but not MASTER_PORT: start with torchrun, or unset it",
        ),
        ({"RANK": "-1"}, "RANK='-1' is not a number: start with torchrun, or unset it"),
        ({"RANK": "2"}, "RANK and WORLD_SIZE contradict each other: start with torchrun, or unset them"),
        ({"MASTER_PORT": "no"}, "process 0 of 2 does not reach the others ("),
    ],
)
def test_incomplete_variables_of_torchrun_are_one_line(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
    }
    whole["MASTER_PORT"] = "1"
    half = len(variables) > 1 or message.startswith("RANK is set")
    for name, value in (variables if half else whole | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_connecting", False)
    assert _run(["train", "--corpus", "sampler"]) == (1 if "reach" in message else 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_wrong_option_is_reported_by_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(distributed, "_connecting", False)
    errors = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        for option in ("--hidden=0", "--hiden=3"):
            assert _run(["train", option]) == 2
        errors.append(capsys.readouterr().err.count("error: "))
    assert errors == [2, 0]


# --- training together -----------------------------------------------------------------------------------


# Processes are forked from one that has imported the package, which takes far longer than what they do.
_SERVER: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
_SERVER.set_forkserver_preload(["grimmgen.training.session"])

_PROCESS = """
import sys, traceback
from grimmgen.training.distributed import exit_process, process_group
try:
    with process_group() as group:
{code}
except SystemExit as leaving:
    exit_process(leaving.code)
except Exception:
    traceback.print_exc()
    exit_process(1)
"""


def _execute(program: str, arguments: list[str], variables: dict[str, str], outputs: list[str]) -> None:
    """Run a program in this process, with its outputs in files and these variables as its environment."""
    os.environ.clear()
    os.environ.update(variables)
    for stream, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv[1:] = arguments
    exec(program, {"__name__": "__main__"})  # noqa: S102 - a program of this file


def run_together(code: str, *arguments: str) -> list[Ran]:
    """Run code in two processes, with `group` defined; RANK in an argument is replaced by the process's number."""
    return run_program(_PROCESS.format(code=textwrap.indent(textwrap.dedent(code), 8 * " ")), *arguments)


def run_program(program: str, *arguments: str, size: int = 2) -> list[Ran]:
    """Run a program in several processes, as torchrun does, which is slow."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    variables = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
    with tempfile.TemporaryDirectory() as directory:
        outputs = [[f"{directory}/{rank}.{stream}" for stream in ("out", "err")] for rank in range(size)]
        processes = [
            _SERVER.Process(
                target=_execute,
                args=(
                    program,
                    [argument.replace("RANK", str(rank)) for argument in arguments],
                    {**os.environ, **variables, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    outputs[rank],
                ),
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_TIMEOUT)
        return [
            Ran(-1 if process.exitcode is None else process.exitcode, *(Path(o).read_text("utf-8") for o in own))
            for process, own in zip(processes, outputs, strict=True)
        ]


# An odd number of rows, and products in float32.
OPTIONS: dict[str, Any] = {"hidden": 8, "batch_size": 5, "unroll": 10, "min_count": 1, "epochs": 2, "dropout": 0.3}
OPTIONS |= {"learning_rate": 0.01, "precision": "fp32", "layers": 2, "phases": True, "decay_patience": 1}
_TRAIN = """
    import json
    from grimmgen.runs import registry
    from grimmgen.configuration import Configuration
    from grimmgen.text.corpus import open_corpus
    from grimmgen.runs.events import Stepped, event_to_json
    from grimmgen.training.session import Training
    corpus, options, name, begin, stop = json.loads(sys.argv[1])
    if begin:
        training = Training.begin(open_corpus(corpus), Configuration(**options), run=name, group=group)
    else:
        training = Training.resume(registry.find(name), group=group)
    for event in training.events():
        print(json.dumps(event_to_json(event)))
        # If one process stops, all do.
        if isinstance(event, Stepped) and event.step == stop and group.rank == group.size - 1:
            training.stop()
"""


# Handles every text as a large one, and prints when it is encoded.
_LARGE = """
    import json
    from grimmgen.text import encoding, id_cache
    write, encoding.IN_MEMORY = id_cache.write, 1
    def printing(*arguments):
        print(json.dumps({"event": "encoded"}))
        write(*arguments)
    id_cache.write = printing
"""


def train_together(
    tales: Path, name: str, begin: bool = True, stop: int = 0, before: str = ""
) -> list[list[dict[str, Any]]]:
    """Train with two processes; returns the events of each."""
    ran = run_together(before + _TRAIN, json.dumps([str(tales), OPTIONS, name, begin, stop]))
    assert [(one.code, one.err) for one in ran] == [(0, "")] * 2
    return [[json.loads(line) for line in one.out.splitlines()] for one in ran]


def contents(name: str) -> dict[str, Any]:
    checkpoint = Checkpoint.read(registry.find(name).last_path)
    progress = {k: v for k, v in (checkpoint.progress or {}).items() if k != "seconds"}
    return {"progress": progress} | checkpoint.weights | checkpoint.training_tensors


def bit_equal(one: str, other: str) -> bool:
    first, second = contents(one), contents(other)
    return first.pop("progress") == second.pop("progress") and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )


def close(one: str, other: str) -> bool:
    first, second = contents(one), contents(other)
    counts = [{k: v for k, v in c.pop("progress").items() if isinstance(v, int)} for c in (first, second)]
    return counts[0] == counts[1] and all(
        np.allclose(first[name], second[name], rtol=1e-2, atol=1e-3) for name in first
    )


@pytest.fixture(scope="module")
def two(tales: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A home with a run, `two`, trained by two processes, and its events."""
    directory = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRIMMGEN_HOME", str(directory))
        first, second = train_together(tales, "two")
    # All processes yield the same events, but for the clocks; only the first one writes the best weights.
    for event in (*first, *second):
        for name in ("seconds", "speed", *(["best"] if event["event"] == "saved" else [])):
            event.pop(name, None)
    assert first == second
    return directory, first


@pytest.mark.slow
def test_two_processes_train_like_one_up_to_rounding(
    two: tuple[Path, list[dict[str, Any]]], tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, events = two
    monkeypatch.setenv("GRIMMGEN_HOME", str(directory))
    alone = list(Training.begin(open_corpus(str(tales)), Configuration(**OPTIONS), run="one").events())
    for kind, name, tolerance in ((Stepped, "stepped", 1e-4), (Evaluated, "evaluated", 1e-3)):
        perplexities = [event["perplexity"] for event in events if event["event"] == name]
        assert perplexities == pytest.approx([e.perplexity for e in alone if isinstance(e, kind)], rel=tolerance)
    assert close("one", "two")
    assert not bit_equal("one", "two")  # else only one process has trained
    run = registry.find("two")
    assert sorted(path.name for path in run.path.iterdir()) == [
        path.name for path in sorted(registry.find("one").path.iterdir())
    ]
    assert [event["event"] for event in run.log()] == ["started", "evaluated", "evaluated", "finished"]
    assert run.log()[0]["device"] == "2 × cpu"


@pytest.mark.slow
def test_a_resume_may_change_the_number_of_processes(
    two: tuple[Path, list[dict[str, Any]]], tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, events = two
    monkeypatch.setenv("GRIMMGEN_HOME", str(directory))
    half = max(e["step"] for e in events if e["event"] == "stepped") // 3
    first, second = train_together(tales, "stopped", stop=half)
    assert first[-1]["reason"] == second[-1]["reason"] == "interrupted"
    assert first[-1]["step"] == second[-1]["step"] == half
    # The same run, resumed by one process.
    fewer = registry.find("stopped").path.with_name("fewer")
    shutil.copytree(registry.find("stopped").path, fewer)
    list(Training.resume(registry.find("fewer")).events())
    assert close("fewer", "two")
    train_together(tales, "stopped", begin=False)
    assert bit_equal("stopped", "two")
    # A run of one process, resumed by two.
    training = Training.begin(open_corpus(str(tales)), Configuration(**OPTIONS), run="more")
    for event in training.events():
        if isinstance(event, Stepped) and event.step == half:
            training.stop()
    train_together(tales, "more", begin=False)
    assert close("more", "two")


@pytest.mark.slow
def test_a_large_text_is_encoded_by_one_process(
    two: tuple[Path, list[dict[str, Any]]], tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = two
    monkeypatch.setenv("GRIMMGEN_HOME", str(directory))
    events = train_together(tales, "large", before=_LARGE)
    assert sum(event["event"] == "encoded" for own in events for event in own) == 1
    assert len(list((directory / "cache" / "tokens").glob("*.ids"))) == 1
    assert bit_equal("large", "two")


# --- ending together ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_reports_and_saves_once(training: list[str], home: Path) -> None:
    command = ["-m", "--", "grimmgen", "train", "--run", "sly-owl", *training, "--epochs", "100000", "--json"]
    with torchrun(*command) as process:
        assert process.stdout is not None
        lines: list[dict[str, Any]] = []
        while len(lines) < 20:
            lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=_TIMEOUT)
    events = [*lines, *map(json.loads, out.decode().splitlines())]
    steps = [event["step"] for event in events if event["event"] == "stepped"]
    assert steps == list(range(1, len(steps) + 1))
    assert [e["event"] for e in events if e["event"] in {"started", "finished"}] == ["started", "finished"]
    assert events[-1]["reason"] == "interrupted"
    hint = ": torchrun --nproc-per-node 2 -m -- grimmgen train --resume --run sly-owl\n"
    assert err.decode().count(hint) == 1
    assert "error: " not in err.decode()
    progress = Checkpoint.read(registry.find("sly-owl").last_path).progress
    assert progress is not None
    assert progress["step"] == steps[-1]
    assert [run.name for run in registry.all_runs()] == ["sly-owl"]
    assert not list(home.rglob("*.tmp"))


# A program that fails in the second process, within its fifth update.
_FAILING = """
import os, signal, sys, torch
from grimmgen.cli import main
from grimmgen.network.train_step import TrainStep
call, calls = TrainStep.__call__, []
def failing(*arguments):
    calls.append(arguments)
    if len(calls) == 5 and os.environ["RANK"] == "1":
        {failure}
    return call(*arguments)
TrainStep.__call__ = failing
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            "raise torch.OutOfMemoryError",
            "the device is out of memory at update 5: lower --batch-size or --unroll",
        ),
        ("raise RuntimeError('what')", "internal error, RuntimeError: what: please report it at"),
    ],
)
def test_an_error_in_one_process_ends_all_and_is_reported_once(
    failure: str, message: str, training: list[str]
) -> None:
    ran = run_program(_FAILING.format(failure=failure), "train", "--run", "sly-owl", *training)
    assert all(one.code for one in ran)
    assert [one.out for one in ran] == ["", ""]
    errors = [line for one in ran for line in one.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {message}")
    assert not registry.find("sly-owl").last_path.exists()


@pytest.mark.slow
def test_a_killed_process_ends_all(training: list[str]) -> None:
    failing = _FAILING.format(failure="os.kill(os.getpid(), signal.SIGKILL)")
    left, killed = run_program(failing, "train", "--run", "sly-owl", *training)
    assert (left.code, left.out, killed) == (1, "", (-signal.SIGKILL, "", ""))
    [error] = [line for line in left.err.splitlines() if line.startswith("error: ")]
    assert "another process has exited" in error
    assert not registry.find("sly-owl").last_path.exists()


@pytest.mark.slow
def test_an_error_in_all_processes_is_reported_once(tales: Path, home: Path) -> None:
    options = {**OPTIONS, "batch_size": 1}
    ran = run_together(_TRAIN, json.dumps([str(tales), options, "few", True, 0]))
    assert sorted(one.code for one in ran) == [1, 2]
    errors = "".join(one.err for one in ran)
    assert errors.count("UsageError: --batch-size 1 is less than one row for each of 2 processes") == 1
    assert errors.count("UsageError: ") == 1
    code = """
        from grimmgen.errors import UsageError
        import os
        assert group.broadcast(lambda: {"from": [group.rank, "ä", 0.1]}) == {"from": [0, "ä", 0.1]}
        assert group.all_equal(lambda: "this")
        assert not group.all_equal(lambda: group.rank)
        assert group.max(group.rank) == 1
        assert group.agree([7.5 - group.rank, -1.0], group.rank == 1) == ([7.5, -1.0], True)
        assert group.agree([7.5 - group.rank, -1.0], False) == ([7.5, -1.0], False)
    """
    assert [one.code for one in run_together(code)] == [0, 0]
    ran = run_together(code, "--epochs=RANK")
    assert "".join(one.err for one in ran).count("UsageError: the processes have different arguments") == 1
    assert not (home / "data" / "runs").exists()

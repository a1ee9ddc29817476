"""Training that is stopped, killed, diverges or is started twice (faults 31, 33, 35-37)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grimmgen.cli import _run, console
from grimmgen.network.model import LanguageModel
from grimmgen.network.train_step import TrainStep
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from grimmgen.sampling.generator import TextGenerator
from tests.builders import tiny_checkpoint
from tests.faults import rounds
from tests.faults.crash import Victim
from tests.program import Ran, begin

Program = Callable[..., Ran]

# Two epochs of a few updates.
SHORT = "--hidden 4 --batch-size 16 --unroll 100 --min-count 9 --epochs 2".split()


def results(run: Run) -> tuple[object, ...]:
    """Return everything that a training writes, but for the times."""
    found: list[object] = []
    for path in (run.best_path, run.last_path):
        read = Checkpoint.read(path)
        found.append({name: value for name, value in (read.progress or {}).items() if name != "seconds"})
        found.append({n: t.tobytes() for n, t in {**read.weights, **read.training_tensors}.items()})
    log = [{k: v for k, v in e.items() if k not in {"seconds", "run", "path"}} for e in run.log()]
    return *found, log


@pytest.fixture
def train(tales: Path) -> list[str]:
    return ["train", *SHORT, "--corpus", str(tales), "--run"]


# --- signals and kills -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_fault_33_a_signal_at_any_step_resumes_bit_equal(
    number: signal.Signals,
    code: int,
    train: list[str],
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: str) -> Ran:
        ended = _run(list(arguments))
        out, err = capfdbinary.readouterr()
        return Ran(ended, out.decode(), err.decode())

    assert run(*train, "whole", "--quiet").code == 0
    whole = registry.find("whole")
    steps = next(event["step"] for event in whole.log() if event["event"] == "finished")
    assert steps > 4
    json_line = console.json_line

    def killed_at(step: int) -> Callable[[dict[str, Any]], None]:
        def print_and_kill(event: dict[str, Any]) -> None:
            json_line(event)
            if event["event"] == "stepped" and event["step"] == step:
                os.kill(os.getpid(), number)

        return print_and_kill

    for step in range(1, steps):
        with monkeypatch.context() as patch:
            patch.setattr(console, "json_line", killed_at(step))
            stopped = run(*train, f"at-{step}", "--json")
        *_, saved, finished = map(json.loads, stopped.out.splitlines())
        assert (stopped.code, saved["event"], finished["reason"]) == (code, "saved", "interrupted")
        assert saved["step"] == step
        hint = re.search(r": grimmgen (train --resume --run at-\d+)\n", stopped.err)
        assert hint
        assert run(*hint[1].split(), "--quiet").code == 0
        assert results(registry.find(f"at-{step}")) == results(whole)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with Victim(tmp_path_factory.mktemp("victim"), "grimmgen.training.session") as victim:
        yield victim


@pytest.mark.faults
def test_fault_31_killed_at_any_moment_resumes_bit_equal(victim: Victim, train: list[str], home: Path) -> None:
    draw = random.Random(31)  # noqa: S311 - not a secret
    undisturbed, run = (Run(home / "data" / "runs" / name) for name in ("undisturbed", "sly-owl"))
    began = time.monotonic()
    victim.begin(home, *train, "undisturbed", "--quiet")
    victim.wait(undisturbed.last_path, 1)
    first_save = time.monotonic()
    assert victim.end().code == 0
    expected, steps = results(undisturbed), undisturbed.log()[-1]["step"]
    # Start-up takes many times as long as an update.
    start_up, step = first_save - began, (time.monotonic() - first_save) / steps
    killed = resumed = 0
    while killed < rounds(12, 200):
        victim.begin(home, *train, "sly-owl", "--quiet")
        # Each update is saved, and the time of a save varies tenfold.
        saves = draw.randrange(steps)
        victim.wait(run.last_path, saves)
        time.sleep(draw.uniform(0.0, step if saves else start_up))
        victim.signal(signal.SIGKILL)
        if victim.end().code == 0:
            run.remove()
            continue
        killed += 1
        # Sometimes the resumed run is killed, too.
        while run.last_path.exists() and draw.random() < 0.3:
            victim.begin(home, "train", "--resume", "--quiet", "--run", "sly-owl")
            victim.wait(run.last_path, draw.randrange(steps))
            time.sleep(draw.uniform(0.0, step))
            victim.signal(signal.SIGKILL)
            killed += victim.end().code != 0
        for path in run.path.glob("*.safetensors"):
            Checkpoint.read(path)
        if run.last_path.exists():
            resumed += 1
            ended = victim.run(home, "train", "--resume", "--quiet", "--run", "sly-owl")
            assert (ended.code, "rror" in ended.err) == (0, False), ended.err
            assert results(run) == expected
            assert not [*run.path.glob(".*")]
        if run.path.exists():
            run.remove()
    assert resumed > killed // 5, "many had saved a checkpoint"
    print(f"killed {killed} times, {resumed} runs resumed")  # noqa: T201


# --- numbers that are not finite ------------------------------------------------------------------------------


def test_fault_35_a_rate_out_of_range_is_refused(train: list[str], run: Program) -> None:
    refused = run(*train, "wilder", "--quiet", "--lr", "1e30")
    assert refused == (2, "", "error: --lr 1e+30 is out of range: give 1e-12 to 1e+06\n")


def test_fault_35_a_loss_of_nan_stops_before_the_update(
    train: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*train, "sly-owl", "--quiet", "--epochs", "1").code == 0
    owl = registry.find("sly-owl")
    before = {path.name: path.read_bytes() for path in owl.path.glob("*.safetensors")}
    initialise = TrainStep.__init__

    def poisoned(step: TrainStep, model: LanguageModel, *arguments: Any, **options: Any) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        initialise(step, model, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__init__", poisoned)
        ran = run("train", "--quiet", "--resume", "--epochs", "2")
    assert (ran.code, ran.out) == (1, "")
    message = (
        r"error: the loss or its gradient is not finite at update \d+; the last checkpoint is unchanged:"
        r" .* --lr [\d.e-]+\n"
    )
    assert re.fullmatch(message, ran.err)
    assert {path.name: path.read_bytes() for path in owl.path.glob("*.safetensors")} == before
    assert run("train", "--quiet", "--resume").code == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fault_35_overflow_stops_before_the_update(
    precision: str, train: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise = LanguageModel.initialise

    def initialise_large(model: LanguageModel) -> None:
        initialise(model)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1e38)

    monkeypatch.setattr(LanguageModel, "initialise", initialise_large)
    ran = run(*train, "sly-owl", "--quiet", "--precision", precision)
    if ran.code == 2:
        pytest.skip(f"no {precision} on this processor")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: the loss or its gradient is not finite at update 1; ")
    assert not list(registry.find("sly-owl").path.glob("*.safetensors"))


def test_fault_37_out_of_memory_keeps_the_checkpoint(
    train: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*train, "sly-owl", "--quiet", "--epochs", "1").code == 0
    owl = registry.find("sly-owl")
    before = owl.last_path.read_bytes()

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nOf the allocated memory…")

    monkeypatch.setattr(TrainStep, "__call__", full)
    ran = run("train", "--quiet", "--resume", "--epochs", "2")
    message = r"error: the device is out of memory at update \d+: lower --batch-size or --unroll\n"
    assert (ran.code, ran.out) == (1, "")
    assert re.fullmatch(message, ran.err)
    assert owl.last_path.read_bytes() == before


def test_fault_37_out_of_host_memory_is_one_line(
    train: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(TrainStep, "__call__", full)
    ran = run(*train, "sly-owl", "--quiet", "--epochs", "1")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "memory" in ran.err
    assert "a bug" not in ran.err


@pytest.mark.parametrize("place", ["to", "losses"])
def test_fault_37_out_of_memory_outside_updates_is_one_line(
    place: str, train: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LanguageModel, place, full)
    ran = run(*train, "sly-owl", "--quiet", "--epochs", "1")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("error: the device is out of memory: ")


# --- several processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fault_36_a_training_run_is_locked(tales: Path, run: Program) -> None:
    train = ["train", *SHORT, "--corpus", str(tales), "--run"]
    assert run(*train, "sly-owl", "--quiet", "--epochs", "1").code == 0
    with begin("train", "--resume", "--json", "--run", "sly-owl", "--epochs", "1000000") as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["event"] == "started"
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        for command in ("train --resume --run sly-owl", "runs rm --yes sly-owl"):
            refused = run(*command.split())
            assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
            assert f"the run sly-owl is in use by process {process.pid}" in refused.err
        assert "the run sly-owl exists already" in run(*train, "sly-owl").err
        # Another run is not locked.
        assert run(*train, "sly-fox", "--quiet").code == 0
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        reader.join()
    assert process.returncode == 130
    assert run("runs", "rm", "--yes", "sly-owl").code == 0
    assert [left.name for left in registry.all_runs()] == ["sly-fox"]


@pytest.mark.slow
def test_fault_31_readers_see_complete_checkpoints_only(home: Path, trained: Run) -> None:
    written = {hidden: tiny_checkpoint(True, "sly-fox", hidden=hidden) for hidden in (3, 9)}
    seen, failures, done = list[int](), list[BaseException](), threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                model = registry.load_model("sly-fox")
                TextGenerator(model).generate("the ", length=4)
                for found in (model.checkpoint, Checkpoint.read(trained.last_path)):
                    hidden = found.configuration.hidden
                    assert (
                        found.weights["output.bias"].tobytes() == written[hidden].weights["output.bias"].tobytes()
                    )
                    seen.append(hidden)
        except BaseException as error:
            failures.append(error)

    for path in (trained.best_path, trained.last_path):
        written[3].write(path)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    replaced = rounds(60, 1000)
    for number in range(replaced):
        for path in (trained.best_path, trained.last_path):
            written[(9, 3)[number % 2]].write(path)
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert set(seen) == {3, 9}
    assert not list(home.rglob("*.tmp"))
    print(f"replaced {replaced:,} times, read {len(seen):,} times")  # noqa: T201

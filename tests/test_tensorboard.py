"""`grimmgen train --log-to tensorboard`: TensorBoard reads back the numbers of the events."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import grimmgen
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.runs import registry, tensorboard
from grimmgen.runs.events import Evaluated, Started, Stepped
from grimmgen.runs.registry import Run
from grimmgen.runs.tensorboard import TensorBoardLog
from tests.program import Ran

pytest.importorskip("tensorboard")

Program = Callable[..., Ran]
Scalars = dict[str, list[tuple[int, float]]]


def read_back(directory: Path) -> Scalars:
    """The steps and the values of each tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(found.step, found.value) for found in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def started(step: int) -> Any:
    # Of all attributes only the step is read.
    event = Started.__new__(Started)
    object.__setattr__(event, "step", step)
    return event


def stepped(step: int, seconds: float) -> Stepped:
    return Stepped(step, 1, step, 100.0 - step, 0.001, 5000.0, seconds)


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_scalars_are_those_of_the_events(training: list[str], run: Program) -> None:
    ran = run("train", "--run", "sly-owl", "--json", "--log-to", "tensorboard", *training)
    assert (ran.code, ran.err) == (0, "")
    events = [json.loads(line) for line in ran.out.splitlines()]
    found = read_back(registry.find("sly-owl").path / "tensorboard")
    kinds = {"stepped": Stepped, "evaluated": Evaluated}
    assert set(found) == {
        f"{kind}/{field.name}"
        for kind, event in kinds.items()
        for field in dataclasses.fields(event)
        if field.type == "float" and field.name != "seconds"
    }
    for tag, points in found.items():
        kind, name = tag.split("/")
        right = {event["step"]: event[name] for event in events if event["event"] == kind}
        assert len(points) == len(right) if kind == "evaluated" else len(points) >= 1
        for step, value in points:
            assert value == pytest.approx(right[step], rel=1e-6)


def test_fit_writes_the_log(tales: Path, tmp_path: Path) -> None:
    model = grimmgen.fit(tales, hidden=4, epochs=1, log_to=f"tensorboard:{tmp_path}", run="sly-owl")
    points = read_back(tmp_path / "sly-owl")["evaluated/perplexity"]
    assert [value for _, value in points] == pytest.approx([model.history[0]["perplexity"]])
    with pytest.raises(UsageError, match=r"^log_to 'wandb' is not known"):
        grimmgen.fit(tales, log_to="wandb")


@pytest.mark.slow
def test_directory_has_a_directory_for_each_run(trained: Run, run: Program, tmp_path: Path) -> None:
    logs = tmp_path / "my logs"
    ran = run("train", "--resume", "--epochs", "3", "--log-to", f"tensorboard:{logs}")
    assert ran.code == 0
    assert f"watch with: tensorboard --logdir '{logs}'\n" in ran.err
    first = trained.log()[-2]["step"]
    assert [step for step, _ in read_back(logs / "sly-fox")["evaluated/perplexity"]] == [first]
    assert not (trained.path / "tensorboard").exists()


def test_updates_are_logged_ten_times_a_second(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path) as log:
        log.write(started(0))
        for step in range(1, 101):
            log.write(stepped(step, step / 64))
    points = read_back(tmp_path)["stepped/perplexity"]
    # 0.1 s are between 6 and 7 updates.
    assert points == [(step, 100.0 - step) for step in range(1, 101, 7)]


def test_resume_hides_what_it_repeats(tmp_path: Path) -> None:
    for begin, end, perplexity in ((0, 5, 9.0), (3, 6, 8.0)):
        with TensorBoardLog(tmp_path) as log:
            log.write(started(begin))
            for step in range(begin + 1, end + 1):
                log.write(dataclasses.replace(stepped(step, float(step)), perplexity=perplexity))
    points = read_back(tmp_path)["stepped/perplexity"]
    assert points == [(1, 9.0), (2, 9.0), (3, 9.0), (4, 8.0), (5, 8.0), (6, 8.0)]


def test_failing_disk_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 15.
    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    with TensorBoardLog(tmp_path / "log") as log:
        log.write(started(0))
        with monkeypatch.context() as patch:
            patch.setattr(log, "_file", Full())
            with pytest.raises(GrimmgenError, match=r"cannot write .*No space left"):
                log.write(stepped(1, 1.0))


@pytest.mark.parametrize("value", ["tensorflow", "tensorboard:", "", "TensorBoard", "tensorboard:~nobody-here/x"])
def test_unknown_log_is_refused_before_the_run(value: str, run: Program) -> None:
    ran = run("train", "--corpus", "sampler", "--log-to", value)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert registry.all_runs() == []


def test_log_that_cannot_be_written_is_refused_before_the_run(run: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = run("train", "--corpus", "sampler", "--log-to", f"tensorboard:{tmp_path / 'file'}")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert registry.all_runs() == []


def test_missing_tensorboard_names_the_extra(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GrimmgenError, match=r"grimmgen\[tensorboard\]"):
        tensorboard.require()
    assert run("train", "--corpus", "sampler", "--log-to", "tensorboard").code == 1
    assert registry.all_runs() == []

"""Fixtures of all tests: no test touches the user's home; the slow tests run last."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grimmgen.cli import _run
from grimmgen.runs import registry
from grimmgen.runs.registry import Run
from tests.program import Ran, use_home

# The networks of the tests are tiny: threads would mostly wait for each other. The variable is for the programs that
# tests start; PyTorch has read it before it can be set here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Set before anything imports Triton: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Signals that are ignored, as in the background of a shell or under nohup, are also ignored by child processes: the
# programs that tests stop would not stop.
for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move the directories of grimmgen to a temporary one."""
    directory = tmp_path / "home"
    for name in ("GRIMMGEN_DEBUG", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    use_home(monkeypatch, directory)
    return directory


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the program within the test's process, which is faster than in a process of its own."""

    def run(*arguments: str, stdin: bytes | None = None) -> Ran:
        capsysbinary.readouterr()
        with monkeypatch.context() as patch:
            if stdin is not None:
                patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = _run(list(arguments))
        out, err = capsysbinary.readouterr()
        return Ran(code, out.decode(), err.decode())

    return run


@pytest.fixture(scope="session")
def tales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of thirty tales: 22 for training, 5 for validation, 3 for the test."""
    directory = tmp_path_factory.mktemp("corpora") / "tales"
    directory.mkdir()
    who, where = ["king", "fox", "old woman", "hen", "miller"], ["the forest", "a mill", "the sea, far away,"]
    for number in range(30):
        tale = "".join(
            f"The {who[(number + 3 * k) % 5]} went to {where[(number * k) % 3]} and found {number + k} geese.\n"
            for k in range(1, 9)
        )
        (directory / f"{number:02d}.txt").write_text(tale, encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def training(tales: Path) -> list[str]:
    """The options with which the fixture `trained` was trained."""
    options = "--hidden 8 --batch-size 4 --unroll 10 --min-count 9 --lr 0.01 --epochs 2 --random-seed 7"
    return ["--corpus", str(tales), *options.split()]


@pytest.fixture(scope="session")
def _trained_home(training: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, directory)
        assert _run(["train", "--quiet", "--run", "sly-fox", *training]) == 0
    return directory


@pytest.fixture
def trained(_trained_home: Path, home: Path) -> Run:
    """A copy of the run `sly-fox`, which the test may change."""
    shutil.copytree(_trained_home, home)
    return registry.find("sly-fox")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow tests, campaigns included, last."""
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)

"""A disk that is full, a home that is nowhere, a clock that jumps (faults 12, 15, 17, 19)."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from grimmgen.text import corpus
from tests.program import PROGRAM, Ran, grimmgen
from tests.server import Server, answer

Program = Callable[..., Ran]
TALE = b"There was once a king whose disk was full. " * 9
FULL = "(No space left on device): free some space on the disk and run the command again\n"


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    """The home directory, on a disk of 256 kB."""
    home.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "disk", home], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield home
    subprocess.run(["umount", home], check=True)


def test_fault_15_a_full_disk_keeps_the_last_checkpoint(
    disk: Path, training: list[str], run: Program
) -> None:
    assert run("train", "--quiet", "--run", "sly-owl", *training, "--epochs", "1").code == 0
    owl = Run(disk / "data" / "runs" / "sly-owl")
    # Where training was slow it has saved before, and a checkpoint that gives way makes room.
    owl.previous_path.unlink(missing_ok=True)
    before = owl.last_path.read_bytes()
    # Room for the log and the best weights, not for all that a resume needs.
    (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - (36 << 10)))
    ended = run("train", "--quiet", "--resume", "--epochs", "2")
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.endswith(FULL)
    assert "last.safetensors" in ended.err
    assert owl.last_path.read_bytes() == before
    Checkpoint.read(owl.best_path)
    assert not list(disk.rglob("*.tmp"))
    (disk / "ballast").unlink()
    assert run("train", "--quiet", "--resume").code == 0
    assert (Checkpoint.read(owl.last_path).progress or {})["epoch"] == 2


def test_fault_15_a_fetch_after_a_full_disk_continues(disk: Path, run: Program) -> None:
    with Server() as server:
        for number in range(1, 101):
            server.on(f"/{number:03d}.txt", answer(TALE * 20))
        fetch = ["fetch", "--quiet", "--url", server.url, "--stories"]
        assert run(*fetch, "2").code == 0
        ended = run(*fetch, "100")
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert ended.err.endswith(FULL)
        there = {story.name: story.content() for story in corpus.open_corpus("grimm").documents}
        assert {"001", "002"} <= set(there)
        assert set(there.values()) == {TALE * 20}
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(*fetch, "100").code == 0


def test_fault_17_a_user_without_a_home_is_one_line(tmp_path: Path) -> None:
    # A namespace in which we are a user that nobody has heard of.
    stranger = ["unshare", "--user", "--map-user=54321"]
    if subprocess.run([*stranger, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    for command in (["train", "--corpus", "sampler"], ["fetch"], ["runs", "list"], ["generate"]):
        ran = subprocess.run(
            [*stranger, *PROGRAM, *command],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr
        assert "no home directory" in ran.stderr
        assert ran.stderr.endswith(": set GRIMMGEN_HOME to an absolute directory\n")
    assert list(tmp_path.iterdir()) == []


def test_fault_19_a_jumping_clock_changes_nothing(
    training: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(19)  # noqa: S311 - no secret
    monkeypatch.setattr(time, "time", lambda: draw.uniform(0.0, 4e9))
    with Server() as server:
        server.on("/001.txt", answer(b"", 503, Retry_After="0"), answer(TALE))
        assert run("fetch", "--url", server.url, "--stories", "1").code == 0
    # A budget counts seconds that have passed, not those of the clock.
    first = run("train", "--quiet", "--run", "first", *training, "--budget", "60s", "--epochs", "1")
    assert "all epochs are done" in first.out
    assert run("train", "--quiet", "--run", "second", *training, "--epochs", "1").code == 0
    # The latest is told by its number, whatever the time of its files is.
    for path in (Path(run("runs", "path", "first").out[:-1])).iterdir():
        os.utime(path, (4e9, 4e9))
    assert run("runs", "path").out.endswith("/second\n")


@pytest.mark.usefixtures("trained")
def test_fault_18_the_terminal_does_not_change_the_output() -> None:
    told = [
        grimmgen("generate", "--random-seed", "1", variables=variables).out
        for variables in (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"},
            {"LC_ALL": "C.UTF-8", "COLUMNS": "300", "FORCE_COLOR": "1"},
        )
    ]
    assert told[0] == told[1]
    assert "\x1b" not in told[0]

"""A full disk, a missing home directory, a jumping clock (faults 12, 15, 17, 19)."""

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
FULL = "(No space left on device): "


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    """The home directory, on a disk of 256 kB."""
    home.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "disk", home], check=False).returncode:
        pytest.skip("mounting needs the superuser")
    yield home
    subprocess.run(["umount", home], check=True)


def test_fault_15_a_full_disk_keeps_the_last_checkpoint(disk: Path, training: list[str], run: Program) -> None:
    assert run("train", "--quiet", "--run", "sly-owl", *training, "--epochs", "1").code == 0
    owl = Run(disk / "data" / "runs" / "sly-owl")
    # A slow training has saved twice; replacing the previous checkpoint would free space.
    owl.previous_path.unlink(missing_ok=True)
    before = owl.last_path.read_bytes()
    # Space for the log and the best weights, but not for the last checkpoint.
    (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - (36 << 10)))
    ended = run("train", "--quiet", "--resume", "--epochs", "2")
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert FULL in ended.err
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
        assert FULL in ended.err
        cached = {document.name: document.content() for document in corpus.open_corpus("grimm").documents}
        assert {"001", "002"} <= set(cached)
        assert set(cached.values()) == {TALE * 20}
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(*fetch, "100").code == 0


def test_fault_17_a_user_without_a_home_is_one_line(tmp_path: Path) -> None:
    # A namespace with a user that has no entry in the user database.
    unshare = ["unshare", "--user", "--map-user=54321"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not available")
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    for command in (["train", "--corpus", "sampler"], ["fetch"], ["runs", "list"], ["generate"]):
        ran = subprocess.run(
            [*unshare, *PROGRAM, *command],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr
        assert "home directory" in ran.stderr
        assert "GRIMMGEN_HOME" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_fault_19_a_jumping_clock_changes_nothing(
    training: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(19)  # noqa: S311 - not a secret
    monkeypatch.setattr(time, "time", lambda: draw.uniform(0.0, 4e9))
    with Server() as server:
        server.on("/001.txt", answer(b"", 503, Retry_After="0"), answer(TALE))
        assert run("fetch", "--url", server.url, "--stories", "1").code == 0
    # The budget does not depend on the clock.
    first = run("train", "--quiet", "--run", "first", *training, "--budget", "60s", "--epochs", "1")
    assert "epochs" in first.out.splitlines()[0]
    assert run("train", "--quiet", "--run", "second", *training, "--epochs", "1").code == 0
    # The latest run does not depend on the times of files.
    for path in (Path(run("runs", "path", "first").out[:-1])).iterdir():
        os.utime(path, (4e9, 4e9))
    assert run("runs", "path").out.endswith("/second\n")


@pytest.mark.usefixtures("trained")
def test_fault_18_the_terminal_does_not_change_the_output() -> None:
    outputs = [
        grimmgen("generate", "--random-seed", "1", variables=variables).out
        for variables in (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"},
            {"LC_ALL": "C.UTF-8", "COLUMNS": "300", "FORCE_COLOR": "1"},
        )
    ]
    assert outputs[0] == outputs[1]
    assert "\x1b" not in outputs[0]

"""A full disk, a missing home directory, a jumping clock (faults 12, 15, 17, 19, 56)."""

from __future__ import annotations

import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grimmgen.io import files
from grimmgen.runs import checkpoint, registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from grimmgen.text import corpus
from tests.program import Ran, grimmgen
from tests.server import Server, answer

Program = Callable[..., Ran]
TALE = b"There was once a king whose disk was full. " * 9
FULL = "(No space left on device)"


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    """The home directory, on a disk of 256 kB."""
    home.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "disk", home], check=False).returncode:
        pytest.skip("mounting needs the superuser")
    yield home
    subprocess.run(["umount", home], check=True)


def test_fault_15_a_full_disk_keeps_the_last_checkpoint(
    disk: Path, training: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("train", "--quiet", "--run", "sly-owl", *training, "--epochs", "1").code == 0
    owl = Run(disk / "data" / "runs" / "sly-owl")
    # A slow training has saved twice; replacing the previous checkpoint would free space.
    owl.previous_path.unlink(missing_ok=True)
    before = owl.last_path.read_bytes()
    # Space for the log and the best weights, but not for the last checkpoint.
    (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - (36 << 10)))
    with monkeypatch.context() as patch:
        # Another program fills the disk after the check before the first update.
        patch.setattr(files, "free_space", lambda _: 1 << 40)
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


def test_fault_56_too_little_disk_is_said_before_training(disk: Path, training: list[str], run: Program) -> None:
    owl = Run(disk / "data" / "runs" / "sly-owl")
    train = ["train", "--run", "sly-owl", *training, "--epochs", "1"]
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(180 << 10))
    ended = run(*train)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1), ended.err
    message = (
        r"error: .* has 0\.\d MB of free space, and the checkpoints of this training take 0\.\d MB: free some, "
    )
    assert re.match(message, ended.err.splitlines()[-1])
    assert not owl.path.exists()
    # What is asked for suffices, and for a resume less is needed.
    ballast.unlink()
    assert run(*train, "--quiet").code == 0
    before = {path.name: path.read_bytes() for path in owl.path.iterdir()}
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(bytes(free - (40 << 10)))
    ended = run("train", "--quiet", "--resume", "--epochs", "2")
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "of free space" in ended.err
    assert {n: c for n, c in before.items() if n.endswith("safetensors")} == {
        path.name: path.read_bytes() for path in owl.path.glob("*.safetensors")
    }
    ballast.write_bytes(bytes(free - (120 << 10)))
    assert run("train", "--quiet", "--resume", "--epochs", "2").code == 0


def test_fault_56_a_file_size_limit_is_said_before_training(training: list[str], run: Program) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 10, limits[1]))
    try:
        ran = run("train", "--run", "sly-owl", *training)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-1].endswith("and a file may have 0.0 MB: raise the file size limit (ulimit -f)")
    assert not registry.all_runs()


def test_fault_56_a_vocabulary_too_large_is_said_before_a_run(
    training: list[str], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_LARGEST_HEADER", 2000)
    ended = run("train", "--quiet", *training)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "vocabulary is too large" in ended.err
    assert not registry.all_runs()


def test_fault_56_a_directory_in_place_of_a_checkpoint(trained: Run, run: Program) -> None:
    trained.best_path.unlink()
    trained.best_path.mkdir()
    ended = run("train", "--quiet", "--resume", "--epochs", "3")
    assert ended == (3, "", f"error: {trained.best_path} is a directory: remove it\n")


def test_fault_15_a_fetch_after_a_full_disk_continues(disk: Path, run: Program) -> None:
    with Server() as server:
        for number in range(1, 101):
            server.on(f"/{number:03d}.txt", answer(TALE * 20 + b"%d" % number))
        fetch = ["fetch", "--quiet", "--url", server.url, "--stories"]
        assert run(*fetch, "2").code == 0
        ended = run(*fetch, "100")
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert FULL in ended.err
        cached = {document.name: document.content() for document in corpus.open_corpus("grimm").documents}
        assert {"001", "002"} <= set(cached)
        assert cached == {name: TALE * 20 + b"%d" % int(name) for name in cached}
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(*fetch, "100").code == 0


def test_fault_17_a_user_without_a_home_is_one_line(tmp_path: Path) -> None:
    # A namespace with a user that has no entry in the user database.
    unshare = ["unshare", "--user", "--map-user=54321"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not available")
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    commands = [["fetch"], ["runs", "list"], ["generate"]]
    run_each = f"import sys; from grimmgen.cli import _run; sys.exit({{*map(_run, {commands})}} != {{2}})"
    ran = subprocess.run(
        [*unshare, sys.executable, "-c", run_each],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == len(commands)
    assert all("home directory" in line and "GRIMMGEN_HOME" in line for line in lines)
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
def test_fault_18_the_terminal_does_not_change_the_output(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"}
    ran = grimmgen("generate", "--random-seed", "1", variables=plain)
    for name, value in {"COLUMNS": "300", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ran == run("generate", "--random-seed", "1")
    assert "\x1b" not in ran.out

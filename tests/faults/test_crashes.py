"""A kill or a disk error at every write (faults 10, 15, 31, 32, and pairs of them)."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grimmgen.io import files
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from grimmgen.text import corpus
from tests.faults import crash, rounds
from tests.faults.crash import Scenario, Victim
from tests.server import Server, answer

pytestmark = [pytest.mark.faults, crash.needs_strace]

# Two epochs of a few updates, each of which is saved.
TRAIN = "train --quiet --run sly-owl --hidden 4 --batch-size 16 --unroll 100 --min-count 9 --epochs 2".split()
RESUME = "train --quiet --resume --run sly-owl".split()
EARLIER = ["data/runs/sly-fox/*"]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with Victim(tmp_path_factory.mktemp("victim"), "grimmgen.training.session") as victim:
        yield victim


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        for number in range(1, 210):
            server.on(f"/{number:03d}.txt", answer(b"There was once a king of number %d. " % number * 9))
        yield server


@pytest.fixture
def earlier(_trained_home: Path) -> Path:
    """A home directory with a finished run in it."""
    return _trained_home


# --- training --------------------------------------------------------------------------------------------


def checkpoint(path: Path) -> object:
    read = Checkpoint.read(path)
    progress = {name: value for name, value in (read.progress or {}).items() if name != "seconds"}
    tensors = {**read.weights, **read.training_tensors}
    return progress, {name: tensor.tobytes() for name, tensor in tensors.items()}


def trained(home: Path) -> object:
    """Return everything that a training writes, but for the times."""
    run = Run(home / "data" / "runs" / "sly-owl")
    log = [{k: v for k, v in event.items() if k not in {"seconds", "path"}} for event in run.log()]
    return checkpoint(run.best_path), checkpoint(run.last_path), log, sorted(p.name for p in run.path.iterdir())


def runs_are_complete(home: Path) -> None:
    for run in registry.all_runs():
        assert run.info()["name"] == run.name
        for path in run.path.glob("*.safetensors"):
            Checkpoint.read(path)
    # Only runs have names of runs.
    assert {p.name for p in (home / "data/runs").iterdir() if not p.name.startswith(".")} <= {"sly-fox", "sly-owl"}


def recovery(victim: Victim, train: list[str]) -> Callable[[Path], None]:
    """Do what a user would: resume the run, or give the same command again if nothing was saved."""

    def recover(home: Path) -> None:
        run = Run(home / "data" / "runs" / "sly-owl")
        # A run that was killed before its training began can only be resumed, which starts it.
        began = run.path.exists() and not run.log_path.exists()
        ended = victim.run(home, *(RESUME if run.has_checkpoint or began else train))
        assert (ended.code, "error" in ended.err) == (0, False), ended.err

    return recover


@pytest.fixture
def train(tales: Path) -> list[str]:
    return [*TRAIN, "--corpus", str(tales)]


@pytest.fixture
def beginning(victim: Victim, earlier: Path, train: list[str]) -> Scenario:
    return Scenario(earlier, train, recovery(victim, train), runs_are_complete, trained)


def note(record: Callable[[str, object], None], tally: crash.Tally) -> None:
    record("system calls", tally.calls)
    record("cases", tally.cases)
    print(f"{tally.calls} system calls, {tally.cases} cases survived")  # noqa: T201 - the figures of tests/README.md
    assert tally.cases > 8


def test_fault_31_training_fails_at_each_write(
    victim: Victim, home: Path, beginning: Scenario, record_property: Callable[[str, object], None]
) -> None:
    note(record_property, crash.fail_at_each_write(victim, home, beginning, EARLIER, rounds(37, 1)))


@pytest.mark.parametrize("first", [crash.KILL, crash.ENOSPC])
def test_faults_15_and_31_a_resume_fails_at_each_write(
    victim: Victim,
    home: Path,
    beginning: Scenario,
    train: list[str],
    tmp_path: Path,
    first: str,
    record_property: Callable[[str, object], None],
) -> None:
    # A pair of faults: the run that is resumed failed at the rename of its third save.
    crash.fresh(beginning.template, home)
    undisturbed = victim.run(home, *train, inject=[])
    renames = [
        c for c in crash.calls(undisturbed.trace, home) if c.line.startswith("rename") and "/last." in c.line
    ]
    assert len(renames) > 3
    crash.fresh(beginning.template, home)
    failed = victim.run(home, *train, inject=[crash.injection(renames[2], first)])
    assert failed.code != 0
    template = tmp_path / "failed"
    crash.fresh(home, template)
    again = Scenario(template, RESUME, recovery(victim, train), runs_are_complete, trained)
    note(record_property, crash.fail_at_each_write(victim, home, again, EARLIER, rounds(37, 1)))


def test_fault_32_files_are_flushed_renamed_flushed(victim: Victim, home: Path, beginning: Scenario) -> None:
    crash.fresh(beginning.template, home)
    done = crash.calls(victim.run(home, *beginning.command, inject=[]).trace, home)
    written = [
        n for n, call in enumerate(done) if call.name.startswith("rename") and '/last.safetensors"' in call.line
    ]
    assert len(written) > 3
    for number in written:
        source, directory = re.findall(r'"(.*?)"', done[number].line)[0], home / "data/runs/sly-owl"
        before, after = done[number - 1].line, done[number + 1].line
        assert re.match(rf"fsync\(\d+<{re.escape(source)}>\) += 0", before), before
        assert re.match(rf"fsync\(\d+<{re.escape(str(directory))}>\) += 0", after), after


# --- removing --------------------------------------------------------------------------------------------


def test_fault_10_a_removal_fails_at_each_write(
    victim: Victim, home: Path, earlier: Path, train: list[str], tmp_path: Path
) -> None:
    crash.fresh(earlier, home)
    assert victim.run(home, *train).code == 0
    template = tmp_path / "two"
    crash.fresh(home, template)

    def recover(home: Path) -> None:
        if (home / "data/runs/sly-owl").exists():
            assert victim.run(home, "runs", "rm", "--yes", "sly-owl").code == 0
        # The next change of the registry removes leftover files.
        assert victim.run(home, *train).code == 0
        assert victim.run(home, "runs", "rm", "--yes", "sly-owl").code == 0

    def runs_left(home: Path) -> object:
        return sorted(p.name for p in (home / "data/runs").iterdir() if not p.name.startswith(".lock"))

    scenario = Scenario(
        template, ["runs", "rm", "--yes", "--quiet", "sly-owl"], recover, runs_are_complete, runs_left
    )
    tally = crash.fail_at_each_write(victim, home, scenario, EARLIER, rounds(5, 1))
    print(f"{tally.calls} system calls, {tally.cases} cases survived")  # noqa: T201


# --- fetching --------------------------------------------------------------------------------------------


def cache_is_complete(home: Path) -> None:
    cache = home / "cache" / "corpora" / "grimm"
    if (cache / "manifest.json").exists():
        files.read_json(cache / "manifest.json")
        for story in corpus.open_corpus("grimm").documents:
            story.content()
    for path in cache.glob("*.txt"):
        assert len(path.read_bytes()) > 200


def fetched(home: Path) -> object:
    cache = home / "cache" / "corpora" / "grimm"
    stories = {path.name: path.read_bytes() for path in cache.glob("*.txt")}
    manifest = json.loads((cache / "manifest.json").read_text())["stories"]
    return stories, {name: entry["sha256"] for name, entry in manifest.items()}


@pytest.fixture
def fetching(victim: Victim, server: Server, tmp_path: Path) -> Scenario:
    """Two stories are cached, and three more are fetched."""
    template = tmp_path / "some"
    template.mkdir()
    fetch = ["fetch", "--quiet", "--jobs", "1", "--url", server.url, "--stories"]
    assert victim.run(template, *fetch, "2").code == 0

    def recover(home: Path) -> None:
        assert victim.run(home, *fetch, "5").code == 0

    return Scenario(template, [*fetch, "5"], recover, cache_is_complete, fetched)


GOOD = ["cache/corpora/grimm/001.txt", "cache/corpora/grimm/002.txt"]


def test_fault_10_a_fetch_fails_at_each_write(
    victim: Victim, home: Path, fetching: Scenario, record_property: Callable[[str, object], None]
) -> None:
    note(record_property, crash.fail_at_each_write(victim, home, fetching, GOOD, rounds(5, 1)))


def test_faults_10_and_15_a_fetch_after_a_killed_one_fails(
    victim: Victim, home: Path, fetching: Scenario, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    crash.fresh(fetching.template, home)
    done = crash.calls(victim.run(home, *fetching.command, inject=[]).trace, home)
    last = [call for call in done if call.name.startswith("rename")][-1]
    crash.fresh(fetching.template, home)
    assert victim.run(home, *fetching.command, inject=[crash.injection(last, crash.KILL)]).code == -signal.SIGKILL
    template = tmp_path / "killed"
    crash.fresh(home, template)
    assert list(template.rglob("*.tmp"))
    again = Scenario(template, fetching.command, fetching.recover, cache_is_complete, fetched)
    note(record_property, crash.fail_at_each_write(victim, home, again, GOOD, rounds(5, 1)))


# --- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["vocab", "--corpus", "sampler"],
        ["generate"],
        ["eval"],
        ["runs", "list"],
        ["runs", "show"],
        ["runs", "path"],
    ],
    ids=" ".join,
)
def test_fault_31_read_only_commands_write_nothing(
    victim: Victim, home: Path, earlier: Path, command: list[str]
) -> None:
    crash.fresh(earlier, home)
    ended = victim.run(home, *command, "--quiet", inject=[])
    assert ended.code == 0
    assert "write(1<" in ended.trace, "the trace has the writes"
    assert crash.calls(ended.trace, home) == []

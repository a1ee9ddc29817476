"""A campaign of two versions: each writes every kind of file, and the other reads it.

    python -m tests.two_versions OLD_PYTHON OLD_SOURCE [DIRECTORY]

`OLD_PYTHON` is the interpreter of an environment with an earlier version, `OLD_SOURCE` a clone of that version. It
takes some minutes and prints the figures of tests/README.md; with what failed, and exit code 1, if anything did.

The later version has to read everything that the earlier one wrote, with the same figures and texts. The earlier one
cannot be changed: what it does not read it has to refuse with "upgrade grimmgen" and exit code 3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.server import Server, answer

ROOT = Path(__file__).parents[1]
SMALL = (
    "--hidden 5 --batch-size 24 --unroll 40 --min-count 60 --epochs 2 --random-seed 3 --precision fp32"
).split()
# Runs that both versions can train, by name: every cell, preset and option of the earlier one.
RUNS = {
    "lstm": "--lr 0.01",
    "peephole": "--cell peephole --lr 0.01 --layers 2",
    "gru": "--cell gru --lr 0.01 --no-reset-state",
    "mogrifier": "--cell mogrifier --embedding 4 --rounds 3 --lr 0.01",
    "tutorial": "--preset tutorial",
    "quick": "--preset quick --ngram 2",
    "strong": "--preset strong --ngram 2 --embedding 4",
    "every-option": "--cell gru --layers 2 --embedding 4 --tied --init xavier --lr 0.01 --clip 1 --dropout 0.1"
    " --dropout-mode locked --input-dropout 0.1 --weight-drop 0.1 --weight-decay 0.1 --schedule plateau"
    " --decay-factor 0.3 --decay-patience 1 --ngram 3 --min-count 30 --keep-case --newlines space --phases",
}
GENERATE = "--random-seed 7 --length 200 --json --quiet".split()


class Ran(NamedTuple):
    """The exit code and the outputs of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Version:
    """An installed version of grimmgen.

    Attributes:
        name: in messages.
        python: its interpreter.
        source: of its package.
    """

    name: str
    python: str
    source: Path

    def run(self, home: Path, *arguments: str) -> Ran:
        """Run a command in a home directory."""
        environment = {**os.environ, "PYTHONPATH": str(self.source), "GRIMMGEN_HOME": str(home)}
        ran = subprocess.run(
            [self.python, "-m", "grimmgen", *arguments],
            cwd=home,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)


class Campaign:
    """Counts what was read, and keeps what went wrong."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failures: list[str] = []

    def check(self, what: str, right: bool, ran: object) -> None:
        """Count a case, or note its failure."""
        if right:
            self.passed[what] += 1
        else:
            self.failures.append(f"{what}: {ran}")


def write_all(version: Version, home: Path, url: str, vast: Path) -> None:
    """Let a version write every kind of file: runs, a fetched corpus with its manifest, encoded texts."""
    commands = [["fetch", "--quiet", "--url", url, "--stories", "9"]]
    commands += [
        ["train", "--quiet", "--run", name, *SMALL, "--corpus", "sampler", *more.split()]
        for name, more in RUNS.items()
    ]
    commands += [
        ["train", "--quiet", "--run", "fetched", *SMALL, "--corpus", "grimm", "--epochs", "1", "--min-count", "1"],
        [
            "train",
            "--quiet",
            "--run",
            "vast",
            *SMALL,
            "--preset",
            "tutorial",
            "--corpus",
            str(vast),
            "--budget",
            "5s",
        ],
    ]
    home.mkdir()
    for command in commands:
        ran = version.run(home, *command)
        assert ran.code == 0, (version.name, command, ran.err)


def outputs(version: Version, home: Path, run: str) -> dict[str, Any]:
    """What a version says about a run."""
    # The validation set of the largest text would take minutes.
    texts = [str(ROOT / "tests" / "data" / "story.txt")] if run == "vast" else []
    commands = {"eval": ["eval", "--json", "--quiet", *texts], "generate": ["generate", *GENERATE]}
    found: dict[str, Any] = {}
    for name, command in commands.items():
        ran = version.run(home, *command, "--run", run)
        found[name] = json.loads(ran.out) if ran.code == 0 else ran
    return found


def close(one: Any, other: Any) -> bool:
    """Whether everything in `one` is in `other`, numbers up to a relative 1e-4."""
    if isinstance(one, dict):
        return isinstance(other, dict) and all(name in other and close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return isinstance(other, int | float) and abs(one - other) <= 1e-4 * abs(one)
    return bool(one == other)


def runs_of(home: Path) -> Iterator[str]:
    """The names of the runs in a home directory."""
    return (path.name for path in sorted((home / "data" / "runs").iterdir()) if not path.name.startswith("."))


def read_earlier(campaign: Campaign, old: Version, new: Version, home: Path) -> None:
    """Let the later version read everything that the earlier one wrote."""
    listed = json.loads(new.run(home, "runs", "list", "--json").out)
    for run in runs_of(home):
        state = next(row["state"] for row in listed if row["name"] == run)
        campaign.check("listed", state != "unreadable", state)
        before, after = outputs(old, home, run), outputs(new, home, run)
        campaign.check("the same figures", close(before["eval"], after["eval"]), (run, before, after))
        names = ("text", "ending", "checkpoint_sha256")
        same = all(before["generate"][name] == after["generate"].get(name) for name in names)
        campaign.check("the same text", same, (run, before["generate"], after["generate"]))
        for command in (["runs", "show", run], ["runs", "path", run]):
            ran = new.run(home, *command)
            campaign.check(" ".join(command[:2]), ran.code == 0, ran)
        resumed = new.run(home, "train", "--resume", "--quiet", "--run", run, "--epochs", "3", "--budget", "9s")
        campaign.check("resumed", resumed.code == 0, (run, resumed))


def read_later(campaign: Campaign, old: Version, home: Path) -> None:
    """Let the earlier version read what the later one wrote; it may say "upgrade", and nothing worse."""
    campaign.check("listed", old.run(home, "runs", "list").code == 0, home)
    for run in runs_of(home):
        best = str(home / "data" / "runs" / run / "best.safetensors")
        commands: list[Sequence[str]] = [
            ["generate", "--run", run],
            ["generate", "--run", best],
            ["eval", "--run", run],
            ["runs", "show", run],
            ["train", "--resume", "--run", run, "--epochs", "3"],
        ]
        for command in commands:
            ran = old.run(home, *command)
            right = (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1) and "upgrade grimmgen" in ran.err
            campaign.check(f"{' '.join(command[:2])}: upgrade", right, ran)


def share_caches(campaign: Campaign, one: Version, other: Version, home: Path, url: str, vast: Path) -> None:
    """Let a version use the corpus and the encoded texts that another one wrote."""
    runs = home / "data" / "runs"
    shutil.rmtree(runs)
    # Without the network: only a complete cache serves.
    for command in (
        ["fetch", "--quiet", "--stories", "9", "--url", url],
        ["train", "--quiet", "--run", "fetched", *SMALL, "--corpus", "grimm", "--epochs", "1", "--min-count", "1"],
        [
            "train",
            "--quiet",
            "--run",
            "vast",
            *SMALL,
            "--preset",
            "tutorial",
            "--corpus",
            str(vast),
            "--budget",
            "5s",
        ],
        ["generate", "--run", "fetched", *GENERATE],
    ):
        ran = other.run(home, *command)
        campaign.check(f"caches of the {one.name} version", ran.code == 0, (command, ran))


def main() -> int:
    """Run the campaign."""
    old = Version("earlier", sys.argv[1], Path(sys.argv[2]))
    new = Version("later", sys.executable, ROOT)
    failures = []
    with tempfile.TemporaryDirectory() as temporary, Server() as server:
        directory = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(temporary)
        for number in range(1, 10):
            server.on(f"/{number:03d}.txt", answer(b"There was once a king of number %d. " % number * 60))
        # Larger than what is kept in memory, so that its ids become a file of the cache.
        vast = directory / "vast.txt"
        vast.write_text("the king went to the mill and the hen went with him.\n" * 1_300_000)
        for version in (old, new):
            write_all(version, directory / version.name, server.url, vast)
        for version in (old, new):
            shutil.copytree(directory / version.name, directory / f"{version.name}-caches")
        campaigns = {name: Campaign() for name in ("later reads earlier", "earlier reads later", "caches")}
        read_earlier(campaigns["later reads earlier"], old, new, directory / old.name)
        read_later(campaigns["earlier reads later"], old, directory / new.name)
        for one, other in ((old, new), (new, old)):
            home = directory / f"{one.name}-caches"
            share_caches(campaigns["caches"], one, other, home, server.url, vast)
        for name, campaign in campaigns.items():
            figures = ", ".join(f"{what} {count}" for what, count in campaign.passed.items())
            print(f"{name}: {figures}; {len(campaign.failures)} failed")  # noqa: T201
            failures += campaign.failures
    for failure in failures:
        print(f"FAILED {failure}")  # noqa: T201
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

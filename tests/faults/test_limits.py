"""Limits of the machine: quotas, affinity, threads and address space (fault 53)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grimmgen.cli import console
from grimmgen.network import threads
from grimmgen.network.threads import limit_threads, processors
from tests.program import Ran, shell
from tests.server import Server, answer

Program = Callable[..., Ran]
V2 = "0::/jobs/one\n"
V1 = "4:memory:/jobs\n3:cpu,cpuacct:/one\n"


def fake_groups(directory: Path, groups: str, files: dict[str, str], root: str = "/") -> Path:
    """The files of a process in these control groups, whose own files are below `directory`."""
    mounts = ("v2", "cgroup2", "rw"), ("v1", "cgroup", "rw,cpu,cpuacct"), ("v1m", "cgroup", "rw,memory")
    for name, kind, options in mounts:
        with (directory / "mountinfo").open("a") as file:
            file.write(f"30 25 0:27 {root} {directory / name} rw,relatime shared:9 - {kind} group {options}\n")
    (directory / "cgroup").write_text(groups)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return directory


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {"v2/jobs/one/cpu.max": "100000 100000\n"}, 1),
        (V2, {"v2/jobs/one/cpu.max": "20000 100000\n"}, 1),
        (V2, {"v2/jobs/one/cpu.max": "240000 100000\n"}, 2),
        (V2, {"v2/jobs/one/cpu.max": "250000 100000\n"}, 3),
        (V2, {"v2/jobs/one/cpu.max": "max 100000\n"}, 8),
        (V2, {"v2/jobs/one/cpu.max": "9900000 100000\n"}, 8),
        # The quota of a group above.
        (V2, {"v2/jobs/cpu.max": "200000 100000\n", "v2/jobs/one/cpu.max": "max 100000\n"}, 2),
        (V2, {"v2/jobs/cpu.max": "200000 100000\n", "v2/jobs/one/cpu.max": "100000 100000\n"}, 1),
        (
            V1,
            {
                "v1/one/cpu.cfs_quota_us": "300000\n",
                "v1/one/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            V1,
            {"v1/one/cpu.cfs_quota_us": "-1\n", "v1/one/cpu.cfs_period_us": "100000\n"},
            8,
        ),
        # Rubbish, and nothing at all.
        (V2, {"v2/jobs/one/cpu.max": "what\n"}, 8),
        (V2, {}, 8),
    ],
)
def test_fault_53_threads_follow_a_quota(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert processors(fake_groups(tmp_path, groups, files)) == expected


def test_fault_53_a_container_sees_its_own_group_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    quota = {"v2/cpu.max": "200000 100000\n"}
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    assert processors(fake_groups(tmp_path / "same", "0::/docker/a1\n", quota, "/docker/a1")) == 2
    assert processors(fake_groups(tmp_path / "other", "0::/\n", quota)) == 2
    assert processors(tmp_path) == 8


def test_fault_53_pytorch_and_the_kernels_follow_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "processors", lambda: 2)
    try:
        for omp, expected in ("", 2), ("4", 4):
            torch.set_num_threads(4)
            monkeypatch.setenv("OMP_NUM_THREADS", omp)
            limit_threads()
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def few_threads(monkeypatch: pytest.MonkeyPatch, most: int, name: str = "") -> None:
    """Let no more threads than these run at the same time; with a name only those of this name count."""
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if name and thread.name != name:
            return start(thread)
        if sum(one.is_alive() for one in begun) >= most:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        return start(thread)

    begun: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.mark.parametrize(("most", "expected"), [(0, 1), (3, 1), (4, 2), (6, 3), (99, 4)])
def test_fault_53_fewer_threads_serve(most: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    few_threads(monkeypatch, most)
    try:
        torch.set_num_threads(4)
        limit_threads()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is enforced on Linux")
def test_fault_53_a_training_has_no_room_for_threads() -> None:
    # Each thread reserves a stack of a gigabyte.
    ran = shell(
        "ulimit -s 1048576 || exit 99; ulimit -v 3500000; unset OMP_NUM_THREADS;"
        " grimmgen train --corpus sampler --hidden 8 --batch-size 16 --epochs 1"
    )
    if ran.code == 99:
        pytest.skip("the limit of the stack cannot be raised")
    assert ran.code == 0, ran.err
    assert re.search(r", 1 thread\)|PyTorch", ran.err)


def test_fault_53_a_fetch_serves_with_one_thread(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        for number in range(1, 4):
            server.on(f"/{number:03d}.txt", answer(f"There was once king number {number}. ".encode() * 9))
        few_threads(monkeypatch, 1, "fetch")
        assert run("fetch", "--url", server.url, "--stories", "3").code == 0


def test_fault_53_bars_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    bars = console.Bars()
    monkeypatch.setattr(bars._progress, "start", lambda: refuse(None))
    with bars:
        assert not bars.live
        bars.update(bars.add("update", 9), 1, "", "")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="there are no affinity masks")
def test_fault_53_threads_follow_an_affinity_mask() -> None:
    code = "from grimmgen.network.threads import processors; print(processors())"
    cpu = min(os.sched_getaffinity(0))
    ran = subprocess.run(["taskset", "-c", str(cpu), sys.executable, "-c", code], capture_output=True, check=True)
    assert ran.stdout == b"1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is enforced on Linux")
@pytest.mark.parametrize("command", ["train --corpus sampler", "eval", "generate"])
@pytest.mark.parametrize("kilobytes", [100_000, 500_000])
def test_fault_53_a_small_address_space_is_one_line(command: str, kilobytes: int) -> None:
    ran = shell(f"ulimit -v {kilobytes}; grimmgen {command}")
    if kilobytes > 400_000 and command == "generate":
        assert (ran.code, ran.err.count("\n")) == (0, 1)
    else:
        megabytes = kilobytes * 1024 // 10**6
        line = f"error: the address space of {megabytes} MB is too small: raise its limit (ulimit -v)\n"
        assert ran == (1, "", line)

"""Untrusted checkpoints: thousands of mutants, and crafted files (faults 22, 24-30, 44)."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import pickle
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from grimmgen.cli import _run
from grimmgen.errors import IntegrityError
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import FORMAT, Checkpoint
from grimmgen.runs.registry import Run
from tests.builders import tiny_checkpoint
from tests.faults import rounds
from tests.program import Ran, use_home
from tests.test_checkpoint import Bomb, header, lay, put_together, taken_apart, written

Program = Callable[..., Ran]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.safetensors"


# --- mutants -----------------------------------------------------------------------------------------------

HOSTILE: list[object] = [
    *(None, True, False, 0, 1, -1, 3, 12, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", "F32", "F64", "BF16", "\0", "\n\x1b[2J", "\ud800", "x" * 5000),
    *([], [[]], [0], [2**62, 4], [2**31, 2**31], [-1], ["th"], {}, {"": 1}, {"a": {}}),
]


def bytes_mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """Flip, overwrite, delete, duplicate or insert bytes in one to four places."""
    changed = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        at = int(draw.integers(0, len(changed)))
        piece = slice(at, at + int(draw.integers(1, 20)))
        match draw.integers(0, 5):
            case 0:
                changed[at] ^= 1 << int(draw.integers(0, 8))
            case 1:
                changed[at] = int(draw.choice([0, 255, *b'{}[]",:0-9e']))
            case 2:
                del changed[piece]
                changed += b" " * (len(content) - len(changed))
            case 3:
                changed[at:at] = changed[piece]
            case _:
                changed[piece] = draw.bytes(len(changed[piece]))
    return bytes(changed)


def json_mutated(value: Any, draw: np.random.Generator) -> Any:
    """Replace, delete or duplicate one value at any depth."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw.random() < 0.1:
        return HOSTILE[draw.integers(0, len(HOSTILE))]
    key = keys[draw.integers(0, len(keys))]
    action = draw.random()
    if action < 0.05:
        del value[key]
    elif action < 0.1 and isinstance(value, list):
        value.append(value[key])
    elif action < 0.1:
        value[f"{key}\n"] = value[key]
    else:
        value[key] = json_mutated(value[key], draw)
    return value


def numbers_mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """Replace a number of a tensor by one that is not finite or too large."""
    entries, own, body = taken_apart(content)
    at = 4 * int(draw.integers(0, len(body) // 4))
    body[at : at + 4] = np.float32(draw.choice([math.nan, math.inf, -math.inf, 3e38, -3e38, 2e30])).tobytes()
    return put_together(entries, own, body)


def spliced(one: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """Combine the header of one file with the body of another, or parts of two files."""
    if draw.random() < 0.5:
        entries, own, body = taken_apart(one)
        theirs, own_too, body_too = taken_apart(other)
        return [
            put_together(entries, own, body_too),
            put_together(theirs, own, body),
            put_together(entries, own_too, body),
            put_together({**theirs, **entries}, own, body + body_too),
        ][draw.integers(0, 4)]
    at, there = (int(draw.integers(0, len(content))) for content in (one, other))
    return one[:at] + other[there:]


def nested(content: bytes, draw: np.random.Generator) -> bytes:
    """Insert up to 100,000 opening brackets into the header."""
    raw = bytearray(content[8 : 8 + int.from_bytes(content[:8], "little")])
    at, depth = int(draw.integers(0, len(raw))), 10 ** int(draw.integers(1, 6))
    raw[at:at] = [b"[", b'{"a":', b'\\"a\\":{', b"9", b"-", b"\\u"][draw.integers(0, 6)] * depth
    return header(bytes(raw), content[8 + int.from_bytes(content[:8], "little") :])


def mutants(contents: list[bytes], count: int, random_seed: int) -> Iterator[bytes]:
    draw = np.random.default_rng(random_seed)
    for _ in range(count):
        content, other = (contents[draw.integers(0, len(contents))] for _ in range(2))
        chosen = draw.random()
        if chosen < 0.40:
            yield bytes_mutated(content, draw)
        elif chosen < 0.45:
            yield numbers_mutated(content, draw)
        elif chosen < 0.50:
            yield spliced(content, other, draw)
        elif chosen < 0.505:
            yield nested(content, draw)
        else:
            entries, own, body = taken_apart(content)
            if draw.random() < 0.3:
                entries = json_mutated(entries, draw)
            else:
                own = json_mutated(own, draw)
            yield put_together(entries, own, body)


class Fuzzed:
    """Reads mutants and counts the results."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.refused = self.valid = 0
        self.slowest = 0.0

    def read(self, content: bytes) -> None:
        lay(self._path, content)
        began = time.process_time()
        try:
            read = Checkpoint.read(self._path)
        except IntegrityError as error:
            self.refused += 1
            line, remedy = str(error), error.remedy
            assert line.isprintable()
            assert len(line) < len(str(self._path)) + 250
            assert line.endswith(f": {remedy}")
        else:
            self.valid += 1
            shapes = weight_shapes(read.configuration, len(read.vocabulary))
            assert {name: weight.shape for name, weight in read.weights.items()} == shapes
            tensors = [*read.weights.values(), *read.training_tensors.values()]
            assert all(np.isfinite(tensor).all() for tensor in tensors)
            ids, costs, _ = read.vocabulary.encode_with_costs("the hen!")
            assert ids.max() < len(read.vocabulary)
            assert np.isfinite(costs).all()
        self.slowest = max(self.slowest, time.process_time() - began)


@pytest.fixture
def originals(path: Path) -> list[bytes]:
    """Both kinds of checkpoint of a run, one of another network, and one with weights in 8 bits."""
    embedded: dict[str, Any] = {"cell": "mogrifier", "layers": 2, "embedding": 4, "tied": True, "rounds": 2}
    return [
        written(tiny_checkpoint(True), path),
        written(tiny_checkpoint(), path),
        written(tiny_checkpoint(**embedded, ngram=3), path),
        tiny_checkpoint(embedding=4).rounded(8).to_bytes(8),
    ]


def fuzz(path: Path, originals: list[bytes], count: int, stride: int) -> Fuzzed:
    fuzzed = Fuzzed(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in mutants(originals, count, random_seed=25):
        fuzzed.read(content)
    assert fuzzed.valid > count // 25, "some changes are harmless, and show that the body is read"
    assert fuzzed.refused > count // 2
    # Truncated at every byte of the header and the body.
    valid = fuzzed.valid
    for content in originals:
        for length in range(0, len(content), stride):
            fuzzed.read(content[:length])
    assert fuzzed.valid == valid
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(  # noqa: T201 - the figures of tests/README.md
        f"{fuzzed.refused + fuzzed.valid:,} mutants: {fuzzed.refused:,} refused, {fuzzed.valid:,} valid,"
        f" the slowest {fuzzed.slowest:.3f} s, {grown / 1e6:.0f} MB more memory"
    )
    assert fuzzed.slowest < 5.0
    assert grown < 200 << 20
    return fuzzed


@pytest.mark.slow
def test_fault_25_mutants_are_refused_or_valid(path: Path, originals: list[bytes]) -> None:
    fuzz(path, originals, 1200, 67)


@pytest.mark.faults
def test_fault_25_a_hundred_thousand_mutants(path: Path, originals: list[bytes]) -> None:
    fuzzed = fuzz(path, originals, rounds(5_000, 100_000), rounds(5, 1))
    assert fuzzed.refused + fuzzed.valid > rounds(5_000, 100_000)


# --- crafted -----------------------------------------------------------------------------------------------


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_name("mark"))))


def as_torch_saves(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(path.with_name("mark"))))


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 26), compresslevel=1)


def future(path: Path) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(), path))
    path.write_bytes(put_together(entries, own | {"format": FORMAT + 1}, body))


def of_another_vocabulary(path: Path) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(), path))
    _, other, _ = taken_apart(written(tiny_checkpoint(min_count=1), path))
    own["configuration"]["min_count"], own["vocabulary"] = 1, other["vocabulary"]
    path.write_bytes(put_together(entries, own, body))


def not_a_number(path: Path) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(), path))
    body[-4:] = np.float32(math.nan).tobytes()
    path.write_bytes(put_together(entries, own, body))


def scale_not_a_number(path: Path) -> None:
    entries, own, body = taken_apart(tiny_checkpoint().rounded(8).to_bytes(8))
    begin, _ = entries["scale.output.weight"]["data_offsets"]
    body[begin : begin + 4] = np.float32(math.nan).tobytes()
    path.write_bytes(put_together(entries, own, body))


def vast(path: Path) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(), path))
    own["configuration"]["hidden"] = 2**31
    path.write_bytes(put_together(entries, own, body))


def foreign(path: Path) -> None:
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3, np.float32)}))


def many_brackets(path: Path) -> None:
    # Each becomes a Python object of some twenty times its size.
    path.write_bytes(header(b'{"a":[' + b"[]," * ((2 << 20) // 3) + b"[]]}"))


def cut(path: Path) -> None:
    path.write_bytes(written(tiny_checkpoint(), path)[:-1])


def control_characters(path: Path) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(), path))
    entries["\x1b]0;owned\x07\u202e[red]\n"] = entries.pop("output.bias")
    path.write_bytes(put_together(entries, own, body))


CRAFTED = {
    24: (pickled, as_torch_saves, zip_bomb),
    26: (of_another_vocabulary, vast, foreign, many_brackets, cut, control_characters),
    27: (not_a_number, scale_not_a_number),
    28: (future,),
}


# PyTorch's reader goes by the content; ours does not go by the name either.
@pytest.mark.parametrize(
    ("craft", "name"),
    [
        *((craft, "x.safetensors") for craft in itertools.chain(*CRAFTED.values())),
        *itertools.product((pickled, as_torch_saves), ("./x.pt", "./model.bin")),
    ],
)
def test_faults_24_to_28_a_crafted_checkpoint_is_exit_3(
    craft: Callable[[Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Program
) -> None:
    monkeypatch.chdir(tmp_path)
    craft(Path(name))
    ran = run("generate", "--run", name)
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert ran.err.startswith("error: ")
    assert ran.err[:-1].isprintable()
    assert not Path("mark").exists(), "no code was executed"
    assert craft is not future or ran.err.endswith(": upgrade grimmgen\n")


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_fault_24_a_pickle_as_a_checkpoint_is_not_executed(trained: Run, tales: Path, run: Program) -> None:
    for path in (trained.best_path, trained.last_path, trained.previous_path):
        pickled(path)
    for command in (
        ["generate"],
        ["eval"],
        ["eval", str(tales / "00.txt")],
        ["train", "--resume", "--epochs", "3"],
    ):
        ran = run(*command)
        assert (ran.code, ran.out) == (3, "")
        assert ran.err.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in ran.err
    assert not trained.best_path.with_name("mark").exists()


def test_fault_25_a_pipe_as_a_checkpoint_does_not_block(tmp_path: Path, trained: Run, run: Program) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    ran = run("generate", "--run", str(tmp_path / "x.safetensors"))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: cannot read {tmp_path / 'x.safetensors'} (Not a regular file): ")
    for path in (trained.best_path, trained.path / "run.json", trained.log_path):
        path.unlink()
        os.mkfifo(path)
    for command in (["generate"], ["runs", "show"], ["train", "--resume"]):
        ran = run(*command)
        assert ran.code in {1, 3}
        assert (ran.out, ran.err.count("\n")) == ("", 1)
    assert "unreadable" in run("runs", "list").out


# --- an untrusted run --------------------------------------------------------------------------------------


def show_mutants(trained: Run, run: Program, count: int) -> None:
    """Show runs with mutated run.json and log: they are shown, or refused in one line."""
    info, log = trained.info(), trained.log()
    draw, shown = np.random.default_rng(44), 0
    for _ in range(count):
        described, logged = copy.deepcopy(info), copy.deepcopy(log)
        if draw.random() < 0.3:
            described = json_mutated(described, draw)
        for _ in range(draw.integers(0, 3)):
            number = int(draw.integers(0, len(logged)))
            logged[number] = json_mutated(logged[number], draw)
        (trained.path / "run.json").write_text(json.dumps(described))
        trained.log_path.write_text("".join(json.dumps(event) + "\n" for event in logged))
        for command in (["list"], ["list", "--json"], ["show"], ["show", "--json"], ["path"]):
            ran = run("runs", *command)
            assert ran.code in ({0, 3} if command[0] == "show" else {0}), (ran.err, described, logged)
            assert ran.err.count("\n") == (ran.code != 0)
            assert ran.err[:-1].isprintable()
            shown += ran.code == 0
    assert shown > count, "some changes are harmless"


@pytest.mark.slow
def test_fault_44_an_untrusted_run_is_shown_or_one_line(trained: Run, run: Program) -> None:
    show_mutants(trained, run, 12)


@pytest.mark.faults
def test_fault_44_many_untrusted_runs_are_shown_or_one_line(trained: Run, run: Program) -> None:
    show_mutants(trained, run, count := rounds(80, 5000))
    print(f"{count:,} untrusted runs")  # noqa: T201


# --- the last one is damaged -------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12] ^= 4
    path.write_bytes(content)


def weights_only(path: Path) -> None:
    shutil.copy(path.with_name("best.safetensors"), path)


def invalid_progress(path: Path) -> None:
    entries, own, body = taken_apart(path.read_bytes())
    path.write_bytes(put_together(entries, own | {"progress": {"step": -1}}, body))


@pytest.fixture(scope="module")
def _stopped_home(training: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, directory)
        assert _run(["train", "--quiet", "--run", "sly-owl", *training, "--epochs", "1"]) == 0
        assert _run(["train", "--quiet", "--resume", "--run", "sly-owl", "--epochs", "2"]) == 0
    return directory


@pytest.fixture
def stopped(_stopped_home: Path, home: Path) -> Run:
    """A copy of a run that was resumed for a second epoch; its two checkpoints are of different updates."""
    shutil.copytree(_stopped_home, home)
    owl = Run(home / "data" / "runs" / "sly-owl")
    progress = [Checkpoint.read(path).progress for path in (owl.previous_path, owl.last_path)]
    assert [p["step"] for p in progress if p] == [111, 222]
    return owl


@pytest.mark.parametrize("harm", [flipped, cut, weights_only, invalid_progress, pickled, Path.unlink])
def test_fault_30_a_resume_falls_back_to_the_previous_one(
    harm: Callable[[Path], None], stopped: Run, trained_weights: dict[str, bytes], run: Program
) -> None:
    previous = stopped.previous_path.read_bytes()
    harm(stopped.last_path)
    ran = run("train", "--resume", "--run", "sly-owl")
    assert ran.code == 0
    warning, begun, *_ = ran.err.splitlines()
    assert warning.startswith("warning: ")
    assert str(stopped.last_path) in warning
    assert "111" in warning.rpartition(str(stopped.last_path))[2]
    assert begun.startswith("run sly-owl resumed at update 111: ")
    # The run ends bit-equal, and the damaged checkpoint does not become the previous one.
    assert {n: w.tobytes() for n, w in Checkpoint.read(stopped.last_path).weights.items()} == trained_weights
    assert stopped.previous_path.read_bytes() == previous


@pytest.fixture
def trained_weights(_trained_home: Path) -> dict[str, bytes]:
    weights = Checkpoint.read(_trained_home / "data/runs/sly-fox/last.safetensors").weights
    return {name: weight.tobytes() for name, weight in weights.items()}


def test_fault_30_a_damaged_checkpoint_by_name_is_an_error(stopped: Run, run: Program) -> None:
    flipped(stopped.last_path)
    assert run("generate", "--run", str(stopped.last_path)).code == 3
    flipped(stopped.best_path)
    assert run("generate", "--run", "sly-owl").code == 3


def test_fault_30_two_damaged_checkpoints_are_one_line(stopped: Run, run: Program) -> None:
    # A pair of faults: one within the recovery from the other.
    flipped(stopped.last_path)
    flipped(stopped.previous_path)
    before = {path.name: path.read_bytes() for path in stopped.path.iterdir()}
    ran = run("train", "--resume", "--run", "sly-owl")
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert {path.name: path.read_bytes() for path in stopped.path.iterdir()} == before


def test_a_recovery_is_an_event(stopped: Run, run: Program) -> None:
    flipped(stopped.last_path)
    events = [json.loads(line) for line in run("train", "--json", "--resume").out.splitlines()]
    assert [event["event"] for event in events[:2]] == ["recovered", "started"]
    assert events[0]["step"] == 111
    assert str(stopped.last_path) in events[0]["error"]


# --- the bundled model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [Path.unlink, cut, flipped, pickled, future, not_a_number, Path.mkdir, os.mkfifo])
def test_fault_51_a_damaged_bundled_model_is_exit_3(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Program
) -> None:
    path = tmp_path / "grimm.safetensors"
    if harm not in {Path.mkdir, os.mkfifo}:
        path.write_bytes(tiny_checkpoint().rounded(8).to_bytes(8))
    harm(path)
    monkeypatch.setattr(registry, "PRETRAINED_PATH", path)
    for command in (
        ["generate"],
        ["generate", "--run", "grimm"],
        ["eval", str(path.with_name("story.txt"))],
        ["export", "--html", str(path.with_name("page.html"))],
        ["runs", "show", "grimm"],
        ["train", "--corpus", "sampler", "--from", "grimm"],
    ):
        path.with_name("story.txt").write_text("The king.")
        ran = run(*command)
        assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1), ran.err
        assert ran.err.startswith("error: the bundled model is missing or damaged (")
        assert ran.err.endswith("): reinstall grimmgen\n")
    assert not path.with_name("mark").exists(), "no code was executed"
    assert not path.with_name("page.html").exists()

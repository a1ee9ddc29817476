"""Checkpoints: they round-trip bit-equal, and any other file is refused in one line."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import pickle
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from grimmgen.configuration import OPTIONS, Configuration
from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import FORMAT, PAGE, Checkpoint, Tensors, state_names, training_shapes
from grimmgen.runs.registry import TrainedModel
from grimmgen.sampling.generator import TextGenerator
from tests.builders import NETWORKS, TEXT, random_tensors, tiny_checkpoint, tiny_configuration
from tests.pairs import pairs

Json = dict[str, Any]
# Changes a file: the entries of its header without the metadata, the metadata of grimmgen, the bytes of the
# tensors.
Damage = Callable[[Json, Json, bytearray], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.safetensors"


def written(checkpoint: Checkpoint, path: Path) -> bytes:
    checkpoint.write(path)
    return path.read_bytes()


def taken_apart(content: bytes) -> tuple[Json, Json, bytearray]:
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    return entries, json.loads(entries.pop("__metadata__")["grimmgen"]), bytearray(content[8 + length :])


def put_together(entries: object, own: object, body: bytearray) -> bytes:
    if isinstance(entries, dict):
        entries = {"__metadata__": {"grimmgen": json.dumps(own)}, **entries}
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def lay(path: Path, content: bytes) -> None:
    # Some file systems flush a file that is overwritten, which is slow a thousand times.
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def refusal(path: Path, content: bytes) -> IntegrityError:
    """Return the error of reading a file with this content: exit code 3, one short line."""
    lay(path, content)
    with pytest.raises(IntegrityError) as caught:
        Checkpoint.read(path)
    assert caught.value.exit_code == 3
    assert str(caught.value).isprintable()
    assert str(path) in caught.value.what
    assert len(str(caught.value)) < len(str(path)) + 250
    assert caught.value.remedy
    return caught.value


def same(one: Tensors, other: Tensors) -> bool:
    return {n: (t.shape, t.dtype, t.tobytes()) for n, t in one.items()} == {
        n: (t.shape, t.dtype, t.tobytes()) for n, t in other.items()
    }


# --- writing and reading ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "network", "text"),
    pairs([False, True], NETWORKS, [{"ngram": 1}, {"ngram": 3, "newlines": "space", "phases": True}]),
)
def test_a_checkpoint_round_trips_bit_equal(
    path: Path, training: bool, network: str, text: dict[str, Any]
) -> None:
    checkpoint = tiny_checkpoint(training, **NETWORKS[network], **text, budget=1.5)
    checkpoint.write(path)
    read = Checkpoint.read(path)
    assert read.configuration == checkpoint.configuration
    assert read.vocabulary == checkpoint.vocabulary
    assert read.provenance == checkpoint.provenance
    assert read.progress == checkpoint.progress == ({"step": 7} if training else None)
    assert same(read.weights, checkpoint.weights)
    assert same(read.training_tensors, checkpoint.training_tensors)
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - hidden temporary files, too


def test_equal_checkpoints_are_equal_safetensors_files(path: Path) -> None:
    content = written(tiny_checkpoint(True), path)
    assert content == written(Checkpoint.read(path), path)
    assert {*safetensors.numpy.load(content)} == {
        *tiny_checkpoint(True).weights,
        *tiny_checkpoint(True).training_tensors,
    }


def test_a_transposed_view_is_written_in_index_order(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    weights = {name: np.asfortranarray(tensor) for name, tensor in checkpoint.weights.items()}
    weights["output.bias"] = np.repeat(weights["output.bias"], 2)[::2]
    Checkpoint(checkpoint.configuration, checkpoint.vocabulary, {}, weights).write(path)
    assert same(Checkpoint.read(path).weights, checkpoint.weights)


def test_a_name_that_is_not_unicode_round_trips(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    provenance = {"corpus": os.fsdecode(b"caf\xe9"), "run": "m\u00e4rchen \U0001f43a"}
    Checkpoint(checkpoint.configuration, checkpoint.vocabulary, provenance, checkpoint.weights).write(path)
    assert Checkpoint.read(path).provenance == provenance


def test_training_tensors_are_moments_and_states() -> None:
    for cell, states in (("lstm", ["h", "c"]), ("gru", ["h"])):
        configuration = tiny_configuration(layers=2, cell=cell)
        shapes = training_shapes(configuration, 5)
        assert [shapes.pop(f"state.{name}") for name in states] == [(2, 2, 3)] * len(states)
        weights = weight_shapes(configuration, 5)
        assert shapes == {f"adam.{m}.{n}": s for m in ("exp_avg", "exp_avg_sq") for n, s in weights.items()}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_format_1_has_two_states_for_every_cell(path: Path, cell: str) -> None:
    checkpoint = tiny_checkpoint(True, cell=cell)
    c = np.ones((1, 2, 3), np.float32)
    both = {**checkpoint.training_tensors, "state.c": c}
    entries, own, body = taken_apart(written(dataclasses.replace(checkpoint, training_tensors=both), path))
    path.write_bytes(put_together(entries, {**own, "format": 1}, body))
    read = Checkpoint.read(path).training_tensors
    assert same(read, both if cell == "lstm" else checkpoint.training_tensors)
    if cell == "gru":
        message = "has an unexpected tensor, state.c"
        assert message in refusal(path, put_together(entries, {**own, "format": 2}, body)).what


@pytest.mark.parametrize("network", NETWORKS)
def test_matrices_in_8_bits_round_trip(path: Path, network: str) -> None:
    checkpoint = tiny_checkpoint(**NETWORKS[network])
    rounded = checkpoint.rounded(8)
    path.write_bytes(content := rounded.to_bytes(8))
    assert same(Checkpoint.read(path).weights, rounded.weights)
    assert Checkpoint.read(path).to_bytes(8) == content
    entries, own, _ = taken_apart(content)
    assert own["format"] == FORMAT
    for name, weight in checkpoint.weights.items():
        error = np.abs(rounded.weights[name] - weight)
        if weight.ndim != 2:
            assert (entries[name]["dtype"], error.any()) == ("F32", False)
        else:
            assert (entries[name]["dtype"], entries[f"scale.{name}"]["shape"]) == ("I8", [weight.shape[1]])
            assert (error <= 0.501 / 127 * np.abs(weight).max(axis=0, initial=0)).all()
    # Nothing is stored in 8 bits that would change.
    assert checkpoint.to_bytes(8) == checkpoint.to_bytes()


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e12])
def test_rounding_to_8_bits_again_changes_nothing(size: float) -> None:
    weights = random_tensors({"w": (50, 40)})
    weights["w"] *= np.float32(size) / np.abs(weights["w"]).max()
    weights["w"][:, 0] = 0
    checkpoint = dataclasses.replace(tiny_checkpoint(), weights=weights).rounded(8)
    assert same(checkpoint.rounded(8).weights, checkpoint.weights)
    assert b'"I8"' in checkpoint.to_bytes(8)


def _fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:  # fault 15
    old = written(tiny_checkpoint(), path)
    with monkeypatch.context() as failing:
        failing.setattr(os, call, _fail)
        with pytest.raises(GrimmgenError, match=r"cannot write .*No space left on device.*free some space"):
            tiny_checkpoint(True).write(path)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - hidden temporary files, too


def test_a_write_over_the_size_limit_keeps_the_old_file(path: Path) -> None:  # fault 15
    resource = pytest.importorskip("resource")
    old = written(tiny_checkpoint(), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) + 100, hard))
    try:
        with pytest.raises(GrimmgenError, match=r"cannot write .*File too large.*ulimit -f"):
            tiny_checkpoint(True).write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("make", "why"), [(Path.mkdir, "Is a directory"), (str, "No such file")])
def test_an_unreadable_file_is_one_line(path: Path, make: Callable[[Path], object], why: str) -> None:
    make(path)
    with pytest.raises(GrimmgenError, match=re.escape(f"cannot read {path} ({why}")) as caught:
        Checkpoint.read(path)
    assert caught.value.exit_code == 1


def allocated(do: Callable[[], object]) -> int:
    """Return the peak of allocated bytes during a call."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- files that are not checkpoints ---------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_is_refused_and_not_executed(path: Path, protocol: int, zipped: bool) -> None:  # fault 24
    mark = path.with_name("mark")
    content = pickle.dumps(Bomb(mark), protocol)
    if zipped:  # as torch.save does
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            archive.writestr("archive/data.pkl", content)
        content = buffer.getvalue()
    assert "is not a grimmgen checkpoint" in refusal(path, content).what
    assert not mark.exists()


def header(raw: bytes, body: bytes = b"") -> bytes:
    return len(raw).to_bytes(8, "little") + raw + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 7,
        b"\0" * 8,
        b"\0" * 5000,
        b"\xff" * 5000,
        b"{}",
        TEXT.encode() * 40,
        (1 << 63).to_bytes(8, "little") + b"{}" * 99,
        (64 << 20).to_bytes(8, "little") + b"{}",
        header(b"{}"),
        header(b"[]"),
        header(b'"__metadata__"'),
        header(b"null"),
        header(b"{" + b" " * 900),
        header(b"\xff\xfe{\0}\0"),
        header(b"[" * 200_000),
        header(b'{"a":' * 200_000),
        header(b'{"__metadata__":{"grimmgen":"' + b"[" * 200_000 + b'"}}'),
        header(b'{"__metadata__":{"grimmgen":"' + b"9" * 5000 + b'"}}'),
        header(b'{"__metadata__":{"grimmgen":7}}'),
        header(b'{"__metadata__":{"grimmgen":"7"}}'),
        header(b'{"__metadata__":{"grimmgen":"{}"}}'),
        header(b'{"__metadata__":{"grimmgen":"{"}}'),
        header(b'{"__metadata__":{"grimmgen":"[1]"}}'),
        header(b'{"__metadata__":{}}'),
        header(b'{"__metadata__":"grimmgen"}'),
        header(b'{"__metadata__":null}'),
        safetensors.numpy.save({"a": np.zeros(3)}),
        safetensors.numpy.save({"a": np.zeros(3)}, metadata={"format": "pt"}),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_file_that_is_not_a_checkpoint_is_refused(path: Path, content: bytes) -> None:
    assert refusal(path, content).what.endswith("is not a grimmgen checkpoint")


def test_a_truncated_checkpoint_is_refused(path: Path) -> None:  # fault 25
    content = written(tiny_checkpoint(True), path)
    begin = len(content) - len(taken_apart(content)[2])
    # Spaces fill the header up to a multiple of eight bytes: without them it is complete.
    complete = len(content[:begin].rstrip())
    edges = {0, 1, 7, 8, 9, complete - 1, complete, begin - 1, begin, begin + 1, len(content) - 1}
    for length in edges | {*range(0, len(content), 37)}:
        what = refusal(path, content[:length]).what
        assert what.endswith(("is not a grimmgen checkpoint", "is incomplete")[length >= complete :]), length


@pytest.mark.parametrize("more", [b"\0", b"\0" * 4, b"x" * 10_000])
def test_a_checkpoint_with_trailing_bytes_is_refused(path: Path, more: bytes) -> None:
    assert refusal(path, written(tiny_checkpoint(), path) + more).what.endswith("is incomplete")


# --- inconsistent headers ---------------------------------------------------------------------------------


def put(where: str, value: object) -> Damage:
    """Set `where`, a dotted path into the metadata of grimmgen, to a value."""

    def damage(_: Json, own: Json, __: bytearray) -> None:
        *parents, last = where.split(".")
        for parent in parents:
            own = own[parent]
        own[last] = value

    return damage


def put_format(version: object) -> Damage:
    return put("format", version)


def entry(name: str, **parts: object) -> Damage:
    """Change the header's entry of a tensor."""

    def damage(entries: Json, _: Json, __: bytearray) -> None:
        entries[name] = {**entries.get(name, {}), **parts}

    return damage


def without(name: str) -> Damage:
    def damage(entries: Json, own: Json, _: bytearray) -> None:
        del (entries if name in entries else own)[name]

    return damage


def swapped(name: str, other: str) -> Damage:
    def damage(entries: Json, _: Json, __: bytearray) -> None:
        entries[name], entries[other] = entries[other], entries[name]

    return damage


def number(name: str, value: float) -> Damage:
    """Replace the last number of a tensor."""

    def damage(entries: Json, _: Json, body: bytearray) -> None:
        end = entries[name]["data_offsets"][1]
        body[end - 4 : end] = np.float32(value).tobytes()

    return damage


def extra_tensor(entries: Json, _: Json, body: bytearray) -> None:
    entries["\x1b[2Jextra\n"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    body += b"\0" * 4


def overlap(entries: Json, _: Json, __: bytearray) -> None:
    entries["state.h"]["data_offsets"] = entries["state.c"]["data_offsets"]


def shorter_vocabulary(_: Json, own: Json, __: bytearray) -> None:
    own["vocabulary"]["ngrams"].pop()
    own["vocabulary"]["counts"].pop()


CHANGES: list[tuple[Damage, str]] = [
    (put_format(FORMAT + 1), f"has format {FORMAT + 1}, which is newer than this grimmgen: upgrade grimmgen"),
    (put_format(10**400), "newer than this grimmgen: upgrade grimmgen"),
    *((damage, "has no format version") for damage in map(put_format, (0, -1, True, "1", 1.0, None, []))),
    (without("format"), "is not a grimmgen checkpoint"),
    (without("configuration"), "configuration"),
    (without("vocabulary"), "vocabulary"),
    (without("provenance"), "has no valid provenance"),
    (put("provenance", "x"), "has no valid provenance"),
    (put("progress", "x"), "has no valid provenance"),
    (put("progress", None), "has an unexpected tensor, adam.exp_avg.layers.0.bias"),
    (put("configuration.hidden", 2**31), "--hidden 2147483648 is out of range"),
    (put("configuration.hidden", 10**400), "--hidden"),
    (put("configuration.hidden", 4), r"layers.0.input_weight is F32 \[\d+, 12\] instead of F32 \[\d+, 16\]"),
    (put("configuration.layers", 2), "has no tensor layers.1.input_weight"),
    (put("configuration.batch_size", 1), r"state.h is F32 \[1, 2, 3\] instead of F32 \[1, 1, 3\]"),
    (put("configuration.dropout", float("nan")), "--dropout nan is out of range"),
    (put("configuration.tokens", "ngram:3"), "the vocabulary and the configuration differ in tokens"),
    (put("configuration.min_count", 1), "the vocabulary and the configuration differ in min_count"),
    (put("configuration.lower", False), "the vocabulary and the configuration differ in lower"),
    (put("configuration.newlines", "space"), "the vocabulary and the configuration differ in newlines"),
    (put("vocabulary.alphabet", "ba"), "vocabulary"),
    (shorter_vocabulary, r"layers.0.input_weight is F32 \[\d+, 12\] instead of F32"),
    (entry("output.bias", shape=[2**62]), r"output.bias is F32 \[4611686018427387904\] instead of F32"),
    (entry("output.bias", shape=[10**4000]), r"output.bias is F32 \[10+ instead of F32"),
    (entry("output.bias", shape=["a\n\x1b[2J"] * 999), r"output.bias is F32 \['a"),
    (entry("output.bias", shape=5), "has no tensor output.bias"),
    (entry("output.bias", shape=[-1]), r"output.bias is F32 \[-1\]"),
    (entry("output.bias", dtype="F64"), "output.bias is F64"),
    (entry("output.bias", dtype="BF16"), "output.bias is BF16"),
    (entry("output.bias", dtype="F32\n\x1b" * 99), "output.bias is F32"),
    (entry("output.bias", dtype=None), "has no tensor output.bias"),
    (entry("output.bias", data_offsets=[0, 2**62]), "is damaged"),
    (entry("output.bias", data_offsets=[-4, 16]), "is damaged"),
    (entry("output.bias", data_offsets=None), "is damaged"),
    (entry("__metadata__", more=1), "is not a grimmgen checkpoint"),
    (overlap, "is damaged"),
    (swapped("output.bias", "output.weight"), "output.weight is F32"),
    (without("output.weight"), "has no tensor output.weight"),
    (without("layers.0.bias"), "has no tensor layers.0.bias"),
    (without("state.c"), "has no tensor state.c"),
    (without("adam.exp_avg_sq.output.bias"), "has no tensor adam.exp_avg_sq.output.bias"),
    (extra_tensor, "has an unexpected tensor"),
    *(
        (number(name, value), f"has numbers in {name} that are not finite or too large")  # fault 27
        for name in ("layers.0.input_weight", "output.bias", "adam.exp_avg.output.weight", "state.c")
        for value in (float("nan"), float("inf"), -float("inf"), 3e38, -3e38)
    ),
]


@pytest.mark.parametrize(("damage", "message"), CHANGES)
def test_an_inconsistent_header_is_refused(path: Path, damage: Damage, message: str) -> None:  # faults 26 to 28
    entries, own, body = taken_apart(written(tiny_checkpoint(True), path))
    damage(entries, own, body)
    assert re.search(message, str(refusal(path, put_together(entries, own, body))))


CHANGES_OF_8_BITS: list[tuple[Damage, str]] = [
    (put_format(2), r"embedding is I8 \[\d+, 4\] instead of F32"),
    (put_format(3), r"embedding is I8 \[\d+, 4\] instead of F32"),
    (without("scale.embedding"), "has no tensor scale.embedding"),
    (entry("scale.embedding", shape=[1, 4]), r"scale.embedding is F32 \[1, 4\] instead of F32 \[4\]"),
    (entry("scale.embedding", dtype="I8"), r"scale.embedding is I8 \[4\] instead of F32 \[4\]"),
    (entry("scale.output.bias", dtype="F32", shape=[1], data_offsets=[0, 4]), "has an unexpected tensor"),
    (entry("output.bias", dtype="I8"), "output.bias is I8"),
    (entry("embedding", dtype="U8"), r"embedding is U8 \[\d+, 4\] instead of F32"),
    (entry("embedding", dtype="F32"), "has an unexpected tensor, scale.embedding"),
    (entry("embedding", shape=[4]), r"embedding is I8 \[4\] instead of I8 \[\d+, 4\]"),
    (entry("embedding", shape=[2**62, 4]), r"embedding is I8 \[4611686018427387904, 4\] instead of I8"),
    *(
        (number("scale.embedding", value), "has numbers in embedding that are not finite or too large")  # fault 27
        for value in (float("nan"), float("inf"), -float("inf"), 3e38, 1e12)
    ),
    (number("scale.embedding", 0.5), "has another vocabulary or other weights than were saved"),
]


@pytest.mark.parametrize(("damage", "message"), CHANGES_OF_8_BITS)
def test_inconsistent_8_bits_are_refused(path: Path, damage: Damage, message: str) -> None:  # faults 26 to 28
    entries, own, body = taken_apart(tiny_checkpoint(embedding=4).rounded(8).to_bytes(8))
    path.write_bytes(put_together(entries, own, body))
    Checkpoint.read(path)
    damage(entries, own, body)
    assert re.search(message, str(refusal(path, put_together(entries, own, body))))


def test_the_file_before_each_change_is_read(path: Path) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(True), path))
    path.write_bytes(put_together(entries, own, body))
    assert same(Checkpoint.read(path).weights, tiny_checkpoint().weights)


def permuted(_: Json, own: Json, __: bytearray) -> None:
    # Two n-grams that are equally frequent, or the order would be wrong.
    ngrams, counts = own["vocabulary"]["ngrams"], own["vocabulary"]["counts"]
    i = next(i for i in range(1, len(counts)) if counts[i] == counts[i - 1])
    counts[i - 1] += 1
    ngrams[i - 1], ngrams[i] = ngrams[i], ngrams[i - 1]


def other_count(_: Json, own: Json, __: bytearray) -> None:
    own["vocabulary"]["counts"][0] += 1


def other_weight(entries: Json, _: Json, body: bytearray) -> None:
    begin, _ = entries["layers.0.bias"]["data_offsets"]
    body[begin] ^= 1


@pytest.mark.parametrize(
    "damage", [permuted, other_count, other_weight, swapped("output.weight", "adam.exp_avg.output.weight")]
)
def test_vocabulary_and_weights_belong_together(path: Path, damage: Damage) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(True), path))
    damage(entries, own, body)
    refused = refusal(path, put_together(entries, own, body))
    assert refused.what.endswith("has another vocabulary or other weights than were saved")


def test_a_checkpoint_without_the_hash_is_read(path: Path) -> None:  # fault 50
    entries, own, body = taken_apart(written(tiny_checkpoint(True), path))
    del own["sha256"]
    path.write_bytes(put_together(entries, own, body))
    assert same(Checkpoint.read(path).weights, tiny_checkpoint().weights)


@pytest.mark.parametrize("option", ["hiden", "x\n\x1b[2J"])
@pytest.mark.parametrize("version", ["7.3.0", None, 7, "1.0\n\x1b[2J", "9" * 99])
def test_an_unknown_option_is_named_with_the_version(path: Path, option: str, version: object) -> None:
    # Fault 50
    entries, own, body = taken_apart(written(tiny_checkpoint(), path))
    own["configuration"][option] = 1
    own["provenance"]["versions"] = {"grimmgen": version}
    source = ", written by grimmgen 7.3.0," if version == "7.3.0" else ""
    refused = refusal(path, put_together(entries, own, body))
    assert refused.what.endswith(f"the configuration{source} has an unknown option {option!r}")
    assert refused.remedy == "upgrade grimmgen"


def test_a_newer_format_is_named_with_the_version(path: Path) -> None:
    entries, own, body = taken_apart(written(tiny_checkpoint(), path))
    own["provenance"]["versions"] = {"grimmgen": "7.3.0"}
    refused = refusal(path, put_together(entries, own | {"format": 99}, body))
    assert refused.what.endswith(", written by grimmgen 7.3.0, has format 99, which is newer than this grimmgen")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_checkpoint_without_an_option_behaves_as_before(path: Path, name: str) -> None:  # fault 50
    if name in {"hidden", "ngram", "min_count", "batch_size", "unroll"}:
        return  # the network and the text of the checkpoint are not those of the defaults
    entries, own, body = taken_apart(written(tiny_checkpoint(True), path))
    del own["configuration"][name]
    path.write_bytes(put_together(entries, own, body))
    # Earlier versions knew nothing of Project Gutenberg's boilerplate, and trained to the end.
    expected = {"keep_boilerplate": True, "patience": 0}.get(name, OPTIONS[name].default)
    assert getattr(Checkpoint.read(path).configuration, name) == expected


@pytest.mark.parametrize("options", [{"hidden": 2**15}, {"hidden": 2**15, "layers": 64}, {"batch_size": 2**20}])
def test_no_memory_is_allocated_for_a_false_header(path: Path, options: dict[str, int]) -> None:  # fault 26
    entries, own, body = taken_apart(written(tiny_checkpoint(True), path))
    own["configuration"] |= options
    configuration = Configuration.from_json(own["configuration"])
    size, end = len(own["vocabulary"]["ngrams"]) + 2, 0
    # A consistent header, but for the terabytes that are not in the file.
    for name, shape in (weight_shapes(configuration, size) | training_shapes(configuration, size)).items():
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    assert end > 20_000_000
    assert allocated(lambda: refusal(path, put_together(entries, own, body))) < 2_000_000


def test_no_memory_is_allocated_for_two_billion_units(path: Path) -> None:  # fault 26
    entries, own, body = taken_apart(written(tiny_checkpoint(True), path))
    own["configuration"]["hidden"] = 2**31
    for claimed in entries.values():
        claimed["shape"] = [n * 2**31 for n in claimed["shape"]]
        claimed["data_offsets"] = [n * 2**31 for n in claimed["data_offsets"]]
    assert allocated(lambda: refusal(path, put_together(entries, own, body))) < 2_000_000


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_the_largest_weights_give_finite_logits(path: Path, network: str) -> None:
    checkpoint = tiny_checkpoint(hidden=64, **NETWORKS[network])
    draw = np.random.default_rng(3)
    largest = np.nextafter(np.float32(1e12), np.float32(0))
    weights = {
        name: np.where(draw.random(tensor.shape) < 0.5, largest, -largest).astype(np.float32)
        for name, tensor in checkpoint.weights.items()
    }
    Checkpoint(checkpoint.configuration, checkpoint.vocabulary, {}, weights).write(path)
    assert same(Checkpoint.read(path).weights, weights)
    shape = len(state_names(checkpoint.configuration)), checkpoint.configuration.layers, 1, 64
    stepper = Stepper(checkpoint.configuration, weights, np.ones(shape, np.float32))
    logits = np.stack([stepper.step([token]) for token in range(len(checkpoint.vocabulary))])
    # The hidden state of a minGRU has no bound.
    if not network.startswith("mingru"):
        assert np.isfinite(logits).all()
    elif not np.isfinite(logits).all():
        with pytest.raises(IntegrityError, match="not finite"):
            TextGenerator(TrainedModel("vast", Checkpoint.read(path))).generate(length=50)
    # The largest sum of products: tied, with the largest embedding and the most units.
    assert 2**15 * 2**15 * float(largest) ** 2 < np.finfo(np.float32).max


def test_large_moments_are_accepted(path: Path) -> None:
    checkpoint = tiny_checkpoint(True)
    checkpoint.training_tensors["adam.exp_avg_sq.output.bias"][:] = 1e24
    checkpoint.write(path)
    assert same(Checkpoint.read(path).training_tensors, checkpoint.training_tensors)


def test_a_header_too_large_to_read_is_not_written(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    content = written(checkpoint, path)
    vast = Checkpoint(checkpoint.configuration, checkpoint.vocabulary, {"x": "x" * (17 << 20)}, checkpoint.weights)
    with pytest.raises(GrimmgenError, match="its vocabulary is too large"):
        vast.write(path)
    assert path.read_bytes() == content


def test_a_page_that_is_too_large_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grimmgen.runs.checkpoint.LARGEST_PAGE", 50)
    path.write_bytes(PAGE + b" " * 50)
    with pytest.raises(IntegrityError, match="is larger than"):
        Checkpoint.read(path)

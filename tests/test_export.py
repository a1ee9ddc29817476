"""Exports agree with the model that `grimmgen generate` runs, and need no grimmgen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.export import onnx as onnx_export
from grimmgen.export.onnx import Form, to_onnx
from grimmgen.export.torch import loading_code, to_torch
from grimmgen.network import backends
from grimmgen.network.cells import cells
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import TrainedModel
from grimmgen.sampling.generator import TextGenerator
from grimmgen.text.tokenizers import build_vocabulary
from tests.builders import NETWORKS, TEXT, random_tensors
from tests.program import Ran

Arrays = list[NDArray[Any]]
Program = Callable[..., Ran]

H, B, T = 17, 3, 20
SCRIPT = Path(__file__).parent.parent / "docs" / "exported.py"
IN_TORCH = {name: options for name, options in NETWORKS.items() if options["cell"] in {"lstm", "coupled", "gru"}}


def checkpoint_of(hidden: int = H, **options: Any) -> Checkpoint:
    configuration = Configuration(hidden=hidden, min_count=1, **options)
    vocabulary = build_vocabulary([TEXT], configuration)
    weights = random_tensors(weight_shapes(configuration, len(vocabulary)))
    return Checkpoint(
        configuration, vocabulary, {"run": "sly-fox", "beginnings": [4, 7]}, weights, sha256="c0ffee"
    )


def initial_state(checkpoint: Checkpoint) -> NDArray[np.float32]:
    states, layers = len(cells()[checkpoint.configuration.cell].states), checkpoint.configuration.layers
    drawn = np.random.default_rng(1).normal(0.0, 0.5, (states, layers, B, checkpoint.configuration.hidden))
    return drawn.astype(np.float32)


def tokens_of(checkpoint: Checkpoint) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, len(checkpoint.vocabulary), (T, B))


def generated(checkpoint: Checkpoint) -> Arrays:
    """The logits [T, B, V] and the states [L, B, H] of the network that generates."""
    state = initial_state(checkpoint)
    stepper = backends.stepper(checkpoint.configuration, checkpoint.weights, state)
    return [np.stack([stepper.step(row) for row in tokens_of(checkpoint)]), *stepper.state]


def computed_by_onnx(checkpoint: Checkpoint, form: Form) -> Arrays:
    """The same, by ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(to_onnx(checkpoint, form), providers=["CPUExecutionProvider"])
    states = dict(zip(cells()[checkpoint.configuration.cell].states, initial_state(checkpoint), strict=True))
    if form == "window":
        found: Arrays = session.run(None, {"tokens": tokens_of(checkpoint), **states})
        return found
    logits = []
    for row in tokens_of(checkpoint):
        of_step, *after = session.run(None, {"tokens": row, **states})
        states = dict(zip(states, after, strict=True))
        logits.append(of_step)
    return [np.stack(logits), *states.values()]


def check_equal(made: Arrays, right: Arrays) -> None:
    assert len(made) == len(right)
    for ours, theirs in zip(made, right, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("form", ["step", "window"])
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtime_computes_what_generate_computes(network: str, form: Form) -> None:
    checkpoint = checkpoint_of(**NETWORKS[network])
    check_equal(computed_by_onnx(checkpoint, form), generated(checkpoint))


@pytest.mark.parametrize("form", ["step", "window"])
@pytest.mark.parametrize("cell", cells())
def test_onnx_graph_is_valid(cell: str, form: Form) -> None:
    onnx = pytest.importorskip("onnx")
    checkpoint = checkpoint_of(cell=cell, layers=2, embedding=5)
    model = onnx.load_from_string(to_onnx(checkpoint, form))
    onnx.checker.check_model(model, full_check=True)
    states = cells()[cell].states
    assert [found.name for found in model.graph.input] == ["tokens", *states]
    assert [found.name for found in model.graph.output] == ["logits", *(f"{name}_next" for name in states)]


def test_wrong_weight_of_an_onnx_graph_is_noticed() -> None:
    checkpoint = checkpoint_of()
    right = generated(checkpoint)
    checkpoint.weights["layers.0.recurrent_weight"][0, 0] += 0.01
    with pytest.raises(AssertionError):
        check_equal(computed_by_onnx(checkpoint, "step"), right)


def test_equal_models_are_equal_onnx_files() -> None:
    pytest.importorskip("onnx")
    assert to_onnx(checkpoint_of(), "window") == to_onnx(checkpoint_of(), "window")


def test_model_too_large_for_onnx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(onnx_export, "_LARGEST", 1000)
    with pytest.raises(GrimmgenError, match="--torch"):
        to_onnx(checkpoint_of())


def test_onnx_export_without_onnx_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(GrimmgenError, match=r"grimmgen\[onnx\]"):
        to_onnx(checkpoint_of())


@pytest.mark.parametrize("hidden", [2, H])  # fewer gates than tokens, and more
@pytest.mark.parametrize("network", IN_TORCH)
def test_torch_computes_what_generate_computes(network: str, hidden: int, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(hidden, **IN_TORCH[network])
    path = tmp_path / "model's.safetensors"
    path.write_bytes(to_torch(checkpoint))
    code = loading_code(checkpoint, path)
    assert code.count("\n") <= 10
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own code, as a user runs it
    model = names["model"]
    assert names["logits"].shape == (1, 1, len(checkpoint.vocabulary))
    state = tuple(torch.from_numpy(initial_state(checkpoint)))
    with torch.no_grad():
        inputs = model["embedding"](torch.from_numpy(tokens_of(checkpoint)))
        hidden_states, after = model["rnn"](inputs, state if len(state) > 1 else state[0])
        logits = model["output"](hidden_states)
    made = [logits, *(after if len(state) > 1 else [after])]
    check_equal([tensor.numpy() for tensor in made], generated(checkpoint))


@pytest.mark.parametrize("cell", sorted(set(cells()) - {"lstm", "coupled", "gru"}))
def test_cell_that_torch_nn_does_not_have_is_refused(cell: str) -> None:
    checkpoint = checkpoint_of(cell=cell, embedding=4)
    for export in (lambda: to_torch(checkpoint), lambda: loading_code(checkpoint, Path("x"))):
        with pytest.raises(UsageError, match=r"torch\.nn has no .*--onnx"):
            export()


def test_metadata_has_vocabulary_text_and_origin(tmp_path: Path) -> None:
    checkpoint = checkpoint_of()
    (tmp_path / "model").write_bytes(to_torch(checkpoint))
    with safetensors.safe_open(tmp_path / "model", "np") as file:
        metadata = file.metadata()
    model = json.loads(metadata["model"])
    tokens = model["vocabulary"]
    assert tokens[:2] == ["<unk>", "<end>"]
    assert tokens[2:] == list(checkpoint.vocabulary.texts)
    assert model["text"] == {"tokens": "bigram", "ngram": 2, "lower": True, "newlines": "keep", "language": None}
    origin = model["origin"]
    assert (origin["cell"], origin["run"], origin["checkpoint_sha256"]) == ("lstm", "sly-fox", "c0ffee")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "prompt"), [("step", "The king"), ("window", ""), ("torch", "The king")])
def test_script_without_grimmgen_generates_the_same_story(kind: Any, prompt: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(40, cell="gru", layers=2, embedding=4)
    content = to_torch(checkpoint) if kind == "torch" else to_onnx(checkpoint, kind)
    path = tmp_path / f"model.{'safetensors' if kind == 'torch' else 'onnx'}"
    path.write_bytes(content)
    code = (
        "import runpy, sys; sys.modules['grimmgen'] = None; sys.argv = sys.argv[1:];"
        " runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(SCRIPT),
        str(path),
        "--prompt",
        prompt,
        "--greedy",
        "--length",
        "9",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    generator = TextGenerator(TrainedModel("tales", checkpoint))
    assert ran.stdout == generator.generate(prompt, greedy=True, state="zeros", length=18) + "\n"
    assert len(set(ran.stdout)) > 4


def test_code_in_docs_is_what_the_command_prints() -> None:
    page, checkpoint = SCRIPT.with_name("exports.md").read_text(encoding="utf-8"), checkpoint_of(512)
    assert loading_code(checkpoint, Path("tales.safetensors")) in page
    assert onnx_export.loading_code(checkpoint, Path("tales.onnx")) in page


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., str]:
    """The path of a checkpoint with these options."""

    def model(**options: Any) -> str:
        path = tmp_path / "model.safetensors"
        checkpoint_of(**options).write(path)
        return str(path)

    return model


def test_files_of_one_command_are_those_of_the_functions(
    model: Callable[..., str], run: Program, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    checkpoint = Checkpoint.read(Path(model()))
    forms = {"onnx": "step.onnx", "onnx-window": "window.onnx", "torch": "my model.safetensors"}
    options = [part for form, name in forms.items() for part in (f"--{form}", str(tmp_path / name))]
    ran = run("export", "--run", model(), *options)
    assert ran.code == 0
    right = to_onnx(checkpoint), to_onnx(checkpoint, "window"), to_torch(checkpoint)
    assert tuple((tmp_path / name).read_bytes() for name in forms.values()) == right
    assert ran.err.count(" written to ") == 3
    assert ran.out.endswith(loading_code(checkpoint, tmp_path / "my model.safetensors"))
    for form, name in ("step", "step.onnx"), ("window", "window.onnx"):
        names: dict[str, Any] = {}
        exec(onnx_export.loading_code(checkpoint, tmp_path / name, form), names)  # type: ignore[arg-type] # noqa: S102
        assert names["logits"].shape[-1] == len(checkpoint.vocabulary)
        assert set(names["state"]) == {"h", "c"}
    assert run("export", "--run", model(), *options, "--quiet") == (0, "", "")
    assert json.loads(run("export", "--run", model(), *options, "--json").out)["torch"]["bytes"] == len(right[2])


def test_export_that_is_refused_writes_nothing(model: Callable[..., str], run: Program, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    ran = run(
        "export", "--run", model(cell="peephole"), "--onnx", str(tmp_path / "a"), "--torch", str(tmp_path / "b")
    )
    assert (ran.code, ran.out) == (2, "")
    assert "torch.nn has no peephole LSTM: export it with --onnx\n" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("", "give --html FILE, --onnx FILE or --torch FILE"),
        ("--bits 32 --torch x", "--bits has no effect without --html"),
        ("--onnx x --torch x", "two exports have the same file"),
        ("--torch /dev/null", "is not a file"),
    ],
)
def test_options_without_a_sense_are_refused(
    options: str, part: str, model: Callable[..., str], run: Program
) -> None:
    ran = run("export", "--run", model(), *options.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert part in ran.err

"""Models as ONNX graphs, which ONNX Runtime and others compute without grimmgen.

The graph is recorded by running the lines of NumPy inference (`time_step`), and in them the cells' own pointwise
functions, on arrays that record what is done with them (`_Array`): every cell can be exported, new ones too. The only
importer of onnx.

    T  time steps    B  batch rows    H  hidden units    L  layers    V  vocabulary size
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from grimmgen.errors import GrimmgenError
from grimmgen.export.metadata import metadata_of
from grimmgen.network.backends.numpy import InferenceWeights, time_step
from grimmgen.network.cells import Arrays, cells
from grimmgen.runs.checkpoint import Checkpoint

if TYPE_CHECKING:
    from onnx import GraphProto

Form = Literal["step", "window"]

# Old enough for the runtimes in use; nothing newer is needed.
_OPSET = 17
_IR_VERSION = 8
# A file has less than 2 GiB; the vocabulary and the graph need some of it.
_LARGEST = (1 << 31) - (64 << 20)


def to_onnx(checkpoint: Checkpoint, form: Form = "step") -> bytes:
    """Convert a model to ONNX.

    The inputs of the graph are `tokens`, int64, [B] for one time step and [T, B] for a window, and each state of the
    cell (`h`, and for most cells `c`), float32 [L, B, H], zeros before anything was read. Its outputs are `logits` of
    the token after each of those, float32 [B, V] or [T, B, V], and each state after the last one (`h_next`, `c_next`).

    Args:
        checkpoint: the model.
        form: one time step, or a window of any length.

    Returns:
        The file; its metadata is that of `metadata_of`.

    Raises:
        GrimmgenError: onnx is not installed, or the model is too large for the format.
    """
    try:
        from onnx import helper
    except ImportError:
        raise GrimmgenError(
            "the export to ONNX needs onnx, which is not installed", "pip install 'grimmgen[onnx]'"
        ) from None
    weights = InferenceWeights.of(checkpoint.configuration, checkpoint.weights)
    arrays = [weights.table, weights.output_weight, *(w for layer in weights.layers for w in layer.values())]
    if (size := sum(array.nbytes for array in arrays)) > _LARGEST:
        raise GrimmgenError(
            f"a model of {size / 1e9:.1f} GB is too large for ONNX, whose files have less than 2 GiB",
            "export it with --torch",
        )
    model = helper.make_model(
        _graph(checkpoint, weights, form),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="grimmgen",
        producer_version=version("grimmgen"),
    )
    helper.set_model_props(model, metadata_of(checkpoint))
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def loading_code(checkpoint: Checkpoint, path: Path, form: Form = "step") -> str:
    """Python code that loads a file of `to_onnx` into ONNX Runtime and evaluates the model once.

    Args:
        checkpoint: the model.
        path: of the file.
        form: as for `to_onnx`.
    """
    configuration = checkpoint.configuration
    shape, names = (configuration.layers, 1, configuration.hidden), cells()[configuration.cell].states
    tokens, shown = ("[1]", "[B, V]") if form == "step" else ("[[1]]", "[T, B, V]")
    return f"""\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({json.dumps(str(path), ensure_ascii=False)})
state = {{name: np.zeros({shape}, np.float32) for name in {json.dumps(names)}}}
logits, *after = session.run(None, {{"tokens": np.array({tokens}), **state}})  # {shown}; 1 is <end>, 0 <unk>
state = dict(zip(state, after))
"""


def _graph(checkpoint: Checkpoint, weights: InferenceWeights, form: Form) -> GraphProto:
    configuration = checkpoint.configuration
    cell, L, H = cells()[configuration.cell], configuration.layers, configuration.hidden
    shape = ["B"] if form == "step" else ["T", "B"]
    main = _Graph()
    tokens = main.input("tokens", shape, "INT64")
    states = [main.input(name, [L, "B", H]) for name in cell.states]
    layers = [
        {name: _Array(f"layers.{depth}.{name}", value=weight) for name, weight in layer.items()}
        for depth, layer in enumerate(weights.layers)
    ]
    x = _Array("table", value=weights.table).gather(tokens)
    before: list[Arrays] = [tuple(state.gather(depth) for state in states) for depth in range(L)]
    if form == "step":
        after = time_step(_Ops, cell, layers, x, before)
        h = after[-1][0]
    else:
        # Scan runs a graph of its own for each time step.
        body = _Graph(main)
        inside = [tuple(body.input(f"{name}.{depth}", ["B", H]) for name in cell.states) for depth in range(L)]
        x_t = body.input("x", ["B", weights.table.shape[1]])
        found = time_step(_Ops, cell, layers, x_t, inside)
        for part in (*_flat(found), found[-1][0]):
            body.output(part, ["B", H])
        last = main.apply_many(
            "Scan", [*_flat(before), x], L * len(states) + 1, body=body.proto(), num_scan_inputs=1
        )
        h = last.pop()
        after = [tuple(last[depth * len(states) :][: len(states)]) for depth in range(L)]
    logits = h @ _Array("output_weight", value=weights.output_weight)
    logits += _Array("output_bias", value=weights.output_bias)
    main.output(logits, [*shape, len(checkpoint.vocabulary)], "logits")
    for name, parts in zip(cell.states, zip(*after, strict=True), strict=True):
        main.output(_Ops.stack(parts), [L, "B", H], f"{name}_next")
    return main.proto()


def _flat(states: Sequence[Arrays]) -> list[_Array]:
    return [part for of_layer in states for part in of_layer]


class _Graph:
    """A graph while it is recorded.

    Args:
        outer: for the graph of a node, the one that the node is in, which has the constants of both.
    """

    def __init__(self, outer: _Graph | None = None) -> None:
        self._outer = outer
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[str, Any] = {}

    def input(self, name: str, shape: Sequence[int | str], kind: str = "FLOAT") -> _Array:
        """An input of the graph; a dimension that is not fixed has a name."""
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape))
        return _Array(name, self)

    def output(self, array: _Array, shape: Sequence[int | str], name: str | None = None) -> None:
        """Make an array an output of the graph."""
        from onnx import TensorProto, helper

        # A node of its own, because an array may be an output twice.
        name = name or f"out.{len(self._outputs)}"
        self._nodes.append(helper.make_node("Identity", [array.name], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def apply_many(self, operator: str, inputs: Sequence[_Array], outputs: int, **attributes: Any) -> list[_Array]:
        """Append a node; returns its outputs."""
        from onnx import helper, numpy_helper

        constants = (self._outer or self)._constants
        for array in inputs:
            if array.value is not None and array.name not in constants:
                constants[array.name] = numpy_helper.from_array(array.value, array.name)
        # Names of a node's graph differ from those around it.
        prefix = "step." if self._outer else ""
        names = [f"{prefix}{operator}.{len(self._nodes)}.{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(operator, [array.name for array in inputs], names, **attributes))
        return [_Array(name, self) for name in names]

    def proto(self) -> GraphProto:
        """The complete graph."""
        from onnx import helper

        name = "time step" if self._outer else "grimmgen"
        constants = list(self._constants.values())
        return helper.make_graph(self._nodes, name, self._inputs, self._outputs, initializer=constants)


class _Array:
    """An array of a graph that is being recorded, with the operators that the cells use.

    Args:
        name: in the graph.
        graph: that computes it; None for a constant.
        value: of a constant.
    """

    def __init__(self, name: str, graph: _Graph | None = None, value: NDArray[Any] | None = None) -> None:
        self.name, self.value, self._graph = name, value, graph

    def apply(self, operator: str, *others: _Array | float, **attributes: Any) -> _Array:
        """The only output of a node whose first input is this array."""
        [output] = self.apply_many(operator, 1, *others, **attributes)
        return output

    def apply_many(self, operator: str, outputs: int, *others: _Array | float, **attributes: Any) -> list[_Array]:
        """The outputs of a node whose first input is this array."""
        inputs = [self, *(o if isinstance(o, _Array) else _scalar(np.float32(o)) for o in others)]
        graph = next(array._graph for array in inputs if array._graph is not None)
        return graph.apply_many(operator, inputs, outputs, **attributes)

    def gather(self, index: _Array | int) -> _Array:
        """The elements of an index along the first axis."""
        return self.apply("Gather", index if isinstance(index, _Array) else _scalar(np.int64(index)))

    def __add__(self, other: _Array | float) -> _Array:
        return self.apply("Add", other)

    def __radd__(self, other: float) -> _Array:
        return self.apply("Add", other)

    def __sub__(self, other: _Array | float) -> _Array:
        return self.apply("Sub", other)

    def __rsub__(self, other: float) -> _Array:
        return _scalar(np.float32(other)).apply("Sub", self)

    def __mul__(self, other: _Array | float) -> _Array:
        return self.apply("Mul", other)

    def __rmul__(self, other: float) -> _Array:
        return self.apply("Mul", other)

    def __matmul__(self, other: _Array) -> _Array:
        return self.apply("MatMul", other)

    def __len__(self) -> int:
        assert self.value is not None, "only a constant has a length that is known"
        return len(self.value)

    def __getitem__(self, index: int) -> _Array:
        """A row of a constant, which is another constant."""
        assert self.value is not None, "only a constant has elements that are known"
        return _Array(f"{self.name}.{range(len(self))[index]}", value=self.value[index])


def _scalar(value: np.generic) -> _Array:
    return _Array(f"{value.dtype} {value}", value=np.asarray(value))


class _Ops:
    """The operations of the cells' pointwise functions (`grimmgen.network.cells.Ops`)."""

    @staticmethod
    def sigmoid(x: _Array) -> _Array:
        return x.apply("Sigmoid")

    @staticmethod
    def tanh(x: _Array) -> _Array:
        return x.apply("Tanh")

    @staticmethod
    def split(x: _Array, parts: int) -> list[_Array]:
        return x.apply_many("Split", parts, axis=-1)

    @staticmethod
    def stack(arrays: Sequence[_Array]) -> _Array:
        axis = _Array("axis 0", value=np.array([0]))
        first, *rest = (array.apply("Unsqueeze", axis) for array in arrays)
        return first.apply("Concat", *rest, axis=0)

    @staticmethod
    def matmul(a: _Array, b: _Array) -> _Array:
        return a @ b

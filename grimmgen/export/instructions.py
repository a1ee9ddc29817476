"""The network's time step as a list of instructions over vectors, for programs that are not written in Python.

The instructions are recorded by running the cells' own pointwise functions on values that stand for vectors, so that
there is no second implementation of any cell, and a new cell can be exported at once.

    H  hidden units    L  layers    V  vocabulary size
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from grimmgen.configuration import Configuration
from grimmgen.network.backends.numpy import time_step
from grimmgen.network.cells import cells
from grimmgen.network.shapes import weight_shapes

# What an instruction computes from its operands:
#     row       the row of a matrix, selected by the token id
#     product   a vector times a matrix
#     slice     consecutive elements of a vector, from an index on
#     add, subtract, multiply, divide, sigmoid, tanh
#               of elements; one operand may be a number
Operation = Literal["row", "product", "slice", "add", "subtract", "multiply", "divide", "sigmoid", "tanh"]


@dataclass(frozen=True)
class Weight:
    """A weight of the model or a part of it.

    Attributes:
        name: of the weight, as in a checkpoint.
        shape: of this part.
        offset: where it begins in the weight, in elements.
        transposed: whether the matrix [shape[1], shape[0]] is stored.
    """

    name: str
    shape: tuple[int, ...]
    offset: int = 0
    transposed: bool = False


@dataclass(frozen=True)
class Vector:
    """A vector that an instruction computes, or a state that enters the time step.

    Attributes:
        number: identifies it within the time step.
        size: number of elements.
    """

    number: int
    size: int


Operand: TypeAlias = Vector | Weight | float


@dataclass(frozen=True)
class Instruction:
    """One operation; see `Operation`."""

    operation: Operation
    result: Vector
    operands: tuple[Operand, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON value, in which vectors are numbers."""
        return {
            "operation": self.operation,
            "result": self.result.number,
            "operands": [_operand_to_json(operand) for operand in self.operands],
        }


@dataclass(frozen=True)
class Program:
    """The instructions of a time step: the token id and the states in, the logits and the new states out.

    Attributes:
        sizes: of the vectors, by their numbers.
        reading: the instructions that depend on the token alone.
        instructions: those that depend on the states, too.
        states: the states that enter, and the vectors that replace them; for each state of the cell one per layer.
        logits: the logits of the next token, [V].
    """

    sizes: tuple[int, ...]
    reading: tuple[Instruction, ...]
    instructions: tuple[Instruction, ...]
    states: tuple[tuple[tuple[Vector, Vector], ...], ...]
    logits: Vector

    @classmethod
    def of(cls, configuration: Configuration, vocabulary_size: int) -> Program:
        """Record the time step of a network; the weights have the names of a checkpoint."""
        cell, L, H = cells()[configuration.cell], configuration.layers, configuration.hidden
        recorder = _Recorder()
        shapes = weight_shapes(configuration, vocabulary_size)
        weights = {name: _Value(recorder, Weight(name, shape)) for name, shape in shapes.items()}
        layers = [
            {n.removeprefix(prefix): weight for n, weight in weights.items() if n.startswith(prefix)}
            for prefix in (f"layers.{depth}." for depth in range(L))
        ]
        x = recorder.record("row", weights.get("embedding", weights["layers.0.input_weight"]))
        if not cell.pre_step:
            x = (x @ layers[0]["input_weight"] if configuration.embedding else x) + layers[0]["bias"]
        before = [tuple(_Value(recorder, recorder.vector(H)) for _ in cell.states) for _ in range(L)]
        after = time_step(_Ops, cell, layers, x, before)
        h = after[-1][0]
        if configuration.tied:
            h = h @ weights["output.projection"] @ weights["embedding"].transposed()
        else:
            h = h @ weights["output.weight"]
        logits = (h + weights["output.bias"]).vector
        states = tuple(
            tuple((old[state].vector, new[state].vector) for old, new in zip(before, after, strict=True))
            for state in range(len(cell.states))
        )
        needed = _needed(recorder.instructions, [logits, *(new for of_layers in states for _, new in of_layers)])
        changing = {old.number for of_layers in states for old, _ in of_layers}
        reading: list[Instruction] = []
        rest: list[Instruction] = []
        for instruction in needed:
            vectors = {operand.number for operand in instruction.operands if isinstance(operand, Vector)}
            (rest if vectors & changing else reading).append(instruction)
            if vectors & changing:
                changing.add(instruction.result.number)
        return cls(tuple(recorder.sizes), tuple(reading), tuple(rest), states, logits)

    def to_json(self) -> dict[str, Any]:
        """A JSON value, in which vectors are numbers."""
        return {
            "vectors": list(self.sizes),
            "reading": [instruction.to_json() for instruction in self.reading],
            "instructions": [instruction.to_json() for instruction in self.instructions],
            "states": [[[old.number, new.number] for old, new in of_layers] for of_layers in self.states],
            "logits": self.logits.number,
        }


def _operand_to_json(operand: Operand) -> Any:
    match operand:
        case Vector():
            return {"vector": operand.number}
        case Weight(name, shape, offset, transposed):
            return {"weight": name, "shape": shape, "offset": offset, "transposed": transposed}
    return operand


def _needed(instructions: Sequence[Instruction], results: Sequence[Vector]) -> list[Instruction]:
    """The instructions that results depend on; the pointwise functions also compute what only training needs."""
    wanted = {vector.number for vector in results}
    kept = []
    for instruction in reversed(instructions):
        if instruction.result.number in wanted:
            kept.append(instruction)
            wanted |= {operand.number for operand in instruction.operands if isinstance(operand, Vector)}
    return kept[::-1]


@dataclass
class _Recorder:
    """Instructions in the order in which they are recorded."""

    instructions: list[Instruction] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def vector(self, size: int) -> Vector:
        self.sizes.append(size)
        return Vector(len(self.sizes) - 1, size)

    def record(self, operation: Operation, *operands: _Value | float, size: int | None = None) -> _Value:
        found = tuple(operand.operand if isinstance(operand, _Value) else float(operand) for operand in operands)
        if size is None:
            # As many as a row of the matrix has; else as the longest operand, for a number stands for a vector.
            size = max(_size(operand) for operand in found if not isinstance(operand, float))
        result = self.vector(size)
        self.instructions.append(Instruction(operation, result, found))
        return _Value(self, result)


def _size(operand: Vector | Weight) -> int:
    return operand.size if isinstance(operand, Vector) else operand.shape[-1]


@dataclass(frozen=True)
class _Value:
    """What the pointwise functions receive in place of an array: arithmetic records instructions."""

    recorder: _Recorder
    operand: Vector | Weight

    @property
    def vector(self) -> Vector:
        assert isinstance(self.operand, Vector)
        return self.operand

    @property
    def weight(self) -> Weight:
        assert isinstance(self.operand, Weight)
        return self.operand

    def transposed(self) -> _Value:
        rows, columns = self.weight.shape
        return _Value(self.recorder, Weight(self.weight.name, (columns, rows), transposed=True))

    def __len__(self) -> int:
        return self.weight.shape[0]

    def __getitem__(self, index: int) -> _Value:
        weight = self.weight
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = weight.shape[1:]
        return _Value(self.recorder, Weight(weight.name, part, weight.offset + index * math.prod(part)))

    def __iter__(self) -> Iterator[_Value]:
        return (self[index] for index in range(len(self)))

    def __add__(self, other: Any) -> _Value:
        return self.recorder.record("add", self, other)

    def __radd__(self, other: Any) -> _Value:
        return self.recorder.record("add", other, self)

    def __sub__(self, other: Any) -> _Value:
        return self.recorder.record("subtract", self, other)

    def __rsub__(self, other: Any) -> _Value:
        return self.recorder.record("subtract", other, self)

    def __mul__(self, other: Any) -> _Value:
        return self.recorder.record("multiply", self, other)

    def __rmul__(self, other: Any) -> _Value:
        return self.recorder.record("multiply", other, self)

    def __matmul__(self, other: _Value) -> _Value:
        return self.recorder.record("product", self, other, size=other.weight.shape[1])

    def __truediv__(self, other: Any) -> _Value:
        return self.recorder.record("divide", self, other)

    def __rtruediv__(self, other: Any) -> _Value:
        return self.recorder.record("divide", other, self)


class _Ops:
    """The operations of the cells' pointwise functions (`grimmgen.network.cells.Ops`)."""

    @staticmethod
    def sigmoid(x: _Value) -> _Value:
        return x.recorder.record("sigmoid", x)

    @staticmethod
    def tanh(x: _Value) -> _Value:
        return x.recorder.record("tanh", x)

    @staticmethod
    def split(x: _Value, parts: int) -> list[_Value]:
        size = _size(x.operand) // parts
        return [x.recorder.record("slice", x, part * size, size=size) for part in range(parts)]

    @staticmethod
    def stack(arrays: Sequence[_Value]) -> _Value:
        raise TypeError(f"no instruction stacks {len(arrays)} vectors")  # only backward passes do

    @staticmethod
    def matmul(a: _Value, b: _Value) -> _Value:
        return a @ b

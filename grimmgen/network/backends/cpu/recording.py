"""An update's calls of the compiled kernel recorded, so that all of them can be made again as one.

An update of a small network is some twenty calls of the kernel, and a hundred of PyTorch's and Python's between
them, which take a tenth of its time. Recorded, it is one call of the library, which goes through a list, as a CUDA
graph does on a GPU. The kernel's functions note down what they would call (`programs.recorded`); what PyTorch
would compute between them is noted down here, as a call of the library too. The numbers are the same as when
nothing is recorded, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grimmgen.network.backends.cpu import native
from grimmgen.network.backends.cpu.programs import Program, recorded

_aten = torch.ops.aten

# What computes nothing: places in memory, and other views of them.
_NOTHING = {
    _aten.alias.default,
    _aten.as_strided.default,
    _aten.detach.default,
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.expand.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unbind.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}


@contextlib.contextmanager
def recording(instructions: str) -> Iterator[Program]:
    """A program of what is computed within, by the compiled kernel and by PyTorch; none of it is computed yet.

    Args:
        instructions: the instruction set for PyTorch's part of it.

    Raises:
        NotImplementedError: an operation of PyTorch's is not one of those that can be recorded.
    """
    with recorded() as program, _Recording(instructions, program):
        yield program


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Asked by PyTorch, which otherwise loads its compiler, and 150 MB with it, to tell it to leave this alone.
        return False

    def __init__(self, instructions: str, program: Program) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._instructions, self._program = instructions, program
        self._ones: list[Tensor] = []
        self._ways: dict[Any, Callable[..., Any]] = {
            _aten.add.Tensor: self._add,
            _aten.add_.Tensor: self._add_to,
            _aten.clone.default: self._clone,
            _aten.copy_.default: self._copy,
            _aten.mul.Tensor: self._multiply,
            _aten.ones_like.default: self._make_ones,
            _aten._local_scalar_dense.default: self._look_at,
            _aten.new_zeros.default: self._zeros,
            _aten.random_.default: self._draw,
            _aten.roll.default: self._roll,
            _aten.stack.default: self._stack,
        }

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _NOTHING:
            return function(*args, **(kwargs or {}))
        try:
            _expect(function in self._ways)
            return self._ways[function](*args, **(kwargs or {}))
        except (_UnlikeError, TypeError):  # of another kind, or told in other words
            raise NotImplementedError(f"{function} cannot be recorded") from None

    def _make_ones(self, given: Tensor, **options: Any) -> Tensor:
        """The gradient of the loss by itself, which is looked at, and stays 1."""
        self._ones.append(torch.ones_like(given, **options))
        return self._ones[-1]

    def _look_at(self, given: Tensor) -> float:
        # All else is not computed yet.
        _expect(any(given.data_ptr() == ones.data_ptr() for ones in self._ones))
        return given.item()

    def _draw(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        self._program.draws.append((numbers, generator))
        return numbers

    def _copy(self, to: Tensor, given: Tensor) -> Tensor:
        _expect(to.shape == given.shape and (to.shape[-1:] == (1,) or to.stride()[-1:] == (1,)))
        native.copy(self._instructions, _rows(given), _rows(to))
        return to

    def _clone(self, given: Tensor, **_: Any) -> Tensor:
        return self._copy(torch.empty(given.shape), given)

    def _zeros(self, given: Tensor, shape: Sequence[int], dtype: Any = None, **_: Any) -> Tensor:
        _expect((dtype or given.dtype) == torch.float32)
        made = torch.empty(shape)
        native.copy(self._instructions, None, _rows(made))
        return made

    def _stack(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        _expect(dim == 0)
        made = torch.empty(len(parts), *parts[0].shape)
        for place, part in zip(made, parts, strict=True):
            self._copy(place, part)
        return made

    def _roll(self, given: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Tensor:
        """Of the columns."""
        _expect((given.dim(), list(dims)) == (2, [1]))
        shift = shifts[0] % given.shape[1]
        made = torch.empty(given.shape)
        self._copy(made[:, shift:], given[:, :-shift])
        self._copy(made[:, :shift], given[:, -shift:])
        return made

    def _add(self, a: Tensor, b: Tensor | float, alpha: float = 1) -> Tensor:
        return self._sum(a, b, torch.empty(a.shape), alpha)

    def _add_to(self, a: Tensor, b: Tensor | float, alpha: float = 1) -> Tensor:
        _expect(a.is_contiguous())
        return self._sum(a, b, a, alpha)

    def _sum(self, a: Tensor, b: Tensor | float, to: Tensor, alpha: float) -> Tensor:
        a, b = self._without_gaps(a), self._without_gaps(b)
        _expect(a.shape == b.shape and alpha == 1)
        native.add(self._instructions, a, b, to)
        return to

    def _multiply(self, a: Tensor, b: Tensor | float) -> Tensor:
        a, b = self._without_gaps(a), self._without_gaps(b)
        _expect(b.shape in {a.shape, (1, *a.shape[1:])} and a.dim() > 0)
        made = torch.empty(a.shape)
        native.multiply(self._instructions, a, b, made)
        return made

    def _without_gaps(self, given: Tensor | float) -> Tensor:
        if not isinstance(given, Tensor) or given.dtype != torch.float32:
            raise _UnlikeError
        return given if given.is_contiguous() else self._clone(given)


class _UnlikeError(Exception):
    """An operation of another kind than those that the network has."""


def _expect(true: bool) -> None:
    if not true:
        raise _UnlikeError


def _rows(given: Tensor) -> Tensor:
    """The same numbers as a matrix, where they are."""
    _expect(given.dtype == torch.float32 and given.dim() > 0)
    if given.dim() == 1:
        return given.unsqueeze(0)
    _expect(given.dim() == 2 or given.is_contiguous())
    return given if given.dim() == 2 else given.view(-1, given.shape[-1])

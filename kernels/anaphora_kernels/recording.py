"""A pass of CPU kernels as one call, as a CUDA graph is on a GPU.

Launching some hundred kernels from Python takes longer than a small step computes. So a pass is run once, on
RECORDED_TOKENS tokens, and its native kernels are written down with the addresses of what they read and wrote
(`_native.Program`). From then on the program runs them on the same memory, for any number of tokens that it holds:

    record        launch() on the first tokens of its inputs   -> kernels, addresses, rows per token
    run           n tokens, where the recorded ones were       -> the same kernels, on n tokens
    run_selected  s of those                                   -> the kernels behind `select_rows`, on s tokens

What a kernel computes into comes from `empty`: fresh memory as a rule, and while a pass is recorded memory that stays.
Anything that torch itself computes would be missing from the program, and is refused.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from anaphora import _native
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RECORDED_TOKENS: Final = 2  # a tensor of one row is contiguous whatever its stride, and would hide a copy
_ALIGNMENT: Final = 64  # bytes: a cache line

Result = TypeVar("Result")


class NotRecordableError(RuntimeError):
    """A pass has work that is not done by native kernels."""


class Recording(Generic[Result]):
    """A pass, recorded."""

    def __init__(self, launch: Callable[[], Result], max_tokens: int) -> None:
        """Calls `launch`, whose tensors have RECORDED_TOKENS tokens, and are parts of what holds `max_tokens`.

        Raises NotRecordableError.
        """
        self._max_tokens = max_tokens
        self._arena = _Arena(max_tokens)
        self._program, self._program_of_selected = (_native.Program(RECORDED_TOKENS, max_tokens) for _ in range(2))
        self._selections: list[tuple[Tensor, Tensor]] = []  # sources and destinations
        token = _RECORDING.set(self)
        try:
            with _NativeKernelsOnly(), ExitStack() as self._entered:  # type: ignore[no-untyped-call]
                self._entered.enter_context(self._program)
                self.result = launch()  # in memory that every run writes anew
        finally:
            _RECORDING.reset(token)

    def run(self, num_tokens: int, plans: Sequence[_native.AttentionPlan]) -> None:
        """The pass on `num_tokens` tokens, up to `select_rows` if it has such a place.

        `plans` of their attention, in the order in which the recording met them.
        """
        self._program.run(num_tokens, list(plans))

    def run_selected(self, indices: Tensor, plans: Sequence[_native.AttentionPlan]) -> None:
        """What comes after `select_rows`, for the tokens `indices` [s] int64 of the last run; `plans` of them."""
        for source, destination in self._selections:
            torch.index_select(source, 0, indices, out=destination[: len(indices)])
        self._program_of_selected.run(len(indices), list(plans))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See the module's."""
        return self._arena.empty(shape, dtype)

    def select_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """See the module's: here the first program ends and the second begins, in memory of its own."""
        if self._selections:
            raise NotRecordableError("a pass selects rows once")
        self._entered.close()
        self._entered.enter_context(self._program_of_selected)
        selected = [self.empty(tensor.shape, tensor.dtype) for tensor in tensors]
        self._selections = [(self.whole(a), self.whole(b)) for a, b in zip(tensors, selected, strict=True)]
        return selected

    def whole(self, tensor: Tensor) -> Tensor:
        """[max_tokens, ...]: the memory that a tensor of the pass, [RECORDED_TOKENS, ...], is the beginning of."""
        return tensor.as_strided((self._max_tokens, *tensor.shape[1:]), tensor.stride())


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for what a kernel computes: [rows, ...], contiguous, not filled."""
    recording = _RECORDING.get()
    return torch.empty(shape, dtype=dtype) if recording is None else recording.empty(shape, dtype)


def select_rows(tensors: Sequence[Tensor], indices: Tensor) -> list[Tensor]:
    """Rows `indices` [s] int64 of each tensor [rows, ...]: a pass goes on with those alone."""
    recording = _RECORDING.get()
    if recording is None:
        return [tensor.index_select(0, indices) for tensor in tensors]
    return recording.select_rows(tensors)


class _Arena:
    """Memory of a recording. A block is given out again when the last tensor in it is gone, as in the pass itself."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._free: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)  # by bytes
        self._blocks: list[NDArray[np.uint8]] = []  # all of them

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As the module's, with room for as many rows as the largest step has."""
        rows = -(-shape[0] * self._max_tokens // RECORDED_TOKENS)
        num_bytes = rows * int(np.prod(shape[1:])) * dtype.itemsize
        free = self._free[num_bytes]
        block = free.pop() if free else self._new_block(num_bytes)
        lease = block[:]  # torch keeps this array for as long as a tensor is in it
        weakref.finalize(lease, free.append, block)
        return torch.from_numpy(lease).view(dtype).view(rows, *shape[1:])[: shape[0]]

    def _new_block(self, num_bytes: int) -> NDArray[np.uint8]:
        memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._blocks.append(memory[start : start + num_bytes])
        return self._blocks[-1]


class _NativeKernelsOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what torch would compute."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            raise NotRecordableError(f"{func} is no native kernel")
        return func(*args, **(kwargs or {}))


_RECORDING: ContextVar[Recording[Any] | None] = ContextVar("recording", default=None)

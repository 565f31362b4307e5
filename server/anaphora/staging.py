"""Moving a step's small arrays to the device in one copy, and its results back in one.

On a GPU an upload is one pinned buffer and one asynchronous copy, however many arrays there are; on a CPU the tensors
are the arrays themselves. Neither waits for the device: torch's allocator keeps a pinned buffer until the copy out of
it is done, so two steps in flight never write over each other's.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT: Final = 16  # bytes: enough for every dtype, and for vector loads

_TORCH_DTYPES: Final = {
    np.dtype(np.bool_): torch.bool,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Each array as a tensor on `device`. On a CPU they share memory: hand over arrays that nobody writes to."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    buffer = StaticBuffer(arrays, device)
    buffer.fill(arrays)
    return buffer.tensors


class StaticBuffer:
    """Device memory for arrays of given shapes and dtypes, at an address that stays: what a captured graph reads."""

    def __init__(self, arrays: Sequence[NDArray[Any]], device: torch.device) -> None:
        """Memory like that of `arrays`, not filled yet."""
        self._starts: list[int] = []
        num_bytes = 0
        for array in arrays:
            self._starts.append(num_bytes)
            num_bytes += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._packed = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self.tensors = [
            self._packed[start : start + array.nbytes].view(_TORCH_DTYPES[array.dtype]).view(array.shape)
            for start, array in zip(self._starts, arrays, strict=True)
        ]

    def fill(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Arrays of the same shapes and dtypes go into the tensors, after all that was launched before."""
        staged = torch.empty(self._packed.shape, dtype=torch.uint8, pin_memory=self._packed.is_cuda)
        host = staged.numpy()
        for start, array in zip(self._starts, arrays, strict=True):
            host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._packed.copy_(staged, non_blocking=True)


class Download:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Starts the copy; nothing waits."""
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._host = [_pinned_copy(tensor) for tensor in tensors]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = list(tensors)

    def wait(self) -> list[NDArray[Any]]:
        """The arrays, once all that was launched on the device before them is done. Other threads run meanwhile."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.numpy() for tensor in self._host]


def _pinned_copy(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)

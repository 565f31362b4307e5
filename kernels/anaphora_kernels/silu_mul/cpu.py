"""silu_mul on a CPU, by `kernels/native`."""

from anaphora import _native
from torch import Tensor

from anaphora_kernels.native_dtypes import NUMBERS
from anaphora_kernels.recording import empty


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `anaphora_kernels.silu_mul`."""
    gate_up = gate_up.contiguous()
    rows, width = len(gate_up), gate_up.shape[1] // 2
    out = empty((rows, width), gate_up.dtype)
    _native.gate_mul_rows(NUMBERS[gate_up.dtype], False, gate_up.data_ptr(), out.data_ptr(), rows, width)
    return out

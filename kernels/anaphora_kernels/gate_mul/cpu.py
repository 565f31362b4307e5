"""gate_mul on a CPU, by `kernels/native`."""

from anaphora import _native
from torch import Tensor

from anaphora_kernels.gate_mul import Activation
from anaphora_kernels.native_dtypes import NUMBERS
from anaphora_kernels.recording import empty


def gate_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """See `anaphora_kernels.gate_mul`."""
    gate_up = gate_up.contiguous()
    rows, width = len(gate_up), gate_up.shape[1] // 2
    out = empty((rows, width), gate_up.dtype)
    is_gelu = activation == "gelu"
    _native.gate_mul_rows(NUMBERS[gate_up.dtype], is_gelu, gate_up.data_ptr(), out.data_ptr(), rows, width)
    return out

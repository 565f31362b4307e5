"""rms_norm on a CPU, by `kernels/native`."""

from anaphora import _native
from torch import Tensor

from anaphora_kernels.native_dtypes import NUMBERS
from anaphora_kernels.recording import empty


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """See `anaphora_kernels.rms_norm`."""
    x = x.contiguous()
    out = empty(x.shape, x.dtype)
    rows, width = x.shape
    _native.rms_norm(
        NUMBERS[x.dtype],
        NUMBERS[weight.dtype],
        x.data_ptr(),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        width,
        eps,
    )
    return out

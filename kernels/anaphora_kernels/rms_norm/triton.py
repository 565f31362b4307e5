"""rms_norm in Triton: a program reads its row once."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """See `anaphora_kernels.rms_norm`."""
    num_tokens, hidden = x.shape
    out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    block = triton.next_power_of_2(hidden)
    row_stride = x.stride(0) if x.stride(1) == 1 else None
    if row_stride is None:
        x, row_stride = x.contiguous(), hidden
    residual_stride = 0 if residual is None else residual.stride(0)
    rms_norm_rows[(num_tokens,)](
        x,
        weight,
        residual,
        out,
        eps,
        hidden,
        row_stride,
        residual_stride,
        BLOCK=block,
        num_warps=max(1, min(16, block // 256)),
    )
    return out


@triton.jit
def rms_norm_rows(x, weight, residual, out, eps, hidden, row_stride, residual_stride, BLOCK: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < hidden
    values = tl.load(x + row * row_stride + column, mask=mask, other=0.0)
    if residual is not None:
        before = tl.load(residual + row * residual_stride + column, mask=mask, other=0.0)
        values = (before.to(tl.float32) + values.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(residual + row * residual_stride + column, values, mask=mask)
    wide = values.to(tl.float32)
    normalised = wide * tl.rsqrt(tl.sum(wide * wide, 0) / hidden + eps)
    scales = tl.load(weight + column, mask=mask, other=0.0)
    normalised = normalised.to(weight.dtype.element_ty).to(tl.float32) * scales.to(tl.float32)
    tl.store(out + row * hidden + column, normalised.to(out.dtype.element_ty), mask=mask)

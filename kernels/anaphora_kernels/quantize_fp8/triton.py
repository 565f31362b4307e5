"""quantize_fp8 in Triton: a program takes one token, and reads it twice, the second time from cache, to scale it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from anaphora_kernels.quantize_fp8.reference import SMALLEST_SCALE

BLOCK = 4096


def quantize_fp8(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `anaphora_kernels.quantize_fp8`."""
    x = x.contiguous()
    num_tokens, width = x.shape
    values = torch.empty((num_tokens, width), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((num_tokens, 1), dtype=torch.float32, device=x.device)
    if num_tokens > 0:
        quantize_fp8_rows[(num_tokens,)](
            x, scale, values, scales, width, SMALLEST_SCALE=SMALLEST_SCALE, BLOCK=BLOCK, num_warps=8
        )
    return values, scales


@triton.jit
def quantize_fp8_rows(x, scale, values, scales, width, SMALLEST_SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """One token."""
    row = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, BLOCK)
    if scale is None:
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            part = tl.load(x + row * width + start + offset, mask=start + offset < width, other=0.0)
            largest = tl.maximum(largest, tl.abs(part.to(tl.float32)))
        # Divided as float32: a constant divisor would become a product with its rounded inverse.
        divisor = tl.full((1,), 448.0, tl.float32)
        own = tl.maximum(tl.div_rn(tl.max(largest, 0, keep_dims=True), divisor), SMALLEST_SCALE)
    else:
        own = tl.load(scale + tl.zeros((1,), tl.int32))
    tl.store(scales + row + tl.zeros((1,), tl.int64), own)
    divisors = tl.broadcast_to(own, (BLOCK,))
    for start in range(0, width, BLOCK):
        mask = start + offset < width
        part = tl.load(x + row * width + start + offset, mask=mask, other=0.0)
        quotient = tl.minimum(tl.maximum(tl.div_rn(part.to(tl.float32), divisors), -448.0), 448.0)
        tl.store(values + row * width + start + offset, quotient.to(values.dtype.element_ty), mask=mask)

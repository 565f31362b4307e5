"""rope in Triton: a program rotates some heads of one token."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_H = 8  # heads


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `anaphora_kernels.rope`."""
    num_tokens, heads, _ = x.shape
    half = cos.shape[1]
    if num_tokens == 0:
        return
    rope_heads[(num_tokens, triton.cdiv(heads, BLOCK_H))](
        x,
        cos,
        sin,
        x.stride(0),
        x.stride(1),
        cos.stride(0),
        sin.stride(0),
        heads,
        HALF=half,
        BLOCK_HALF=triton.next_power_of_2(half),
        BLOCK_H=BLOCK_H,
        num_warps=2,
    )


@triton.jit
def rope_heads(
    x, cos, sin, token_stride, head_stride, cos_stride, sin_stride, heads,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """BLOCK_H heads of one token, in place."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    pair = tl.arange(0, BLOCK_HALF)
    mask = (head < heads)[:, None] & (pair < HALF)[None, :]
    a = x + token * token_stride + head[:, None] * head_stride + pair[None, :]
    rotated_a, rotated_b = rotated(a, cos + token * cos_stride, sin + token * sin_stride, mask, HALF, BLOCK_HALF)
    tl.store(a, rotated_a, mask=mask)
    tl.store(a + HALF, rotated_b, mask=mask)


@triton.jit
def rotated(a, cos, sin, mask, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """The two halves of heads [BLOCK_H, BLOCK_HALF] at `a`, turned, in their dtype."""
    pair = tl.arange(0, BLOCK_HALF)
    c = tl.load(cos + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    first = tl.load(a, mask=mask, other=0.0)
    second = tl.load(a + HALF, mask=mask, other=0.0)
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    rotated_a = (wide_first * c - wide_second * s).to(first.dtype)
    rotated_b = (wide_second * c + wide_first * s).to(first.dtype)
    return rotated_a, rotated_b

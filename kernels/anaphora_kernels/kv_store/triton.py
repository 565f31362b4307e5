"""kv_store in Triton: a program stores one token, and rounds to FP8 on the way if the cache is FP8."""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor


def kv_store(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """See `anaphora_kernels.kv_store`."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if key_scale is not None:
        check_fp8(key.device)
    if num_tokens == 0:
        return
    kv_store_tokens[(num_tokens,)](
        key,
        value,
        key_cache,
        value_cache,
        indices,
        key_scale,
        value_scale,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_H=triton.next_power_of_2(num_kv_heads),
        num_warps=4,
    )


@cache
def check_fp8(device: torch.device) -> None:
    """Raises ValueError if a GPU has no float8_e4m3fn."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"{name} has no FP8 (compute capability 8.9 has): use a KV cache of the model's dtype")


@triton.jit
def kv_store_tokens(
    key, value, key_cache, value_cache, indices, key_scale, value_scale,
    key_stride, key_head_stride, value_stride, value_head_stride, num_kv_heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    cell = tl.load(indices + token)
    if cell >= 0:
        head = tl.arange(0, BLOCK_H)
        d = tl.arange(0, BLOCK_D)
        mask = (head < num_kv_heads)[:, None] & (d < HEAD_DIM)[None, :]
        target = cell * num_kv_heads * HEAD_DIM + head[:, None] * HEAD_DIM + d[None, :]
        k = tl.load(key + token * key_stride + head[:, None] * key_head_stride + d[None, :], mask=mask)
        v = tl.load(value + token * value_stride + head[:, None] * value_head_stride + d[None, :], mask=mask)
        store(key_cache + target, k, key_scale, head, head < num_kv_heads, mask)
        store(value_cache + target, v, value_scale, head, head < num_kv_heads, mask)


@triton.jit
def store(target, x, scale, head, is_head, mask):
    """Stores x [heads, n] where `target` says; divided by its head's scale, saturated and rounded, if there is one."""
    if scale is not None:
        scales = tl.load(scale + head, mask=is_head, other=1.0)[:, None]
        quotient = tl.div_rn(x.to(tl.float32), tl.broadcast_to(scales, x.shape))
        x = tl.minimum(tl.maximum(quotient, -448.0), 448.0).to(target.dtype.element_ty)
    tl.store(target, x, mask=mask)

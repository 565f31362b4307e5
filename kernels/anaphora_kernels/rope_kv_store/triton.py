"""rope_kv_store in Triton: one launch, in which a program takes some query heads of a token, or its keys and values."""

import triton
import triton.language as tl
from torch import Tensor

from anaphora_kernels.kv_store.triton import check_fp8, store
from anaphora_kernels.rope.triton import rotated

BLOCK_H = 8  # query heads


def rope_kv_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """See `anaphora_kernels.rope_kv_store`."""
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, half = key.shape[1], cos.shape[1]
    if key_scale is not None:
        check_fp8(key.device)
    if num_tokens == 0:
        return
    rope_kv_store_heads[(num_tokens, triton.cdiv(num_heads, BLOCK_H) + 1)](
        query,
        key,
        value,
        cos,
        sin,
        key_cache,
        value_cache,
        indices,
        key_scale,
        value_scale,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        cos.stride(0),
        sin.stride(0),
        num_heads,
        num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        HALF=half,
        BLOCK_HALF=triton.next_power_of_2(half),
        BLOCK_REST=triton.next_power_of_2(max(head_dim - 2 * half, 1)),
        BLOCK_H=BLOCK_H,
        BLOCK_KV=triton.next_power_of_2(num_kv_heads),
        num_warps=4,
    )


@triton.jit
def rope_kv_store_heads(
    query, key, value, cos, sin, key_cache, value_cache, indices, key_scale, value_scale,
    query_stride, query_head_stride, key_stride, key_head_stride, value_stride, value_head_stride,
    cos_stride, sin_stride, num_heads, num_kv_heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_KV: tl.constexpr,
):  # fmt: skip
    """BLOCK_H query heads of a token, or (the last programs) all its keys and values."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    pair = tl.arange(0, BLOCK_HALF)
    cos += token * cos_stride
    sin += token * sin_stride
    if part < tl.num_programs(1) - 1:
        head = part * BLOCK_H + tl.arange(0, BLOCK_H)
        mask = (head < num_heads)[:, None] & (pair < HALF)[None, :]
        a = query + token * query_stride + head[:, None] * query_head_stride + pair[None, :]
        rotated_a, rotated_b = rotated(a, cos, sin, mask, HALF, BLOCK_HALF)
        tl.store(a, rotated_a, mask=mask)
        tl.store(a + HALF, rotated_b, mask=mask)
    else:
        cell = tl.load(indices + token)
        if cell >= 0:
            head = tl.arange(0, BLOCK_KV)
            is_head = head < num_kv_heads
            mask = is_head[:, None] & (pair < HALF)[None, :]
            source = key + token * key_stride + head[:, None] * key_head_stride
            target = key_cache + cell * num_kv_heads * HEAD_DIM + head[:, None] * HEAD_DIM
            rotated_a, rotated_b = rotated(source + pair[None, :], cos, sin, mask, HALF, BLOCK_HALF)
            store(target + pair[None, :], rotated_a, key_scale, head, is_head, mask)
            store(target + HALF + pair[None, :], rotated_b, key_scale, head, is_head, mask)
            if HEAD_DIM > 2 * HALF:  # what is not rotated
                rest = 2 * HALF + tl.arange(0, BLOCK_REST)
                mask = is_head[:, None] & (rest < HEAD_DIM)[None, :]
                k = tl.load(source + rest[None, :], mask=mask)
                store(target + rest[None, :], k, key_scale, head, is_head, mask)
            d = tl.arange(0, BLOCK_D)
            mask = is_head[:, None] & (d < HEAD_DIM)[None, :]
            v = tl.load(value + token * value_stride + head[:, None] * value_head_stride + d[None, :], mask=mask)
            target = value_cache + cell * num_kv_heads * HEAD_DIM + head[:, None] * HEAD_DIM
            store(target + d[None, :], v, value_scale, head, is_head, mask)

"""Writing the new keys and values of a step into the paged KV cache, in place.

A cell of the pool is addressed by one number, block * block_size + offset in the block: its *KV index*. They are
worked out once per step (`kv_indices`) and used by every layer.
"""

import torch
from torch import Tensor

from anaphora_kernels import registry


def kv_indices(
    block_tables: Tensor,  # [rows, max_blocks] int32
    token_rows: Tensor,  # [T] int64: the row of each token
    positions: Tensor,  # [T] int64: its position in the row's sequence
    block_size: int,
) -> Tensor:
    """Where in the pool the token at each position lies: [T] int64."""
    blocks = block_tables[token_rows, positions // block_size]
    return blocks.to(torch.int64) * block_size + positions % block_size


def kv_store(
    key: Tensor,  # [T, num_kv_heads, head_dim]; rows may be strided
    value: Tensor,  # like key
    key_cache: Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim], contiguous; written
    value_cache: Tensor,  # like key_cache; written
    indices: Tensor,  # [T] int64: KV index of each token, all different; a negative one stores nothing
    *,
    key_scale: Tensor | None = None,  # [num_kv_heads] float32 > 0; with caches of float8_e4m3fn
    value_scale: Tensor | None = None,  # like key_scale
    implementation: str | None = None,
) -> None:
    """Stores token t's key and value in cell `indices[t]`; FP8: divided by its head's scale, saturated, rounded.

    An FP8 cache needs both scales: what it holds, times the scale, is the key or value.
    """
    run = registry.select("kv_store", key.device.type, key_cache.dtype, implementation)
    run(key, value, key_cache, value_cache, indices, key_scale=key_scale, value_scale=value_scale)

"""paged_attention on a CPU, by `kernels/native`: reads keys and values where they lie, in tiles, on torch's threads."""

import torch
from anaphora import _native
from torch import Tensor

from anaphora_kernels.paged_attention import AttentionMetadata


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    *,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `anaphora_kernels.paged_attention`; float32."""
    query, block_tables = query.contiguous(), metadata.block_tables.contiguous()
    sinks = None if sinks is None else sinks.float().contiguous()  # named, so that it outlives the call
    out = torch.empty_like(query)
    _, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = key_cache.shape
    _native.paged_attention_f32(
        (_memory(query), _memory(key_cache), _memory(value_cache), _memory(out)),
        (_memory(block_tables), _memory(metadata.query_starts), _memory(metadata.context_lengths)),
        (num_heads, num_kv_heads, head_dim, block_size, block_tables.shape[1]),
        (scale, sliding_window, soft_cap, None if sinks is None else _memory(sinks)),
    )
    return out


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()

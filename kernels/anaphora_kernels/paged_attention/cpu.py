"""paged_attention on a CPU, by `kernels/native`: reads keys and values where they lie, shared prefixes once."""

import torch
from anaphora import _native
from torch import Tensor

from anaphora_kernels.native_dtypes import NUMBERS
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
    """See `anaphora_kernels.paged_attention`; the cache is float32 or bfloat16, whatever the query is of the two."""
    key = ("cpu", sliding_window, query.shape[1], key_cache.shape)
    plan = metadata.plans.get(key)
    if plan is None:
        plan = metadata.plans[key] = _plan(query, key_cache, metadata, sliding_window)
    if query.stride(1) != query.shape[2] or query.stride(2) != 1:
        query = query.contiguous()
    sinks = None if sinks is None else sinks.float().contiguous()  # named, so that it outlives the call
    out = torch.empty(query.shape, dtype=query.dtype)
    plan.run(
        NUMBERS[query.dtype],
        NUMBERS[key_cache.dtype],
        query.data_ptr(),
        query.stride(0),
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        out.data_ptr(),
        scale,
        soft_cap,
        None if sinks is None else sinks.data_ptr(),
    )
    return out


def _plan(
    query: Tensor, key_cache: Tensor, metadata: AttentionMetadata, sliding_window: int | None
) -> _native.AttentionPlan:
    tables = metadata.block_tables.contiguous()
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    starts, contexts = metadata.query_starts, metadata.context_lengths
    return _native.AttentionPlan(
        (metadata.num_rows, tables.shape[1], tables.data_ptr(), starts.data_ptr(), contexts.data_ptr()),
        (query.shape[1], num_kv_heads, head_dim),
        (num_blocks, block_size),
        sliding_window,
    )

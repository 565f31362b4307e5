"""paged_attention on a CPU, by `kernels/native`: reads keys and values where they lie, shared prefixes once."""

from typing import NamedTuple

from anaphora import _native
from torch import Tensor

from anaphora_kernels.native_dtypes import NUMBERS
from anaphora_kernels.paged_attention import AttentionMetadata
from anaphora_kernels.recording import empty


class PlanKey(NamedTuple):
    """What layers whose attention is planned alike have in common."""

    sliding_window: int | None
    num_heads: int
    cache_shape: tuple[int, ...]  # [num_blocks, block_size, num_kv_heads, head_dim]


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
    plan = plan_for(metadata, PlanKey(sliding_window, query.shape[1], tuple(key_cache.shape)))
    if query.stride(1) != query.shape[2] or query.stride(2) != 1:
        query = query.contiguous()
    sinks = None if sinks is None else sinks.float().contiguous()  # named, so that it outlives the call
    out = empty(query.shape, query.dtype)
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


def plan_for(metadata: AttentionMetadata, key: PlanKey) -> _native.AttentionPlan:
    """The plan of a step's rows for such layers: made for the first of them."""
    plan: _native.AttentionPlan | None = metadata.plans.get(key)
    if plan is None:
        plan = metadata.plans[key] = _plan(metadata, key)
    return plan


def _plan(metadata: AttentionMetadata, key: PlanKey) -> _native.AttentionPlan:
    tables = metadata.block_tables.contiguous()
    num_blocks, block_size, num_kv_heads, head_dim = key.cache_shape
    starts, contexts = metadata.query_starts, metadata.context_lengths
    return _native.AttentionPlan(
        (metadata.num_rows, tables.shape[1], tables.data_ptr(), starts.data_ptr(), contexts.data_ptr()),
        (key.num_heads, num_kv_heads, head_dim),
        (num_blocks, block_size),
        key.sliding_window,
    )

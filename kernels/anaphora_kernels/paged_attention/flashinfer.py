"""paged_attention by FlashInfer, where it is installed: a peer to measure.

Ye et al. 2025, https://arxiv.org/abs/2501.01005. Without sinks; it plans on the host, so that no graph can hold it.
"""

from typing import Any

import flashinfer
import torch
from torch import Tensor

from anaphora_kernels.paged_attention import AttentionMetadata

WORKSPACE_BYTES = 256 << 20


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
    """See `anaphora_kernels.paged_attention`. Raises ValueError for sinks."""
    if sinks is not None:
        raise ValueError("this call of FlashInfer has no attention sinks: choose another implementation, as 'triton'")
    key = ("flashinfer", query.shape[1:], key_cache.shape[1:], scale, sliding_window, soft_cap)
    wrapper = metadata.plans.get(key)
    if wrapper is None:
        wrapper = metadata.plans[key] = _plan(metadata, query, key_cache, scale, sliding_window, soft_cap)
    out: Tensor = wrapper.run(query, (key_cache, value_cache))
    return out


def _plan(
    metadata: AttentionMetadata,
    query: Tensor,
    key_cache: Tensor,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> Any:
    _, block_size, num_kv_heads, head_dim = key_cache.shape
    device = query.device
    contexts = torch.tensor(metadata.host_context_lengths, dtype=torch.int32)
    counts = (contexts + block_size - 1) // block_size
    starts = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
    columns = torch.arange(len(rows)) - starts[:-1][rows]
    blocks = metadata.block_tables[rows.to(device), columns.to(device)]
    queries = torch.tensor((0, *metadata.host_query_lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)

    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        queries.to(device),
        starts.to(device),
        blocks,
        ((contexts - 1) % block_size + 1).to(device),
        query.shape[1],
        num_kv_heads,
        head_dim,
        block_size,
        causal=True,
        sm_scale=scale,
        window_left=-1 if sliding_window is None else sliding_window - 1,
        logits_soft_cap=soft_cap,
        q_data_type=query.dtype,
        kv_data_type=key_cache.dtype,
    )
    return wrapper

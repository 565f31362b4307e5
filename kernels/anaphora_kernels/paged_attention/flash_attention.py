"""paged_attention by FlashAttention 3 (`flash_attn_interface`, Hopper), where it is installed: a peer to measure.

Shah et al. 2024, https://arxiv.org/abs/2407.08608. Without sinks.
"""

import flash_attn_interface
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
    """See `anaphora_kernels.paged_attention`. Raises ValueError for sinks."""
    if sinks is not None:
        raise ValueError("FlashAttention 3 has no attention sinks: choose another implementation, such as 'triton'")
    out: Tensor = flash_attn_interface.flash_attn_with_kvcache(
        query,
        key_cache,
        value_cache,
        cache_seqlens=metadata.context_lengths,
        page_table=metadata.block_tables,
        cu_seqlens_q=metadata.query_starts,
        max_seqlen_q=metadata.max_query_length,
        softmax_scale=scale,
        causal=True,
        window_size=(-1 if sliding_window is None else sliding_window - 1, -1 if sliding_window is None else 0),
        softcap=soft_cap or 0.0,
    )
    return out

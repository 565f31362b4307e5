"""paged_attention in plain torch, one row after another with every score in memory: the specification."""

import torch
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
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """See `anaphora_kernels.paged_attention`."""
    block_size, num_kv_heads = key_cache.shape[1:3]
    num_heads = query.shape[1]
    group = num_heads // num_kv_heads
    out = torch.empty_like(query)
    start = 0
    lengths = zip(metadata.host_query_lengths, metadata.host_context_lengths, strict=True)
    for row, (num_queries, context_length) in enumerate(lengths):
        stop = start + num_queries
        positions = torch.arange(context_length, device=query.device)
        blocks = metadata.block_tables[row, positions // block_size]
        keys = _read(key_cache, blocks, positions % block_size, key_scale).repeat_interleave(group, dim=1)
        values = _read(value_cache, blocks, positions % block_size, value_scale).repeat_interleave(group, dim=1)

        scores = torch.einsum("qhd,khd->hqk", query[start:stop].float(), keys) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        distances = positions[context_length - num_queries :, None] - positions[None, :]
        visible = distances >= 0
        if sliding_window is not None:
            visible &= distances < sliding_window
        scores = scores.masked_fill(~visible, float("-inf"))
        if sinks is not None:
            sink = sinks.float().view(num_heads, 1, 1).expand(num_heads, num_queries, 1)
            scores = torch.cat([scores, sink], dim=-1)
        probabilities = scores.softmax(dim=-1)[..., :context_length]
        out[start:stop] = torch.einsum("hqk,khd->qhd", probabilities, values).to(out.dtype)
        start = stop
    return out


def _read(cache: Tensor, blocks: Tensor, offsets: Tensor, scale: Tensor | None) -> Tensor:
    """What these cells hold, in float32: [n, num_kv_heads, head_dim]."""
    cells = cache[blocks, offsets].float()
    return cells if scale is None else cells * scale.view(-1, 1)

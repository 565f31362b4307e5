"""Causal attention over a paged KV cache, for rows of any length in one call.

The keys and values of a sequence lie in blocks of `block_size` tokens, anywhere in the pool; its row of the block
table says where:

    position p of row r  ->  cache[block_tables[r, p // block_size], p % block_size]

A step computes the last `query length` positions of each row; their keys and values are already in the cache
(`kv_store` runs first). With `C = context_lengths[r]` tokens in the cache, new ones included, and `Q` queries, query
i of the row stands at position C - Q + i and sees the positions

    [max(0, C - Q + i - sliding_window + 1), C - Q + i]          (from 0 without a sliding window)

so decoding (Q = 1), a chunk of a prompt (Q > 1, C > Q) and a whole prompt (C = Q) are one case, and mix freely.
Cells of the pool outside of `[0, C)` of a row may hold anything, NaN included: they never reach a result.

A CUDA graph is captured once and replayed for other steps of its shape, whose rows have other lengths. Then
(`is_captured`) the host's numbers are upper bounds, and only the device's are true; rows with Q = 0 and C = 0 may
stand at the end. An implementation that the registry calls `capturable` launches by the bounds, and reads the rest on
the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anaphora_kernels import registry
from anaphora_kernels.paged_attention.shared_prefixes import SharedPrefixes


@dataclass(frozen=True)
class AttentionMetadata:
    """The rows of one step, built once and read by every layer.

    What a kernel indexes by is on the device; what decides shapes, tiles and launches is on the host, so that no
    layer has to wait for the device to learn it. Row r owns the queries [query_starts[r], query_starts[r + 1]).
    """

    block_tables: Tensor  # [rows, max_blocks] int32; entries past a row's context are ignored
    query_starts: Tensor  # [rows + 1] int32, from 0 to the number of queries
    context_lengths: Tensor  # [rows] int32: tokens in the cache, those of this step included; >= the query length

    host_query_lengths: tuple[int, ...]  # [rows], all >= 1
    host_context_lengths: tuple[int, ...]  # [rows], the same numbers as context_lengths
    num_queries: int  # T: the sum of the query lengths
    max_query_length: int
    max_context_length: int
    is_captured: bool = False  # the numbers above, but num_queries, are upper bounds: see the module

    # A hint that an implementation may ignore; of steps in which every row has one query.
    shared_prefixes: SharedPrefixes | None = None

    # What an implementation derives from the above in the first layer and reads in the others; the key is its own.
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return len(self.host_query_lengths)

    @property
    def is_decode_only(self) -> bool:
        """Whether every row has exactly one query."""
        return self.max_query_length == 1

    @classmethod
    def build(
        cls, block_tables: Tensor, query_lengths: Sequence[int], context_lengths: Sequence[int]
    ) -> "AttentionMetadata":
        """From the host's numbers and a block table on the device.

        By plain copies; a caller with pinned buffers of its own can fill the fields itself.
        """
        device = block_tables.device
        starts = [0]
        for length in query_lengths:
            starts.append(starts[-1] + length)
        return cls(
            block_tables=block_tables,
            query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
            context_lengths=torch.tensor(context_lengths, dtype=torch.int32, device=device),
            host_query_lengths=tuple(query_lengths),
            host_context_lengths=tuple(context_lengths),
            num_queries=starts[-1],
            max_query_length=max(query_lengths, default=0),
            max_context_length=max(context_lengths, default=0),
        )


def paged_attention(
    query: Tensor,  # [T, num_heads, head_dim]
    key_cache: Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim], dtype of query or float8_e4m3fn
    value_cache: Tensor,  # like key_cache
    metadata: AttentionMetadata,
    scale: float,  # multiplies query . key, usually head_dim ** -0.5
    *,
    sliding_window: int | None = None,  # positions that a query sees, itself included; >= 1
    soft_cap: float | None = None,  # scores s become soft_cap * tanh(s / soft_cap), before the mask
    sinks: Tensor | None = None,  # [num_heads]: a logit per head that takes probability and gives no value
    key_scale: Tensor | None = None,  # [num_kv_heads] float32: a key is what the FP8 cache holds times this
    value_scale: Tensor | None = None,  # like key_scale; both or neither, and only with an FP8 cache
    implementation: str | None = None,
) -> Tensor:
    """Attention of every query over its row's context: [T, num_heads, head_dim], dtype of query.

    Grouped-query attention: query head h reads KV head h // (num_heads // num_kv_heads). The softmax is taken in
    float32.
    """
    run = registry.select("paged_attention", query.device.type, key_cache.dtype, implementation)
    options: dict[str, Any] = {"sliding_window": sliding_window, "soft_cap": soft_cap, "sinks": sinks}
    if key_scale is not None:  # rows of the table without FP8 need not know the word
        options |= {"key_scale": key_scale, "value_scale": value_scale}
    out: Tensor = run(query, key_cache, value_cache, metadata, scale, **options)
    return out

"""paged_attention with torch's own fused attention on gathered keys and values: the path of a CPU without native kernels.

Two shapes of work, planned once per step and reused by every layer:

    decoding rows    sorted by length and cut into groups of similar length that gather at most GATHER_BYTES. One gather and one fused
                     call per group; the query heads of a KV head stand where queries usually do, so keys are read once:
                         q [rows, kv_heads, group, head_dim]    k, v [rows, kv_heads, longest, head_dim]
    prompt chunks    one row after another, its queries cut into tiles; a tile reads the keys up to its own last position:
                         q [kv_heads, group, tile, head_dim]    k, v [kv_heads, group (stride 0), visible, head_dim]

All tiles share one mask, because seen from the lower right corner they all look the same:

                 visible to the tile ->
        0 0 0 0 0 0 . .        a tile of t queries over w keys uses
        0 0 0 0 0 0 0 .        the last t rows and the last w columns
        0 0 0 0 0 0 0 0

Cells past the end of a context are gathered from the last token instead of from where NaN may stand, and then masked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anaphora_kernels.paged_attention import AttentionMetadata

GATHER_BYTES = 4 << 20  # per gathered tensor: stays in the caches, and below the size at which malloc maps fresh pages
PADDING = 1.25  # the longest context of a group over its shortest, for contexts longer than...
PADDING_FREE = 64  # ... this many tokens
TILE = 128  # queries
MASK_ELEMENTS = 8 << 20  # tiles get shorter over very long contexts, so that the mask stays below this


@dataclass(frozen=True)
class DecodeGroup:
    """Rows with one query each and contexts of similar length."""

    tokens: Tensor | None  # [n] int64: their queries; None: all queries of the step, in order
    cells: Tensor  # [n * longest] int64 KV indices
    num_rows: int
    mask: Tensor | None  # [n, 1, 1, longest], added to the scores


@dataclass(frozen=True)
class Tile:
    """Queries [start, stop) of the step over keys [first, last) of what their row gathers."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Chunk:
    """One row with several queries."""

    cells: Tensor  # [visible] int64 KV indices
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Plan:
    """What a step comes down to, for one sliding window and one cache shape."""

    groups: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]
    mask: Tensor | None  # [tile, longest visible], added to the scores; None without chunks


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
    """See `anaphora_kernels.paged_attention`."""
    _, block_size, num_kv_heads, head_dim = key_cache.shape
    num_tokens, num_heads, _ = query.shape
    group_size = num_heads // num_kv_heads
    key = ("sdpa", sliding_window, key_cache.shape[1:], query.dtype)
    plan = metadata.plans.get(key)
    if plan is None:
        token_bytes = num_kv_heads * head_dim * key_cache.element_size()
        plan = metadata.plans[key] = _plan(metadata, block_size, token_bytes, sliding_window, query.dtype)

    flat_keys = key_cache.view(-1, num_kv_heads * head_dim)
    flat_values = value_cache.view(-1, num_kv_heads * head_dim)
    grouped = query.view(num_tokens, num_kv_heads, group_size, head_dim)
    sink = None if sinks is None else sinks.float().view(num_kv_heads, group_size, 1)
    out = None

    for group in plan.groups:
        shape = (group.num_rows, -1, num_kv_heads, head_dim)
        keys = flat_keys.index_select(0, group.cells).view(shape).transpose(1, 2)
        values = flat_values.index_select(0, group.cells).view(shape).transpose(1, 2)
        q = grouped if group.tokens is None else grouped.index_select(0, group.tokens)
        result = _attend(q, keys, values, group.mask, scale, soft_cap, sink)
        if group.tokens is None:
            return result.reshape(query.shape)
        out = torch.empty_like(grouped) if out is None else out
        out.index_copy_(0, group.tokens, result)

    out = torch.empty_like(grouped) if out is None else out
    sink = None if sink is None else sink.unsqueeze(-1)
    for chunk in plan.chunks:
        shape = (-1, num_kv_heads, 1, head_dim)
        keys = flat_keys.index_select(0, chunk.cells).view(shape).permute(1, 2, 0, 3).expand(-1, group_size, -1, -1)
        values = flat_values.index_select(0, chunk.cells).view(shape).permute(1, 2, 0, 3).expand(-1, group_size, -1, -1)
        for tile in chunk.tiles:
            assert plan.mask is not None
            q = grouped[tile.start : tile.stop].permute(1, 2, 0, 3)
            mask = plan.mask[tile.start - tile.stop :, tile.first - tile.last :]
            window = slice(tile.first, tile.last)
            result = _attend(q, keys[:, :, window], values[:, :, window], mask, scale, soft_cap, sink)
            out[tile.start : tile.stop] = result.permute(2, 0, 1, 3)
    return out.view(query.shape)


def _attend(
    q: Tensor,  # [n, heads, queries, head_dim]
    keys: Tensor,  # [n, heads, keys, head_dim]
    values: Tensor,  # like keys
    mask: Tensor | None,  # broadcasts to [n, heads, queries, keys], dtype of q
    scale: float,
    soft_cap: float | None,
    sink: Tensor | None,  # broadcasts to [n, heads, queries, 1]
) -> Tensor:
    """Attention of every query over the keys that the mask leaves it: [n, heads, queries, head_dim]."""
    if soft_cap is None and sink is None:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    scores = q.float() @ keys.float().transpose(-1, -2) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if mask is not None:
        scores = scores + mask
    if sink is not None:
        scores = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], dim=-1)
    probabilities = scores.softmax(dim=-1)[..., : keys.shape[2]]
    return (probabilities @ values.float()).to(q.dtype)


# === the plan ===


def _plan(
    metadata: AttentionMetadata, block_size: int, token_bytes: int, sliding_window: int | None, dtype: torch.dtype
) -> Plan:
    queries, contexts = metadata.host_query_lengths, metadata.host_context_lengths
    window = sliding_window or metadata.max_context_length
    starts = [0]
    for length in queries:
        starts.append(starts[-1] + length)

    decoding = [row for row, length in enumerate(queries) if length == 1]
    spans = {row: min(contexts[row], window) for row in decoding}
    groups = tuple(
        _decode_group(metadata, rows, [starts[row] for row in rows], [spans[row] for row in rows], block_size, dtype)
        for rows in _similar(spans, GATHER_BYTES // token_bytes)
    )

    # The band of keys that a tile of t queries reads is at most window + t - 1 wide.
    prompts = [row for row, length in enumerate(queries) if length > 1]
    widest = max((min(contexts[row], window + TILE - 1) for row in prompts), default=1)
    tile = max(16, min(TILE, MASK_ELEMENTS // widest))
    chunks = tuple(
        _chunk(metadata, row, starts[row], queries[row], contexts[row], window, tile, block_size) for row in prompts
    )
    mask = _mask(tile, widest, window, dtype, metadata.block_tables.device) if prompts else None
    return Plan(groups, chunks, mask)


def _similar(spans: dict[int, int], max_tokens: int) -> Iterator[list[int]]:
    """Cuts rows into groups of similar span (row -> tokens it reads), each of at most `max_tokens` with its padding, or one row."""
    group: list[int] = []
    longest = 0
    for row in sorted(spans, key=lambda row: -spans[row]):
        too_short = spans[row] * PADDING + PADDING_FREE < longest
        if group and (too_short or (len(group) + 1) * longest > max_tokens):
            yield sorted(group)
            group = []
        if not group:
            longest = spans[row]
        group.append(row)
    if group:
        yield sorted(group)


def _decode_group(
    metadata: AttentionMetadata,
    rows: list[int],
    tokens: list[int],
    spans: list[int],
    block_size: int,
    dtype: torch.dtype,
) -> DecodeGroup:
    tables = metadata.block_tables
    device = tables.device
    longest = max(spans)
    lasts = torch.tensor([[metadata.host_context_lengths[row] - 1] for row in rows], device=device)
    spans_device = torch.tensor(spans, device=device).view(-1, 1)
    offsets = torch.arange(longest, device=device)
    positions = torch.minimum(lasts - spans_device + 1 + offsets, lasts)
    cells = _cells(tables[torch.tensor(rows, device=device)], positions, block_size)
    mask = None
    if min(spans) < longest:
        hidden = offsets >= spans_device
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))[:, None, None]
    everything = rows == list(range(metadata.num_rows)) and metadata.is_decode_only
    return DecodeGroup(None if everything else torch.tensor(tokens, device=device), cells.view(-1), len(rows), mask)


def _chunk(
    metadata: AttentionMetadata, row: int, start: int, num_queries: int, context: int, window: int, tile: int, block_size: int
) -> Chunk:
    first = max(0, context - num_queries - window + 1)
    positions = torch.arange(first, context, device=metadata.block_tables.device).unsqueeze(0)
    cells = _cells(metadata.block_tables[row : row + 1], positions, block_size).view(-1)
    tiles = []
    for offset in range(0, num_queries, tile):
        stop = min(offset + tile, num_queries)
        before = context - num_queries + offset  # the position of the tile's first query
        key_start = max(0, before - window + 1)
        key_stop = context - num_queries + stop
        tiles.append(Tile(start + offset, start + stop, key_start - first, key_stop - first))
    return Chunk(cells, tuple(tiles))


def _cells(tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """KV indices of positions [n, m] in the rows of tables [n, max_blocks]."""
    blocks = tables.gather(1, positions // block_size).to(torch.int64)
    return blocks * block_size + positions % block_size


def _mask(num_queries: int, num_keys: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where the last query but i sees the last key but j, -inf elsewhere: [num_queries, num_keys]."""
    queries = torch.arange(num_queries - 1, -1, -1, device=device).unsqueeze(1)
    keys = torch.arange(num_keys - 1, -1, -1, device=device).unsqueeze(0)
    distances = keys - queries
    hidden = (distances < 0) | (distances >= window)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))

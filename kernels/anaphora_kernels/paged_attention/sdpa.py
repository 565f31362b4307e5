"""paged_attention with torch's fused attention on gathered keys and values: where there is no kernel of ours.

Two shapes of work, planned once per step and reused by every layer:

    decoding rows    cut into groups of similar length that gather at most GATHER_BYTES. One gather and one fused call
                     per group; the query heads of a KV head stand where queries usually do, so keys are read once:
                         q [rows, kv_heads, group, head_dim]    k, v [rows, kv_heads, longest, head_dim]
    prompt chunks    one row after another, its queries cut into tiles; a tile reads the keys up to its last position:
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

    tokens: Tensor  # [n] int64: their queries
    is_whole_step: bool  # they are all the queries of the step, in order
    cells: Tensor  # [n * longest] int64 KV indices
    num_rows: int
    mask: Tensor | None  # [n, 1, 1, longest], added to the scores


@dataclass(frozen=True)
class Tile:
    """Some queries of a chunk, and the keys that they may see, out of what the chunk gathers."""

    queries: slice  # of the step
    keys: slice
    mask: Tensor  # [queries, keys], added to the scores


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


@dataclass(frozen=True)
class Scoring:
    """How a query and a key make a score."""

    scale: float
    soft_cap: float | None
    sinks: Tensor | None  # [kv_heads, group, 1] float32
    key_scale: Tensor | None  # [kv_heads] float32; of FP8 caches
    value_scale: Tensor | None


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
    _, block_size, num_kv_heads, head_dim = key_cache.shape
    key = ("sdpa", sliding_window, key_cache.shape[1:], query.dtype)
    plan = metadata.plans.get(key)
    if plan is None:
        token_bytes = num_kv_heads * head_dim * key_cache.element_size()
        plan = metadata.plans[key] = _plan(metadata, block_size, token_bytes, sliding_window, query.dtype)

    grouped = query.view(len(query), num_kv_heads, -1, head_dim)
    sinks = None if sinks is None else sinks.float().view(num_kv_heads, -1, 1)
    scoring = Scoring(scale, soft_cap, sinks, key_scale, value_scale)
    if plan.groups and plan.groups[0].is_whole_step:
        return _decode(plan.groups[0], grouped, key_cache, value_cache, scoring).reshape(query.shape)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grouped_out = out.view(grouped.shape)
    for group in plan.groups:
        grouped_out.index_copy_(0, group.tokens, _decode(group, grouped, key_cache, value_cache, scoring))
    for chunk in plan.chunks:
        _append(chunk, grouped, key_cache, value_cache, scoring, grouped_out)
    return out


def _decode(group: DecodeGroup, query: Tensor, key_cache: Tensor, value_cache: Tensor, scoring: Scoring) -> Tensor:
    """Attention of a group's rows: [n, kv_heads, group, head_dim]."""
    shape = (group.num_rows, -1, *key_cache.shape[2:])
    keys = _gather(key_cache, group.cells, scoring.key_scale, query.dtype).view(shape).transpose(1, 2)
    values = _gather(value_cache, group.cells, scoring.value_scale, query.dtype).view(shape).transpose(1, 2)
    q = query if group.is_whole_step else query.index_select(0, group.tokens)
    return _attend(q, keys, values, group.mask, scoring, scoring.sinks)


def _append(chunk: Chunk, query: Tensor, key_cache: Tensor, value_cache: Tensor, scoring: Scoring, out: Tensor) -> None:
    """Attention of one row's queries, into their places in `out`."""
    shape = (len(chunk.cells), key_cache.shape[2], 1, -1)
    expanded = (-1, query.shape[2], -1, -1)  # every query head of a KV head reads the same memory
    keys = _gather(key_cache, chunk.cells, scoring.key_scale, query.dtype).view(shape)
    values = _gather(value_cache, chunk.cells, scoring.value_scale, query.dtype).view(shape)
    keys, values = keys.permute(1, 2, 0, 3).expand(expanded), values.permute(1, 2, 0, 3).expand(expanded)
    sinks = None if scoring.sinks is None else scoring.sinks.unsqueeze(-1)
    for tile in chunk.tiles:
        q = query[tile.queries].permute(1, 2, 0, 3)
        result = _attend(q, keys[:, :, tile.keys], values[:, :, tile.keys], tile.mask, scoring, sinks)
        out[tile.queries] = result.permute(2, 0, 1, 3)


def _gather(cache: Tensor, cells: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The keys or values in `cells`: [n, kv_heads * head_dim]. Whole tokens are copied, which is quicker than heads."""
    flat = cache.view(-1, cache.shape[2] * cache.shape[3])
    if scale is None:
        return flat.index_select(0, cells)
    bits = flat.view(torch.uint8).index_select(0, cells)  # torch selects bytes, not FP8
    return bits.view(cache.dtype).to(dtype) * scale.to(dtype).repeat_interleave(cache.shape[3])


def _attend(
    q: Tensor,  # [n, heads, queries, head_dim]
    keys: Tensor,  # [n, heads, keys, head_dim]
    values: Tensor,  # like keys
    mask: Tensor | None,  # broadcasts to [n, heads, queries, keys], dtype of q
    scoring: Scoring,
    sinks: Tensor | None,  # broadcasts to [n, heads, queries, 1]
) -> Tensor:
    """Attention of every query over the keys that the mask leaves it: [n, heads, queries, head_dim]."""
    if scoring.soft_cap is None and sinks is None:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scoring.scale)
    scores = q.float() @ keys.float().transpose(-1, -2) * scoring.scale
    if scoring.soft_cap is not None:
        scores = scoring.soft_cap * torch.tanh(scores / scoring.soft_cap)
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1)
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
    mask = _mask(tile if prompts else 0, widest, window, dtype, metadata.block_tables.device)
    chunks = tuple(_chunk(metadata, row, starts[row], window, mask, block_size) for row in prompts)
    return Plan(groups, chunks)


def _similar(spans: dict[int, int], max_tokens: int) -> Iterator[list[int]]:
    """Cuts rows into groups of similar span (tokens to read): at most `max_tokens` each, with padding, or one row."""
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
    return DecodeGroup(
        tokens=torch.tensor(tokens, device=device),
        is_whole_step=len(tokens) == metadata.num_queries,
        cells=cells.view(-1),
        num_rows=len(rows),
        mask=mask,
    )


def _chunk(metadata: AttentionMetadata, row: int, start: int, window: int, mask: Tensor, block_size: int) -> Chunk:
    num_queries, context = metadata.host_query_lengths[row], metadata.host_context_lengths[row]
    before = context - num_queries  # the position of the first query
    first = max(0, before - window + 1)  # the first position that any query sees
    positions = torch.arange(first, context, device=metadata.block_tables.device).unsqueeze(0)
    cells = _cells(metadata.block_tables[row : row + 1], positions, block_size).view(-1)
    tiles = []
    for offset in range(0, num_queries, len(mask)):
        stop = min(offset + len(mask), num_queries)
        keys = slice(max(0, before + offset - window + 1) - first, before + stop - first)
        corner = mask[offset - stop :, keys.start - keys.stop :]
        tiles.append(Tile(slice(start + offset, start + stop), keys, corner))
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

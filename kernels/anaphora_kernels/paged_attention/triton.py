"""paged_attention in Triton: one kernel for decoding, for chunks of prompts, and for short chunks on long contexts.

    packed queries: heads of a KV head        the KV tiles of all rows, end to end (Q = queries)
    side by side, tiles of BLOCK_M            |---- row 0 ----|-- row 1 --|-------------- row 2 --------------|
                                              |   slice 0    |   slice 1    |   slice 2    |   slice 3    |
    token 0: heads 0 1 2 3 \
    token 1: heads 0 1 2 3  > tile 0          grid = query tiles x KV heads x slices: program (tile, head, slice)
    ...                    /                  walks the rows of its slice and attends with its tile of each

All slices have one length, found on the device by `plan_slices`, so that every program reads equally much whatever
the lengths of the rows (Stream-K, Osama et al. 2023, arXiv:2301.03598; for attention, Lean Attention, Sanovar et al.
2024, arXiv:2405.10480). The grid depends only on bounds that the host knows: nothing waits for the device, and a CUDA
graph can be replayed with other lengths. A row that lies within a slice is written at once; a row that is cut leaves
parts, which `merge` adds by the logarithms of their sums. Tiles of the same keys run side by side, head by head, and
meet in the L2 cache.

Rows that share a prefix (`SharedPrefixes`): one launch attends with the queries of a group, packed together, to its
prefix, another with each row to the rest, and `merge` adds both. Not with sliding windows.

FP8 caches are converted to the dtype of the query tile by tile: no product accumulates in FP8's short registers. Sums
run in float32 over a slice, and once more in float32 over slices. Needs compute capability 8.9.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from anaphora_kernels.paged_attention import AttentionMetadata
from anaphora_kernels.paged_attention.shared_prefixes import SharedPrefixes
from anaphora_kernels.paged_attention.triton_configs import MIN_TILES, Config, config, num_slices, tiles
from anaphora_kernels.paged_attention.triton_kernels import attend, merge, plan_slices

LOG2E = math.log2(math.e)
MERGED_AT_ONCE = 16  # parts


@dataclass(frozen=True)
class Shape:
    """What a plan depends on besides the step."""

    num_kv_heads: int
    group: int  # query heads per KV head
    head_dim: int
    block_size: int
    dtype: torch.dtype  # of the query
    sliding_window: int | None


@dataclass(frozen=True)
class Rows:
    """What one launch goes over: rows of the step, or groups of rows that share a prefix."""

    query_starts: Tensor
    context_lengths: Tensor
    num_rows: int
    max_query_length: int


@dataclass(frozen=True)
class Launch:
    """One launch of `attend`, the same in every layer of a step."""

    rows: Rows
    config: Config
    num_tiles: int  # of queries
    num_slices: int
    tile_starts: Tensor  # what plan_slices writes
    slice_firsts: Tensor
    slice_lasts: Tensor
    slice_tiles: Tensor
    partial_out: Tensor | None  # workspaces, used by one layer after another
    partial_lse: Tensor | None
    part_width: int


@dataclass(frozen=True)
class Plan:
    """What a step comes down to."""

    launches: tuple[Launch, ...]  # one for each size of query tile that the rows need
    prefix: Launch | None  # of the shared prefixes; then there is one launch besides


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
    if query.stride()[1:] != (query.shape[2], 1):
        query = query.contiguous()
    num_kv_heads = key_cache.shape[2]
    shape = Shape(
        num_kv_heads, query.shape[1] // num_kv_heads, query.shape[2], key_cache.shape[1], query.dtype, sliding_window
    )
    key = ("triton", shape)
    plan = metadata.plans.get(key)
    if plan is None:
        plan = metadata.plans[key] = make_plan(metadata, shape)

    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tensors = (query, key_cache, value_cache, out)
    options = {"key_scale": key_scale, "value_scale": value_scale, "sinks": sinks} | _scales(scale, soft_cap)
    shared = metadata.shared_prefixes if plan.prefix else None
    if plan.prefix:
        _attend(plan.prefix, shape, tensors, metadata, shared, is_prefix=True, **options)
    for launch in plan.launches:
        _attend(launch, shape, tensors, metadata, shared, is_prefix=False, **options)
        if launch.partial_out is not None:
            _merge(launch, plan.prefix, shape, out, shared, sinks)
    return out


# === the plan ===


def make_plan(metadata: AttentionMetadata, shape: Shape) -> Plan:
    """From what the host knows of a step; runs plan_slices."""
    rows = Rows(metadata.query_starts, metadata.context_lengths, metadata.num_rows, metadata.max_query_length)
    shared = metadata.shared_prefixes
    if shared is not None and metadata.is_decode_only and shape.sliding_window is None:
        groups = Rows(shared.group_starts, shared.lengths, len(shared.lengths), shared.max_group_size)
        prefix_tokens = groups.num_rows * shared.max_length
        prefix = _launch(groups, shape, (1, groups.max_query_length), prefix_tokens, members=len(shared.rows))
        tokens = sum(metadata.host_context_lengths)
        return Plan((_launch(rows, shape, (1, 1), tokens, shared=shared),), prefix)
    bounds = [(1, metadata.max_query_length)] if metadata.is_captured else _by_tile(metadata.host_query_lengths, shape)
    launches = []
    for shortest, longest in bounds:
        ours = [
            (length, context)
            for length, context in zip(metadata.host_query_lengths, metadata.host_context_lengths, strict=True)
            if shortest <= length <= longest
        ]
        num_tokens = sum(
            context if shape.sliding_window is None else min(context, shape.sliding_window + length)
            for length, context in ours
        )
        those = Rows(rows.query_starts, rows.context_lengths, rows.num_rows, max(length for length, _ in ours))
        launches.append(_launch(those, shape, (shortest, longest), num_tokens, num_busy_rows=len(ours)))
    return Plan(tuple(launches), None)


def _by_tile(query_lengths: tuple[int, ...], shape: Shape) -> list[tuple[int, int]]:
    """Ranges of query lengths, (shortest, longest), that fit each size of tile, of those that the step has."""
    ranges = []
    shortest = 1
    sizes = tiles(shape.head_dim, shape.dtype)
    for block_m in sizes:
        is_last = block_m == sizes[-1]
        longest = max(query_lengths, default=0) if is_last else block_m // shape.group
        if any(shortest <= length <= longest for length in query_lengths):
            ranges.append((shortest, longest))
        shortest = max(shortest, longest + 1)
    return ranges


def _launch(
    rows: Rows,
    shape: Shape,
    query_lengths: tuple[int, int],  # shortest and longest of the rows that this launch is for
    num_tokens: int,  # in all contexts: an upper bound
    *,
    num_busy_rows: int | None = None,
    shared: SharedPrefixes | None = None,  # for their rows
    members: int = 0,  # for the prefixes: all rows that share one
) -> Launch:
    device = rows.query_starts.device
    capability, num_sms = machine(device)
    packed = rows.max_query_length * shape.group
    sizes = tiles(shape.head_dim, shape.dtype)
    block_m = next((size for size in sizes if packed <= size), sizes[-1])
    chosen = config(capability, block_m, shape.head_dim, shape.dtype)
    num_tiles = -(-packed // block_m)
    busy = rows.num_rows if num_busy_rows is None else num_busy_rows
    slices = num_slices(
        num_tiles, shape.num_kv_heads, busy, num_tokens // chosen.block_n + busy, num_sms * chosen.programs_per_sm
    )

    work = torch.empty(rows.num_rows + 2 * slices + 2, dtype=torch.int32, device=device)
    tile_starts, firsts, lasts, slice_tiles = work.split([rows.num_rows + 1, slices, slices, 1])
    block_r = triton.next_power_of_2(max(rows.num_rows, 2))
    plan_slices[(1,)](
        rows.query_starts,
        rows.context_lengths,
        shared.row_groups if shared else None,
        shared.lengths if shared else None,
        tile_starts,
        firsts,
        lasts,
        slice_tiles,
        rows.num_rows,
        slices,
        shape.sliding_window or 0,
        *query_lengths,
        BLOCK_N=chosen.block_n,
        MIN_TILES=MIN_TILES,
        HAS_WINDOW=shape.sliding_window is not None,
        HAS_PREFIX=shared is not None,
        BLOCK_R=block_r,
        BLOCK_S=max(1, min(16, 8192 // block_r)),
        num_warps=4,
    )
    num_parts, part_width = (2 * slices if slices > 1 else 0), num_tiles * block_m  # see _place
    if members > 0:
        num_parts, part_width = slices, members * shape.group
    elif shared is not None:
        num_parts = slices + rows.num_rows
    partial_out = partial_lse = None
    if num_parts > 0:
        places = (num_parts, shape.num_kv_heads, part_width)
        partial_out = torch.empty((*places, _block_d(shape.head_dim)), dtype=torch.float32, device=device)
        partial_lse = torch.empty(places, dtype=torch.float32, device=device)
    slicing = (tile_starts, firsts, lasts, slice_tiles)
    return Launch(rows, chosen, num_tiles, slices, *slicing, partial_out, partial_lse, part_width)


@cache
def machine(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability and number of multiprocessors; where Triton interprets on a CPU: of a very small H100."""
    if device.type != "cuda":
        return (9, 0), 4
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


# === launches ===


def _attend(
    launch: Launch,
    shape: Shape,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    metadata: AttentionMetadata,
    shared: SharedPrefixes | None,
    *,
    is_prefix: bool,
    **options: Any,
) -> None:
    query, key_cache, value_cache, out = tensors
    attend[(launch.num_tiles, shape.num_kv_heads, launch.num_slices)](
        query,
        key_cache,
        value_cache,
        out,
        launch.partial_out,
        launch.partial_lse,
        metadata.block_tables,
        launch.rows.query_starts,
        launch.rows.context_lengths,
        shared.rows if shared and is_prefix else None,
        shared.row_groups if shared and not is_prefix else None,
        shared.lengths if shared and not is_prefix else None,
        launch.tile_starts,
        launch.slice_firsts,
        launch.slice_lasts,
        launch.slice_tiles,
        window=shape.sliding_window or 0,
        num_rows=launch.rows.num_rows,
        part_width=launch.part_width,
        query_stride=query.stride(0),
        out_stride=out.stride(0),
        block_stride=key_cache.stride(0),
        token_stride=key_cache.stride(1),
        table_stride=metadata.block_tables.stride(0),
        **constants(shape, launch.config),
        **options,
        IS_PREFIX=is_prefix,
        HAS_PREFIX=shared is not None and not is_prefix,
        num_warps=launch.config.num_warps,
        num_stages=launch.config.num_stages,
    )


def _merge(
    launch: Launch,
    prefix: Launch | None,
    shape: Shape,
    out: Tensor,
    shared: SharedPrefixes | None,
    sinks: Tensor | None,
) -> None:
    merge[(launch.rows.max_query_length * shape.group, shape.num_kv_heads, launch.rows.num_rows)](
        out,
        launch.partial_out,
        launch.partial_lse,
        launch.rows.query_starts,
        launch.tile_starts,
        launch.slice_tiles,
        prefix.partial_out if prefix else None,
        prefix.partial_lse if prefix else None,
        prefix.rows.query_starts if prefix else None,
        prefix.tile_starts if prefix else None,
        prefix.slice_tiles if prefix else None,
        shared.row_groups if shared else None,
        shared.row_members if shared else None,
        sinks,
        out.stride(0),
        launch.part_width,
        prefix.part_width if prefix else 0,
        GROUP=shape.group,
        HEAD_DIM=shape.head_dim,
        BLOCK_D=_block_d(shape.head_dim),
        HAS_PREFIX=prefix is not None,
        BLOCK_S=MERGED_AT_ONCE,
        num_warps=8 if shape.head_dim > 128 else 4,
    )


def constants(shape: Shape, chosen: Config) -> dict[str, Any]:
    """The compile-time constants of `attend` that a shape and a config give."""
    return {
        "GROUP": shape.group,
        "HEAD_DIM": shape.head_dim,
        "BLOCK_D": _block_d(shape.head_dim),
        "PAGE": shape.block_size,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "HAS_WINDOW": shape.sliding_window is not None,
        "PRECISION": "ieee" if shape.dtype == torch.float32 else "tf32",
    }


def _scales(scale: float, soft_cap: float | None) -> dict[str, Any]:
    if soft_cap is None:
        return {"qk_scale": scale * LOG2E, "cap": 0.0, "HAS_CAP": False}
    return {"qk_scale": 2 * LOG2E * scale / soft_cap, "cap": soft_cap * LOG2E, "HAS_CAP": True}


def _block_d(head_dim: int) -> int:
    return max(16, int(triton.next_power_of_2(head_dim)))

"""The device code of paged_attention in Triton. `triton.py` launches it; its docstring has the picture.

Logits are kept in units of log2(e), so that exponentials are exp2; so are the `lse` of partial results.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))

# Triton compiles anew for an integer that is 1 or a multiple of 16, and for a pointer that is aligned to 16 bytes. What
# differs from step to step must not be told apart: a kernel would be compiled while requests wait.
BY_STEP = (
    *("num_rows", "num_slices", "shortest", "longest", "table_stride", "part_width", "prefix_part_width"),
    *("tile_starts", "slice_firsts", "slice_lasts", "slice_tiles", "prefix_tile_starts", "prefix_slice_tiles"),
)


@triton.jit(do_not_specialize=BY_STEP)
def plan_slices(
    query_starts,  # [num_rows + 1] int32
    context_lengths,  # [num_rows] int32
    row_groups,  # [num_rows] int32, prefix_lengths [groups] int32: only if HAS_PREFIX
    prefix_lengths,
    tile_starts,  # [num_rows + 1] int32; written: KV tiles of all rows before
    slice_firsts,  # [num_slices] int32; written: the row of the slice's first tile
    slice_lasts,  # [num_slices] int32; written: the row of its last tile
    slice_tiles,  # [1] int32; written: tiles in a slice
    num_rows,
    num_slices,
    window,
    shortest,  # rows with fewer or more queries have no tiles: another launch's
    longest,
    BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    BLOCK_R: tl.constexpr,  # >= num_rows
    BLOCK_S: tl.constexpr,
):
    """Cuts the KV tiles of all rows, laid end to end, into slices of one length. One program."""
    row = tl.arange(0, BLOCK_R)
    is_row = row < num_rows
    num_queries = tl.load(query_starts + row + 1, mask=is_row, other=0) - tl.load(
        query_starts + row, mask=is_row, other=0
    )
    context = tl.load(context_lengths + row, mask=is_row, other=0)
    begin = row * 0
    if HAS_WINDOW:
        begin = tl.maximum(context - num_queries - window + 1, 0)
    if HAS_PREFIX:
        group = tl.load(row_groups + row, mask=is_row, other=-1)
        begin = tl.load(prefix_lengths + group, mask=group >= 0, other=0)
    is_ours = (num_queries >= shortest) & (num_queries <= longest) & (context > 0)
    tiles = tl.where(is_ours, (context + BLOCK_N - 1) // BLOCK_N - begin // BLOCK_N, 0)
    ends = tl.cumsum(tiles, 0)
    tl.store(tile_starts + row + 1, ends, mask=is_row)
    tl.store(tile_starts, 0)
    total = tl.sum(tiles, 0)
    length = tl.maximum((total + num_slices - 1) // num_slices, MIN_TILES)
    tl.store(slice_tiles, length)
    for first in range(0, num_slices, BLOCK_S):
        slices = first + tl.arange(0, BLOCK_S)
        is_slice = slices < num_slices
        start = slices * length
        stop = tl.minimum(start + length, total) - 1
        done = is_row[None, :] & (ends[None, :] <= start[:, None])
        tl.store(slice_firsts + slices, tl.sum(done.to(tl.int32), 1), mask=is_slice)
        done = is_row[None, :] & (ends[None, :] <= stop[:, None])
        tl.store(slice_lasts + slices, tl.sum(done.to(tl.int32), 1), mask=is_slice)


@triton.jit(do_not_specialize=BY_STEP)
def attend(
    query,  # [T, heads, HEAD_DIM]
    key_cache,  # [blocks, PAGE, kv_heads, HEAD_DIM]
    value_cache,
    out,  # [T, heads, HEAD_DIM]
    partial_out,  # [parts, kv_heads, part_width, BLOCK_D] float32, see _place; None if no row can be cut
    partial_lse,  # [parts, kv_heads, part_width] float32
    block_tables,  # [rows, max_blocks] int32
    query_starts,  # [num_rows + 1] int32
    context_lengths,  # [num_rows] int32
    members,  # [n] int32: IS_PREFIX: the tokens of the groups, which take the place of rows
    row_groups,  # [num_rows] int32, prefix_lengths [groups] int32: HAS_PREFIX
    prefix_lengths,
    tile_starts,  # … and below: see plan_slices
    slice_firsts,
    slice_lasts,
    slice_tiles,
    key_scale,  # [kv_heads] float32, or None
    value_scale,
    sinks,  # [heads], or None
    qk_scale,  # soft_cap is None: scale * log2(e); else 2 * log2(e) * scale / soft_cap
    cap,  # soft_cap * log2(e)
    window,
    num_rows,
    part_width,
    query_stride,
    out_stride,
    block_stride,
    token_stride,
    table_stride,
    GROUP: tl.constexpr,  # query heads per KV head
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= HEAD_DIM, a power of two
    PAGE: tl.constexpr,  # tokens in a block of the pool
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    IS_PREFIX: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    PRECISION: tl.constexpr,  # of the products
):
    """One query tile of every row, one KV head, one slice of the keys."""
    num_tiles = tl.num_programs(0)
    tile = num_tiles - 1 - tl.program_id(0)  # the last queries see most keys: they go first
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(slice_tiles)
    slice_start = part * length
    slice_stop = tl.minimum(slice_start + length, tl.load(tile_starts + num_rows))
    if slice_start >= slice_stop:
        return

    packed = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # a query tile holds GROUP heads of each of its tokens
    index = packed // GROUP
    head = kv_head * GROUP + packed % GROUP
    d = tl.arange(0, BLOCK_D)
    is_dim = d < HEAD_DIM
    scale = qk_scale
    if key_scale is not None:
        scale = qk_scale * tl.load(key_scale + kv_head)
    keys = key_cache + kv_head * HEAD_DIM
    values = value_cache + kv_head * HEAD_DIM

    for row in range(tl.load(slice_firsts + part), tl.load(slice_lasts + part) + 1):
        row_start = tl.load(tile_starts + row)
        row_stop = tl.load(tile_starts + row + 1)
        first_query = tl.load(query_starts + row)
        num_queries = tl.load(query_starts + row + 1) - first_query
        if (row_stop > row_start) & (tile * BLOCK_M < num_queries * GROUP):
            context = tl.load(context_lengths + row)
            is_query = index < num_queries
            token = first_query + index
            table = row
            if IS_PREFIX:
                table = tl.load(members + first_query)
                token = tl.load(members + token, mask=is_query, other=0)
            is_element = is_query[:, None] & is_dim[None, :]
            offsets = head[:, None] * HEAD_DIM + d[None, :]
            q = tl.load(query + token.to(tl.int64)[:, None] * query_stride + offsets, mask=is_element, other=0.0)

            # The queries of the tile see positions up to lasts, which grow from last_low to last_high.
            before = context - num_queries
            last_low = before + tile * BLOCK_M // GROUP
            last_high = before + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, num_queries - 1)
            lasts = before + index
            if IS_PREFIX:
                last_low = context - 1
                last_high = context - 1
                lasts = index * 0 + context - 1
            begin = 0  # of the row
            first_low = 0  # of the tile
            first_high = 0
            firsts = lasts * 0
            if HAS_WINDOW:
                begin = tl.maximum(before - window + 1, 0)
                first_low = tl.maximum(last_low - window + 1, 0)
                first_high = tl.maximum(last_high - window + 1, 0)
                firsts = lasts - window + 1
            if HAS_PREFIX:
                group = tl.load(row_groups + row)
                begin = tl.load(prefix_lengths + group, mask=group >= 0, other=0)
                first_low = begin
                first_high = begin
                firsts += begin

            #   [low                [full_low                  full_high)               high)   KV tiles
            #    some keys too old   all keys seen by all       some keys too new
            shift = begin // BLOCK_N - row_start
            low = tl.maximum(tl.maximum(slice_start, row_start) + shift, first_low // BLOCK_N)
            high = tl.minimum(tl.minimum(slice_stop, row_stop) + shift, last_high // BLOCK_N + 1)
            full_low = tl.minimum(tl.maximum((first_high + BLOCK_N - 1) // BLOCK_N, low), high)
            full_high = tl.maximum(tl.minimum((last_low + 1) // BLOCK_N, high), full_low)

            maximum = tl.full([BLOCK_M], NEGATIVE_INFINITY, tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            pages = block_tables + tl.cast(table, tl.int64) * table_stride
            if HAS_WINDOW or HAS_PREFIX:
                acc, maximum, total = _accumulate(
                    acc, maximum, total, q, keys, values, pages, low, full_low, firsts, lasts, first_low, context,
                    scale, cap, block_stride, token_stride,
                    HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, True, True, HAS_CAP, PRECISION,
                )  # fmt: skip
            acc, maximum, total = _accumulate(
                acc, maximum, total, q, keys, values, pages, full_low, full_high, firsts, lasts, first_low, context,
                scale, cap, block_stride, token_stride,
                HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, False, False, HAS_CAP, PRECISION,
            )  # fmt: skip
            acc, maximum, total = _accumulate(
                acc, maximum, total, q, keys, values, pages, full_high, high, firsts, lasts, first_low, context,
                scale, cap, block_stride, token_stride,
                HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, True, HAS_WINDOW or HAS_PREFIX, HAS_CAP, PRECISION,
            )  # fmt: skip
            if value_scale is not None:
                acc = acc * tl.load(value_scale + kv_head)

            is_whole = (slice_start <= row_start) & (slice_stop >= row_stop)
            is_part = IS_PREFIX or HAS_PREFIX or not is_whole
            if partial_out is not None:  # else there is one slice, and every row is whole: nothing else compiles
                if is_part:
                    place = _place(
                        part, row, slice_start, row_start, first_query * GROUP, packed, kv_head, part_width,
                        IS_PREFIX, HAS_PREFIX,
                    )  # fmt: skip
                    lse = tl.where(total > 0, maximum + tl.log2(total), NEGATIVE_INFINITY)
                    result = acc / tl.where(total > 0, total, 1.0)[:, None]
                    tl.store(partial_lse + place, lse, mask=is_query)
                    tl.store(partial_out + place[:, None] * BLOCK_D + d[None, :], result, mask=is_query[:, None])
            if not is_part:
                if sinks is not None:
                    sink = tl.load(sinks + head).to(tl.float32) * LOG2E
                    higher = tl.maximum(maximum, sink)
                    weight = tl.exp2(maximum - higher)
                    total = total * weight + tl.exp2(sink - higher)
                    acc = acc * weight[:, None]
                result = acc / tl.where(total > 0, total, 1.0)[:, None]
                target = out + token.to(tl.int64)[:, None] * out_stride + offsets
                tl.store(target, result.to(out.dtype.element_ty), mask=is_element)


@triton.jit
def _accumulate(
    acc, maximum, total, q, keys, values, pages, low, high, firsts, lasts, first_cell, context,
    scale, cap, block_stride, token_stride,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_MASKED: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao 2022, arXiv:2205.14135) over KV tiles."""
    d = tl.arange(0, BLOCK_D)
    for tile in range(low, high):
        position = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        if IS_MASKED:  # cells outside of [first_cell, context) may hold NaN
            is_cell = (position >= first_cell) & (position < context)
            page = tl.load(pages + position // PAGE, mask=is_cell, other=0)
        else:
            page = tl.load(pages + position // PAGE)
        # 64 bits: a pool of 200,000-token sessions has more than 2^31 elements.
        cell = page.to(tl.int64) * block_stride + (position % PAGE) * token_stride
        offsets = cell[:, None] + d[None, :]
        if IS_MASKED:
            mask = is_cell[:, None] & (d < HEAD_DIM)[None, :]
            k = tl.load(keys + offsets, mask=mask, other=0.0)
            v = tl.load(values + offsets, mask=mask, other=0.0)
        elif HEAD_DIM == BLOCK_D:
            k = tl.load(keys + offsets)
            v = tl.load(values + offsets)
        else:
            k = tl.load(keys + offsets, mask=(d < HEAD_DIM)[None, :], other=0.0)
            v = tl.load(values + offsets, mask=(d < HEAD_DIM)[None, :], other=0.0)

        logits = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION) * scale
        if HAS_CAP:  # cap * tanh(x), with 2 log2(e) x at hand
            logits = cap - 2 * cap / (1 + tl.exp2(logits))
        if IS_MASKED:
            is_seen = position[None, :] <= lasts[:, None]
            if HAS_LEFT:
                is_seen = is_seen & (position[None, :] >= firsts[:, None])
            logits = tl.where(is_seen, logits, NEGATIVE_INFINITY)
        higher = tl.maximum(maximum, tl.max(logits, 1))
        shift = higher
        if IS_MASKED:  # a query that has seen nothing yet
            shift = tl.where(higher == NEGATIVE_INFINITY, 0.0, higher)
        weights = tl.exp2(logits - shift[:, None])
        decay = tl.exp2(maximum - shift)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * decay[:, None], input_precision=PRECISION)
        maximum = higher
    return acc, maximum, total


@triton.jit
def _place(
    part, row, slice_start, row_start, first, packed, kv_head, part_width,
    IS_PREFIX: tl.constexpr, HAS_PREFIX: tl.constexpr,
):  # fmt: skip
    """Where a slice puts its part of a packed query (`first` is that of the row's, counted over all rows).

    A slice cuts at most two rows: the one that it begins in, and the one that it ends in. With shared prefixes, whole
    rows are partial results too: of a step's rows, slice and row together number them, because from one to the next at
    least one of the two grows; of a group's prefix, which may have many tiles, each query has a place in every slice.
    """
    if IS_PREFIX:
        packed = packed + first
    elif HAS_PREFIX:
        part = part + row
    else:
        part = 2 * part + (row_start > slice_start).to(tl.int32)
    return (part * tl.num_programs(1) + kv_head).to(tl.int64) * part_width + packed


@triton.jit(do_not_specialize=BY_STEP)
def merge(
    out,  # [T, heads, HEAD_DIM]
    partial_out,  # see attend
    partial_lse,
    query_starts,
    tile_starts,
    slice_tiles,
    prefix_out,  # … of the prefixes: HAS_PREFIX
    prefix_lse,
    prefix_query_starts,
    prefix_tile_starts,
    prefix_slice_tiles,
    row_groups,
    row_members,
    sinks,
    out_stride,
    part_width,
    prefix_part_width,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One query and head of a row that was computed in parts."""
    packed = tl.program_id(0)
    kv_head = tl.program_id(1)
    row = tl.program_id(2)
    row_start = tl.load(tile_starts + row)
    row_stop = tl.load(tile_starts + row + 1)
    first_query = tl.load(query_starts + row)
    num_queries = tl.load(query_starts + row + 1) - first_query
    length = tl.load(slice_tiles)
    is_cut = row_start // length != (row_stop - 1) // length
    if (row_stop == row_start) | (packed >= num_queries * GROUP) | ((not HAS_PREFIX) & (not is_cut)):
        return

    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    maximum = tl.full([], NEGATIVE_INFINITY, tl.float32)
    total = tl.zeros([], tl.float32)
    acc, maximum, total = _merge_parts(
        acc, maximum, total, partial_out, partial_lse, row, row_start, row_stop, length, first_query * GROUP, packed,
        kv_head, part_width, BLOCK_D, False, HAS_PREFIX, BLOCK_S,
    )  # fmt: skip
    if HAS_PREFIX:
        group = tl.load(row_groups + row)
        if group >= 0:
            member = tl.load(prefix_query_starts + group) + tl.load(row_members + row)
            acc, maximum, total = _merge_parts(
                acc, maximum, total, prefix_out, prefix_lse, group,
                tl.load(prefix_tile_starts + group), tl.load(prefix_tile_starts + group + 1),
                tl.load(prefix_slice_tiles), member * GROUP, packed, kv_head, prefix_part_width,
                BLOCK_D, True, False, BLOCK_S,
            )  # fmt: skip
    head = kv_head * GROUP + packed % GROUP
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        higher = tl.maximum(maximum, sink)
        weight = tl.exp2(maximum - higher)
        total = total * weight + tl.exp2(sink - higher)
        acc = acc * weight
    token = (first_query + packed // GROUP).to(tl.int64)
    target = out + token * out_stride + head * HEAD_DIM + d
    tl.store(target, (acc / total).to(out.dtype.element_ty), mask=d < HEAD_DIM)


@triton.jit
def _merge_parts(
    acc, maximum, total, partial_out, partial_lse, row, row_start, row_stop, length, first, packed, kv_head, part_width,
    BLOCK_D: tl.constexpr, IS_PREFIX: tl.constexpr, HAS_PREFIX: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a row, weighted by the sums of their exponentials."""
    d = tl.arange(0, BLOCK_D)
    last = (row_stop - 1) // length
    for start in range(row_start // length, last + 1, BLOCK_S):
        part = start + tl.arange(0, BLOCK_S)
        is_part = part <= last
        place = _place(
            part, row, part * length, row_start, first, packed, kv_head, part_width, IS_PREFIX, HAS_PREFIX
        )  # fmt: skip
        lse = tl.load(partial_lse + place, mask=is_part, other=NEGATIVE_INFINITY)
        parts = tl.load(partial_out + place[:, None] * BLOCK_D + d[None, :], mask=is_part[:, None], other=0.0)
        higher = tl.maximum(maximum, tl.max(lse, 0))
        shift = tl.where(higher == NEGATIVE_INFINITY, 0.0, higher)
        weights = tl.exp2(lse - shift)
        decay = tl.exp2(maximum - shift)
        total = total * decay + tl.sum(weights, 0)
        acc = acc * decay + tl.sum(parts * weights[:, None], 0)
        maximum = higher
    return acc, maximum, total

"""Tile sizes of paged_attention in Triton, by architecture; and how the work of a step is divided. Plain Python.

A query tile packs the query heads of a KV head: a decoding row of Llama-3.1-8B fills 4 of its rows. Rows of a step are
launched by the smallest tile that holds all of their queries, or in as many of the largest as they need.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """How a kernel is compiled."""

    block_m: int  # rows of a query tile: queries * heads of a KV head
    block_n: int  # tokens of a KV tile
    num_warps: int
    num_stages: int  # KV tiles in flight and in use
    programs_per_sm: int  # that fit at once, by shared memory and registers


# (architecture, block_m, head_dim rounded up to 64, 128 or 256) -> block_n, num_warps, num_stages, programs_per_sm
# Keys are found through the block table, a stage earlier: with mma (block_m = 16), of 5 stages 2 hold keys and values.
_HALF: dict[tuple[int, int, int], tuple[int, int, int, int]] = {
    (80, 16, 64): (64, 4, 5, 3),
    (80, 16, 128): (64, 4, 5, 2),
    (80, 16, 256): (32, 4, 5, 2),
    (80, 64, 64): (64, 4, 3, 2),
    (80, 64, 128): (64, 4, 3, 1),
    (80, 64, 256): (32, 8, 3, 1),
    (80, 128, 64): (64, 4, 3, 2),
    (80, 128, 128): (64, 8, 3, 1),
    (90, 16, 64): (128, 4, 5, 3),
    (90, 16, 128): (64, 4, 5, 2),
    (90, 16, 256): (32, 4, 5, 2),
    (90, 64, 64): (64, 4, 3, 2),
    (90, 64, 128): (64, 4, 3, 2),
    (90, 64, 256): (32, 8, 3, 1),
    (90, 128, 64): (128, 8, 3, 1),
    (90, 128, 128): (128, 8, 2, 1),
}
_SINGLE = {16: (32, 4, 2, 2), 32: (16, 4, 2, 2)}  # float32, by block_m

MIN_TILES = 2  # of a slice: below this a second slice costs more than it saves
MAX_WAVES = 4  # of programs, up to which slicing is considered
ENOUGH = 1.03  # fewer slices win when they are this near to the best


def tiles(head_dim: int, dtype: torch.dtype) -> tuple[int, ...]:
    """The sizes of query tiles (block_m), smallest first."""
    if dtype.itemsize == 4:
        return 16, 32  # products in float32 run on the plain cores
    return (16, 64, 128) if head_dim <= 128 else (16, 64)  # 128 x 256 results would not fit into the registers


def config(capability: tuple[int, int], block_m: int, head_dim: int, dtype: torch.dtype) -> Config:
    """For a tile of `tiles(head_dim, dtype)`; `capability` is at least (8, 0)."""
    if dtype.itemsize == 4:
        return Config(block_m, *_SINGLE[block_m])
    # Blackwell (10, 0) and later take Hopper's tiles, Ada (8, 9) Ampere's.
    architecture = 90 if capability >= (9, 0) else 80
    rounded = next(size for size in (64, 128, 256) if head_dim <= size)
    return Config(block_m, *_HALF[architecture, block_m, rounded])


def num_slices(num_tiles: int, num_kv_heads: int, num_rows: int, num_kv_tiles: int, slots: int) -> int:
    """Into how many slices the KV tiles of a launch are cut, given how many programs run at once (`slots`).

    The time of a launch is ceil(programs / slots) waves of a slice each: the least of that, and of those nearly as
    good the fewest slices. 8 heads on 264 slots: 33 slices in one wave. 7 query tiles of 8 heads on 132 slots: 7
    slices in 2.97 waves. Several prompts at once get about three waves, which even out their triangles.
    """
    per_slice = num_tiles * num_kv_heads
    most = max(1, min(num_kv_tiles // MIN_TILES, MAX_WAVES * slots // per_slice))
    fewest = min(num_rows, -(-3 * slots // per_slice), most) if num_tiles > 1 else 1
    costs = {count: -(-per_slice * count // slots) / count for count in range(fewest, most + 1)}
    good = min(costs.values()) * ENOUGH
    return next(count for count, cost in costs.items() if cost <= good)

"""paged_attention in Triton against the reference: awkward batches, all options, NaN wherever nothing may be read."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from anaphora_kernels import AttentionMetadata, SharedPrefixes
from anaphora_kernels.paged_attention import reference, triton
from anaphora_kernels.testing import TRITON_DEVICE, assert_close

FP8 = torch.float8_e4m3fn

# name: [(queries, context)] per row
BATCHES = {
    "one token": [(1, 1)],
    "whole prompt": [(7, 7)],
    "block boundary": [(1, 16), (16, 16), (1, 17), (17, 32), (2, 33)],
    "decode": [(1, length) for length in (1, 2, 15, 16, 63, 64, 65, 300, 31, 129)],
    "mixed": [(1, 20), (9, 130), (1, 1), (3, 3), (1, 200), (50, 133)],
    "short on long": [(5, 1200)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window 1": {"sliding_window": 1},
    "window 50": {"sliding_window": 50},
    "cap": {"soft_cap": 3.0},
    "sinks": {"sinks": True},
    "all": {"sliding_window": 70, "soft_cap": 5.0, "sinks": True},
}


def check(
    rows: list[tuple[int, int]],
    heads: tuple[int, int, int] = (6, 2, 16),
    *,
    dtype: torch.dtype = torch.float16,
    block_size: int = 16,
    shared: list[list[int]] | None = None,
    shared_blocks: int = 0,
    padding: int = 0,
    sinks: bool = False,
    in_fp8: bool = False,
    num_layers: int = 1,
    **options: Any,
) -> None:
    """Random keys in scattered blocks of a pool full of NaN; `shared` lists rows whose first blocks are the same."""
    num_heads, num_kv_heads, head_dim = heads
    random = torch.Generator().manual_seed(len(rows) * 1000 + rows[0][1])
    queries, contexts = [row[0] for row in rows], [row[1] for row in rows]
    needed = [-(-context // block_size) for context in contexts]
    num_blocks = sum(needed) + 3
    shuffled = torch.randperm(num_blocks, generator=random).tolist()
    tables = torch.full((len(rows) + padding, max(needed) + 1), 1 << 30, dtype=torch.int32)  # unused: far out of range
    for row, count in enumerate(needed):
        tables[row, :count] = torch.tensor([shuffled.pop() for _ in range(count)], dtype=torch.int32)
    for group in shared or []:
        tables[group, :shared_blocks] = tables[group[0], :shared_blocks].clone()

    caches = torch.full((2, num_blocks, block_size, num_kv_heads, head_dim), float("nan"))
    for row, context in enumerate(contexts):
        for position in range(context):
            cell = caches[:, tables[row, position // block_size], position % block_size]
            cell.copy_(torch.randn(cell.shape, generator=random))
    scales = {}
    if in_fp8:
        scales = dict(
            zip(("key_scale", "value_scale"), torch.rand(2, num_kv_heads, generator=random) + 0.5, strict=True)
        )
    caches = caches.to(FP8 if in_fp8 else dtype).to(TRITON_DEVICE)
    scales = {name: scale.to(TRITON_DEVICE) for name, scale in scales.items()}
    host_tables, tables = tables.numpy(), tables.to(TRITON_DEVICE)

    num_queries = sum(queries)
    query = (
        (torch.randn(num_queries + padding, num_heads + 2, head_dim, generator=random) * 2)
        .to(dtype)
        .to(TRITON_DEVICE)[:, 1:-1]
    )
    metadata = AttentionMetadata.build(tables[: len(rows)], queries, contexts)
    options["sinks"] = torch.randn(num_heads, generator=random).to(dtype).to(TRITON_DEVICE) if sinks else None
    scale = head_dim**-0.5
    expected = reference.paged_attention(query[:num_queries], *caches, metadata, scale, **options, **scales)

    if padding:  # as in a graph: the host knows bounds, and rows at the end are empty
        bounds = (max(queries),) * (len(rows) + padding), (max(contexts) + 100,) * (len(rows) + padding)
        metadata = AttentionMetadata(
            tables,
            torch.nn.functional.pad(metadata.query_starts, (0, padding), value=num_queries),
            torch.nn.functional.pad(metadata.context_lengths, (0, padding)),
            *bounds,
            num_queries=num_queries + padding,
            max_query_length=max(queries),
            max_context_length=max(contexts) + 100,
            is_captured=True,
        )
    if shared:
        found = SharedPrefixes.find(host_tables, np.array(contexts), block_size, min_saved_tokens=1)
        assert found is not None
        assert found.lengths.tolist() == [shared_blocks * block_size] * len(shared)
        metadata = replace(metadata, shared_prefixes=found.to(TRITON_DEVICE))
    for _ in range(num_layers):
        actual = triton.paged_attention(query, *caches, metadata, scale, **options, **scales)
        assert_close(actual[:num_queries], expected)


@pytest.mark.parametrize("batch", BATCHES)
def test_batches(batch: str) -> None:
    check(BATCHES[batch])


def test_float32() -> None:
    check([(1, 70), (13, 40)], dtype=torch.float32)


def test_the_second_layer_uses_what_the_first_has_planned() -> None:
    check([(1, 20), (20, 70)], num_layers=2)


def test_one_row_of_3000_beside_31_of_1() -> None:
    check([(1, 1)] * 15 + [(3000, 3000)] + [(1, 1)] * 16, (1, 1, 16), block_size=128)


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str) -> None:
    check(BATCHES["mixed"], **OPTIONS[options])
    check(BATCHES["decode"], **OPTIONS[options], in_fp8=True)


@pytest.mark.parametrize("heads", [(1, 1, 64), (4, 4, 80), (32, 1, 128), (12, 2, 256)])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_heads_and_block_sizes(heads: tuple[int, int, int], block_size: int) -> None:
    check([(1, 140), (6, 35), (1, 3)], heads, block_size=block_size)


@pytest.mark.parametrize("rows", [BATCHES["decode"], [(1, 70), (5, 90), (20, 20)], [(46, 130), (1, 3)]])
def test_a_captured_step_reads_the_lengths_on_the_device(rows: list[tuple[int, int]]) -> None:
    check(rows, padding=2)
    check(rows, padding=2, **OPTIONS["all"])


@pytest.mark.parametrize("options", ["plain", "sinks", "cap"])
@pytest.mark.parametrize("in_fp8", [False, True])
def test_shared_prefixes(options: str, *, in_fp8: bool) -> None:
    rows = [(1, length) for length in (97, 300, 120, 30, 98, 133, 1)]
    check(rows, shared=[[0, 1, 5], [2, 4]], shared_blocks=6, in_fp8=in_fp8, **OPTIONS[options])


def test_a_prefix_that_many_rows_share_takes_several_tiles() -> None:
    check([(1, 140 + row) for row in range(10)], (16, 1, 16), shared=[list(range(10))], shared_blocks=8)


def test_sliding_windows_ignore_shared_prefixes() -> None:
    check([(1, 97), (1, 100)], shared=[[0, 1]], shared_blocks=6, sliding_window=20)


@pytest.mark.skipif(TRITON_DEVICE.type == "cpu", reason="the interpreter has no products of bfloat16")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("in_fp8", [False, True])
def test_bfloat16_in_the_shapes_of_a_model(batch: str, *, in_fp8: bool) -> None:
    check(BATCHES[batch], (32, 8, 128), dtype=torch.bfloat16, in_fp8=in_fp8)

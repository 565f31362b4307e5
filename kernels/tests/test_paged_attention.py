"""Every implementation of paged_attention against a dense softmax written here, over awkward shapes."""

from dataclasses import dataclass

import pytest
import torch
from anaphora_kernels import AttentionMetadata, kv_indices, kv_store, paged_attention
from anaphora_kernels.paged_attention import sdpa
from anaphora_kernels.testing import assert_close, implementations


@dataclass(frozen=True)
class Heads:
    num_heads: int
    num_kv_heads: int
    head_dim: int


GQA = Heads(6, 2, 16)

# name: [(queries, context)] per row
BATCHES = {
    "one token": [(1, 1)],
    "whole prompt": [(7, 7)],
    "chunk of a prompt": [(5, 40)],
    "last token of a block": [(1, 16), (16, 16), (1, 32)],
    "first token of a block": [(1, 17), (17, 17), (2, 33)],
    "decode, one length": [(1, 24)] * 5,
    "decode, all lengths": [(1, length) for length in (1, 2, 15, 16, 17, 90, 91, 300, 31, 500)],
    "mixed, any order": [(1, 20), (9, 30), (1, 1), (3, 3), (1, 200), (20, 33)],
    "one row of 300 beside 31 of 1": [(1, 1 + 3 * row) for row in range(13)] + [(300, 300)] + [(1, 64)] * 18,
    "tiles": [(300, 700), (129, 129), (128, 256), (1, 300)],
}
OPTIONS = {
    "plain": {},
    "window 1": {"sliding_window": 1},
    "window 16": {"sliding_window": 16},
    "window 100": {"sliding_window": 100},
    "soft cap": {"soft_cap": 3.0},
    "sinks": {"sinks": True},
    "all": {"sliding_window": 20, "soft_cap": 5.0, "sinks": True},
}


def check(
    rows: list[tuple[int, int]],
    heads: Heads = GQA,
    *,
    implementation: str,
    dtype: torch.dtype = torch.float32,
    block_size: int = 16,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: bool = False,
) -> None:
    """Stores a random history per row in scattered blocks of a pool full of NaN, and compares with dense attention."""
    random = torch.Generator().manual_seed(len(rows) * 1000 + rows[0][1])

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    queries, contexts = [row[0] for row in rows], [row[1] for row in rows]
    needed = [-(-context // block_size) for context in contexts]
    num_blocks = sum(needed) + 3
    shuffled = torch.randperm(num_blocks, generator=random).tolist()
    tables = torch.full((len(rows), max(needed) + 1), num_blocks + 7, dtype=torch.int32)  # unused entries: out of range
    for row, count in enumerate(needed):
        tables[row, :count] = torch.tensor([shuffled.pop() for _ in range(count)], dtype=torch.int32)

    shape = (num_blocks, block_size, heads.num_kv_heads, heads.head_dim)
    key_cache, value_cache = torch.full((2, *shape), float("nan"), dtype=dtype)
    keys, values = ([normal(context, heads.num_kv_heads, heads.head_dim) for context in contexts] for _ in range(2))
    token_rows = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(contexts))
    positions = torch.cat([torch.arange(context) for context in contexts])
    cells = kv_indices(tables, token_rows, positions, block_size)
    kv_store(torch.cat(keys), torch.cat(values), key_cache, value_cache, cells)

    query = normal(sum(queries), heads.num_heads, heads.head_dim) * 2
    sink = normal(heads.num_heads) if sinks else None
    scale = heads.head_dim**-0.5
    metadata = AttentionMetadata.build(tables, queries, contexts)
    arguments = {"sliding_window": sliding_window, "soft_cap": soft_cap, "sinks": sink}
    expected = torch.cat(
        [
            dense(query_row, *history, scale, **arguments)
            for query_row, *history in zip(query.split(queries), keys, values, strict=True)
        ]
    )
    for _ in range(2):  # the second time with what the first has planned
        actual = paged_attention(
            query, key_cache, value_cache, metadata, scale, implementation=implementation, **arguments
        )
        assert_close(actual, expected)


def dense(
    query: torch.Tensor,  # [Q, heads, head_dim]
    keys: torch.Tensor,  # [C, kv_heads, head_dim]
    values: torch.Tensor,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention by the book, one query and one head at a time, in float64."""
    num_queries, num_heads, _ = query.shape
    group = num_heads // keys.shape[1]
    out = torch.empty(query.shape, dtype=torch.float64)
    for i in range(num_queries):
        last = len(keys) - num_queries + i
        first = 0 if sliding_window is None else max(0, last - sliding_window + 1)
        for head in range(num_heads):
            scores = keys[first : last + 1, head // group].double() @ query[i, head].double() * scale
            if soft_cap is not None:
                scores = torch.tanh(scores / soft_cap) * soft_cap
            weights = scores.exp()
            total = weights.sum() + (0 if sinks is None else sinks[head].double().exp())
            out[i, head] = weights @ values[first : last + 1, head // group].double() / total
    return out.to(query.dtype)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("paged_attention"))
@pytest.mark.parametrize("batch", BATCHES)
def test_batches(implementation: str, dtype: torch.dtype, batch: str) -> None:
    check(BATCHES[batch], implementation=implementation, dtype=dtype)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("paged_attention"))
@pytest.mark.parametrize("options", OPTIONS)
def test_options(implementation: str, dtype: torch.dtype, options: str) -> None:
    check(BATCHES["mixed, any order"], implementation=implementation, dtype=dtype, **OPTIONS[options])
    check([(140, 150), (1, 150)], implementation=implementation, dtype=dtype, **OPTIONS[options])


@pytest.mark.parametrize(("implementation", "dtype"), implementations("paged_attention"))
@pytest.mark.parametrize(
    "heads", [Heads(1, 1, 8), Heads(4, 4, 32), Heads(8, 1, 16), Heads(9, 3, 64), Heads(4, 2, 80), Heads(4, 2, 256)]
)
@pytest.mark.parametrize("block_size", [1, 16, 32, 128])
def test_heads_and_block_sizes(implementation: str, dtype: torch.dtype, heads: Heads, block_size: int) -> None:
    check([(1, 40), (6, 35), (1, 3)], heads, implementation=implementation, dtype=dtype, block_size=block_size)


def test_a_small_gather_budget_and_a_small_mask_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "GATHER_BYTES", 1 << 14)
    monkeypatch.setattr(sdpa, "MASK_ELEMENTS", 1 << 12)
    for batch in BATCHES.values():
        check(batch, implementation="sdpa")
    check(BATCHES["tiles"], implementation="sdpa", sliding_window=30)


@pytest.mark.parametrize("implementation", ["reference", "sdpa"])
def test_fp8_caches(implementation: str) -> None:
    random = torch.Generator().manual_seed(0)
    caches = torch.randn(2, 6, 16, 2, 16, generator=random).to(torch.float8_e4m3fn)
    scales = torch.tensor([[0.5, 2.0], [3.0, 0.25]])
    metadata = AttentionMetadata.build(torch.tensor([[5, 0, 2], [3, 1, 4]], dtype=torch.int32), [1, 20], [33, 40])
    query = torch.randn(21, 6, 16, generator=random)
    wide = caches.float() * scales.view(2, 1, 1, 2, 1)
    expected = paged_attention(query, wide[0], wide[1], metadata, 0.25, implementation="reference")
    names = {"key_scale": scales[0], "value_scale": scales[1], "implementation": implementation}
    assert_close(paged_attention(query, *caches, metadata, 0.25, **names), expected)

"""Attention of one layer by itself, against its floor and beside what others have for the same work.

torch's get their keys and values gathered and contiguous: what gathering would cost them is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import anaphora_kernels
import torch
import torch.nn.functional as F
from anaphora_kernels import AttentionMetadata, SharedPrefixes, registry
from measure import Bench, Row
from shapes import Shape
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

FP8 = torch.float8_e4m3fn
REGISTERED_PEERS = {"flash_attention", "flashinfer"}


@dataclass(frozen=True)
class Work:
    """One launch: `num_rows` rows that compute `num_queries` tokens each, at the end of `context` tokens."""

    what: str
    num_rows: int
    num_queries: int
    context: int
    goal: float | None
    kv_dtype: torch.dtype | None = None  # None: as the queries
    num_shared: int = 0  # tokens at the beginning that all rows have in common

    @property
    def is_decode(self) -> bool:
        """One query per row: bound by memory."""
        return self.num_queries == 1


def works(*, quick: bool) -> list[Work]:
    """The rows of the table. (600 of 790 TFLOP/s is 0.76.)"""
    if quick:
        return [
            Work("decode, 4 rows x 64", 4, 1, 64, None),
            Work("decode, 4 rows x 64, FP8 cache", 4, 1, 64, None, FP8),
            Work("decode, 4 rows x 96, 64 of it shared", 4, 1, 96, None, num_shared=64),
            Work("append, 8 new on 128 cached", 1, 8, 136, None),
            Work("prefill, 64", 1, 64, 64, None),
        ]
    return [
        Work("decode, 64 rows x 16K", 64, 1, 16_384, 0.90),
        Work("decode, 64 rows x 16K, FP8 cache", 64, 1, 16_384, 0.85, FP8),
        Work("decode, 1 row x 200K", 1, 1, 200_000, 0.90),
        Work("decode, 256 rows x 1K", 256, 1, 1_024, 0.85),
        Work("decode, 32 rows x 200K shared + 512", 32, 1, 200_512, None, num_shared=200_000),
        Work("append, 200 new on 200K cached", 1, 200, 200_200, 0.75),
        Work("append, 32 new on 200K cached", 1, 32, 200_032, None),
        Work("prefill, 16K", 1, 16_384, 16_384, 0.70),
    ]


def run(bench: Bench, shape: Shape) -> None:
    """Every work, ours and the peers'."""
    for work in works(quick=bench.quick):
        case = Case(bench, shape, work)
        bench.add(Row("attention", work.what, bench.time(case.ours), case.floor, work.goal))
        if work.kv_dtype is None and not work.num_shared:
            for name, prepare in peers(bench):
                what = f"  {name}: {work.what}"
                try:
                    bench.add(Row("attention", what, bench.time(prepare(case)), case.floor))
                except Exception as error:  # a peer that cannot do it is a line of the table
                    bench.skip("attention", what, error)
        del case


class Case:
    """The tensors of a work."""

    def __init__(self, bench: Bench, shape: Shape, work: Work, block_size: int = 16) -> None:
        config, device = shape.config, bench.device
        self.work, self.dtype, self.block_size = work, bench.dtype, block_size
        self.scale = config.head_dim**-0.5
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.query = self._random(work.num_rows * work.num_queries, self.num_heads).to(device)
        shared = work.num_shared // block_size
        per_row = -(-work.context // block_size)
        num_blocks = shared + work.num_rows * (per_row - shared)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0), dtype=torch.int64)
        private = order[shared:].view(work.num_rows, -1)
        tables = torch.cat([order[:shared].expand(work.num_rows, -1), private], dim=1).to(torch.int32)
        cache_shape = (2, num_blocks, block_size, self.num_kv_heads, self.head_dim)
        kv_dtype = work.kv_dtype or bench.dtype
        self.cache = torch.empty(cache_shape, dtype=kv_dtype, device=device)
        fill_random(self.cache)
        self.scales: dict[str, Tensor] = {}
        if kv_dtype == FP8:
            one = torch.ones(self.num_kv_heads, device=device)
            self.scales = {"key_scale": one, "value_scale": one}
        lengths, contexts = (work.num_queries,) * work.num_rows, (work.context,) * work.num_rows
        prefixes = None
        if work.num_shared:
            found = SharedPrefixes.find(tables.numpy(), torch.tensor(contexts).numpy(), block_size, min_saved_tokens=1)
            prefixes = found.to(device) if found else None
        built = AttentionMetadata.build(tables.to(device), lengths, contexts)
        self.metadata = AttentionMetadata(**{**vars(built), "shared_prefixes": prefixes})
        self.floor = self._floor(bench, shape)

    def ours(self, implementation: str | None = None) -> Tensor:
        """What a layer launches; or a peer that stands in the registry."""
        return anaphora_kernels.paged_attention(
            self.query, *self.cache, self.metadata, self.scale, implementation=implementation, **self.scales
        )

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """q [rows, heads, queries, head_dim], k and v [rows, kv_heads, context, head_dim], contiguous."""
        work, blocks = self.work, self.metadata.block_tables.long()
        keys, values = (
            part[blocks].view(work.num_rows, -1, self.num_kv_heads, self.head_dim)[:, : work.context].transpose(1, 2)
            for part in self.cache
        )
        query = self.query.view(work.num_rows, work.num_queries, self.num_heads, self.head_dim).transpose(1, 2)
        return query.contiguous(), keys.contiguous(), values.contiguous()

    def _random(self, num_tokens: int, num_heads: int) -> Tensor:
        return torch.randn(num_tokens, num_heads, self.head_dim).to(self.dtype)

    def _floor(self, bench: Bench, shape: Shape) -> float:
        work, itemsize = self.work, self.cache.dtype.itemsize
        num_tokens = work.num_shared + work.num_rows * (work.context - work.num_shared)
        reading = shape.kv_bytes(num_tokens, itemsize) / bench.copy_rate
        computing = work.num_rows * shape.attention_operations(work.num_queries, work.context) / bench.product_rate
        return max(reading, computing)


def fill_random(cache: Tensor) -> None:
    """Something like keys and values, in place and without more memory: a cache may be most of a card."""
    if cache.dtype == FP8:
        cache.view(torch.uint8).random_(0x20, 0x38)  # 0.03 to 0.9
    else:
        cache.normal_()


# === peers: each prepares its inputs, and returns what is timed ===


def peers(bench: Bench) -> list[tuple[str, Callable[[Case], Callable[[], object]]]]:
    """torch's own, on gathered keys and values, and those that the registry knows, on ours as they lie."""
    known = {row.name for row in registry.IMPLEMENTATIONS["paged_attention"] if bench.device.type in row.devices}
    by_name = [(name, lambda case, name=name: partial(case.ours, name)) for name in sorted(known & REGISTERED_PEERS)]
    return [("torch SDPA", sdpa), ("FlexAttention", flex), *by_name]


def sdpa(case: Case) -> Callable[[], object]:
    """torch's fused attention."""
    query, keys, values = case.gathered()
    mask = None if case.work.is_decode else causal_lower_right(case.work.num_queries, case.work.context)
    return lambda: F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=case.scale, enable_gqa=True
    )


def flex(case: Case) -> Callable[[], object]:
    """torch's compiled attention."""
    if not case.query.is_cuda:
        raise RuntimeError("it is compiled for GPUs")
    query, keys, values = case.gathered()
    offset = case.work.context - case.work.num_queries
    mask = create_block_mask(
        lambda _batch, _head, q, k: k <= q + offset,
        None,
        None,
        case.work.num_queries,
        case.work.context,
        device=str(case.query.device),
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(query, keys, values, block_mask=mask, scale=case.scale, enable_gqa=True)


def grid(*, quick: bool) -> Iterator[tuple[list[int], list[int], dict[str, object]]]:
    """Query lengths, context lengths and options: what correctness looks at."""
    long = 200 if quick else 3_000
    rows = [
        ([1], [1]),
        ([1, 1, 1, 1], [1, 16, 17, long]),
        ([5, 1, 64], [5, 33, 64]),
        ([long, *[1] * 31], [long, *range(1, 32)]),
        ([7, 200], [long, long + 200]),
    ]
    options: list[dict[str, object]] = [{}, {"sliding_window": 40}, {"soft_cap": 20.0}, {"sinks": True}]
    for queries, contexts in rows:
        for option in options:
            yield queries, contexts, option
    yield [1] * 6, [100, 40, 101, 41, 96, 7], {"shared": True}

"""Paged attention on a CPU against what the machine can do at all, measured between the same alternating repeats.

    python benchmarks/cpu_attention.py

Chunks of a prompt are held against torch's best bfloat16 product (in floating-point operations per second), decodes
against a plain read of as much memory (in bytes per second). Best and median of the repeats; ratios are of the bests.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from anaphora import _native
from anaphora_kernels import AttentionMetadata, paged_attention
from floors import HEADER, Floors
from report import save, table

BLOCK_SIZE = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Rows of (new tokens, tokens in all) and a model's heads."""

    name: str
    heads: tuple[int, int, int]  # query heads, KV heads, head size
    rows: tuple[tuple[int, int], ...]
    num_shared: int = 0  # leading blocks that all rows have in common


SMOLLM2 = (9, 3, 64)
TINY = (4, 2, 32)
CASES = (
    Case("decode 1 x 1,000", SMOLLM2, ((1, 1000),)),
    Case("decode 32 x 1,000", SMOLLM2, ((1, 1000),) * 32),
    Case("decode 1 x 200,000", TINY, ((1, 200_000),)),
    Case("decode 32 x 6,400, 6,000 shared", SMOLLM2, ((1, 6400),) * 32, 375),
    Case("prefill 512 of 512", SMOLLM2, ((512, 512),)),
    Case("prefill 512 of 6,000", SMOLLM2, ((512, 6000),)),
    Case("prefill 512 of 50,000", TINY, ((512, 50_000),)),
    Case("prefill 16 of 200,000", TINY, ((16, 200_000),)),
)


def prepare(case: Case, dtype: torch.dtype, implementation: str) -> tuple[Callable[[], object], float, float]:
    """The call, its floating-point operations, and the bytes of keys and values that it must read."""
    num_heads, num_kv_heads, head_dim = case.heads
    queries, contexts = zip(*case.rows, strict=True)
    needed = -(-max(contexts) // BLOCK_SIZE)
    own = needed - case.num_shared
    num_blocks = case.num_shared + len(case.rows) * own
    tables = torch.empty((len(case.rows), needed), dtype=torch.int32)
    for row in range(len(case.rows)):
        tables[row, : case.num_shared] = torch.arange(case.num_shared)
        tables[row, case.num_shared :] = torch.arange(own) + case.num_shared + row * own
    caches = torch.randn(2, num_blocks, BLOCK_SIZE, num_kv_heads, head_dim).to(dtype)
    query = torch.randn(sum(queries), num_heads, head_dim).to(dtype)
    metadata = AttentionMetadata.build(tables, queries, contexts)
    pairs = sum(new * (2 * total - new + 1) // 2 for new, total in case.rows)
    tokens = sum(contexts) - (len(case.rows) - 1) * case.num_shared * BLOCK_SIZE

    def run() -> object:
        metadata.plans.clear()
        return paged_attention(query, *caches, metadata, head_dim**-0.5, implementation=implementation)

    return run, 4.0 * pairs * num_heads * head_dim, 2.0 * tokens * num_kv_heads * head_dim * dtype.itemsize


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--implementation", default="cpu", help="as in anaphora_kernels/registry.py")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    _native.set_num_threads(options.num_threads)
    floors = Floors.of_this_machine()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        for name, dtype in DTYPES.items():
            run, case_operations, case_bytes = prepare(case, dtype, options.implementation)
            figures = floors.row(run, options.repeats, case_operations, case_bytes)
            rows.append({"case": case.name, "dtype": name, **figures})
    header = ["case", "dtype", *HEADER]
    body = [[f"{value:.2f}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    rendered = table(header, body)
    print(rendered)
    print(save("cpu_attention", {"implementation": options.implementation, "rows": rows}, rendered))


if __name__ == "__main__":
    main()

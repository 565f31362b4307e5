"""What this machine's CPU can do at all, to hold kernels against: torch's best bfloat16 product, and a plain read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Floors:
    """Two calls, and how much they do."""

    product: Callable[[], object]
    operations: float  # floating-point operations of the product
    read: Callable[[], object]
    num_bytes: float  # that are read

    @classmethod
    def of_this_machine(cls) -> Floors:
        """On as many threads as torch has."""
        size = 2048
        left, right = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
        memory = torch.ones(64 << 20, dtype=torch.float32)
        return cls(lambda: left @ right, 2.0 * size**3, memory.sum, 4.0 * memory.numel())

    def time_beside(self, run: Callable[[], object], repeats: int) -> tuple[list[float], float, float]:
        """Seconds of every repeat of `run`; operations and bytes per second of the best repeats between them."""
        run(), self.product(), self.read()
        times = [(seconds(run), seconds(self.product), seconds(self.read)) for _ in range(repeats)]
        runs, products, reads = (list(column) for column in zip(*times, strict=True))
        return runs, self.operations / min(products), self.num_bytes / min(reads)


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

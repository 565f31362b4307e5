"""What this machine's CPU can do at all, to hold kernels against: torch's best bfloat16 product, and a plain read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

HEADER = ["best ms", "median ms", "GFLOP/s", "of a product", "GB/s", "of a read"]


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

    def row(self, run: Callable[[], object], repeats: int, operations: float, num_bytes: float) -> dict[str, float]:
        """The figures of a call that does so much; ratios are of the best repeats."""
        times, operations_per_second, bytes_per_second = self._time_beside(run, repeats)
        best = min(times)
        return {
            "best_ms": best * 1e3,
            "median_ms": median(times) * 1e3,
            "gflops": operations / best / 1e9,
            "of_product": operations / best / operations_per_second,
            "gbytes": num_bytes / best / 1e9,
            "of_read": num_bytes / best / bytes_per_second,
        }

    def _time_beside(self, run: Callable[[], object], repeats: int) -> tuple[list[float], float, float]:
        """Seconds of every repeat of `run`; operations and bytes per second of the best repeats between them."""
        run(), self.product(), self.read()
        times = [(_seconds(run), _seconds(self.product), _seconds(self.read)) for _ in range(repeats)]
        runs, products, reads = (list(column) for column in zip(*times, strict=True))
        return runs, self.operations / min(products), self.num_bytes / min(reads)


def _seconds(run: Callable[[], object]) -> float:
    """Of one call. Before it torch's threads, which spin after what they did last, have time to let go of the cores."""
    time.sleep(0.02)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

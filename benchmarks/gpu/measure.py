"""Time on a device, the two ceilings of its machine, and rows of `achieved / floor`.

A floor is what the machine could do at best: bytes over the rate of a large copy, or operations over the rate of a
large product, both measured in the same run. `achieved` is floor over time, so 1.0 is the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

WARM_UPS = 3


@dataclass(frozen=True)
class Spread:
    """Seconds per call."""

    median: float
    best: float
    worst: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    what: str
    seconds: Spread | None  # None: it could not run here; `note` says why
    floor_seconds: float | None = None
    goal: float | None = None  # of `achieved`
    note: str = ""

    @property
    def achieved(self) -> float | None:
        """Floor over the median time."""
        if self.seconds is None or self.floor_seconds is None:
            return None
        return self.floor_seconds / self.seconds.median

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        seconds = vars(self.seconds) if self.seconds else None
        return {**vars(self), "seconds": seconds, "achieved": self.achieved}


@dataclass
class Bench:
    """What every part is given: the device, its ceilings once they are known, and where rows go."""

    device: torch.device
    quick: bool  # tiny shapes: whether all of it runs, not how fast
    dtype: torch.dtype
    copy_rate: float = 0.0  # bytes/s, read and written
    product_rate: float = 0.0  # operations/s
    rows: list[Row] = field(default_factory=list)

    @property
    def is_cuda(self) -> bool:
        """Whether times are a GPU's."""
        return self.device.type == "cuda"

    def add(self, row: Row) -> None:
        """Keeps a row, and says it at once. Tiny shapes have no goals."""
        row = replace(row, goal=None) if self.quick else row
        self.rows.append(row)
        print(line(row), flush=True)

    def skip(self, part: str, what: str, reason: object) -> None:
        """A row for what cannot run here."""
        self.add(Row(part, what, None, note=" ".join(str(reason).split())[:160] or type(reason).__name__))

    def synchronize(self) -> None:
        """Waits for all that was launched."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def time(self, run: Callable[[], object], *, min_seconds: float = 0.3, max_calls: int = 200) -> Spread:
        """Calls until `min_seconds` have gone by, at least five times.

        On a GPU by its own clock, over several calls in a row: else the time to launch the first would count.
        """
        for _ in range(1 if self.quick else WARM_UPS):
            run()
        self.synchronize()
        if self.quick:
            min_seconds, max_calls = 0.0, 2
        in_a_row = max(1, min(50, int(0.02 / self._seconds(run, 1)))) if self.is_cuda and not self.quick else 1
        times: list[float] = []
        while len(times) < min(5, max_calls) or (sum(times) < min_seconds and len(times) < max_calls):
            times.append(self._seconds(run, in_a_row))
        return spread(times)

    def _seconds(self, run: Callable[[], object], in_a_row: int) -> float:
        """Of one of some calls."""
        if not self.is_cuda:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(in_a_row):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / in_a_row


def spread(times: list[float]) -> Spread:
    """Of some seconds."""
    return Spread(statistics.median(times), min(times), max(times))


def measure_ceilings(bench: Bench) -> None:
    """The rate of a large copy, and of a large product."""
    bench.copy_rate, bench.product_rate = _copy_rate(bench), _product_rate(bench)


def _copy_rate(bench: Bench) -> float:
    num_bytes = 1 << (20 if bench.quick else 32)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.time(lambda: target.copy_(source))
    rate = 2 * num_bytes / seconds.median
    note = f"{rate / 1e12:.3g} TB/s"
    bench.add(Row("ceilings", f"copy of {num_bytes >> 20} MiB", seconds, seconds.median, note=note))
    return rate


def _product_rate(bench: Bench) -> float:
    size = 256 if bench.quick else 8192
    a, b = (torch.randn(size, size, dtype=bench.dtype, device=bench.device) for _ in range(2))
    seconds = bench.time(lambda: a @ b)
    rate = 2 * size**3 / seconds.median
    note = f"{rate / 1e12:.3g} TFLOP/s"
    bench.add(Row("ceilings", f"product of {size} cubed", seconds, seconds.median, note=note))
    return rate


# === the table ===

HEADER = ("part", "what", "median", "best", "worst", "floor", "achieved", "goal", "")


def cells(row: Row) -> list[str]:
    """One line of the table, in the order of HEADER."""
    times = (row.seconds.median, row.seconds.best, row.seconds.worst) if row.seconds else (None, None, None)
    return [
        row.part,
        row.what,
        *(_milliseconds(value) for value in (*times, row.floor_seconds)),
        "-" if row.achieved is None else f"{row.achieved:.2f}",
        "" if row.goal is None else f"{row.goal:.2f}{'' if (row.achieved or 0) >= row.goal else ' MISSED'}",
        row.note,
    ]


def line(row: Row) -> str:
    """A row by itself, while the others are still measured."""
    return "  ".join(cell for cell in cells(row) if cell)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.4g} ms"

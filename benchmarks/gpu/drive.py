"""The steps that a router would send, for rows that are all alike: some tokens cached, some to compute, then decoding.

A shard executes steps and believes what they say: that 200,000 tokens "are cached" costs nothing but a block table.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from anaphora.wire import BlockTableDelta, Limits, RowStart, Sampling, Step
from anaphora.worker import Worker
from numpy.typing import NDArray


class Rows:
    """Slots 0 to `num_rows` - 1."""

    def __init__(
        self, limits: Limits, num_blocks: int, num_rows: int, *, max_context: int, num_shared: int = 0
    ) -> None:
        """Each row has blocks for `max_context` tokens, the first `num_shared` tokens' the same for all of them."""
        size = limits.block_size
        per_row, shared = -(-max_context // size), num_shared // size
        private = (np.arange(num_rows * (per_row - shared)) % (num_blocks - shared) + shared).reshape(num_rows, -1)
        if num_rows * (per_row - shared) > num_blocks - shared:
            raise MemoryError(
                f"{num_rows} rows of {max_context} tokens need more than the {num_blocks} blocks there are"
            )
        tables = np.concatenate([np.broadcast_to(np.arange(shared), (num_rows, shared)), private], axis=1)
        self._tables = tables.astype(np.uint32)
        self._num_rows = num_rows
        self._slots = np.arange(num_rows, dtype=np.uint32)
        self._step_id = 0
        self._is_started = False
        self.position = 0

    def given(self, tokens: NDArray[np.uint32], position: int, *, samples: bool = True) -> Step:
        """Computes `tokens` [rows, n] at `position`: what stands before it is cached."""
        num_tokens = tokens.shape[1]
        starts = () if self._is_started else tuple(RowStart(slot, Sampling()) for slot in range(self._num_rows))
        tables = () if self._is_started else tuple(BlockTableDelta(s, 0, row) for s, row in enumerate(self._tables))
        self._is_started = True
        self.position = position + num_tokens
        return Step(
            **self._arrays(position, num_tokens, samples=samples, has_tokens=True),
            started=starts,
            block_tables=tables,
            tokens=tokens.reshape(-1),
        )

    def decode(self) -> Step:
        """One more token for every row, after the one that it sampled last."""
        self.position += 1
        return Step(**self._arrays(self.position - 1, 1, samples=True, has_tokens=False))

    def _arrays(self, position: int, num_tokens: int, *, samples: bool, has_tokens: bool) -> dict[str, object]:
        self._step_id += 1
        ones = np.ones(self._num_rows, np.uint32)
        return {
            "id": self._step_id,
            "slots": self._slots,
            "positions": ones * np.uint32(position),
            "num_tokens": ones * np.uint32(num_tokens),
            "samples": np.full(self._num_rows, samples),
            "has_tokens": np.full(self._num_rows, has_tokens),
        }


def decode_times(worker: Worker, rows: Rows, num_steps: int) -> list[float]:
    """Seconds between the arrivals of consecutive tokens, two steps in flight; the first ones are left out."""
    pending = deque([worker.launch(rows.decode(), time.perf_counter())])
    arrivals = []
    for _ in range(num_steps + 3):
        pending.append(worker.launch(rows.decode(), time.perf_counter()))
        pending.popleft().result()
        arrivals.append(time.perf_counter())
    pending.popleft().result()
    return np.diff(arrivals[2:]).tolist()


def prompt_time(worker: Worker, rows: Rows, tokens: NDArray[np.uint32], position: int, chunk: int) -> float:
    """Seconds from sending the first chunk of `tokens` [rows, n] until the first new token is there."""
    began = time.perf_counter()
    pending = deque()
    for start in range(0, tokens.shape[1], chunk):
        part = tokens[:, start : start + chunk]
        is_last = start + chunk >= tokens.shape[1]
        step = rows.given(part, position + start, samples=is_last)
        pending.append(worker.launch(step, time.perf_counter()))
        if len(pending) > 1:
            pending.popleft().result()
    while pending:
        pending.popleft().result()
    return time.perf_counter() - began

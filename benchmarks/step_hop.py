"""What it costs to reach a shard: a decode step from its bytes to its result's bytes and back, with no model behind it.

    python benchmarks/step_hop.py

A shard's service runs in a process of its own, with a worker that answers at once; this process plays the router, one
step at a time, over the same Unix socket and protocol. The floor is a byte that a thread of another process sends back.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc
import numpy as np
from anaphora import wire
from anaphora.config import TelemetryConfig
from anaphora.service import ShardService, serve
from anaphora.telemetry import Telemetry
from anaphora.wire import Step, StepResult
from report import save, table

STEPS = 1500


class Worker:
    """Answers every step with a token for each row."""

    def launch(self, step: Step, _arrived_at: float) -> Worker:
        """Keeps the step until its result is asked for."""
        self.step = step
        return self

    def result(self) -> StepResult:
        """Zeros."""
        rows = self.step.slots.size
        return StepResult(self.step.id, np.zeros(rows, np.int64), np.zeros(rows, np.float32))

    def clear(self) -> None:
        """Has nothing."""

    def is_broken(self) -> bool:
        """Never."""
        return False


def run_shard(folder: Path) -> None:
    """Serves until its standard input ends."""
    worker: Any = Worker()
    server = serve(ShardService(worker, Telemetry(TelemetryConfig(), 0), on_broken=lambda: None), folder / "shard")
    threading.Thread(target=echo, args=(folder / "echo",), daemon=True).start()
    print("listening", flush=True)
    sys.stdin.read()
    server.stop(0)


def echo(path: Path) -> None:
    """Sends back what comes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    connection, _ = listener.accept()
    while data := connection.recv(4096):
        connection.sendall(data)


def microseconds(run: Callable[[int], object], first: int) -> list[float]:
    """Of each of STEPS calls."""
    times = []
    for index in range(first, first + STEPS):
        began = time.perf_counter()
        run(index)
        times.append((time.perf_counter() - began) * 1e6)
    return times


def decode_step(step_id: int, rows: int) -> bytes:
    """A step in which every row continues."""
    slots, ones = np.arange(rows, dtype=np.uint32), np.ones(rows, np.uint32)
    flags = np.ones(rows, np.bool_)
    step = Step(step_id, slots=slots, positions=ones, num_tokens=ones, samples=flags, has_tokens=~flags)
    return wire.encode_step(step)


def main() -> None:
    """One table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--serve", name]
        shard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert shard.stdout is not None
        assert shard.stdin is not None
        shard.stdout.readline()
        measured = {}

        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(folder / "echo"))
        measured["a byte there and back"] = microseconds(lambda _: (connection.sendall(b"x"), connection.recv(1)), 0)

        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        channel = grpc.insecure_channel(f"unix:{folder / 'shard'}")
        results = channel.stream_stream(f"/{wire.SERVICE}/Execute")(iter(requests.get, None))
        first = 1
        for rows in (1, 32):
            steps = {index: decode_step(index, rows) for index in range(first, first + STEPS)}

            def step(index: int, steps: dict[int, bytes] = steps) -> None:
                requests.put(steps[index])
                next(results)

            measured[f"a step of {rows} rows"] = microseconds(step, first)
            first += STEPS
            data = decode_step(1, rows)
            result = StepResult(1, np.zeros(rows, np.int64), np.zeros(rows, np.float32))
            both = microseconds(lambda _, d=data, r=result: (wire.decode_step(d), wire.encode_result(r)), 0)
            measured[f"of it, messages of {rows} rows"] = both
        requests.put(None)
        shard.stdin.close()
        shard.wait()
    rows_of_table = [
        [name, f"{min(times):.0f}", f"{median(times):.0f}", f"{quantiles(times, n=100)[98]:.0f}"]
        for name, times in measured.items()
    ]
    rendered = table(["us", "best", "median", "p99"], rows_of_table)
    print(rendered)
    print(save("step_hop", {"rows": rows_of_table}, rendered))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        run_shard(Path(sys.argv[2]))
    else:
        main()

"""What a decode step costs beside its kernels, at 1 and 32 rows, and at 1,000 and 200,000 tokens of context.

    python benchmarks/step_overhead.py

A worker is driven directly, without router or socket. Every step runs twice: once as it is, once with a stopwatch
around each kernel; the difference between a plain step and the kernels of a timed one is what Python, torch and numpy
take. A context costs the host nothing if its difference is that of a short one: the keys are whatever the pool holds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from anaphora import _native
from anaphora.loader import load_model
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.wire import BlockTableDelta, Limits, RowStart, Sampling, Step
from anaphora.worker import Worker
from anaphora_kernels import registry
from anaphora_kernels.linear import cpu as linear
from anaphora_kernels.recording import Recording
from make_model import smollm2_gguf
from report import save, table

BLOCK_SIZE: Final = 16
STEPS: Final = 40

TINY_LLAMA: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 49152,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


class Stopwatch:
    """Seconds spent in the functions that it wraps, and how often they were called."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - began
            self.calls += 1
            return result

        return timed


@contextmanager
def watch_kernels(stopwatch: Stopwatch) -> Iterator[None]:
    """Native kernels run under the stopwatch meanwhile: the recorded pass, the head and the sampling."""
    functions: list[tuple[Any, str]] = [
        (Recording, "run"),
        (_native, "AttentionPlan"),
        (_native, "sample"),
        (linear, "linear"),
    ]
    original = [(owner, name, getattr(owner, name)) for owner, name in functions]
    try:
        for owner, name, function in original:
            setattr(owner, name, stopwatch.wrap(function))
        registry.select.cache_clear()
        yield
    finally:
        for owner, name, function in original:
            setattr(owner, name, function)
        registry.select.cache_clear()


def measure(worker: Worker, num_rows: int, context: int) -> dict[str, Any]:
    """Medians over the decode steps of `num_rows` rows whose contexts begin at `context` tokens."""
    blocks = -(-(context + 3 * STEPS) // BLOCK_SIZE)
    limits = Limits(BLOCK_SIZE, num_rows, max(num_rows, 64), blocks * BLOCK_SIZE, num_blocks=num_rows * blocks)
    worker.configure(limits)
    ids = np.arange(num_rows * blocks, dtype=np.uint32).reshape(num_rows, blocks)
    starts = tuple(RowStart(slot, Sampling()) for slot in range(num_rows))
    tables = tuple(BlockTableDelta(slot, 0, ids[slot]) for slot in range(num_rows))
    slots, ones = np.arange(num_rows, dtype=np.uint32), np.ones(num_rows, np.uint32)
    flags = np.ones(num_rows, np.bool_)

    def run(index: int) -> float:
        first = index == 0
        step = Step(
            id=index + 1,
            started=starts if first else (),
            block_tables=tables if first else (),
            slots=slots,
            positions=ones * np.uint32(context + index),
            num_tokens=ones,
            samples=flags,
            has_tokens=flags if first else ~flags,
            tokens=ones if first else ones[:0],
        )
        began = time.perf_counter()
        worker.launch(step, began).result()
        return time.perf_counter() - began

    plain, kernels, calls = [], [], 0
    run(0)
    for index in range(1, 2 * STEPS, 2):
        plain.append(run(index))
        stopwatch = Stopwatch()
        with watch_kernels(stopwatch):
            run(index + 1)
        kernels.append(stopwatch.seconds)
        calls = stopwatch.calls
    step_s, kernels_s = median(plain), median(kernels)
    return {
        "rows": num_rows,
        "context": context,
        "step_ms": step_s * 1e3,
        "kernels_ms": kernels_s * 1e3,
        "rest_ms": (step_s - kernels_s) * 1e3,
        "least_rest_ms": (min(plain) - min(kernels)) * 1e3,
        "kernel_calls": calls,
    }


def main() -> None:
    """One table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto", help="as the shard's")
    parser.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)), help="of the kernels")
    options = parser.parse_args()
    _native.set_num_threads(options.num_threads)
    torch.set_num_threads(options.num_threads)

    results = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(TINY_LLAMA))
        for name, path, load_format, points in (
            ("SmolLM2-135M", smollm2_gguf(), "auto", [(1, 1000), (32, 1000)]),
            ("tiny Llama", Path(folder), "dummy", [(1, 1000), (1, 200_000)]),
        ):
            device = torch.device("cpu")
            group = ParallelGroup.join(0, 1, "", device)
            loaded = load_model(path, load_format=load_format, dtype=options.dtype, device=device, group=group)
            worker = Worker(loaded, group, device, Progress(sys.stderr))
            results += [{"model": name, **measure(worker, rows, context)} for rows, context in points]
    body = [[f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in row] for row in results]
    rendered = table(list(results[0]), body)
    print(rendered)
    print(save("step_overhead", {"dtype": options.dtype, "rows": results}, rendered))


if __name__ == "__main__":
    main()

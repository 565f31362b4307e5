"""Steps by captured graphs, which know bounds of their rows and no more: the tokens are those of exact steps.

On a GPU the graphs are real. Interpreted, a capture computes anew, told what a GPU would be told.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from anaphora.batch import HostLengths, Inputs
from anaphora.graphs import Capture, CudaCapture, Graphs, GraphShape, GraphSizes, Launch, bounds
from anaphora.loader import load_model
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.wire import Limits
from anaphora.worker import Worker
from anaphora_kernels import registry
from anaphora_kernels.testing import TRITON_DEVICE
from step_driver import Sequence, StepDriver, collect

LIMITS = Limits(block_size=16, max_rows=4, max_step_tokens=48, max_context=64, num_blocks=20)


def run(path: Path, new_capture: Callable[[], Capture] | None) -> list[list[int]]:
    """Two prompts of one beginning, which the second takes from the first one's blocks, and a third of its own."""
    loaded = load_model(path, load_format="dummy", dtype="float32", device=TRITON_DEVICE, group=ParallelGroup())
    worker = Worker(loaded, ParallelGroup(), TRITON_DEVICE, Progress(io.StringIO()), new_capture)
    driver = StepDriver(LIMITS, worker.configure(LIMITS))
    assert worker._configured is not None
    with torch.inference_mode():
        worker._configured.kv_cache.pool.fill_(float("nan"))
    first, second, third = (Sequence(prompt, 3) for prompt in ([*range(34), 3], [*range(34), 4], [7] * 5))

    def step(*sequences: Sequence) -> None:
        planned, sampling_rows = driver.plan(list(sequences), 48)
        collect(worker.launch(planned, 0.0).result(), sampling_rows)

    driver.start(first)
    step(first)
    for sequence in (second, third):
        driver.start(sequence)
    second.blocks = [*first.blocks[:2], driver.free_blocks.pop()]
    second.num_computed = 32
    step(first, second, third)
    step(first, second, third)
    step(second, third)
    return [sequence.outputs for sequence in (first, second, third)]


def compute_anew(launch: Launch) -> Launch:
    """What a capture is where there are no graphs; like a real one it begins by launching what is padding alone."""
    launch()
    return launch


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, chosen: list[GraphShape | None]) -> None:
    """Attention by Triton, and graphs that may ask for nothing but their shape, whatever the device; few of them."""
    rows = registry.IMPLEMENTATIONS["paged_attention"]
    everywhere = tuple(replace(row, devices=registry.ANY) if row.name == "triton" else row for row in rows)
    monkeypatch.setitem(registry.IMPLEMENTATIONS, "paged_attention", everywhere)
    monkeypatch.setattr(registry, "select", registry.select.__wrapped__)  # what it remembers is of another table
    monkeypatch.setattr("anaphora.graphs._DECODE_SIZES", (1, 4))
    monkeypatch.setattr("anaphora.graphs._APPEND_SIZES", (16,))
    monkeypatch.setattr("anaphora.worker.MIN_SAVED_TOKENS", 16)

    def rows_of(_self: Graphs, inputs: Inputs, shape: GraphShape) -> tuple[Inputs, HostLengths]:
        return inputs, bounds(shape, LIMITS.max_context)

    def choose(self: GraphSizes, num_tokens: int, num_rows: int, *, shares: bool) -> GraphShape | None:
        chosen.append(original(self, num_tokens, num_rows, shares=shares))
        return chosen[-1]

    original = GraphSizes.choose
    monkeypatch.setattr(Graphs, "_rows", rows_of)
    monkeypatch.setattr(GraphSizes, "choose", choose)


def test_bounds_are_enough(tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(tiny_llama_path, None)
    chosen: list[GraphShape | None] = []
    as_on_a_gpu(monkeypatch, chosen)
    assert run(tiny_llama_path, CudaCapture if TRITON_DEVICE.type == "cuda" else lambda: compute_anew) == expected
    short_chunks, decoding = GraphShape("append", 16), GraphShape("shared", 4)
    assert chosen[-3:] == [short_chunks, decoding, GraphShape("decode", 4)]
    assert [len(outputs) for outputs in expected] == [3, 3, 3]

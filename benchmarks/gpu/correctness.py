"""Before any clock: every kernel against its reference in float32, and a whole model's tokens against the CPU's."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from anaphora.graphs import graph_capture
from anaphora.loader import load_model
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.wire import Limits
from anaphora.worker import Worker
from anaphora_kernels import registry
from anaphora_kernels.testing import TOLERANCES
from attention import FP8, REGISTERED_PEERS
from drive import Rows
from kernel_checks import CHECKS, ROUNDED_TWICE, Check, Run
from measure import Bench, Row
from numpy.typing import NDArray
from safetensors.torch import save_file
from shapes import Shape


def run(bench: Bench, shape: Shape) -> None:
    """Raises AssertionError for the first difference."""
    for op, cache_dtype, check in CHECKS:
        for row in registry.IMPLEMENTATIONS[op]:
            if bench.device.type not in row.devices or row.name in {"reference", *REGISTERED_PEERS}:
                continue
            if cache_dtype is not None and cache_dtype not in row.dtypes:
                continue
            for dtype in sorted(row.dtypes & registry.FLOATS, key=str):
                worst = compare(check, Run(shape.config, bench.quick, row.name, dtype, bench.device, dtype))
                what = f"{op}{' over FP8' if cache_dtype else ''}, {row.name}, {dtype}".replace("torch.", "")
                bench.add(Row("correctness", what, None, note=f"largest difference {worst:.2g}"))
    tokens_equal_the_cpus(bench, shape)


@torch.inference_mode()
def compare(check: Check, run: Run) -> float:
    """The largest difference from the reference in float32 on the CPU. AssertionError if `run.dtype` is no excuse."""
    reference = dataclasses.replace(run, implementation="reference", dtype=torch.float32, device=torch.device("cpu"))
    worst = 0.0
    for result, expected in zip(check(run), check(reference), strict=True):
        actual, wanted = result.cpu().float(), expected.float()
        assert not actual.isnan().any(), f"{run.implementation} gives NaN"
        # References are compared in one dtype, and here in two.
        tolerance = 4 * TOLERANCES[FP8 if check in ROUNDED_TWICE else run.dtype]
        difference = float(((actual - wanted).abs() / (1 + wanted.abs())).max())
        assert difference <= tolerance, f"{run} differs by {difference:.3g}, more than {tolerance:.3g}"
        worst = max(worst, difference)
    return worst


def tokens_equal_the_cpus(bench: Bench, shape: Shape) -> None:
    """Greedy, in float32: a small model with random weights, on the device with its graphs and on the CPU."""
    small = Shape.named("Llama-3.1-8B", shape.path.parent / "small", quick=True)
    save_random_weights(small)
    torch.backends.cuda.matmul.allow_tf32 = False
    said = [greedy(small.path, device, torch.float32) for device in (torch.device("cpu"), bench.device)]
    assert said[0].tokens == said[1].tokens, f"tokens differ: {said}"
    note = f"{len(said[0].tokens)} equal the CPU's"
    bench.add(Row("correctness", "greedy tokens of a small model, float32", None, note=note))
    difference = np.abs(greedy(small.path, bench.device, FP8).logprobs - said[0].logprobs).max()
    bench.add(Row("correctness", "the same with an FP8 cache", None, note=f"first logprobs differ by {difference:.2g}"))


@dataclasses.dataclass(frozen=True)
class Said:
    """What a small model said."""

    tokens: list[int]  # of all rows, one row after another
    logprobs: NDArray[np.float32]  # of each row's first token


def save_random_weights(shape: Shape) -> None:
    """model.safetensors beside the configuration. (Dummy weights are drawn on the device, and differ between kinds.)"""
    loaded = load_model(shape.path, load_format="dummy", device=torch.device("cpu"), group=ParallelGroup())
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(part.shape, generator=generator) * 0.2 + part.random_mean
        for name, part in loaded.model.parts().items()
        if not part.is_optional
    }
    save_file(tensors, shape.path / "model.safetensors")


def greedy(path: Path, device: torch.device, kv_dtype: torch.dtype) -> Said:
    """What three rows say: prompts of 40 tokens in chunks of 17, then 32 tokens each."""
    group = ParallelGroup()
    loaded = load_model(path, dtype="float32", device=device, group=group)
    loaded = dataclasses.replace(loaded, kv_layout=dataclasses.replace(loaded.kv_layout, dtype=kv_dtype))
    worker = Worker(loaded, group, device, quiet(), graph_capture(device, kv_dtype))
    limits = Limits(block_size=16, max_rows=3, max_step_tokens=64, max_context=128, num_blocks=32)
    rows = Rows(limits, worker.configure(limits), 3, max_context=80)
    prompts = np.random.default_rng(0).integers(0, loaded.config.vocab_size, (3, 40), dtype=np.uint32)
    for start in range(0, 40, 17):
        result = worker.launch(rows.given(prompts[:, start : start + 17], start), 0.0).result()
    logprobs, outputs = result.logprobs, [result.tokens]
    outputs += [worker.launch(rows.decode(), 0.0).result().tokens for _ in range(31)]
    return Said(np.stack(outputs, axis=1).reshape(-1).tolist(), logprobs)


def quiet() -> Progress:
    """Progress that nobody reads."""
    return Progress(io.StringIO())

"""The same model and prompts, end to end: our shard beside `transformers`' continuous batching."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from anaphora.loader import load_model
from anaphora.parallel import ParallelGroup
from engine import Shard, Sizes, configured
from measure import Bench, Row, Spread
from numpy.typing import NDArray
from shapes import Shape


def run(bench: Bench, shape: Shape) -> None:
    """Prompts of a short context, all at once, and as many tokens again for each."""
    sizes = Sizes.of(bench)
    num_rows, length = sizes.batches[0], sizes.short
    num_new = 8 if bench.quick else 128
    prompts = np.random.default_rng(0).integers(0, shape.config.vocab_size, (num_rows, length), dtype=np.uint32)
    for name, generate in (("anaphora's shard", ours), ("transformers, continuous batching", transformers_batch)):
        what = f"{name}: {num_rows} prompts of {length:,} tokens, {num_new} new each"
        try:
            seconds = generate(bench, shape, prompts, num_new)
        except Exception as error:  # a peer that cannot do it is a line of the table
            bench.skip("end to end", what, error)
        else:
            note = f"{num_rows * num_new / seconds:,.0f} new tokens/s"
            bench.add(Row("end to end", what, Spread(seconds, seconds, seconds), note=note))
        if bench.is_cuda:
            torch.cuda.empty_cache()


def transformers_batch(bench: Bench, shape: Shape, prompts: NDArray[np.uint32], num_new: int) -> float:
    """Seconds, the second time: the first compiles and captures."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig  # noqa: PLC0415  # may be absent

    config = AutoConfig.from_pretrained(shape.path)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=bench.dtype, attn_implementation="sdpa").eval()
    settings = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    inputs = prompts.tolist()
    return _second_time(bench, lambda: model.generate_batch(inputs, generation_config=settings, progress_bar=False))


def ours(bench: Bench, shape: Shape, prompts: NDArray[np.uint32], num_new: int) -> float:
    """Seconds, the second time."""
    dtype = str(bench.dtype).removeprefix("torch.")
    loaded = load_model(shape.path, load_format="dummy", dtype=dtype, device=bench.device, group=ParallelGroup())
    shard = configured(bench, loaded, bench.dtype, Sizes.of(bench))
    return _second_time(bench, lambda: _generate(shard, prompts, num_new))


def _generate(shard: Shard, prompts: NDArray[np.uint32], num_new: int) -> None:
    num_rows, length = prompts.shape
    rows = shard.rows(num_rows, 0, growth=length + num_new + 1)
    per_step = max(1, shard.sizes.chunk // num_rows)
    pending = [
        shard.worker.launch(
            rows.given(prompts[:, start : start + per_step], start, samples=start + per_step >= length),
            time.perf_counter(),
        )
        for start in range(0, length, per_step)
    ]
    for _ in range(num_new - 1):
        pending.append(shard.worker.launch(rows.decode(), time.perf_counter()))
        pending[-2].result()
    pending[-1].result()


def _second_time(bench: Bench, run: Callable[[], object]) -> float:
    run()
    bench.synchronize()
    began = time.perf_counter()
    run()
    bench.synchronize()
    return time.perf_counter() - began

"""The shard as it serves: a worker with random weights and a cache of noise, given the steps a router would send."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from anaphora.graphs import graph_capture
from anaphora.loader import LoadedModel, has_fp8, load_model
from anaphora.parallel import ParallelGroup
from anaphora.wire import Limits
from anaphora.worker import Worker
from attention import FP8, fill_random
from correctness import quiet
from drive import Rows, decode_times, prompt_time
from measure import Bench, Row, Spread, spread
from shapes import Shape
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    long: int  # tokens: the conversation that is cached
    new: tuple[int, ...]  # tokens: what the next turn adds to it
    short: int  # tokens: contexts of the batches that decode
    chunk: int  # tokens of a step
    steps: int  # decoding steps that are timed
    batches: tuple[int, ...]
    sharing: int  # rows on one prefix
    private: int  # tokens that each of them has besides

    @classmethod
    def of(cls, bench: Bench) -> Sizes:
        """The issue's, or tiny ones."""
        if bench.quick:
            return cls(long=512, new=(20, 5), short=64, chunk=128, steps=4, batches=(4, 8), sharing=4, private=32)
        return cls(
            long=200_000, new=(200, 32), short=1_024, chunk=8_192, steps=60, batches=(64, 256), sharing=32, private=512
        )


# Floors over goals, of Llama-3.1-8B on an H200; keys are (what, rows or new tokens or bytes of a cached number).
GOALS = {
    ("short", 2): 3.49 / 3.9,
    ("long", 2): 9.59 / 10.0,
    ("long", 1): 6.54 / 7.0,
    ("batch", 64): 10.2 / 11.7,
    ("batch", 256): 18 / 22.3,
    ("shared", 32): 0.6,
    ("warm", 200): 30.1 / 40,
    ("cold", 200_000): 16.8 / 19.8,
}


def run(bench: Bench, shape: Shape) -> None:
    """Every row, with a cache of the activations' dtype and then with FP8."""
    loaded = with_random_weights(bench, shape)
    for kv_dtype, parts in ((bench.dtype, (decode, batches, shared, warm, cold, idle)), (FP8, (decode, warm))):
        measure(bench, shape, loaded, kv_dtype, parts)


def run_fp8(bench: Bench, shape: Shape) -> None:
    """Decoding and prompts with weights in FP8, over a cache in FP8."""
    if not has_fp8(bench.device):
        bench.skip("engine", "weights in FP8", "no GPU that multiplies FP8")
        return
    measure(bench, shape, with_random_weights(bench, shape, quantize="fp8"), FP8, (decode, batches, warm, cold))


def with_random_weights(bench: Bench, shape: Shape, quantize: str = "auto") -> LoadedModel:
    """The model, in the bench's dtype or in fewer bits."""
    began = time.perf_counter()
    loaded = load_model(
        shape.path,
        load_format="dummy",
        dtype=str(bench.dtype).removeprefix("torch."),
        quantize=quantize,
        device=bench.device,
        group=ParallelGroup(),
    )
    bench.add(Row("engine", f"random weights, {quantize}", _once(time.perf_counter() - began)))
    return loaded


Part = Callable[[Bench, Shape, "Shard"], None]


def measure(bench: Bench, shape: Shape, loaded: LoadedModel, kv_dtype: torch.dtype, parts: Sequence[Part]) -> None:
    """The rows of some parts, and whether any of them took memory."""
    shard = configured(bench, loaded, kv_dtype, Sizes.of(bench))
    reserved = torch.cuda.memory_reserved(bench.device) if bench.is_cuda else 0
    for part in parts:
        part(bench, shape, shard)
    if bench.is_cuda:
        grown = torch.cuda.memory_reserved(bench.device) - reserved
        what = f"memory after the warm-up{shard.label}"
        bench.add(Row("engine", what, None, note=f"{grown / 2**20:.0f} MiB more; the goal is 0"))


@dataclass(frozen=True)
class Shard:
    """A worker with its pool."""

    worker: Worker
    limits: Limits
    num_blocks: int
    sizes: Sizes
    kv_itemsize: int

    @property
    def state(self) -> Any:
        """What no router can ask for: the pool and the slots themselves."""
        return self.worker._configured  # noqa: SLF001

    @property
    def weight_itemsize(self) -> int:
        """Bytes of a weight; the head's are always the dtype's."""
        return 1 if "fp8_e4m3" in self.worker.loaded.weight_formats else self.worker.loaded.dtype.itemsize

    @property
    def label(self) -> str:
        """What the table says of weights and cache."""
        return ", FP8 weights" * (self.weight_itemsize == 1) + ", FP8 cache" * (self.kv_itemsize == 1)

    def goal(self, what: str, size: int) -> float | None:
        """Of `achieved`; there are none for weights in FP8, whose floors are lower by as much as reads go."""
        return GOALS.get((what, size)) if self.weight_itemsize > 1 else None

    def floor(self, bench: Bench, shape: Shape, num_tokens: int) -> float:
        """Seconds of a decoding step that reads so many tokens of the cache, and all weights."""
        loaded = self.worker.loaded
        weights = shape.num_layer_weights * self.weight_itemsize
        weights += (shape.num_weights - shape.num_layer_weights) * loaded.dtype.itemsize
        cache = shape.config.num_layers * shape.kv_bytes(num_tokens, self.kv_itemsize)
        return (weights + cache) / bench.copy_rate

    def rows(self, num_rows: int, context: int, *, growth: int, num_shared: int = 0) -> Rows:
        """Rows of `context` cached tokens, with room for `growth` more."""
        self.worker.clear()
        return Rows(self.limits, self.num_blocks, num_rows, max_context=context + growth, num_shared=num_shared)

    def started(self, num_rows: int, context: int, *, growth: int, num_shared: int = 0) -> Rows:
        """The same; each has sampled a token, and can go on."""
        rows = self.rows(num_rows, context, growth=growth, num_shared=num_shared)
        self.worker.launch(rows.given(np.ones((num_rows, 1), np.uint32), context - 1), time.perf_counter()).result()
        return rows


def configured(bench: Bench, loaded: LoadedModel, kv_dtype: torch.dtype, sizes: Sizes) -> Shard:
    """A worker, warmed up."""
    loaded = replace(loaded, kv_layout=replace(loaded.kv_layout, dtype=kv_dtype))
    worker = Worker(loaded, ParallelGroup(), bench.device, quiet(), graph_capture(bench.device, kv_dtype))
    context = sizes.long + 2 * sizes.short
    limits = Limits(block_size=16, max_rows=max(sizes.batches), max_step_tokens=sizes.chunk, max_context=context)
    began = time.perf_counter()
    num_blocks = worker.configure(limits)
    what = f"warm-up, {num_blocks * limits.block_size:,} tokens of cache in {kv_dtype}".replace("torch.", "")
    bench.add(Row("engine", what, _once(time.perf_counter() - began)))
    shard = Shard(worker, limits, num_blocks, sizes, kv_dtype.itemsize)
    with torch.inference_mode():
        fill_random(shard.state.kv_cache.pool)
    bench.synchronize()
    return shard


def decode(bench: Bench, shape: Shape, shard: Shard) -> None:
    """One row, with a short context and with a long one."""
    sizes = shard.sizes
    for name, context in (("short", sizes.short // 8), ("long", sizes.long)):
        times = _decode(shard, 1, context)
        floor = shard.floor(bench, shape, context)
        goal = shard.goal(name, shard.kv_itemsize)
        bench.add(Row("engine", f"decode step, batch 1, {context:,} tokens{shard.label}", times, floor, goal))


def batches(bench: Bench, shape: Shape, shard: Shard) -> None:
    """Many rows of a short context."""
    for num_rows in shard.sizes.batches:
        context = shard.sizes.short
        try:
            times = _decode(shard, num_rows, context)
        except MemoryError as error:
            bench.skip("engine", f"decode step, batch {num_rows}", error)
            continue
        floor = shard.floor(bench, shape, num_rows * context)
        note = f"{num_rows / times.median:,.0f} tokens/s"
        what = f"decode step, batch {num_rows}, {context:,} tokens{shard.label}"
        bench.add(Row("engine", what, times, floor, shard.goal("batch", num_rows), note))


def shared(bench: Bench, shape: Shape, shard: Shard) -> None:
    """Rows on one long prefix, read once or once per row: the goal is a ratio of the two."""
    sizes = shard.sizes
    what = f"decode step, {sizes.sharing} rows on one prefix of {sizes.long:,} tokens"
    context = sizes.long + sizes.private
    num_tokens = sizes.long + sizes.sharing * sizes.private
    once = _decode(shard, sizes.sharing, context, num_shared=sizes.long)
    min_shared_tokens, shard.state.slots.min_shared_tokens = shard.state.slots.min_shared_tokens, None
    each = _decode(shard, sizes.sharing, context, num_shared=sizes.long)
    shard.state.slots.min_shared_tokens = min_shared_tokens
    note = f"{each.median / once.median:.1f} x over reading it per row; the goal is 12"
    goal = shard.goal("shared", sizes.sharing)
    bench.add(Row("engine", what, once, shard.floor(bench, shape, num_tokens), goal, note))
    floor = shard.floor(bench, shape, sizes.sharing * context)
    bench.add(Row("engine", "  the same, read per row", each, floor))


def warm(bench: Bench, shape: Shape, shard: Shard) -> None:
    """The next turn of a long conversation: all is cached but a few tokens."""
    for num_new in shard.sizes.new:
        context = shard.sizes.long
        rows = shard.rows(1, context, growth=num_new)
        tokens = np.ones((1, num_new), np.uint32)
        times = [
            prompt_time(shard.worker, rows, tokens, context, shard.sizes.chunk) for _ in range(3 if bench.quick else 12)
        ]
        operations = shape.prompt_operations(num_new, context + num_new) / bench.product_rate
        reading = shard.floor(bench, shape, context)
        goal = shard.goal("warm", num_new)
        what = f"warm turn, {num_new} new on {context:,} cached{shard.label}"
        bench.add(Row("engine", what, spread(times[2:]), max(operations, reading), goal))


def cold(bench: Bench, shape: Shape, shard: Shard) -> None:
    """The whole conversation at once."""
    num_tokens = shard.sizes.long
    rows = shard.rows(1, 0, growth=num_tokens + 1)
    tokens = np.ones((1, num_tokens), np.uint32)
    seconds = prompt_time(shard.worker, rows, tokens, 0, shard.sizes.chunk)
    floor = shape.prompt_operations(num_tokens, num_tokens) / bench.product_rate
    note = f"{num_tokens / seconds:,.0f} tokens/s"
    bench.add(
        Row(
            "engine",
            f"cold prefill, {num_tokens:,} tokens{shard.label}",
            _once(seconds),
            floor,
            shard.goal("cold", num_tokens),
            note,
        )
    )


def idle(bench: Bench, _shape: Shape, shard: Shard) -> None:
    """How long the card does nothing while one row decodes: the gaps between the kernels of a profile."""
    if not bench.is_cuda:
        bench.skip("engine", "idle, batch 1", "only a GPU can be idle while the host works")
        return
    rows = shard.started(1, shard.sizes.short // 8, growth=100)
    decode_times(shard.worker, rows, 10)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        decode_times(shard.worker, rows, 40)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    share = 1 - busy / (end - spans[0][0])
    bench.add(Row("engine", "idle, batch 1", None, note=f"{share:.1%} of the time no kernel runs; the goal is 5 %"))


def _decode(shard: Shard, num_rows: int, context: int, num_shared: int = 0) -> Spread:
    steps = shard.sizes.steps
    rows = shard.started(num_rows, context, growth=steps + 8, num_shared=num_shared)
    return spread(decode_times(shard.worker, rows, steps))


def _once(seconds: float) -> Spread:
    return Spread(seconds, seconds, seconds)

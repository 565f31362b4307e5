"""Which graph serves a step, and that padding changes nothing: with graphs that compute anew instead of replaying."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from anaphora.graphs import Capture, GraphShape, GraphSizes, Launch, pad
from anaphora.loader import LoadedModel
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.wire import Limits, Sampling
from anaphora.worker import Worker
from hypothesis import given
from hypothesis import strategies as st
from step_driver import Sequence, StepDriver
from test_batch import LIMITS as SMALL
from test_batch import NUM_BLOCKS as NUM_SMALL_BLOCKS
from test_batch import make_slots, make_step, rows_of_steps, sample_everywhere

LIMITS = Limits(block_size=16, max_rows=6, max_step_tokens=200, max_context=512, num_blocks=80)


class Eager:
    """Captures nothing: a replay launches the work again, on whatever the static buffers hold by then."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self) -> Capture:
        return self.capture

    def capture(self, launch: Launch) -> Launch:
        self.num_captures += 1
        launch()

        def replay() -> None:
            self.num_replays += 1
            launch()

        return replay


def configured(loaded: LoadedModel, eager: Eager | None) -> Worker:
    worker = Worker(loaded, ParallelGroup(), torch.device("cpu"), Progress(io.StringIO()), eager)
    worker.configure(LIMITS)
    return worker


def run(worker: Worker, sampling: Sampling, chunk: int) -> list[list[int]]:
    """Prompts of many lengths, more than there are slots, two steps in flight."""
    random = np.random.default_rng(3)
    lengths = (5, 1, 70, 33, 16, 12, 60, 3, 27)
    sequences = [Sequence(random.integers(0, 199, length).tolist(), 15, sampling) for length in lengths]
    worker.clear()
    driver = StepDriver(LIMITS, LIMITS.num_blocks)
    driver.run(lambda step: worker.launch(step, 0.0), sequences, chunk=chunk, in_flight=2)
    return [sequence.outputs for sequence in sequences]


def test_tokens_are_those_without_graphs(tiny_llama: LoadedModel) -> None:
    eager = Eager()
    with_graphs, without = configured(tiny_llama, eager), configured(tiny_llama, None)
    sampled = Sampling(temperature=1.3, top_p=0.95, seed=11, repetition_penalty=1.2)
    for sampling in (Sampling(), sampled):
        for chunk in (1, 9, 40):
            assert run(with_graphs, sampling, chunk) == run(without, sampling, chunk)
    assert eager.num_replays > 200, "most steps were small enough for a graph"


def test_graphs_are_captured_for_the_warm_up_and_for_the_pool(tiny_llama: LoadedModel) -> None:
    eager = Eager()
    worker = configured(tiny_llama, eager)
    num_shapes = len(GraphSizes.within(LIMITS).shapes())
    assert eager.num_captures == 2 * num_shapes
    worker.configure(LIMITS)
    assert eager.num_captures == 2 * num_shapes, "the same sizes keep them"


def test_padding_touches_no_block_of_a_sequence(tiny_llama: LoadedModel) -> None:
    """What the pool holds after a run is what it holds without graphs, but for the scratch block."""
    pools = []
    for eager in (Eager(), None):
        worker = configured(tiny_llama, eager)
        pool = worker._configured.kv_cache.pool
        with torch.inference_mode():
            pool.fill_(float("nan"))
        run(worker, Sampling(), 9)
        pools.append(pool[:, :, : LIMITS.num_blocks])
    torch.testing.assert_close(*pools, equal_nan=True)


@given(rows_of_steps())
def test_a_padded_step_keeps_its_rows_and_adds_harmless_ones(
    rows: list[tuple[int, int, list[int] | None, bool]],
) -> None:
    slots = make_slots()
    sample_everywhere(slots)
    layout = slots.lay_out(make_step(rows))
    size = layout.tokens.size + 5
    padded = pad(layout, size, slots.padding_slot, slots.scratch_cell)
    for before, after in zip(layout.arrays(), padded.arrays(), strict=True):
        assert after[: before.size].tolist() == before.tolist()
        assert after.dtype == before.dtype
    num_tokens, num_rows = layout.tokens.size, layout.slots.size
    assert {array.size for array in padded.arrays()} == {size, size + 1}
    assert padded.query_starts[-1] == size
    assert (padded.kv_indices[num_tokens:] // SMALL.block_size == NUM_SMALL_BLOCKS).all(), "the scratch block"
    assert (padded.slots[num_rows:] == SMALL.max_rows).all()
    assert padded.query_lengths[num_rows:].tolist() == [1] * 5 + [0] * (num_tokens - num_rows)
    assert padded.context_lengths[num_rows:].tolist() == padded.query_lengths[num_rows:].tolist()


# === shapes ===


def test_the_smallest_graph_that_fits_serves() -> None:
    sizes = GraphSizes.within(replace(LIMITS, max_rows=512, max_step_tokens=8192))
    assert sizes.decode[:6] == (1, 2, 3, 4, 8, 16)
    assert sizes.decode[-1] == 512
    assert sizes.choose(1, 1) == GraphShape(1, is_decode=True)
    assert sizes.choose(5, 5) == GraphShape(8, is_decode=True)
    assert sizes.choose(512, 512) == GraphShape(512, is_decode=True)
    assert sizes.choose(513, 513) is None
    assert sizes.choose(2, 1) == GraphShape(16, is_decode=False)
    assert sizes.choose(64, 63) == GraphShape(64, is_decode=False)
    assert sizes.choose(65, 2) is None


@given(st.integers(1, 600), st.integers(1, 9000))
def test_every_decode_up_to_the_limits_has_a_graph_and_little_padding(max_rows: int, max_step_tokens: int) -> None:
    limits = replace(LIMITS, max_rows=max_rows, max_step_tokens=max_step_tokens)
    sizes = GraphSizes.within(limits)
    for num_rows in range(1, min(max_rows, max_step_tokens, 512) + 1):
        shape = sizes.choose(num_rows, num_rows)
        assert shape is not None
        assert shape.size - num_rows < max(4, num_rows / 4) + 4
        assert shape in sizes.shapes()
    assert all(size <= max_step_tokens for size in sizes.append)


@pytest.mark.parametrize("max_rows", [1, 300])
def test_the_largest_is_captured_first(max_rows: int) -> None:
    shapes = GraphSizes.within(replace(LIMITS, max_rows=max_rows, max_step_tokens=2048)).shapes()
    assert [shape.size for shape in shapes] == sorted((shape.size for shape in shapes), reverse=True)
    assert len(set(shapes)) == len(shapes)

"""Which graph serves a step, and that padding changes nothing: with graphs that compute anew instead of replaying."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from anaphora.batch import SHARED_TENSORS
from anaphora.graphs import Capture, GraphShape, GraphSizes, Launch, pad, pad_shared
from anaphora.loader import LoadedModel
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.wire import Limits, Sampling
from anaphora.worker import Worker
from anaphora_kernels import SharedPrefixes
from hypothesis import given, settings
from hypothesis import strategies as st
from step_driver import Sequence, StepDriver, collect
from test_batch import LIMITS as SMALL
from test_batch import NUM_BLOCKS as NUM_SMALL_BLOCKS
from test_batch import make_slots, make_step, rows_of_steps, sample_everywhere

LIMITS = Limits(block_size=16, max_rows=6, max_step_tokens=200, max_context=512, num_blocks=80)


class Eager:
    """Captures nothing: a replay launches the work again, on whatever the static buffers hold by then."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.replays: list[int] = []  # which capture, in the order of the captures

    def __call__(self) -> Capture:
        return self.capture

    def capture(self, launch: Launch) -> Launch:
        launch()
        index = self.num_captures
        self.num_captures += 1

        def replay() -> None:
            self.replays.append(index)
            launch()

        return replay

    def replayed(self, kind: str) -> int:
        """How many replays were of this kind of graph."""
        shapes = GraphSizes.within(LIMITS).shapes()
        return sum(shapes[index % len(shapes)].kind == kind for index in self.replays)


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
        for chunk in (1, 9, 20):
            assert run(with_graphs, sampling, chunk) == run(without, sampling, chunk)
    assert eager.replayed("decode") > 50
    assert eager.replayed("append") > 40
    assert eager.replayed("shared") == 0


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


@settings(deadline=None)
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


def test_padded_groups_say_the_same_of_the_rows_that_there_are() -> None:
    tables = np.array([[1, 2, 3], [4, 5, 6], [1, 2, 7], [4, 5, 9], [1, 2, 10]], np.int32)
    shared = SharedPrefixes.find(tables, np.full(5, 9), 4, min_saved_tokens=1)
    assert shared is not None
    padded = pad_shared(shared, 8, max_context=40)
    for name in SHARED_TENSORS:
        before, after = getattr(shared, name), getattr(padded, name)
        assert torch.equal(after[: len(before)], before)
    assert padded.group_starts.tolist() == [0, 3, 5, 5, 5]
    assert padded.lengths.tolist() == [8, 8, 0, 0]
    assert padded.row_groups.tolist() == [0, 1, 0, 1, 0, -1, -1, -1]
    assert (len(padded.rows), padded.max_group_size, padded.max_length) == (8, 8, 40)


def test_rows_that_share_a_prefix_have_graphs_of_their_own(
    tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anaphora.worker.MIN_SAVED_TOKENS", 16)
    eager = Eager()
    worker = configured(tiny_llama, eager)
    driver = StepDriver(LIMITS, LIMITS.num_blocks)
    first, second = (Sequence([*range(40), last], 8) for last in (3, 4))
    driver.start(first)
    step, sampling_rows = driver.plan([first], 100)
    collect(worker.launch(step, 0.0).result(), sampling_rows)
    driver.start(second)
    second.blocks = [*first.blocks[:2], driver.free_blocks.pop()]
    second.num_computed = 32
    while len(second.outputs) < 8:
        step, sampling_rows = driver.plan([first, second] if len(first.outputs) < 8 else [second], 100)
        collect(worker.launch(step, 0.0).result(), sampling_rows)
    assert eager.replayed("shared") == 6, "all steps in which both decode"

    alone = configured(tiny_llama, None)
    for sequence in (first, second):
        expected = Sequence(sequence.prompt, 8)
        driver = StepDriver(LIMITS, LIMITS.num_blocks)
        driver.run(lambda step: alone.launch(step, 0.0), [expected], chunk=100)
        assert sequence.outputs == expected.outputs


# === shapes ===


def test_the_smallest_graph_that_fits_serves() -> None:
    sizes = GraphSizes.within(replace(LIMITS, max_rows=512, max_step_tokens=8192))
    assert sizes.by_kind["decode"][:6] == (1, 2, 3, 4, 8, 16)
    assert {kind: numbers[-1] for kind, numbers in sizes.by_kind.items()} == {
        "decode": 512,
        "shared": 512,
        "append": 64,
    }
    for rows, size in ((1, 1), (5, 8), (249, 256), (512, 512)):
        assert sizes.choose(rows, rows, shares=False) == GraphShape("decode", size)
    assert sizes.choose(5, 5, shares=True) == GraphShape("shared", 8)
    assert sizes.choose(2, 1, shares=False) == GraphShape("append", 16)
    assert sizes.choose(64, 63, shares=False) == GraphShape("append", 64)
    assert sizes.choose(65, 2, shares=False) is None
    assert sizes.choose(513, 513, shares=False) is None
    assert sizes.choose(513, 513, shares=True) is None


@settings(deadline=None)
@given(st.integers(1, 600), st.integers(1, 9000))
def test_every_decode_up_to_the_limits_has_a_graph_and_little_padding(max_rows: int, max_step_tokens: int) -> None:
    limits = replace(LIMITS, max_rows=max_rows, max_step_tokens=max_step_tokens)
    sizes = GraphSizes.within(limits)
    shapes = set(sizes.shapes())
    for num_rows in range(1, min(max_rows, max_step_tokens, 512) + 1):
        shape = sizes.choose(num_rows, num_rows, shares=False)
        assert shape is not None
        assert shape.size - num_rows < max(8, num_rows / 16)
        assert num_rows == 1 or sizes.choose(num_rows, num_rows, shares=True) is not None
        assert shape in shapes
    assert all(size <= max_step_tokens for size in sizes.by_kind["append"])


@pytest.mark.parametrize("max_rows", [1, 300])
def test_the_largest_is_captured_first(max_rows: int) -> None:
    shapes = GraphSizes.within(replace(LIMITS, max_rows=max_rows, max_step_tokens=2048)).shapes()
    assert [shape.size for shape in shapes] == sorted((shape.size for shape in shapes), reverse=True)
    assert len(set(shapes)) == len(shapes)

"""From steps to tensors: where each token of a step goes, and where it comes from."""

import numpy as np
import torch
from anaphora.batch import HostLengths, Inputs, Layout, Slots
from anaphora.context import ForwardContext
from anaphora.staging import StaticBuffer
from anaphora.wire import BlockTableDelta, Limits, Step
from hypothesis import given, settings
from hypothesis import strategies as st
from step_driver import u32

LIMITS = Limits(block_size=4, max_rows=5, max_step_tokens=100, max_context=40)
NUM_BLOCKS = 30
VOCAB = 1000


def make_slots() -> Slots:
    """Every slot started, with a whole table: block j of slot i is 29 - (10 * i + j) % 30."""
    slots = Slots(LIMITS, NUM_BLOCKS, VOCAB, torch.device("cpu"))
    for slot in range(LIMITS.max_rows):
        slots.start(slot, 0)
    tables = [29 - (10 * slot + np.arange(10)) % 30 for slot in range(LIMITS.max_rows)]
    slots.extend(tuple(BlockTableDelta(slot, 0, u32(table)) for slot, table in enumerate(tables)), 0)
    return slots


def make_step(rows: list[tuple[int, int, list[int] | None, bool]]) -> Step:
    """Rows of (slot, position, tokens or None to continue, sample)."""
    return Step(
        id=1,
        slots=u32([row[0] for row in rows]),
        positions=u32([row[1] for row in rows]),
        num_tokens=u32([1 if row[2] is None else len(row[2]) for row in rows]),
        samples=np.array([row[3] for row in rows]),
        has_tokens=np.array([row[2] is not None for row in rows]),
        tokens=u32([token for row in rows for token in row[2] or []]),
    )


def sample_everywhere(slots: Slots) -> None:
    """Lets slot i have sampled token 100 + i."""
    slots.lay_out(make_step([(slot, 0, [1], True) for slot in range(LIMITS.max_rows)]))
    slots.remember(torch.arange(LIMITS.max_rows), torch.arange(100, 100 + LIMITS.max_rows))


def resolve(slots: Slots, layout: Layout) -> tuple[list[int], ForwardContext]:
    """Token ids and context, as a pass without a graph gets them."""
    inputs = Inputs.of(layout, [torch.from_numpy(array) for array in layout.arrays()])
    token_ids, context = slots.resolve(inputs, HostLengths.of(layout))
    return token_ids.tolist(), context


def test_the_picture_of_the_module() -> None:
    slots = make_slots()
    sample_everywhere(slots)
    layout = slots.lay_out(make_step([(2, 8, [11, 12, 13, 14], False), (0, 5, None, True), (4, 0, [21, 22, 23], True)]))
    token_ids, context = resolve(slots, layout)
    assert token_ids == [11, 12, 13, 14, 100, 21, 22, 23]
    assert layout.positions.tolist() == [8, 9, 10, 11, 5, 0, 1, 2]
    attention = context.attention
    assert attention.query_starts.tolist() == [0, 4, 5, 8]
    assert attention.context_lengths.tolist() == [12, 6, 3]
    assert attention.host_query_lengths == (4, 1, 3)
    assert attention.host_context_lengths == (12, 6, 3)
    assert (attention.num_queries, attention.max_query_length, attention.max_context_length) == (8, 4, 12)
    assert attention.block_tables.tolist() == [[9, 8, 7], [29, 28, 27], [19, 18, 17]]
    assert context.kv_indices.tolist() == [28, 29, 30, 31, 28 * 4 + 1, 76, 77, 78]
    assert layout.sample_indices.tolist() == [4, 7]
    assert layout.sample_slots.tolist() == [0, 4]
    assert context.sampled is not None
    assert context.sampled.indices.tolist() == [4, 7]
    attention = context.sampled.attention
    assert attention.query_starts.tolist() == [0, 1, 2]
    assert attention.context_lengths.tolist() == [6, 3]
    assert attention.host_context_lengths == (6, 3)
    assert attention.block_tables.tolist() == [[29, 28], [19, 18]]


def test_sampled_tokens_are_told_apart_only_where_there_are_others() -> None:
    slots = make_slots()
    sample_everywhere(slots)
    _, context = resolve(slots, slots.lay_out(make_step([(2, 8, [11], True), (0, 5, None, True)])))
    assert context.sampled is None, "all are sampled"
    _, context = resolve(slots, slots.lay_out(make_step([(2, 8, [11, 12], False), (0, 4, [13, 14], False)])))
    assert context.sampled is not None, "none is sampled: the last stands for it"
    assert context.sampled.indices.tolist() == [3]
    assert context.sampled.attention.context_lengths.tolist() == [6]
    assert context.sampled.attention.block_tables.tolist() == [[29, 28]]


def test_a_slot_continues_with_what_it_sampled_last() -> None:
    slots = make_slots()
    sample_everywhere(slots)
    step = make_step([(3, 1, None, True), (1, 1, None, True)])
    assert resolve(slots, slots.lay_out(step))[0] == [103, 101]
    slots.remember(torch.tensor([3, 1]), torch.tensor([7, 8]))
    assert resolve(slots, slots.lay_out(step))[0] == [7, 8]
    assert slots.last_tokens[:5].tolist() == [100, 8, 102, 7, 104]


def test_rows_that_share_a_prefix_are_found() -> None:
    """In the order of the rows, whatever their slots are; only if all rows decode, and if it saves enough."""
    slots = Slots(LIMITS, NUM_BLOCKS, VOCAB, torch.device("cpu"), min_shared_tokens=8)
    for slot, table in enumerate([[7, 8, 9, 1], [2, 3, 4, 5], [7, 8, 9, 6], [10, 11, 12, 13], [7, 8, 14, 15]]):
        slots.start(slot, 0)
        slots.extend((BlockTableDelta(slot, 0, u32(table)),), 0)
    step = make_step([(4, 13, [1], True), (3, 13, [1], True), (0, 13, [1], True), (2, 13, [1], True)])
    layout = slots.lay_out(step)
    shared = layout.shared_prefixes
    assert shared is not None
    assert shared.rows.tolist() == [2, 3, 0]
    assert shared.group_starts.tolist() == [0, 3]
    assert shared.lengths.tolist() == [8]
    assert shared.row_groups.tolist() == [0, -1, 0, 0]
    assert [shared.row_members[row].item() for row in (2, 3, 0)] == [0, 1, 2]
    inputs = Inputs.of(layout, [torch.from_numpy(array) for array in layout.arrays()])
    assert inputs.shared_prefixes is not None
    assert inputs.shared_prefixes.rows.tolist() == [2, 3, 0]
    assert slots.lay_out(make_step([(4, 12, [1, 2], True), (0, 13, [1], True)])).shared_prefixes is None
    slots = make_slots()
    assert slots.lay_out(step).shared_prefixes is None


def test_deltas_extend_and_replace() -> None:
    slots = make_slots()
    slots.start(1, 2)
    slots.extend(
        (BlockTableDelta(1, 0, u32([3, 4])), BlockTableDelta(1, 2, u32([5])), BlockTableDelta(1, 1, u32([6]))), 2
    )
    _, context = resolve(slots, slots.lay_out(make_step([(1, 11, [1], True)])))
    assert context.attention.block_tables.tolist() == [[3, 6, 5]]


@st.composite
def rows_of_steps(draw: st.DrawFn) -> list[tuple[int, int, list[int] | None, bool]]:
    chosen = draw(st.lists(st.integers(0, LIMITS.max_rows - 1), min_size=1, unique=True))
    rows = []
    for slot in chosen:
        tokens = draw(st.none() | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12))
        position = draw(st.integers(0, LIMITS.max_context - len(tokens or [0])))
        rows.append((slot, position, tokens, draw(st.booleans())))
    return rows


def naive(rows: list[tuple[int, int, list[int] | None, bool]]) -> dict[str, list[int]]:
    """Row by row and token by token."""
    expected: dict[str, list[int]] = {name: [] for name in ("tokens", "positions", "indices", "sampled")}
    for slot, position, tokens, samples in rows:
        for offset, token in enumerate([100 + slot] if tokens is None else tokens):
            block = 29 - (10 * slot + (position + offset) // 4) % 30
            expected["tokens"].append(token)
            expected["positions"].append(position + offset)
            expected["indices"].append(block * 4 + (position + offset) % 4)
        if samples:
            expected["sampled"].append(len(expected["tokens"]) - 1)
    return expected


@settings(deadline=None)
@given(rows_of_steps())
def test_any_rows(rows: list[tuple[int, int, list[int] | None, bool]]) -> None:
    slots = make_slots()
    sample_everywhere(slots)
    layout = slots.lay_out(make_step(rows))
    expected = naive(rows)
    assert resolve(slots, layout)[0] == expected["tokens"]
    assert layout.positions.tolist() == expected["positions"]
    assert layout.kv_indices.tolist() == expected["indices"]
    assert layout.sample_indices.tolist() == expected["sampled"]


def test_device_tables_follow_the_deltas() -> None:
    """The upload that a GPU needs, on the CPU: the same tables as the host's."""
    slots = make_slots()
    slots.block_tables = torch.zeros_like(slots.block_tables)
    deltas = (
        BlockTableDelta(3, 0, u32([1, 2, 3])),
        BlockTableDelta(0, 4, u32([9])),
        BlockTableDelta(3, 3, u32([7, 8])),
    )
    slots.extend(deltas, 1)
    slots._upload_deltas(deltas)
    assert slots.block_tables[3].tolist() == [1, 2, 3, 7, 8, 0, 0, 0, 0, 0]
    assert slots.block_tables[0].tolist() == [0, 0, 0, 0, 9, 0, 0, 0, 0, 0]
    assert slots.lay_out(make_step([(3, 19, [1], True)])).kv_indices.tolist() == [8 * 4 + 3]


def test_packed_arrays_come_out_as_they_went_in() -> None:
    """What a GPU gets in one copy, on the CPU: every dtype, odd sizes, strides, nothing at all."""
    arrays = [
        np.arange(5, dtype=np.int64),
        np.array([True, False, True]),
        np.empty(0, np.int64),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(10, dtype=np.int32)[::3],
        np.empty((0, 4), np.float32),
    ]
    for chosen in (arrays, arrays[2:3]):
        buffer = StaticBuffer(chosen, torch.device("cpu"))
        buffer.fill(chosen)
        for tensor, array in zip(buffer.tensors, chosen, strict=True):
            assert torch.equal(tensor, torch.from_numpy(array.copy()))

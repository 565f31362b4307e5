"""The step protocol as dataclasses: there and back, without copies, and nothing inconsistent gets in."""

from dataclasses import fields, replace

import numpy as np
import pytest
from anaphora import wire
from anaphora.errors import InvalidRequestError, InvalidStepError
from anaphora.wire import (
    BlockTableDelta,
    Description,
    Limits,
    RowStart,
    Sampling,
    Step,
    StepResult,
    TopLogprobs,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from step_driver import u32

U32 = st.integers(0, 2**32 - 1)
F32 = st.floats(width=32, allow_nan=False)


def arrays(dtype: str, length: st.SearchStrategy[int] = st.integers(0, 5)) -> st.SearchStrategy[np.ndarray]:  # noqa: B008
    return length.flatmap(lambda n: st_numpy.arrays(dtype, n, elements=F32 if dtype == "<f4" else U32))


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    num_biases = draw(st.integers(0, 3))
    drawn = {name: draw(F32) for name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")}
    drawn |= {name: draw(F32) for name in ("frequency_penalty", "presence_penalty")}
    drawn |= {name: draw(U32) for name in ("top_k", "num_top_logprobs", "min_new_tokens")}
    return Sampling(
        **drawn,
        seed=draw(st.integers(0, 2**64 - 1)),
        bias_tokens=draw(arrays("<u4", st.just(num_biases))),
        bias_values=draw(arrays("<f4", st.just(num_biases))),
        stop_tokens=draw(arrays("<u4")),
    )


@st.composite
def row_starts(draw: st.DrawFn) -> RowStart:
    history = draw(arrays("<u4"))
    num_prompt_tokens = draw(st.integers(0, history.size))
    return RowStart(draw(U32), draw(samplings()), draw(U32), history, num_prompt_tokens)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    num_rows = draw(st.integers(0, 4))
    has_tokens = np.array(draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)), bool)
    num_tokens = np.array([draw(st.integers(1, 5)) if given else 1 for given in has_tokens], "<u4")
    num_given = int(num_tokens[has_tokens].sum())
    return Step(
        id=draw(st.integers(1, 2**64 - 1)),
        finished=draw(arrays("<u4")),
        started=tuple(draw(st.lists(row_starts(), max_size=2))),
        block_tables=tuple(draw(st.lists(st.builds(BlockTableDelta, U32, U32, arrays("<u4")), max_size=2))),
        block_copies=draw(arrays("<u4", st.sampled_from([0, 2, 4]))).reshape(-1, 2),
        slots=draw(arrays("<u4", st.just(num_rows))),
        positions=draw(arrays("<u4", st.just(num_rows))),
        num_tokens=num_tokens,
        samples=np.array(draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)), bool),
        has_tokens=has_tokens,
        tokens=draw(arrays("<u4", st.just(num_given))),
        traceparent=draw(st.sampled_from(["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"])),
    )


def assert_equal(actual: object, expected: object) -> None:
    """Equality that looks into tuples, dataclasses and arrays."""
    assert type(actual) is type(expected)
    if isinstance(actual, np.ndarray):
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(actual, tuple):
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_equal(ours, theirs)
    elif hasattr(actual, "__dataclass_fields__"):
        for field in fields(actual):
            assert_equal(getattr(actual, field.name), getattr(expected, field.name))
    else:
        assert actual == expected


@given(steps())
def test_steps_come_back(step: Step) -> None:
    assert_equal(wire.decode_step(wire.encode_step(step)), step)


@given(st.builds(StepResult, U32, arrays("<u4"), arrays("<f4"), st.just(()), U32), arrays("<u4"), arrays("<f4"))
def test_results_come_back(result: StepResult, tokens: np.ndarray, logprobs: np.ndarray) -> None:
    result = replace(result, top=(TopLogprobs(3, tokens, logprobs),))
    assert_equal(wire.decode_result(wire.encode_result(result)), result)


def test_the_other_messages_come_back() -> None:
    description = Description(
        "ab12", "LlamaForCausalLM", "bfloat16", "bfloat16", "cpu", 1, 2, 9, 10, 2**40, 2**41, ("x", "y")
    )
    assert wire.decode_description(wire.encode_description(description)) == description
    limits = Limits(16, 8, 512, 4096, num_blocks=2**33, memory_utilization=0.5)
    assert wire.decode_limits(wire.encode_limits(limits)) == limits
    assert wire.decode_num_blocks(wire.encode_num_blocks(2**33)) == 2**33


def test_arrays_are_views_of_the_message() -> None:
    step = Step(1, slots=u32([0]), positions=u32([0]), num_tokens=u32([3]), tokens=u32([7, 8, 9]))
    step = replace(step, samples=np.array([True]), has_tokens=np.array([True]))
    decoded = wire.decode_step(wire.encode_step(step))
    assert not decoded.tokens.flags.owndata
    assert not decoded.tokens.flags.writeable


ONE_ROW = Step(
    7,
    slots=u32([0]),
    positions=u32([0]),
    num_tokens=u32([3]),
    samples=np.array([True]),
    has_tokens=np.array([True]),
    tokens=u32([7, 8, 9]),
)
SMALL_BIAS = Sampling(bias_tokens=u32([1, 2]), bias_values=np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": u32([0]), "tokens": u32([])}, "no tokens"),
        ({"num_tokens": u32([2])}, "take 2 input ids, but 3 are given"),
        ({"positions": u32([1, 2])}, "differ in length"),
        ({"has_tokens": np.array([False])}, "more than that one"),
        ({"block_copies": u32([1, 2, 3])}, "no pairs"),
        ({"started": (RowStart(0, SMALL_BIAS),)}, "bias_tokens and bias_values"),
        ({"started": (RowStart(0, Sampling(), 0, u32([1]), 2),)}, "longer than the history"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidStepError, match=message) as error:
        wire.decode_step(wire.encode_step(replace(ONE_ROW, **changes)))
    assert str(error.value).startswith("step 7: ")


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="not a Step"):
        wire.decode_step(b"\xff\xff\xff")


@pytest.mark.parametrize(
    "changes",
    [{"block_size": 0}, {"max_rows": 0}, {"max_step_tokens": 0}, {"max_context": 0}]
    + [{"memory_utilization": value} for value in (0.0, 1.5, -1.0, float("nan"))],
)
def test_impossible_limits_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(changes))):
        wire.decode_limits(wire.encode_limits(replace(Limits(16, 8, 512, 4096), **changes)))

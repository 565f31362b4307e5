"""The gRPC service over a real Unix socket: pipelining, take-over, and what happens to a stream that goes wrong."""

import io
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from anaphora.config import TelemetryConfig
from anaphora.loader import LoadedModel
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.service import ShardService, serve
from anaphora.telemetry import Telemetry
from anaphora.wire import BlockTableDelta, Limits, RowStart, Sampling, Step, StepResult
from anaphora.worker import PendingResult, Worker
from grpc_client import Client, Stream, remaining
from paged_driver import Driver
from step_driver import Sequence, StepDriver, u32

LIMITS = Limits(block_size=16, max_rows=4, max_step_tokens=256, max_context=512, num_blocks=64)
TIMEOUT_S = 30


class Shard:
    """A served worker, whose faults can be arranged."""

    def __init__(self, loaded: LoadedModel, socket: Path) -> None:
        self.worker = Worker(loaded, ParallelGroup(), torch.device("cpu"), Progress(io.StringIO()))
        self.is_broken = threading.Event()
        telemetry = Telemetry(TelemetryConfig(), 0)
        self.server = serve(ShardService(self.worker, telemetry, self.is_broken.set), socket)
        self.client = Client(socket)


@pytest.fixture
def shard(tiny_llama: LoadedModel, tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tiny_llama, tmp_path / "run" / "shard-0.sock")
    shard.client.configure(LIMITS)
    yield shard
    shard.client.close()
    shard.server.stop(0).wait()


def step(step_id: int = 1, **changes: object) -> Step:
    """Slot 0 begins with three tokens, and samples."""
    step = Step(
        id=step_id,
        started=(RowStart(0, Sampling()),),
        block_tables=(BlockTableDelta(0, 0, u32([5])),),
        slots=u32([0]),
        positions=u32([0]),
        num_tokens=u32([3]),
        samples=np.array([True]),
        has_tokens=np.array([True]),
        tokens=u32([1, 2, 3]),
    )
    return replace(step, **changes)


def decode(step_id: int, position: int) -> Step:
    """Slot 0 goes on."""
    going_on = {"started": (), "block_tables": (), "num_tokens": u32([1]), "tokens": u32([])}
    return step(step_id, **going_on, positions=u32([position]), has_tokens=np.array([False]))


def status_of(stream: Stream) -> tuple[grpc.StatusCode, str]:
    """How the stream ends."""
    with pytest.raises(grpc.RpcError) as error:
        list(remaining(stream))
    return error.value.code(), error.value.details()


def assert_next_stream_works(shard: Shard) -> None:
    stream = shard.client.execute()
    stream.send(step())
    assert stream.result().tokens.size == 1
    stream.close()
    assert list(remaining(stream)) == []


@pytest.mark.parametrize("in_flight", [1, 2])
def test_greedy_equals_a_plain_loop(shard: Shard, tiny_llama: LoadedModel, in_flight: int) -> None:
    prompts = [[7 * i + j for j in range(3 + 9 * i)] for i in range(6)]
    sequences = [Sequence(prompt, 16) for prompt in prompts]
    stream = shard.client.execute()
    StepDriver(LIMITS, 64).run(stream.execute, sequences, chunk=10, in_flight=in_flight)
    stream.close()
    assert list(remaining(stream)) == []
    expected = [Driver(tiny_llama.model).greedy([prompt], 16, 512)[0] for prompt in prompts]
    assert [sequence.outputs for sequence in sequences] == expected


def test_describe_health_and_socket(shard: Shard, tmp_path: Path) -> None:
    description = shard.client.describe()
    assert (description.architecture, description.vocab_size, description.device) == ("LlamaForCausalLM", 199, "cpu")
    assert description.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head size, float32
    assert shard.client.is_serving()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


class Held(PendingResult):
    """A result that the device has not finished before the test says so."""

    def __init__(self, step_id: int, released: threading.Event) -> None:
        self.step_id, self.released = step_id, released

    def result(self) -> StepResult:
        assert self.released.wait(TIMEOUT_S)
        return StepResult(self.step_id, u32([self.step_id]), np.zeros(1, np.float32))


def test_a_step_is_launched_while_the_one_before_is_awaited(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = [threading.Event(), threading.Event()]
    released = [threading.Event(), threading.Event()]

    def launch(step: Step, arrived_at: float) -> PendingResult:
        launched[step.id - 1].set()
        return Held(step.id, released[step.id - 1])

    monkeypatch.setattr(shard.worker, "launch", launch)
    stream = shard.client.execute()
    stream.send(step(1))
    stream.send(step(2))
    assert launched[1].wait(TIMEOUT_S), "the second is launched, the first has no result"
    released[0].set()
    assert stream.result().tokens.tolist() == [1]  # although the second has none, and no third comes
    released[1].set()
    assert stream.result().tokens.tolist() == [2]
    stream.close()


def test_the_result_of_a_lone_step_waits_for_nothing(shard: Shard) -> None:
    stream = shard.client.execute()
    for step_id in (1, 2, 3):
        stream.send(step() if step_id == 1 else decode(step_id, step_id + 1))
        result = stream.result()
        assert (result.id, result.tokens.size) == (step_id, 1)
        assert result.duration_us > 0
    stream.close()
    assert list(remaining(stream)) == []


def test_a_new_stream_takes_over_and_clears_the_slots(shard: Shard) -> None:
    old, new = shard.client.execute(), shard.client.execute
    old.send(step())
    old.result()
    successor = new()
    successor.send(step())
    assert successor.result().tokens.size == 1
    code, details = status_of(old)
    assert code is grpc.StatusCode.ABORTED
    assert "took over" in details
    third = new()
    third.send(decode(1, 3))  # what the others started is gone
    assert status_of(third)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_configure_ends_a_stream(shard: Shard) -> None:
    stream = shard.client.execute()
    stream.send(step())
    stream.result()
    assert shard.client.configure(LIMITS) == 64
    assert status_of(stream)[0] is grpc.StatusCode.ABORTED
    assert_next_stream_works(shard)


def test_a_cancelled_stream_leaves_nothing_behind(shard: Shard) -> None:
    stream = shard.client.execute()
    stream.send(step())
    stream.result()
    stream.call.cancel()
    assert_next_stream_works(shard)


@pytest.mark.parametrize(
    ("bad", "details"),
    [
        (step(2, slots=u32([99])), "step 2: slot 99"),
        (step(2, tokens=u32([1, 2, 500])), "step 2: token 500"),
        (step(4), "step 4: step 2 should have come"),
        (step(2, num_tokens=u32([9])), "step 2: its rows take 9 input ids"),
    ],
)
def test_a_bad_step_ends_its_stream_after_the_results_before_it(shard: Shard, bad: Step, details: str) -> None:
    stream = shard.client.execute()
    stream.send(step())
    stream.send(bad)
    assert stream.result().tokens.size == 1
    code, actual = status_of(stream)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert actual.startswith(details)
    assert_next_stream_works(shard)
    assert not shard.is_broken.is_set()


def fail_in_launch(step: Step, arrived_at: float) -> PendingResult:
    raise ValueError("a kernel's shapes")


class Failed(PendingResult):
    def __init__(self) -> None:
        pass

    def result(self) -> StepResult:
        raise RuntimeError("the device gave up")


def fail_in_result(step: Step, arrived_at: float) -> PendingResult:
    return Failed()


@pytest.mark.parametrize(
    ("launch", "message"),
    [(fail_in_launch, "ValueError: a kernel's shapes"), (fail_in_result, "RuntimeError: the device gave up")],
)
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_fault_of_ours_fails_the_stream_and_names_the_step(
    shard: Shard,
    monkeypatch: pytest.MonkeyPatch,
    launch: Callable[[Step, float], PendingResult],
    message: str,
    is_broken: bool,
) -> None:
    monkeypatch.setattr(shard.worker, "launch", launch)
    monkeypatch.setattr(shard.worker, "is_broken", lambda: is_broken)
    stream = shard.client.execute()
    stream.send(step())
    code, details = status_of(stream)
    assert code is grpc.StatusCode.INTERNAL
    assert details == f"step 1 failed: {message}"
    assert shard.is_broken.is_set() == is_broken
    monkeypatch.undo()
    assert_next_stream_works(shard)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (replace(LIMITS, max_context=4096), grpc.StatusCode.INVALID_ARGUMENT),
        (replace(LIMITS, block_size=0), grpc.StatusCode.INVALID_ARGUMENT),
        (replace(LIMITS, num_blocks=2**40), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_configure_that_cannot_be(shard: Shard, limits: Limits, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as error:
        shard.client.configure(limits)
    assert error.value.code() is code
    # What no shard could do is the router's mistake; what this one cannot do ends it.
    assert shard.is_broken.is_set() == (code is not grpc.StatusCode.INVALID_ARGUMENT)
    shard.client.configure(LIMITS)
    assert_next_stream_works(shard)


def test_execute_before_configure(tiny_llama: LoadedModel, tmp_path: Path) -> None:
    shard = Shard(tiny_llama, tmp_path / "shard.sock")
    stream = shard.client.execute()
    stream.send(step())
    assert status_of(stream)[0] is grpc.StatusCode.FAILED_PRECONDITION
    shard.client.close()
    shard.server.stop(0).wait()

"""`anaphora shard` as the launcher runs it: processes, events, exit codes, and two ranks that say what one says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from anaphora import errors
from anaphora.config import ShardConfig, limit_openmp_spinning
from anaphora.wire import Limits, Sampling, Step, StepResult
from grpc_client import Client, Stream
from step_driver import Sequence, StepDriver

LIMITS = Limits(block_size=16, max_rows=4, max_step_tokens=256, max_context=512, num_blocks=64)
SAMPLED = Sampling(temperature=1.2, top_p=0.95, repetition_penalty=1.2, seed=3, num_top_logprobs=2)
TIMEOUT_S = 60
PROMPTS = [[5 * i + j for j in range(2 + 13 * i)] for i in range(5)]


class Process:
    """A shard, and the events that it has reported."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "anaphora._cli", "shard", "--num-threads", "1", "--device", "cpu", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, event: str) -> list[dict[str, object]]:
        """All events up to this one."""
        events: list[dict[str, object]] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == event:
                return events
        raise AssertionError(f"no {event}; {self.end()}")

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, stderr = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, stderr


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes that end with the test, whatever happens."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.process.kill()
        process.process.wait()


class AllRanks:
    """`StepDriver`'s verb over several streams: the same step to each, and the answer of rank 0."""

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams
        self.others_answered: list[int] = []

    def execute(self, step: Step) -> "AllRanks":
        for stream in self.streams:
            stream.send(step)
        return self

    def result(self) -> StepResult:
        first, *others = [stream.result() for stream in self.streams]
        self.others_answered += [result.tokens.size for result in others]
        assert {result.id for result in others} <= {first.id}
        return first


def generate(clients: list[Client]) -> tuple[list[Sequence], AllRanks]:
    with ThreadPoolExecutor() as pool:  # the ranks agree on a size: all of them are asked at once
        assert list(pool.map(lambda client: client.configure(LIMITS), clients)) == [64] * len(clients)
    ranks = AllRanks([client.execute() for client in clients])
    sequences = [Sequence(prompt, 16, SAMPLED if i % 2 else Sampling()) for i, prompt in enumerate(PROMPTS)]
    StepDriver(LIMITS, 64).run(ranks.execute, sequences, chunk=20, in_flight=2)
    for stream in ranks.streams:
        stream.close()
    return sequences, ranks


def hang_in_a_collective(client: Client) -> Stream:
    """Gives one rank of several a step that the others never get; it hangs as long as the stream is held."""
    driver, sequence = StepDriver(LIMITS, 64), Sequence([1, 2, 3], 1)
    driver.start(sequence)
    stream = client.execute()
    stream.send(driver.plan([sequence], 16)[0])
    assert client.is_serving(), "a call that comes after the step is answered all the same"
    return stream


def start(started: list[Process], model: Path, directory: Path, world_size: int) -> list[Client]:
    clients = []
    flags = ["--model", str(model), "--load-format", "dummy", "--dtype", "float32", "--world-size", str(world_size)]
    if world_size > 1:
        flags += ["--rendezvous", f"file://{directory}/rendezvous"]
    for rank in range(world_size):
        socket = directory / f"shard-{world_size}-{rank}.sock"
        started.append(Process(*flags, "--rank", str(rank), "--socket", str(socket)))
        clients.append(Client(socket))
    return clients


def test_two_ranks_say_what_one_says_and_end_on_sigterm(
    started: list[Process], tiny_llama_path: Path, tmp_path: Path
) -> None:
    clients = [start(started, tiny_llama_path, tmp_path, world_size) for world_size in (1, 2)]
    for process in started:
        events = process.wait_for("listening")
        loads = [event for event in events if event.get("phase") == "load"]
        assert loads[-1]["done"] == loads[-1]["total"]
    descriptions = [client.describe() for client in (*clients[0], *clients[1])]
    assert [(d.rank, d.world_size) for d in descriptions] == [(0, 1), (0, 2), (1, 2)]
    assert len({d.fingerprint for d in descriptions}) == 1

    one, _ = generate(clients[0])
    two, ranks = generate(clients[1])
    assert [sequence.outputs for sequence in one] == [sequence.outputs for sequence in two]
    assert set(ranks.others_answered) == {0}, "only rank 0 answers with tokens"

    for process in started:
        process.process.send_signal(signal.SIGINT)  # is the launcher's business
    assert all(client.is_serving() for client in (*clients[0], *clients[1]))
    hanging = hang_in_a_collective(clients[1][0])
    for process in started:  # the hanging rank before the one that it waits for
        process.process.terminate()
        code, stderr = process.end()
        assert code == 0, stderr
        assert "Traceback" not in stderr
    with pytest.raises(grpc.RpcError):
        hanging.result()
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["rendezvous"])


def test_a_bad_model_ends_with_3_and_one_paragraph(started: list[Process], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but no more")
    started.append(Process("--model", str(broken), "--socket", str(tmp_path / "shard.sock")))
    code, stderr = started[0].end()
    assert code == 3
    assert stderr.startswith(str(broken))
    assert len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("flash_attention", "flash_attn_interface"),  # is installed on no CPU
        ("triton", "has no 'triton' implementation for torch.float32 on cpu"),
    ],
)
def test_a_backend_that_cannot_be_used_is_refused(
    started: list[Process], tiny_llama_path: Path, tmp_path: Path, backend: str, message: str
) -> None:
    model = ("--model", str(tiny_llama_path), "--load-format", "dummy", "--dtype", "float32")
    started.append(Process(*model, "--socket", str(tmp_path / "shard.sock"), "--attention-backend", backend))
    code, stderr = started[0].end()
    assert code == 1
    assert stderr.startswith(f"--attention-backend {backend}: ")
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code"), [(errors.TensorShapeError(""), 3), (errors.PoolSizeError(""), 1), (ValueError(), 1)]
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert errors.exit_code_of(error) == code


MINIMAL = ("--model", "x", "--socket", "y")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*MINIMAL, "--world-size", "2"), "--rendezvous"),
        ((*MINIMAL, "--rank", "1"), "--rank 1 is not within --world-size 1"),
        ((*MINIMAL, "--num-threads", "-1"), "--num-threads"),
        ((*MINIMAL, "--dtype", "int3"), "--dtype"),
        (("--model", "x"), "--socket"),
    ],
)
def test_usage(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        ShardConfig.parse(flags)
    assert exit_code.value.code == 2
    assert message in capsys.readouterr().err


def test_defaults() -> None:
    config = ShardConfig.parse(MINIMAL)
    assert config.num_threads == len(os.sched_getaffinity(0))
    assert (config.rank, config.world_size, config.device, config.telemetry.otlp_endpoint) == (0, 1, "auto", None)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "100"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_openmp_threads_do_not_spin_for_long_unless_told_to(given: dict[str, str], spins: str | None) -> None:
    environment = dict(given)
    limit_openmp_spinning(environment)
    assert environment.get("GOMP_SPINCOUNT") == spins


def test_help_does_not_import_torch() -> None:
    script = "import sys, anaphora._cli; sys.argv = ['anaphora', '--version']; anaphora._cli.main(); "
    script += "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'grpc', 'google.protobuf')))"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, "-c", script], check=False, env=environment).returncode == 0

"""The step protocol over gRPC: decode, hand to the worker, encode.

    requests -> device thread: decode, worker.launch -> outcomes -> handler thread: wait for the result, encode, answer

One thread owns the worker, and with it everything on the device; it reads the stream itself, so a step is launched the
moment it arrives, while another thread still waits for the tokens of the step before. One `Execute` stream drives a
shard: a new one takes over (its router has restarted, or lost the old connection without our noticing), and every slot
is cleared.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from anaphora import wire
from anaphora.errors import (
    InvalidRequestError,
    InvalidStepError,
    ShardError,
    StepFailedError,
    SupersededError,
    status_of,
)
from anaphora.telemetry import StepSpan, Telemetry
from anaphora.worker import PendingResult, Worker

_LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")

_NUM_HANDLER_THREADS: Final = 8  # a stream and its successor, Configure, Describe, health
_TAKE_OVER_S: Final = 1.0  # how long a superseded stream may take to leave of itself

_SERVER_OPTIONS: Final = (
    # A step carries a prompt chunk at most, but a history (for penalties) is as long as a context.
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 256 << 20),
    # The router sends keep-alive pings, also between steps; by default gRPC would hang up on it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True)
class _Launched:
    step_id: int
    pending: PendingResult
    span: StepSpan


@dataclass
class _Stream:
    """One `Execute` call."""

    requests: Iterator[bytes]
    context: grpc.ServicerContext
    # What was launched, in order; an error ends the call with its status, None ends it well.
    outcomes: "queue.SimpleQueue[_Launched | ShardError | None]" = field(default_factory=queue.SimpleQueue)
    has_left: threading.Event = field(default_factory=threading.Event)  # the device thread is done with it

    def supersede(self, reason: str) -> None:
        """Ends the call, and returns when the device thread has left it (or will as soon as it can)."""
        self.outcomes.put(SupersededError(reason))
        if not self.has_left.wait(_TAKE_OVER_S):
            self.context.cancel()


class ShardService:
    """The three calls, on raw bytes: `wire.py` knows what is in them."""

    def __init__(self, worker: Worker, telemetry: Telemetry, on_broken: Callable[[], None]) -> None:
        """`on_broken` is called once if the worker cannot go on (its process should end)."""
        self._worker = worker
        self._telemetry = telemetry
        self._on_broken = on_broken
        self._device_thread = _DeviceThread()
        self._stream: _Stream | None = None
        self._stream_lock = threading.Lock()  # held for the swap of `_stream` only

    def describe(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        """`Describe`. Reads what never changes, so any thread may."""
        return _answer(context, lambda: wire.encode_description(self._worker.describe()))

    def configure(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """`Configure`; ends a running stream, whose slots are gone."""

        def run() -> bytes:
            limits = wire.decode_limits(request)
            self._take_over(None, "Configure clears every slot")
            try:
                num_blocks = self._device_thread.submit(lambda: self._worker.configure(limits)).result()
            except InvalidRequestError:
                raise
            except Exception:
                # What does not fit now will not fit at the next try, and other ranks may wait for this one: the
                # launcher restarts the replica, a few times.
                _LOG.critical("this shard cannot be configured")
                self._on_broken()
                raise
            return wire.encode_num_blocks(num_blocks)

        return _answer(context, run)

    def execute(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """`Execute`. A result is sent as soon as it is there, whether or not another step has arrived."""
        stream = _Stream(requests, context)
        self._take_over(stream, "another Execute stream took over")
        self._device_thread.submit(lambda: self._run(stream))
        while (outcome := stream.outcomes.get()) is not None:
            if isinstance(outcome, ShardError):
                context.abort(status_of(outcome), str(outcome))
                return
            try:
                result = outcome.pending.result()
            except Exception as error:  # the device works asynchronously: whatever it is, it is this step's
                outcome.span.end(error)
                failure = self._failure(outcome.step_id, error)
                context.abort(status_of(failure), str(failure))
            outcome.span.end()
            yield wire.encode_result(result)

    # === device thread ===

    def _run(self, stream: _Stream) -> None:
        """Launches the steps of a stream until it ends."""
        self._worker.clear()
        step_id = 0
        try:
            for step_id, data in enumerate(stream.requests, start=1):
                stream.outcomes.put(self._launch(step_id, data))
            stream.outcomes.put(None)
        except ShardError as error:
            _LOG.error("Execute ends: %s", error)
            stream.outcomes.put(error)
        except grpc.RpcError:  # how the iterator of a cancelled call ends
            stream.outcomes.put(None)
        except Exception as error:  # the process outlives a bug in a step
            stream.outcomes.put(self._failure(step_id, error))
        finally:
            self._worker.clear()
            stream.has_left.set()

    def _launch(self, step_id: int, data: bytes) -> _Launched:
        arrived_at = time.perf_counter()
        step = wire.decode_step(data)
        if step.id != step_id:
            raise InvalidStepError(step.id, f"step {step_id} should have come; they count up from 1 in a stream")
        span = self._telemetry.start(step)
        try:
            return _Launched(step_id, self._worker.launch(step, arrived_at), span)
        except BaseException as error:
            span.end(error)
            raise

    # === any thread ===

    def _take_over(self, stream: _Stream | None, reason: str) -> None:
        with self._stream_lock:
            previous, self._stream = self._stream, stream
        if previous is not None and not previous.has_left.is_set():
            _LOG.warning("an Execute stream is ended: %s", reason)
            previous.supersede(reason)

    def _failure(self, step_id: int, error: BaseException) -> StepFailedError:
        """Logs what nobody expected; a process that cannot go on is reported."""
        _LOG.error("step %d failed", step_id, exc_info=error)
        if self._worker.is_broken():
            _LOG.critical("this shard cannot go on")
            self._on_broken()
        return StepFailedError(step_id, error)


class _DeviceThread:
    """Runs jobs one after another, all on one thread: libraries keep state by thread, and a worker has no locks."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # A daemon: it may hang in a collective whose other ranks are gone, and must not keep the process.
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def submit(self, job: Callable[[], T]) -> "futures.Future[T]":
        """Queues a job."""
        future: futures.Future[T] = futures.Future()

        def run() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # it is the caller's
                future.set_exception(error)

        self._jobs.put(run)
        return future

    def _run(self) -> None:
        while True:
            self._jobs.get()()


def serve(service: ShardService, socket: Path) -> grpc.Server:
    """Starts a server on a Unix socket that only this user can reach; stop it with `.stop(grace)`."""
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = grpc.server(
        futures.ThreadPoolExecutor(_NUM_HANDLER_THREADS, thread_name_prefix="grpc"), options=_SERVER_OPTIONS
    )
    handlers = {
        "Describe": grpc.unary_unary_rpc_method_handler(service.describe),
        "Configure": grpc.unary_unary_rpc_method_handler(service.configure),
        "Execute": grpc.stream_stream_rpc_method_handler(service.execute),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
    statuses = health.HealthServicer()
    for name in ("", wire.SERVICE):
        statuses.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


def _answer(context: grpc.ServicerContext, run: Callable[[], bytes]) -> bytes:
    """The answer of a unary call, or its error as a status."""
    try:
        return run()
    except ShardError as error:
        _LOG.error("%s", error)
        context.abort(status_of(error), str(error))
    except Exception as error:
        _LOG.exception("a call failed")
        context.abort(status_of(error), f"{type(error).__name__}: {error}")
    raise AssertionError("abort raises. This is a bug.")

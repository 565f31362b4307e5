"""The router's end of the step protocol, for tests."""

import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
from anaphora import wire
from anaphora.wire import Description, Limits, Step, StepResult
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 30
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Stream:
    """One Execute call: send steps, receive results, in any interleaving."""

    def __init__(self, call: grpc.StreamStreamMultiCallable) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = call(iter(self._requests.get, None), timeout=TIMEOUT_S)

    def send(self, step: Step) -> None:
        self._requests.put(wire.encode_step(step))

    def close(self) -> None:
        """No more steps will come."""
        self._requests.put(None)

    def result(self) -> StepResult:
        """The next result. Raises grpc.RpcError."""
        return wire.decode_result(next(self.call))

    def execute(self, step: Step) -> "Stream":
        """`StepDriver`'s verb: results come in order, so the stream itself is what is pending."""
        self.send(step)
        return self


class Client:
    """One rank."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)

    def describe(self) -> Description:
        return wire.decode_description(self._unary("Describe", b""))

    def configure(self, limits: Limits) -> int:
        return wire.decode_num_blocks(self._unary("Configure", wire.encode_limits(limits)))

    def execute(self) -> Stream:
        return Stream(self.channel.stream_stream(f"/{wire.SERVICE}/Execute"))

    def is_serving(self) -> bool:
        request = health_pb2.HealthCheckRequest(service=wire.SERVICE)
        status = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=TIMEOUT_S).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        self.channel.close()

    def _unary(self, method: str, request: bytes) -> bytes:
        response: bytes = self.channel.unary_unary(f"/{wire.SERVICE}/{method}")(request, timeout=TIMEOUT_S)
        return response


def remaining(stream: Stream) -> Iterator[StepResult]:
    """What is still to come until the call ends."""
    return (wire.decode_result(data) for data in stream.call)

"""Spans of steps, as a collector receives them."""

import queue
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest
from anaphora.config import TelemetryConfig
from anaphora.telemetry import Telemetry
from anaphora.wire import Step
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from step_driver import u32

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STEP = Step(3, slots=u32([0, 1]), num_tokens=u32([5, 1]), samples=np.ones(2, bool), traceparent=f"00-{TRACE}-{SPAN}-01")


@pytest.fixture
def collector() -> Iterator[tuple[str, queue.SimpleQueue]]:
    """An OTLP endpoint, and the requests that it gets."""
    received: queue.SimpleQueue = queue.SimpleQueue()

    def export(request: bytes, context: grpc.ServicerContext) -> bytes:
        received.put(trace_service_pb2.ExportTraceServiceRequest.FromString(request))
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(1))
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", received
    server.stop(0).wait()


def test_a_span_is_a_child_of_the_routers(collector: tuple[str, queue.SimpleQueue]) -> None:
    endpoint, received = collector
    telemetry = Telemetry(TelemetryConfig(endpoint, "shard-under-test"), rank=1)
    telemetry.start(STEP).end()
    telemetry.start(Step(4)).end()  # not traced
    telemetry.close()
    (resource_spans,) = received.get(timeout=30).resource_spans
    resource = {attribute.key: attribute.value.string_value for attribute in resource_spans.resource.attributes}
    assert resource["service.name"] == "shard-under-test"
    ((span,),) = [scope.spans for scope in resource_spans.scope_spans]
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("shard.step", TRACE, SPAN)
    assert {attribute.key: attribute.value.int_value for attribute in span.attributes} == {
        "anaphora.rank": 1,
        "anaphora.step.id": 3,
        "anaphora.step.num_rows": 2,
        "anaphora.step.num_tokens": 6,
    }
    assert received.empty()


def test_a_collector_that_is_not_there_holds_nothing_up() -> None:
    telemetry = Telemetry(TelemetryConfig("http://127.0.0.1:1"), rank=0)
    telemetry.start(STEP).end()
    before = time.monotonic()
    telemetry.close()
    assert time.monotonic() - before < 4


def test_without_an_endpoint_nothing_happens() -> None:
    telemetry = Telemetry(TelemetryConfig(), rank=0)
    assert telemetry.start(STEP) is telemetry.start(Step(4))
    telemetry.close()

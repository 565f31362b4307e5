"""An OpenTelemetry collector in a few lines: takes spans over OTLP/gRPC and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Span:
    """What the tests look at."""

    service: str  # service.name of the process that made it
    name: str
    trace_id: str  # hex
    span_id: str
    parent_id: str  # empty: a root


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Use `listen`."""

    endpoint: str = ""
    _spans: list[Span] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # gRPC's threads write, the tests read

    @classmethod
    @contextmanager
    def listen(cls) -> Iterator[Collector]:
        collector = cls()
        server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield collector
        finally:
            server.stop(grace=1).wait()

    def Export(  # noqa: N802  (the name is the protocol's)
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        spans = []
        for resource in request.resource_spans:
            attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
            spans += [
                Span(
                    attributes.get("service.name", ""),
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                )
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        with self._lock:
            self._spans += spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> list[Span]:
        """What has arrived of one trace so far."""
        with self._lock:
            return [span for span in self._spans if span.trace_id == trace_id]

"""A span for each step that a router traces, exported over OTLP. Without an endpoint nothing is even imported."""

import threading
from typing import TYPE_CHECKING, Final

from anaphora.config import TelemetryConfig
from anaphora.wire import Step

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_CLOSE_S: Final = 1.0


class StepSpan:
    """The span of one step on this rank, from its arrival to its result. May be ended on another thread."""

    def __init__(self, span: "Span | None") -> None:
        """None: not traced."""
        self._span = span

    def end(self, error: BaseException | None = None) -> None:
        """The result is there, or `error` is."""
        if self._span is not None:
            if error is not None:
                self._span.record_exception(error)
            self._span.end()


_UNTRACED = StepSpan(None)


class Telemetry:
    """Starts spans, children of the router's (`Step.traceparent`)."""

    def __init__(self, config: TelemetryConfig, rank: int) -> None:
        """Connects to nothing without `config.otlp_endpoint`; never fails for a collector that is not there."""
        self._rank = rank
        self._provider = None
        if config.otlp_endpoint is None:
            return
        # Imported here: it takes a while, and most shards are not traced.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        exporter = OTLPSpanExporter(
            endpoint=config.otlp_endpoint, insecure=not config.otlp_endpoint.startswith("https://")
        )
        resource = Resource.create({"service.name": config.otlp_service_name})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("anaphora.shard")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, step: Step) -> StepSpan:
        """The span of `step`, which has just arrived."""
        if self._provider is None or not step.traceparent:
            return _UNTRACED
        span = self._tracer.start_span(
            "shard.step",
            context=self._propagator.extract({"traceparent": step.traceparent}),
            attributes={
                "anaphora.rank": self._rank,
                "anaphora.step.id": step.id,
                "anaphora.step.num_rows": int(step.slots.size),
                "anaphora.step.num_tokens": int(step.num_tokens.sum()),
            },
        )
        return StepSpan(span)

    def close(self) -> None:
        """Sends what has not been sent, if the collector takes it within a second."""
        if self._provider is not None:
            # The exporter tries again and again, and has no limit of its own for all of it.
            last_words = threading.Thread(target=self._provider.shutdown, daemon=True)
            last_words.start()
            last_words.join(_CLOSE_S)

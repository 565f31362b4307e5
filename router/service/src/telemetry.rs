//! Logs and traces.
//!
//! Logs go to stderr (stdout belongs to the launcher, see [`crate::events`]). Traces exist only if an OTLP endpoint is given:
//!
//! ```text
//! client's traceparent ─► HTTP request span ─► step span ─► Step.traceparent ─► the shard's spans
//! ```
//! A step serves many requests, but a span has one parent: the step joins the trace of one of them and links to the others.

use std::{io::IsTerminal as _, time::Duration};

use http::{HeaderMap, Request};
use opentelemetry::{
    Context, KeyValue, global,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanKind, TraceContextExt as _, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Level, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer, filter::Targets, layer::SubscriberExt as _, registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::config::TelemetryConfig;

const TRACER: &str = "anaphora.router";

/// More links than a person would follow.
const MAX_LINKS: usize = 32;

/// What must be flushed before the process ends.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Why logs or traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log level is not one, nor a list of directives.
    #[error("--log-level {level}: {source}")]
    Filter {
        /// As given.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The endpoint is no URL.
    #[error("--otlp-endpoint {endpoint}: {source}")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        source: ExporterBuildError,
    },
}

/// Sets up logs and traces for the process; if something else did before, that stays. Call within a tokio runtime: the exporter
/// keeps its connection there.
///
/// # Errors
/// If the configuration makes no sense. An endpoint that nobody listens at is no error: spans are dropped until somebody does.
pub fn init(config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_new(&config.log_level)
        .map_err(|source| TelemetryError::Filter { level: config.log_level.clone(), source })?;
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| provider(config, endpoint)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        global::set_tracer_provider(provider.clone());
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(TRACER));
        // Our own spans: those of hyper and tonic would drown them, and exporting must not trace itself.
        layer.with_filter(Targets::new().with_target("anaphora_router", Level::INFO))
    });
    let registry =
        tracing_subscriber::registry().with(logs(config.json_output).with_filter(filter)).with(traces);
    // Somebody else's subscriber may be there already, in tests above all.
    let _ = registry.try_init();
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Sends the spans that are left; blocks until that is done or has failed.
    pub fn shutdown(self) {
        if let Some(Err(error)) = self.provider.map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

fn logs<S: Subscriber + for<'a> LookupSpan<'a>>(json: bool) -> Box<dyn Layer<S> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    if json {
        layer.json().flatten_event(true).boxed()
    } else {
        layer.with_ansi(std::io::stderr().is_terminal()).boxed()
    }
}

fn provider(config: &TelemetryConfig, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .map_err(|source| TelemetryError::Endpoint { endpoint: endpoint.to_owned(), source })?;
    let resource = Resource::builder().with_service_name(config.otlp_service_name.clone()).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

// === HTTP request ===

/// The span of an HTTP request, in the client's trace if it sent a `traceparent`.
#[must_use]
pub fn request_span<B>(request: &Request<B>) -> tracing::Span {
    let method = request.method().as_str();
    let path = request.uri().path();
    let span = tracing::info_span!(
        "request",
        otel.name = format_args!("{method} {path}"),
        otel.kind = "server",
        http.request.method = method,
        url.path = path,
        http.response.status_code = tracing::field::Empty,
    );
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    if parent.span().span_context().is_valid() {
        // An error means that nobody listens to the span.
        let _ = span.set_parent(parent);
    }
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The trace that the current task is in; `None` if traces are off.
pub(crate) fn current_trace() -> Option<SpanContext> {
    let context = tracing::Span::current().context();
    let span = context.span();
    let span = span.span_context();
    (span.is_valid() && span.is_sampled()).then(|| span.clone())
}

// === step ===

/// The span of a step, which ends when it is dropped; nothing if the step serves no traced request.
#[derive(Debug, Default)]
pub(crate) struct StepSpan {
    _span: Option<global::BoxedSpan>,
    traceparent: String,
}

impl StepSpan {
    /// A span in the trace of the first of `requests`, with links to the others.
    pub(crate) fn new<'a>(
        step: u64,
        num_rows: usize,
        requests: impl IntoIterator<Item = &'a SpanContext>,
    ) -> Self {
        let mut requests = requests.into_iter();
        let Some(parent) = requests.next() else { return Self::default() };
        let parent = Context::new().with_remote_span_context(parent.clone());
        let builder = SpanBuilder::from_name("step")
            .with_kind(SpanKind::Client)
            .with_links(requests.take(MAX_LINKS).map(|span| Link::new(span.clone(), Vec::new(), 0)).collect())
            .with_attributes([
                KeyValue::new("anaphora.step", step as i64),
                KeyValue::new("anaphora.rows", num_rows as i64),
            ]);
        let span = global::tracer(TRACER).build_with_context(builder, &parent);
        let context = span.span_context();
        let (trace, id, flags) = (context.trace_id(), context.span_id(), context.trace_flags());
        let traceparent = format!("00-{trace}-{id}-{:02x}", flags.to_u8());
        Self { _span: Some(span), traceparent }
    }

    /// What the shard continues the trace from; empty if there is none.
    pub(crate) fn traceparent(&self) -> &str {
        &self.traceparent
    }
}

//! A request's trace: from the client's `traceparent` over the router's spans to what the shard is told, exported over OTLP to a
//! collector in this process.

use std::sync::Arc;

use anaphora_core::{Namespace, Request, Sampling};
use anaphora_router::{
    config::{EngineConfig, TelemetryConfig},
    engine::{self, EngineParts},
    shard::fake::{FakeOptions, FakeShard},
    telemetry,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};
use tracing::Instrument as _;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        for span in resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans) {
            let _ = self.0.send(span);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
fn spawn<F: Future<Output: Send> + Send + 'static>(task: F) {
    tokio::spawn(task);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_runs_from_the_client_to_the_shard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut spans) = mpsc::unbounded_channel();
    let collector =
        tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    spawn(collector.serve_with_incoming(TcpListenerStream::new(listener)));
    let config = TelemetryConfig { otlp_endpoint: Some(endpoint), ..TelemetryConfig::default() };
    let telemetry = telemetry::init(&config).unwrap();

    let (shard, control) = FakeShard::new(FakeOptions::default());
    control.record();
    let parts = EngineParts {
        shard,
        config: EngineConfig::default(),
        model: "traced".to_owned(),
        report: Box::new(|_| {}),
    };
    let (engine, task) = engine::start(parts);
    spawn(task);
    engine.ready().await;

    let http = http::Request::get("/generate").header("traceparent", format!("00-{TRACE}-{CLIENT_SPAN}-01"));
    let span = telemetry::request_span(&http.body(()).unwrap());
    let request = Request {
        namespace: Namespace::default(),
        prompt: (0..10).collect(),
        max_new_tokens: 5,
        stop_tokens: Arc::from([]),
        sampling: Arc::new(Sampling::default()),
        priority: 0,
    };
    let mut generation = engine.submit(request).instrument(span).await.unwrap();
    while generation.next().await.is_some() {}
    engine.drain();
    engine.stopped().await;
    tokio::task::spawn_blocking(|| telemetry.shutdown()).await.unwrap();

    let mut exported = Vec::new();
    while let Ok(span) = spans.try_recv() {
        assert_eq!(hex(&span.trace_id), TRACE);
        exported.push(span);
    }
    let root = exported.iter().find(|span| span.name == "GET /generate").unwrap();
    assert_eq!(hex(&root.parent_span_id), CLIENT_SPAN);
    let steps: Vec<_> = exported.iter().filter(|span| span.name == "step").collect();
    assert!(steps.iter().all(|step| step.parent_span_id == root.span_id));
    let expected: Vec<_> = steps.iter().map(|step| format!("00-{TRACE}-{}-01", hex(&step.span_id))).collect();
    let mut told = control.traceparents();
    assert_eq!(told.len(), 5);
    told.retain(|traceparent| expected.contains(traceparent));
    assert_eq!(told.len(), 5, "the shard was told of spans that exist");
}

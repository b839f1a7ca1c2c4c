//! An OTLP collector that keeps the spans it receives, for `--otlp-traces-endpoint`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A span as a process sent it.
#[derive(Clone, Debug)]
pub struct Received {
    /// `service.name` of the process.
    pub service: String,
    /// `service.instance.id` of the process.
    pub instance: String,
    /// Name of the span.
    pub name: String,
    /// Trace, span and parent in hexadecimal; a root's parent is empty.
    pub trace: String,
    /// See `trace`.
    pub id: String,
    /// See `trace`.
    pub parent: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// Attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// Names of its events.
    pub events: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct Sink(Arc<Mutex<Vec<Received>>>);

/// A collector on a loopback port; it lives as long as the test's runtime.
#[derive(Debug)]
pub struct Collector {
    sink: Sink,
    /// For `--otlp-traces-endpoint`.
    pub endpoint: String,
}

impl Collector {
    /// Starts it. Must be called inside a tokio runtime.
    pub fn start() -> anyhow::Result<Collector> {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
        let endpoint = format!("http://{}", incoming.local_addr()?);
        let sink = Sink::default();
        let service = TraceServiceServer::new(sink.clone());
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        Ok(Collector { sink, endpoint })
    }

    /// The spans received so far.
    pub fn spans(&self) -> Vec<Received> {
        self.sink
            .0
            .lock()
            .map(|all| all.clone())
            .unwrap_or_default()
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut found = Vec::new();
        for resource in request.into_inner().resource_spans {
            let about = resource.resource.unwrap_or_default().attributes;
            let about = texts(about);
            let word = |key: &str| about.get(key).cloned().unwrap_or_default();
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                found.push(Received {
                    service: word("service.name"),
                    instance: word("service.instance.id"),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    start: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                    attributes: texts(span.attributes),
                    events: span.events.into_iter().map(|event| event.name).collect(),
                });
            }
        }
        if let Ok(mut all) = self.0.lock() {
            all.extend(found);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: any_value::Value| match value {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::DoubleValue(number) => number.to_string(),
        any_value::Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    };
    (attributes.into_iter())
        .filter_map(|attribute| Some((attribute.key, text(attribute.value?.value?))))
        .collect()
}

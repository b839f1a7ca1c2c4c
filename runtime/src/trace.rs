//! Traces: W3C trace context on every call between processes, spans to an OTLP collector.
//!
//! A span here is an OpenTelemetry span, started and ended by the code that does the work. Log events (`tracing`) are
//! separate, so that no internals of libraries end up in a trace. Without `--otlp-traces-endpoint` no span is created
//! and a caller's context is only passed on. Finished spans wait in a bounded queue for a thread that exports them;
//! when the queue is full they are dropped, so a slow collector never slows down a model step.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanContext, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Array, Context, StringValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan,
};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};

pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::SpanKind;

/// Finished spans that may wait for the exporter; a draft worker produces several hundred per second.
const QUEUE: usize = 8192;
/// Time between two exports.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the collector may take to accept a batch.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);
/// How long the final flush may take when the process exits.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Set once, if the process exports.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether and where to export spans.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct TraceArgs {
    /// Export traces to this OTLP collector (gRPC), for example http://127.0.0.1:4317 [default: off]
    #[arg(long, env = "OFFSHOOT_OTLP_TRACES_ENDPOINT", value_name = "URL", value_parser = endpoint)]
    pub otlp_traces_endpoint: Option<String>,
    /// Fraction of the traces started here to record, 0 to 1; a caller's sampling decision takes precedence
    #[arg(long, env = "OFFSHOOT_TRACE_SAMPLE_RATIO", value_name = "RATIO", default_value_t = 1.0, value_parser = ratio)]
    pub trace_sample_ratio: f64,
}

impl Default for TraceArgs {
    fn default() -> Self {
        Self {
            otlp_traces_endpoint: None,
            trace_sample_ratio: 1.0,
        }
    }
}

impl TraceArgs {
    /// The flags that give another process the same settings.
    #[must_use]
    pub fn to_flags(&self) -> Vec<String> {
        let Some(endpoint) = &self.otlp_traces_endpoint else {
            return Vec::new();
        };
        vec![
            "--otlp-traces-endpoint".to_owned(),
            endpoint.clone(),
            "--trace-sample-ratio".to_owned(),
            self.trace_sample_ratio.to_string(),
        ]
    }
}

fn endpoint(given: &str) -> Result<String, String> {
    if given.starts_with("https://") {
        return Err("TLS to a collector is not supported; use http:// and a collector on this machine or in a trusted network".to_owned());
    }
    let endpoint = crate::client::endpoint(given).map_err(|error| error.to_string())?;
    Ok(endpoint.uri().to_string())
}

fn ratio(given: &str) -> Result<f64, String> {
    match given.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(format!("{given:?} is not a number from 0 to 1")),
    }
}

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The exporter rejected its settings.
    #[error("cannot export traces to {endpoint}: {source}")]
    Exporter {
        /// The address of the collector.
        endpoint: String,
        /// The exporter's error.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// A process exports to one collector only.
    #[error("trace export is already set up in this process")]
    Installed,
}

/// The process's exporter; flush it before the process ends.
#[derive(Debug)]
#[must_use = "without a flush the last spans are lost"]
pub struct Exporting(Option<SdkTracerProvider>);

/// Starts exporting if `args` ask for it. `role` and `instance` (the address of the process) identify the process in
/// every span. Call it inside a tokio runtime, which drives the connection to the collector.
///
/// # Errors
/// When the exporter cannot be built, or the process already has one.
pub fn init(args: &TraceArgs, role: &str, instance: &str) -> Result<Exporting, TraceError> {
    let Some(endpoint) = &args.otlp_traces_endpoint else {
        return Ok(Exporting(None));
    };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_LIMIT)
        .build()
        .map_err(|source| TraceError::Exporter {
            endpoint: endpoint.clone(),
            source,
        })?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_scheduled_delay(EXPORT_INTERVAL)
        .build();
    let resource = Resource::builder()
        .with_service_name(format!("offshoot-{role}"))
        .with_attributes([
            KeyValue::new("service.namespace", "offshoot"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("process.pid", i64::from(std::process::id())),
            KeyValue::new("offshoot.role", role.to_owned()),
        ])
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(
            BatchSpanProcessor::builder(exporter)
                .with_batch_config(batches)
                .build(),
        )
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            args.trace_sample_ratio,
        ))))
        .with_resource(resource)
        .build();
    TRACER
        .set(provider.tracer("offshoot"))
        .map_err(|_| TraceError::Installed)?;
    Ok(Exporting(Some(provider)))
}

/// Whether this process exports, so that it is worth computing what only spans contain.
#[must_use]
pub fn is_exporting() -> bool {
    TRACER.get().is_some()
}

impl Exporting {
    /// Exports the remaining spans and stops the exporter; gives up after a few seconds. Spans that end later are lost.
    pub async fn flush(self) {
        let Some(provider) = self.0 else {
            return;
        };
        // The call blocks until the collector has answered, and the connection to it needs this runtime's threads.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_LIMIT)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not exported"),
            Err(error) => tracing::warn!(%error, "the last spans were not exported"),
        }
    }
}

/// The position in a distributed trace under which work is done: the parent of its spans. Often there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceContext(Option<Arc<SpanContext>>);

impl TraceContext {
    /// The work belongs to no trace.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// The context that a caller sent as `traceparent` and `tracestate`; none if it is missing or malformed.
    #[must_use]
    pub fn from_metadata(metadata: &MetadataMap) -> Self {
        let found =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(metadata));
        let span = found.span().span_context().clone();
        Self(span.is_valid().then(|| Arc::new(span)))
    }

    /// Adds the context to the metadata of a call.
    pub fn write_metadata(&self, metadata: &mut MetadataMap) {
        if let Some(span) = &self.0 {
            let context = Context::new().with_remote_span_context(SpanContext::clone(span));
            TraceContextPropagator::new().inject_context(&context, &mut Writer(metadata));
        }
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.0.as_ref().is_some_and(|span| span.is_sampled())
    }

    /// The trace id in hexadecimal, for log lines.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.0.as_ref().map(|span| span.trace_id().to_string())
    }

    fn as_parent(&self) -> Context {
        match &self.0 {
            Some(span) => Context::new().with_remote_span_context(SpanContext::clone(span)),
            None => Context::new(),
        }
    }
}

struct Reader<'a>(&'a MetadataMap);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

struct Writer<'a>(&'a mut MetadataMap);

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        // Never fails for the two keys of a trace context. Other keys are not worth failing the call.
        if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), value.parse())
        {
            self.0.insert(key, value);
        }
    }
}

/// A piece of work that takes time. It ends when it is dropped. If nothing is exported, it only passes on the context
/// of its parent.
#[derive(Debug)]
pub struct Span {
    span: Option<SdkSpan>,
    context: TraceContext,
}

impl Span {
    /// Starts a span now, as a child of `parent`. Without a parent it starts a new trace, subject to the sample ratio.
    #[must_use]
    pub fn start(
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        parent: &TraceContext,
    ) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self {
                span: None,
                context: parent.clone(),
            };
        };
        let builder = tracer.span_builder(name).with_kind(kind);
        let span = builder.start_with_context(tracer, &parent.as_parent());
        let context = TraceContext(Some(Arc::new(span.span_context().clone())));
        Self {
            span: span.is_recording().then_some(span),
            context,
        }
    }

    /// Starts a span now, as a child of `parent`, but only if the trace of `parent` is recorded: a trace that starts in
    /// the middle is of no use.
    #[must_use]
    pub fn continue_from(
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        parent: &TraceContext,
    ) -> Self {
        if parent.is_sampled() {
            return Self::start(name, kind, parent);
        }
        Self {
            span: None,
            context: parent.clone(),
        }
    }

    /// The context for child spans.
    #[must_use]
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Whether attributes and events are recorded, so that it is worth computing them.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.span.is_some()
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Sets several attributes.
    pub fn extend(&mut self, attributes: &[KeyValue]) {
        if let Some(span) = &mut self.span {
            span.set_attributes(attributes.iter().cloned());
        }
    }

    /// Sets an attribute to a list of strings.
    pub fn set_all<const N: usize>(&mut self, key: &'static str, values: [&str; N]) {
        if let Some(span) = &mut self.span {
            let values: Vec<StringValue> = values.map(|value| value.to_owned().into()).into();
            span.set_attribute(KeyValue::new(key, Value::Array(Array::String(values))));
        }
    }

    /// Adds an event that happened now.
    pub fn event(&mut self, name: &'static str, attributes: Vec<KeyValue>) {
        if let Some(span) = &mut self.span {
            span.add_event(name, attributes);
        }
    }

    /// Marks the span as failed, with the kind of error (`error.type`) and a description.
    pub fn fail(&mut self, kind: String, why: String) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(why));
        }
    }

    /// Records a child span that has already ended.
    pub fn child(
        &self,
        name: &'static str,
        from: SystemTime,
        to: SystemTime,
        attributes: Vec<KeyValue>,
    ) {
        if let (Some(_), Some(tracer)) = (&self.span, TRACER.get()) {
            let builder = (tracer.span_builder(name))
                .with_kind(SpanKind::Internal)
                .with_start_time(from)
                .with_attributes(attributes);
            builder
                .start_with_context(tracer, &self.context.as_parent())
                .end_with_timestamp(to);
        }
    }
}

/// Converts instants of the monotonic clock, which is the better clock for measuring steps, to wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    instant: Instant,
    system: SystemTime,
}

impl WallClock {
    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            system: SystemTime::now(),
        }
    }

    /// The wall-clock time of `instant`, assuming that the wall clock has not been adjusted since [`WallClock::now`].
    #[must_use]
    pub fn at(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(after) => self.system + after,
            None => self.system - self.instant.duration_since(instant),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn sent(parent: &str) -> TraceContext {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", parent.parse().unwrap());
        TraceContext::from_metadata(&metadata)
    }

    #[test]
    fn a_process_that_exports_nothing_passes_the_context_on() {
        let context = sent(PARENT);
        assert!(context.is_sampled());
        let id = context.trace_id().unwrap();
        assert_eq!(id, "0af7651916cd43dd8448eb211c80319c");
        let span = Span::start("request", SpanKind::Server, &context);
        assert!(!span.is_recording());
        let mut onward = MetadataMap::new();
        span.context().write_metadata(&mut onward);
        assert_eq!(onward.get("traceparent").unwrap(), PARENT);
    }

    #[test]
    fn a_malformed_context_is_none() {
        for bad in [
            "",
            "x",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(sent(bad), TraceContext::none(), "{bad:?}");
        }
        let mut onward = MetadataMap::new();
        TraceContext::none().write_metadata(&mut onward);
        assert!(onward.is_empty());
        assert!(!sent(&PARENT.replace("-01", "-00")).is_sampled());
    }

    #[test]
    fn instants_before_and_after_are_converted() {
        let early = Instant::now();
        let clock = WallClock::now();
        let late = clock.instant + Duration::from_millis(7);
        assert_eq!(clock.at(late), clock.system + Duration::from_millis(7));
        assert!(clock.at(early) <= clock.system);
    }

    #[test]
    fn flags_give_the_same_settings() {
        let args = TraceArgs {
            otlp_traces_endpoint: Some(endpoint("127.0.0.1:4317").unwrap()),
            trace_sample_ratio: 0.25,
        };
        assert_eq!(
            args.to_flags(),
            [
                "--otlp-traces-endpoint",
                "http://127.0.0.1:4317/",
                "--trace-sample-ratio",
                "0.25"
            ]
        );
        assert!(TraceArgs::default().to_flags().is_empty());
    }
}

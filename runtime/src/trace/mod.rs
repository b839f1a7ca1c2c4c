//! Traces: W3C trace context on every call between processes, spans to an OTLP collector.
//!
//! A span here is an OpenTelemetry span, started and ended by the code that does the work. Log events (`tracing`) are
//! separate, so that no internals of libraries end up in a trace. Without `--otlp-traces-endpoint` no span is created
//! and a caller's context is only passed on. Finished spans wait in a bounded queue for a thread that exports them;
//! when the queue is full they are dropped, so a slow collector never slows down a model step.

mod span;

use std::sync::OnceLock;
use std::time::Duration;

use clap::Args;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};

pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::SpanKind;
pub use span::{Span, TraceContext, WallClock};

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

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

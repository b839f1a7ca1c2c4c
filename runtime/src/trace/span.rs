//! Spans, and the contexts that tie them together across processes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanContext, Status, TraceContextExt, Tracer};
use opentelemetry::{Array, Context, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::Span as SdkSpan;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};

use super::{KeyValue, SpanKind, TRACER};

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
    use std::time::Duration;

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
}

//! What is measured of one request: its counters, its span, its times. It decides nothing.
//!
//! The span follows OpenTelemetry's conventions for generative AI (`gen_ai.*`); what a session does inside is in
//! `offshoot.*`.

use std::sync::Arc;
use std::time::Instant;

use proto::v1;
use runtime::TraceContext;
use runtime::trace::{self, KeyValue, Span, SpanKind};
use speculation::duty::Role;
use speculation::message::{Finish, SessionId};
use speculation::stats::SessionStats;
use speculation::strategy::Settings;
use tonic::Status;

use crate::failure::Failure;
use crate::metrics::{CoordinatorMetrics, code_name, finish_name};

/// A request that has arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    metrics: Arc<CoordinatorMetrics>,
    parent: TraceContext,
    about: Vec<KeyValue>,
    at: Instant,
}

impl Arrival {
    /// A request arrives with this context. `default` is decoded by where it names no strategy.
    pub(crate) fn now(
        metrics: &Arc<CoordinatorMetrics>,
        parent: TraceContext,
        request: &v1::GenerateRequest,
        default: &Settings,
    ) -> Self {
        Arrival {
            metrics: Arc::clone(metrics),
            parent,
            about: if trace::is_exporting() {
                describe(request, default)
            } else {
                Vec::new()
            },
            at: Instant::now(),
        }
    }

    /// It was refused.
    pub(crate) fn refused(&self, failure: Failure) -> Status {
        let status = Status::from(failure);
        self.metrics.rejected(status.code());
        fail(&mut self.span(), &status);
        status
    }

    /// One of its completions was accepted.
    pub(crate) fn completion(&self, number: u32) -> RequestMetrics {
        let mut span = self.span();
        span.set("offshoot.choice", i64::from(number));
        RequestMetrics {
            metrics: Arc::clone(&self.metrics),
            span,
            arrived: self.at,
            newest: None,
            first: None,
            length: 0,
            tokens: 0,
            phase: Phase::Inside,
        }
    }

    fn span(&self) -> Span {
        let mut span = Span::start("text_completion", SpanKind::Server, &self.parent);
        span.extend(&self.about);
        span
    }
}

/// A completion from its request's arrival to its end. Dropped without an end, its client has disconnected.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    metrics: Arc<CoordinatorMetrics>,
    span: Span,
    arrived: Instant,
    /// When the newest tokens were committed, and the first ones.
    newest: Option<Instant>,
    first: Option<Instant>,
    /// Generated tokens of the text, those of an earlier attempt that it resumes included.
    length: usize,
    /// Tokens generated here.
    tokens: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It waits or runs.
    Inside,
    /// It has ended, and was counted.
    Over,
}

impl RequestMetrics {
    /// The parent of the spans of this request in other processes.
    pub(crate) fn context(&self) -> &TraceContext {
        self.span.context()
    }

    /// The span of the request's log lines. It has the trace id, where there is one.
    pub(crate) fn log_span(&self) -> tracing::Span {
        match self.context().trace_id() {
            Some(trace_id) => tracing::info_span!("request", trace_id),
            None => tracing::Span::none(),
        }
    }

    /// Its turn has come: it has its reservations, the first of them on a target with this model; `resumed` tokens were generated before.
    pub(crate) fn placed(
        &mut self,
        session: SessionId,
        model: &str,
        prompt_tokens: usize,
        resumed: usize,
    ) {
        let waited = self.arrived.elapsed();
        self.metrics.queue_time.observe(waited.as_secs_f64());
        self.span.event("placed", Vec::new());
        self.length = resumed;
        self.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
        self.span.set("gen_ai.request.model", model.to_owned());
        self.span.set("gen_ai.response.model", model.to_owned());
        self.span
            .set("gen_ai.response.id", format!("{:016x}", session.0));
        self.span
            .set("gen_ai.usage.input_tokens", prompt_tokens as i64);
    }

    /// The text has this many generated tokens now.
    pub(crate) fn text_has(&mut self, generated: usize) {
        let fresh = generated.saturating_sub(self.length) as u64;
        if fresh == 0 {
            return;
        }
        self.length = generated;
        self.tokens += fresh;
        let now = Instant::now();
        self.metrics.generation_tokens.inc_by(fresh);
        match self.newest.replace(now) {
            None => {
                self.first = Some(now);
                let waited = now - self.arrived;
                self.metrics.first_token.observe(waited.as_secs_f64());
                self.span.event("first token", Vec::new());
            }
            Some(before) => self.metrics.token_gap.observe((now - before).as_secs_f64()),
        }
    }

    /// It goes on without one of its workers.
    pub(crate) fn bypassed(&mut self, role: Role, worker: &str) {
        self.metrics.bypassed(role);
        let worker = KeyValue::new("offshoot.worker", worker.to_owned());
        self.span.event("worker lost", vec![worker]);
    }

    /// Its session is over, whatever the end was.
    pub(crate) fn closed(&mut self, stats: &SessionStats) {
        self.metrics.ended(stats);
        self.span
            .set("offshoot.target_steps", stats.walks.steps as i64);
        self.span.set("offshoot.hits", stats.walks.hits as i64);
        self.span.set("offshoot.misses", stats.walks.misses as i64);
        self.span.set(
            "offshoot.acceptance_length",
            stats.walks.acceptance_length(),
        );
    }

    /// The text is complete; the client gets this many tokens of it.
    pub(crate) fn finished(&mut self, finish: Finish, tokens: u32) {
        self.phase = Phase::Over;
        self.metrics.succeeded(Some(finish));
        self.end(finish_name(Some(finish)), tokens.into());
        let took = self.arrived.elapsed();
        self.metrics.request_time.observe(took.as_secs_f64());
        if let (Some(first), Some(newest)) = (self.first, self.newest)
            && self.tokens > 1
        {
            let mean = (newest - first).as_secs_f64() / (self.tokens - 1) as f64;
            self.metrics.token_time.observe(mean);
        }
    }

    /// It ends with an error.
    pub(crate) fn failed(&mut self, status: &Status) {
        self.phase = Phase::Over;
        self.metrics.failed(status.code());
        self.end("error", self.length as i64);
        fail(&mut self.span, status);
    }

    fn end(&mut self, reason: &str, tokens: i64) {
        self.span
            .set_all("gen_ai.response.finish_reasons", [reason]);
        self.span.set("gen_ai.usage.output_tokens", tokens);
    }
}

fn fail(span: &mut Span, status: &Status) {
    let why = status.message().to_owned();
    span.fail(code_name(status.code()).to_owned(), why);
}

impl Drop for RequestMetrics {
    fn drop(&mut self) {
        if self.phase == Phase::Inside {
            self.metrics.succeeded(None);
            self.end(finish_name(None), self.length as i64);
        }
    }
}

/// What was asked for; never the prompt or a stop text, which may be private.
fn describe(request: &v1::GenerateRequest, default: &Settings) -> Vec<KeyValue> {
    let strategy = match request.strategy.as_str() {
        "" => &default.name,
        name => name,
    };
    // The client's own word, which is checked later: only as much of it as a name may have.
    let strategy: String = strategy.chars().take(64).collect();
    let mut about = vec![
        KeyValue::new("gen_ai.operation.name", "text_completion"),
        KeyValue::new("gen_ai.provider.name", "offshoot"),
        KeyValue::new("gen_ai.output.type", "text"),
        KeyValue::new("gen_ai.request.temperature", f64::from(request.temperature)),
        KeyValue::new("offshoot.strategy", strategy),
    ];
    let counts = [
        ("gen_ai.request.max_tokens", request.max_tokens),
        ("gen_ai.request.top_k", request.top_k),
        ("gen_ai.request.choice.count", request.n),
    ];
    let numbers = [
        ("gen_ai.request.top_p", request.top_p.unwrap_or_default()),
        ("gen_ai.request.presence_penalty", request.presence_penalty),
        (
            "gen_ai.request.frequency_penalty",
            request.frequency_penalty,
        ),
    ];
    for (key, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        about.push(KeyValue::new(key, i64::from(count)));
    }
    for (key, number) in numbers.into_iter().filter(|(_, number)| *number != 0.0) {
        about.push(KeyValue::new(key, f64::from(number)));
    }
    if let Some(seed) = request.seed {
        // The convention has a signed number; the bits are the same.
        about.push(KeyValue::new("gen_ai.request.seed", seed.cast_signed()));
    }
    about
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use runtime::Metrics;

    fn arrival(metrics: &Arc<CoordinatorMetrics>) -> Arrival {
        let request = v1::GenerateRequest::default();
        Arrival::now(
            metrics,
            TraceContext::none(),
            &request,
            &Settings::default(),
        )
    }

    /// The value of one line.
    fn value(page: &str, series: &str) -> f64 {
        let line = page
            .lines()
            .find(|line| line.split(' ').next() == Some(series));
        let line = line.unwrap_or_else(|| panic!("{series} is not in\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn every_end_is_counted_once() {
        let metrics = Arc::new(CoordinatorMetrics::default());
        let page = Metrics::new();
        page.register(|registry| metrics.register(registry));

        let mut finished = arrival(&metrics).completion(0);
        finished.placed(SessionId(1), "m", 5, 2);
        finished.text_has(2);
        finished.text_has(5);
        finished.text_has(5);
        finished.text_has(7);
        finished.finished(Finish::Length, 7);
        drop(finished);
        drop(arrival(&metrics).completion(1));
        let mut failed = arrival(&metrics).completion(0);
        failed.failed(&Status::unavailable("x"));
        drop(failed);
        let refused = arrival(&metrics).refused(Failure::Stopping);
        assert_eq!(refused.code(), tonic::Code::Unavailable);

        let page = page.render();
        for (series, expected) in [
            (
                "vllm:request_success_total{finished_reason=\"length\"}",
                1.0,
            ),
            ("vllm:request_success_total{finished_reason=\"abort\"}", 1.0),
            ("vllm:request_success_total{finished_reason=\"stop\"}", 0.0),
            ("offshoot_request_failures_total{code=\"unavailable\"}", 1.0),
            ("offshoot_rejections_total{reason=\"unavailable\"}", 1.0),
            (
                "offshoot_rejections_total{reason=\"resource_exhausted\"}",
                0.0,
            ),
            ("vllm:prompt_tokens_total", 5.0),
            ("vllm:generation_tokens_total", 5.0),
            ("vllm:time_to_first_token_seconds_count", 1.0),
            ("vllm:inter_token_latency_seconds_count", 1.0),
            ("vllm:e2e_request_latency_seconds_count", 1.0),
        ] {
            assert_eq!(value(&page, series), expected, "{series}");
        }
    }
}

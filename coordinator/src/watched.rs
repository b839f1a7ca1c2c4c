//! One request as it is seen from outside: its counters, its span, its times. It decides nothing.
//!
//! The span follows OpenTelemetry's conventions for generative AI (`gen_ai.*`); what a session does inside is said in
//! `offshoot.*`.

use std::sync::Arc;
use std::time::Instant;

use proto::v1;
use runtime::TraceContext;
use runtime::trace::{KeyValue, Span, SpanKind};
use speculation::message::{Finish, SessionId, Term};
use speculation::relay::{Role, SessionStats};
use tonic::{Code, Status};

use crate::failure::Failure;
use crate::metrics::{CoordinatorMetrics, code_name, finish_name};

/// A request from its arrival to its end. Dropped without an end, its client has gone.
#[derive(Debug)]
pub(crate) struct Watched {
    metrics: Arc<CoordinatorMetrics>,
    span: Span,
    arrived: Instant,
    /// When the newest tokens were committed, and the first ones.
    newest: Option<Instant>,
    first: Option<Instant>,
    tokens: u64,
    term: Term,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It was not taken in yet.
    AtTheDoor,
    /// It waits or runs.
    Inside,
    /// It has ended, and was counted.
    Over,
}

impl Watched {
    /// A request arrives with this context.
    pub(crate) fn arrived(
        metrics: &Arc<CoordinatorMetrics>,
        parent: &TraceContext,
        request: &v1::GenerateRequest,
    ) -> Self {
        let mut span = Span::start("text_completion", SpanKind::Server, parent);
        if span.is_recording() {
            describe(&mut span, request);
        }
        Watched {
            metrics: Arc::clone(metrics),
            span,
            arrived: Instant::now(),
            newest: None,
            first: None,
            tokens: 0,
            term: Term::default(),
            phase: Phase::AtTheDoor,
        }
    }

    /// What belongs to this request on other processes hangs here.
    pub(crate) fn context(&self) -> &TraceContext {
        self.span.context()
    }

    /// The span of the request's log lines. It has the trace's number, where there is one.
    pub(crate) fn log_span(&self) -> tracing::Span {
        match self.context().trace_id() {
            Some(trace_id) => tracing::info_span!("request", trace_id),
            None => tracing::Span::none(),
        }
    }

    /// It was taken in, or turned away.
    pub(crate) fn decided<T>(&mut self, decision: Result<T, Failure>) -> Result<T, Status> {
        match decision {
            Ok(taken) => {
                self.phase = Phase::Inside;
                Ok(taken)
            }
            Err(failure) => {
                let status = Status::from(failure);
                self.phase = Phase::Over;
                self.metrics.rejected(status.code());
                self.fail_span(status.code(), status.message());
                Err(status)
            }
        }
    }

    /// Its turn has come.
    pub(crate) fn admitted(&mut self) {
        let waited = self.arrived.elapsed();
        self.metrics.queue_time.observe(waited.as_secs_f64());
        self.span.event("admitted", Vec::new());
    }

    /// It has places, the first of them on a target with this model.
    pub(crate) fn placed(&mut self, session: SessionId, model: &str, prompt_tokens: usize) {
        self.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
        self.span.set("gen_ai.request.model", model.to_owned());
        self.span.set("gen_ai.response.model", model.to_owned());
        self.span
            .set("gen_ai.response.id", format!("{:016x}", session.0));
        self.span
            .set("gen_ai.usage.input_tokens", prompt_tokens as i64);
    }

    /// The target has committed these many tokens, under this term.
    pub(crate) fn committed(&mut self, tokens: usize, term: Term) {
        if term > self.term {
            if self.term != Term::default() {
                self.metrics
                    .migrations
                    .inc_by((term.0 - self.term.0).into());
                self.span.event("migrated", Vec::new());
            }
            self.term = term;
        }
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        self.tokens += tokens as u64;
        self.metrics.generation_tokens.inc_by(tokens as u64);
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

    /// The text is complete.
    pub(crate) fn finished(&mut self, finish: Finish) {
        self.phase = Phase::Over;
        self.metrics.succeeded(Some(finish));
        self.end(finish_name(Some(finish)));
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
        self.end("error");
        self.fail_span(status.code(), status.message());
    }

    fn end(&mut self, reason: &str) {
        self.span
            .set_all("gen_ai.response.finish_reasons", [reason]);
        self.span
            .set("gen_ai.usage.output_tokens", self.tokens as i64);
    }

    fn fail_span(&mut self, code: Code, why: &str) {
        self.span.fail(code_name(code).to_owned(), why.to_owned());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.phase == Phase::Inside {
            self.metrics.succeeded(None);
            self.end(finish_name(None));
        }
    }
}

/// What was asked for; never the prompt, which may be private.
fn describe(span: &mut Span, request: &v1::GenerateRequest) {
    span.set("gen_ai.operation.name", "text_completion");
    span.set("gen_ai.provider.name", "offshoot");
    span.set("gen_ai.output.type", "text");
    if request.max_tokens > 0 {
        span.set("gen_ai.request.max_tokens", i64::from(request.max_tokens));
    }
    span.set("gen_ai.request.temperature", f64::from(request.temperature));
    if let Some(top_p) = request.top_p {
        span.set("gen_ai.request.top_p", f64::from(top_p));
    }
    if request.top_k > 0 {
        span.set("gen_ai.request.top_k", i64::from(request.top_k));
    }
    if let Some(seed) = request.seed {
        // The convention has a signed number; the bits are the same.
        span.set("gen_ai.request.seed", seed.cast_signed());
    }
    let strategy = request.strategy.as_ref().map_or("", |asked| &asked.name);
    let strategy = if strategy.is_empty() {
        "auto"
    } else {
        strategy
    };
    // The client's word, checked later: a long one is no name.
    let strategy: String = strategy.chars().take(64).collect();
    span.set("offshoot.strategy", strategy);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use runtime::Metrics;

    fn watched(metrics: &Arc<CoordinatorMetrics>) -> Watched {
        let request = v1::GenerateRequest::default();
        Watched::arrived(metrics, &TraceContext::none(), &request)
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

        let mut finished = watched(&metrics);
        finished.decided(Ok(())).unwrap();
        finished.admitted();
        finished.placed(SessionId(1), "m", 5);
        finished.committed(3, Term(1));
        finished.committed(2, Term(2));
        finished.finished(Finish::Length);
        drop(finished);

        let mut gone = watched(&metrics);
        gone.decided(Ok(())).unwrap();
        drop(gone);

        let mut failed = watched(&metrics);
        failed.decided(Ok(())).unwrap();
        failed.failed(&Status::unavailable("x"));
        drop(failed);

        let mut refused = watched(&metrics);
        refused.decided::<()>(Err(Failure::Stopping)).unwrap_err();
        drop(refused);

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
            ("offshoot_migrations_total", 1.0),
        ] {
            assert_eq!(value(&page, series), expected, "{series}");
        }
    }
}

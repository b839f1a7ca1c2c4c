//! The spans of a session on this worker: one for its life, and one for each step it had a part in.
//!
//! They exist only for traces that are recorded. Ending a span hands it to a bounded queue and never waits.

use std::time::{Duration, Instant};

use control::host::Outcome;
use decode::StepPlan;
use runtime::TraceContext;
use runtime::trace::{KeyValue, Span, SpanKind, WallClock};
use speculation::duty::Role;
use speculation::message::{Activity, SessionSpec};

/// The trace of one session; the span ends with it.
#[derive(Debug)]
pub(crate) struct SessionTrace {
    span: Span,
    clock: WallClock,
    step: &'static str,
}

/// The names of a role's spans: of a session, and of a step.
fn names(role: Role) -> (&'static str, &'static str) {
    match role {
        Role::Draft => ("draft session", "draft step"),
        Role::Qualifier => ("qualifier session", "qualifier step"),
        Role::Target => ("target session", "target step"),
    }
}

impl SessionTrace {
    pub(crate) fn start(role: Role, parent: &TraceContext, spec: &SessionSpec) -> Self {
        let (session, step) = names(role);
        let mut span = Span::continue_from(session, SpanKind::Server, parent);
        span.set("offshoot.session", format!("{:016x}", spec.session.0));
        span.set("offshoot.term", i64::from(spec.term.0));
        span.set("offshoot.text_tokens", spec.text.len() as i64);
        SessionTrace {
            span,
            clock: WallClock::now(),
            step,
        }
    }

    /// The session had a part in a step.
    pub(crate) fn step(&self, begun: Instant, took: Duration, plan: &StepPlan, outcome: Outcome) {
        if !self.span.is_recording() {
            return;
        }
        let attributes = vec![
            KeyValue::new("offshoot.append_rows", plan.append.len() as i64),
            KeyValue::new("offshoot.tree_rows", plan.rows.len() as i64),
            KeyValue::new("offshoot.abandoned", outcome == Outcome::Abandoned),
        ];
        let (from, to) = (self.clock.at(begun), self.clock.at(begun + took));
        self.span.child(self.step, from, to, attributes);
    }

    /// The totals of the session, which ends.
    pub(crate) fn close(&mut self, totals: &Activity) {
        self.span.set("offshoot.steps", totals.steps as i64);
        self.span.set("offshoot.rows", totals.rows as i64);
        self.span.set("offshoot.busy_us", totals.busy_us as i64);
        self.span.set("offshoot.bubble_us", totals.bubble_us as i64);
        self.span.set("offshoot.parked_us", totals.parked_us as i64);
    }
}

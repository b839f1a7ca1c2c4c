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
use speculation::session::{Guesser, Trail};

/// The trace of one session; the span ends with it.
#[derive(Debug)]
pub(crate) struct SessionTrace {
    span: Span,
    clock: WallClock,
    step: &'static str,
}

/// Who had guessed tokens: names of sources with the rank of the guess (`draft:2`), `target` where nobody had.
fn guessed(guessers: &[Guesser]) -> String {
    let name = |guesser: &Guesser| match guesser.source {
        Some(source) => format!("{}:{}", source.name(), guesser.rank),
        None => "target".to_owned(),
    };
    guessers.iter().map(name).collect::<Vec<_>>().join(" ")
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

    /// Whether steps are recorded.
    pub(crate) fn is_recording(&self) -> bool {
        self.span.is_recording()
    }

    /// The session had a part in a step, from which `trail` came.
    pub(crate) fn step(
        &self,
        begun: Instant,
        took: Duration,
        plan: &StepPlan,
        outcome: Outcome,
        trail: &Trail,
    ) {
        let mut attributes = vec![
            KeyValue::new("offshoot.append_rows", plan.append.len() as i64),
            KeyValue::new("offshoot.tree_rows", plan.rows.len() as i64),
            KeyValue::new("offshoot.abandoned", outcome == Outcome::Abandoned),
        ];
        if trail.committed > 0 {
            attributes.extend([
                KeyValue::new("offshoot.committed", i64::from(trail.committed)),
                KeyValue::new("offshoot.chain_submitted", i64::from(trail.submitted)),
                KeyValue::new("offshoot.chain_accepted", i64::from(trail.accepted)),
                KeyValue::new("offshoot.guessed_from", i64::from(trail.from)),
                KeyValue::new("offshoot.guessed", guessed(&trail.guessers)),
            ]);
        }
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

//! What the sessions of this coordinator have reported of a worker, added up over all of them.
//!
//! Reports are totals of one session on one worker, so what is new in one is its difference to the one before.
//!
//! A verifier may still turn its newest miss into a hit, when the guess arrives a moment late. That one is held back
//! until something follows it, so that sums only grow.

use parking_lot::Mutex;
use speculation::duty::Source;
use speculation::message::{Activity, FromWorker};
use speculation::stats::WalkStats;

/// Totals of one session, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) activity: Activity,
    /// Of verifiers only.
    pub(crate) walks: WalkStats,
}

/// The sum for one worker; it outlives the worker's streams.
#[derive(Debug, Default)]
pub(crate) struct WorkerTotals {
    totals: Mutex<Totals>,
}

impl WorkerTotals {
    /// Adds what a report says beyond `before`, the totals that the same session received last, and replaces those.
    pub(crate) fn add(&self, before: &Mutex<Totals>, message: &FromWorker) {
        let report = match message {
            FromWorker::Report(report) => report,
            FromWorker::Fault(_) | FromWorker::Preempted => return,
        };
        let mut now = Totals {
            activity: report.activity,
            walks: report.walks,
        };
        let is_final = report.finish.is_some();
        let mut before = before.lock();
        let settled = now.walks.misses.saturating_sub(u64::from(!is_final));
        now.walks.misses = settled.max(before.walks.misses);
        let was = std::mem::replace(&mut *before, now);
        drop(before);
        let mut totals = self.totals.lock();
        add_activity(&mut totals.activity, &was.activity, &now.activity);
        add_walks(&mut totals.walks, &was.walks, &now.walks);
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.totals.lock()
    }
}

/// Sums over several workers.
pub(crate) fn sum(all: impl IntoIterator<Item = Totals>) -> Totals {
    let mut sum = Totals::default();
    for totals in all {
        add_activity(&mut sum.activity, &Activity::default(), &totals.activity);
        add_walks(&mut sum.walks, &WalkStats::default(), &totals.walks);
    }
    sum
}

/// A worker may say anything, so a total that shrinks adds nothing and none overflows.
fn grow(total: &mut u64, was: u64, is: u64) {
    *total = total.saturating_add(is.saturating_sub(was));
}

fn add_activity(total: &mut Activity, was: &Activity, is: &Activity) {
    grow(&mut total.steps, was.steps, is.steps);
    grow(&mut total.rows, was.rows, is.rows);
    grow(&mut total.busy_us, was.busy_us, is.busy_us);
    grow(&mut total.bubble_us, was.bubble_us, is.bubble_us);
    grow(&mut total.parked_us, was.parked_us, is.parked_us);
    grow(&mut total.life_us, was.life_us, is.life_us);
    grow(
        &mut total.abandoned_steps,
        was.abandoned_steps,
        is.abandoned_steps,
    );
}

fn add_walks(total: &mut WalkStats, was: &WalkStats, is: &WalkStats) {
    grow(&mut total.steps, was.steps, is.steps);
    grow(
        &mut total.starved_steps,
        was.starved_steps,
        is.starved_steps,
    );
    grow(&mut total.starved_us, was.starved_us, is.starved_us);
    grow(
        &mut total.resting_steps,
        was.resting_steps,
        is.resting_steps,
    );
    grow(&mut total.tokens, was.tokens, is.tokens);
    grow(&mut total.hits, was.hits, is.hits);
    grow(&mut total.misses, was.misses, is.misses);
    grow(
        &mut total.chain_submitted,
        was.chain_submitted,
        is.chain_submitted,
    );
    grow(
        &mut total.chain_accepted,
        was.chain_accepted,
        is.chain_accepted,
    );
    grow(
        &mut total.guesses_submitted,
        was.guesses_submitted,
        is.guesses_submitted,
    );
    grow(
        &mut total.guesses_accepted,
        was.guesses_accepted,
        is.guesses_accepted,
    );
    grow(&mut total.tolerated, was.tolerated, is.tolerated);
    for source in Source::ALL {
        let (total, was, is) = (
            &mut total.sources[source],
            was.sources[source],
            is.sources[source],
        );
        grow(&mut total.nodes, was.nodes, is.nodes);
        grow(&mut total.committed, was.committed, is.committed);
        grow(&mut total.hits, was.hits, is.hits);
    }
    grow(&mut total.heads_steps, was.heads_steps, is.heads_steps);
}

#[cfg(test)]
mod tests {
    use super::*;
    use speculation::message::{Finish, Report};

    #[test]
    fn a_miss_that_becomes_a_hit_was_never_counted() {
        let walked = |misses, hits, finish| {
            FromWorker::Report(Report {
                walks: WalkStats {
                    misses,
                    hits,
                    ..WalkStats::default()
                },
                finish,
                ..Report::default()
            })
        };
        let sums = WorkerTotals::default();
        let session = Mutex::default();
        let mut seen = Vec::new();
        for message in [
            walked(3, 0, None),
            walked(2, 1, None),
            walked(3, 1, None),
            walked(3, 1, Some(Finish::Stop)),
        ] {
            sums.add(&session, &message);
            seen.push(sums.totals().walks.misses);
        }
        assert_eq!(seen, [2, 2, 2, 3]);
    }

    #[test]
    fn sources_are_added_up_too() {
        let told = |nodes, hits| {
            let mut walks = WalkStats::default();
            walks.sources[Source::History].nodes = nodes;
            walks.sources[Source::Rule].hits = hits;
            FromWorker::Report(Report {
                walks,
                ..Report::default()
            })
        };
        let sums = WorkerTotals::default();
        let (one, two) = (Mutex::default(), Mutex::default());
        for (session, nodes, hits) in [(&one, 3, 0), (&two, 5, 1), (&one, 4, 2), (&one, 0, 2)] {
            sums.add(session, &told(nodes, hits));
        }
        let sources = sums.totals().walks.sources;
        assert_eq!(sources[Source::History].nodes, 9);
        assert_eq!(sources[Source::Rule].hits, 3);
        assert_eq!(sources[Source::Draft], Default::default());
    }

    fn report(steps: u64, hits: u64) -> FromWorker {
        FromWorker::Report(Report {
            activity: Activity {
                steps,
                ..Activity::default()
            },
            walks: WalkStats {
                hits,
                ..WalkStats::default()
            },
            ..Report::default()
        })
    }

    #[test]
    fn two_sessions_add_up_and_what_shrinks_adds_nothing() {
        let sums = WorkerTotals::default();
        let (one, two) = (Mutex::default(), Mutex::default());
        sums.add(&one, &report(3, 1));
        sums.add(&two, &report(10, 4));
        sums.add(&one, &report(5, 1));
        sums.add(&one, &report(4, 0));
        sums.add(&one, &FromWorker::Fault("x".to_owned()));
        sums.add(&one, &report(6, 1));
        let totals = sums.totals();
        assert_eq!((totals.activity.steps, totals.walks.hits), (17, 6));
        assert_eq!(sum([totals, totals]).activity.steps, 34);
    }
}

//! What the sessions of this coordinator have reported of a worker, added up over all of them.
//!
//! Reports are totals of one session on one worker, so what is new in one is its difference to the one before.
//!
//! A verifier may still turn its newest miss into a hit, when the guess arrives a moment late. That one is held back
//! until something follows it, so that sums only grow.

use parking_lot::Mutex;
use speculation::ferry::Said;
use speculation::message::Activity;
use speculation::stats::WalkStats;

/// Totals, of a session or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) activity: Activity,
    /// Of verifiers only.
    pub(crate) walks: WalkStats,
}

/// The sum for one worker; it outlives the worker's links.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    totals: Mutex<Totals>,
}

impl Tally {
    /// Adds what a report says beyond `before`, the one that the same session heard last, and replaces that.
    pub(crate) fn note(&self, before: &Mutex<Totals>, said: &Said) {
        let mut now = match said {
            Said::Drafted(report) => Totals {
                activity: report.activity,
                walks: WalkStats::default(),
            },
            Said::Verified(report) => Totals {
                activity: report.activity,
                walks: report.walks,
            },
            Said::Fault(_) => return,
        };
        let is_final = matches!(said, Said::Verified(report) if report.finish.is_some());
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use speculation::message::{Finish, VerifyReport};

    #[test]
    fn a_miss_that_becomes_a_hit_was_never_counted() {
        let walked = |misses, hits, finish| {
            Said::Verified(VerifyReport {
                walks: WalkStats {
                    misses,
                    hits,
                    ..WalkStats::default()
                },
                finish,
                ..VerifyReport::default()
            })
        };
        let tally = Tally::default();
        let session = Mutex::default();
        let mut seen = Vec::new();
        for said in [
            walked(3, 0, None),
            walked(2, 1, None),
            walked(3, 1, None),
            walked(3, 1, Some(Finish::Stop)),
        ] {
            tally.note(&session, &said);
            seen.push(tally.totals().walks.misses);
        }
        assert_eq!(seen, [2, 2, 2, 3]);
    }

    fn report(steps: u64, hits: u64) -> Said {
        Said::Verified(VerifyReport {
            activity: Activity {
                steps,
                ..Activity::default()
            },
            walks: WalkStats {
                hits,
                ..WalkStats::default()
            },
            ..VerifyReport::default()
        })
    }

    #[test]
    fn two_sessions_add_up_and_what_shrinks_adds_nothing() {
        let tally = Tally::default();
        let (one, two) = (Mutex::default(), Mutex::default());
        tally.note(&one, &report(3, 1));
        tally.note(&two, &report(10, 4));
        tally.note(&one, &report(5, 1));
        tally.note(&one, &report(4, 0));
        tally.note(&one, &Said::Fault("x".to_owned()));
        tally.note(&one, &report(6, 1));
        let totals = tally.totals();
        assert_eq!((totals.activity.steps, totals.walks.hits), (17, 6));
        assert_eq!(sum([totals, totals]).activity.steps, 34);
    }
}

//! Statistics of completions: medians, percentiles, speeds, and shares of a session's life.
//!
//! Everything here is a pure function of the measurements. Shares and rates over several requests are ratios of sums, so
//! that a long request counts for more than a short one; speeds and latencies are medians over requests.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::{inward, v1};
use serde::Serialize;
use speculation::duty::Source;
use speculation::misses::{MissCause, Misses};
use speculation::stats::ratio;

use crate::client::Arrival;

/// The median; the mean of the middle two for an even count; `None` without values. Values must not be NaN.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 {
        upper
    } else {
        (values[middle - 1] + upper) / 2.0
    })
}

/// The smallest value that at least `share` (0 to 1) of the values do not exceed (nearest rank); `None` without values.
pub(crate) fn percentile(values: impl IntoIterator<Item = f64>, share: f64) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

/// The first and the third quartile (nearest rank); `None` without values.
pub(crate) fn quartiles(values: impl IntoIterator<Item = f64>) -> Option<[f64; 2]> {
    let values: Vec<f64> = values.into_iter().collect();
    let of = |share| percentile(values.iter().copied(), share);
    Some([of(0.25)?, of(0.75)?])
}

/// Tokens per second after the first arrival: the number of later tokens over the time from the first to the last
/// arrival. `None` if everything arrived at once.
pub(crate) fn decode_speed(arrivals: &[Arrival]) -> Option<f64> {
    let (first, rest) = arrivals.split_first()?;
    let elapsed = rest.last()?.at.checked_sub(first.at)?.as_secs_f64();
    let tokens: usize = rest.iter().map(|arrival| arrival.tokens).sum();
    (elapsed > 0.0).then(|| tokens as f64 / elapsed)
}

/// Gaps between consecutive tokens in milliseconds. The gaps within tokens that arrived together are 0; the first of
/// them has the gap since the arrival before.
pub(crate) fn token_gaps_ms(arrivals: &[Arrival]) -> Vec<f64> {
    let mut gaps = Vec::new();
    let mut before: Option<Duration> = None;
    for arrival in arrivals {
        if let Some(before) = before {
            gaps.push(milliseconds(arrival.at.saturating_sub(before)));
        }
        gaps.extend(std::iter::repeat_n(0.0, arrival.tokens.saturating_sub(1)));
        before = Some(arrival.at);
    }
    gaps
}

/// A duration in milliseconds.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Sums over the statistics of requests. They saturate, because a server may send any value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    walks: v1::WalkStats,
    target: v1::Activity,
    /// All drafts together.
    drafts: v1::Activity,
    /// All qualifiers together.
    qualifiers: v1::Activity,
    drafted_nodes: u64,
    drafted_committed: u64,
    misses: Misses,
}

/// How one role's workers spent their time; shares are of the sessions' lives.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct RoleTime {
    /// Mean time of a step, pace included.
    pub(crate) step_ms: f64,
    /// Mean rows of a step, prefill included.
    pub(crate) rows: f64,
    pub(crate) steps: u64,
    /// Steps abandoned because a commit had made them useless.
    pub(crate) abandoned_steps: u64,
    pub(crate) busy: f64,
    pub(crate) bubble: f64,
    pub(crate) parked: f64,
}

/// What a source of guesses gave the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SourceCounts {
    /// Nodes of the target's tree.
    pub(crate) nodes: u64,
    /// Of those, nodes whose token was committed.
    pub(crate) committed: u64,
    /// Walks whose last token was such a node.
    pub(crate) hits: u64,
}

impl RoleTime {
    /// Of what one worker, or several of a role, have done.
    pub(crate) fn of(activity: &v1::Activity) -> RoleTime {
        RoleTime {
            step_ms: ratio(
                activity.busy_us,
                activity.steps.saturating_add(activity.abandoned_steps),
            ) / 1000.0,
            rows: ratio(activity.rows, activity.steps),
            steps: activity.steps,
            abandoned_steps: activity.abandoned_steps,
            busy: ratio(activity.busy_us, activity.life_us),
            bubble: ratio(activity.bubble_us, activity.life_us),
            parked: ratio(activity.parked_us, activity.life_us),
        }
    }
}

impl Totals {
    /// Adds up requests.
    pub(crate) fn of<'a>(requests: impl IntoIterator<Item = &'a v1::SessionStatistics>) -> Totals {
        let mut totals = Totals::default();
        for request in requests {
            if let Some(walks) = &request.walks {
                add_walks(&mut totals.walks, walks);
            }
            if let Some(activity) = &request.target {
                add_activity(&mut totals.target, activity);
            }
            for activity in &request.drafts {
                add_activity(&mut totals.drafts, activity);
            }
            for activity in &request.qualifiers {
                add_activity(&mut totals.qualifiers, activity);
            }
            totals.misses = totals.misses.plus(inward::misses(request.misses));
            totals.drafted_nodes = totals.drafted_nodes.saturating_add(request.drafted_nodes);
            totals.drafted_committed = totals
                .drafted_committed
                .saturating_add(request.drafted_committed);
        }
        totals
    }

    /// Acceptance length M: tokens committed per target step.
    pub(crate) fn acceptance_length(&self) -> f64 {
        ratio(self.walks.tokens, self.walks.steps)
    }

    /// Path rollback RB: share of the submitted main chain that was discarded.
    pub(crate) fn path_rollback(&self) -> f64 {
        let discarded = self
            .walks
            .chain_submitted
            .saturating_sub(self.walks.chain_accepted);
        ratio(discarded, self.walks.chain_submitted)
    }

    /// Share of the drafted nodes that were never committed.
    pub(crate) fn waste(&self) -> f64 {
        ratio(
            self.drafted_nodes.saturating_sub(self.drafted_committed),
            self.drafted_nodes,
        )
    }

    /// Share of the walks whose last token was already guessed.
    pub(crate) fn hit_rate(&self) -> f64 {
        ratio(
            self.walks.hits,
            self.walks.hits.saturating_add(self.walks.misses),
        )
    }

    /// Target steps that missed for each cause, as shares of all target steps.
    pub(crate) fn misses(&self) -> BTreeMap<&'static str, f64> {
        (MissCause::ALL.into_iter())
            .map(|cause| {
                let share = ratio(self.misses.of(cause), self.walks.steps);
                (cause.name(), share)
            })
            .collect()
    }

    /// Tokens that are not the target's own, but were tolerated.
    pub(crate) fn tolerated(&self) -> u64 {
        self.walks.tolerated
    }

    /// Share of the session's life in which the target was idle although the session was active.
    pub(crate) fn target_bubble(&self) -> f64 {
        ratio(self.target.bubble_us, self.target.life_us)
    }

    /// Share of the session's life that the target spent in steps without a live guess.
    pub(crate) fn target_starved(&self) -> f64 {
        ratio(self.walks.starved_us, self.target.life_us)
    }

    /// Share of the session's life in which the target was in a step.
    pub(crate) fn target_busy(&self) -> f64 {
        ratio(self.target.busy_us, self.target.life_us)
    }

    /// Share of the session's life in which drafts were idle although the session was active.
    pub(crate) fn draft_bubble(&self) -> f64 {
        ratio(self.drafts.bubble_us, self.drafts.life_us)
    }

    /// Guesses verified in a target step, on average, without the row of the last committed token.
    pub(crate) fn target_rows(&self) -> f64 {
        ratio(self.walks.guesses_submitted, self.walks.steps)
    }

    /// What each source of guesses gave the target, of those that gave something.
    pub(crate) fn sources(&self) -> BTreeMap<&'static str, SourceCounts> {
        let counts = |source: Source| {
            let at = usize::from(source.code());
            let of = |counts: &[u64]| counts.get(at).copied().unwrap_or_default();
            SourceCounts {
                nodes: of(&self.walks.source_nodes),
                committed: of(&self.walks.source_committed),
                hits: of(&self.walks.source_hits),
            }
        };
        (Source::ALL.into_iter())
            .map(|source| (source.name(), counts(source)))
            .filter(|(_, counts)| *counts != SourceCounts::default())
            .collect()
    }

    /// How each role's workers spent their time.
    pub(crate) fn roles(&self) -> BTreeMap<&'static str, RoleTime> {
        [
            ("target", &self.target),
            ("qualifier", &self.qualifiers),
            ("draft", &self.drafts),
        ]
        .into_iter()
        .filter(|(_, activity)| activity.steps > 0)
        .map(|(role, activity)| (role, RoleTime::of(activity)))
        .collect()
    }
}

fn add_walks(total: &mut v1::WalkStats, more: &v1::WalkStats) {
    total.steps = total.steps.saturating_add(more.steps);
    total.starved_steps = total.starved_steps.saturating_add(more.starved_steps);
    total.starved_us = total.starved_us.saturating_add(more.starved_us);
    total.resting_steps = total.resting_steps.saturating_add(more.resting_steps);
    total.tokens = total.tokens.saturating_add(more.tokens);
    total.hits = total.hits.saturating_add(more.hits);
    total.misses = total.misses.saturating_add(more.misses);
    total.chain_submitted = total.chain_submitted.saturating_add(more.chain_submitted);
    total.chain_accepted = total.chain_accepted.saturating_add(more.chain_accepted);
    total.guesses_submitted = total
        .guesses_submitted
        .saturating_add(more.guesses_submitted);
    total.guesses_accepted = total.guesses_accepted.saturating_add(more.guesses_accepted);
    total.tolerated = total.tolerated.saturating_add(more.tolerated);
    total.heads_steps = total.heads_steps.saturating_add(more.heads_steps);
    add_counts(&mut total.source_nodes, &more.source_nodes);
    add_counts(&mut total.source_committed, &more.source_committed);
    add_counts(&mut total.source_hits, &more.source_hits);
}

/// Counts by the number of their source; those beyond the sources that are known are left out.
fn add_counts(total: &mut Vec<u64>, more: &[u64]) {
    let more = &more[..more.len().min(Source::CODES)];
    total.resize(total.len().max(more.len()), 0);
    for (total, &more) in total.iter_mut().zip(more) {
        *total = total.saturating_add(more);
    }
}

/// Adds up activities.
pub(crate) fn add_activity(total: &mut v1::Activity, more: &v1::Activity) {
    total.steps = total.steps.saturating_add(more.steps);
    total.rows = total.rows.saturating_add(more.rows);
    total.busy_us = total.busy_us.saturating_add(more.busy_us);
    total.bubble_us = total.bubble_us.saturating_add(more.bubble_us);
    total.parked_us = total.parked_us.saturating_add(more.parked_us);
    total.life_us = total.life_us.saturating_add(more.life_us);
    total.abandoned_steps = total.abandoned_steps.saturating_add(more.abandoned_steps);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(all: &[(u64, usize)]) -> Vec<Arrival> {
        all.iter()
            .map(|&(at, tokens)| Arrival {
                at: Duration::from_millis(at),
                tokens,
            })
            .collect()
    }

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        assert_eq!(percentile([], 0.99), None);
        assert_eq!(percentile([5.0], 0.99), Some(5.0));
        let hundred = (1..=100).rev().map(f64::from);
        assert_eq!(percentile(hundred.clone(), 0.99), Some(99.0));
        assert_eq!(percentile(hundred.clone(), 1.0), Some(100.0));
        assert_eq!(percentile(hundred, 0.0), Some(1.0));
    }

    #[test]
    fn speed_excludes_the_first_arrival() {
        assert_eq!(decode_speed(&[]), None);
        assert_eq!(decode_speed(&arrivals(&[(5, 9)])), None);
        assert_eq!(decode_speed(&arrivals(&[(5, 1), (5, 1)])), None);
        assert_eq!(
            decode_speed(&arrivals(&[(500, 3), (1000, 4), (2500, 6)])),
            Some(5.0)
        );
    }

    #[test]
    fn tokens_that_arrive_together_have_no_gap() {
        let gaps = token_gaps_ms(&arrivals(&[(10, 2), (15, 3), (45, 1)]));
        assert_eq!(gaps, [0.0, 5.0, 0.0, 0.0, 30.0]);
        assert!(token_gaps_ms(&[]).is_empty());
    }

    #[test]
    fn totals_are_ratios_of_sums() {
        let request = |steps, tokens, life_us, bubble_us| v1::SessionStatistics {
            walks: Some(v1::WalkStats {
                steps,
                tokens,
                starved_us: 50,
                hits: 3,
                misses: 1,
                ..Default::default()
            }),
            target: Some(v1::Activity {
                life_us,
                bubble_us,
                busy_us: 10,
                ..Default::default()
            }),
            drafts: vec![
                v1::Activity {
                    life_us,
                    bubble_us: 0,
                    ..Default::default()
                },
                v1::Activity {
                    life_us,
                    bubble_us,
                    ..Default::default()
                },
            ],
            drafted_nodes: 10,
            drafted_committed: 4,
            ..Default::default()
        };
        let totals = Totals::of([&request(1, 1, 100, 0), &request(9, 29, 900, 500)]);
        assert_eq!(totals.acceptance_length(), 3.0);
        assert_eq!(totals.target_bubble(), 0.5);
        assert_eq!(totals.target_starved(), 0.1);
        assert_eq!(totals.draft_bubble(), 0.25);
        assert_eq!(totals.waste(), 0.6);
        assert_eq!(totals.hit_rate(), 0.75);
        assert_eq!(totals.path_rollback(), 0.0, "nothing was submitted");
    }

    #[test]
    fn sources_are_added_up_by_name() {
        let request = |nodes: &[u64], hits: &[u64]| v1::SessionStatistics {
            walks: Some(v1::WalkStats {
                source_nodes: nodes.to_vec(),
                source_hits: hits.to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let (draft, history) = (Source::Draft.code(), Source::History.code());
        let one = request(&[0, 4], &[]);
        let mut many = vec![0; 100];
        many[usize::from(history)] = 2;
        let two = request(&many, &[0, 1]);
        assert_eq!((draft, history), (1, 5));
        let counts = |nodes, hits| SourceCounts {
            nodes,
            committed: 0,
            hits,
        };
        let expected = [("draft", counts(4, 1)), ("history", counts(2, 0))];
        assert_eq!(Totals::of([&one, &two]).sources(), expected.into());
    }
}

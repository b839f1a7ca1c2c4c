//! Figures from replies to the `Cluster` call: averages since the start, or between two replies.

use std::time::Duration;

use proto::v1;
use speculation::stats::ratio;

/// What one frame shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    /// The time that the figures cover: since the start, or between two replies.
    pub(super) span: Duration,
    pub(super) since_start: bool,
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) tokens_per_s: f64,
    pub(super) tokens: u64,
    /// Tokens per target step; `None` without a step.
    pub(super) acceptance: Option<f64>,
    pub(super) hit_rate: Option<f64>,
    /// Share of target steps without a live guess.
    pub(super) starved: Option<f64>,
    pub(super) workers: Vec<WorkerFigures>,
}

/// One worker's line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WorkerFigures {
    pub(super) role: String,
    pub(super) address: String,
    pub(super) model: String,
    pub(super) state: String,
    pub(super) sessions: u32,
    pub(super) max_sessions: u32,
    pub(super) steps_per_s: f64,
    pub(super) step_ms: Option<f64>,
    pub(super) rows: Option<f64>,
    pub(super) time: Option<Shares>,
}

/// Shares of the lives of the sessions served. The rest is the time of steps of other sessions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shares {
    pub(super) busy: f64,
    pub(super) bubble: f64,
    pub(super) parked: f64,
}

/// `part / whole`; `None` if `whole` is 0.
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| ratio(part, whole))
}

impl Figures {
    /// Averages since the coordinator started.
    pub(super) fn since_start(now: &v1::ClusterReply) -> Figures {
        let span = Duration::from_micros(now.uptime_us);
        Figures {
            since_start: true,
            ..Figures::between(&v1::ClusterReply::default(), now, span)
        }
    }

    /// What happened between two replies. If the coordinator was restarted in between, since its start.
    pub(super) fn between(
        before: &v1::ClusterReply,
        now: &v1::ClusterReply,
        span: Duration,
    ) -> Figures {
        let nothing = v1::ClusterReply::default();
        let before = if before.uptime_us > now.uptime_us {
            &nothing
        } else {
            before
        };
        let mut walks = v1::WalkStats::default();
        let workers = (now.workers.iter())
            .map(|worker| {
                let was = (before.workers.iter())
                    .find(|was| was.address == worker.address && was.role == worker.role);
                if worker.role == "target" {
                    let was = was.and_then(|was| was.walks.as_ref());
                    add(&mut walks, was, worker.walks.as_ref());
                }
                line(worker, was.and_then(|was| was.activity), span)
            })
            .collect();
        let tokens = (now.generated_tokens).saturating_sub(before.generated_tokens);
        Figures {
            span,
            since_start: false,
            running: now.sessions,
            waiting: now.waiting,
            tokens_per_s: per_second(tokens, span),
            tokens: now.generated_tokens,
            acceptance: share(walks.tokens, walks.steps),
            hit_rate: share(walks.hits, walks.hits + walks.misses),
            starved: share(walks.starved_steps, walks.steps),
            workers,
        }
    }
}

fn per_second(count: u64, span: Duration) -> f64 {
    if span.is_zero() {
        0.0
    } else {
        count as f64 / span.as_secs_f64()
    }
}

fn line(worker: &v1::WorkerInfo, was: Option<v1::Activity>, span: Duration) -> WorkerFigures {
    let (was, is) = (was.unwrap_or_default(), worker.activity.unwrap_or_default());
    let steps = is.steps.saturating_sub(was.steps);
    let busy = is.busy_us.saturating_sub(was.busy_us);
    let computed = steps + is.abandoned_steps.saturating_sub(was.abandoned_steps);
    let life = is.life_us.saturating_sub(was.life_us);
    let of_life = |is: u64, was: u64| ratio(is.saturating_sub(was), life).min(1.0);
    WorkerFigures {
        role: worker.role.clone(),
        address: worker.address.clone(),
        model: worker.model.clone(),
        state: worker.state.clone(),
        sessions: worker.sessions,
        max_sessions: worker.max_sessions,
        steps_per_s: per_second(steps, span),
        step_ms: share(busy, computed).map(|us| us / 1000.0),
        rows: share(is.rows.saturating_sub(was.rows), steps),
        time: (life > 0).then(|| Shares {
            busy: of_life(is.busy_us, was.busy_us),
            bubble: of_life(is.bubble_us, was.bubble_us),
            parked: of_life(is.parked_us, was.parked_us),
        }),
    }
}

/// Adds the difference between `was` and `is` to `sum`. A server may send any value, so this saturates.
fn add(sum: &mut v1::WalkStats, was: Option<&v1::WalkStats>, is: Option<&v1::WalkStats>) {
    let nothing = v1::WalkStats::default();
    let (was, is) = (was.unwrap_or(&nothing), is.unwrap_or(&nothing));
    let grow = |sum: &mut u64, was: u64, is: u64| *sum = sum.saturating_add(is.saturating_sub(was));
    grow(&mut sum.steps, was.steps, is.steps);
    grow(&mut sum.starved_steps, was.starved_steps, is.starved_steps);
    grow(&mut sum.tokens, was.tokens, is.tokens);
    grow(&mut sum.hits, was.hits, is.hits);
    grow(&mut sum.misses, was.misses, is.misses);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A cluster of two workers after `times` units of work.
    pub(crate) fn reply(times: u64) -> v1::ClusterReply {
        let target = v1::WorkerInfo {
            role: "target".to_owned(),
            address: "127.0.0.1:7001".to_owned(),
            model: "nano".to_owned(),
            state: "ready".to_owned(),
            sessions: 2,
            max_sessions: 16,
            activity: Some(v1::Activity {
                steps: 10 * times,
                rows: 60 * times,
                busy_us: 200_000 * times,
                bubble_us: 50_000 * times,
                life_us: 400_000 * times,
                ..v1::Activity::default()
            }),
            walks: Some(v1::WalkStats {
                steps: 10 * times,
                starved_steps: times,
                tokens: 30 * times,
                hits: 7 * times,
                misses: 3 * times,
                ..v1::WalkStats::default()
            }),
            ..v1::WorkerInfo::default()
        };
        let draft = v1::WorkerInfo {
            role: "draft".to_owned(),
            address: "127.0.0.1:7002".to_owned(),
            state: "refused: it has another vocabulary".to_owned(),
            ..v1::WorkerInfo::default()
        };
        v1::ClusterReply {
            workers: vec![target, draft],
            sessions: 2,
            waiting: 1,
            generated_tokens: 30 * times,
            uptime_us: 500_000 * times,
        }
    }

    #[test]
    fn figures_are_differences_of_two_replies() {
        let figures = Figures::between(&reply(1), &reply(3), Duration::from_secs(1));
        assert_eq!(figures.tokens_per_s, 60.0);
        assert_eq!(figures.acceptance, Some(3.0));
        assert_eq!(figures.hit_rate, Some(0.7));
        assert_eq!(figures.starved, Some(0.1));
        let target = &figures.workers[0];
        assert_eq!(target.steps_per_s, 20.0);
        assert_eq!((target.step_ms, target.rows), (Some(20.0), Some(6.0)));
        let shares = Shares {
            busy: 0.5,
            bubble: 0.125,
            parked: 0.0,
        };
        assert_eq!(target.time, Some(shares));
    }

    #[test]
    fn without_work_there_is_no_share() {
        let figures = Figures::between(&reply(2), &reply(2), Duration::from_secs(1));
        assert_eq!(figures.tokens_per_s, 0.0);
        assert_eq!((figures.acceptance, figures.hit_rate), (None, None));
        assert_eq!(figures.workers[0].time, None);
        let fresh = Figures::since_start(&v1::ClusterReply::default());
        assert_eq!((fresh.tokens_per_s, fresh.workers.len()), (0.0, 0));
    }

    #[test]
    fn a_restarted_coordinator_counts_from_its_start() {
        let figures = Figures::between(&reply(9), &reply(1), Duration::from_secs(1));
        assert_eq!(figures.tokens_per_s, 30.0);
        assert_eq!(figures.acceptance, Some(3.0));
    }
}

//! One fault, repeated on a rig under load.

use std::time::{Duration, Instant};

use anyhow::Context;
use runtime::Caller;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::load::{Jobs, Load, Outcome, Record, Running};
use super::measure::Full;
use super::rig::{Layout, Rig};
use super::row::{Aftermath, Fault, Notice};
use crate::wait::{met, until};

/// The durations of the parts of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From when all clients have started until the speed is measured, so that they are no longer in step.
    pub ramp: Duration,
    /// How long the speed before a fault is measured; `None` to skip it.
    pub before: Option<Duration>,
    /// How long the speed of the remaining cluster is measured, once per fault; `None` to skip it.
    pub left: Option<Duration>,
    /// The load continues at least this long after a fault, so that late effects are seen.
    pub after: Duration,
    /// The same for a fault that only new requests may notice: each client has to send some.
    pub after_half_open: Duration,
    /// How long to wait for full speed, or for a worker to be used.
    pub recovery_limit: Duration,
}

impl Timing {
    /// For figures.
    pub const FULL: Timing = Timing {
        ramp: Duration::from_millis(1200),
        before: Some(Duration::from_millis(2500)),
        left: Some(Duration::from_millis(6000)),
        after: Duration::from_millis(1500),
        after_half_open: Duration::from_millis(6000),
        recovery_limit: Duration::from_secs(45),
    };

    /// To see what is lost and what differs, without speeds.
    pub const QUICK: Timing = Timing {
        ramp: Duration::ZERO,
        before: None,
        left: None,
        after: Duration::from_millis(500),
        after_half_open: Duration::from_millis(1500),
        recovery_limit: Duration::from_secs(45),
    };
}

/// How long the clients may take to start.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);
/// Time between two checks of what has arrived.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long clients wait for an event when they should not notice a fault, or when their connection breaks. Longer than
/// any timeout in the cluster, so that the figures show its own recovery.
const PATIENT: Duration = Duration::from_secs(40);
/// The same when their own connection or coordinator becomes silent, which only they can detect.
const IMPATIENT: Duration = Duration::from_secs(2);

/// The parameters of trials.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster.
    pub layout: Layout,
    /// Concurrent requests.
    pub clients: usize,
    /// The requests.
    pub jobs: Jobs,
    /// Repetitions of each fault.
    pub repetitions: usize,
    /// The durations.
    pub timing: Timing,
}

/// What users noticed in one repetition.
#[derive(Clone, Debug, Default)]
pub struct Repetition {
    /// Requests that were sent.
    pub requests: usize,
    /// Requests that no attempt completed.
    pub failed: usize,
    /// Requests whose stream broke, so that their client had to resume.
    pub interrupted: usize,
    /// Tokens that differ from plain decoding.
    pub differing: usize,
    /// The longest gap between tokens of a request after the fault had begun.
    pub longest_gap: Duration,
    /// From the fault to full speed; `None` if that was not reached. For rolling restarts from the last restart.
    pub recovery: Option<Duration>,
    /// From the start of a worker that joined late until it had a session.
    pub used_after: Option<Duration>,
    /// Tokens per second before the fault.
    pub rate: f64,
    /// Other errors.
    pub notes: Vec<String>,
}

/// All repetitions of one fault.
#[derive(Clone, Debug)]
pub struct Series {
    /// Which fault.
    pub fault: Fault,
    /// Tokens per second of the remaining cluster, where the fault leaves less than the whole.
    pub left: Option<f64>,
    /// In order, on one rig.
    pub repetitions: Vec<Repetition>,
}

/// Repeats a fault. `rig` is complete before and after; it is replaced if it cannot be restored. `report` is called after
/// each repetition.
///
/// # Errors
/// When a rig cannot be started.
pub async fn series(
    plan: &Plan,
    rig: &mut Rig,
    fault: Fault,
    mut report: impl FnMut(&Repetition),
) -> anyhow::Result<Series> {
    let left = match (fault.aftermath(), plan.timing.left) {
        (Aftermath::Less, Some(time)) => Some(left(plan, rig, fault, time).await?),
        (Aftermath::Less, None) | (Aftermath::Whole | Aftermath::More, _) => None,
    };
    let mut repetitions = Vec::new();
    for number in 0..plan.repetitions {
        // Each starts with other requests, so that the speed before a fault is not always that of the same ones.
        let load = load(plan, rig, fault, number * plan.clients);
        let mut repetition = trial(plan, rig, fault, &load, left).await?;
        if let Err(error) = fault.undo(rig).await {
            repetition.notes.push(format!("afterwards: {error:#}"));
            *rig = Rig::start(plan.layout).await?;
        }
        report(&repetition);
        repetitions.push(repetition);
    }
    Ok(Series {
        fault,
        left,
        repetitions,
    })
}

fn load(plan: &Plan, rig: &Rig, fault: Fault, first: usize) -> Load {
    Load {
        caller: Caller::default(),
        clients: plan.clients,
        jobs: plan.jobs.clone(),
        first,
        coordinators: rig.client_addresses(),
        patience: match fault.notice() {
            Notice::Hidden | Notice::Disconnected => PATIENT,
            Notice::Silent => IMPATIENT,
        },
    }
}

/// The speed of the remaining cluster.
async fn left(plan: &Plan, rig: &mut Rig, fault: Fault, time: Duration) -> anyhow::Result<f64> {
    fault.inject(rig).await?;
    let running = load(plan, rig, fault, 0).start();
    begin(plan, &running).await?;
    let from = Instant::now();
    sleep(time).await;
    let rate = running.arrivals().rate(from, Instant::now());
    running.finish().await?;
    fault.undo(rig).await?;
    Ok(rate)
}

/// Waits until every client has got a token and the load is steady.
async fn begin(plan: &Plan, running: &Running) -> anyhow::Result<()> {
    let begun = Instant::now();
    let started = until(BEGIN_LIMIT, async || {
        let clients = running.arrivals().clients(begun, Instant::now());
        let missing = format!("{clients} of {} clients got a token", plan.clients);
        Ok(met(clients >= plan.clients, &missing))
    });
    started
        .await
        .context("the load did not start, without any fault")?;
    sleep(plan.timing.ramp).await;
    Ok(())
}

async fn trial(
    plan: &Plan,
    rig: &mut Rig,
    fault: Fault,
    load: &Load,
    left: Option<f64>,
) -> anyhow::Result<Repetition> {
    fault.prepare(rig).await?;
    let running = load.start();
    begin(plan, &running).await?;
    let from = Instant::now();
    if let Some(time) = plan.timing.before {
        sleep(time).await;
    }
    let begun = Instant::now();
    // Without a measurement 0, and then every window in which all clients get tokens is full speed.
    let rate = match plan.timing.before {
        Some(_) => running.arrivals().rate(from, begun),
        None => 0.0,
    };
    let mut repetition = Repetition {
        rate,
        ..Repetition::default()
    };
    if let Err(error) = fault.inject(rig).await {
        repetition.notes.push(format!("{error:#}"));
    }
    let since = match fault {
        Fault::RollingRestart(_) | Fault::LateJoin(_) => Instant::now(),
        Fault::Nothing
        | Fault::Kill(_)
        | Fault::Freeze(_)
        | Fault::Reset(_)
        | Fault::BlackHole(_)
        | Fault::HalfOpen(..)
        | Fault::Slow(_)
        | Fault::Narrow(_) => begun,
    };
    let full = Full {
        rate: rate.min(left.unwrap_or(rate)),
        clients: plan.clients,
    };
    let recovering = Recovering {
        fault,
        since,
        full,
        timing: plan.timing,
    };
    recovering.wait(rig, &running, &mut repetition).await;
    count(running.finish().await?, begun, &mut repetition);
    Ok(repetition)
}

/// A fault whose recovery is waited for.
struct Recovering {
    fault: Fault,
    /// The time from which recovery is counted.
    since: Instant,
    full: Full,
    timing: Timing,
}

impl Recovering {
    /// Waits until the cluster is at full speed again and the expected effect is visible, or until the limit.
    async fn wait(&self, rig: &Rig, running: &Running, repetition: &mut Repetition) {
        let after = match self.fault {
            Fault::HalfOpen(..) => self.timing.after_half_open,
            Fault::Nothing
            | Fault::Kill(_)
            | Fault::Freeze(_)
            | Fault::Reset(_)
            | Fault::BlackHole(_)
            | Fault::Slow(_)
            | Fault::Narrow(_)
            | Fault::RollingRestart(_)
            | Fault::LateJoin(_) => self.timing.after,
        };
        let earliest = Instant::now() + after;
        let latest = earliest + self.timing.recovery_limit;
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_shown = false;
        loop {
            tick.tick().await;
            let now = Instant::now();
            if !is_shown {
                // A coordinator that does not answer is asked again in the next iteration.
                is_shown = self.fault.is_shown(rig).await.unwrap_or(false);
                if is_shown && self.fault.aftermath() == Aftermath::More {
                    repetition.used_after = Some(self.since.elapsed());
                }
            }
            let arrivals = running.arrivals();
            repetition.recovery = arrivals.recovery(self.since, self.full, now);
            let is_over = is_shown && repetition.recovery.is_some();
            if (is_over && now >= earliest) || now >= latest {
                if !is_shown {
                    repetition.notes.push("it was never used".to_owned());
                }
                return;
            }
        }
    }
}

fn count(records: Vec<Record>, begun: Instant, repetition: &mut Repetition) {
    repetition.requests = records.len();
    for record in &records {
        if let Outcome::Failed(why) = &record.outcome {
            repetition.failed += 1;
            repetition.notes.push(format!("failed: {why}"));
        }
        if let Some(why) = record.interruptions.first() {
            repetition.interrupted += 1;
            repetition.notes.push(format!("interrupted: {why}"));
        }
        repetition.differing += record.differing;
        repetition.longest_gap = repetition.longest_gap.max(record.longest_gap(begun));
    }
}

//! One fault, again and again, on a rig under load.

use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::load::{Jobs, Load, Outcome, Record, Running};
use super::measure::Full;
use super::rig::{Layout, Rig};
use super::row::{Aftermath, Fault, Notice};

/// How long each part of a trial takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From when all clients have begun until the speed is taken, so that they are no longer in step.
    pub ramp: Duration,
    /// How long the speed before a fault is taken.
    pub before: Duration,
    /// How long the speed of the cluster that is left is taken, once per fault; `None` to do without it.
    pub left: Option<Duration>,
    /// The load goes on at least this long behind a fault, so that what comes late is seen.
    pub after: Duration,
    /// The same for a fault that only new requests may notice: each client has to come to some.
    pub after_half_open: Duration,
    /// How long to wait for full speed, or for a worker to be used.
    pub recovery_limit: Duration,
}

impl Timing {
    /// For figures.
    pub const FULL: Timing = Timing {
        ramp: Duration::from_millis(1200),
        before: Duration::from_millis(2500),
        left: Some(Duration::from_millis(6000)),
        after: Duration::from_millis(1500),
        after_half_open: Duration::from_millis(6000),
        recovery_limit: Duration::from_secs(45),
    };

    /// For a look at what is lost and what differs; its speeds say little.
    pub const QUICK: Timing = Timing {
        ramp: Duration::from_millis(300),
        before: Duration::from_millis(300),
        left: None,
        after: Duration::from_millis(500),
        after_half_open: Duration::from_millis(1500),
        recovery_limit: Duration::from_secs(5),
    };
}

/// How long the clients may take to begin; a machine that needs more has no time for this.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at what has arrived.
const LOOK: Duration = Duration::from_millis(50);
/// How long clients wait for a token when a fault is nothing that they should notice, or something that they are told.
/// Longer than anything in the cluster, so that its own doing is seen.
const PATIENT: Duration = Duration::from_secs(40);
/// The same when their own connection or coordinator falls silent, and only they can help themselves.
const IMPATIENT: Duration = Duration::from_secs(2);

/// How trials are run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster.
    pub layout: Layout,
    /// Requests at one time.
    pub clients: usize,
    /// What they ask for.
    pub jobs: Jobs,
    /// How often each fault is repeated.
    pub repetitions: usize,
    /// How long it all takes.
    pub timing: Timing,
}

/// What users noticed in one repetition.
#[derive(Clone, Debug, Default)]
pub struct Repetition {
    /// Requests that were sent.
    pub requests: usize,
    /// Requests that did not end as they should, whatever their client tried.
    pub failed: usize,
    /// Requests whose stream broke, so that their client had to go on by itself.
    pub interrupted: usize,
    /// Tokens that were not those of plain decoding.
    pub differing: usize,
    /// The longest that a user waited for a further token once the fault had begun.
    pub longest_gap: Duration,
    /// From the fault to full speed; `None` if that was not seen. For what takes turns, from the end of the last turn.
    pub recovery: Option<Duration>,
    /// From the start of a worker that joined late until it had work.
    pub used_after: Option<Duration>,
    /// Tokens per second before the fault.
    pub rate: f64,
    /// What else went wrong, for people.
    pub notes: Vec<String>,
}

/// All repetitions of one fault.
#[derive(Clone, Debug)]
pub struct Series {
    /// Which fault.
    pub fault: Fault,
    /// Tokens per second of the cluster that the fault leaves, where that is less than the whole one.
    pub left: Option<f64>,
    /// One after the other, on one rig.
    pub repetitions: Vec<Repetition>,
}

/// Repeats a fault. `rig` is whole before and after; it is replaced if a fault leaves it broken. `tell` hears of each
/// repetition.
///
/// # Errors
/// When a rig cannot be started.
pub async fn series(
    plan: &Plan,
    rig: &mut Rig,
    fault: Fault,
    mut tell: impl FnMut(&Repetition),
) -> anyhow::Result<Series> {
    let left = match (fault.aftermath(), plan.timing.left) {
        (Aftermath::Less, Some(time)) => Some(left(plan, rig, fault, time).await?),
        (Aftermath::Less, None) | (Aftermath::Whole | Aftermath::More, _) => None,
    };
    let mut repetitions = Vec::new();
    for number in 0..plan.repetitions {
        // Each begins with other requests, or the speed before a fault would always be that of the same ones.
        let load = load(plan, rig, fault, number * plan.clients);
        let mut repetition = trial(plan, rig, fault, &load, left).await?;
        if let Err(error) = fault.undo(rig).await {
            repetition.notes.push(format!("afterwards: {error:#}"));
            *rig = Rig::start(plan.layout).await?;
        }
        tell(&repetition);
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
        clients: plan.clients,
        jobs: plan.jobs.clone(),
        first,
        coordinators: rig.entrances(),
        patience: match fault.notice() {
            Notice::Nobody | Notice::Told => PATIENT,
            Notice::Silence => IMPATIENT,
        },
    }
}

/// The speed of the cluster that the fault leaves.
async fn left(plan: &Plan, rig: &mut Rig, fault: Fault, time: Duration) -> anyhow::Result<f64> {
    fault.strike(rig).await?;
    let running = load(plan, rig, fault, 0).start();
    begin(plan, &running).await?;
    let from = Instant::now();
    sleep(time).await;
    let rate = running.arrivals().rate(from, Instant::now());
    running.finish().await?;
    fault.undo(rig).await?;
    Ok(rate)
}

/// Waits until every client has begun and the load is steady.
async fn begin(plan: &Plan, running: &Running) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while running.arrivals().clients(begun, Instant::now()) < plan.clients {
        anyhow::ensure!(
            begun.elapsed() < BEGIN_LIMIT,
            "not every client had a token within {} s, without any fault",
            BEGIN_LIMIT.as_secs()
        );
        tick.tick().await;
    }
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
    sleep(plan.timing.before).await;
    let begun = Instant::now();
    let rate = running.arrivals().rate(from, begun);
    let mut repetition = Repetition {
        rate,
        ..Repetition::default()
    };
    if let Err(error) = fault.strike(rig).await {
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
    let watched = Watched {
        fault,
        since,
        full,
        timing: plan.timing,
    };
    watched.watch(rig, &running, &mut repetition).await;
    count(running.finish().await?, begun, &mut repetition);
    Ok(repetition)
}

/// A fault whose end is waited for.
struct Watched {
    fault: Fault,
    /// From when on recovery is counted.
    since: Instant,
    full: Full,
    timing: Timing,
}

impl Watched {
    /// Looks on until the cluster is at full speed again and shows what it should, or for as long as is sensible.
    async fn watch(&self, rig: &Rig, running: &Running, repetition: &mut Repetition) {
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
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_shown = false;
        loop {
            tick.tick().await;
            let now = Instant::now();
            if !is_shown {
                // A coordinator that does not answer is asked again.
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

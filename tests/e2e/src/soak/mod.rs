//! The soak: mixed traffic of every kind of client under random faults, on real processes, for as long as it is asked to.
//!
//! Every text that arrives, or part of one, is held against plain decoding. Every few minutes everything rests: what requests
//! held has to be given back, and what the processes use is looked at. A run is *flat* if that does not grow.

pub mod chaos;
pub mod dice;
pub mod gauges;
pub mod jobs;
mod received;
pub mod report;
pub mod traffic;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::cluster;
use crate::faults::rig::{Flags, Instance, Layout, Pace, Rig, Role};
use chaos::Chaos;
use gauges::{Base, Look};
use jobs::Jobs;
use traffic::{Outcomes, Traffic};

/// `--park-after` and `--client-timeout` of the coordinators: both have to happen often.
const PARK_AFTER: Duration = Duration::from_secs(1);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Tokens of texts that workers keep for shared histories, so few that they are full soon.
const HISTORY_TOKENS: usize = 8192;
/// Undisturbed traffic before the first look.
const WARM_UP: Duration = Duration::from_secs(5);
/// The strategy whose acceptance depends on nothing but the models: they take turns.
const SERIAL: &str = "serial";

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long traffic and faults last in all, rests not counted.
    pub time: Duration,
    /// After how much of it everything rests.
    pub between_rests: Duration,
    /// Clients at one time.
    pub clients: usize,
    /// Different requests.
    pub requests: usize,
    /// Decides requests, manners and faults. Timing is decided by the machine.
    pub seed: u64,
}

/// The processes: two of each role, of which the first is never ended.
pub const LAYOUT: Layout = Layout {
    drafts: 2,
    qualifiers: 2,
    targets: 2,
    coordinators: 2,
    pace: Pace {
        draft: 2.0,
        qualifier: 7.0,
        target: 20.0,
    },
    seed: 1,
};

/// What was found at one rest.
#[derive(Clone, Debug)]
pub struct Rest {
    /// Traffic and faults so far.
    pub after: Duration,
    /// What the processes use.
    pub look: Look,
    /// Tokens per target step of texts that draft and target take turns for: nothing but the models decides it.
    pub probe: f64,
    /// The same of the traffic since the last rest, at the first coordinator.
    pub acceptance: f64,
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The first is before any fault.
    pub rests: Vec<Rest>,
    /// What became of the requests.
    pub outcomes: Outcomes,
    /// How often each fault was injected.
    pub faults: BTreeMap<String, usize>,
    /// Processes that ended although nobody had ended them, and panics.
    pub deaths: usize,
    /// See `deaths`.
    pub panics: usize,
}

/// A running soak.
struct Soak {
    plan: Plan,
    rig: Rig,
    traffic: Traffic,
    chaos: Chaos,
    base: Base,
    findings: Findings,
}

/// Runs a soak. `report` is called after every rest.
///
/// # Errors
/// When the rig does not work, a probe is wrong, or something is left over at a rest.
pub async fn run(plan: Plan, mut report: impl FnMut(&Findings)) -> anyhow::Result<Findings> {
    let jobs = Jobs::new(plan.requests, plan.seed).await?;
    let mut soak = Soak::start(plan, jobs).await?;
    soak.rest(Duration::ZERO).await?;
    report(&soak.findings);
    let mut done = Duration::ZERO;
    let mut round = 0;
    while done < plan.time {
        round += 1;
        let now = plan.between_rests.min(plan.time - done);
        soak.disturb(now, plan.seed.wrapping_add(round << 40))
            .await?;
        done += now;
        soak.rest(done)
            .await
            .with_context(|| format!("at the rest after {} s", done.as_secs()))?;
        report(&soak.findings);
    }
    Ok(soak.findings)
}

impl Soak {
    async fn start(plan: Plan, jobs: Jobs) -> anyhow::Result<Soak> {
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let admin = "--admin 127.0.0.1:0";
        let (park, give_up) = (PARK_AFTER.as_secs(), CLIENT_TIMEOUT.as_secs());
        let flags = Flags {
            workers: words(admin.to_owned()),
            targets: words(format!("--history-tokens {HISTORY_TOKENS}")),
            coordinators: words(format!(
                "{admin} --park-after {park} --client-timeout {give_up}"
            )),
        };
        let rig = Rig::start_with(LAYOUT, flags).await?;
        let traffic = Traffic {
            jobs,
            coordinators: rig.client_addresses(),
            park_after: PARK_AFTER,
            client_timeout: CLIENT_TIMEOUT,
            outcomes: std::sync::Arc::default(),
            silent: std::sync::Arc::default(),
        };
        let warm = traffic.start(plan.clients, plan.seed);
        tokio::time::sleep(WARM_UP).await;
        warm.finish().await?;
        let base = Base::new(&rig).await?;
        Ok(Soak {
            plan,
            rig,
            traffic,
            chaos: Chaos::new(plan.seed),
            base,
            findings: Findings::default(),
        })
    }

    /// Traffic and faults for so long.
    async fn disturb(&mut self, time: Duration, seed: u64) -> anyhow::Result<()> {
        let running = self.traffic.start(self.plan.clients, seed);
        self.chaos.run(&mut self.rig, Instant::now() + time).await?;
        self.chaos.end(&mut self.rig).await?;
        running.finish().await
    }

    /// Ends everything, waits until nothing is left of it, and looks at the processes.
    async fn rest(&mut self, after: Duration) -> anyhow::Result<()> {
        for of in self.rig.instances() {
            if self
                .rig
                .process(of)
                .is_some_and(cluster::Process::has_exited)
            {
                self.findings.deaths += 1;
                self.traffic
                    .note(format!("{} ended by itself", gauges::name(of)));
                self.rig.kill(of).await?;
            }
        }
        self.rig.restore().await?;
        // Before connections of silent clients are let go: the coordinators have to find out for themselves.
        self.base.quiet(&self.rig).await?;
        self.traffic.forget_silent();
        let before = gauges::look(&self.rig).await?;
        let first = Instance {
            role: Role::Coordinator,
            index: 0,
        };
        let process = self.rig.process(first).context("it runs")?;
        for job in self.traffic.jobs.probes.iter() {
            let probed = self.traffic.probe(job, SERIAL, &process.addr).await;
            probed.context("an undisturbed request")?;
        }
        self.base.quiet(&self.rig).await?;
        let look = gauges::look(&self.rig).await?;
        let last = self.findings.rests.last();
        let (tokens, steps) = last.map_or((0.0, 0.0), |rest| (rest.look.tokens, rest.look.steps));
        let share = |tokens: f64, steps: f64| if steps > 0.0 { tokens / steps } else { 0.0 };
        let rest = Rest {
            after,
            probe: share(look.tokens - before.tokens, look.steps - before.steps),
            acceptance: share(before.tokens - tokens, before.steps - steps),
            look,
        };
        self.findings.rests.push(rest);
        self.findings.outcomes = self.traffic.outcomes();
        self.findings.faults.clone_from(&self.chaos.counts);
        self.findings.panics = cluster::panics();
        Ok(())
    }
}

//! A cluster of real processes with a proxy on every link.
//!
//! Coordinators know their workers, and clients their coordinators, by the addresses of proxies. So a process that is
//! started again is found where it was, whatever port it got.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use proto::v1::generation_client::GenerationClient;
use proto::v1::{ClusterReply, ClusterRequest};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::cluster::{Process, Signal};
use crate::model;
use crate::proxy::Proxy;

/// How long the cluster may take to be whole again when nothing disturbs it any more. Above the time in which a silent
/// connection is given up.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(10);
/// How long a look may take; a coordinator that answers at all does so at once.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// How long a process may take to end when it is told to. Above its grace time, which it needs when requests run.
const END_LIMIT: Duration = Duration::from_secs(20);

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A draft worker.
    Draft,
    /// A qualifier worker.
    Qualifier,
    /// A target worker.
    Target,
    /// A coordinator.
    Coordinator,
}

impl Role {
    const ALL: [Role; 4] = [
        Role::Draft,
        Role::Qualifier,
        Role::Target,
        Role::Coordinator,
    ];
    const WORKERS: [Role; 3] = [Role::Draft, Role::Qualifier, Role::Target];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Draft => "draft",
            Role::Qualifier => "qualifier",
            Role::Target => "target",
            Role::Coordinator => "coordinator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// One process of a rig: the first target is `Seat { role: Role::Target, at: 0 }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// What it is.
    pub role: Role,
    /// Which of them.
    pub at: usize,
}

/// The least time of a step of each role, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Of drafts.
    pub draft: f64,
    /// Of qualifiers.
    pub qualifier: f64,
    /// Of targets.
    pub target: f64,
}

/// What a rig is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    /// Number of drafts.
    pub drafts: usize,
    /// Number of qualifiers.
    pub qualifiers: usize,
    /// Number of targets, at least 1.
    pub targets: usize,
    /// Number of coordinators, at least 1; each has links to all workers.
    pub coordinators: usize,
    /// How fast workers step.
    pub pace: Pace,
    /// Decides the jitter of the proxies.
    pub seed: u64,
}

impl Layout {
    /// How many processes of a role there are.
    #[must_use]
    pub fn count(&self, role: Role) -> usize {
        match role {
            Role::Draft => self.drafts,
            Role::Qualifier => self.qualifiers,
            Role::Target => self.targets,
            Role::Coordinator => self.coordinators,
        }
    }
}

/// A place for one process, with the proxies that lead to it.
#[derive(Debug)]
struct Member {
    seat: Seat,
    arguments: Vec<String>,
    /// For a worker one per coordinator, for a coordinator the one that clients use.
    doors: Vec<Proxy>,
    process: Option<Process>,
}

/// A running cluster; its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Rig {
    layout: Layout,
    members: Vec<Member>,
}

impl Rig {
    /// Starts all processes and waits until every coordinator has every worker.
    ///
    /// # Errors
    /// When a process does not start or the cluster is not whole in time.
    pub async fn start(layout: Layout) -> anyhow::Result<Rig> {
        let mut members = Vec::new();
        for role in Role::ALL {
            for at in 0..layout.count(role) {
                let ways = match role {
                    Role::Draft | Role::Qualifier | Role::Target => layout.coordinators,
                    Role::Coordinator => 1,
                };
                let mut doors = Vec::new();
                for way in 0..ways {
                    let number = (members.len() * layout.coordinators + way) as u64;
                    doors.push(Proxy::start(None, layout.seed.wrapping_add(number << 32)).await?);
                }
                members.push(Member {
                    seat: Seat { role, at },
                    arguments: Vec::new(),
                    doors,
                    process: None,
                });
            }
        }
        let mut rig = Rig { layout, members };
        for at in 0..rig.members.len() {
            rig.members[at].arguments = rig.arguments(rig.members[at].seat);
        }
        rig.start_missing(&Role::WORKERS).await?;
        rig.start_missing(&[Role::Coordinator]).await?;
        rig.settle().await?;
        Ok(rig)
    }

    /// The command line of a process.
    fn arguments(&self, seat: Seat) -> Vec<String> {
        let pace = self.layout.pace;
        let worker = |words: &[&str], name: &str, pace: f64| {
            let model = model(name).display().to_string();
            let pace = pace.to_string();
            let flags = ["--model", &model, "--pace", &pace];
            (words.iter().chain(&flags).map(|&word| word.to_owned())).collect()
        };
        match seat.role {
            Role::Draft => worker(&["draft-worker"], "draft", pace.draft),
            Role::Qualifier => worker(
                &["target-worker", "--role", "qualifier"],
                "qualifier",
                pace.qualifier,
            ),
            Role::Target => worker(&["target-worker"], "target", pace.target),
            Role::Coordinator => {
                let tokenizer = model("target").display().to_string();
                let mut words = vec!["coordinator".to_owned(), "--tokenizer".into(), tokenizer];
                for role in Role::WORKERS {
                    for worker in self
                        .members
                        .iter()
                        .filter(|member| member.seat.role == role)
                    {
                        let door = worker.doors[seat.at].addr();
                        words.extend([format!("--{role}"), door.to_string()]);
                    }
                }
                words
            }
        }
    }

    /// What it is made of.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn member(&self, seat: Seat) -> &Member {
        let found = self.members.iter().find(|member| member.seat == seat);
        found.expect("rows name processes that their layout has")
    }

    fn member_mut(&mut self, seat: Seat) -> &mut Member {
        let found = self.members.iter_mut().find(|member| member.seat == seat);
        found.expect("rows name processes that their layout has")
    }

    /// The proxy between a coordinator and a worker.
    #[must_use]
    pub fn link(&self, coordinator: usize, worker: Seat) -> &Proxy {
        &self.member(worker).doors[coordinator]
    }

    /// The proxy between clients and a coordinator.
    #[must_use]
    pub fn entrance(&self, coordinator: usize) -> &Proxy {
        let role = Role::Coordinator;
        &self
            .member(Seat {
                role,
                at: coordinator,
            })
            .doors[0]
    }

    /// Where clients go, one address per coordinator.
    #[must_use]
    pub fn entrances(&self) -> Vec<String> {
        (0..self.layout.coordinators)
            .map(|at| self.entrance(at).addr().to_string())
            .collect()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it is not running, or cannot be killed.
    pub async fn kill(&mut self, seat: Seat) -> anyhow::Result<()> {
        let mut process = self.take(seat)?;
        spawn_blocking(move || process.kill()).await?
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn signal(&mut self, seat: Seat, signal: Signal) -> anyhow::Result<()> {
        let process = self.take(seat)?;
        let (process, sent) = spawn_blocking(move || {
            let sent = process.signal(signal);
            (process, sent)
        })
        .await?;
        self.member_mut(seat).process = Some(process);
        sent
    }

    /// SIGTERM, then a new process in its place as soon as it has ended.
    ///
    /// # Errors
    /// When it does not end by itself with success, or the new one does not start.
    pub async fn restart(&mut self, seat: Seat) -> anyhow::Result<()> {
        let mut process = self.take(seat)?;
        let ending = spawn_blocking(move || {
            process.signal(Signal::Terminate)?;
            process.ended_within(END_LIMIT)
        });
        let status = ending.await??;
        let status =
            status.with_context(|| format!("the {} did not end when told to", seat.role))?;
        anyhow::ensure!(status.success(), "the {} ended with {status}", seat.role);
        self.start_one(seat).await
    }

    /// Starts a process that is not running.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_one(&mut self, seat: Seat) -> anyhow::Result<()> {
        let arguments = self.member(seat).arguments.clone();
        let process = spawn_blocking(move || Process::start(&arguments)).await??;
        self.seat(seat, process)
    }

    async fn start_missing(&mut self, roles: &[Role]) -> anyhow::Result<()> {
        let mut starting = JoinSet::new();
        for member in &self.members {
            if roles.contains(&member.seat.role) && member.process.is_none() {
                let (seat, arguments) = (member.seat, member.arguments.clone());
                starting.spawn_blocking(move || (seat, Process::start(&arguments)));
            }
        }
        while let Some(started) = starting.join_next().await {
            let (seat, process) = started?;
            self.seat(seat, process?)?;
        }
        Ok(())
    }

    fn seat(&mut self, seat: Seat, process: Process) -> anyhow::Result<()> {
        let addr: SocketAddr = process.addr.parse()?;
        let member = self.member_mut(seat);
        member.process = Some(process);
        (member.doors.iter()).for_each(|door| door.lead_to(Some(addr)));
        Ok(())
    }

    fn take(&mut self, seat: Seat) -> anyhow::Result<Process> {
        let process = self.member_mut(seat).process.take();
        process.with_context(|| format!("no {} {} is running", seat.role, seat.at))
    }

    /// Ends every disturbance, starts what is missing and waits until the cluster is whole and idle.
    ///
    /// # Errors
    /// When that does not happen in time; the text says what is missing.
    pub async fn restore(&mut self) -> anyhow::Result<()> {
        for at in 0..self.members.len() {
            let Member {
                seat, ref doors, ..
            } = self.members[at];
            doors.iter().for_each(Proxy::clear);
            if self.members[at].process.is_some() {
                self.signal(seat, Signal::Continue).await?;
            }
        }
        self.start_missing(&Role::WORKERS).await?;
        self.start_missing(&[Role::Coordinator]).await?;
        self.settle().await
    }

    /// Resets a link and waits until it has gone, so that what follows is seen on a new connection.
    ///
    /// # Errors
    /// When it does not go.
    pub async fn renew(&self, link: &Proxy) -> anyhow::Result<()> {
        link.reset();
        until("a link did not go", || async {
            Ok((link.connections() > 0).then(|| "it is there".to_owned()))
        })
        .await
    }

    /// Waits until every running coordinator has every running worker, misses every other, and has no session.
    ///
    /// # Errors
    /// When that does not happen in time; the text says what is missing.
    pub async fn settle(&self) -> anyhow::Result<()> {
        for at in 0..self.layout.coordinators {
            let role = Role::Coordinator;
            if self.member(Seat { role, at }).process.is_some() {
                until("the cluster did not settle", || async {
                    Ok(self.unsettled(&self.cluster(at).await?))
                })
                .await
                .with_context(|| format!("at coordinator {at}"))?;
            }
        }
        Ok(())
    }

    /// Waits until a process that was started is in use: a worker by every running coordinator, a coordinator with
    /// its workers.
    ///
    /// # Errors
    /// When that does not happen in time; the text says what is missing.
    pub async fn joined(&self, seat: Seat) -> anyhow::Result<()> {
        let role = Role::Coordinator;
        for at in 0..self.layout.coordinators {
            let other = Seat { role, at };
            let concerns = seat == other || seat.role != role;
            if concerns && self.member(other).process.is_some() {
                until("a process did not join", || async {
                    Ok(self.incomplete(&self.cluster(at).await?))
                })
                .await
                .with_context(|| format!("at coordinator {at}"))?;
            }
        }
        Ok(())
    }

    /// What a coordinator says about its workers; asked past the proxy.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn cluster(&self, coordinator: usize) -> anyhow::Result<ClusterReply> {
        let seat = Seat {
            role: Role::Coordinator,
            at: coordinator,
        };
        let process = self.member(seat).process.as_ref();
        let addr = &process.context("the coordinator is not running")?.addr;
        let asking = async {
            let mut client = GenerationClient::new(runtime::connect(addr).await?);
            anyhow::Ok(client.cluster(ClusterRequest {}).await?.into_inner())
        };
        timeout(LOOK_LIMIT, asking)
            .await
            .context("the coordinator does not answer")?
    }

    /// Sessions that a coordinator has on a worker.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn sessions(&self, coordinator: usize, worker: Seat) -> anyhow::Result<u32> {
        let door = self.link(coordinator, worker).addr().to_string();
        let cluster = self.cluster(coordinator).await?;
        let found = (cluster.workers.iter()).find(|info| info.address == door);
        Ok(found.map_or(0, |info| info.sessions))
    }

    fn unsettled(&self, cluster: &ClusterReply) -> Option<String> {
        self.incomplete(cluster).or_else(|| {
            (cluster.sessions > 0).then(|| format!("{} sessions are left", cluster.sessions))
        })
    }

    /// The first worker that a coordinator sees otherwise than it is.
    fn incomplete(&self, cluster: &ClusterReply) -> Option<String> {
        let workers = self
            .members
            .iter()
            .filter(|member| member.seat.role != Role::Coordinator);
        for member in workers {
            let info = (cluster.workers.iter()).find(|info| {
                (member.doors.iter()).any(|door| door.addr().to_string() == info.address)
            });
            let is_ready = info.is_some_and(|info| info.state == "ready");
            if is_ready != member.process.is_some() {
                let state = info.map_or("unknown", |info| info.state.as_str());
                return Some(format!(
                    "{} {} is {state}",
                    member.seat.role, member.seat.at
                ));
            }
        }
        None
    }
}

/// Looks again and again until `missing` finds nothing.
async fn until<F, T>(what: &str, mut missing: F) -> anyhow::Result<()>
where
    F: FnMut() -> T,
    T: Future<Output = anyhow::Result<Option<String>>>,
{
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(text) = missing().await? else {
            return Ok(());
        };
        anyhow::ensure!(
            Instant::now() < deadline,
            "{what} within {} s: {text}",
            SETTLE_LIMIT.as_secs()
        );
    }
}

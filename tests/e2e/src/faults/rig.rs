//! A cluster of real processes with a proxy on every connection.
//!
//! Coordinators and clients are configured with the addresses of proxies, so that a restarted process has the same
//! address, whatever its port.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use proto::v1::generation_client::GenerationClient;
use proto::v1::{ClusterReply, ClusterRequest};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::cluster::{Process, Signal};
use crate::model;
use crate::proxy::Proxy;
use crate::wait::{met, until};

/// How long the cluster may take to be complete again when the disturbance has ended. Longer than the time after which a
/// silent connection is closed.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How long a `Cluster` call may take; a coordinator that answers at all does so at once.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// How long a process may take to exit when it is asked to. Longer than its drain time, which it needs while requests run.
const EXIT_LIMIT: Duration = Duration::from_secs(40);

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

    /// Its name.
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

/// One process of a rig: the first target is `Instance { role: Role::Target, index: 0 }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What it is.
    pub role: Role,
    /// Which of that role.
    pub index: usize,
}

/// The minimum time of a step of each role, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Of drafts.
    pub draft: f64,
    /// Of qualifiers.
    pub qualifier: f64,
    /// Of targets.
    pub target: f64,
}

/// The processes of a rig.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    /// Number of drafts.
    pub drafts: usize,
    /// Number of qualifiers.
    pub qualifiers: usize,
    /// Number of targets, at least 1.
    pub targets: usize,
    /// Number of coordinators, at least 1; each connects to all workers.
    pub coordinators: usize,
    /// Step times of workers.
    pub pace: Pace,
    /// Seed of the jitter of the proxies.
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

/// Flags of the processes of a rig beyond those that its layout gives them.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Of workers of every role.
    pub workers: Vec<String>,
    /// Of targets.
    pub targets: Vec<String>,
    /// Of coordinators.
    pub coordinators: Vec<String>,
}

/// One process, running or not, with the proxies in front of it.
#[derive(Debug)]
struct Member {
    instance: Instance,
    arguments: Vec<String>,
    /// For a worker one per coordinator, for a coordinator the one that clients use.
    proxies: Vec<Proxy>,
    process: Option<Process>,
}

/// A running cluster; its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Rig {
    layout: Layout,
    flags: Flags,
    members: Vec<Member>,
}

impl Rig {
    /// Starts all processes and waits until every coordinator is connected to every worker.
    ///
    /// # Errors
    /// When a process does not start or the cluster is not complete in time.
    pub async fn start(layout: Layout) -> anyhow::Result<Rig> {
        Rig::start_with(layout, Flags::default()).await
    }

    /// As [`Rig::start`], with further flags.
    ///
    /// # Errors
    /// See there.
    pub async fn start_with(layout: Layout, flags: Flags) -> anyhow::Result<Rig> {
        let mut members = Vec::new();
        for role in Role::ALL {
            for index in 0..layout.count(role) {
                let count = match role {
                    Role::Draft | Role::Qualifier | Role::Target => layout.coordinators,
                    Role::Coordinator => 1,
                };
                let mut proxies = Vec::new();
                for number in 0..count {
                    let number = (members.len() * layout.coordinators + number) as u64;
                    proxies.push(Proxy::start(None, layout.seed.wrapping_add(number << 32)).await?);
                }
                members.push(Member {
                    instance: Instance { role, index },
                    arguments: Vec::new(),
                    proxies,
                    process: None,
                });
            }
        }
        let mut rig = Rig {
            layout,
            flags,
            members,
        };
        for at in 0..rig.members.len() {
            rig.members[at].arguments = rig.arguments(rig.members[at].instance);
        }
        rig.start_missing(&Role::WORKERS).await?;
        rig.start_missing(&[Role::Coordinator]).await?;
        rig.settle().await?;
        Ok(rig)
    }

    /// The command line of a process.
    fn arguments(&self, instance: Instance) -> Vec<String> {
        let pace = self.layout.pace;
        let worker = |words: &[&str], name: &str, pace: f64| {
            let model = model(name).display().to_string();
            let pace = pace.to_string();
            let flags = ["--model", &model, "--pace", &pace];
            let words = words.iter().chain(&flags).map(|&word| word.to_owned());
            words.chain(self.flags.workers.clone()).collect()
        };
        match instance.role {
            Role::Draft => worker(&["draft-worker"], "draft", pace.draft),
            Role::Qualifier => worker(
                &["target-worker", "--role", "qualifier"],
                "qualifier",
                pace.qualifier,
            ),
            Role::Target => {
                let words: Vec<String> = worker(&["target-worker"], "target", pace.target);
                (words.into_iter().chain(self.flags.targets.clone())).collect()
            }
            Role::Coordinator => {
                let tokenizer = model("target").display().to_string();
                let mut words = vec!["coordinator".to_owned(), "--tokenizer".into(), tokenizer];
                for role in Role::WORKERS {
                    for worker in self
                        .members
                        .iter()
                        .filter(|member| member.instance.role == role)
                    {
                        let proxy = worker.proxies[instance.index].addr();
                        words.extend([format!("--{role}"), proxy.to_string()]);
                    }
                }
                words.extend(self.flags.coordinators.clone());
                words
            }
        }
    }

    /// Its processes.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its processes, running or not.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        self.members.iter().map(|member| member.instance).collect()
    }

    /// The process, if it is running or has exited by itself.
    #[must_use]
    pub fn process(&self, instance: Instance) -> Option<&Process> {
        self.member(instance).process.as_ref()
    }

    fn member(&self, instance: Instance) -> &Member {
        let found = self
            .members
            .iter()
            .find(|member| member.instance == instance);
        found.expect("rows name processes that their layout has")
    }

    fn member_mut(&mut self, instance: Instance) -> &mut Member {
        let found = self
            .members
            .iter_mut()
            .find(|member| member.instance == instance);
        found.expect("rows name processes that their layout has")
    }

    /// The proxy between a coordinator and a worker.
    #[must_use]
    pub fn proxy(&self, coordinator: usize, worker: Instance) -> &Proxy {
        &self.member(worker).proxies[coordinator]
    }

    /// The proxy between clients and a coordinator.
    #[must_use]
    pub fn client_proxy(&self, coordinator: usize) -> &Proxy {
        let role = Role::Coordinator;
        &self
            .member(Instance {
                role,
                index: coordinator,
            })
            .proxies[0]
    }

    /// The addresses for clients, one per coordinator.
    #[must_use]
    pub fn client_addresses(&self) -> Vec<String> {
        (0..self.layout.coordinators)
            .map(|index| self.client_proxy(index).addr().to_string())
            .collect()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it is not running, or cannot be killed.
    pub async fn kill(&mut self, instance: Instance) -> anyhow::Result<()> {
        let mut process = self.take(instance)?;
        spawn_blocking(move || process.kill()).await?
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn signal(&mut self, instance: Instance, signal: Signal) -> anyhow::Result<()> {
        let process = self.take(instance)?;
        let (process, sent) = spawn_blocking(move || {
            let sent = process.signal(signal);
            (process, sent)
        })
        .await?;
        self.member_mut(instance).process = Some(process);
        sent
    }

    /// SIGTERM, then a new process in its place as soon as it has exited.
    ///
    /// # Errors
    /// When it does not exit by itself with success, or the new one does not start.
    pub async fn restart(&mut self, instance: Instance) -> anyhow::Result<()> {
        let mut process = self.take(instance)?;
        let exiting = spawn_blocking(move || {
            process.signal(Signal::Terminate)?;
            process.exits_within(EXIT_LIMIT)
        });
        let status = exiting.await??;
        let status = status
            .with_context(|| format!("the {} did not exit when it was asked to", instance.role))?;
        anyhow::ensure!(
            status.success(),
            "the {} exited with {status}",
            instance.role
        );
        self.start_one(instance).await
    }

    /// Starts a process that is not running.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_one(&mut self, instance: Instance) -> anyhow::Result<()> {
        let arguments = self.member(instance).arguments.clone();
        let process = spawn_blocking(move || Process::start(&arguments)).await??;
        self.place(instance, process)
    }

    async fn start_missing(&mut self, roles: &[Role]) -> anyhow::Result<()> {
        let mut starting = JoinSet::new();
        for member in &self.members {
            if roles.contains(&member.instance.role) && member.process.is_none() {
                let (instance, arguments) = (member.instance, member.arguments.clone());
                starting.spawn_blocking(move || (instance, Process::start(&arguments)));
            }
        }
        while let Some(started) = starting.join_next().await {
            let (instance, process) = started?;
            self.place(instance, process?)?;
        }
        Ok(())
    }

    fn place(&mut self, instance: Instance, process: Process) -> anyhow::Result<()> {
        let addr: SocketAddr = process.addr.parse()?;
        let member = self.member_mut(instance);
        member.process = Some(process);
        (member.proxies.iter()).for_each(|proxy| proxy.forward_to(Some(addr)));
        Ok(())
    }

    fn take(&mut self, instance: Instance) -> anyhow::Result<Process> {
        let process = self.member_mut(instance).process.take();
        process.with_context(|| format!("no {} {} is running", instance.role, instance.index))
    }

    /// Ends every disturbance, starts what is missing and waits until the cluster is complete and idle.
    ///
    /// # Errors
    /// When that does not happen in time; the error says what is missing.
    pub async fn restore(&mut self) -> anyhow::Result<()> {
        for at in 0..self.members.len() {
            let Member {
                instance,
                ref proxies,
                ..
            } = self.members[at];
            proxies.iter().for_each(Proxy::clear);
            if self.members[at].process.is_some() {
                self.signal(instance, Signal::Continue).await?;
            }
        }
        self.start_missing(&Role::WORKERS).await?;
        self.start_missing(&[Role::Coordinator]).await?;
        self.settle().await
    }

    /// Resets the connections of a proxy and waits until they are closed, so that what follows uses new ones.
    ///
    /// # Errors
    /// When they do not close.
    pub async fn renew(&self, proxy: &Proxy) -> anyhow::Result<()> {
        proxy.reset();
        let closed = until(SETTLE_LIMIT, async || {
            let open = proxy.connections();
            Ok(met(open == 0, &format!("{open} connections are open")))
        });
        closed.await.context("connections were not reset")
    }

    /// Waits until every running coordinator is connected to every running worker, misses every other, and has no session.
    ///
    /// # Errors
    /// When that does not happen in time; the error says what is missing.
    pub async fn settle(&self) -> anyhow::Result<()> {
        for coordinator in self.running_coordinators() {
            let settled = until(SETTLE_LIMIT, async || {
                let cluster = self.cluster(coordinator.index).await?;
                Ok(self.complete(&cluster).and_then(|()| {
                    let left = cluster.sessions;
                    met(left == 0, &format!("{left} sessions are left"))
                }))
            });
            (settled.await)
                .with_context(|| format!("coordinator {} did not settle", coordinator.index))?;
        }
        Ok(())
    }

    /// Waits until a process that was started is in use: a worker by every running coordinator, a coordinator with
    /// its workers.
    ///
    /// # Errors
    /// When that does not happen in time; the error says what is missing.
    pub async fn joined(&self, instance: Instance) -> anyhow::Result<()> {
        for coordinator in self.running_coordinators() {
            if instance == coordinator || instance.role != Role::Coordinator {
                let joined = until(SETTLE_LIMIT, async || {
                    Ok(self.complete(&self.cluster(coordinator.index).await?))
                });
                (joined.await).with_context(|| {
                    format!("a process did not join coordinator {}", coordinator.index)
                })?;
            }
        }
        Ok(())
    }

    fn running_coordinators(&self) -> impl Iterator<Item = Instance> {
        let running = (self.members.iter()).filter(|member| member.process.is_some());
        running
            .map(|member| member.instance)
            .filter(|instance| instance.role == Role::Coordinator)
    }

    /// The reply of a coordinator to the `Cluster` call, without going through its proxy.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn cluster(&self, coordinator: usize) -> anyhow::Result<ClusterReply> {
        let instance = Instance {
            role: Role::Coordinator,
            index: coordinator,
        };
        let process = self.member(instance).process.as_ref();
        let addr = &process.context("the coordinator is not running")?.addr;
        let asking = async {
            let mut client = GenerationClient::new(runtime::connect(addr).await?);
            anyhow::Ok(client.cluster(ClusterRequest {}).await?.into_inner())
        };
        timeout(CALL_LIMIT, asking)
            .await
            .context("the coordinator does not answer")?
    }

    /// Sessions that a coordinator has on a worker.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn sessions(&self, coordinator: usize, worker: Instance) -> anyhow::Result<u32> {
        let proxy = self.proxy(coordinator, worker).addr().to_string();
        let cluster = self.cluster(coordinator).await?;
        let found = (cluster.workers.iter()).find(|info| info.address == proxy);
        Ok(found.map_or(0, |info| info.sessions))
    }

    /// Whether a coordinator sees every worker as it is; the error names the first that it does not.
    fn complete(&self, cluster: &ClusterReply) -> Result<(), String> {
        let workers = self
            .members
            .iter()
            .filter(|member| member.instance.role != Role::Coordinator);
        for member in workers {
            let info = (cluster.workers.iter()).find(|info| {
                (member.proxies.iter()).any(|proxy| proxy.addr().to_string() == info.address)
            });
            let is_ready = info.is_some_and(|info| info.state == "ready");
            if is_ready != member.process.is_some() {
                let state = info.map_or("unknown", |info| info.state.as_str());
                let Instance { role, index } = member.instance;
                return Err(format!("{role} {index} is {state}"));
            }
        }
        Ok(())
    }
}

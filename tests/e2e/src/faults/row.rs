//! The rows of the table: the faults, and how each is injected into a rig.
//!
//! A fault always affects the first process of a role, and all clients start at the first coordinator.

use std::num::NonZeroU32;
use std::time::Duration;

use super::rig::{Instance, Rig, Role};
use crate::cluster::Signal;
use crate::proxy::{Conditions, Direction, Proxy};

/// How long a frozen process is frozen.
pub const FREEZE: Duration = Duration::from_secs(5);
/// How long a black hole lasts.
pub const BLACK_HOLE: Duration = Duration::from_secs(3);
/// Delay of a slow connection in each direction.
const SLOW: Conditions = Conditions {
    delay: Duration::from_millis(20),
    jitter: Duration::from_millis(10),
    rate: None,
};
/// Bytes per second of a limited connection in each direction.
const NARROW: Option<NonZeroU32> = NonZeroU32::new(4_000);

/// A connection between two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Between the first coordinator and the first worker of a role.
    Worker(Role),
    /// Between the clients and the first coordinator.
    Client,
}

/// A fault of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No fault, for reference.
    Nothing,
    /// `kill -9`, without a restart.
    Kill(Role),
    /// SIGSTOP, and SIGCONT after [`FREEZE`].
    Freeze(Role),
    /// Its connections get an RST.
    Reset(Link),
    /// Nothing is forwarded for [`BLACK_HOLE`]; then everything that was queued.
    BlackHole(Link),
    /// One direction of its connections stays dead.
    HalfOpen(Link, Direction),
    /// Delay and jitter, from now on.
    Slow(Link),
    /// Few bytes per second, from now on.
    Narrow(Link),
    /// SIGTERM and a new process in its place, one of the role after the other.
    RollingRestart(Role),
    /// The last worker of a role starts only now.
    LateJoin(Role),
}

/// What is left of the cluster after the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftermath {
    /// The whole cluster.
    Whole,
    /// Less than before, until the fault is undone.
    Less,
    /// More than before.
    More,
}

/// Which clients may notice a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// None: the cluster hides it.
    Hidden,
    /// Their connection breaks, or their coordinator announces that it stops, and they resume elsewhere.
    Disconnected,
    /// They receive nothing any more, and must detect that themselves.
    Silent,
}

impl Fault {
    /// Every row, in the order of the table.
    #[must_use]
    pub fn all() -> Vec<Fault> {
        use Role::{Coordinator, Draft, Qualifier, Target};
        let roles = [Draft, Qualifier, Target, Coordinator];
        let links = [
            Link::Worker(Draft),
            Link::Worker(Qualifier),
            Link::Worker(Target),
            Link::Client,
        ];
        let target = Link::Worker(Target);
        let mut all = vec![Fault::Nothing];
        all.extend(roles.map(Fault::Kill));
        all.extend(roles.map(Fault::Freeze));
        all.extend(links.map(Fault::Reset));
        all.extend(links.map(Fault::BlackHole));
        all.extend(links.map(|link| Fault::HalfOpen(link, Direction::Down)));
        all.push(Fault::HalfOpen(target, Direction::Up));
        all.extend([Fault::Slow(target), Fault::Narrow(target)]);
        all.extend(roles.map(Fault::RollingRestart));
        all.extend([Draft, Qualifier, Target].map(Fault::LateJoin));
        all
    }

    /// The name of the fault.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Fault::Nothing => "none".to_owned(),
            Fault::Kill(_) => "kill -9".to_owned(),
            Fault::Freeze(_) => format!("SIGSTOP, {} s", FREEZE.as_secs()),
            Fault::Reset(_) => "reset".to_owned(),
            Fault::BlackHole(_) => format!("black hole, {} s", BLACK_HOLE.as_secs()),
            Fault::HalfOpen(_, Direction::Down) => "half-open, answers lost".to_owned(),
            Fault::HalfOpen(_, Direction::Up) => "half-open, calls lost".to_owned(),
            Fault::Slow(_) => format!(
                "{} ± {} ms each way",
                SLOW.delay.as_millis(),
                SLOW.jitter.as_millis()
            ),
            Fault::Narrow(_) => {
                format!("{} bytes/s each way", NARROW.map_or(0, NonZeroU32::get))
            }
            Fault::RollingRestart(_) => "rolling restart".to_owned(),
            Fault::LateJoin(_) => "joins late".to_owned(),
        }
    }

    /// The name of what it affects.
    #[must_use]
    pub fn place(self) -> String {
        match self {
            Fault::Nothing => String::new(),
            Fault::Kill(role)
            | Fault::Freeze(role)
            | Fault::RollingRestart(role)
            | Fault::LateJoin(role) => role.name().to_owned(),
            Fault::Reset(link)
            | Fault::BlackHole(link)
            | Fault::HalfOpen(link, _)
            | Fault::Slow(link)
            | Fault::Narrow(link) => match link {
                Link::Worker(role) => format!("coordinator - {role}"),
                Link::Client => "client - coordinator".to_owned(),
            },
        }
    }

    /// What is left of the cluster.
    #[must_use]
    pub fn aftermath(self) -> Aftermath {
        match self {
            Fault::Kill(_) | Fault::Slow(_) | Fault::Narrow(_) => Aftermath::Less,
            Fault::LateJoin(_) => Aftermath::More,
            Fault::Nothing
            | Fault::Freeze(_)
            | Fault::Reset(_)
            | Fault::BlackHole(_)
            | Fault::HalfOpen(..)
            | Fault::RollingRestart(_) => Aftermath::Whole,
        }
    }

    /// Which clients may notice it.
    #[must_use]
    pub fn notice(self) -> Notice {
        match self {
            Fault::Kill(Role::Coordinator)
            | Fault::RollingRestart(Role::Coordinator)
            | Fault::Reset(Link::Client) => Notice::Disconnected,
            Fault::Freeze(Role::Coordinator)
            | Fault::BlackHole(Link::Client)
            | Fault::HalfOpen(Link::Client, _)
            | Fault::Slow(Link::Client)
            | Fault::Narrow(Link::Client) => Notice::Silent,
            Fault::Nothing
            | Fault::Kill(_)
            | Fault::Freeze(_)
            | Fault::RollingRestart(_)
            | Fault::LateJoin(_)
            | Fault::Reset(Link::Worker(_))
            | Fault::BlackHole(Link::Worker(_))
            | Fault::HalfOpen(Link::Worker(_), _)
            | Fault::Slow(Link::Worker(_))
            | Fault::Narrow(Link::Worker(_)) => Notice::Hidden,
        }
    }

    /// Prepares the rig before the load starts: a worker that will join late is stopped.
    ///
    /// # Errors
    /// When the rig fails.
    pub async fn prepare(self, rig: &mut Rig) -> anyhow::Result<()> {
        if let Fault::LateJoin(role) = self {
            rig.kill(last(rig, role)).await?;
            rig.settle().await?;
        }
        Ok(())
    }

    /// Injects the fault. Returns when it is over, or when it has begun if it lasts.
    ///
    /// # Errors
    /// When the rig fails, for example because a process does not exit when it is asked to.
    pub async fn inject(self, rig: &mut Rig) -> anyhow::Result<()> {
        match self {
            Fault::Nothing => {}
            Fault::Kill(role) => rig.kill(first(role)).await?,
            Fault::Freeze(role) => {
                rig.signal(first(role), Signal::Stop).await?;
                tokio::time::sleep(FREEZE).await;
                rig.signal(first(role), Signal::Continue).await?;
            }
            Fault::Reset(link) => proxy(rig, link).reset(),
            Fault::BlackHole(link) => {
                proxy(rig, link).black_hole();
                tokio::time::sleep(BLACK_HOLE).await;
                proxy(rig, link).clear();
            }
            Fault::HalfOpen(link, direction) => proxy(rig, link).half_open(direction),
            Fault::Slow(link) => disturb(proxy(rig, link), SLOW),
            Fault::Narrow(link) => {
                let rate = NARROW;
                let narrow = Conditions {
                    rate,
                    ..Conditions::default()
                };
                disturb(proxy(rig, link), narrow);
            }
            Fault::RollingRestart(role) => {
                for index in 0..rig.layout().count(role) {
                    let instance = Instance { role, index };
                    rig.restart(instance).await?;
                    rig.joined(instance).await?;
                }
            }
            Fault::LateJoin(role) => rig.start_one(last(rig, role)).await?,
        }
        Ok(())
    }

    /// Whether the expected effect is visible: a worker that joined late has a session.
    ///
    /// # Errors
    /// When the rig does not answer.
    pub async fn is_shown(self, rig: &Rig) -> anyhow::Result<bool> {
        match self {
            Fault::LateJoin(role) => Ok(rig.sessions(0, last(rig, role)).await? > 0),
            Fault::Nothing
            | Fault::Kill(_)
            | Fault::Freeze(_)
            | Fault::Reset(_)
            | Fault::BlackHole(_)
            | Fault::HalfOpen(..)
            | Fault::Slow(_)
            | Fault::Narrow(_)
            | Fault::RollingRestart(_) => Ok(true),
        }
    }

    /// Restores the rig.
    ///
    /// # Errors
    /// When it cannot be restored.
    pub async fn undo(self, rig: &mut Rig) -> anyhow::Result<()> {
        if let Fault::HalfOpen(link, _) = self {
            rig.renew(proxy(rig, link)).await?;
        }
        rig.restore().await
    }
}

fn first(role: Role) -> Instance {
    Instance { role, index: 0 }
}

fn last(rig: &Rig, role: Role) -> Instance {
    Instance {
        role,
        index: rig.layout().count(role) - 1,
    }
}

fn proxy(rig: &Rig, link: Link) -> &Proxy {
    match link {
        Link::Worker(role) => rig.proxy(0, first(role)),
        Link::Client => rig.client_proxy(0),
    }
}

fn disturb(proxy: &Proxy, conditions: Conditions) {
    for direction in Direction::BOTH {
        proxy.disturb(direction, conditions);
    }
}

//! Random faults, one after the other and beside each other, never of all processes of a role at one time.
//!
//! The first process of each role is never ended, so that its memory has the whole run to grow; everything else happens to
//! it as well.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::dice::Dice;
use crate::cluster::Signal;
use crate::faults::rig::{Instance, Rig, Role};
use crate::proxy::{Conditions, Direction, Proxy};

/// Faults that last at one time.
const AT_ONCE: usize = 2;

/// A connection of a rig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Worker(usize, Instance),
    Client(usize),
}

impl Link {
    fn proxy(self, rig: &Rig) -> &Proxy {
        match self {
            Link::Worker(coordinator, worker) => rig.proxy(coordinator, worker),
            Link::Client(coordinator) => rig.client_proxy(coordinator),
        }
    }

    /// The role that is short of a process while the connection does not work.
    fn role(self) -> Role {
        match self {
            Link::Worker(_, worker) => worker.role,
            Link::Client(_) => Role::Coordinator,
        }
    }
}

/// What ends a fault.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Start(Instance),
    Continue(Instance),
    Clear(Link),
    /// Half-open connections stay so until they are reset.
    Renew(Link),
}

#[derive(Clone, Copy, Debug)]
struct Lasting {
    until: Instant,
    role: Role,
    undo: Undo,
}

/// The faults of a run.
#[derive(Debug)]
pub struct Chaos {
    dice: Dice,
    lasting: Vec<Lasting>,
    /// How often each fault was injected, by name.
    pub counts: BTreeMap<String, usize>,
}

impl Chaos {
    /// The faults that follow from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Chaos {
        Chaos {
            dice: Dice::new(seed),
            lasting: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Injects and ends faults until then. What lasts is left as it is.
    ///
    /// # Errors
    /// When the rig fails.
    pub async fn run(&mut self, rig: &mut Rig, end: Instant) -> anyhow::Result<()> {
        let mut next = Instant::now() + self.dice.time(500, 4000);
        loop {
            self.lasting.sort_by_key(|lasting| lasting.until);
            let due = self.lasting.first().map(|lasting| lasting.until);
            let at = due.map_or(next, |due| due.min(next));
            if at >= end {
                sleep_until(end).await;
                return Ok(());
            }
            sleep_until(at).await;
            if due == Some(at) {
                let over = self.lasting.remove(0);
                end_fault(rig, over.undo).await?;
            } else {
                self.inject(rig).await?;
                next = Instant::now() + self.dice.time(500, 4000);
            }
        }
    }

    /// Ends what lasts.
    ///
    /// # Errors
    /// When the rig fails.
    pub async fn end(&mut self, rig: &mut Rig) -> anyhow::Result<()> {
        for over in std::mem::take(&mut self.lasting) {
            end_fault(rig, over.undo).await?;
        }
        Ok(())
    }

    async fn inject(&mut self, rig: &mut Rig) -> anyhow::Result<()> {
        if self.lasting.len() >= AT_ONCE {
            return Ok(());
        }
        let kind = self.dice.below(9);
        match kind {
            0 => self.kill(rig).await,
            1 => self.restart(rig).await,
            2 => self.freeze(rig).await,
            _ => {
                self.disturb(rig, kind);
                Ok(())
            }
        }
    }

    fn is_whole(&self, role: Role) -> bool {
        self.lasting.iter().all(|lasting| lasting.role != role)
    }

    fn count(&mut self, what: &str, role: Role) {
        *self.counts.entry(format!("{what}, {role}")).or_default() += 1;
    }

    fn lasts(&mut self, time: Duration, role: Role, undo: Undo) {
        let until = Instant::now() + time;
        self.lasting.push(Lasting { until, role, undo });
    }

    /// One of the processes of which some condition holds, whose role has lost nothing.
    fn one(&mut self, rig: &Rig, may: impl Fn(&Instance) -> bool) -> Option<Instance> {
        let mut all = rig.instances();
        all.retain(|of| may(of) && self.is_whole(of.role));
        (!all.is_empty()).then(|| self.dice.pick(&all))
    }

    async fn kill(&mut self, rig: &mut Rig) -> anyhow::Result<()> {
        let Some(one) = self.one(rig, |of| of.index > 0) else {
            return Ok(());
        };
        rig.kill(one).await?;
        self.count("kill -9", one.role);
        let time = self.dice.time(0, 4000);
        self.lasts(time, one.role, Undo::Start(one));
        Ok(())
    }

    async fn restart(&mut self, rig: &mut Rig) -> anyhow::Result<()> {
        let one = self.one(rig, |of| of.index > 0);
        // No fault ends while this one lasts.
        if let Some(one) = one.filter(|_| self.lasting.is_empty()) {
            rig.restart(one).await?;
            self.count("SIGTERM and restart", one.role);
        }
        Ok(())
    }

    async fn freeze(&mut self, rig: &mut Rig) -> anyhow::Result<()> {
        let Some(one) = self.one(rig, |_| true) else {
            return Ok(());
        };
        rig.signal(one, Signal::Stop).await?;
        self.count("SIGSTOP for 0.1 to 5 s", one.role);
        let time = self.dice.time(100, 5000);
        self.lasts(time, one.role, Undo::Continue(one));
        Ok(())
    }

    fn disturb(&mut self, rig: &Rig, kind: usize) {
        let coordinator = self.dice.below(rig.layout().coordinators);
        let mut links: Vec<_> = (rig.instances().into_iter())
            .map(|of| match of.role {
                Role::Coordinator => Link::Client(of.index),
                Role::Draft | Role::Qualifier | Role::Target => Link::Worker(coordinator, of),
            })
            .collect();
        links.retain(|link| self.is_whole(link.role()));
        if links.is_empty() {
            return;
        }
        let link = self.dice.pick(&links);
        let (proxy, role) = (link.proxy(rig), link.role());
        let time = self.dice.time(100, 4000);
        let (what, undo) = match kind {
            3 | 4 => {
                proxy.reset();
                self.count("reset of the connections", role);
                return;
            }
            5 => {
                proxy.black_hole();
                ("black hole for 0.1 to 4 s", Undo::Clear(link))
            }
            6 => {
                proxy.half_open(self.dice.pick(&Direction::BOTH));
                ("half-open", Undo::Renew(link))
            }
            7 => {
                let slow = Conditions {
                    delay: self.dice.time(5, 60),
                    jitter: self.dice.time(0, 40),
                    rate: None,
                };
                each_way(proxy, slow);
                ("delays of up to 100 ms", Undo::Clear(link))
            }
            _ => {
                let narrow = Conditions {
                    rate: NonZeroU32::new(20_000),
                    ..Conditions::default()
                };
                each_way(proxy, narrow);
                ("20,000 bytes/s", Undo::Clear(link))
            }
        };
        self.count(what, role);
        self.lasts(time, role, undo);
    }
}

fn each_way(proxy: &Proxy, conditions: Conditions) {
    for way in Direction::BOTH {
        proxy.disturb(way, conditions);
    }
}

async fn end_fault(rig: &mut Rig, undo: Undo) -> anyhow::Result<()> {
    match undo {
        Undo::Start(one) => rig.start_one(one).await,
        Undo::Continue(one) => rig.signal(one, Signal::Continue).await,
        Undo::Clear(link) => {
            link.proxy(rig).clear();
            Ok(())
        }
        Undo::Renew(link) => {
            link.proxy(rig).reset();
            Ok(())
        }
    }
}

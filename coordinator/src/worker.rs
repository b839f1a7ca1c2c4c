//! A worker of this cluster.

use std::sync::Arc;

use control::fleet::{Profile, State};
use parking_lot::RwLock;
use speculation::duty::Role;
use speculation::relay::WorkerKey;
use tokio_util::sync::CancellationToken;

use crate::discovery::Address;
use crate::fleet_handle::FleetHandle;
use crate::hello::Hello;
use crate::worker_stream::{Peer, WorkerStream};
use crate::worker_totals::{Totals, WorkerTotals};

/// The role of a worker that was not reached yet, for people.
pub(crate) const UNKNOWN: &str = "unknown";

/// A worker that flags or another source of addresses list; lives until the fleet forgets it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: WorkerKey,
    pub(crate) address: Address,
    /// What the flags say that it is.
    pub(crate) expected: Option<Role>,
    known: RwLock<Known>,
    /// The stream that is up. It changes only under the lock of the fleet, together with the worker's state there, so
    /// that a reservation always finds the stream of its own incarnation.
    current: RwLock<Option<Current>>,
    /// Cancelled when the first attempt to reach it has ended, one way or the other.
    pub(crate) tried: CancellationToken,
    /// Cancelled when the fleet has forgotten it: nothing lists it, and it has no sessions.
    pub(crate) forgotten: CancellationToken,
}

/// What its newest handshake says.
#[derive(Debug, Default)]
struct Known {
    role: Option<Role>,
    /// What sessions received from it in that role.
    totals: Arc<WorkerTotals>,
}

#[derive(Clone, Debug)]
struct Current {
    /// The fleet's number of the stream.
    incarnation: u64,
    stream: Arc<WorkerStream>,
}

impl Worker {
    pub(crate) fn new(key: WorkerKey, expected: Option<Role>, address: Address) -> Self {
        Worker {
            key,
            address,
            expected,
            known: RwLock::default(),
            current: RwLock::new(None),
            tried: CancellationToken::new(),
            forgotten: CancellationToken::new(),
        }
    }

    /// What it is, or is expected to be.
    pub(crate) fn role(&self) -> Option<Role> {
        self.known.read().role.or(self.expected)
    }

    /// The same for people.
    pub(crate) fn role_name(&self) -> &'static str {
        self.role().map_or(UNKNOWN, Role::name)
    }

    /// What sessions received from it in its role.
    pub(crate) fn totals(&self) -> Totals {
        self.known.read().totals.totals()
    }

    /// Its handshake says what it is. Returns what it was before, with its totals, if that was something else.
    pub(crate) fn set_role(&self, role: Role) -> Option<(Role, Totals)> {
        let mut known = self.known.write();
        let before = known.role.replace(role).filter(|&before| before != role)?;
        let totals = std::mem::take(&mut known.totals);
        Some((before, totals.totals()))
    }

    /// The worker as a stream names it.
    pub(crate) fn peer(&self, role: Role) -> Peer {
        Peer {
            key: self.key,
            role,
            address: Arc::clone(&self.address.authority),
            totals: Arc::clone(&self.known.read().totals),
        }
    }

    /// The stream that is up.
    pub(crate) fn stream(&self) -> Option<Arc<WorkerStream>> {
        let current = self.current.read();
        current.as_ref().map(|current| Arc::clone(&current.stream))
    }

    /// The stream that is up, if it is this incarnation.
    pub(crate) fn incarnation(&self, incarnation: u64) -> Option<Arc<WorkerStream>> {
        let current = self.current.read();
        (current.as_ref())
            .filter(|current| current.incarnation == incarnation)
            .map(|current| Arc::clone(&current.stream))
    }

    /// A stream is up: sessions may be given to the worker.
    pub(crate) fn set_ready(&self, fleet: &FleetHandle, stream: Arc<WorkerStream>) {
        let profile = profile(&stream.hello);
        fleet.change(|fleet| {
            let incarnation = fleet.handle_ready(self.key, stream.role, profile);
            *self.current.write() = Some(Current {
                incarnation,
                stream,
            });
        });
    }

    /// There is no stream. The fleet learns it first, so that no session is given to the lost stream, then the sessions
    /// that use it. Whether the state is new, for those who log it.
    pub(crate) fn set_down(&self, fleet: &FleetHandle, state: State) -> bool {
        let (is_new, lost) = fleet.change(|fleet| {
            let lost = self.current.write().take();
            (fleet.handle_down(self.key, state), lost)
        });
        if let Some(lost) = lost {
            lost.stream.lose();
        }
        is_new
    }

    /// A session has found that this stream is lost, if nobody has found that before.
    pub(crate) fn lose(&self, fleet: &FleetHandle, stream: &WorkerStream, reason: &str) {
        fleet.change(|fleet| {
            let mut current = self.current.write();
            if (current.as_ref()).is_some_and(|current| current.stream.name == stream.name) {
                *current = None;
                fleet.handle_down(self.key, State::Lost(reason.to_owned()));
            }
        });
        stream.lose();
    }
}

fn profile(hello: &Hello) -> Profile {
    Profile {
        numerics_id: hello.numerics_id.clone(),
        max_context: hello.max_context,
        max_sessions: hello.max_sessions,
        pages: hello.kv_pages,
        page: hello.kv_page,
        device: hello.device.clone(),
    }
}

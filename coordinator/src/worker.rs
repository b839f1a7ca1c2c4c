//! A configured worker, and what the links to all workers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use control::fleet::{Profile, State};
use parking_lot::RwLock;
use runtime::Caller;
use speculation::duty::Role;
use speculation::message::StreamName;
use speculation::relay::WorkerKey;
use text::Tokenizer;
use tokio_util::sync::CancellationToken;

use crate::fleet_handle::FleetHandle;
use crate::hello::Hello;
use crate::worker_stream::{Peer, WorkerStream};
use crate::worker_totals::WorkerTotals;

/// A configured worker; lives as long as the coordinator.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: WorkerKey,
    pub(crate) role: Role,
    pub(crate) address: Arc<str>,
    /// The stream that is up. It changes only under the lock of the fleet, together with the worker's state there, so
    /// that a reservation always finds the stream of its own incarnation.
    current: RwLock<Option<Current>>,
    /// What sessions received from it.
    pub(crate) totals: Arc<WorkerTotals>,
    /// Cancelled when the first attempt to reach it has ended, one way or the other.
    pub(crate) tried: CancellationToken,
}

#[derive(Clone, Debug)]
struct Current {
    /// The fleet's number of the stream.
    incarnation: u64,
    stream: Arc<WorkerStream>,
}

impl Worker {
    pub(crate) fn new(key: WorkerKey, role: Role, address: &str) -> Self {
        Worker {
            key,
            role,
            address: address.into(),
            current: RwLock::new(None),
            totals: Arc::default(),
            tried: CancellationToken::new(),
        }
    }

    /// The worker as a stream names it.
    pub(crate) fn peer(&self) -> Peer {
        Peer {
            key: self.key,
            role: self.role,
            address: Arc::clone(&self.address),
            totals: Arc::clone(&self.totals),
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
            let incarnation = fleet.handle_ready(self.key, profile);
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
    }
}

/// What the links to all workers share.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) fleet: Arc<FleetHandle>,
    /// Names this process to workers.
    pub(crate) coordinator: u64,
    /// How workers are called.
    pub(crate) caller: Caller,
    pub(crate) tokenizer: Tokenizer,
    /// Streams so far, to all workers.
    streams: AtomicU64,
    /// Ends all links.
    pub(crate) stop: CancellationToken,
}

impl Links {
    pub(crate) fn new(
        fleet: Arc<FleetHandle>,
        coordinator: u64,
        caller: Caller,
        tokenizer: Tokenizer,
    ) -> Self {
        Links {
            fleet,
            coordinator,
            caller,
            tokenizer,
            streams: AtomicU64::new(0),
            stop: CancellationToken::new(),
        }
    }

    /// The name of a new stream.
    pub(crate) fn next_stream(&self) -> StreamName {
        StreamName {
            coordinator: self.coordinator,
            incarnation: self.streams.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }
}

//! What the links to all workers share, and the workers that are linked.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;
use runtime::Caller;
use speculation::duty::Role;
use speculation::message::StreamName;
use speculation::relay::WorkerKey;
use text::Tokenizer;
use tokio_util::sync::CancellationToken;

use crate::fleet_handle::FleetHandle;
use crate::worker::Worker;
use crate::worker_totals::{self, Totals};

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) fleet: Arc<FleetHandle>,
    /// Names this process to workers.
    pub(crate) coordinator: u64,
    /// How workers are called.
    pub(crate) caller: Caller,
    pub(crate) tokenizer: Tokenizer,
    /// Ends all links.
    pub(crate) stop: CancellationToken,
    /// Every worker of the fleet, and for a moment those that it has just forgotten.
    pub(crate) workers: DashMap<WorkerKey, Arc<Worker>>,
    /// What targets have done that are forgotten, or are no targets any more: sums over all targets never shrink.
    past_targets: Mutex<Totals>,
    /// The processes that are linked, each by the address of one worker.
    instances: Mutex<BTreeMap<u64, Arc<str>>>,
    /// Streams so far, to all workers.
    streams: AtomicU64,
    /// Workers so far.
    keys: AtomicU32,
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
            stop: CancellationToken::new(),
            workers: DashMap::new(),
            past_targets: Mutex::default(),
            instances: Mutex::default(),
            streams: AtomicU64::new(0),
            keys: AtomicU32::new(0),
        }
    }

    /// The name of a new stream.
    pub(crate) fn next_stream(&self) -> StreamName {
        StreamName {
            coordinator: self.coordinator,
            incarnation: self.streams.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// The key of a new worker. None is ever given twice.
    pub(crate) fn next_key(&self) -> WorkerKey {
        WorkerKey(self.keys.fetch_add(1, Ordering::Relaxed))
    }

    /// In the order in which they came.
    pub(crate) fn all(&self) -> Vec<Arc<Worker>> {
        let mut workers: Vec<_> = (self.workers.iter())
            .map(|entry| Arc::clone(entry.value()))
            .collect();
        workers.sort_by_key(|worker| worker.key);
        workers
    }

    /// The workers at an address: one that is listed, or several that have left and not yet ended.
    pub(crate) fn at(&self, authority: &str) -> Vec<Arc<Worker>> {
        (self.workers.iter())
            .filter(|entry| *entry.value().address.authority == *authority)
            .map(|entry| Arc::clone(entry.value()))
            .collect()
    }

    /// The handshake of a worker says what it is; before it may have been something else.
    pub(crate) fn set_role(&self, worker: &Worker, role: Role) {
        let mut past = self.past_targets.lock();
        if let Some((Role::Target, totals)) = worker.set_role(role) {
            *past = worker_totals::sum([*past, totals]);
        }
    }

    /// Links a process by this address, until the link is dropped.
    ///
    /// # Errors
    /// With the other address by which it is linked.
    pub(crate) fn link_instance(
        &self,
        instance: u64,
        address: &Arc<str>,
    ) -> Result<LinkedInstance<'_>, Arc<str>> {
        if instance != 0 {
            match self.instances.lock().entry(instance) {
                Entry::Occupied(linked) => return Err(Arc::clone(linked.get())),
                Entry::Vacant(free) => free.insert(Arc::clone(address)),
            };
        }
        Ok(LinkedInstance {
            links: self,
            instance,
        })
    }

    /// The fleet has forgotten a worker, and its stream is closed.
    pub(crate) fn forget(&self, worker: &Worker) {
        let mut past = self.past_targets.lock();
        if self.workers.remove(&worker.key).is_some() && worker.role() == Some(Role::Target) {
            *past = worker_totals::sum([*past, worker.totals()]);
        }
    }

    /// What was reported of all targets there ever were.
    pub(crate) fn targets(&self) -> Totals {
        let past = self.past_targets.lock();
        let workers = self.all();
        let targets = (workers.iter()).filter(|worker| worker.role() == Some(Role::Target));
        worker_totals::sum(targets.map(|target| target.totals()).chain([*past]))
    }
}

/// A process that is linked by one address, so that no other address leads to it.
#[derive(Debug)]
pub(crate) struct LinkedInstance<'a> {
    links: &'a Links,
    instance: u64,
}

impl Drop for LinkedInstance<'_> {
    fn drop(&mut self) {
        self.links.instances.lock().remove(&self.instance);
    }
}

//! The standard gRPC health service (`grpc.health.v1`) and readiness.
//!
//! There are these names: `liveness` is serving for as long as the process runs its event loop; `readiness`, `""` and the
//! name of each gRPC service of the process are serving from when the last latch is dropped until the process leaves
//! ([`Drain::is_leaving`]).
//!
//! Readiness is a count of latches: each component that has to finish something before the process is usable (load a
//! model, reach a worker) takes one and drops it when done. A component that fails keeps its latch, so a half-started
//! process never claims to be ready. A component that is lost later takes a new latch, and the process is not ready
//! until that one is dropped as well.

use std::sync::Arc;

use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::Drain;

/// Name of the service that reports whether the process is alive.
pub const LIVENESS: &str = "liveness";
/// Name of the service that reports whether to send work here.
pub const READINESS: &str = "readiness";
/// Readiness under the name that most clients check.
const OVERALL: &str = "";

/// Counts the latches that keep the process from being ready. Clones share the count. Take every latch before the first
/// one is dropped: with none outstanding the process is ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    outstanding: Arc<watch::Sender<usize>>,
}

/// One thing that has to be done before the process is ready; drop it when it is done.
#[derive(Debug)]
#[must_use = "a latch that is dropped at once has no effect"]
pub struct Latch {
    outstanding: Arc<watch::Sender<usize>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            outstanding: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Readiness {
    /// Ready until a latch is taken.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The process is not ready until the returned latch is dropped.
    pub fn latch(&self) -> Latch {
        self.outstanding.send_modify(|count| *count += 1);
        Latch {
            outstanding: Arc::clone(&self.outstanding),
        }
    }

    /// Whether no latch is outstanding.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.outstanding.borrow() == 0
    }

    /// Resolves when no latch is outstanding.
    pub async fn ready(&self) {
        let mut watcher = self.outstanding.subscribe();
        watcher
            .wait_for(|count| *count == 0)
            .await
            .expect("the sender lives in self");
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.outstanding.send_modify(|count| *count -= 1);
    }
}

/// The health service of a process. It follows `readiness` and `drain`. `names` are the full names of the gRPC services
/// that the process serves, which clients may ask for as well.
///
/// When the process leaves, every open `Watch` stream gets the new status; when the drain begins, they end, so that no
/// watcher delays the shutdown.
pub async fn service(
    readiness: &Readiness,
    drain: &Drain,
    names: &[&'static str],
) -> HealthServer<impl Health + use<>> {
    let names: Vec<&str> = [OVERALL, READINESS].iter().chain(names).copied().collect();
    let (reporter, server) = health_reporter();
    set(&reporter, &names, ServingStatus::NotServing).await;
    reporter
        .set_service_status(LIVENESS, ServingStatus::Serving)
        .await;
    let readiness = readiness.clone();
    let (leaving, stopping) = (drain.leaving(), drain.stopping());
    drain.spawn(async move {
        tokio::pin!(leaving, stopping);
        let mut is_leaving = false;
        let mut outstanding = readiness.outstanding.subscribe();
        let mut shown = false;
        loop {
            let ready = *outstanding.borrow_and_update() == 0 && !is_leaving;
            if ready != shown {
                shown = ready;
                let status = if ready {
                    ServingStatus::Serving
                } else {
                    ServingStatus::NotServing
                };
                set(&reporter, &names, status).await;
            }
            tokio::select! {
                biased;
                () = &mut stopping => break,
                () = &mut leaving, if !is_leaving => is_leaving = true,
                changed = outstanding.changed() => {
                    changed.expect("the sender lives in `readiness`");
                }
            }
        }
        set(&reporter, &names, ServingStatus::NotServing).await;
        end_watches(reporter, &names).await;
    });
    server
}

async fn set(reporter: &HealthReporter, names: &[&str], status: ServingStatus) {
    for name in names {
        reporter.set_service_status(*name, status).await;
    }
}

/// Replaces every status entry by a new one of the same value: streams that watch the old entry end after its last
/// value, and new calls find the new entry.
async fn end_watches(mut reporter: HealthReporter, names: &[&str]) {
    let follow = names.iter().map(|name| (*name, ServingStatus::NotServing));
    for (name, status) in follow.chain([(LIVENESS, ServingStatus::Serving)]) {
        reporter.clear_service_status(name).await;
        reporter.set_service_status(name, status).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_only_when_every_latch_is_dropped() {
        let readiness = Readiness::new();
        let model = readiness.latch();
        let peer = readiness.latch();
        assert!(!readiness.is_ready());
        drop(model);
        assert!(!readiness.is_ready());
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        drop(peer);
        waiter.await.expect("the waiter does not panic");
        assert!(readiness.is_ready());
    }
}

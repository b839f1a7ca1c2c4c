//! Where workers come from besides flags: sources of addresses that are followed as long as the coordinator runs.
//!
//! A [`Source`] gives the complete set of addresses that it knows, again and again. Each is followed by a task of its own;
//! one task merges their sets ([`merge`]) and has the registry link workers and retire them. What a worker is, its
//! handshake says.
//!
//! ```text
//!  dns ──┐ sets
//!  file ─┼──────> merge ── add, retire ──> registry
//!  ... ──┘
//! ```
//!
//! A source that fails keeps the set that it gave before, and disturbs no other. An address that a set no longer has is
//! retired: its worker gets no new sessions, finishes those that it has, and is forgotten then.
//!
//! The source for Kubernetes EndpointSlices is behind the feature `endpointslice`, since its client takes a while to compile.

mod dns;
#[cfg(feature = "endpointslice")]
mod endpoint_slice;
mod file;
pub(crate) mod flags;
mod merge;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use runtime::Caller;
use tokio::sync::{mpsc, watch};

use crate::metrics::CoordinatorMetrics;
use crate::registry::Registry;

use dns::DnsSource;
use file::FileSource;
use flags::DiscoveryConfig;
use merge::{Change, Merge};

/// Workers of one coordinator, at most. Addresses beyond them are left out.
pub(crate) const MAX_WORKERS: usize = 4096;

/// Addresses that one source may give; those beyond them are left out.
pub(crate) const MAX_ADDRESSES: usize = 1024;

/// The first pause after a failure of a source. It doubles up to the pause that the source names.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How long the first answers of all sources are waited for.
const FIRST_ANSWERS: Duration = Duration::from_secs(5);

/// Where a worker is called. Two sources that know the same `HOST:PORT` mean the same worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    /// `HOST:PORT`.
    pub(crate) authority: Arc<str>,
    /// With TLS, the name that the worker's certificate has to carry; the host of the address if there is none.
    pub(crate) certificate_name: Option<Arc<str>>,
}

impl Address {
    /// A worker whose certificate names the host of its address.
    pub(crate) fn new(authority: &str) -> Self {
        Address {
            authority: authority.into(),
            certificate_name: None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

/// The kinds of sources, as metrics name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A DNS name with the addresses of workers.
    Dns,
    /// A DNS name with SRV records.
    Srv,
    /// A file.
    File,
    /// A Kubernetes service.
    EndpointSlice,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Dns, Kind::Srv, Kind::File, Kind::EndpointSlice];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Dns => "dns",
            Kind::Srv => "srv",
            Kind::File => "file",
            Kind::EndpointSlice => "endpointslice",
        }
    }
}

/// Something that knows addresses of workers; its `Display` names it in logs.
pub(crate) trait Source: fmt::Display + Send + 'static {
    /// Why it could not be asked.
    type Error: std::error::Error + Send + 'static;

    /// What kind of source it is.
    fn kind(&self) -> Kind;

    /// The longest pause before it is asked again after a failure.
    fn longest_pause(&self) -> Duration;

    /// The complete set of addresses that it knows. The first call answers as soon as it can, each later one when there
    /// may be something new; the waiting is the source's own business.
    ///
    /// # Errors
    /// When it could not be asked, or its answer cannot be used: the set that it gave before stays. That it knows no
    /// addresses is not an error.
    fn next(&mut self) -> impl Future<Output = Result<BTreeSet<Address>, Self::Error>> + Send;
}

/// The set of a source.
struct Update {
    /// The number of the source.
    source: usize,
    /// `None` when it has failed.
    addresses: Option<BTreeSet<Address>>,
}

/// The sources of a coordinator, once they are followed. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Discovery {
    /// How many of the sources have not answered yet.
    awaited: watch::Receiver<usize>,
}

impl Discovery {
    /// Follows all sources until the registry stops.
    pub(crate) fn start(
        config: &DiscoveryConfig,
        caller: &Caller,
        registry: &Registry,
        metrics: &Arc<CoordinatorMetrics>,
    ) -> Self {
        let count = config.count();
        let (sender, updates) = mpsc::channel(count.max(1));
        let (answers, awaited) = watch::channel(count);
        let names = config
            .names
            .iter()
            .map(|name| DnsSource::host(name, config));
        let services = (config.services.iter()).map(|name| DnsSource::service(name, config));
        let mut number = 0;
        let mut slot = || {
            number += 1;
            (number - 1, sender.clone())
        };
        for source in names.chain(services) {
            registry.spawn(follow(source, slot(), Arc::clone(metrics)));
        }
        for path in &config.files {
            let source = FileSource::new(path, caller);
            registry.spawn(follow(source, slot(), Arc::clone(metrics)));
        }
        #[cfg(feature = "endpointslice")]
        for endpoints in &config.endpoints {
            let source = endpoint_slice::EndpointSliceSource::new(endpoints, config);
            registry.spawn(follow(source, slot(), Arc::clone(metrics)));
        }
        if count > 0 {
            let fixed = registry.addresses();
            let merge = Merge::new(count, fixed, MAX_WORKERS);
            registry.spawn(merge_all(merge, updates, registry.clone(), answers));
        }
        Discovery { awaited }
    }

    /// Resolves when every source has answered or failed once, but after five seconds in any case.
    pub(crate) async fn answered(&self) {
        let mut awaited = self.awaited.clone();
        let all = awaited.wait_for(|&awaited| awaited == 0);
        // When the time is over, or the sources have ended, there is nothing to wait for.
        let _ = tokio::time::timeout(FIRST_ANSWERS, all).await;
    }
}

/// Follows one source and sends its sets to the task that merges them.
async fn follow<S: Source>(
    mut source: S,
    (number, updates): (usize, mpsc::Sender<Update>),
    metrics: Arc<CoordinatorMetrics>,
) {
    let backoff = ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_factor(2.0)
        .with_max_delay(source.longest_pause())
        .without_max_times();
    let mut pauses = backoff.build();
    let (mut is_failing, mut is_over) = (false, false);
    loop {
        let (addresses, pause) = match source.next().await {
            Ok(mut addresses) => {
                if std::mem::take(&mut is_failing) {
                    tracing::info!(%source, "a source of workers answers again");
                    pauses = backoff.build();
                }
                let count = addresses.len();
                let was_over = std::mem::replace(&mut is_over, count > MAX_ADDRESSES);
                if is_over && !was_over {
                    tracing::warn!(%source, count, "a source knows more than {MAX_ADDRESSES} addresses");
                }
                while addresses.len() > MAX_ADDRESSES {
                    addresses.pop_last();
                }
                (Some(addresses), Duration::ZERO)
            }
            Err(error) => {
                metrics.discovery_failed(source.kind());
                if !std::mem::replace(&mut is_failing, true) {
                    let error = runtime::report(&error);
                    tracing::warn!(%source, error, "a source of workers fails; what it said before stays");
                }
                (None, pauses.next().unwrap_or(source.longest_pause()))
            }
        };
        let update = Update {
            source: number,
            addresses,
        };
        if updates.send(update).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Merges what all sources say, and tells the registry.
async fn merge_all(
    mut merge: Merge,
    mut updates: mpsc::Receiver<Update>,
    registry: Registry,
    answers: watch::Sender<usize>,
) {
    let mut silent: BTreeSet<usize> = (0..*answers.borrow()).collect();
    let mut was_left_out = 0;
    while let Some(Update { source, addresses }) = updates.recv().await {
        if let Some(addresses) = addresses {
            for change in merge.update(source, addresses) {
                match change {
                    Change::Join(address) => {
                        tracing::info!(worker = %address, "a worker was found");
                        registry.add_worker(address, None);
                    }
                    Change::Leave(address) => {
                        tracing::info!(worker = %address, "a worker is no longer listed");
                        registry.retire_worker(&address);
                    }
                }
            }
            let left_out = merge.left_out();
            if left_out > 0 && was_left_out == 0 {
                tracing::warn!(left_out, "there are more than {MAX_WORKERS} workers");
            }
            was_left_out = left_out;
        }
        silent.remove(&source);
        answers.send_replace(silent.len());
    }
}

#[cfg(test)]
mod tests;

//! A Kubernetes service whose EndpointSlices are listed and watched: a worker is known as soon as the cluster knows it.
//!
//! Addresses are those of endpoints that are ready and do not terminate, of IPv4 and IPv6. Whatever breaks (no API server, no
//! right to ask it, an answer that is none) is an error of [`Source::next`]; then the next call reads the configuration
//! again and lists the slices anew. Only a list that is complete replaces what was known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort as SlicePort, EndpointSlice};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config};
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use super::flags::{DiscoveryConfig, EndpointPort, Endpoints};
use super::{Address, Kind, MAX_ADDRESSES, Source};

/// The label by which slices name their service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The longest pause before the API server is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long the API server may take to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Seconds after which the API server is to end a watch, which goes on with the next one; and how long a connection may be
/// silent. A connection that has died without a word is noticed after that.
const WATCH_SECONDS: u32 = 30;
const SILENCE_LIMIT: Duration = Duration::from_secs(40);

/// The status of an answer that the version to go on from is no longer kept.
const GONE: u16 = 410;

/// Why the slices of a service are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SliceError {
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    #[error("this is no pod with a service account, and no kubeconfig was given: {0}")]
    InCluster(#[from] InClusterError),
    #[error("the API server cannot be called: {0}")]
    Client(#[from] kube::Error),
    #[error("{0}")]
    Watch(#[from] watcher::Error),
    #[error("the API server says nothing more")]
    Ended,
    #[error("slice {slice} has {has}, and {wanted}")]
    Port {
        slice: String,
        has: String,
        wanted: String,
    },
}

type Slices = BTreeMap<String, BTreeSet<Address>>;
type Watch = BoxStream<'static, Result<Event<EndpointSlice>, watcher::Error>>;

/// See the module documentation.
pub(crate) struct EndpointSliceSource {
    endpoints: Endpoints,
    kubeconfig: Option<PathBuf>,
    /// `None` until the API server was called, and after an error.
    watch: Option<Watch>,
    known: Known,
    /// Whether a version was gone, and nothing but a list was heard since.
    was_gone: bool,
}

/// What the slices of a service have said.
#[derive(Debug, Default)]
struct Known {
    /// The addresses of each slice, by its name.
    slices: Slices,
    /// Those of a list that is not complete yet.
    listed: Slices,
}

impl EndpointSliceSource {
    pub(crate) fn new(endpoints: &Endpoints, config: &DiscoveryConfig) -> Self {
        EndpointSliceSource {
            endpoints: endpoints.clone(),
            kubeconfig: config.kubeconfig.clone(),
            watch: None,
            known: Known::default(),
            was_gone: false,
        }
    }

    /// Waits for the next set that is complete.
    async fn changed(&mut self) -> Result<BTreeSet<Address>, SliceError> {
        loop {
            let watch = match &mut self.watch {
                Some(watch) => watch,
                None => {
                    let watch = watch(&self.endpoints, self.kubeconfig.as_deref()).await?;
                    self.watch.insert(watch)
                }
            };
            match watch.next().await.ok_or(SliceError::Ended)? {
                Ok(event) => {
                    let is_change =
                        !matches!(event, Event::Init | Event::InitApply(_) | Event::InitDone);
                    if is_change {
                        self.was_gone = false;
                    }
                    if self.known.apply(event, &self.endpoints)? {
                        return Ok(self.known.addresses());
                    }
                }
                // That happens after a long interruption, and a list puts it right, if it is not for ever.
                Err(error) if is_gone(&error) && !self.was_gone => {
                    self.was_gone = true;
                    self.watch = None;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Lists and then watches the slices of a service, by the configuration as it is now.
async fn watch(endpoints: &Endpoints, kubeconfig: Option<&Path>) -> Result<Watch, SliceError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
    // A connection that was not used for a while is not silent.
    config.reset_reader_on_write = true;
    let client = Client::try_from(config)?;
    let slices: Api<EndpointSlice> = match &endpoints.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::default_namespaced(client),
    };
    let label = format!("{SERVICE_LABEL}={}", endpoints.service);
    let config = watcher::Config::default()
        .labels(&label)
        .timeout(WATCH_SECONDS);
    Ok(watcher(slices, config).boxed())
}

impl fmt::Display for EndpointSliceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointSlices of {}", self.endpoints)
    }
}

impl Source for EndpointSliceSource {
    type Error = SliceError;

    fn kind(&self) -> Kind {
        Kind::EndpointSlice
    }

    fn longest_pause(&self) -> Duration {
        LONGEST_PAUSE
    }

    async fn next(&mut self) -> Result<BTreeSet<Address>, SliceError> {
        // The client would log each failure, and so would the watch; one line when it begins is enough.
        let changed = self.changed().with_subscriber(NoSubscriber::new()).await;
        if changed.is_err() {
            self.watch = None;
        }
        changed
    }
}

impl Endpoints {
    /// The name of the service in DNS, as far as it was said: what its workers' certificates carry.
    fn host_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{}.{namespace}", self.service),
            None => self.service.clone(),
        }
    }
}

impl Known {
    /// Takes an event; whether there is a new complete set.
    fn apply(
        &mut self,
        event: Event<EndpointSlice>,
        endpoints: &Endpoints,
    ) -> Result<bool, SliceError> {
        match event {
            Event::Init => {
                self.listed.clear();
                Ok(false)
            }
            Event::InitApply(slice) => {
                let addresses = addresses(&slice, endpoints)?;
                self.listed.insert(name(&slice), addresses);
                Ok(false)
            }
            Event::InitDone => {
                self.slices = std::mem::take(&mut self.listed);
                Ok(true)
            }
            Event::Apply(slice) => {
                let addresses = addresses(&slice, endpoints)?;
                let before = self.slices.insert(name(&slice), addresses.clone());
                Ok(before != Some(addresses))
            }
            Event::Delete(slice) => Ok(self.slices.remove(&name(&slice)).is_some()),
        }
    }

    fn addresses(&self) -> BTreeSet<Address> {
        self.slices.values().flatten().cloned().collect()
    }
}

/// The usable addresses in a slice.
fn addresses(
    slice: &EndpointSlice,
    endpoints: &Endpoints,
) -> Result<BTreeSet<Address>, SliceError> {
    // The third type, FQDN, has no addresses.
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        return Ok(BTreeSet::new());
    }
    let usable = slice
        .endpoints
        .iter()
        .filter(|endpoint| is_usable(endpoint));
    let ips: BTreeSet<IpAddr> = usable
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|address| address.parse().ok())
        .take(MAX_ADDRESSES + 1)
        .collect();
    if ips.is_empty() {
        // A slice without endpoints has no ports either.
        return Ok(BTreeSet::new());
    }
    let port = port(slice, endpoints)?;
    let certificate_name: Arc<str> = endpoints.host_name().into();
    let address = |ip| Address {
        authority: SocketAddr::new(ip, port).to_string().into(),
        certificate_name: Some(Arc::clone(&certificate_name)),
    };
    Ok(ips.into_iter().map(address).collect())
}

/// Whether new sessions may go there. An endpoint that does not say is ready, and goes on.
///
/// A service that publishes addresses before they are ready calls all of them ready, those that terminate too.
fn is_usable(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_none_or(|conditions| {
        conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false)
    })
}

fn port(slice: &EndpointSlice, endpoints: &Endpoints) -> Result<u16, SliceError> {
    let tcp = |port: &&SlicePort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let number = |port: &SlicePort| {
        port.port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port > 0)
    };
    let name = |port: &SlicePort| port.name.clone().unwrap_or_default();
    let ports: Vec<(String, u16)> = (slice.ports.iter().flatten())
        .filter(tcp)
        .filter_map(|port| Some((name(port), number(port)?)))
        .collect();
    let wanted = match &endpoints.port {
        Some(EndpointPort::Number(number)) => return Ok(*number),
        Some(EndpointPort::Name(wanted)) => {
            if let Some((_, number)) = ports.iter().find(|(name, _)| name == wanted) {
                return Ok(*number);
            }
            format!("none is called {wanted}")
        }
        None => match ports.as_slice() {
            [(_, number)] => return Ok(*number),
            _ => "none was chosen; give SERVICE:PORT".to_owned(),
        },
    };
    let has = match ports.as_slice() {
        [] => "no TCP port".to_owned(),
        ports => {
            let named: Vec<String> = (ports.iter().take(9))
                .map(|(name, number)| format!("{name}={number}"))
                .collect();
            format!("the TCP ports {}", named.join(" "))
        }
    };
    Err(SliceError::Port {
        slice: self::name(slice),
        has,
        wanted,
    })
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == GONE,
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::InitialListFailed(kube::Error::Api(status)) => status.code == GONE,
        _ => false,
    }
}

#[cfg(test)]
mod tests;

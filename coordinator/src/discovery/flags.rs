//! The flags about sources of workers ([`DiscoveryArgs`]) and what they mean ([`DiscoveryConfig`]).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use hickory_resolver::proto::rr::{IntoName, Name};
use runtime::{AddressError, Caller, items};

/// The flags about sources of workers. Lists are separated by commas in environment variables.
#[derive(ClapArgs, Clone, Debug, Default)]
#[command(next_help_heading = "Worker discovery")]
pub struct DiscoveryArgs {
    /// Name that resolves to workers, all on one port; looked up again and again (A and AAAA records). May be repeated.
    #[arg(
        long = "workers-dns",
        env = "OFFSHOOT_WORKERS_DNS",
        value_name = "NAME:PORT",
        value_delimiter = ','
    )]
    pub names: Vec<String>,
    /// Service name, for example _worker._tcp.example.org, whose SRV records name the hosts and ports of workers. May be
    /// repeated.
    #[arg(
        long = "workers-srv",
        env = "OFFSHOOT_WORKERS_SRV",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub services: Vec<String>,
    /// File with a HOST:PORT of a worker per line; it is watched. May be repeated.
    #[arg(
        long = "workers-file",
        env = "OFFSHOOT_WORKERS_FILE",
        value_name = "PATH",
        value_delimiter = ','
    )]
    pub files: Vec<PathBuf>,
    /// Kubernetes service whose EndpointSlices have the addresses of workers; they are watched. NAMESPACE is that of the pod
    /// or of the kubeconfig if it is not given, PORT the name or number of a port; not needed if there is one only. May be
    /// repeated.
    #[arg(
        long = "workers-endpointslice",
        env = "OFFSHOOT_WORKERS_ENDPOINTSLICE",
        value_name = "[NAMESPACE/]SERVICE[:PORT]",
        value_delimiter = ','
    )]
    pub endpoints: Vec<String>,
    /// Kubeconfig with the cluster whose EndpointSlices are watched; the cluster of this pod if it is not given.
    #[arg(long, env = "OFFSHOOT_KUBECONFIG", value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// DNS server to ask instead of those of the system.
    #[arg(long, env = "OFFSHOOT_DNS_SERVER", value_name = "IP:PORT")]
    pub dns_server: Option<SocketAddr>,
    /// Seconds after which names are looked up again at the latest; sooner if the records expire sooner.
    #[arg(
        long,
        env = "OFFSHOOT_DNS_REFRESH",
        value_name = "SECONDS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub dns_refresh: u64,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A DNS name.
    pub host: String,
    /// From 1.
    pub port: u16,
}

/// A Kubernetes service, and which port of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoints {
    /// The namespace; that of the pod, or of the kubeconfig, if there is none.
    pub namespace: Option<String>,
    /// The name of the service.
    pub service: String,
    /// The port; the only one that endpoints have if it is not said.
    pub port: Option<EndpointPort>,
}

/// A port of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointPort {
    /// The port that the service gives this name.
    Name(String),
    /// This port, from 1, whatever the service says.
    Number(u16),
}

/// Checked sources of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// Names with A and AAAA records.
    pub names: Vec<HostPort>,
    /// Names with SRV records.
    pub services: Vec<String>,
    /// Files with addresses.
    pub files: Vec<PathBuf>,
    /// Kubernetes services.
    pub endpoints: Vec<Endpoints>,
    /// Where the kubeconfig is; the pod's own cluster if there is none.
    pub kubeconfig: Option<PathBuf>,
    /// The DNS server; the system's if there is none.
    pub dns_server: Option<SocketAddr>,
    /// The longest time between two lookups, at least a second.
    pub dns_refresh: Duration,
}

/// Why a source of workers cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// It is not `NAME:PORT`.
    #[error("--workers-dns or OFFSHOOT_WORKERS_DNS: {0}")]
    Address(#[from] AddressError),
    /// There is nothing to look up.
    #[error(
        "--workers-dns or OFFSHOOT_WORKERS_DNS: {0} is an address and not a name; give it with --worker"
    )]
    NotName(String),
    /// It is no name of a host.
    #[error("--workers-dns or OFFSHOOT_WORKERS_DNS: {0:?} is not a DNS name")]
    Name(String),
    /// It is no name of a service.
    #[error(
        "--workers-srv or OFFSHOOT_WORKERS_SRV: {0:?} is not the name of a service; give _SERVICE._PROTOCOL.DOMAIN"
    )]
    Service(String),
    /// It is no Kubernetes service.
    #[error(
        "--workers-endpointslice or OFFSHOOT_WORKERS_ENDPOINTSLICE: {0:?} is not [NAMESPACE/]SERVICE[:PORT]"
    )]
    Endpoints(String),
    /// The source is not in this binary.
    #[error(
        "--workers-endpointslice or OFFSHOOT_WORKERS_ENDPOINTSLICE: this binary was built without the feature endpointslice; \
         use --workers-dns"
    )]
    NotBuilt,
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.service)?;
        match &self.port {
            None => Ok(()),
            Some(EndpointPort::Name(name)) => write!(f, ":{name}"),
            Some(EndpointPort::Number(number)) => write!(f, ":{number}"),
        }
    }
}

impl DiscoveryConfig {
    /// Checks the flags; `caller` decides which addresses are valid.
    ///
    /// # Errors
    /// When a name is not one.
    pub fn new(args: &DiscoveryArgs, caller: &Caller) -> Result<Self, DiscoveryError> {
        let names = items(&args.names).map(|given| host_port(given, caller));
        let services = items(&args.services).map(|given| match name(given) {
            Some(name) if name.num_labels() >= 2 && given.starts_with('_') => Ok(given.to_owned()),
            Some(_) | None => Err(DiscoveryError::Service(given.to_owned())),
        });
        let endpoints: Vec<_> = items(&args.endpoints)
            .map(|given| {
                endpoints(given).ok_or_else(|| DiscoveryError::Endpoints(given.to_owned()))
            })
            .collect::<Result<_, _>>()?;
        if !endpoints.is_empty() && !cfg!(feature = "endpointslice") {
            return Err(DiscoveryError::NotBuilt);
        }
        Ok(DiscoveryConfig {
            names: names.collect::<Result<_, _>>()?,
            services: services.collect::<Result<_, _>>()?,
            files: (args.files.iter())
                .filter(|path| !path.as_os_str().is_empty())
                .cloned()
                .collect(),
            endpoints,
            kubeconfig: args.kubeconfig.clone(),
            dns_server: args.dns_server,
            dns_refresh: Duration::from_secs(args.dns_refresh.max(1)),
        })
    }

    /// Whether there is no source.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How many sources there are.
    pub(crate) fn count(&self) -> usize {
        self.names.len() + self.services.len() + self.files.len() + self.endpoints.len()
    }
}

fn name(given: &str) -> Option<Name> {
    given.into_name().ok().filter(|name| !name.is_root())
}

fn host_port(given: &str, caller: &Caller) -> Result<HostPort, DiscoveryError> {
    let authority = caller.authority(given)?;
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return Err(DiscoveryError::NotName(authority.to_owned()));
    }
    match (name(host), port.parse()) {
        (Some(_), Ok(port)) => Ok(HostPort {
            host: host.to_owned(),
            port,
        }),
        _ => Err(DiscoveryError::Name(host.to_owned())),
    }
}

/// `[NAMESPACE/]SERVICE[:PORT]`.
fn endpoints(given: &str) -> Option<Endpoints> {
    let (namespace, rest) = match given.split_once('/') {
        Some((namespace, rest)) => (Some(namespace), rest),
        None => (None, given),
    };
    let (service, port) = match rest.split_once(':') {
        Some((service, port)) => (service, Some(port)),
        None => (rest, None),
    };
    if !is_label(service) || !namespace.is_none_or(is_label) {
        return None;
    }
    let port = match port {
        None => None,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            let number = port.parse().ok().filter(|&number| number > 0)?;
            Some(EndpointPort::Number(number))
        }
        Some(port) => is_label(port).then(|| Some(EndpointPort::Name(port.to_owned())))?,
    };
    Some(Endpoints {
        namespace: namespace.map(str::to_owned),
        service: service.to_owned(),
        port,
    })
}

/// Whether Kubernetes takes it as the name of a namespace, a service or a port (RFC 1123, label).
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn config(names: &[&str], services: &[&str]) -> Result<DiscoveryConfig, String> {
        let owned = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        let args = DiscoveryArgs {
            names: owned(names),
            services: owned(services),
            ..DiscoveryArgs::default()
        };
        DiscoveryConfig::new(&args, &Caller::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_checked_before_anything_starts() {
        let found = config(&["drafts.ns:7000", "full.example.:1"], &["_w._tcp.a.b"]).unwrap();
        let hosts: Vec<_> = (found.names.iter())
            .map(|name| (name.host.as_str(), name.port))
            .collect();
        assert_eq!(hosts, [("drafts.ns", 7000), ("full.example.", 1)]);
        assert_eq!(found.dns_refresh, Duration::from_secs(1));
        assert!(!found.is_empty() && config(&[], &[]).unwrap().is_empty());
        for (names, services, why) in [
            (&["drafts"][..], &[][..], "port is missing"),
            (&["127.0.0.1:1"], &[], "--worker"),
            (&["[::1]:1"], &[], "--worker"),
            (&["a..b:1"], &[], "not a DNS name"),
            (&[], &["tcp.a.b"], "_SERVICE"),
            (&[], &["_tcp"], "_SERVICE"),
        ] {
            let error = config(names, services).unwrap_err();
            assert!(error.contains(why), "{names:?} {services:?} gave {error}");
        }
    }
    #[test]
    fn a_kubernetes_service_may_have_a_namespace_and_a_port() {
        let of = |namespace: Option<&str>, port: Option<EndpointPort>| Endpoints {
            namespace: namespace.map(str::to_owned),
            service: "drafts".to_owned(),
            port,
        };
        for (given, meant) in [
            ("drafts", of(None, None)),
            ("ns/drafts", of(Some("ns"), None)),
            (
                "ns/drafts:grpc",
                of(Some("ns"), Some(EndpointPort::Name("grpc".to_owned()))),
            ),
            ("drafts:7001", of(None, Some(EndpointPort::Number(7001)))),
        ] {
            assert_eq!(meant.to_string(), given);
            assert_eq!(endpoints(given), Some(meant), "{given}");
        }
        let long = "a".repeat(64);
        for wrong in [
            "",
            "/drafts",
            "a/b/c",
            "Drafts",
            "drafts.ns",
            "drafts:",
            "drafts:0",
            "drafts:65536",
            "drafts:a:b",
            "-a",
            &long,
        ] {
            assert_eq!(endpoints(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_source_that_was_not_built_is_refused_and_not_left_out() {
        let args = |given: &str| DiscoveryArgs {
            endpoints: vec![given.to_owned()],
            ..DiscoveryArgs::default()
        };
        let config = |given| DiscoveryConfig::new(&args(given), &Caller::default());
        let error = config("Drafts").unwrap_err().to_string();
        assert!(error.contains("[NAMESPACE/]SERVICE[:PORT]"), "{error}");
        if cfg!(feature = "endpointslice") {
            assert!(!config("drafts").unwrap().is_empty());
        } else {
            let error = config("drafts").unwrap_err().to_string();
            assert!(
                error.contains("without the feature endpointslice"),
                "{error}"
            );
        }
        assert!(config("").unwrap().is_empty());
    }
}

//! The flags about sources of workers ([`DiscoveryArgs`]) and what they mean ([`DiscoveryConfig`]).

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

/// Checked sources of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// Names with A and AAAA records.
    pub names: Vec<HostPort>,
    /// Names with SRV records.
    pub services: Vec<String>,
    /// Files with addresses.
    pub files: Vec<PathBuf>,
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
        Ok(DiscoveryConfig {
            names: names.collect::<Result<_, _>>()?,
            services: services.collect::<Result<_, _>>()?,
            files: (args.files.iter())
                .filter(|path| !path.as_os_str().is_empty())
                .cloned()
                .collect(),
            dns_server: args.dns_server,
            dns_refresh: Duration::from_secs(args.dns_refresh.max(1)),
        })
    }

    /// Whether there is no source.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.services.is_empty() && self.files.is_empty()
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
}

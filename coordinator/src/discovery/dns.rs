//! A DNS name that is looked up again and again: its A and AAAA records with one port, or its SRV records, which have a
//! host and a port each.
//!
//! An answer that the name does not exist, or has no such records, removes its workers. No answer, or one that says that
//! the server has failed, removes none: each host keeps the addresses that it had. Names that are not fully qualified are
//! searched as the system does; the full name that was found is asked for from then on, so that the failure of one domain
//! on the search path does not look like the absence of the name in the last one.
//!
//! SRV priorities and weights are not used: which worker a session gets is decided by the fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{IntoName, Name, RData, RecordType};
use tokio::time::Instant;

use super::flags::{DiscoveryConfig, HostPort};
use super::{Address, Kind, MAX_ADDRESSES, Source};

/// The shortest time between two lookups.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long one server may take to answer, and how often it is asked again.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 1;

/// Hosts that are looked up at one time.
const CONCURRENT: usize = 8;

/// What is asked for.
#[derive(Clone, Debug)]
enum Question {
    /// The addresses of one host.
    Host(HostPort),
    /// The hosts and ports of a service, and then the addresses of each.
    Service(String),
}

/// See the module documentation.
pub(crate) struct DnsSource {
    question: Question,
    /// Another server than the system's.
    server: Option<SocketAddr>,
    /// The longest time between two lookups.
    longest: Duration,
    /// `None` until the configuration of the system was read.
    resolver: Option<TokioResolver>,
    /// The full name of the service, once it was found.
    service: Option<Name>,
    /// What is known of each host.
    hosts: BTreeMap<String, Host>,
    /// When to look again; at once after a failure, because then the caller has waited.
    due: Option<Instant>,
}

/// The addresses of a host, by family: A, then AAAA.
#[derive(Clone, Debug, Default)]
struct Host([Family; 2]);

#[derive(Clone, Debug, Default)]
struct Family {
    /// The full name, once it was found.
    name: Option<Name>,
    addresses: BTreeSet<IpAddr>,
}

/// What a server has answered.
struct Answer {
    /// The full name, if it has such records.
    name: Option<Name>,
    records: Vec<RData>,
    /// How long the answer is valid, if it says so.
    valid: Option<Duration>,
}

impl DnsSource {
    /// All addresses of a host, with one port.
    pub(crate) fn host(host: &HostPort, config: &DiscoveryConfig) -> Self {
        DnsSource::new(Question::Host(host.clone()), config)
    }

    /// All addresses of all hosts of a service.
    pub(crate) fn service(name: &str, config: &DiscoveryConfig) -> Self {
        DnsSource::new(Question::Service(name.to_owned()), config)
    }

    fn new(question: Question, config: &DiscoveryConfig) -> Self {
        DnsSource {
            question,
            server: config.dns_server,
            longest: config.dns_refresh.max(SHORTEST),
            resolver: None,
            service: None,
            hosts: BTreeMap::new(),
            due: None,
        }
    }

    fn resolver(&mut self) -> Result<TokioResolver, NetError> {
        if let Some(resolver) = &self.resolver {
            // Its memory would answer although it is time to ask again.
            resolver.clear_cache();
            return Ok(resolver.clone());
        }
        let mut builder = match self.server {
            None => TokioResolver::builder_tokio()?,
            Some(server) => {
                let mut servers = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut servers.connections {
                    connection.port = server.port();
                }
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![servers]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options = builder.options_mut();
        options.timeout = ANSWER_LIMIT;
        options.attempts = ATTEMPTS;
        let resolver = builder.build()?;
        self.resolver = Some(resolver.clone());
        Ok(resolver)
    }

    /// Looks everything up once. Also gives how long that is valid.
    async fn look_up(&mut self) -> Result<(BTreeSet<Address>, Duration), NetError> {
        let resolver = self.resolver()?;
        let mut valid = self.longest;
        let endpoints = match &self.question {
            Question::Host(host) => vec![host.clone()],
            Question::Service(name) => {
                let answer = ask(&resolver, name, self.service.clone(), RecordType::SRV).await?;
                self.service = answer.name;
                valid = valid.min(answer.valid.unwrap_or(valid));
                endpoints(&answer.records)
            }
        };
        let hosts: BTreeSet<String> = (endpoints.iter())
            .map(|endpoint| endpoint.host.clone())
            .collect();
        self.hosts.retain(|host, _| hosts.contains(host));
        let known = &self.hosts;
        let lookups = hosts.into_iter().map(|host| {
            let (resolver, known) = (resolver.clone(), known.get(&host).cloned());
            async move {
                let found = known.unwrap_or_default().look_up(&resolver, &host).await;
                (host, found)
            }
        });
        let lookups: Vec<_> = (stream::iter(lookups).buffered(CONCURRENT).collect()).await;
        let (mut failure, mut has_answer) = (None, lookups.is_empty());
        for (host, (found, answered)) in lookups {
            match answered {
                Ok(of_host) => {
                    has_answer = true;
                    valid = valid.min(of_host.unwrap_or(valid));
                }
                Err(error) => failure = Some(error),
            }
            self.hosts.insert(host, found);
        }
        match failure {
            Some(failure) if !has_answer => return Err(failure),
            Some(failure) => tracing::debug!(source = %self, %failure, "some lookups failed"),
            None => {}
        }
        let addresses = endpoints.iter().flat_map(|endpoint| {
            let families = self.hosts.get(&endpoint.host).map(|host| &host.0);
            let found = families.into_iter().flatten();
            found
                .flat_map(|family| &family.addresses)
                .map(|&ip| endpoint.address(ip))
        });
        Ok((addresses.collect(), valid))
    }
}

impl fmt::Display for DnsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.question {
            Question::Host(HostPort { host, port }) => write!(f, "DNS name {host}:{port}"),
            Question::Service(name) => write!(f, "DNS service {name}"),
        }
    }
}

impl Source for DnsSource {
    type Error = NetError;

    fn kind(&self) -> Kind {
        match self.question {
            Question::Host(_) => Kind::Dns,
            Question::Service(_) => Kind::Srv,
        }
    }

    fn longest_pause(&self) -> Duration {
        self.longest
    }

    async fn next(&mut self) -> Result<BTreeSet<Address>, NetError> {
        if let Some(due) = self.due.take() {
            tokio::time::sleep_until(due).await;
        }
        let (addresses, valid) = self.look_up().await?;
        self.due = Some(Instant::now() + valid.max(SHORTEST));
        Ok(addresses)
    }
}

impl HostPort {
    fn address(&self, ip: IpAddr) -> Address {
        Address {
            authority: SocketAddr::new(ip, self.port).to_string().into(),
            certificate_name: Some(Arc::from(self.host.trim_end_matches('.'))),
        }
    }
}

impl Host {
    /// Looks both families up; one that cannot be looked up keeps what it had. Also gives how long the answers are valid,
    /// if they say so, or the error if there is none.
    async fn look_up(
        self,
        resolver: &TokioResolver,
        host: &str,
    ) -> (Host, Result<Option<Duration>, NetError>) {
        let Host([v4, v6]) = self;
        let (v4, v6) = tokio::join!(
            v4.look_up(resolver, host, RecordType::A),
            v6.look_up(resolver, host, RecordType::AAAA)
        );
        let answered = match (v4.1, v6.1) {
            (Ok(one), Ok(other)) => Ok(one.into_iter().chain(other).min()),
            (Ok(valid), Err(_)) | (Err(_), Ok(valid)) => Ok(valid),
            (Err(error), Err(_)) => Err(error),
        };
        (Host([v4.0, v6.0]), answered)
    }
}

impl Family {
    async fn look_up(
        self,
        resolver: &TokioResolver,
        host: &str,
        kind: RecordType,
    ) -> (Family, Result<Option<Duration>, NetError>) {
        let answer = match ask(resolver, host, self.name.clone(), kind).await {
            Ok(answer) => answer,
            Err(error) => return (self, Err(error)),
        };
        let addresses = answer.records.iter().filter_map(RData::ip_addr);
        let found = Family {
            name: answer.name,
            addresses: addresses.take(MAX_ADDRESSES).collect(),
        };
        (found, Ok(answer.valid))
    }
}

/// Asks for records. That there are none is an answer like any other.
async fn ask(
    resolver: &TokioResolver,
    given: &str,
    full: Option<Name>,
    kind: RecordType,
) -> Result<Answer, NetError> {
    let name = match full {
        Some(name) => name,
        None => given.into_name()?,
    };
    match resolver.lookup(name, kind).await {
        Ok(lookup) => {
            let valid = lookup
                .valid_until()
                .saturating_duration_since(std::time::Instant::now());
            let found = lookup.query().name();
            Ok(Answer {
                name: extends(found, given).then(|| found.clone()),
                records: (lookup.answers().iter())
                    .map(|record| record.data.clone())
                    .collect(),
                valid: Some(valid),
            })
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Ok(Answer {
            name: None,
            records: Vec::new(),
            valid: none.negative_ttl.map(|s| Duration::from_secs(s.into())),
        }),
        Err(error) => Err(error),
    }
}

/// Whether a full name is the given one with a domain behind it. Another name is that of an alias, which may change.
fn extends(full: &Name, given: &str) -> bool {
    let (full, given) = (full.to_lowercase().to_string(), given.to_lowercase());
    let given = given.trim_end_matches('.');
    (full.strip_prefix(given)).is_some_and(|rest| rest.starts_with('.'))
}

/// The hosts and ports in SRV records. A host "." says that the service is not offered.
fn endpoints(records: &[RData]) -> Vec<HostPort> {
    let each = records.iter().filter_map(|record| match record {
        RData::SRV(srv) if srv.port > 0 && !srv.target.is_root() => Some(HostPort {
            host: srv.target.to_string(),
            port: srv.port,
        }),
        _ => None,
    });
    each.take(MAX_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use hickory_resolver::proto::rr::rdata::SRV;

    #[test]
    fn the_full_name_is_kept_and_an_alias_is_not() {
        let name = |text: &str| text.into_name().unwrap();
        assert!(extends(&name("Drafts.ns.svc.cluster.local."), "drafts.ns"));
        assert!(extends(&name("drafts."), "drafts."));
        assert!(!extends(&name("drafts2.ns."), "drafts"));
        assert!(!extends(&name("elsewhere.example."), "drafts"));
    }

    #[test]
    fn srv_records_that_offer_nothing_are_left_out() {
        let srv = |port, host: &str| RData::SRV(SRV::new(0, 0, port, host.into_name().unwrap()));
        let found = endpoints(&[srv(7, "a.b."), srv(0, "c."), srv(7, ".")]);
        let expected = HostPort {
            host: "a.b.".to_owned(),
            port: 7,
        };
        assert_eq!(found, [expected]);
        let address = found[0].address("::1".parse().unwrap());
        assert_eq!(&*address.authority, "[::1]:7");
        assert_eq!(address.certificate_name.as_deref(), Some("a.b"));
    }
}

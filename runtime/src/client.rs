//! Client channels to other processes, with the timeouts that detect a dead peer.

use std::error::Error;
use std::net::Ipv6Addr;
use std::time::Duration;

use tonic::Status;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::dial::{Refusal, dial};
use crate::serve::{CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW};
use crate::tls::Tls;

/// How long a connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest accepted address in bytes; a DNS name has at most 253.
const MAX_ADDRESS: usize = 300;

/// Why a string is not the address of an Offshoot process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an address: {why}; give HOST:PORT, for example 127.0.0.1:7000")]
pub struct AddressError {
    /// The string, truncated if it is very long.
    pub given: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not valid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// No server answered.
    #[error(
        "cannot reach {addr}: {}; is the process running, and is the port right?",
        cause(source)
    )]
    Unreachable {
        /// The address that was called.
        addr: String,
        /// The transport's error.
        source: tonic::transport::Error,
    },
    /// The server answered, and ended the connection; the next one may live.
    #[error("cannot connect to {addr}: {why}")]
    Ended {
        /// The address that was called.
        addr: String,
        /// The reason; in its text, "it" is the server.
        why: String,
    },
    /// The server answered, but one side rejects the other or speaks another protocol; so it stays until somebody changes
    /// one of them.
    #[error("cannot connect to {addr}: {why}")]
    Refused {
        /// The address that was called.
        addr: String,
        /// The reason; in its text, "it" is the server.
        why: String,
    },
}

/// Opens channels to other processes, in plaintext or with the TLS identity of this process.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    tls: Option<Tls>,
    keep_alive: KeepAlive,
}

/// Keep-alive settings of a connection: how soon a silent peer is considered lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Time between HTTP/2 pings.
    pub interval: Duration,
    /// How long the answer to a ping may take.
    pub timeout: Duration,
}

impl KeepAlive {
    /// For connections between a coordinator and a worker. A peer that hangs or cannot be reached stalls sessions or
    /// occupies their resources, so it has to be detected within a few seconds. Pings are not answered by the model
    /// thread, so a long step does not look like a lost worker.
    pub const LINK: KeepAlive = KeepAlive {
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(1500),
    };
}

impl Default for KeepAlive {
    fn default() -> Self {
        KeepAlive {
            interval: KEEPALIVE_INTERVAL,
            timeout: KEEPALIVE_TIMEOUT,
        }
    }
}

impl Caller {
    /// Uses TLS if `tls` is set, plaintext otherwise.
    #[must_use]
    pub fn new(tls: Option<Tls>) -> Self {
        Self {
            tls,
            keep_alive: KeepAlive::default(),
        }
    }

    /// Returns the same caller with other keep-alive settings.
    #[must_use]
    pub fn with_keep_alive(self, keep_alive: KeepAlive) -> Self {
        Self { keep_alive, ..self }
    }

    /// Validates `addr` and returns its `HOST:PORT`. The address may begin with `http://` or `https://` if that matches
    /// the flags of this process: a connection is never less protected than its address or the flags demand. It may also
    /// begin with `dns:` or `dns:///` (as gRPC names a target), `grpc://` or `tcp://`, which say nothing of TLS.
    ///
    /// # Errors
    /// When `addr` is not an address, or its scheme contradicts the flags.
    pub fn authority<'a>(&self, addr: &'a str) -> Result<&'a str, AddressError> {
        let (scheme, authority) = parse(addr)?;
        let why = match (scheme, &self.tls) {
            (Some(Scheme::Https), None) => {
                "https:// needs TLS: give --tls-ca, and --tls-cert and --tls-key"
            }
            (Some(Scheme::Http), Some(_)) => {
                "http:// is plaintext, but the --tls flags ask for TLS"
            }
            (Some(Scheme::Http), None) | (Some(Scheme::Https), Some(_)) | (None, _) => {
                return Ok(authority);
            }
        };
        Err(refusal(addr, why))
    }

    /// A channel to `addr` that connects at the first call and reconnects after a loss, each time with the TLS identity
    /// that is current then. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As [`Caller::authority`].
    pub fn channel(&self, addr: &str) -> Result<Channel, AddressError> {
        let tls = self.tls.clone();
        let connector = service_fn(move |uri| dial(uri, tls.clone(), None));
        Ok(self.endpoint(addr)?.connect_with_connector_lazy(connector))
    }

    /// Connects to `addr` and returns the channel.
    ///
    /// # Errors
    /// When `addr` is not an address, no server answers within [`CONNECT_TIMEOUT`], or one side rejects the other's
    /// certificate.
    pub async fn connect(&self, addr: &str) -> Result<Channel, ConnectError> {
        self.connect_to(addr, None).await
    }

    /// The same for a server whose certificate carries `name` instead of the host of `addr`, as when that host is an
    /// address that `name` resolves to. Without TLS the name means nothing.
    ///
    /// # Errors
    /// As [`Caller::connect`].
    pub async fn connect_to(
        &self,
        addr: &str,
        name: Option<&str>,
    ) -> Result<Channel, ConnectError> {
        let endpoint = self.endpoint(addr)?;
        let tls = self.tls.clone();
        let name = name.map(str::to_owned);
        let connector = service_fn(move |uri| dial(uri, tls.clone(), name.clone()));
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|source| match find_refusal(&source) {
                Some(Refusal::Lasting(why)) => ConnectError::Refused {
                    addr: addr.to_owned(),
                    why: why.clone(),
                },
                Some(Refusal::Passing(why)) => ConnectError::Ended {
                    addr: addr.to_owned(),
                    why: why.clone(),
                },
                None => ConnectError::Unreachable {
                    addr: addr.to_owned(),
                    source,
                },
            })
    }

    fn endpoint(&self, addr: &str) -> Result<Endpoint, AddressError> {
        let authority = self.authority(addr)?;
        let uri = |scheme: &str| {
            format!("{scheme}://{authority}")
                .parse::<Uri>()
                .map_err(|_| refusal(addr, "the host contains invalid characters"))
        };
        let endpoint = Endpoint::from(uri("http")?)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(self.keep_alive.interval)
            .keep_alive_timeout(self.keep_alive.timeout)
            .keep_alive_while_idle(true);
        Ok(match self.tls {
            // The scheme that requests carry; the connection itself is made by `dial`.
            Some(_) => endpoint.origin(uri("https")?),
            None => endpoint,
        })
    }
}

/// A plaintext channel to `addr`; see [`Caller::channel`].
///
/// # Errors
/// When `addr` is not an address.
pub fn channel(addr: &str) -> Result<Channel, AddressError> {
    Caller::default().channel(addr)
}

/// Connects to `addr` in plaintext; see [`Caller::connect`].
///
/// # Errors
/// When `addr` is not an address or no server answers within [`CONNECT_TIMEOUT`].
pub async fn connect(addr: &str) -> Result<Channel, ConnectError> {
    Caller::default().connect(addr).await
}

/// The endpoint of a plaintext channel to `addr`, for callers that change its settings.
///
/// # Errors
/// When `addr` is not an address.
pub fn endpoint(addr: &str) -> Result<Endpoint, AddressError> {
    Caller::default().endpoint(addr)
}

/// The message of the innermost source of an error. The outer messages of a transport error say little
/// ("transport error").
#[must_use]
pub fn cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Why the connection of a call broke, if that is what the status means: one that was made on this side has a source, one
/// that the other side sent has none. Its code says nothing, it may be `UNKNOWN`.
#[must_use]
pub fn broken(status: &Status) -> Option<String> {
    status.source().map(cause)
}

fn find_refusal<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Refusal> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refusal) = error.downcast_ref() {
            return Some(refusal);
        }
        next = error.source();
    }
    None
}

/// The scheme of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

fn refusal(addr: &str, why: &'static str) -> AddressError {
    AddressError {
        given: addr.chars().take(80).collect(),
        why,
    }
}

/// What an address may begin with, beside nothing.
const PREFIXES: [(&str, Option<Scheme>); 6] = [
    ("https://", Some(Scheme::Https)),
    ("http://", Some(Scheme::Http)),
    ("grpc://", None),
    ("tcp://", None),
    ("dns:///", None),
    ("dns:", None),
];

/// Splits the scheme off.
fn split(addr: &str) -> Result<(Option<Scheme>, &str), &'static str> {
    // Schemes are not case-sensitive (RFC 3986, section 3.1). What is followed by a port alone is the name of a host.
    let starts = |prefix: &str| {
        addr.split_at_checked(prefix.len())
            .is_some_and(|(start, rest)| {
                start.eq_ignore_ascii_case(prefix) && rest.contains([':', '/'])
            })
    };
    if starts("dns://") && !starts("dns:///") {
        return Err("it names a DNS server, which only --dns-server can do; begin with dns:///");
    }
    if starts("unix:") {
        return Err("it is a Unix socket, and only TCP is served");
    }
    if starts("grpcs://") {
        return Err("a connection with TLS begins with https://");
    }
    if starts("ipv4:") || starts("ipv6:") {
        return Err("leave the ipv4: or ipv6: out");
    }
    let known = PREFIXES.iter().find(|(prefix, _)| starts(prefix));
    match known {
        Some((prefix, scheme)) => Ok((*scheme, &addr[prefix.len()..])),
        None if addr.contains("://") => Err(
            "it may begin with http://, https://, grpc://, tcp:// or dns:///, and with nothing else",
        ),
        None => Ok((None, addr)),
    }
}

/// The scheme and the validated `HOST:PORT` of `addr`.
fn parse(addr: &str) -> Result<(Option<Scheme>, &str), AddressError> {
    let refuse = |why| refusal(addr, why);
    if addr.len() > MAX_ADDRESS {
        return Err(refuse("it is too long"));
    }
    let (scheme, rest) = split(addr).map_err(refuse)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err(refuse("it has a path"));
    }
    let (host, port) = rest.rsplit_once(':').ok_or(refuse("the port is missing"))?;
    match port.parse::<u16>() {
        Ok(0) => return Err(refuse("port 0 is not a valid destination")),
        Ok(_) if port.bytes().all(|byte| byte.is_ascii_digit()) => {}
        Ok(_) | Err(_) => return Err(refuse("the port is not a number from 1 to 65535")),
    }
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
    {
        return match inner.parse::<Ipv6Addr>() {
            Ok(_) => Ok((scheme, rest)),
            Err(_) => Err(refuse("the text in brackets is not an IPv6 address")),
        };
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() {
        Err(refuse("the host is missing"))
    } else if host.contains(':') {
        Err(refuse("an IPv6 address needs brackets"))
    } else if !host.bytes().all(plain) {
        Err(refuse("the host contains invalid characters"))
    } else {
        Ok((scheme, rest))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn both_forms_name_the_same_endpoint() {
        for good in [
            "127.0.0.1:7000",
            "http://127.0.0.1:7000/",
            "HTTP://127.0.0.1:7000",
            "grpc://127.0.0.1:7000",
            "tcp://127.0.0.1:7000",
            "dns:///127.0.0.1:7000",
            "dns:127.0.0.1:7000",
        ] {
            assert_eq!(Caller::default().authority(good), Ok("127.0.0.1:7000"));
        }
        assert_eq!(Caller::default().authority("dns:7000"), Ok("dns:7000"));
        for good in ["[::1]:9", "worker-3.offshoot.svc:50051", "http://a_b:1"] {
            assert!(Caller::default().endpoint(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn errors_name_the_reason() {
        for (bad, why) in [
            ("", "port is missing"),
            ("localhost", "port is missing"),
            (":80", "host is missing"),
            ("a:0", "port 0"),
            ("a:+80", "not a number"),
            ("a:65536", "not a number"),
            ("https://a:1", "TLS"),
            ("::1:80", "brackets"),
            ("[::g]:80", "IPv6"),
            ("user@a:80", "characters"),
            ("http://a/b:80", "path"),
            ("a:80/v1", "path"),
            ("dns://8.8.8.8/a:80", "--dns-server"),
            ("unix:/run/a.sock", "Unix"),
            ("grpcs://a:80", "https://"),
            ("ipv4:10.0.0.1:80", "leave"),
            ("xds:///a:80", "nothing else"),
            ("a b:80", "characters"),
        ] {
            let error = Caller::default().authority(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?} gave {error}");
            assert!(error.contains("HOST:PORT"));
        }
        let long = "a".repeat(MAX_ADDRESS) + ":80";
        assert!(channel(&long).unwrap_err().given.len() <= 80);
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable() {
        // The port is bound and released again, so nothing listens on it.
        let addr = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = connect(&addr.to_string()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&addr.to_string()));
    }
}

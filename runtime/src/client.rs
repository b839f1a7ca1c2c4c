//! Channels to other processes, with the timeouts that find a dead peer.

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

/// Longest address taken, in bytes; a DNS name has at most 253.
const MAX_ADDRESS: usize = 300;

/// Why a text is not the address of an Offshoot process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an address: {why}; give HOST:PORT, for example 127.0.0.1:7000")]
pub struct AddressError {
    /// What was given, shortened if it is very long.
    pub given: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address itself is no good.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody answered there.
    #[error(
        "cannot reach {addr}: {}; is the process running and the port right?",
        cause(source)
    )]
    Unreachable {
        /// Where we tried.
        addr: String,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// Somebody answered, and one side does not want the other or cannot understand it.
    #[error("no connection to {addr}: {why}")]
    Refused {
        /// Where we tried.
        addr: String,
        /// What was wrong; "it" is whoever answered.
        why: String,
    },
}

/// How this process calls others: in plaintext, or with its identity.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    tls: Option<Tls>,
    pulse: Pulse,
}

/// How soon a peer that has fallen silent counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// How often an HTTP/2 ping goes out.
    pub interval: Duration,
    /// How long a ping may go unanswered.
    pub timeout: Duration,
}

impl Pulse {
    /// Between a coordinator and a worker. Either that hangs, or that no packet reaches, holds up sessions or holds what
    /// is theirs: it has to be noticed long before a person would. Pings are answered by other threads than the model's,
    /// so a long step is no silence.
    pub const LINK: Pulse = Pulse {
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(1500),
    };
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse {
            interval: KEEPALIVE_INTERVAL,
            timeout: KEEPALIVE_TIMEOUT,
        }
    }
}

impl Caller {
    /// Encrypts if there is an identity.
    #[must_use]
    pub fn new(tls: Option<Tls>) -> Self {
        Self {
            tls,
            pulse: Pulse::default(),
        }
    }

    /// The same with another pulse.
    #[must_use]
    pub fn with_pulse(self, pulse: Pulse) -> Self {
        Self { pulse, ..self }
    }

    /// The checked `HOST:PORT` in `addr`. `http://` and `https://` may stand before it if they say what this process
    /// does anyway: a connection is never less protected than its address claims, nor than the flags ask for.
    ///
    /// # Errors
    /// When `addr` is not an address, or wants another kind of connection.
    pub fn authority<'a>(&self, addr: &'a str) -> Result<&'a str, AddressError> {
        let (scheme, authority) = parse(addr)?;
        let why = match (scheme, &self.tls) {
            (Some(Scheme::Https), None) => {
                "https:// needs TLS: --tls-ca, and --tls-cert and --tls-key"
            }
            (Some(Scheme::Http), Some(_)) => "http:// is plaintext and the --tls flags ask for TLS",
            (Some(Scheme::Http), None) | (Some(Scheme::Https), Some(_)) | (None, _) => {
                return Ok(authority);
            }
        };
        Err(refusal(addr, why))
    }

    /// A channel to `addr` that connects at the first call and again after a loss, each time with the identity of
    /// that moment. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As [`Caller::authority`].
    pub fn channel(&self, addr: &str) -> Result<Channel, AddressError> {
        let tls = self.tls.clone();
        let connector = service_fn(move |uri| dial(uri, tls.clone()));
        Ok(self.endpoint(addr)?.connect_with_connector_lazy(connector))
    }

    /// A channel to `addr` that is connected now.
    ///
    /// # Errors
    /// When `addr` is not an address, nobody answers within [`CONNECT_TIMEOUT`], or one side refuses the other's
    /// certificate.
    pub async fn connect(&self, addr: &str) -> Result<Channel, ConnectError> {
        let endpoint = self.endpoint(addr)?;
        let tls = self.tls.clone();
        let connector = service_fn(move |uri| dial(uri, tls.clone()));
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|source| match find_refusal(&source) {
                Some(Refusal(why)) => ConnectError::Refused {
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
                .map_err(|_| refusal(addr, "the host has characters that do not belong there"))
        };
        let endpoint = Endpoint::from(uri("http")?)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(self.pulse.interval)
            .keep_alive_timeout(self.pulse.timeout)
            .keep_alive_while_idle(true);
        Ok(match self.tls {
            // What the calls say about their scheme; the connection itself is made by `dial`.
            Some(_) => endpoint.origin(uri("https")?),
            None => endpoint,
        })
    }
}

/// A plaintext channel to `addr`, as [`Caller::channel`].
///
/// # Errors
/// When `addr` is not an address.
pub fn channel(addr: &str) -> Result<Channel, AddressError> {
    Caller::default().channel(addr)
}

/// A plaintext channel to `addr` that is connected now, as [`Caller::connect`].
///
/// # Errors
/// When `addr` is not an address or nobody answers within [`CONNECT_TIMEOUT`].
pub async fn connect(addr: &str) -> Result<Channel, ConnectError> {
    Caller::default().connect(addr).await
}

/// The settings of a plaintext channel to `addr`, for whoever wants other ones.
///
/// # Errors
/// When `addr` is not an address.
pub fn endpoint(addr: &str) -> Result<Endpoint, AddressError> {
    Caller::default().endpoint(addr)
}

/// The innermost reason of an error. What stands around it is the transport library's own structure, and tells a
/// reader nothing ("transport error").
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

/// What an address says about encryption.
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

/// The scheme and the checked `HOST:PORT` in `addr`.
fn parse(addr: &str) -> Result<(Option<Scheme>, &str), AddressError> {
    let refuse = |why| refusal(addr, why);
    if addr.len() > MAX_ADDRESS {
        return Err(refuse("it is too long"));
    }
    let (scheme, rest) = if let Some(rest) = addr.strip_prefix("https://") {
        (Some(Scheme::Https), rest)
    } else if let Some(rest) = addr.strip_prefix("http://") {
        (Some(Scheme::Http), rest)
    } else {
        (None, addr)
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':').ok_or(refuse("the port is missing"))?;
    match port.parse::<u16>() {
        Ok(0) => return Err(refuse("port 0 cannot be called")),
        Ok(_) if port.bytes().all(|byte| byte.is_ascii_digit()) => {}
        Ok(_) | Err(_) => return Err(refuse("the port is not a number from 1 to 65535")),
    }
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
    {
        return match inner.parse::<Ipv6Addr>() {
            Ok(_) => Ok((scheme, rest)),
            Err(_) => Err(refuse("there is no IPv6 address between the brackets")),
        };
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() {
        Err(refuse("the host is missing"))
    } else if host.contains(':') {
        Err(refuse("an IPv6 address needs brackets"))
    } else if !host.bytes().all(plain) {
        Err(refuse("the host has characters that do not belong there"))
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
        for good in ["127.0.0.1:7000", "http://127.0.0.1:7000/"] {
            assert_eq!(Caller::default().authority(good), Ok("127.0.0.1:7000"));
        }
        for good in ["[::1]:9", "worker-3.offshoot.svc:50051", "http://a_b:1"] {
            assert!(Caller::default().endpoint(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn everything_else_says_why() {
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
            ("http://a/b:80", "characters"),
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
        // Bound and dropped again, so nobody listens there.
        let addr = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = connect(&addr.to_string()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&addr.to_string()));
    }
}

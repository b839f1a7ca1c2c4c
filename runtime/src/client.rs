//! Channels to other processes, with the timeouts that find a dead peer.

use std::net::Ipv6Addr;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::serve::{CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW};

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
    #[error("cannot reach {addr}: {source}; is the process running and the port right?")]
    Unreachable {
        /// Where we tried.
        addr: String,
        /// What the transport said.
        source: tonic::transport::Error,
    },
}

/// A channel to `addr` (`HOST:PORT` or `http://HOST:PORT`) that connects at the
/// first call and again after a loss. Call it inside a tokio runtime.
///
/// # Errors
/// When `addr` is not an address.
pub fn channel(addr: &str) -> Result<Channel, AddressError> {
    Ok(endpoint(addr)?.connect_lazy())
}

/// A channel to `addr` that is connected now.
///
/// # Errors
/// When `addr` is not an address or nobody answers within [`CONNECT_TIMEOUT`].
pub async fn connect(addr: &str) -> Result<Channel, ConnectError> {
    endpoint(addr)?
        .connect()
        .await
        .map_err(|source| ConnectError::Unreachable {
            addr: addr.to_owned(),
            source,
        })
}

/// The settings of a channel to `addr`.
///
/// # Errors
/// When `addr` is not an address.
pub fn endpoint(addr: &str) -> Result<Endpoint, AddressError> {
    let authority = authority(addr)?;
    let endpoint =
        Endpoint::from_shared(format!("http://{authority}")).map_err(|_| AddressError {
            given: authority.to_owned(),
            why: "the host has characters that do not belong there",
        })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        // Messages are tens of bytes and answer each other: waiting to fill a
        // segment would cost more than any model step.
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The checked `HOST:PORT` in `addr`.
fn authority(addr: &str) -> Result<&str, AddressError> {
    let refuse = |why| AddressError {
        given: addr.chars().take(80).collect(),
        why,
    };
    if addr.len() > MAX_ADDRESS {
        return Err(refuse("it is too long"));
    }
    if addr.starts_with("https://") {
        return Err(refuse("TLS is not supported yet"));
    }
    let rest = addr.strip_prefix("http://").unwrap_or(addr);
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
            Ok(_) => Ok(rest),
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
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn both_forms_name_the_same_endpoint() {
        for good in ["127.0.0.1:7000", "http://127.0.0.1:7000/"] {
            assert_eq!(
                endpoint(good).unwrap().uri().to_string(),
                "http://127.0.0.1:7000/"
            );
        }
        for good in ["[::1]:9", "worker-3.offshoot.svc:50051", "http://a_b:1"] {
            assert!(endpoint(good).is_ok(), "{good}");
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
            let error = endpoint(bad).unwrap_err().to_string();
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

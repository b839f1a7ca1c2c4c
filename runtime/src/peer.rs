//! Who is at the other end of a connection.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

/// The peer of a connection that this process has accepted. Each of its requests has one as an extension.
#[derive(Clone, Debug)]
pub struct Peer {
    address: IpAddr,
    /// Known when the handshake is over, which is before the first request.
    certificate: Arc<OnceLock<Arc<[u8]>>>,
}

/// Whom the limits of one client apply to, on all its connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// Whoever shows this certificate (DER).
    Certificate(Arc<[u8]>),
    /// Whoever shows none, and calls from this address or network.
    Address(IpAddr),
    /// Whoever did not come by a connection that this process has accepted.
    Unknown,
}

impl Client {
    /// Whom requests of this peer belong to.
    #[must_use]
    pub fn of(peer: Option<&Peer>) -> Self {
        let Some(peer) = peer else {
            return Client::Unknown;
        };
        if let Some(certificate) = peer.certificate.get() {
            return Client::Certificate(Arc::clone(certificate));
        }
        Client::Address(match peer.address {
            // A host usually has all addresses of a /64 (RFC 6177).
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

impl Peer {
    /// A peer at this address, of which nothing else is known yet.
    pub(crate) fn new(address: IpAddr) -> Self {
        Peer {
            address: address.to_canonical(),
            certificate: Arc::default(),
        }
    }

    /// It has shown this certificate (DER).
    pub(crate) fn set_certificate(&self, der: &[u8]) {
        // A connection has one handshake.
        let _ = self.certificate.set(der.into());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn at(address: &str) -> Peer {
        Peer::new(address.parse().unwrap())
    }

    #[test]
    fn a_client_is_a_certificate_or_else_a_host() {
        let of = |peer: &Peer| Client::of(Some(peer));
        assert_eq!(of(&at("10.0.0.1")), of(&at("::ffff:10.0.0.1")));
        assert_ne!(of(&at("10.0.0.1")), of(&at("10.0.0.2")));
        assert_eq!(of(&at("2001:db8::1")), of(&at("2001:db8::ffff:1")));
        assert_ne!(of(&at("2001:db8::1")), of(&at("2001:db8:0:1::1")));
        let (here, there) = (at("10.0.0.1"), at("10.0.0.2"));
        here.set_certificate(b"one");
        there.set_certificate(b"one");
        assert_eq!(of(&here), of(&there));
        assert_ne!(of(&here), of(&at("10.0.0.1")));
    }
}

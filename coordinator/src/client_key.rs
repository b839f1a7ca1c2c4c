//! Whose a request is: the client with which turns are shared. A client is known by the certificate of its connection, and
//! without one by its address.

use std::net::IpAddr;

use control::placement::ClientKey;
use runtime::Peer;

/// The key of a peer; the same for all its connections. Requests that did not come by a connection have one key.
pub(crate) fn of(peer: Option<&Peer>) -> ClientKey {
    let mut hasher = blake3::Hasher::new();
    match peer.map(|peer| (peer.certificate(), peer.address())) {
        Some((Some(certificate), _)) => {
            hasher.update(b"certificate").update(certificate);
        }
        Some((None, IpAddr::V4(address))) => {
            hasher.update(b"IPv4").update(&address.octets());
        }
        // A host usually has all addresses of such a network (RFC 6177).
        Some((None, IpAddr::V6(address))) => {
            hasher.update(b"IPv6").update(&address.octets()[..8]);
        }
        None => {}
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    ClientKey(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

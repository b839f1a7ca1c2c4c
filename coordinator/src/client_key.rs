//! Whose a request is: the client with which turns are shared.

use std::net::IpAddr;

use control::placement::ClientKey;
use runtime::peer::{Client, Peer};

/// The key of a peer's client; the same for all its connections.
pub(crate) fn of(peer: Option<&Peer>) -> ClientKey {
    let mut hasher = blake3::Hasher::new();
    match Client::of(peer) {
        Client::Certificate(der) => hasher.update(b"certificate").update(&der),
        Client::Address(IpAddr::V4(address)) => hasher.update(b"IPv4").update(&address.octets()),
        Client::Address(IpAddr::V6(address)) => hasher.update(b"IPv6").update(&address.octets()),
        Client::Unknown => &mut hasher,
    };
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    ClientKey(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

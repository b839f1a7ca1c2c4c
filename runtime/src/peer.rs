//! Who is at the other end of a connection.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

/// The peer of a connection that this process has accepted. Each of its requests has one as an extension.
#[derive(Clone, Debug)]
pub struct Peer {
    address: IpAddr,
    /// Known when the handshake is over, which is before the first request.
    certificate: Arc<OnceLock<Vec<u8>>>,
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
        let _ = self.certificate.set(der.to_vec());
    }

    /// Its address, without the port.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The certificate that it has shown (DER), if any.
    #[must_use]
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificate.get().map(Vec::as_slice)
    }
}

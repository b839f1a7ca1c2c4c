//! Workers that speak the real wire over real sockets and hold no model: a target that picks by a fixed function, and
//! drafts that guess by it.
//!
//! They are driven by what they are told, never by a clock: a fake target takes one step per acknowledged text.
pub(crate) mod draft;
pub(crate) mod replica;
pub(crate) mod rig;
pub(crate) mod target;
pub(crate) mod vocabulary;

use std::net::SocketAddr;
use std::time::Duration;

use proto::v1;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Router, TcpIncoming};

/// The token that the fake model puts behind a text: a lower-case letter.
pub(crate) fn next_token(text: &[u32]) -> u32 {
    let last = text.last().copied().unwrap_or_default();
    u32::from(b'a') + (last * 31 + text.len() as u32 * 7 + 3) % 26
}

/// What the fake model alone makes of a prompt.
pub(crate) fn plain(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for _ in 0..tokens {
        text.push(next_token(&text));
    }
    text.split_off(prompt.len())
}

/// Longer than any test should take; a test that hangs fails by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until what a fake has seen is as expected.
pub(crate) async fn until<T: Clone + std::fmt::Debug>(
    seen: &watch::Sender<T>,
    mut expected: impl FnMut(&T) -> bool,
) -> T {
    let mut watcher = seen.subscribe();
    let found = tokio::time::timeout(PATIENCE, watcher.wait_for(|seen| expected(seen))).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("never came to pass; seen so far: {:?}", seen.borrow()),
    }
}

/// A server that can be killed.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) alive: CancellationToken,
}

impl Server {
    /// Binds first, so that the address is known to who builds the router.
    pub(crate) async fn start(router: impl FnOnce(CancellationToken) -> Router) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let alive = CancellationToken::new();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = router(alive.clone());
        let stop = alive.clone().cancelled_owned();
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, stop));
        Server { addr, alive }
    }

    /// Breaks its streams and closes its port.
    pub(crate) fn kill(&self) {
        self.alive.cancel();
    }
}

/// A hello that fits the rig's tokenizer.
pub(crate) fn hello(role: &str, max_context: u32) -> v1::HelloReply {
    let tokenizer = vocabulary::tokenizer(vocabulary::TOKENS);
    v1::HelloReply {
        protocol: proto::PROTOCOL,
        role: role.to_owned(),
        model: format!("fake-{role}"),
        numerics_id: "fake-numerics".to_owned(),
        vocabulary_hash: tokenizer.vocabulary().hash().to_owned(),
        vocabulary_len: tokenizer.vocabulary().len() as u32,
        max_context,
        max_sessions: 8,
        eos_ids: vec![vocabulary::END],
        kv_positions: 8 * max_context,
        kv_page: 16,
    }
}

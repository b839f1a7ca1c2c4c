//! Accepting connections, with a cap on their number, a time limit for the handshake, and TLS.
//!
//! tonic limits neither the number of connections nor the time that a peer may take to send the HTTP/2 preface, so
//! connections are accepted here. Each holds a semaphore permit for as long as it is open. The TLS handshake runs at
//! the first read or write, which is in the connection's own task: it delays no other connection, and the time limit of
//! the preface includes it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::Accept;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::peer::Peer;
use crate::port::Visits;
use crate::rarely::Rarely;
use crate::tls::{self, ALPN_H2, Acceptor};

/// How long a new connection may take for the TLS handshake and the HTTP/2 preface. Keep-alive pings start only after
/// these, so without this limit a silent peer would keep its connection open forever.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the HTTP/2 connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// First byte of a TLS handshake (RFC 8446, section 5.1). The HTTP/2 preface begins with a letter.
const TLS_HANDSHAKE: u8 = 22;
/// Lines about peers that are refused, in ten seconds: anybody can cause them.
const REFUSALS: u32 = 10;
/// Pause after a failed accept. The usual cause is that the process has run out of file descriptors, and retrying at
/// once would only use up a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The accepted connections, as a stream.
pub(crate) struct Incoming {
    tcp: TcpListener,
    /// One permit per open connection.
    permits: Arc<Semaphore>,
    /// How many there are in all.
    limit: usize,
    /// How long a peer may take to send the preface.
    preface_timeout: Duration,
    /// `None` for plaintext.
    tls: Option<Acceptor>,
    /// Connections by which this process asks whether the port answers.
    visits: Visits,
    /// Set after a failed accept, until it is over.
    pause: Option<Pin<Box<Sleep>>>,
    /// What is said of failed accepts, and of connections beyond the cap.
    failures: Rarely,
    closed: Rarely,
    /// What is said of connections that are refused.
    refusals: Arc<Mutex<Rarely>>,
}

impl Incoming {
    pub(crate) fn new(
        tcp: TcpListener,
        max_connections: usize,
        tls: Option<Acceptor>,
        visits: Visits,
    ) -> Self {
        Self {
            tcp,
            permits: Arc::new(Semaphore::new(max_connections)),
            limit: max_connections,
            preface_timeout: PREFACE_TIMEOUT,
            tls,
            visits,
            pause: None,
            failures: Rarely::default(),
            closed: Rarely::default(),
            refusals: Arc::new(Mutex::new(Rarely::at_most(REFUSALS))),
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let (tcp, peer) = match ready!(self.tcp.poll_accept(cx)) {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(times) = self.failures.handle(Instant::now()) {
                        tracing::warn!(%error, times, "cannot accept connections; retrying");
                    }
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    continue;
                }
            };
            // A closed connection tells the peer to go elsewhere; one that stays in the system's queue would look like
            // a process that hangs.
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                if let Some(times) = self.closed.handle(Instant::now()) {
                    let limit = self.limit;
                    tracing::warn!(%peer, times, limit, "closing connections: too many are open; see --max-connections");
                }
                continue;
            };
            if self.visits.confirm(peer) {
                continue;
            }
            // This fails only if the peer has already disconnected, which the first read will report.
            let _ = tcp.set_nodelay(true);
            return Poll::Ready(Some(Ok(Connection {
                info: Peer::new(peer.ip()),
                peer,
                stage: match &self.tls {
                    Some(acceptor) => Stage::Handshake(Box::new(acceptor.current().accept(tcp))),
                    None => Stage::Plain(tcp),
                },
                preface: Some(Preface {
                    missing: PREFACE_BYTES,
                    deadline: Box::pin(tokio::time::sleep(self.preface_timeout)),
                }),
                refusals: Arc::clone(&self.refusals),
                _permit: permit,
            })));
        }
    }
}

/// An accepted connection; it counts towards the cap until it is dropped.
pub(crate) struct Connection {
    info: Peer,
    peer: SocketAddr,
    stage: Stage,
    /// Present until the peer has sent the preface.
    preface: Option<Preface>,
    refusals: Arc<Mutex<Rarely>>,
    _permit: OwnedSemaphorePermit,
}

/// The state of the connection.
enum Stage {
    Plain(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    Encrypted(Box<TlsStream<TcpStream>>),
    /// The connection has failed, and the reason has been reported.
    Failed,
}

/// The part of the preface that has not arrived, and its deadline.
struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Preface {
    /// Fails when the deadline has passed.
    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer did not send the HTTP/2 preface in time",
            ));
        }
        Ok(())
    }
}

impl Connection {
    /// Says why it is refused, if not too much was said lately.
    fn refuse(&self, why: &str) {
        if let Some(times) = self.refusals.lock().handle(Instant::now()) {
            tracing::warn!(peer = %self.peer, times, reason = why, "refused a connection");
        }
    }

    /// Completes the TLS handshake, if there is one.
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Stage::Handshake(accept) = &mut self.stage else {
            return Poll::Ready(Ok(()));
        };
        let polled = Pin::new(accept).poll(cx);
        let error = match polled {
            Poll::Pending => match self
                .preface
                .as_mut()
                .map(|preface| preface.check_deadline(cx))
            {
                Some(Err(late)) => {
                    self.refuse("the TLS handshake timed out");
                    late
                }
                Some(Ok(())) | None => return Poll::Pending,
            },
            Poll::Ready(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) => {
                let certificates = stream.get_ref().1.peer_certificates();
                if let Some(own) = certificates.and_then(<[_]>::first) {
                    self.info.set_certificate(own);
                }
                self.stage = Stage::Encrypted(Box::new(stream));
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(_)) => {
                self.refuse("the peer did not offer HTTP/2 (ALPN h2)");
                io::Error::new(io::ErrorKind::InvalidData, "the peer did not offer HTTP/2")
            }
            Poll::Ready(Err(error)) => {
                match tls_cause(&error) {
                    Some(cause) => {
                        self.refuse(&tls::explain(cause));
                    }
                    // A probe that only checks whether the port is open ends like this.
                    None => {
                        tracing::debug!(peer = %self.peer, %error, "a connection ended during its TLS handshake");
                    }
                }
                error
            }
        };
        self.stage = Stage::Failed;
        Poll::Ready(Err(error))
    }

    fn poll_read_stage(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stage::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
            Stage::Handshake(_) | Stage::Failed => Poll::Ready(Err(failed())),
        }
    }
}

/// The TLS error inside an I/O error, if there is one.
pub(crate) fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn failed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection has failed")
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        let before = buf.filled().len();
        let read = self.poll_read_stage(cx, buf);
        let this = &mut *self;
        let Some(preface) = &mut this.preface else {
            return read;
        };
        let received = &buf.filled()[before..];
        if matches!(this.stage, Stage::Plain(_))
            && preface.missing == PREFACE_BYTES
            && received.first() == Some(&TLS_HANDSHAKE)
        {
            this.refuse("the peer speaks TLS, but this process was started without --tls-cert");
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer speaks TLS",
            )));
        }
        preface.missing = preface.missing.saturating_sub(received.len());
        if preface.missing == 0 {
            this.preface = None;
        } else if read.is_pending()
            && let Err(late) = preface.check_deadline(cx)
        {
            return Poll::Ready(Err(late));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Stage::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stage::Handshake(_) | Stage::Failed => Poll::Ready(Err(failed())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stage::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
            Stage::Handshake(_) | Stage::Failed => Poll::Ready(Err(failed())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stage::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
            // There is nothing to shut down; dropping the connection closes the socket.
            Stage::Handshake(_) | Stage::Failed => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Stage::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stage::Handshake(_) | Stage::Failed => Poll::Ready(Err(failed())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        // True for both kinds of stream, and asked before the handshake has made one.
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    /// A peer that has sent `first`, and the server side of its connection.
    async fn accept(first: &[u8], preface_timeout: Duration) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        peer.write_all(first).await.unwrap();
        let mut incoming = Incoming::new(listener, 1, None, Visits::default());
        incoming.preface_timeout = preface_timeout;
        let connection = incoming.next().await.unwrap().unwrap();
        (peer, connection)
    }

    #[tokio::test]
    async fn a_peer_without_a_preface_times_out() {
        for sent in [&b""[..], &[0; PREFACE_BYTES - 1]] {
            let (_peer, mut connection) = accept(sent, Duration::from_millis(1)).await;
            let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn a_peer_that_has_sent_its_preface_may_be_silent() {
        let (_peer, mut connection) = accept(&[0; PREFACE_BYTES], Duration::from_secs(60)).await;
        connection
            .read_exact(&mut [0; PREFACE_BYTES])
            .await
            .unwrap();
        assert!(connection.preface.is_none(), "the deadline still applies");
    }

    #[tokio::test]
    async fn a_peer_without_a_handshake_times_out() {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let args = crate::TlsArgs {
            tls_cert: file("cert.pem", &cert),
            tls_key: file("key.pem", &key.serialize_pem()),
            tls_ca: file("ca.pem", &cert),
            tls_server_name: None,
        };
        let tls = args.load(crate::Purpose::Serve).unwrap().unwrap();
        let acceptor = tls.acceptor(crate::ClientAuth::Required).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        // The beginning of a client hello that is never completed.
        peer.write_all(&[TLS_HANDSHAKE, 3, 1, 1, 0]).await.unwrap();
        let mut incoming = Incoming::new(listener, 1, Some(acceptor), Visits::default());
        incoming.preface_timeout = Duration::from_millis(1);
        let mut connection = incoming.next().await.unwrap().unwrap();
        let error = connection.write_all(b"settings").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_tls_client_hello_on_a_plaintext_port_is_recognised() {
        let hello = [TLS_HANDSHAKE, 3, 1, 0, 0];
        let (_peer, mut connection) = accept(&hello, Duration::from_secs(60)).await;
        let error = connection.read_u8().await.unwrap_err();
        assert!(error.to_string().contains("speaks TLS"), "{error}");
    }
}

//! Accepting connections: counted, timed, encrypted.
//!
//! The transport library has no cap on connections and no limit on the time a peer may take to say its first word, so
//! connections are accepted here and handed over with the count attached to them. A TLS handshake is made by whoever
//! first reads or writes, which is the connection's own task: it delays no other connection, and its time is that of
//! the first word.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::Accept;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::tls::{self, ALPN_H2, Acceptor};

/// How long a new connection may take to shake hands and send the HTTP/2 preface. Pings start only after it, so
/// without this limit a silent peer would hold its place.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the HTTP/2 connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// First byte of a TLS handshake (RFC 8446, section 5.1); the preface begins with a letter.
const TLS_HANDSHAKE: u8 = 22;
/// Pause after a failed accept: the usual cause is that the process has run out of descriptors, and trying again at
/// once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections under a cap.
pub(crate) struct Incoming {
    tcp: TcpListener,
    /// One permit per open connection.
    places: Arc<Semaphore>,
    /// How long a peer may take to send its preface.
    preface_limit: Duration,
    /// `None` for plaintext.
    tls: Option<Acceptor>,
    /// Set after a failed accept, until it has passed.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(crate) fn new(tcp: TcpListener, max_connections: usize, tls: Option<Acceptor>) -> Self {
        Self {
            tcp,
            places: Arc::new(Semaphore::new(max_connections)),
            preface_limit: PREFACE_TIMEOUT,
            tls,
            pause: None,
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
                    tracing::warn!(%error, "cannot accept a connection");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    continue;
                }
            };
            // Closing at once tells the peer to go elsewhere; leaving it in the system's queue would look to it like
            // a hung process.
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                tracing::warn!(%peer, "closing a connection: all places are taken");
                continue;
            };
            // It has already gone if this fails, and reading will say so.
            let _ = tcp.set_nodelay(true);
            return Poll::Ready(Some(Ok(Connection {
                info: tcp.connect_info(),
                peer,
                stage: match &self.tls {
                    Some(acceptor) => Stage::Handshake(Box::new(acceptor.current().accept(tcp))),
                    None => Stage::Plain(tcp),
                },
                preface: Some(Preface {
                    missing: PREFACE_BYTES,
                    deadline: Box::pin(tokio::time::sleep(self.preface_limit)),
                }),
                _place: place,
            })));
        }
    }
}

/// An accepted connection; its place is free again when it is dropped.
pub(crate) struct Connection {
    info: TcpConnectInfo,
    peer: SocketAddr,
    stage: Stage,
    /// Present until the peer has sent its preface.
    preface: Option<Preface>,
    _place: OwnedSemaphorePermit,
}

/// How far the connection has come.
enum Stage {
    Plain(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    Encrypted(Box<TlsStream<TcpStream>>),
    /// There will be no connection; why not has been reported.
    Refused,
}

/// What the peer has yet to send, and by when.
struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Preface {
    /// Fails when the time is up.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
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
    /// Makes the handshake if there is one to make.
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Stage::Handshake(accept) = &mut self.stage else {
            return Poll::Ready(Ok(()));
        };
        let refusal = match Pin::new(accept).poll(cx) {
            Poll::Pending => match self.preface.as_mut().map(|preface| preface.in_time(cx)) {
                Some(Err(late)) => {
                    tracing::warn!(peer = %self.peer, "closing a connection: no TLS handshake in time");
                    late
                }
                Some(Ok(())) | None => return Poll::Pending,
            },
            Poll::Ready(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) => {
                self.stage = Stage::Encrypted(Box::new(stream));
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(_)) => {
                tracing::warn!(peer = %self.peer, "refused a connection: it did not ask for HTTP/2 (ALPN h2)");
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the peer did not ask for HTTP/2",
                )
            }
            Poll::Ready(Err(error)) => {
                match tls_cause(&error) {
                    Some(cause) => {
                        tracing::warn!(peer = %self.peer, reason = tls::explain(cause), "refused a connection");
                    }
                    // Whoever only looks whether the port is open leaves like this.
                    None => {
                        tracing::debug!(peer = %self.peer, %error, "a connection ended in its handshake");
                    }
                }
                error
            }
        };
        self.stage = Stage::Refused;
        Poll::Ready(Err(refusal))
    }

    fn poll_read_stage(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stage::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
            Stage::Handshake(_) | Stage::Refused => Poll::Ready(Err(refused())),
        }
    }
}

/// What TLS has to say about an error, if it has anything to do with it.
pub(crate) fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection was refused")
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
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
        let news = &buf.filled()[before..];
        if matches!(this.stage, Stage::Plain(_))
            && preface.missing == PREFACE_BYTES
            && news.first() == Some(&TLS_HANDSHAKE)
        {
            tracing::warn!(
                peer = %this.peer,
                "refused a connection: it speaks TLS and this process was started without --tls-cert"
            );
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer speaks TLS",
            )));
        }
        preface.missing = preface.missing.saturating_sub(news.len());
        if preface.missing == 0 {
            this.preface = None;
        } else if read.is_pending()
            && let Err(late) = preface.in_time(cx)
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
            Stage::Handshake(_) | Stage::Refused => Poll::Ready(Err(refused())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stage::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
            Stage::Handshake(_) | Stage::Refused => Poll::Ready(Err(refused())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stage::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
            // There is nothing to close in order; dropping it closes the socket.
            Stage::Handshake(_) | Stage::Refused => Poll::Ready(Ok(())),
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
            Stage::Handshake(_) | Stage::Refused => Poll::Ready(Err(refused())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        // So are both kinds of stream; asked before there is one.
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    /// A peer that has sent `first`, and its connection as the server sees it.
    async fn accept(first: &[u8], preface_limit: Duration) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        peer.write_all(first).await.unwrap();
        let mut incoming = Incoming::new(listener, 1, None);
        incoming.preface_limit = preface_limit;
        let connection = incoming.next().await.unwrap().unwrap();
        (peer, connection)
    }

    #[tokio::test]
    async fn a_peer_without_a_preface_is_given_up() {
        for said in [&b""[..], &[0; PREFACE_BYTES - 1]] {
            let (_peer, mut connection) = accept(said, Duration::from_millis(1)).await;
            let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn a_peer_with_a_preface_may_be_silent_afterwards() {
        let (_peer, mut connection) = accept(&[0; PREFACE_BYTES], Duration::from_secs(60)).await;
        connection
            .read_exact(&mut [0; PREFACE_BYTES])
            .await
            .unwrap();
        assert!(connection.preface.is_none(), "the limit still stands");
    }

    #[tokio::test]
    async fn a_peer_without_a_handshake_is_given_up() {
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
        // The beginning of a greeting that never ends.
        peer.write_all(&[TLS_HANDSHAKE, 3, 1, 1, 0]).await.unwrap();
        let mut incoming = Incoming::new(listener, 1, Some(acceptor));
        incoming.preface_limit = Duration::from_millis(1);
        let mut connection = incoming.next().await.unwrap().unwrap();
        let error = connection.write_all(b"settings").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_tls_greeting_on_a_plaintext_port_is_recognised() {
        let greeting = [TLS_HANDSHAKE, 3, 1, 0, 0];
        let (_peer, mut connection) = accept(&greeting, Duration::from_secs(60)).await;
        let error = connection.read_u8().await.unwrap_err();
        assert!(error.to_string().contains("speaks TLS"), "{error}");
    }
}

//! Making the connections below a channel: TCP, and TLS where this process has an identity.
//!
//! A connection counts as made once the server has said its first word, which an HTTP/2 server does as soon as it has
//! the client's preface. Only then is known that it speaks what we speak, and, because a TLS 1.3 client has finished
//! its handshake before the server has looked at its certificate, that it wants to talk to us. So the preface is sent
//! here, and the transport library's own is swallowed; a refusal is an error of the connection, with its reason, and
//! not a broken pipe under the first call.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tower::{Service, ServiceExt};

use crate::accept::tls_cause;
use crate::tls::{self, ALPN_H2, Tls};

/// The client's first word (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First byte of a TLS alert (RFC 8446, section 5.1), which is how a TLS server answers plaintext. The first byte of
/// an HTTP/2 server's first frame is the highest of its length, and that frame is short.
const TLS_ALERT: u8 = 21;
/// First byte of an HTTP/1 answer.
const HTTP_1: u8 = b'H';

/// Why there is no connection although somebody answered; "it" is the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) String);

/// Connects to the host and port in `uri`.
pub(crate) async fn dial(
    uri: Uri,
    tls: Option<Tls>,
) -> Result<TokioIo<Transport>, Box<dyn Error + Send + Sync>> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    // Messages are tens of bytes and answer each other: waiting to fill a segment would cost more than any model step.
    connector.set_nodelay(true);
    let host = uri.host().unwrap_or_default().to_owned();
    let mut tcp = connector.ready().await?.call(uri).await?.into_inner();
    let Some(tls) = tls else {
        tcp.write_all(PREFACE).await?;
        let mut first = [0];
        let said = tcp.peek(&mut first).await?;
        check(&first[..said])?;
        return Ok(TokioIo::new(Transport::new(Stage::Plain(tcp))));
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(&host);
    let expected = tls
        .expected(bare)
        .map_err(|error| Refusal(error.to_string()))?;
    let handshake = tls.connector().connect(expected, tcp);
    let mut stream = handshake.await.map_err(|error| refusal(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        return Err(Refusal("it does not speak HTTP/2 over TLS".to_owned()).into());
    }
    let greeted = async {
        stream.write_all(PREFACE).await?;
        stream.flush().await?;
        stream.fill_buf().await
    };
    check(greeted.await.map_err(|error| refusal(&error))?)?;
    Ok(TokioIo::new(Transport::new(Stage::Encrypted(Box::new(
        stream,
    )))))
}

/// Whether the beginning of the server's first word is one of HTTP/2.
fn check(first: &[u8]) -> Result<(), Refusal> {
    let why = match first.first() {
        None => "it closed the connection at once; does it have too many?",
        Some(&TLS_ALERT) => {
            "it speaks TLS and was called without; give --tls-ca, and --tls-cert and --tls-key where it asks for a \
             certificate"
        }
        Some(&HTTP_1) => "it speaks HTTP/1 and not gRPC",
        Some(_) => return Ok(()),
    };
    Err(Refusal(why.to_owned()))
}

fn refusal(error: &io::Error) -> Refusal {
    Refusal(match tls_cause(error) {
        Some(cause) => tls::explain(cause),
        None => format!("it ended the TLS handshake ({error}); does it speak TLS?"),
    })
}

/// A connection as a client has it.
#[derive(Debug)]
pub(crate) struct Transport {
    stage: Stage,
    /// What of the preface the transport library has yet to write; it was sent before.
    preface: &'static [u8],
}

#[derive(Debug)]
enum Stage {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Transport {
    fn new(stage: Stage) -> Self {
        Self {
            stage,
            preface: PREFACE,
        }
    }

    /// Takes what was sent before; `None` once all of it was.
    fn swallow(&mut self, bytes: &[u8]) -> Option<io::Result<usize>> {
        if self.preface.is_empty() {
            return None;
        }
        let len = bytes.len().min(self.preface.len());
        let (sent, rest) = self.preface.split_at(len);
        if sent != &bytes[..len] {
            return Some(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a connection made for HTTP/2 was used for something else",
            )));
        }
        self.preface = rest;
        Some(Ok(len))
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stage::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(swallowed) = self.swallow(bytes) {
            return Poll::Ready(swallowed);
        }
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Stage::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stage::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stage::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        if let Some(first) = first
            && let Some(swallowed) = self.swallow(first)
        {
            return Poll::Ready(swallowed);
        }
        match &mut self.stage {
            Stage::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Stage::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stage {
            Stage::Plain(tcp) => tcp.is_write_vectored(),
            Stage::Encrypted(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    /// What comes of calling a server that answers the preface with `first`, and what it heard.
    async fn call(first: &'static [u8]) -> (Result<Transport, String>, [u8; PREFACE.len()]) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let server = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut heard = [0; PREFACE.len()];
            peer.read_exact(&mut heard).await.unwrap();
            peer.write_all(first).await.unwrap();
            heard
        };
        let (dialled, heard) = tokio::join!(dial(uri.parse().unwrap(), None), server);
        let made = dialled.map(TokioIo::into_inner);
        (made.map_err(|error| error.to_string()), heard)
    }

    #[tokio::test]
    async fn the_preface_is_sent_once() {
        let (made, heard) = call(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
        assert_eq!(heard, PREFACE);
        let mut made = made.unwrap();
        made.write_all(&PREFACE[..9]).await.unwrap();
        made.write_all(&PREFACE[9..]).await.unwrap();
        assert!(made.preface.is_empty(), "something is still swallowed");
        let mut said = Vec::new();
        made.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, [0, 0, 0, 4, 0, 0, 0, 0, 0], "the first word was lost");
    }

    #[tokio::test]
    async fn who_speaks_something_else_is_recognised() {
        for (first, why) in [
            (&[21, 3, 3, 0, 2, 2, 50][..], "it speaks TLS"),
            (b"HTTP/1.1 400 Bad Request\r\n", "HTTP/1"),
            (b"", "closed the connection"),
        ] {
            let error = call(first).await.0.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}

//! Making the connections below a channel: TCP, and TLS where this process has an identity.
//!
//! In TLS 1.3 a client has finished its handshake before the server has looked at its certificate. So that a refusal
//! is an error of the connection, with its reason, and not of the first call on it, a new connection waits a moment
//! for the server's first word, which an HTTP/2 server sends without being asked.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tower::{Service, ServiceExt};

use crate::accept::tls_cause;
use crate::tls::{self, ALPN_H2, Tls};

/// How long to wait for the server's first word; a proxy in between may wait for ours instead.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// First byte of a TLS alert (RFC 8446, section 5.1), which is how a TLS server answers plaintext. The first byte of
/// an HTTP/2 server's first frame is the highest of its length, and that frame is short.
const TLS_ALERT: u8 = 21;

/// Why there is no encrypted connection; "it" is the peer.
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
    let tcp = connector.ready().await?.call(uri).await?.into_inner();
    let Some(tls) = tls else {
        return Ok(TokioIo::new(Transport::Plain { tcp, heard: false }));
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(&host);
    let expected = tls
        .expected(bare)
        .map_err(|error| Refusal(error.to_string()))?;
    let mut stream = tls
        .connector()
        .connect(expected, tcp)
        .await
        .map_err(|error| refusal(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        return Err(Refusal("it does not speak HTTP/2 over TLS".to_owned()).into());
    }
    match tokio::time::timeout(FIRST_WORD, stream.fill_buf()).await {
        Ok(Ok([])) => {
            Err(Refusal("it closed the connection after the handshake".to_owned()).into())
        }
        Ok(Ok(_)) | Err(_) => Ok(TokioIo::new(Transport::Encrypted(Box::new(stream)))),
        Ok(Err(error)) => Err(refusal(&error).into()),
    }
}

fn refusal(error: &io::Error) -> Refusal {
    Refusal(match tls_cause(error) {
        Some(cause) => tls::explain(cause),
        None => format!("it ended the TLS handshake ({error}); does it speak TLS?"),
    })
}

/// A connection as a client has it.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain {
        tcp: TcpStream,
        /// Whether the server has said anything.
        heard: bool,
    },
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain { tcp, heard } => {
                let before = buf.filled().len();
                let read = Pin::new(tcp).poll_read(cx, buf);
                if !*heard && let Some(first) = buf.filled().get(before) {
                    *heard = true;
                    if *first == TLS_ALERT {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "it speaks TLS and was called without; give --tls-ca, and --tls-cert and --tls-key \
                             where it asks for a certificate",
                        )));
                    }
                }
                read
            }
            Transport::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain { tcp, .. } => Pin::new(tcp).poll_write(cx, bytes),
            Transport::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain { tcp, .. } => Pin::new(tcp).poll_flush(cx),
            Transport::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain { tcp, .. } => Pin::new(tcp).poll_shutdown(cx),
            Transport::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain { tcp, .. } => Pin::new(tcp).poll_write_vectored(cx, slices),
            Transport::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Plain { tcp, .. } => tcp.is_write_vectored(),
            Transport::Encrypted(stream) => stream.is_write_vectored(),
        }
    }
}

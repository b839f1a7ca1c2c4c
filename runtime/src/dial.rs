//! Opens the connections of a channel: TCP, and TLS if this process has an identity.
//!
//! A connection is considered open once the server has sent its first bytes, which an HTTP/2 server does as soon as it
//! has received the client's preface. Only then do we know that the server speaks HTTP/2, and that it accepts our
//! certificate: in TLS 1.3 the client completes its handshake before the server has checked the client's certificate.
//! So the preface is sent here, and the copy that hyper writes is skipped. A refusal is then a connection error with a
//! reason, instead of a broken pipe in the first call.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tower::{Service, ServiceExt};

use crate::accept::tls_cause;
use crate::tls::{self, ALPN_H2, Tls};

/// The HTTP/2 connection preface of a client (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First byte of a TLS alert (RFC 8446, section 5.1), with which a TLS server answers plaintext. An HTTP/2 server
/// cannot send it first: a frame begins with the high byte of its length, and the first frame is short.
const TLS_ALERT: u8 = 21;
/// With what an HTTP/1 response begins.
const HTTP_1: &[u8; 5] = b"HTTP/";
/// How long an HTTP/1 server may take to answer when it is asked whether it is one.
const HTTP_1_PATIENCE: Duration = Duration::from_secs(1);
/// How long a server that has accepted the connection may take for its first word. Shorter than a connection attempt may take, so
/// that a silent one is told from one that cannot be reached.
const FIRST_WORD: Duration = Duration::from_secs(4);
/// Type of the frame that an HTTP/2 server sends first (RFC 9113, section 3.4).
const SETTINGS: u8 = 4;
/// Bytes of a server's first words that are looked at, and shown where they are not HTTP/2.
const FIRST_BYTES: usize = 24;

/// Why a connection failed although a server answered; "it" is the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Until somebody changes one of the two sides.
    #[error("{0}")]
    Lasting(String),
    /// It may be different the next time.
    #[error("{0}")]
    Passing(String),
}

/// Connects to the host and port in `uri`. With TLS the server's certificate has to carry `name`, or that host if there
/// is no `name`.
pub(crate) async fn dial(
    uri: Uri,
    tls: Option<Tls>,
    name: Option<String>,
) -> Result<TokioIo<Transport>, Box<dyn Error + Send + Sync>> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    // Messages are tens of bytes long and answer each other. Waiting to fill a segment (Nagle's algorithm) would cost
    // more time than a model step.
    connector.set_nodelay(true);
    let host = uri.host().unwrap_or_default().to_owned();
    let mut tcp = connector
        .ready()
        .await?
        .call(uri.clone())
        .await?
        .into_inner();
    let Some(tls) = tls else {
        let mut first = [0; FIRST_BYTES];
        let received = heard(greet(&mut tcp, &mut first)).await??;
        if received == 0 && speaks_http_1(connector, uri).await {
            check(HTTP_1)?;
        }
        check(&first[..received])?;
        return Ok(TokioIo::new(Transport::new(Stage::Plain(tcp))));
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(&host);
    let expected = tls
        .expected(name.as_deref().unwrap_or(bare))
        .map_err(|error| Refusal::Lasting(error.to_string()))?;
    let handshake = tls.connector().connect(expected, tcp);
    let mut stream = heard(handshake).await?.map_err(|error| refusal(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        let why = "it does not speak HTTP/2 over TLS";
        return Err(Refusal::Lasting(why.to_owned()).into());
    }
    let first = async {
        stream.write_all(PREFACE).await?;
        stream.flush().await?;
        stream.fill_buf().await
    };
    check(heard(first).await?.map_err(|error| refusal(&error))?)?;
    Ok(TokioIo::new(Transport::new(Stage::Encrypted(Box::new(
        stream,
    )))))
}

/// What a server answers, if it does.
async fn heard<T>(answer: impl Future<Output = T>) -> Result<T, Refusal> {
    (tokio::time::timeout(FIRST_WORD, answer).await).map_err(|_| {
        Refusal::Passing(format!(
            "it accepts connections and does not answer: nothing within {} s; does it hang, or is it another service?",
            FIRST_WORD.as_secs()
        ))
    })
}

/// Sends the preface; how many bytes of the answer are there, none if the server hangs up.
async fn greet(tcp: &mut TcpStream, first: &mut [u8]) -> io::Result<usize> {
    let answer = async {
        tcp.write_all(PREFACE).await?;
        tcp.peek(first).await
    };
    match answer.await {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
        {
            Ok(0)
        }
        answer => answer,
    }
}

/// Whether a server that hangs up on HTTP/2 answers HTTP/1, as an admin port does.
async fn speaks_http_1(mut connector: HttpConnector, uri: Uri) -> bool {
    let asked = async {
        let mut tcp = connector
            .ready()
            .await
            .ok()?
            .call(uri)
            .await
            .ok()?
            .into_inner();
        tcp.write_all(b"HEAD / HTTP/1.0\r\n\r\n").await.ok()?;
        let mut first = [0; HTTP_1.len()];
        tcp.read_exact(&mut first).await.ok()?;
        Some(first == *HTTP_1)
    };
    let answer = tokio::time::timeout(HTTP_1_PATIENCE, asked).await;
    matches!(answer, Ok(Some(true)))
}

/// Whether the first bytes from the server look like HTTP/2.
fn check(first: &[u8]) -> Result<(), Refusal> {
    let why = match first {
        [] => {
            let why = "it closed the connection at once; does it have too many connections, or is it another service?";
            return Err(Refusal::Passing(why.to_owned()));
        }
        [TLS_ALERT, ..] => {
            "it speaks TLS, but this connection is plaintext; give --tls-ca, and --tls-cert and --tls-key if it \
             requires a certificate"
                .to_owned()
        }
        first if first.starts_with(HTTP_1) => {
            "it speaks HTTP/1, not gRPC; is this an admin port, or another service?".to_owned()
        }
        // The length of the frame, which is short, and its type.
        [0] | [0, _] | [0, _, _] | [0, _, _, SETTINGS, ..] => return Ok(()),
        other => format!(
            "it does not speak gRPC: it says \"{}\"; is it another service?",
            other[..other.len().min(FIRST_BYTES)].escape_ascii()
        ),
    };
    Err(Refusal::Lasting(why))
}

fn refusal(error: &io::Error) -> Refusal {
    match tls_cause(error) {
        Some(cause) => Refusal::Lasting(tls::explain(cause)),
        None => Refusal::Passing(format!(
            "it ended the TLS handshake ({error}); does it speak TLS?"
        )),
    }
}

/// The client side of a connection.
#[derive(Debug)]
pub(crate) struct Transport {
    stage: Stage,
    /// The part of the preface that hyper has yet to write. It has already been sent, so it is skipped.
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

    /// Skips `bytes` as far as they are the preface; `None` once all of the preface has been skipped.
    fn skip_preface(&mut self, bytes: &[u8]) -> Option<io::Result<usize>> {
        if self.preface.is_empty() {
            return None;
        }
        let len = bytes.len().min(self.preface.len());
        let (sent, rest) = self.preface.split_at(len);
        if sent != &bytes[..len] {
            return Some(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the first bytes on an HTTP/2 connection were not the preface",
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
        if let Some(skipped) = self.skip_preface(bytes) {
            return Poll::Ready(skipped);
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
            && let Some(skipped) = self.skip_preface(first)
        {
            return Poll::Ready(skipped);
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
    use tokio::net::TcpListener;

    /// Calls a server that answers the preface with `first`; returns the connection and what the server received.
    async fn call(first: &'static [u8]) -> (Result<Transport, String>, [u8; PREFACE.len()]) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let server = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut received = [0; PREFACE.len()];
            peer.read_exact(&mut received).await.unwrap();
            peer.write_all(first).await.unwrap();
            received
        };
        let (dialled, received) = tokio::join!(dial(uri.parse().unwrap(), None, None), server);
        let made = dialled.map(TokioIo::into_inner);
        (made.map_err(|error| error.to_string()), received)
    }

    #[tokio::test]
    async fn the_preface_is_sent_once() {
        let (made, received) = call(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
        assert_eq!(received, PREFACE);
        let mut made = made.unwrap();
        made.write_all(&PREFACE[..9]).await.unwrap();
        made.write_all(&PREFACE[9..]).await.unwrap();
        assert!(made.preface.is_empty(), "bytes are still skipped");
        let mut answer = Vec::new();
        made.read_to_end(&mut answer).await.unwrap();
        assert_eq!(
            answer,
            [0, 0, 0, 4, 0, 0, 0, 0, 0],
            "the first bytes were lost"
        );
    }

    /// As hyper's HTTP/1 server does.
    #[tokio::test]
    async fn an_http_1_server_that_hangs_up_on_http_2_is_recognised() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let server = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.read_exact(&mut [0; 9]).await.unwrap();
            drop(peer);
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.read_exact(&mut [0; 4]).await.unwrap();
            peer.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n")
                .await
                .unwrap();
        };
        let (dialled, ()) = tokio::join!(dial(uri.parse().unwrap(), None, None), server);
        let error = dialled.map(TokioIo::into_inner).unwrap_err().to_string();
        assert!(error.contains("it speaks HTTP/1"), "{error}");
    }

    #[tokio::test]
    async fn servers_of_other_protocols_are_recognised() {
        for (first, why) in [
            (&[21, 3, 3, 0, 2, 2, 50][..], "it speaks TLS"),
            (b"HTTP/1.1 400 Bad Request\r\n", "HTTP/1"),
            (b"SSH-2.0-x\r\n", "it says \"SSH-2.0-x\\r\\n\""),
            (b"-ERR unknown command\r\n", "-ERR"),
            (&[0, 0, 8, 6, 0, 0, 0, 0, 0], "does not speak gRPC"),
            (b"", "closed the connection"),
        ] {
            let error = call(first).await.0.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}

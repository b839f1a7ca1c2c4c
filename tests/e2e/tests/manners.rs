//! What any gRPC client may expect, and what one client must not do to another.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use e2e::client::{Client, request};
use e2e::cluster::{Cluster, Process, Shape};
use e2e::model;
use e2e::wait::{met, until};
use offshoot_e2e as e2e;
use proto::v1;
use raw::Connection;
use runtime::Caller;
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const LIMIT: Duration = Duration::from_secs(60);
const SHAPE: Shape = Shape {
    drafts: 0,
    qualifiers: 0,
    target_pace: 0,
};

/// A request whose text need not be text.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyBytes {
    #[prost(bytes = "vec", tag = "1")]
    text: Vec<u8>,
}

/// A coordinator alone, whose target is nowhere.
fn coordinator(flags: &[&str], log: &std::path::Path, descriptors: Option<u32>) -> Process {
    let tokenizer = model("target").display().to_string();
    let arguments = [
        "coordinator",
        "--tokenizer",
        &tokenizer,
        "--target",
        "127.0.0.1:1",
    ];
    let arguments = arguments.iter().chain(flags);
    let arguments: Vec<String> = arguments.map(|&word| word.to_owned()).collect();
    Process::start_logged(&arguments, log, descriptors).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_must_not_hold_is_an_invalid_argument() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = coordinator(&[], &folder.path().join("log"), None);
    let client = Client::connect(&coordinator.addr, 0).await.unwrap();
    let wrong_rule = v1::Acceptance {
        rule: 9,
        ..v1::Acceptance::default()
    };
    for (wrong, part) in [
        (
            v1::GenerateRequest {
                logprobs: Some(0),
                logprobs_mode: 7,
                ..request("fn", 4, 0.0, "ar")
            },
            "logprobs_mode is 7",
        ),
        (
            v1::GenerateRequest {
                acceptance: Some(wrong_rule),
                ..request("fn", 4, 0.0, "ar")
            },
            "acceptance.rule",
        ),
    ] {
        let status = client.generate(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(part), "{status}");
    }
    let channel = Caller::default().connect(&coordinator.addr).await.unwrap();
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let asked = Request::new(AnyBytes {
        text: vec![0xff, 0xfe],
    });
    let path = PathAndQuery::from_static("/offshoot.v1.Generation/Generate");
    let codec = ProstCodec::<AnyBytes, v1::GenerateEvent>::default();
    let status = grpc.server_streaming(asked, path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("UTF-8"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_for_every_name_that_may_be_asked_for() {
    let cluster = Cluster::start(SHAPE).unwrap();
    Client::connect(&cluster.coordinator.addr, 1).await.unwrap();
    for (process, service, other) in [
        (
            &cluster.coordinator,
            "offshoot.v1.Generation",
            "offshoot.v1.Worker",
        ),
        (
            &cluster.target,
            "offshoot.v1.Worker",
            "offshoot.v1.Generation",
        ),
    ] {
        let channel = Caller::default().connect(&process.addr).await.unwrap();
        let mut health = HealthClient::new(channel);
        for name in ["", "liveness", "readiness", service] {
            // Somebody who is told of the target may ask before health is.
            until(LIMIT, async || {
                let service = name.to_owned();
                let reply = health.check(HealthCheckRequest { service }).await?;
                let status = reply.into_inner().status;
                Ok(met(status == 1, &format!("{name:?} is {status}")))
            })
            .await
            .unwrap();
        }
        let service = other.to_owned();
        let status = health.check(HealthCheckRequest { service }).await;
        assert_eq!(status.unwrap_err().code(), Code::NotFound, "{other:?}");
    }
    // What is alive need not be ready.
    let folder = tempfile::tempdir().unwrap();
    let lonely = coordinator(&[], &folder.path().join("log"), None);
    let channel = Caller::default().connect(&lonely.addr).await.unwrap();
    let mut health = HealthClient::new(channel);
    for (name, serving) in [
        ("", 2),
        ("readiness", 2),
        ("offshoot.v1.Generation", 2),
        ("liveness", 1),
    ] {
        let service = name.to_owned();
        let reply = health.check(HealthCheckRequest { service }).await;
        assert_eq!(reply.unwrap().into_inner().status, serving, "{name:?}");
    }
}

/// The services that a process describes.
async fn described(addr: &str) -> Result<Vec<String>, tonic::Status> {
    let channel = Caller::default().connect(addr).await.unwrap();
    let asked = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let replies = client.server_reflection_info(tokio_stream::once(asked));
    let reply = replies.await?.into_inner().next().await.unwrap()?;
    let Some(MessageResponse::ListServicesResponse(list)) = reply.message_response else {
        panic!("{reply:?}");
    };
    Ok(list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_described_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let open = coordinator(&["--reflection"], &folder.path().join("open"), None);
    let services = described(&open.addr).await.unwrap();
    for name in ["offshoot.v1.Generation", "grpc.health.v1.Health"] {
        assert!(
            services.iter().any(|service| service == name),
            "{services:?}"
        );
    }
    let silent = coordinator(&[], &folder.path().join("silent"), None);
    let status = described(&silent.addr).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

/// As many calls as a connection may have open, all cancelled before the server has begun with one: they reach it in one
/// piece.
#[tokio::test(flavor = "multi_thread")]
async fn many_quick_cancels_on_a_connection_break_no_neighbour() {
    let cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 1).await.unwrap();
    let mut connection = Connection::open(&cluster.coordinator.addr);
    // A neighbour that has begun before, and whose stream never ends.
    connection.call(1, "/grpc.health.v1.Health/Watch", &[]);
    assert_eq!(connection.message_of(1), [0x08, 1], "it is serving");
    let mut burst = Vec::new();
    for number in 0..1000 {
        let stream = 3 + 2 * number;
        // The text "fn", and sixteen tokens.
        let request = [0x0a, 2, b'f', b'n', 0x18, 16];
        burst.extend(connection.opening(stream, "/offshoot.v1.Generation/Generate", &request));
        burst.extend(raw::reset(stream));
    }
    connection.send(&burst);
    // And one that begins behind them.
    connection.call(2003, "/grpc.health.v1.Health/Check", &[]);
    assert_eq!(connection.message_of(2003), [0x08, 1]);
    let others = client.generate(request("fn main() {", 8, 0.0, "ar")).await;
    assert_eq!(others.unwrap().ids.len(), 8);
    client.wait_for_sessions(|open| open == 0).await.unwrap();

    // Beyond the limit the connection ends, and says why.
    let mut connection = Connection::open(&cluster.coordinator.addr);
    let mut burst = Vec::new();
    for number in 0..20_000 {
        let stream = 1 + 2 * number;
        burst.extend(connection.opening(stream, "/offshoot.v1.Generation/Generate", &[]));
        burst.extend(raw::reset(stream));
    }
    connection.send_if_open(&burst);
    assert_eq!(connection.goodbye(), raw::ENHANCE_YOUR_CALM);
    let others = client.generate(request("fn main() {", 8, 0.0, "ar")).await;
    assert_eq!(others.unwrap().ids.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_streams_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = coordinator(&[], &folder.path().join("log"), None);
    let mut connection = Connection::open(&coordinator.addr);
    let stream = |number: u32| 1 + 2 * number;
    // Streams that never end.
    for number in 0..=1024 {
        connection.call(stream(number), "/grpc.health.v1.Health/Watch", &[]);
    }
    for number in 0..1024 {
        // It lives and has no target: NOT_SERVING.
        assert_eq!(connection.message_of(stream(number)), [0x08, 2]);
    }
    assert_eq!(connection.reset_of(stream(1024)), raw::REFUSED_STREAM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_descriptors_says_so_now_and_then_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let coordinator = coordinator(&[], &log, Some(48));
    let begun = Instant::now();
    let mut open: Vec<TcpStream> = Vec::new();
    for _ in 0..100 {
        open.push(TcpStream::connect(&coordinator.addr).unwrap());
    }
    let said = || {
        let log = std::fs::read_to_string(&log).unwrap();
        (log.lines())
            .filter(|line| line.contains("cannot accept connections"))
            .count()
    };
    until(LIMIT, async || Ok(met(said() > 0, "nothing was logged")))
        .await
        .unwrap();
    // The first is closed when it has not sent a preface for ten seconds: until then nothing can be accepted.
    open[0].set_read_timeout(Some(LIMIT)).unwrap();
    let _ = open[0].read_to_end(&mut Vec::new());
    assert!(begun.elapsed() > Duration::from_secs(5), "it was closed");
    assert!(said() <= 10, "{} lines", said());
    drop(open);
    until(LIMIT, async || {
        let connected = Caller::default().connect(&coordinator.addr).await;
        Ok(connected.map(drop).map_err(|error| error.to_string()))
    })
    .await
    .unwrap();
}

/// One line for a request that fails after it was taken in, none for one that is refused, waits, or is hung up on.
#[tokio::test(flavor = "multi_thread")]
async fn requests_do_not_fill_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let coordinator = coordinator(&["--failover-wait", "1"], &log, None);
    let client = Client::connect(&coordinator.addr, 0).await.unwrap();
    let lines = || std::fs::read_to_string(&log).unwrap().lines().count();
    // Of the target that is nowhere.
    until(LIMIT, async || Ok(met(lines() > 0, "nothing was logged")))
        .await
        .unwrap();
    let before = lines();
    for _ in 0..50 {
        let status = client
            .generate(request("fn", 4, -1.0, "ar"))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    for _ in 0..50 {
        let asked = Request::new(request("fn", 4, 0.0, "ar"));
        let channel = Caller::default().connect(&coordinator.addr).await.unwrap();
        let mut outside = v1::generation_client::GenerationClient::new(channel);
        drop(outside.generate(asked).await.unwrap());
    }
    client.wait_for_completions(0).await.unwrap();
    let mut failing = Vec::new();
    for _ in 0..20 {
        let client = client.clone();
        failing.push(tokio::spawn(async move {
            client
                .generate(request("fn", 4, 0.0, "ar"))
                .await
                .unwrap_err()
        }));
    }
    for failed in failing {
        assert_eq!(failed.await.unwrap().code(), Code::Unavailable);
    }
    let said = lines() - before;
    assert!(
        said <= 25,
        "{said} lines of {}",
        std::fs::read_to_string(&log).unwrap()
    );
}

/// HTTP/2 by hand (RFC 9113), because no client library sends what is sent here.
mod raw {
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    /// The error code by which a server ends a connection that asks too much of it.
    pub(super) const ENHANCE_YOUR_CALM: u32 = 11;
    /// The one of a stream that was not looked at; it may be tried again.
    pub(super) const REFUSED_STREAM: u32 = 7;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    pub(super) struct Connection {
        tcp: TcpStream,
        addr: String,
        /// The data of each stream.
        streams: BTreeMap<u32, Vec<u8>>,
        /// The error codes of streams that the server has reset.
        resets: BTreeMap<u32, u32>,
        goodbye: Option<u32>,
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// The end of a stream that its client no longer wants (CANCEL).
    pub(super) fn reset(stream: u32) -> Vec<u8> {
        frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
    }

    impl Connection {
        pub(super) fn open(addr: &str) -> Self {
            let mut tcp = TcpStream::connect(addr).unwrap();
            tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
            tcp.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
            Connection {
                tcp,
                addr: addr.to_owned(),
                streams: BTreeMap::new(),
                resets: BTreeMap::new(),
                goodbye: None,
            }
        }

        /// The frames of a call with one message.
        pub(super) fn opening(&self, stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
            let mut block = Vec::new();
            for (name, value) in [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", &self.addr),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ] {
                // A literal that is not indexed, with a new name (RFC 7541, section 6.2.2).
                block.push(0);
                for text in [name, value] {
                    block.push(text.len() as u8);
                    block.extend(text.bytes());
                }
            }
            let mut data = vec![0];
            data.extend((message.len() as u32).to_be_bytes());
            data.extend(message);
            let mut frames = frame(HEADERS, END_HEADERS, stream, &block);
            frames.extend(frame(DATA, END_STREAM, stream, &data));
            frames
        }

        pub(super) fn send(&mut self, frames: &[u8]) {
            self.tcp.write_all(frames).unwrap();
        }

        /// The same, to a server that may end the connection meanwhile.
        pub(super) fn send_if_open(&mut self, frames: &[u8]) {
            let _ = self.tcp.write_all(frames);
        }

        pub(super) fn call(&mut self, stream: u32, path: &str, message: &[u8]) {
            let frames = self.opening(stream, path, message);
            self.send(&frames);
        }

        /// Reads a frame; `None` at the end of the connection.
        fn read(&mut self) -> Option<()> {
            let mut head = [0; 9];
            self.tcp.read_exact(&mut head).ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length];
            self.tcp.read_exact(&mut payload).ok()?;
            let kind = head[3];
            if kind == GOAWAY {
                let code = payload[4..8].try_into().unwrap();
                self.goodbye = Some(u32::from_be_bytes(code));
            }
            if kind == RST_STREAM {
                let code = payload[..4].try_into().unwrap();
                self.resets
                    .entry(stream)
                    .or_insert(u32::from_be_bytes(code));
            }
            if kind == DATA {
                self.streams.entry(stream).or_default().extend(payload);
            }
            Some(())
        }

        /// The first message of a stream.
        pub(super) fn message_of(&mut self, stream: u32) -> Vec<u8> {
            loop {
                // A flag and the length come before it.
                if let Some(message) = self.streams.get(&stream).and_then(|data| data.get(5..))
                    && !message.is_empty()
                {
                    return message.to_vec();
                }
                assert_eq!(self.goodbye, None, "the connection ends");
                self.read().expect("the connection lives");
            }
        }

        /// The error code with which the server resets a stream.
        pub(super) fn reset_of(&mut self, stream: u32) -> u32 {
            while !self.resets.contains_key(&stream) {
                self.read().expect("the connection lives");
            }
            self.resets[&stream]
        }

        /// The error code with which the server ends the connection.
        pub(super) fn goodbye(&mut self) -> u32 {
            while self.goodbye.is_none() {
                self.read().expect("a server says why it ends a connection");
            }
            self.goodbye.unwrap()
        }
    }
}

//! Requests whose messages never arrive: what they hold is bounded, and others are served.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Frame;
use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::Process;
use offshoot_e2e::wait::{met, until};
use offshoot_e2e::{model, root, usage};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::transport::Channel;

/// The body of a request, of which the last byte never comes.
struct Unfinished(Option<Vec<u8>>);

impl Unfinished {
    fn new(bytes: u32) -> Self {
        let mut body = vec![0];
        body.extend(bytes.to_be_bytes());
        body.resize(body.len() + bytes as usize - 1, 0);
        Unfinished(Some(body))
    }
}

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes.into())))),
            None => Poll::Pending,
        }
    }
}

type Calls = JoinSet<Result<http::Response<Body>, tonic::transport::Error>>;

/// Calls of one connection, with messages of so many bytes.
async fn call(addr: &str, calls: usize, bytes: u32) -> Calls {
    let channel: Channel = runtime::connect(addr).await.unwrap();
    let mut running = JoinSet::new();
    for _ in 0..calls {
        let uri = format!("http://{addr}/offshoot.v1.Generation/Generate");
        let request = http::Request::post(uri).header("content-type", "application/grpc");
        let request = request.body(Body::new(Unfinished::new(bytes))).unwrap();
        let mut channel = channel.clone();
        running.spawn(async move {
            std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
            channel.call(request).await
        });
    }
    running
}

/// A coordinator and a target without weights.
async fn cluster() -> (Process, Process, Client) {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let model = model("target").display().to_string();
    let profile = root().join("models/profiles/nano.json");
    let profile = profile.display();
    let target = format!("target-worker --model {model} --synthetic {profile}");
    let target = Process::start(&words(target)).unwrap();
    let coordinator = format!("coordinator --tokenizer {model} --target {}", target.addr);
    let coordinator = Process::start(&words(coordinator)).unwrap();
    let client = Client::connect(&coordinator.addr, 1).await.unwrap();
    (target, coordinator, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_of_them_has_a_bound() {
    let (_target, coordinator, client) = cluster().await;
    let Some(before) = usage::of(coordinator.id()) else {
        println!("skipped: this system does not tell what a process uses");
        return;
    };
    let mut calls = call(&coordinator.addr, 64, 4_000_000).await;
    // Until it holds what it takes, and then no more comes for a hundred looks, 10 ms apart.
    let (mut held, mut same) = (0.0, 0);
    let full = until(Duration::from_secs(60), async || {
        let now = usage::of(coordinator.id()).unwrap().resident - before.resident;
        if now > 16.0 && (now - held).abs() < 1.0 {
            same += 1;
        } else {
            (held, same) = (now, 0);
        }
        Ok(met(same >= 100, &format!("{now:.1} MiB, and it changes")))
    });
    full.await.unwrap();
    println!("{held:.1} MiB held of 244 sent");
    assert!(held < 64.0, "{held} MiB");

    let short = client.generate(request("fn main() {", 4, 0.0, "ar"));
    short.await.unwrap();
    calls.shutdown().await;
    // Too long for the context, which is known when all of it is there.
    let long = client.generate(request(&"long ".repeat(400_000), 4, 0.0, "ar"));
    let status = tokio::time::timeout(Duration::from_secs(30), long)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_256_of_a_connection_wait() {
    let (_target, coordinator, client) = cluster().await;
    let mut calls = call(&coordinator.addr, 300, 100).await;
    for _ in 256..300 {
        let answer = calls.join_next().await.unwrap().unwrap().unwrap();
        let status = tonic::Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
    }
    let others = tokio::time::timeout(Duration::from_millis(300), calls.join_next()).await;
    assert!(others.is_err(), "{others:?}");
    // On another connection.
    client
        .generate(request("fn main() {", 4, 0.0, "ar"))
        .await
        .unwrap();
}

//! A server over loopback: health, limits, refusals and shutdown.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use offshoot_runtime::{
    BindError, Drain, Drained, Listener, NetArgs, Readiness, ServerLimits, connect, health, serve,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Generous: reached only when something is broken.
const LIMIT: Duration = Duration::from_secs(30);

struct Running {
    addr: SocketAddr,
    drain: Drain,
    readiness: Readiness,
}

async fn start(args: NetArgs, readiness: Readiness) -> Running {
    let drain = Drain::new();
    let listener = Listener::bind(&args).await.unwrap();
    let addr = listener.local_addr();
    let router = serve::server(&ServerLimits::default())
        .add_service(health::service(&readiness, &drain, &[]).await);
    drain.spawn(serve::serve(listener, router, drain.clone()));
    Running {
        addr,
        drain,
        readiness,
    }
}

async fn client(addr: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(connect(&addr.to_string()).await.unwrap())
}

fn service(name: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: name.to_owned(),
    }
}

#[tokio::test]
async fn health_follows_latches_and_drain() {
    let readiness = Readiness::new();
    let latch = readiness.latch();
    let running = start(NetArgs::default(), readiness).await;
    assert_ne!(running.addr.port(), 0);
    let mut client = client(running.addr).await;

    let status = client.check(service("liveness")).await.unwrap();
    assert_eq!(status.into_inner().status, ServingStatus::Serving as i32);
    let unknown = client.check(service("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);

    let mut seen = client.watch(service("")).await.unwrap().into_inner();
    let mut next = async || {
        tokio::time::timeout(LIMIT, seen.message())
            .await
            .expect("a watch message in time")
            .unwrap()
            .map(|message| message.status)
    };
    assert_eq!(next().await, Some(ServingStatus::NotServing as i32));
    drop(latch);
    assert_eq!(next().await, Some(ServingStatus::Serving as i32));
    assert!(running.readiness.is_ready());
    let ready = client.check(service("readiness")).await.unwrap();
    assert_eq!(ready.into_inner().status, ServingStatus::Serving as i32);

    let lost = running.readiness.latch();
    assert_eq!(next().await, Some(ServingStatus::NotServing as i32));
    drop(lost);
    assert_eq!(next().await, Some(ServingStatus::Serving as i32));

    running.drain.begin();
    assert_eq!(next().await, Some(ServingStatus::NotServing as i32));
    assert_eq!(next().await, None, "the watch outlived the drain");
    assert_eq!(running.drain.shutdown(LIMIT).await, Drained::Clean);
    assert!(connect(&running.addr.to_string()).await.is_err());
}

#[tokio::test]
async fn the_port_answers_while_it_is_served() {
    let listener = Listener::bind(&NetArgs::default()).await.unwrap();
    let port = listener.port();
    assert!(!port.answers().await, "nobody accepts yet");
    let (readiness, drain) = (Readiness::new(), Drain::new());
    let router = serve::server(&ServerLimits::default())
        .add_service(health::service(&readiness, &drain, &[]).await);
    drain.spawn(serve::serve(listener, router, drain.clone()));
    // It takes a second at most, and a machine may be away for that long.
    let mut tries = 0;
    while !(port.answers().await && port.clone().answers().await) {
        tries += 1;
        assert!(tries < 30, "it does not answer");
    }
    drain.shutdown(LIMIT).await;
    assert!(!port.answers().await, "the port is closed");
}

#[tokio::test]
async fn a_port_that_accepts_no_more_connections_does_not_answer() {
    let args = NetArgs {
        max_connections: 1,
        ..NetArgs::default()
    };
    let listener = Listener::bind(&args).await.unwrap();
    let (port, addr) = (listener.port(), listener.local_addr());
    let (readiness, drain) = (Readiness::new(), Drain::new());
    let router = serve::server(&ServerLimits::default())
        .add_service(health::service(&readiness, &drain, &[]).await);
    drain.spawn(serve::serve(listener, router, drain.clone()));
    let mut client = client(addr).await;
    client.check(service("")).await.unwrap();
    assert!(!port.answers().await);
}

#[tokio::test]
async fn a_process_that_was_never_ready_drains_too() {
    let readiness = Readiness::new();
    let _latch = readiness.latch();
    let running = start(NetArgs::default(), readiness).await;
    assert_eq!(running.drain.shutdown(LIMIT).await, Drained::Clean);
}

#[tokio::test]
async fn plaintext_binds_to_loopback_unless_allowed() {
    let open = NetArgs {
        host: "0.0.0.0".to_owned(),
        ..NetArgs::default()
    };
    let refused = Listener::bind(&open).await.unwrap_err();
    assert!(matches!(refused, BindError::Plaintext { .. }));
    assert!(refused.to_string().contains("--allow-plaintext-bind"));
    let allowed = NetArgs {
        allow_plaintext_bind: true,
        ..open
    };
    assert!(Listener::bind(&allowed).await.is_ok());
}

#[tokio::test]
async fn a_taken_port_and_a_bad_host_have_typed_errors() {
    let first = Listener::bind(&NetArgs::default()).await.unwrap();
    let again = NetArgs {
        port: first.local_addr().port(),
        ..NetArgs::default()
    };
    assert!(matches!(
        Listener::bind(&again).await.unwrap_err(),
        BindError::Bind { addr, .. } if addr == first.local_addr()
    ));
    let nowhere = NetArgs {
        host: "not a host".to_owned(),
        ..NetArgs::default()
    };
    assert!(matches!(
        Listener::bind(&nowhere).await.unwrap_err(),
        BindError::Resolve { .. }
    ));
}

#[tokio::test]
async fn a_connection_above_the_cap_is_closed_and_a_closed_one_makes_room() {
    let args = NetArgs {
        max_connections: 1,
        ..NetArgs::default()
    };
    let running = start(args, Readiness::new()).await;
    let mut first = client(running.addr).await;
    first.check(service("liveness")).await.unwrap();

    let mut second = TcpStream::connect(running.addr).await.unwrap();
    assert!(
        ended(&mut second).await,
        "the second connection was accepted"
    );
    first.check(service("liveness")).await.unwrap();

    drop(first);
    // The server learns of the closed connection in its own time; every attempt is a real exchange, so this neither
    // sleeps nor spins.
    tokio::time::timeout(LIMIT, async {
        loop {
            let Ok(channel) = connect(&running.addr.to_string()).await else {
                continue;
            };
            if HealthClient::new(channel)
                .check(service("liveness"))
                .await
                .is_ok()
            {
                return;
            }
        }
    })
    .await
    .expect("the closed connection never made room");
}

/// Reads until the server closes the connection, and ignores what it sends before (HTTP/2 settings).
async fn ended(stream: &mut TcpStream) -> bool {
    let mut ignored = Vec::new();
    match tokio::time::timeout(LIMIT, stream.read_to_end(&mut ignored)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionReset,
        Err(_) => false,
    }
}

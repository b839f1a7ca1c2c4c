//! TLS over loopback: which peers are accepted, which are rejected and with what reason, and replaced certificates.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

#[path = "tls/authority.rs"]
mod authority;

use std::net::SocketAddr;
use std::time::Duration;

use authority::{Authority, Folder};
use offshoot_runtime::tls::Reloaded;
use offshoot_runtime::{
    Caller, ClientAuth, Drain, Listener, NetArgs, Purpose, Readiness, ServerLimits, Tls, TlsArgs,
    connect, health, serve,
};
use rcgen::ExtendedKeyUsagePurpose as Usage;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Generous: reached only when something is broken.
const LIMIT: Duration = Duration::from_secs(30);
const LOCAL: &[&str] = &["127.0.0.1", "localhost"];
const BOTH: &[Usage] = &[Usage::ServerAuth, Usage::ClientAuth];

struct Server {
    addr: SocketAddr,
    tls: Tls,
    readiness: Readiness,
    drain: Drain,
}

async fn start(args: &TlsArgs, auth: ClientAuth) -> Server {
    let tls = args.load(Purpose::Serve).unwrap().unwrap();
    let acceptor = tls.acceptor(auth).unwrap();
    let listener = Listener::bind_with(&NetArgs::default(), Some(acceptor))
        .await
        .unwrap();
    let addr = listener.local_addr();
    let drain = Drain::new();
    let readiness = Readiness::new();
    let router = serve::server(&ServerLimits::default())
        .add_service(health::service(&readiness, &drain, &[]).await);
    drain.spawn(serve::serve(listener, router, drain.clone()));
    Server {
        addr,
        tls,
        readiness,
        drain,
    }
}

fn caller(args: &TlsArgs) -> Caller {
    Caller::new(args.load(Purpose::Call).unwrap())
}

async fn check(channel: Channel) -> Result<(), tonic::Status> {
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest::default();
    let reply = client.check(request).await?.into_inner();
    assert_eq!(reply.status, ServingStatus::Serving as i32);
    Ok(())
}

/// Connects and calls.
async fn call(caller: &Caller, addr: SocketAddr) -> Result<(), String> {
    let channel = (caller.connect(&addr.to_string()).await).map_err(|error| error.to_string())?;
    check(channel).await.map_err(|status| status.to_string())
}

/// A server, and a client identity that it accepts.
async fn pair(auth: ClientAuth) -> (Server, Authority, Folder) {
    let authority = Authority::new("inside");
    let server = Folder::new(&authority, &authority.issue(LOCAL, BOTH));
    let client = Folder::new(&authority, &authority.issue(&[], &[Usage::ClientAuth]));
    let running = start(&server.args(), auth).await;
    (running, authority, client)
}

#[tokio::test]
async fn peers_with_certificates_of_one_ca_connect() {
    let (server, _, client) = pair(ClientAuth::Required).await;
    assert_eq!(call(&caller(&client.args()), server.addr).await, Ok(()));
}

#[tokio::test]
async fn addresses_may_say_https_but_not_http() {
    let (server, _, client) = pair(ClientAuth::Required).await;
    let caller = caller(&client.args());
    let channel = caller.connect(&format!("https://{}", server.addr)).await;
    assert!(check(channel.unwrap()).await.is_ok());
    let error = caller
        .connect(&format!("http://{}", server.addr))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("plaintext"), "{error}");
    let error = connect(&format!("https://{}", server.addr))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("needs TLS"), "{error}");
}

#[tokio::test]
async fn a_client_that_is_not_trusted_is_told_why() {
    let (server, authority, good) = pair(ClientAuth::Required).await;
    let foreign = Authority::new("outside");
    let mut without = good.args();
    (without.tls_cert, without.tls_key) = (None, None);
    let strange = Folder::new(&authority, &foreign.issue(&[], &[Usage::ClientAuth]));
    // Loaded as a server's identity, or it would be rejected here instead of by the server.
    let worker = Folder::new(&authority, &authority.issue(LOCAL, &[Usage::ServerAuth]));
    let worker = Caller::new(worker.args().load(Purpose::Serve).unwrap());
    for (name, caller, why) in [
        ("none", caller(&without), "requires a certificate"),
        ("foreign", caller(&strange.args()), "does not trust the CA"),
        ("a server's", worker, "rejected our certificate"),
    ] {
        let error = call(&caller, server.addr).await.unwrap_err();
        assert!(error.contains(why), "{name}: {error}");
    }
    assert_eq!(call(&caller(&good.args()), server.addr).await, Ok(()));
}

#[tokio::test]
async fn clients_may_be_allowed_without_a_certificate_but_not_with_an_invalid_one() {
    let (server, authority, good) = pair(ClientAuth::Optional).await;
    let mut without = good.args();
    (without.tls_cert, without.tls_key) = (None, None);
    assert_eq!(call(&caller(&without), server.addr).await, Ok(()));
    let foreign = Authority::new("outside");
    let strange = Folder::new(&authority, &foreign.issue(&[], &[Usage::ClientAuth]));
    let refused = call(&caller(&strange.args()), server.addr).await;
    assert!(refused.is_err(), "a foreign certificate was accepted");
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_not_called() {
    let authority = Authority::new("inside");
    let foreign = Authority::new("outside");
    let client = Folder::new(&authority, &authority.issue(&[], &[Usage::ClientAuth]));
    for (identity, why) in [
        (foreign.issue(LOCAL, BOTH), "is not signed by a CA"),
        (authority.issue(&["elsewhere.example"], BOTH), "is for"),
    ] {
        let server = start(
            &Folder::new(&authority, &identity).args(),
            ClientAuth::Required,
        )
        .await;
        let error = call(&caller(&client.args()), server.addr)
            .await
            .unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn the_name_to_expect_can_be_given() {
    let authority = Authority::new("inside");
    let identity = authority.issue(&["elsewhere.example"], BOTH);
    let folder = Folder::new(&authority, &identity);
    let server = start(&folder.args(), ClientAuth::Required).await;
    let mut args = folder.args();
    args.tls_server_name = Some("elsewhere.example".to_owned());
    assert_eq!(call(&caller(&args), server.addr).await, Ok(()));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_its_owner_and_by_its_peers() {
    let (server, authority, _) = pair(ClientAuth::Required).await;
    let lapsing = Folder::new(&authority, &authority.issue(&[], BOTH));
    // In use before it expires, as in a process whose certificate nobody replaced.
    let expired = authority.expired(LOCAL, BOTH);
    let folder = Folder::new(&authority, &expired);
    let error = folder.args().load(Purpose::Call).unwrap_err().to_string();
    assert!(error.contains("expired 1 d ago"), "{error}");
    let running = lapsing.args().load(Purpose::Call).unwrap().unwrap();
    lapsing.write(&authority, &expired);
    assert!(
        running.reload().is_err(),
        "an expired certificate was accepted"
    );
    assert_eq!(
        call(&Caller::new(Some(running)), server.addr).await,
        Ok(()),
        "the current identity was not kept"
    );
    let refused = authority::handshake(&authority, &expired, server.addr).await;
    assert!(refused.contains("CertificateExpired"), "{refused}");
}

#[tokio::test]
async fn plaintext_and_tls_recognise_each_other() {
    let (server, _, client) = pair(ClientAuth::Required).await;
    let error = connect(&server.addr.to_string()).await.unwrap_err();
    assert!(error.to_string().contains("it speaks TLS"), "{error}");

    let drain = Drain::new();
    let plain = Listener::bind(&NetArgs::default()).await.unwrap();
    let addr = plain.local_addr();
    let router = serve::server(&ServerLimits::default())
        .add_service(health::service(&Readiness::new(), &drain, &[]).await);
    drain.spawn(serve::serve(plain, router, drain.clone()));
    let error = call(&caller(&client.args()), addr).await.unwrap_err();
    assert!(error.contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn a_peer_without_a_handshake_delays_no_other() {
    let (server, _, client) = pair(ClientAuth::Required).await;
    let _silent = TcpStream::connect(server.addr).await.unwrap();
    assert_eq!(call(&caller(&client.args()), server.addr).await, Ok(()));
}

#[tokio::test]
async fn new_connections_see_the_new_identity_and_streams_live_on() {
    let old = Authority::new("old");
    let folder = Folder::new(&old, &old.issue(LOCAL, BOTH));
    let server = start(&folder.args(), ClientAuth::Required).await;
    let before = caller(&folder.args());
    let channel = before.connect(&server.addr.to_string()).await.unwrap();
    let mut watch = HealthClient::new(channel)
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        let message = tokio::time::timeout(LIMIT, watch.message()).await;
        message.expect("a message in time").unwrap().unwrap().status
    };
    assert_eq!(next().await, ServingStatus::Serving as i32);

    assert_eq!(server.tls.reload().unwrap(), Reloaded::Unchanged);
    let new = Authority::new("new");
    folder.write(&new, &new.issue(LOCAL, BOTH));
    assert_eq!(server.tls.reload().unwrap(), Reloaded::Changed);

    let error = call(&before, server.addr).await.unwrap_err();
    assert!(error.contains("is not signed by a CA"), "{error}");
    assert_eq!(call(&caller(&folder.args()), server.addr).await, Ok(()));
    // The old stream continues, and still delivers new messages.
    server.drain.begin();
    assert_eq!(next().await, ServingStatus::NotServing as i32);
    assert!(server.readiness.is_ready());
}

#[tokio::test]
async fn new_files_are_loaded_after_bad_ones() {
    let authority = Authority::new("inside");
    let folder = Folder::new(&authority, &authority.issue(LOCAL, BOTH));
    let server = start(&folder.args(), ClientAuth::Required).await;
    (server
        .tls
        .follow_every(Duration::from_millis(5), &server.drain))
    .unwrap();
    std::fs::write(folder.path("cert.pem"), "half a file").unwrap();
    let new = Authority::new("new");
    folder.write(&new, &new.issue(LOCAL, BOTH));
    let caller = caller(&folder.args());
    // Every attempt is a real handshake, so this neither sleeps nor spins.
    let reloaded = async { while call(&caller, server.addr).await.is_err() {} };
    (tokio::time::timeout(LIMIT, reloaded).await).expect("the new files are in use");
}

#[tokio::test]
async fn bad_new_files_change_nothing() {
    let (server, authority, client) = pair(ClientAuth::Required).await;
    let other = Authority::new("other");
    let folder = Folder::new(&authority, &authority.issue(LOCAL, BOTH));
    let tls = folder.args().load(Purpose::Serve).unwrap().unwrap();
    let (good, strange) = (authority.issue(LOCAL, BOTH), other.issue(LOCAL, BOTH));
    std::fs::write(folder.path("cert.pem"), &strange.cert).unwrap();
    assert!(
        tls.reload()
            .unwrap_err()
            .to_string()
            .contains("does not belong")
    );
    for (file, content, why) in [
        ("cert.pem", "hello", "contains no certificate"),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nMA==\n",
            "is not PEM",
        ),
        ("key.pem", "", "contains no private key"),
        (
            "ca.pem",
            "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
            "cannot be parsed",
        ),
    ] {
        folder.write(&authority, &good);
        std::fs::write(folder.path(file), content).unwrap();
        let error = tls.reload().unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(file), "{error}");
    }
    std::fs::remove_file(folder.path("key.pem")).unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("cannot read --tls-key"), "{error}");
    assert_eq!(call(&caller(&client.args()), server.addr).await, Ok(()));
    folder.write(&authority, &good);
    assert_eq!(tls.reload().unwrap(), Reloaded::Changed);
}

#[cfg(unix)]
#[tokio::test]
async fn a_replaced_symlink_is_a_change() {
    let authority = Authority::new("inside");
    let (first, second) = (authority.issue(LOCAL, BOTH), authority.issue(LOCAL, BOTH));
    let (first, second) = (
        Folder::new(&authority, &first),
        Folder::new(&authority, &second),
    );
    let mount = tempfile::tempdir().unwrap();
    let link = mount.path().join("current");
    std::os::unix::fs::symlink(first.path(""), &link).unwrap();
    let args = authority::args(&link);
    let tls = args.load(Purpose::Serve).unwrap().unwrap();
    let swapped = mount.path().join("next");
    std::os::unix::fs::symlink(second.path(""), &swapped).unwrap();
    std::fs::rename(&swapped, &link).unwrap();
    assert_eq!(tls.reload().unwrap(), Reloaded::Changed);
}

#[tokio::test]
async fn an_identity_allows_any_address() {
    let authority = Authority::new("inside");
    let folder = Folder::new(&authority, &authority.issue(LOCAL, BOTH));
    let tls = folder.args().load(Purpose::Serve).unwrap().unwrap();
    let open = NetArgs {
        host: "0.0.0.0".to_owned(),
        ..NetArgs::default()
    };
    assert!(Listener::bind(&open).await.is_err());
    let acceptor = tls.acceptor(ClientAuth::Required).unwrap();
    assert!(Listener::bind_with(&open, Some(acceptor)).await.is_ok());
}

#[test]
fn a_ca_certificate_is_no_identity_and_keys_stay_secret() {
    let authority = Authority::new("inside");
    let folder = Folder::new(&authority, &authority.own());
    let error = folder.args().load(Purpose::Call).unwrap_err().to_string();
    assert!(error.contains("is a CA certificate"), "{error}");
    let folder = Folder::new(&authority, &authority.issue(LOCAL, BOTH));
    let tls = folder.args().load(Purpose::Serve).unwrap().unwrap();
    assert!(!format!("{tls:?}").contains("PRIVATE"));
    assert!(tls.acceptor(ClientAuth::Required).is_ok());
}

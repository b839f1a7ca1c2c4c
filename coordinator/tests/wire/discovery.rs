//! Workers that are found by name or in a file, join while a coordinator runs, and leave.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use offshoot_coordinator::config::{DiscoveryConfig, HostPort};
use proto::v1;
use speculation::duty::Role;
use tonic::Code;

use crate::fakes::dns::{DnsServer, Mode};
use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Limits, Rig, collect, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{PATIENCE, hello, plain, until};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SERVICE: &str = "_worker._tcp.offshoot.test.";
const HOST: &str = "host.offshoot.test.";

/// A context that holds every text.
const CONTEXT: u32 = 512;

fn by_dns(dns: &DnsServer) -> DiscoveryConfig {
    DiscoveryConfig {
        dns_server: Some(dns.addr),
        dns_refresh: Duration::from_secs(1),
        ..DiscoveryConfig::default()
    }
}

fn by_service(dns: &DnsServer) -> DiscoveryConfig {
    DiscoveryConfig {
        services: vec![SERVICE.to_owned()],
        ..by_dns(dns)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_starts_before_its_workers_and_they_come_and_go() {
    let dns = DnsServer::start().await.unwrap();
    dns.set_addresses(HOST, &[LOCALHOST]);
    let rig = Rig::discovering(&[], by_service(&dns), Limits::default()).await;
    assert!(!rig.readiness.is_ready());
    let status = rig.generate(request("auto", 4)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("none is known"), "{status}");

    let target = FakeTarget::start(Pace::Hold).await;
    let drafts = [FakeDraft::start().await, FakeDraft::start().await];
    let [first, second] = [0, 1].map(|at| drafts[at].server.addr);
    let endpoint = |addr: std::net::SocketAddr| (HOST, addr.port());
    // The registry takes them in the order of their addresses.
    let mut both = [target.server.addr, first];
    both.sort_by_key(ToString::to_string);
    dns.set_service(SERVICE, &both.map(endpoint));
    rig.until_workers(&both.map(|addr| (addr, "ready"))).await;
    assert!(rig.readiness.is_ready());
    let roles: Vec<_> = (rig.workers().await.into_iter())
        .map(|worker| worker.role)
        .collect();
    assert!(roles.contains(&"target".to_owned()) && roles.contains(&"draft".to_owned()));

    // A session that is under way takes the new draft.
    let running = rig.send(request("auto", 40)).await.unwrap();
    until(&drafts[0].inner.seen, |seen| seen.opened.len() == 1).await;
    dns.set_service(SERVICE, &[both[0], both[1], second].map(endpoint));
    until(&drafts[1].inner.seen, |seen| seen.opened.len() == 1).await;

    // The first one takes no new sessions, and keeps the one that it has.
    dns.set_service(SERVICE, &[target.server.addr, second].map(endpoint));
    let draining = |addr| (addr, if addr == first { "draining" } else { "ready" });
    let expected = [both[0], both[1], second].map(draining);
    rig.until_workers(&expected).await;
    assert!(drafts[0].inner.seen.borrow().closed.is_empty());
    target.set(Pace::OnAck);
    assert_eq!(collect(running).await.unwrap().ids, plain(&prompt(), 40));
    let left = [target.server.addr, second].map(|addr| (addr, "ready"));
    rig.until_workers(&left).await;
    let reply = rig.generate(request("auto", 40)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 40));
    assert_eq!(drafts[0].inner.seen.borrow().opened.len(), 1);
    // The text may be there before the draft has taken the call.
    until(&drafts[1].inner.seen, |seen| seen.opened.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_removes_nobody_and_one_that_answers_does() {
    let dns = DnsServer::start().await.unwrap();
    let target = FakeTarget::start(Pace::OnAck).await;
    let addr = target.server.addr;
    dns.set_addresses(HOST, &[LOCALHOST]);
    let discovery = DiscoveryConfig {
        names: vec![HostPort {
            host: HOST.to_owned(),
            port: addr.port(),
        }],
        ..by_dns(&dns)
    };
    let limits = Limits {
        failover_wait: PATIENCE,
        ..Limits::default()
    };
    let rig = Rig::discovering(&[], discovery, limits).await;
    rig.until_workers(&[(addr, "ready")]).await;
    for mode in [Mode::Fails, Mode::Silent] {
        dns.set_mode(mode);
        // Both kinds of addresses, twice.
        tokio::time::timeout(PATIENCE, dns.asked(4)).await.unwrap();
        rig.until_workers(&[(addr, "ready")]).await;
        let reply = rig.generate(request("auto", 8)).await.unwrap();
        assert_eq!(reply.ids, plain(&prompt(), 8));
    }
    dns.remove(HOST);
    dns.set_mode(Mode::Answers);
    rig.until_workers(&[]).await;
    // There was a target, so a request waits for the next one.
    assert!(rig.readiness.is_ready());
    let waiting = rig.send(request("auto", 8)).await.unwrap();
    dns.set_addresses(HOST, &[LOCALHOST]);
    rig.until_workers(&[(addr, "ready")]).await;
    assert_eq!(collect(waiting).await.unwrap().ids, plain(&prompt(), 8));
}

/// Its two addresses, as those of a host that has an IPv4 and an IPv6 address, lead to one worker.
#[tokio::test(flavor = "multi_thread")]
async fn one_process_is_used_by_one_address() {
    let named = v1::HelloReply {
        instance: 5,
        ..hello("target", CONTEXT)
    };
    let targets = [
        FakeTarget::with(Pace::OnAck, named.clone()).await,
        FakeTarget::with(Pace::OnAck, named).await,
    ];
    let list = List::new();
    list.write(&[&targets[0], &targets[1]]);
    let discovery = DiscoveryConfig {
        files: vec![list.path()],
        ..DiscoveryConfig::default()
    };
    let rig = Rig::discovering(&[], discovery, Limits::default()).await;
    let (mut used, mut refused) = (Vec::new(), Vec::new());
    for worker in rig.workers().await {
        if worker.state == "ready" {
            used.push(worker.address);
        } else {
            refused.push(worker);
        }
    }
    assert_eq!((used.len(), refused.len()), (1, 1));
    let why = &refused[0].state;
    assert!(
        why.contains("same process") && why.contains(&used[0]),
        "{why}"
    );
    // When the one that is used goes, the other is.
    let other = (targets.iter()).find(|target| target.server.addr.to_string() != used[0]);
    list.write(&[other.unwrap()]);
    let addr = other.unwrap().server.addr;
    rig.until_workers(&[(addr, "ready")]).await;
}

struct List {
    folder: tempfile::TempDir,
}

impl List {
    fn new() -> List {
        List {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("workers")
    }

    /// Replaces the file, as who changes such a file should.
    fn write(&self, targets: &[&FakeTarget]) {
        let lines: Vec<String> = (targets.iter())
            .map(|target| format!("{} # a target\n", target.server.addr))
            .collect();
        let new = self.folder.path().join("new");
        std::fs::write(&new, lines.concat()).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}

/// A target that has left the file serves its session until it breaks; then the session goes on at another one at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_leaves_hands_its_session_over_when_it_breaks() {
    let list = List::new();
    let targets = [
        FakeTarget::with(Pace::Hold, hello("target", CONTEXT)).await,
        FakeTarget::with(Pace::OnAck, hello("target", CONTEXT)).await,
    ];
    let [first, second] = [0, 1].map(|at| targets[at].server.addr);
    list.write(&[&targets[0]]);
    let discovery = DiscoveryConfig {
        files: vec![list.path()],
        ..DiscoveryConfig::default()
    };
    let limits = Limits {
        failover_wait: PATIENCE,
        ..Limits::default()
    };
    let rig = Rig::discovering(&[], discovery, limits).await;
    rig.until_workers(&[(first, "ready")]).await;
    let running = rig.send(request("ar", 30)).await.unwrap();
    until(&targets[0].inner.seen, |seen| seen.opened.len() == 1).await;
    list.write(&[&targets[1]]);
    rig.until_workers(&[(first, "draining"), (second, "ready")])
        .await;
    targets[0].drop_stream();
    assert_eq!(collect(running).await.unwrap().ids, plain(&prompt(), 30));
    rig.until_workers(&[(second, "ready")]).await;
    assert_eq!(targets[0].inner.seen.borrow().streams, 1, "nobody calls it");
}

/// One worker, whether a flag or a file names it, and the flag's role counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_a_flag_is_not_found_again_and_never_leaves() {
    let list = List::new();
    let target = FakeTarget::start(Pace::OnAck).await;
    let other = FakeTarget::start(Pace::OnAck).await;
    let (addr, wrong) = (target.server.addr, other.server.addr);
    list.write(&[&target, &other]);
    let discovery = DiscoveryConfig {
        files: vec![list.path()],
        ..DiscoveryConfig::default()
    };
    let flags = [(Role::Target, addr), (Role::Draft, wrong)];
    let rig = Rig::discovering(&flags, discovery, Limits::default()).await;
    let workers = rig.workers().await;
    assert_eq!(workers.len(), 2, "{workers:?}");
    assert_eq!(workers[0].state, "ready");
    assert!(workers[1].state.starts_with("refused: "), "{workers:?}");
    let third = FakeTarget::start(Pace::OnAck).await;
    list.write(&[&third]);
    let refused = workers[1].state.as_str();
    let found = third.server.addr;
    rig.until_workers(&[(addr, "ready"), (wrong, refused), (found, "ready")])
        .await;
}

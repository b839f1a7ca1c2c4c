//! Workers that are found in the EndpointSlices of Kubernetes services.

use std::net::SocketAddr;

use offshoot_coordinator::config::{DiscoveryConfig, EndpointPort, Endpoints};

use crate::fakes::api_server::{FakeApiServer, Mode, NAMESPACE};
use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Limits, Rig, collect, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{PATIENCE, plain, until};

/// The services `targets`, whose namespace is that of the kubeconfig, and `drafts`.
fn by_slices(api: &FakeApiServer) -> DiscoveryConfig {
    let endpoints = |namespace: Option<&str>, service: &str| Endpoints {
        namespace: namespace.map(str::to_owned),
        service: service.to_owned(),
        port: Some(EndpointPort::Name("grpc".to_owned())),
    };
    DiscoveryConfig {
        endpoints: vec![
            endpoints(None, "targets"),
            endpoints(Some(NAMESPACE), "drafts"),
        ],
        kubeconfig: Some(api.kubeconfig()),
        ..DiscoveryConfig::default()
    }
}

/// A target that is found by a coordinator, which waits for another one when it is lost.
async fn found(api: &FakeApiServer) -> (Rig, FakeTarget, SocketAddr) {
    let target = FakeTarget::start(Pace::OnAck).await;
    let addr = target.server.addr;
    api.put("targets", addr);
    let limits = Limits {
        failover_wait: PATIENCE,
        ..Limits::default()
    };
    let rig = Rig::discovering(&[], by_slices(api), limits).await;
    rig.until_workers(&[(addr, "ready")]).await;
    // Both services are watched.
    until(&api.cluster, |cluster| cluster.watches == 2).await;
    (rig, target, addr)
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_and_go_with_the_slices_of_their_services() {
    let api = FakeApiServer::start().await;
    let target = FakeTarget::start(Pace::Hold).await;
    let draft = FakeDraft::start().await;
    let other = FakeDraft::start().await;
    api.put("other", other.server.addr);
    let rig = Rig::discovering(&[], by_slices(&api), Limits::default()).await;
    assert!(!rig.readiness.is_ready());
    api.put("targets", target.server.addr);
    let only = (target.server.addr, "ready");
    rig.until_workers(&[only]).await;

    // A session that runs takes a draft that comes, and keeps it while it terminates.
    let running = rig.send(request("auto", 40)).await.unwrap();
    api.put("drafts", draft.server.addr);
    until(&draft.inner.seen, |seen| seen.opened.len() == 1).await;
    api.terminate("drafts", draft.server.addr);
    rig.until_workers(&[only, (draft.server.addr, "draining")])
        .await;
    target.set(Pace::OnAck);
    assert_eq!(collect(running).await.unwrap().ids, plain(&prompt(), 40));
    rig.until_workers(&[only]).await;

    // One that goes on after all, and then its slice goes.
    api.put("drafts", draft.server.addr);
    rig.until_workers(&[only, (draft.server.addr, "ready")])
        .await;
    api.remove("drafts", draft.server.addr);
    rig.until_workers(&[only]).await;
    assert_eq!(api.cluster.borrow().lists, 2, "one for each service");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_fails_removes_nobody() {
    let api = FakeApiServer::start().await;
    let (rig, _target, addr) = found(&api).await;
    for mode in [Mode::Fails, Mode::Forbids, Mode::Babbles] {
        let before = api.cluster.borrow().requests;
        api.set_mode(mode);
        // Both services, twice.
        until(&api.cluster, |cluster| cluster.requests >= before + 4).await;
        rig.until_workers(&[(addr, "ready")]).await;
        let reply = rig.generate(request("auto", 8)).await.unwrap();
        assert_eq!(reply.ids, plain(&prompt(), 8));
        // What happens meanwhile is found in the list.
        let late = FakeDraft::start().await;
        api.put("drafts", late.server.addr);
        api.set_mode(Mode::Answers);
        rig.until_workers(&[(addr, "ready"), (late.server.addr, "ready")])
            .await;
        api.remove("drafts", late.server.addr);
        rig.until_workers(&[(addr, "ready")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_it_has_ended_or_broken() {
    let api = FakeApiServer::start().await;
    let (rig, _target, addr) = found(&api).await;
    let drafts = [FakeDraft::start().await, FakeDraft::start().await];
    let [first, second] = [0, 1].map(|at| drafts[at].server.addr);
    api.end_watches();
    api.put("drafts", first);
    rig.until_workers(&[(addr, "ready"), (first, "ready")])
        .await;
    until(&api.cluster, |cluster| cluster.watches == 4).await;
    assert_eq!(
        api.cluster.borrow().lists,
        2,
        "the server ended them, nothing was lost"
    );
    api.cut_watches();
    api.put("drafts", second);
    rig.until_workers(&[(addr, "ready"), (first, "ready"), (second, "ready")])
        .await;

    // The same for a server that has not kept what happened.
    api.cluster.send_modify(|cluster| {
        cluster.remove("drafts", first);
        cluster.forget();
    });
    rig.until_workers(&[(addr, "ready"), (second, "ready")])
        .await;
}

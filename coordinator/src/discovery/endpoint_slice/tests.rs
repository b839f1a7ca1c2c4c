#![allow(clippy::unwrap_used, reason = "tests may panic")]

use k8s_openapi::api::discovery::v1::EndpointConditions;
use kube::api::ObjectMeta;

use super::*;

#[path = "../../../tests/wire/fakes/api_server.rs"]
#[allow(
    dead_code,
    reason = "a module of the tests on the wire, which use all of it"
)]
mod api_server;

use api_server::{FakeApiServer, Mode};

fn service(port: Option<EndpointPort>) -> Endpoints {
    Endpoints {
        namespace: None,
        service: "drafts".to_owned(),
        port,
    }
}

fn named(port: &str) -> Endpoints {
    service(Some(EndpointPort::Name(port.to_owned())))
}

fn endpoint(address: &str, ready: Option<bool>, terminating: Option<bool>) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready,
            // What serves and terminates gets no new sessions.
            serving: Some(true),
            terminating,
        }),
        ..Endpoint::default()
    }
}

fn slice(name: &str, endpoints: Vec<Endpoint>, ports: &[(&str, &str, i32)]) -> EndpointSlice {
    let port = |&(name, protocol, port): &(&str, &str, i32)| SlicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: Some(port),
        ..SlicePort::default()
    };
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        endpoints,
        ports: Some(ports.iter().map(port).collect()),
    }
}

/// A slice of one ready endpoint.
fn ready(name: &str, address: &str) -> EndpointSlice {
    slice(
        name,
        vec![endpoint(address, Some(true), None)],
        &[("grpc", "TCP", 7001)],
    )
}

fn found(slice: &EndpointSlice, endpoints: &Endpoints) -> Result<Vec<String>, String> {
    let found = addresses(slice, endpoints).map_err(|error| error.to_string())?;
    Ok(found.iter().map(Address::to_string).collect())
}

#[test]
fn endpoints_that_are_ready_and_stay_are_workers() {
    let conditions = [
        (None, None, true),
        (Some(true), None, true),
        (Some(true), Some(false), true),
        (Some(false), Some(false), false),
        (Some(false), Some(true), false),
        // As a service that publishes addresses before they are ready has it.
        (Some(true), Some(true), false),
    ];
    for (ready, terminating, is_worker) in conditions {
        let one = endpoint("10.0.0.1", ready, terminating);
        let found = found(&slice("a", vec![one], &[("", "TCP", 7001)]), &service(None));
        let expected: &[&str] = if is_worker { &["10.0.0.1:7001"] } else { &[] };
        assert_eq!(found.unwrap(), expected, "{ready:?} {terminating:?}");
    }
    let silent = Endpoint {
        addresses: vec!["10.0.0.1".to_owned()],
        ..Endpoint::default()
    };
    let found = found(
        &slice("a", vec![silent], &[("", "TCP", 7001)]),
        &service(None),
    );
    assert_eq!(found.unwrap(), ["10.0.0.1:7001"]);
}

#[test]
fn addresses_are_of_both_families_and_nothing_else() {
    let endpoints = [Endpoint {
        addresses: ["fd00::1", "10.0.0.1", "host.example"]
            .map(str::to_owned)
            .to_vec(),
        ..Endpoint::default()
    }];
    let mut slice = slice("a", endpoints.to_vec(), &[("grpc", "TCP", 7001)]);
    for (kind, expected) in [
        ("IPv6", &["10.0.0.1:7001", "[fd00::1]:7001"][..]),
        ("FQDN", &[]),
    ] {
        slice.address_type = kind.to_owned();
        assert_eq!(found(&slice, &service(None)).unwrap(), expected, "{kind}");
    }
}

#[test]
fn a_port_is_found_by_name_by_number_or_because_it_is_the_only_one() {
    let with =
        |ports: &[(&str, &str, i32)]| slice("a", vec![endpoint("1.1.1.1", None, None)], ports);
    let both = with(&[
        ("admin", "TCP", 9090),
        ("grpc", "TCP", 7001),
        ("dns", "UDP", 53),
    ]);
    let number = service(Some(EndpointPort::Number(7)));
    assert_eq!(found(&both, &named("grpc")).unwrap(), ["1.1.1.1:7001"]);
    assert_eq!(found(&both, &number).unwrap(), ["1.1.1.1:7"]);
    let one = with(&[("dns", "UDP", 53), ("any", "TCP", 7001)]);
    assert_eq!(found(&one, &service(None)).unwrap(), ["1.1.1.1:7001"]);
    for (slice, endpoints, parts) in [
        (
            &both,
            &service(None),
            &["admin=9090 grpc=7001", "give SERVICE:PORT"][..],
        ),
        (
            &both,
            &named("http"),
            &["slice a", "admin=9090 grpc=7001", "none is called http"],
        ),
        (&one, &named("dns"), &["none is called dns"]),
        (&with(&[]), &service(None), &["no TCP port"]),
        (
            &with(&[("grpc", "TCP", 0)]),
            &named("grpc"),
            &["no TCP port"],
        ),
        (
            &with(&[("grpc", "TCP", 70_000)]),
            &named("grpc"),
            &["no TCP port"],
        ),
    ] {
        let error = found(slice, endpoints).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    }
    // A service without pods has a slice without ports.
    assert_eq!(
        found(&slice("a", Vec::new(), &[]), &named("grpc")).unwrap(),
        [""; 0]
    );
}

#[test]
fn the_name_in_a_certificate_is_that_of_the_service() {
    let of = |namespace: Option<&str>| {
        let endpoints = Endpoints {
            namespace: namespace.map(str::to_owned),
            ..service(None)
        };
        let found = addresses(&ready("a", "1.1.1.1"), &endpoints).unwrap();
        found.first().unwrap().certificate_name.clone().unwrap()
    };
    assert_eq!(&*of(None), "drafts");
    assert_eq!(&*of(Some("ns")), "drafts.ns");
}

/// What was known stays until a list is complete, and what a list does not have is gone then.
#[test]
fn a_list_replaces_what_was_known_once_it_is_complete() {
    let mut known = Known::default();
    let mut apply = |event| {
        let is_new = known.apply(event, &named("grpc")).unwrap();
        let all: Vec<String> = known.addresses().iter().map(Address::to_string).collect();
        (is_new, all.join(" "))
    };
    let nothing = |is_new| (is_new, String::new());
    let is = |is_new, all: &str| (is_new, all.to_owned());
    assert_eq!(apply(Event::Init), nothing(false));
    assert_eq!(apply(Event::InitDone), nothing(true), "none is an answer");
    assert_eq!(
        apply(Event::Apply(ready("a", "1.1.1.1"))),
        is(true, "1.1.1.1:7001")
    );
    assert_eq!(
        apply(Event::Apply(ready("a", "1.1.1.1"))),
        is(false, "1.1.1.1:7001")
    );
    let both = "1.1.1.1:7001 2.2.2.2:7001";
    assert_eq!(apply(Event::Apply(ready("b", "2.2.2.2"))), is(true, both));
    // A list that is given up, and one that is complete.
    assert_eq!(apply(Event::Init), is(false, both));
    assert_eq!(
        apply(Event::InitApply(ready("c", "3.3.3.3"))),
        is(false, both)
    );
    assert_eq!(apply(Event::Init), is(false, both));
    assert_eq!(
        apply(Event::InitApply(ready("b", "4.4.4.4"))),
        is(false, both)
    );
    assert_eq!(apply(Event::InitDone), is(true, "4.4.4.4:7001"));
    assert_eq!(
        apply(Event::Delete(ready("a", "1.1.1.1"))),
        is(false, "4.4.4.4:7001")
    );
    assert_eq!(apply(Event::Delete(ready("b", "4.4.4.4"))), nothing(true));
}

#[tokio::test]
async fn where_there_is_no_cluster_the_source_fails_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = DiscoveryConfig {
        kubeconfig: Some(folder.path().join("missing")),
        ..DiscoveryConfig::default()
    };
    let mut source = EndpointSliceSource::new(&named("grpc"), &config);
    assert_eq!(source.to_string(), "EndpointSlices of drafts:grpc");
    for _ in 0..2 {
        let error = source.next().await.unwrap_err();
        assert!(matches!(error, SliceError::Kubeconfig(_)), "{error}");
        assert!(error.to_string().contains("missing"), "{error}");
    }
}

/// The source of a fake cluster, and what it said first.
async fn source_of(api: &FakeApiServer) -> EndpointSliceSource {
    let config = DiscoveryConfig {
        kubeconfig: Some(api.kubeconfig()),
        ..DiscoveryConfig::default()
    };
    let mut source = EndpointSliceSource::new(&named("grpc"), &config);
    api.put("drafts", worker(1));
    assert_eq!(said(&mut source).await.unwrap(), ["127.0.0.1:1"]);
    source
}

fn worker(port: u16) -> SocketAddr {
    SocketAddr::new([127, 0, 0, 1].into(), port)
}

async fn said(source: &mut EndpointSliceSource) -> Result<Vec<String>, SliceError> {
    let next = tokio::time::timeout(Duration::from_secs(30), source.next());
    let said = next.await.expect("the source went silent")?;
    Ok(said.iter().map(Address::to_string).collect())
}

#[tokio::test]
async fn a_version_that_is_gone_is_listed_anew_and_that_is_no_failure() {
    let api = FakeApiServer::start().await;
    let mut source = source_of(&api).await;
    for port in [2, 3] {
        // Nobody is told of the changes before they are forgotten.
        api.cluster.send_modify(|cluster| {
            cluster.remove("drafts", worker(port - 1));
            cluster.put("drafts", worker(port), false);
            cluster.forget();
        });
        let expected = format!("127.0.0.1:{port}");
        assert_eq!(said(&mut source).await.unwrap(), [expected.as_str()]);
        api.put("drafts", worker(9));
        assert_eq!(
            said(&mut source).await.unwrap(),
            [expected.as_str(), "127.0.0.1:9"]
        );
        api.remove("drafts", worker(9));
        assert_eq!(said(&mut source).await.unwrap(), [expected.as_str()]);
    }
    // For ever is one.
    api.set_mode(Mode::Forgets);
    assert_eq!(said(&mut source).await.unwrap(), ["127.0.0.1:3"]);
    let error = said(&mut source).await.unwrap_err();
    assert!(is_gone(&error_of_watch(error)));
}

fn error_of_watch(error: SliceError) -> watcher::Error {
    match error {
        SliceError::Watch(error) => error,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn what_an_api_server_says_wrong_is_an_error_that_says_what() {
    let api = FakeApiServer::start().await;
    let mut source = source_of(&api).await;
    for (mode, part) in [
        (Mode::Fails, "etcd is not there"),
        (Mode::Forbids, "endpointslices is forbidden"),
        (Mode::Babbles, "expected value"),
    ] {
        api.set_mode(mode);
        // The first one is that of the watch, which was cut.
        said(&mut source).await.unwrap_err();
        let error = said(&mut source).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        api.set_mode(Mode::Answers);
        assert_eq!(said(&mut source).await.unwrap(), ["127.0.0.1:1"]);
    }
}

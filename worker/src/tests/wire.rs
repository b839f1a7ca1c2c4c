//! The service as a coordinator finds it.

use proto::v1::worker_server::Worker;
use proto::{PROTOCOL, outward, v1};
use runtime::{Drain, Readiness};
use tonic::{Code, Request};

use super::*;
use crate::service::WorkerService;

fn service(duties: Duties, drain: &Drain) -> (WorkerService, WorkerHandle) {
    let (handle, _gate) = start_as(Duration::ZERO, duties);
    (
        WorkerService::new(handle.clone(), drain, &Readiness::new()),
        handle,
    )
}

fn open(spec: SessionSpec) -> Request<v1::OpenRequest> {
    Request::new(outward::open(NAME, spec, greedy().into()))
}

#[tokio::test]
async fn a_handshake_tells_what_is_offered_and_refuses_another_protocol() {
    let duties = Duties::of(Duty::Advise).and(Duty::Commit);
    let (service, _) = service(duties, &Drain::new());
    let hello = service.hello(Request::new(outward::hello_request())).await;
    let hello = hello.unwrap().into_inner();
    assert_eq!((hello.role.as_str(), hello.protocol), ("target", PROTOCOL));
    assert_eq!(hello.capabilities, ["verify", "commit"]);
    let old = v1::HelloRequest {
        protocol: 3,
        oldest_protocol: 0,
    };
    let refused = service.hello(Request::new(old)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("0 to 3"), "{refused}");
}

#[tokio::test]
async fn what_is_not_offered_cannot_be_opened() {
    let (service, handle) = service(Duties::of(Duty::Advise), &Drain::new());
    let (_to_worker, _reports, _) = stream(&handle).await;
    for (spec, duty) in [(draft(1), "propose"), (spec(2, 8), "commit")] {
        let refused = service.open(open(spec)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(duty), "{refused}");
    }
    let advise = SessionSpec {
        strategy: Settings::new("eager"),
        duties: Duties::of(Duty::Advise),
        ..spec(3, 8)
    };
    service.open(open(advise.clone())).await.unwrap();
    let nothing = SessionSpec {
        session: SessionId(4),
        duties: Duties::default(),
        ..advise
    };
    let refused = service.open(open(nothing)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn who_drains_opens_nothing_more() {
    let drain = Drain::new();
    let (service, handle) = service(Duty::ALL.into_iter().collect(), &drain);
    let (_to_worker, _reports, _) = stream(&handle).await;
    service.open(open(spec(1, 8))).await.unwrap();
    drain.begin();
    let refused = service.open(open(spec(2, 8))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("shutting down"), "{refused}");
}

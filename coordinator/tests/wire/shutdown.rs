//! The drain: what runs may finish, what comes is refused, what lasts too long is told.

use std::time::Duration;

use runtime::Drained;
use tonic::Code;

use crate::fakes::rig::{Rig, collect, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{plain, until};

#[tokio::test(flavor = "multi_thread")]
async fn running_requests_finish_and_new_ones_are_refused() {
    let target = FakeTarget::start(Pace::Hold).await;
    let rig = Rig::start(&[&target], &[]).await;
    let running = rig.send(request("ar", 20)).await.unwrap();
    until(&target.inner.seen, |seen| seen.opened.len() == 1).await;
    let coordinator = rig.coordinator.clone();
    let stopped = tokio::spawn(async move { coordinator.stop(Duration::from_secs(60)).await });
    rig.drain.stopping().await;
    let status = rig.send(request("ar", 4)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("another one"), "{status}");
    target.set(Pace::OnAck);
    assert_eq!(collect(running).await.unwrap().ids, plain(&prompt(), 20));
    assert_eq!(stopped.await.unwrap(), Drained::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_in_time_is_told_so() {
    let target = FakeTarget::start(Pace::Hold).await;
    let rig = Rig::start(&[&target], &[]).await;
    let running = rig.send(request("ar", 20)).await.unwrap();
    until(&target.inner.seen, |seen| seen.opened.len() == 1).await;
    rig.coordinator.stop(Duration::from_millis(500)).await;
    let status = collect(running).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("stopping"), "{status}");
}

//! Sessions that outlive their target, and completions that outlive their coordinator.

use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::generate_event::Event;
use proto::v1::generate_request::Prompt;
use tonic::{Code, Status};

use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Limits, Rig, collect, event, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{PATIENCE, hello, plain, until};

/// More than a test reads before it breaks something.
const LONG: u32 = 4000;

/// How long a session waits for a target that it has lost.
const RETURN_PATIENCE: Duration = Duration::from_millis(300);

fn patient() -> Limits {
    Limits {
        failover_wait: PATIENCE,
        ..Limits::default()
    }
}

async fn roomy(pace: Pace) -> FakeTarget {
    FakeTarget::with(pace, hello("target", 2 * LONG)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_target_goes_on_where_the_lost_one_was() {
    let (first, second) = (roomy(Pace::OnAck).await, roomy(Pace::OnAck).await);
    let rig = Rig::limited(&[&first, &second], &[], patient()).await;
    let stream = rig.send(request("ar", LONG)).await.unwrap();
    let seen = until(&first.inner.seen, |seen| {
        seen.steps.values().any(|&steps| steps > 20)
    })
    .await;
    let (&session, open) = seen.opened.first_key_value().unwrap();
    first.server.kill();
    let reply = collect(stream).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), LONG as usize));
    let seen = second.inner.seen.borrow().clone();
    let again = &seen.opened[&session];
    assert!(again.term > open.term, "{} and {}", again.term, open.term);
    assert!(
        again.text.len() >= open.text.len() + 20,
        "the text was replayed"
    );
    assert_eq!(again.stopping, open.stopping);
    assert_eq!(rig.coordinator.running(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_goes_back_to_the_same_target() {
    let (first, second) = (roomy(Pace::OnAck).await, roomy(Pace::OnAck).await);
    let rig = Rig::limited(&[&first, &second], &[], patient()).await;
    let stream = rig.send(request("ar", LONG)).await.unwrap();
    until(&first.inner.seen, |seen| {
        seen.steps.values().any(|&steps| steps > 20)
    })
    .await;
    let lost = Instant::now();
    first.drop_stream();
    let is_back = tokio::select! {
        _ = until(&first.inner.seen, |seen| seen.order.len() == 2) => true,
        () = found_instead(&second, lost) => false,
    };
    let reply = collect(stream).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), LONG as usize));
    if is_back {
        assert_eq!(first.inner.seen.borrow().streams, 2);
        assert!(second.inner.seen.borrow().opened.is_empty());
    }
}

/// Waits until a session is at another target than the one that it lost. That takes longer than the lost one usually takes to
/// be back, but where a machine is busy it may happen.
async fn found_instead(second: &FakeTarget, lost: Instant) {
    until(&second.inner.seen, |seen| !seen.opened.is_empty()).await;
    assert!(lost.elapsed() >= RETURN_PATIENCE, "{:?}", lost.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_know_the_stream_gets_a_new_one() {
    let (first, second) = (roomy(Pace::OnAck).await, roomy(Pace::OnAck).await);
    let rig = Rig::limited(&[&first, &second], &[], patient()).await;
    first.refuse_once(Status::failed_precondition("no such stream"));
    let lost = Instant::now();
    let reply = rig.generate(request("ar", 20)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 20));
    if !second.inner.seen.borrow().opened.is_empty() {
        return found_instead(&second, lost).await;
    }
    let seen = first.inner.seen.borrow().clone();
    assert_eq!((seen.streams, seen.opened.len()), (2, 1));
    assert!(second.inner.seen.borrow().opened.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_equal_numerics_go_on() {
    let first = roomy(Pace::OnAck).await;
    let other = v1::HelloReply {
        numerics_id: "other".to_owned(),
        ..hello("target", 2 * LONG)
    };
    let other = FakeTarget::with(Pace::OnAck, other).await;
    let rig = Rig::start(&[&first, &other], &[]).await;
    let stream = rig.send(request("ar", LONG)).await.unwrap();
    until(&first.inner.seen, |seen| {
        seen.steps.values().any(|&steps| steps > 20)
    })
    .await;
    first.server.kill();
    let status = collect(stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("resume"), "{status}");
    assert!(other.inner.seen.borrow().opened.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_shuts_down_gets_no_new_sessions() {
    let (first, second) = (roomy(Pace::OnAck).await, roomy(Pace::OnAck).await);
    let rig = Rig::limited(&[&first, &second], &[], patient()).await;
    first.refuse(Status::unavailable("the worker is shutting down"));
    for _ in 0..3 {
        let reply = rig.generate(request("ar", 10)).await.unwrap();
        assert_eq!(reply.ids, plain(&prompt(), 10));
    }
    assert_eq!(rig.workers().await[0].state, "draining");
    assert_eq!(second.inner.seen.borrow().opened.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_ends_its_targets_is_given_up() {
    let targets = [
        roomy(Pace::Hold).await,
        roomy(Pace::Hold).await,
        roomy(Pace::Hold).await,
        roomy(Pace::Hold).await,
    ];
    let all: Vec<_> = targets.iter().collect();
    let rig = Rig::limited(&all, &[], patient()).await;
    let stream = rig.send(request("ar", 10)).await.unwrap();
    let killing = async {
        for target in &targets {
            let opened = until(&target.inner.seen, |seen| !seen.opened.is_empty());
            tokio::select! {
                _ = opened => target.server.kill(),
                () = std::future::pending() => {}
            }
        }
    };
    let status = tokio::select! {
        answer = collect(stream) => answer.unwrap_err(),
        () = killing => panic!("a fourth target was lost to it"),
    };
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("3 targets were lost"), "{status}");
    assert!(targets[3].inner.seen.borrow().opened.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_joins_late_is_used_by_what_runs() {
    let target = FakeTarget::start(Pace::OnGuess).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    draft.drop_stream();
    // Nothing comes without a guess: the session can only end by the draft's return.
    let reply = rig.generate(request("auto", 60)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 60));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_resumed_on_another_coordinator() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    let asked = v1::GenerateRequest {
        stop: vec!["zz".to_owned()],
        ..request("ar", 60)
    };
    let whole = rig.generate(asked.clone()).await.unwrap();
    let target = FakeTarget::start(Pace::OnAck).await;
    let second = Rig::start(&[&target], &[]).await;
    for have in [0, 1, 17, whole.ids.len() - 1, whole.ids.len()] {
        let resumed = v1::GenerateRequest {
            prompt: Some(Prompt::Tokens(v1::TokenIds {
                ids: whole.started.prompt_token_ids.clone(),
            })),
            seed: Some(whole.started.seed),
            resume: Some(v1::Resume {
                token_ids: whole.ids[..have].to_vec(),
                numerics_id: whole.started.system_fingerprint.clone(),
                choice: 0,
            }),
            ..asked.clone()
        };
        let rest = second.generate(resumed).await.unwrap();
        assert_eq!(rest.ids, whole.ids[have..], "behind {have}");
        assert!(whole.text.ends_with(&rest.text));
        assert_eq!(rest.finished.reason, whole.finished.reason);
        assert_eq!(
            rest.finished.completion_tokens,
            whole.finished.completion_tokens
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_resumed_exactly_is_not_resumed() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    let resume = |ids: Vec<u32>, numerics: &str| v1::GenerateRequest {
        prompt: Some(Prompt::Tokens(v1::TokenIds { ids: prompt() })),
        resume: Some(v1::Resume {
            token_ids: ids,
            numerics_id: numerics.to_owned(),
            choice: 0,
        }),
        ..request("ar", 4)
    };
    let status = rig.generate(resume(vec![97], "older")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("fake-numerics"), "{status}");
    let too_many = resume(vec![97; 5], "fake-numerics");
    let status = rig.generate(too_many).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("at most 4"), "{status}");
    assert_eq!(rig.workers().await[0].sessions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_text_and_frees_the_workers() {
    let target = FakeTarget::start(Pace::Hold).await;
    let rig = Rig::start(&[&target], &[]).await;
    let mut asked = tonic::Request::new(request("ar", 4));
    asked.set_timeout(Duration::from_secs(3));
    let mut stream = (rig.client.clone().generate(asked).await.unwrap()).into_inner();
    let status = loop {
        match event(&mut stream).await {
            Ok(Event::Started(_)) => {}
            Ok(other) => panic!("{other:?} from a target that holds"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    until(&target.inner.seen, |seen| seen.closed.len() == 1).await;
}

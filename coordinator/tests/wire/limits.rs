//! Requests that are refused, and requests that wait.

use proto::v1;
use proto::v1::generate_request::Prompt;
use speculation::duty::Role;
use tonic::{Code, Status};

use crate::fakes::rig::{Limits, Rig, collect, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{PATIENCE, hello, plain, until, vocabulary};

#[tokio::test(flavor = "multi_thread")]
async fn parameters_out_of_range_are_named_and_disturb_nobody() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    let tokens = |ids| Some(Prompt::Tokens(v1::TokenIds { ids }));
    let good = request("ar", 4);
    let end = vocabulary::END;
    let cases = [
        (
            v1::GenerateRequest {
                temperature: -1.0,
                ..good.clone()
            },
            "temperature is -1",
        ),
        (
            v1::GenerateRequest {
                top_p: Some(1.5),
                ..good.clone()
            },
            "top_p is 1.5",
        ),
        (
            v1::GenerateRequest {
                min_p: f32::NAN,
                ..good.clone()
            },
            "min_p is NaN",
        ),
        (
            v1::GenerateRequest {
                prompt: tokens(vec![end + 1]),
                ..good.clone()
            },
            "token 257",
        ),
        (
            v1::GenerateRequest {
                prompt: None,
                ..good.clone()
            },
            "prompt is missing",
        ),
        (
            v1::GenerateRequest {
                prompt: tokens(vec![1; 512]),
                ..good.clone()
            },
            "512 tokens",
        ),
        (
            v1::GenerateRequest {
                prompt: tokens(vec![1; 700]),
                ..good.clone()
            },
            "holds 512",
        ),
        (request("warp", 4), "unknown strategy \"warp\""),
        (
            v1::GenerateRequest {
                knobs: [("gamma".to_owned(), 65.0)].into(),
                ..request("serial", 4)
            },
            "gamma is 65; allowed are whole numbers from 0",
        ),
        (
            v1::GenerateRequest {
                knobs: [("beams".to_owned(), 2.0)].into(),
                ..good.clone()
            },
            "no knob \"beams\"",
        ),
    ];
    for (asked, why) in cases {
        let status = rig.generate(asked).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(why), "{why:?} is not in {status}");
    }
    assert!(target.inner.seen.borrow().opened.is_empty());
    let longest = v1::GenerateRequest {
        prompt: tokens(vec![1; 511]),
        ..good
    };
    let reply = rig.generate(longest).await.unwrap();
    assert_eq!(reply.ids, plain(&[1; 511], 1));
    assert_eq!(
        rig.workers().await[0].sessions,
        0,
        "a refusal leaves a reservation behind"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_runs_one_waits_and_more_are_refused() {
    let target = FakeTarget::start(Pace::Hold).await;
    let limits = Limits {
        max_sessions: 1,
        max_queued: 1,
        ..Limits::default()
    };
    let rig = Rig::with(&[(Role::Target, target.server.addr)], limits).await;
    let first = rig.send(request("ar", 4)).await.unwrap();
    until(&target.inner.seen, |seen| seen.opened.len() == 1).await;
    let second = rig.send(request("ar", 5)).await.unwrap();
    let status = rig.send(request("ar", 6)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("try again in"), "{status}");
    drop(first);
    until(&target.inner.seen, |seen| seen.opened.len() == 2).await;
    target.set(Pace::OnAck);
    assert_eq!(collect(second).await.unwrap().ids, plain(&prompt(), 5));
    assert_eq!(rig.generate(request("ar", 6)).await.unwrap().ids.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_a_target_that_is_full() {
    let small = v1::HelloReply {
        max_sessions: 1,
        ..hello("target", 512)
    };
    let target = FakeTarget::with(Pace::OnAck, small).await;
    let rig = Rig::start(&[&target], &[]).await;
    let mut streams = Vec::new();
    for tokens in 1..=6 {
        streams.push(rig.send(request("ar", tokens)).await.unwrap());
    }
    for (tokens, stream) in (1..).zip(streams) {
        let reply = collect(stream).await.unwrap();
        assert_eq!(reply.ids, plain(&prompt(), tokens));
    }
}

/// A target with room for one session that takes no step.
async fn room_for_one() -> FakeTarget {
    let small = v1::HelloReply {
        max_sessions: 1,
        ..hello("target", 512)
    };
    FakeTarget::with(Pace::Hold, small).await
}

/// Waits until so many completions wait for a target.
pub(crate) async fn seeking(rig: &Rig, count: usize) {
    let there = async {
        while rig.coordinator.seeking() != count {
            // A call to the coordinator, so that it gets on meanwhile.
            rig.workers().await;
        }
    };
    (tokio::time::timeout(PATIENCE, there).await).expect("so many never waited for a target");
}

/// The text lengths of the sessions that a target was given, the newest last.
async fn lengths(target: &FakeTarget, count: usize) -> Vec<u32> {
    let seen = until(&target.inner.seen, |seen| seen.opened.len() == count).await;
    let mut opened: Vec<_> = seen.opened.into_values().collect();
    opened.sort_by_key(|open| seen.order.iter().position(|&id| id == open.session));
    (opened.into_iter())
        .map(|open| open.stopping.unwrap().max_len)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_reservation_goes_to_the_first_by_priority() {
    let target = room_for_one().await;
    let rig = Rig::start(&[&target], &[]).await;
    let mut streams = vec![rig.send(request("ar", 10)).await.unwrap()];
    lengths(&target, 1).await;
    for (number, priority) in (1..).zip([5, -5, 5]) {
        let asked = v1::GenerateRequest {
            priority,
            ..request("ar", 10 + number)
        };
        streams.push(rig.send(asked).await.unwrap());
        seeking(&rig, number as usize).await;
    }
    // Each stream's client goes as soon as its session is there.
    let mut streams: Vec<_> = streams.into_iter().map(Some).collect();
    for (count, next) in (1..).zip([0, 2, 1, 3]) {
        lengths(&target, count).await;
        streams[next].take();
    }
    let prompt = prompt().len() as u32;
    let lengths = lengths(&target, 4).await;
    let tokens: Vec<u32> = lengths.iter().map(|len| len - prompt).collect();
    assert_eq!(tokens, [10, 12, 11, 13]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_reservation_goes_first_to_who_has_lost_its_own() {
    let (first, second) = (room_for_one().await, room_for_one().await);
    let limits = Limits {
        failover_wait: PATIENCE,
        ..Limits::default()
    };
    let rig = Rig::limited(&[&first, &second], &[], limits).await;
    let _lost = rig.send(request("ar", 10)).await.unwrap();
    lengths(&first, 1).await;
    let leaves = rig.send(request("ar", 20)).await.unwrap();
    lengths(&second, 1).await;
    let _new = rig.send(request("ar", 30)).await.unwrap();
    seeking(&rig, 1).await;
    first.server.kill();
    seeking(&rig, 2).await;
    drop(leaves);
    let prompt = prompt().len() as u32;
    assert_eq!(lengths(&second, 2).await, [prompt + 20, prompt + 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_in_their_own_queue_for_a_target_that_others_fill() {
    // Another coordinator has its places: it has room by what it says, and has none.
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    target.refuse(Status::resource_exhausted("8 sessions are open"));
    let first = rig.send(request("ar", 10)).await.unwrap();
    until(&target.inner.seen, |seen| seen.refused >= 4).await;
    let second = rig.send(request("ar", 11)).await.unwrap();
    seeking(&rig, 2).await;
    // It is asked again and again, and less and less often; `failover_wait` has been over for long.
    until(&target.inner.seen, |seen| seen.refused >= 16).await;
    assert!(target.inner.seen.borrow().opened.is_empty());
    target.accept();
    for (tokens, stream) in [(10, first), (11, second)] {
        let reply = collect(stream).await.unwrap();
        assert_eq!(reply.ids, plain(&prompt(), tokens));
    }
    assert_eq!(target.inner.seen.borrow().opened.len(), 2);
}

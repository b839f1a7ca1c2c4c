//! A request from its prompt to its end.

use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Rig, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{hello, plain, until, vocabulary};
use proto::v1;
use speculation::duty::Role;

#[tokio::test(flavor = "multi_thread")]
async fn plain_decoding_uses_the_target_alone() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    let reply = rig.generate(request("ar", 40)).await.unwrap();
    let expected = plain(&prompt(), 40);
    assert_eq!(reply.ids, expected);
    let bytes: Vec<u8> = expected.iter().map(|&id| id as u8).collect();
    assert_eq!(reply.text.as_bytes(), bytes);
    assert_eq!(reply.started.seed, 7);
    assert_eq!(reply.started.prompt_tokens, 6);
    assert_eq!(reply.started.system_fingerprint, "fake-numerics");
    assert_eq!(reply.finished.completion_tokens, 40);
    assert_eq!(reply.finished.reason(), v1::FinishReason::Length);
    assert_eq!(target.inner.seen.borrow().steps.values().sum::<usize>(), 40);
    assert!(draft.inner.seen.borrow().opened.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_strategy_relays_guesses_and_gives_the_same_text() {
    // The target steps only when it has a guess, so nothing would come if guesses did not get through.
    let target = FakeTarget::start(Pace::OnGuess).await;
    let drafts = [FakeDraft::start().await, FakeDraft::start().await];
    let rig = Rig::start(&[&target], &[&drafts[0], &drafts[1]]).await;
    for strategy in ["serial", "serial-tree", "auto"] {
        let reply = rig.generate(request(strategy, 60)).await.unwrap();
        assert_eq!(reply.ids, plain(&prompt(), 60), "{strategy}");
        let session = reply.started.session;
        let steps = target.inner.seen.borrow().steps[&session];
        assert!(
            steps <= 30,
            "{strategy}: {steps} steps, so guesses were not used"
        );
        let statistics = reply.finished.statistics.unwrap();
        assert!(
            statistics.drafted_committed > 0,
            "{strategy}: {statistics:?}"
        );
        assert_eq!(statistics.drafts.len(), 2);
        assert!(statistics.walks.unwrap().tokens >= 60);
        for draft in &drafts {
            until(&draft.inner.seen, |seen| seen.closed.contains(&session)).await;
        }
        until(&target.inner.seen, |seen| seen.closed.contains(&session)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_of_a_qualifier_reaches_the_target_as_a_guess() {
    let target = FakeTarget::start(Pace::OnGuess).await;
    let qualifier = FakeTarget::with(Pace::OnAck, hello("qualifier", 512)).await;
    let limits = crate::fakes::rig::Limits {
        max_sessions: 4,
        max_queued: 4,
        ..crate::fakes::rig::Limits::default()
    };
    let workers = [
        (Role::Target, target.server.addr),
        (Role::Qualifier, qualifier.server.addr),
    ];
    let rig = Rig::with(&workers, limits).await;
    let reply = rig.generate(request("auto", 2)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 2));
    let statistics = reply.finished.statistics.unwrap();
    assert_eq!((statistics.advised, statistics.advised_committed), (1, 1));
    assert_eq!(statistics.qualifiers.len(), 1);
    let session = reply.started.session;
    until(&qualifier.inner.seen, |seen| seen.closed.contains(&session)).await;

    let without = v1::GenerateRequest {
        no_qualifier: true,
        ..request("auto", 2)
    };
    target.set(Pace::OnAck);
    let reply = rig.generate(without).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 2));
    assert_eq!(qualifier.inner.seen.borrow().opened.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_gets_as_many_drafts_as_it_asks_for() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let drafts = [FakeDraft::start().await, FakeDraft::start().await];
    let rig = Rig::start(&[&target], &[&drafts[0], &drafts[1]]).await;
    for wanted in [0, 1, 2, 9] {
        let asked = v1::GenerateRequest {
            drafts: Some(wanted),
            ..request("auto", 4)
        };
        let reply = rig.generate(asked).await.unwrap();
        let got = reply.finished.statistics.unwrap().drafts.len();
        assert_eq!(got, wanted.min(2) as usize);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_ends_at_stop_tokens_and_at_the_context() {
    let target = FakeTarget::with(Pace::OnAck, hello("target", 40)).await;
    let rig = Rig::start(&[&target], &[]).await;
    let whole = plain(&prompt(), 34);

    let full = rig.generate(request("ar", 0)).await.unwrap();
    assert_eq!(full.ids, whole);
    assert_eq!(full.finished.reason(), v1::FinishReason::Context);
    let clamped = rig.generate(request("ar", 1000)).await.unwrap();
    assert_eq!(clamped.finished.reason(), v1::FinishReason::Context);
    let exact = rig.generate(request("ar", 34)).await.unwrap();
    assert_eq!(exact.finished.reason(), v1::FinishReason::Length);

    let stop = whole[9];
    let first = whole.iter().position(|&id| id == stop).unwrap();
    let asked = v1::GenerateRequest {
        stop_token_ids: vec![stop],
        ..request("ar", 0)
    };
    let stopped = rig.generate(asked).await.unwrap();
    assert_eq!(stopped.ids, whole[..=first]);
    assert_eq!(stopped.finished.reason(), v1::FinishReason::Stop);
    assert_eq!(stopped.finished.completion_tokens as usize, first + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_is_told_how_to_sample_and_when_to_stop() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    let asked = v1::GenerateRequest {
        temperature: 0.7,
        top_k: 5,
        top_p: Some(0.9),
        min_p: 0.1,
        seed: None,
        stop_token_ids: vec![3, 1],
        ..request("ar", 4)
    };
    let reply = rig.generate(asked.clone()).await.unwrap();
    let opened = target.inner.seen.borrow().opened[&reply.started.session].clone();
    let sampling = opened.sampling.unwrap();
    assert_eq!(sampling.seed, reply.started.seed);
    assert_eq!(
        (
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p
        ),
        (0.7, 5, 0.9, 0.1)
    );
    let stopping = opened.stopping.unwrap();
    assert_eq!(stopping.stop_ids, [1, 3, vocabulary::END]);
    assert_eq!((stopping.prompt_len, stopping.max_len), (6, 10));

    let other = rig.generate(asked.clone()).await.unwrap();
    assert_ne!(other.started.seed, reply.started.seed, "seeds are drawn");

    let ignoring = v1::GenerateRequest {
        ignore_eos: true,
        ..asked
    };
    let reply = rig.generate(ignoring).await.unwrap();
    let opened = target.inner.seen.borrow().opened[&reply.started.session].clone();
    assert_eq!(opened.stopping.unwrap().stop_ids, [1, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_told_the_strategy_its_knobs_and_their_own_duty() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let draft = FakeTarget::with(Pace::Hold, hello("draft", 512)).await;
    let workers = [
        (Role::Target, target.server.addr),
        (Role::Draft, draft.server.addr),
    ];
    let rig = Rig::with(&workers, crate::fakes::rig::Limits::default()).await;
    let asked = v1::GenerateRequest {
        knobs: [("gamma".to_owned(), 3.0)].into(),
        ..request("serial", 4)
    };
    let reply = rig.generate(asked).await.unwrap();
    let session = reply.started.session;
    until(&draft.inner.seen, |seen| seen.opened.contains_key(&session)).await;
    for (worker, duty) in [(&target, "commit"), (&draft, "propose")] {
        let opened = worker.inner.seen.borrow().opened[&session].clone();
        assert_eq!(opened.strategy, "serial");
        assert_eq!(opened.knobs, [("gamma".to_owned(), 3.0)].into());
        assert_eq!(opened.duties, [duty]);
    }
    // Without a name it is the server's strategy.
    let reply = rig.generate(request("", 4)).await.unwrap();
    let opened = target.inner.seen.borrow().opened[&reply.started.session].clone();
    assert_eq!(opened.strategy, "auto");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_the_target_with_the_fewest_sessions() {
    let targets = [
        FakeTarget::start(Pace::Hold).await,
        FakeTarget::start(Pace::Hold).await,
    ];
    let rig = Rig::start(&[&targets[0], &targets[1]], &[]).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(rig.send(request("ar", 4)).await.unwrap());
    }
    for target in &targets {
        until(&target.inner.seen, |seen| seen.opened.len() == 2).await;
    }
    let workers = rig.workers().await;
    assert_eq!(
        workers.iter().map(|w| w.sessions).collect::<Vec<_>>(),
        [2, 2]
    );
    for target in &targets {
        target.set(Pace::OnAck);
    }
    for stream in streams {
        let reply = crate::fakes::rig::collect(stream).await.unwrap();
        assert_eq!(reply.ids, plain(&prompt(), 4));
    }
}

//! The hot path: how long a guess takes from a draft's hand into the target's, and a pick the other way.

use std::time::{Duration, Instant};

use proto::v1;

use crate::fakes::draft::{CHAIN, FakeDraft};
use crate::fakes::rig::{Rig, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::until;

/// Far above what it takes, and far below what a timer or a delayed acknowledgement (40 ms) in the path would cost.
const LIMIT: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_guess_crosses_without_a_timer_in_its_way() {
    let target = FakeTarget::start(Pace::Hold).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    let _stream = rig.send(request("auto", 100)).await.unwrap();
    let seen = until(&draft.inner.seen, |seen| seen.opened.len() == 1).await;
    let session = *seen.opened.first().unwrap();
    until(&target.inner.seen, |seen| seen.guess_updates == 1).await;
    let mut times = Vec::new();
    for at in 0..120_u32 {
        let nodes = v1::Nodes {
            first_id: CHAIN as u32 + 1 + at,
            parents: vec![0],
            // Beyond the letters, one of which is guessed already and would be no news.
            tokens: vec![130 + at],
            edges: vec![30_000],
            owners: vec![0],
            ..v1::Nodes::default()
        };
        let report = v1::SessionReport {
            session,
            // Given to the target first.
            term: 2,
            base_len: 6,
            nodes: Some(nodes),
            ..v1::SessionReport::default()
        };
        let sent = Instant::now();
        draft.send(v1::WorkerFrame {
            reports: vec![report],
            faults: Vec::new(),
        });
        let told = at as usize + 2;
        until(&target.inner.seen, |seen| seen.guess_updates >= told).await;
        times.push(sent.elapsed());
    }
    times.sort();
    println!(
        "a guess from draft to target: median {:?}, p90 {:?}",
        times[60], times[108]
    );
    assert!(times[60] < LIMIT, "median {:?}", times[60]);
}

/// The hop that a draft is behind its target by: from the target's pick, at the end of its step, until the draft has the new
/// text and its first row could begin. Both ends are in this process, so that one clock measures it; what is left out is the
/// wake of the draft's model thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_pick_crosses_to_a_draft_without_a_timer_in_its_way() {
    const PICKS: usize = 80;
    let target = FakeTarget::start(Pace::Hold).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    let _stream = rig.send(request("auto", 100)).await.unwrap();
    let seen = until(&draft.inner.seen, |seen| seen.opened.len() == 1).await;
    let session = *seen.opened.first().unwrap();
    until(&target.inner.seen, |seen| seen.guess_updates == 1).await;
    let mut times = Vec::new();
    for len in (6..).take(PICKS) {
        let report = v1::SessionReport {
            session,
            term: 1,
            base_len: len,
            picks: vec![u32::from(b'x')],
            margins: vec![40],
            ..v1::SessionReport::default()
        };
        let picked = Instant::now();
        target.send(v1::WorkerFrame {
            reports: vec![report],
            faults: Vec::new(),
        });
        let has = len as usize + 1;
        until(&draft.inner.seen, |seen| {
            seen.lens.get(&session) == Some(&has)
        })
        .await;
        times.push(picked.elapsed());
    }
    times.sort();
    println!(
        "a pick from target to draft: median {:?}, p90 {:?}",
        times[PICKS / 2],
        times[PICKS * 9 / 10]
    );
    assert!(times[PICKS / 2] < LIMIT, "median {:?}", times[PICKS / 2]);
}

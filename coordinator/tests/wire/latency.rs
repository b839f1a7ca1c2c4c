//! The hot path: how long a guess takes from a draft's hand into the target's.

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

//! A session that outlives its link: who comes back in time finds its cache, and everybody else finds nothing.

use std::time::Duration;

use speculation::message::{Relayed, SessionSpec, Term, VerifyReport};
use worker::{LinkEnd, OpenError, WorkerHandle};

use crate::{Asked, PROMPT, name, plain, spec, start};

/// Longer than a lease.
const PATIENCE: Duration = Duration::from_secs(20);

type ToWorker = futures::channel::mpsc::Sender<Result<Relayed, String>>;

/// A link of coordinator 1; dropping the sender breaks it.
async fn link(
    handle: &WorkerHandle<VerifyReport>,
    number: u64,
) -> (ToWorker, LinkEnd<VerifyReport>) {
    let (to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(name(number), number, frames);
    tokio::spawn(pump);
    (to_worker, end)
}

/// Reads until the text has this many tokens; gives it and the last report.
async fn read(end: &LinkEnd<VerifyReport>, text: &mut Vec<u32>, len: usize) -> VerifyReport {
    loop {
        for report in end.next(4).await.unwrap() {
            let report = report.message.unwrap();
            let known = text.len() - report.base_len as usize;
            text.extend(report.picks.iter().skip(known));
            if text.len() >= len {
                return report;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_goes_on_without_a_second_prefill() {
    let asked = Asked::default();
    let truth = plain("draft", &asked).text;
    let handle = start("draft");
    let parked = PROMPT.len() + 10;
    let (to_worker, end) = link(&handle, 1).await;
    let first = spec(0, &asked, parked as u32);
    handle
        .open(name(1), first.clone(), asked.params)
        .await
        .unwrap();
    let mut text = PROMPT.to_vec();
    read(&end, &mut text, parked).await;
    drop(to_worker);
    drop(end);

    let (_to_worker, end) = link(&handle, 2).await;
    // A call that outlived its stream; until the loss is noticed, it is a second one of the same term.
    let late = loop {
        match handle.open(name(1), first.clone(), asked.params).await {
            Err(OpenError::Duplicate(_)) => tokio::task::yield_now().await,
            decided => break decided,
        }
    };
    assert_eq!(late, Err(OpenError::NotLinked(name(1))));
    let again = handle.open(name(2), first.clone(), asked.params).await;
    assert!(
        matches!(again, Err(OpenError::Duplicate(_))),
        "the same term: {again:?}"
    );
    // The coordinator has missed the last four tokens: they are found again, and no others.
    text.truncate(parked - 4);
    let second = SessionSpec {
        term: Term(2),
        text: text.clone(),
        allowed_len: 1000,
        ..first
    };
    handle.open(name(2), second, asked.params).await.unwrap();
    let len = PROMPT.len() + truth.len();
    let last = read(&end, &mut text, len).await;
    assert_eq!(text[PROMPT.len()..], truth);
    let tokens = (truth.len() - 6) as u64;
    assert_eq!(
        last.activity.rows, tokens,
        "one row for each token, none for the prompt"
    );
    handle.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_come_back_leaves_nothing() {
    let asked = Asked::default();
    let handle = start("draft");
    let (to_worker, end) = link(&handle, 1).await;
    let first = spec(0, &asked, PROMPT.len() as u32 + 1);
    handle.open(name(1), first, asked.params).await.unwrap();
    let mut text = PROMPT.to_vec();
    read(&end, &mut text, PROMPT.len() + 1).await;
    drop(to_worker);
    let ended = tokio::time::timeout(PATIENCE, handle.idle()).await;
    assert!(ended.is_ok(), "the lease does not end");
    handle.stop();
}

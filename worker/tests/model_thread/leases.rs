//! A session that outlives its stream: who comes back in time finds its cache, and everybody else finds nothing.

use std::time::Duration;

use offshoot_worker::{OpenError, Reports};
use speculation::message::{Report, SessionSpec, Term};

use crate::plain::plain;
use crate::{Asked, PROMPT, name, report, spec, start, stream};

/// Longer than a lease.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads until the text has this many tokens; gives it and the last report.
async fn read(reports: &Reports, text: &mut Vec<u32>, len: usize) -> Report {
    loop {
        for message in reports.next(4).await.unwrap() {
            let report = report(message);
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
    let (to_worker, reports, lost) = stream(&handle, 1).await;
    let first = spec(0, &asked, parked as u32);
    handle
        .open(name(1), first.clone(), asked.sampling.clone())
        .await
        .unwrap();
    let mut text = PROMPT.to_vec();
    read(&reports, &mut text, parked).await;
    drop(to_worker);
    drop(reports);
    // The event is in the inbox by then.
    lost.wait().await;

    let (_to_worker, reports, _) = stream(&handle, 2).await;
    // A call that outlived its stream.
    let late = (handle.open(name(1), first.clone(), asked.sampling.clone())).await;
    assert_eq!(late, Err(OpenError::NoStream(name(1))));
    let again = handle
        .open(name(2), first.clone(), asked.sampling.clone())
        .await;
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
    handle
        .open(name(2), second, asked.sampling.clone())
        .await
        .unwrap();
    let len = PROMPT.len() + truth.len();
    let last = read(&reports, &mut text, len).await;
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
    let (to_worker, reports, _) = stream(&handle, 1).await;
    let first = spec(0, &asked, PROMPT.len() as u32 + 1);
    handle
        .open(name(1), first, asked.sampling.clone())
        .await
        .unwrap();
    let mut text = PROMPT.to_vec();
    read(&reports, &mut text, PROMPT.len() + 1).await;
    drop(to_worker);
    let ended = tokio::time::timeout(PATIENCE, handle.idle()).await;
    assert!(ended.is_ok(), "the lease does not end");
    handle.stop();
}

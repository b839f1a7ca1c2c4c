//! A session on its own, and what ends it.

use decode::sampling::SamplingParams;
use futures::SinkExt;
use offshoot_worker::{OpenError, StreamOver};
use speculation::message::{Finish, FromWorker, ReplicaUpdate, SessionId};
use speculation::strategy::Settings;

use crate::plain::plain;
use crate::{
    Asked, PROMPT, Reported, SESSION, TOKENS, frame, guesses, name, report, run, spec, start,
    stream,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_decoding_is_the_engine_and_the_sampler() {
    let truth = plain("draft", &Asked::default());
    let Reported { text, last, .. } = run("draft", 0, &Asked::default(), &truth).await;
    assert_eq!(text, truth.text);
    assert_eq!(last.finish, Some(Finish::Length));
    assert_eq!(last.walks.steps, u64::from(TOKENS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_change_the_number_of_steps_and_nothing_else() {
    let truth = plain("draft", &Asked::default());
    let Reported { text, last, .. } = run("draft", 16, &Asked::default(), &truth).await;
    assert_eq!(text, truth.text);
    assert_eq!(last.walks.tokens, u64::from(TOKENS));
    assert!(last.walks.guesses_submitted > last.walks.guesses_accepted);
    assert!(
        last.walks.steps <= u64::from(TOKENS).div_ceil(4) + 1,
        "{:?}",
        last.walks
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_parks_at_its_credit_and_a_lost_stream_frees_everything() {
    let handle = start("draft");
    let (mut to_worker, reports, tasks) = stream(&handle, 1).await;
    let credit = PROMPT.len() as u32 + 3;
    handle
        .open(
            name(1),
            spec(0, &Asked::default(), credit),
            Asked::default().sampling,
        )
        .await
        .unwrap();
    let mut have = PROMPT.len();
    while have < credit as usize {
        for message in reports.next(4).await.unwrap() {
            let report = report(message);
            have = have.max(report.base_len as usize + report.picks.len());
        }
    }
    assert_eq!(have, credit as usize);
    let more = ReplicaUpdate {
        base_len: PROMPT.len() as u32,
        allowed_len: credit + 1,
        ..ReplicaUpdate::default()
    };
    to_worker.send(frame(more)).await.unwrap();
    let report = report(reports.next(4).await.unwrap().pop().unwrap());
    assert_eq!(
        report.base_len as usize + report.picks.len(),
        credit as usize + 1
    );
    let again = handle
        .open(
            name(1),
            spec(0, &Asked::default(), credit),
            Asked::default().sampling,
        )
        .await;
    assert_eq!(again, Err(OpenError::Duplicate(SESSION)));
    drop(to_worker);
    tasks.wait().await;
    handle.idle().await;
    let late = handle
        .open(
            name(1),
            spec(0, &Asked::default(), credit),
            Asked::default().sampling,
        )
        .await;
    assert_eq!(late, Err(OpenError::NoStream(name(1))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_opens_are_refused_by_name() {
    let handle = start("draft");
    let (_to_worker, _reports, _) = stream(&handle, 1).await;
    let hot = SamplingParams {
        temperature: -1.0,
        ..SamplingParams::default()
    };
    let refused = handle
        .open(name(1), spec(0, &Asked::default(), 9), hot)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("temperature"), "{refused}");
    let mut alien = spec(0, &Asked::default(), 9);
    alien.text[2] = 70_000;
    let refused = handle
        .open(name(1), alien, Asked::default().sampling)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("70000"), "{refused}");
    let mut long = spec(0, &Asked::default(), 9);
    long.stopping.max_len = 100_000;
    let refused = handle
        .open(name(1), long, Asked::default().sampling)
        .await
        .unwrap_err();
    assert!(matches!(refused, OpenError::TooLong { .. }), "{refused}");
    let mut alien = spec(0, &Asked::default(), 9);
    alien.strategy = Settings::new("magic");
    let refused = handle
        .open(name(1), alien, Asked::default().sampling)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("magic"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_update_ends_its_session_and_no_other() {
    let handle = start("draft");
    let (mut to_worker, reports, _) = stream(&handle, 1).await;
    handle
        .open(
            name(1),
            spec(0, &Asked::default(), 6),
            Asked::default().sampling,
        )
        .await
        .unwrap();
    let mut other = spec(0, &Asked::default(), 1000);
    other.session = SessionId(6);
    handle
        .open(name(1), other, Asked::default().sampling)
        .await
        .unwrap();
    let mut bad = guesses(PROMPT.len() as u32, 1, &[1]);
    bad.nodes.parents[0] = 99;
    to_worker.send(frame(bad)).await.unwrap();
    let (mut fault, mut finished) = (None, None);
    while fault.is_none() || finished.is_none() {
        for message in reports.next(4).await.unwrap() {
            match message.message {
                FromWorker::Fault(why) => fault = Some((message.session, why)),
                FromWorker::Preempted => panic!("there is room for all"),
                FromWorker::Report(report) if report.finish.is_some() => {
                    finished = Some(message.session);
                }
                FromWorker::Report(_) => {}
            }
        }
    }
    let (session, why) = fault.unwrap();
    assert_eq!((session, finished), (SESSION, Some(SessionId(6))));
    assert!(why.contains("99"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_halves_of_a_stream_end_together() {
    let handle = start("draft");
    let (mut to_worker, reports, tasks) = stream(&handle, 1).await;
    handle
        .open(
            name(1),
            spec(0, &Asked::default(), 6),
            Asked::default().sampling,
        )
        .await
        .unwrap();
    to_worker
        .send(Err("a broken frame".to_owned()))
        .await
        .unwrap();
    tasks.wait().await;
    let over = loop {
        if let Err(over) = reports.next(4).await {
            break over;
        }
    };
    assert_eq!(over, StreamOver(Some("a broken frame".to_owned())));
    handle.idle().await;
    let (_to_worker, reports, tasks) = stream(&handle, 2).await;
    drop(reports);
    tasks.wait().await;
    let (_to_worker, reports, tasks) = stream(&handle, 3).await;
    handle.stop();
    tasks.wait().await;
    assert_eq!(reports.next(4).await, Err(StreamOver(None)));
    handle.ended().await;
}

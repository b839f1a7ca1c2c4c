//! A session on its own, and what ends it.

use engine::sampling::SamplingParams;
use futures::SinkExt;
use speculation::message::{Finish, ReplicaUpdate, SessionId};
use worker::{LinkOver, OpenError};

use crate::{
    Asked, Heard, PROMPT, SESSION, TOKENS, guesses, name, plain, relayed, run, spec, start,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_decoding_is_the_engine_and_the_sampler() {
    let truth = plain("draft", &Asked::default());
    let Heard { text, last, .. } = run("draft", 0, &Asked::default(), &truth).await;
    assert_eq!(text, truth.text);
    assert_eq!(last.finish, Some(Finish::Length));
    assert_eq!(last.walks.steps, u64::from(TOKENS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_change_the_number_of_steps_and_nothing_else() {
    let truth = plain("draft", &Asked::default());
    let Heard { text, last, .. } = run("draft", 16, &Asked::default(), &truth).await;
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
async fn a_session_parks_at_its_credit_and_a_lost_link_frees_everything() {
    let handle = start("draft");
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(name(1), 1, frames);
    let pump = tokio::spawn(pump);
    let credit = PROMPT.len() as u32 + 3;
    handle
        .open(
            name(1),
            spec(0, &Asked::default(), credit),
            Asked::default().params,
        )
        .await
        .unwrap();
    let mut have = PROMPT.len();
    while have < credit as usize {
        for report in end.next(4).await.unwrap() {
            let report = report.message.unwrap();
            have = have.max(report.base_len as usize + report.picks.len());
        }
    }
    assert_eq!(have, credit as usize);
    let more = ReplicaUpdate {
        base_len: PROMPT.len() as u32,
        allowed_len: credit + 1,
        ..ReplicaUpdate::default()
    };
    to_worker.send(relayed(more)).await.unwrap();
    let report = end.next(4).await.unwrap().pop().unwrap().message.unwrap();
    assert_eq!(
        report.base_len as usize + report.picks.len(),
        credit as usize + 1
    );
    let again = handle
        .open(
            name(1),
            spec(0, &Asked::default(), credit),
            Asked::default().params,
        )
        .await;
    assert_eq!(again, Err(OpenError::Duplicate(SESSION)));
    drop(to_worker);
    pump.await.unwrap();
    handle.idle().await;
    let unlinked = handle
        .open(
            name(1),
            spec(0, &Asked::default(), credit),
            Asked::default().params,
        )
        .await;
    assert_eq!(unlinked, Err(OpenError::NotLinked(name(1))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_opens_are_refused_by_name() {
    let handle = start("draft");
    let (_to_worker, frames) = futures::channel::mpsc::channel(8);
    let (_end, pump) = handle.link(name(1), 1, frames);
    tokio::spawn(pump);
    let hot = SamplingParams {
        temperature: -1.0,
        ..Asked::default().params
    };
    let refused = handle
        .open(name(1), spec(0, &Asked::default(), 9), hot)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("temperature"), "{refused}");
    let mut alien = spec(0, &Asked::default(), 9);
    alien.text[2] = 70_000;
    let refused = handle
        .open(name(1), alien, Asked::default().params)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("70000"), "{refused}");
    let mut long = spec(0, &Asked::default(), 9);
    long.stopping.max_len = 100_000;
    let refused = handle
        .open(name(1), long, Asked::default().params)
        .await
        .unwrap_err();
    assert!(matches!(refused, OpenError::TooLong { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_update_ends_its_session_and_no_other() {
    let handle = start("draft");
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(name(1), 1, frames);
    tokio::spawn(pump);
    handle
        .open(
            name(1),
            spec(0, &Asked::default(), 6),
            Asked::default().params,
        )
        .await
        .unwrap();
    let mut other = spec(0, &Asked::default(), 1000);
    other.session = SessionId(6);
    handle
        .open(name(1), other, Asked::default().params)
        .await
        .unwrap();
    let mut bad = guesses(PROMPT.len() as u32, 1, &[1]);
    bad.nodes.parents[0] = 99;
    to_worker.send(relayed(bad)).await.unwrap();
    let (mut fault, mut finished) = (None, None);
    while fault.is_none() || finished.is_none() {
        for report in end.next(4).await.unwrap() {
            match report.message {
                Err(why) => fault = Some((report.session, why)),
                Ok(message) if message.finish.is_some() => finished = Some(report.session),
                Ok(_) => {}
            }
        }
    }
    let (session, why) = fault.unwrap();
    assert_eq!((session, finished), (SESSION, Some(SessionId(6))));
    assert!(why.contains("99"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_halves_of_a_link_end_together() {
    let handle = start("draft");
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(name(1), 1, frames);
    let pump = tokio::spawn(pump);
    handle
        .open(
            name(1),
            spec(0, &Asked::default(), 6),
            Asked::default().params,
        )
        .await
        .unwrap();
    to_worker.send(Err("nonsense".to_owned())).await.unwrap();
    pump.await.unwrap();
    let over = loop {
        if let Err(over) = end.next(4).await {
            break over;
        }
    };
    assert_eq!(over, LinkOver(Some("nonsense".to_owned())));
    handle.idle().await;
    let (_to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(name(2), 2, frames);
    let pump = tokio::spawn(pump);
    drop(end);
    pump.await.unwrap();
    let (_to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(name(3), 3, frames);
    let pump = tokio::spawn(pump);
    handle.stop();
    pump.await.unwrap();
    assert_eq!(end.next(4).await, Err(LinkOver(None)));
    handle.ended().await;
}

//! Sessions that are refused, given up on either side, or overtaken.

use std::time::Duration;

use futures::FutureExt;
use speculation::message::Finish;

use super::*;
use crate::event::INBOX;
use crate::{OpenError, StreamOver};

#[tokio::test]
async fn a_part_that_the_backend_refuses_ends_its_session_and_no_other() {
    let (handle, gate) = start(Duration::ZERO);
    let (_to_worker, reports, _) = stream(&handle).await;
    gate.close();
    handle.open(NAME, spec(1, 8), greedy()).await.unwrap();
    gate.arrived().await;
    // Opened during a step of the first, so that the next one is for both.
    let (open, ()) = tokio::join!(handle.open(NAME, spec(2, 8), greedy()), async {
        gate.refuse(Call::Step, 0);
        gate.open();
    });
    open.unwrap();
    let (second, faults) = last(&reports, 2).await;
    assert_eq!(second.finish, Some(Finish::Length));
    let [(1, why)] = faults.as_slice() else {
        panic!("{faults:?}");
    };
    assert!(why.contains("not open"), "{why}");
    assert_eq!(gate.sequences(), (2, 1));
    // What the other one has reported is the model's own text.
    let (alone, _) = start(Duration::ZERO);
    let (_to_worker, reports, _) = stream(&alone).await;
    alone.open(NAME, spec(2, 8), greedy()).await.unwrap();
    assert_eq!(last(&reports, 2).await.0.picks, second.picks);
}

#[tokio::test]
async fn a_cache_that_does_not_follow_ends_its_session_and_no_other() {
    let (handle, gate) = start(Duration::ZERO);
    let (to_worker, reports, _) = stream(&handle).await;
    let rests = |report: Report| report.round_done;
    // One after the other: what is read for one would be lost for the other.
    for session in [1, 2] {
        handle.open(NAME, draft(session), greedy()).await.unwrap();
        assert_eq!(read(&reports, session, rests).await.1, []);
    }
    gate.refuse(Call::Apply, 0);
    for session in [1, 2] {
        let commit = ReplicaUpdate {
            base_len: PROMPT.len() as u32,
            // Nobody has guessed it, so that every row is dropped.
            commit: vec![1],
            ..ReplicaUpdate::default()
        };
        to_worker.send_async(frame(session, commit)).await.unwrap();
    }
    let (_, mut faults) = read(&reports, 2, rests).await;
    while faults.is_empty() {
        for message in reports.next(8).await.unwrap() {
            if let FromWorker::Fault(why) = message.message {
                faults.push((message.session.0, why));
            }
        }
    }
    let [(1, why)] = faults.as_slice() else {
        panic!("{faults:?}");
    };
    assert!(why.contains("the cache and the tree disagree"), "{why}");
    assert_eq!((gate.sequences(), handle.sessions()), ((2, 1), 1));
}

#[tokio::test]
async fn a_refused_open_frees_everything_also_what_it_was_to_replace() {
    let (handle, gate) = start(Duration::ZERO);
    let (_to_worker, reports, _) = stream(&handle).await;
    let unknown = SessionSpec {
        strategy: Settings::new("magic"),
        ..spec(1, 8)
    };
    let refused = handle.open(NAME, unknown, greedy()).await.unwrap_err();
    assert!(refused.to_string().contains("magic"), "{refused}");
    assert_eq!((gate.sequences(), handle.sessions()), ((1, 0), 0));
    handle.open(NAME, spec(1, 8), greedy()).await.unwrap();
    last(&reports, 1).await;
    let second = SessionSpec {
        term: Term(2),
        duties: Duties::of(Duty::Advise).and(Duty::Commit),
        ..spec(1, 8)
    };
    let refused = handle.open(NAME, second, greedy()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Session(_)), "{refused}");
    assert_eq!((gate.sequences(), handle.sessions()), ((2, 0), 0));
    // All sequences of the model are in use.
    handle.open(NAME, spec(3, 8), greedy()).await.unwrap();
    for session in 4..7 {
        handle.open(NAME, spec(session, 8), greedy()).await.unwrap();
    }
    let refused = handle.open(NAME, spec(7, 8), greedy()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Full(_)), "{refused}");
    assert_eq!((gate.sequences(), handle.sessions()), ((6, 4), 4));
}

#[tokio::test]
async fn an_open_call_that_nobody_waits_for_opens_nothing() {
    let (handle, gate) = start(Duration::ZERO);
    let (_to_worker, reports, _) = stream(&handle).await;
    gate.close();
    handle.open(NAME, spec(1, 8), greedy()).await.unwrap();
    gate.arrived().await;
    let call = handle.open(NAME, spec(2, 8), greedy());
    assert_eq!(call.now_or_never(), None);
    assert_eq!(handle.queued(), 1);
    gate.open();
    last(&reports, 1).await;
    assert_eq!((gate.sequences(), handle.sessions()), ((1, 1), 1));
}

#[tokio::test]
async fn a_step_that_a_commit_makes_worthless_is_given_up() {
    let (handle, gate) = start(Duration::ZERO);
    let (to_worker, reports, _) = stream(&handle).await;
    let advise = SessionSpec {
        strategy: Settings::new("eager"),
        duties: Duties::of(Duty::Advise),
        ..spec(1, 40)
    };
    gate.close();
    handle.open(NAME, advise, greedy()).await.unwrap();
    gate.arrived().await;
    gate.pass();
    let (advice, _) = read(&reports, 1, |report| report.picks.first().copied()).await;
    // The second step computes the advice that the first has given.
    gate.arrived().await;
    let commit = ReplicaUpdate {
        base_len: PROMPT.len() as u32,
        commit: vec![advice ^ 1],
        ..ReplicaUpdate::default()
    };
    to_worker.send_async(frame(1, commit)).await.unwrap();
    // The second one says nothing; it was taken after the first.
    to_worker
        .send_async(Ok(CoordinatorFrame::default()))
        .await
        .unwrap();
    gate.open();
    let (abandoned, faults) = read(&reports, 1, |report| {
        let is_new = report.base_len > PROMPT.len() as u32;
        is_new.then_some(report.activity.abandoned_steps)
    })
    .await;
    assert_eq!((abandoned, faults), (1, Vec::new()));
}

#[tokio::test]
async fn a_paced_step_lasts_as_long_as_it_should() {
    const PACE: Duration = Duration::from_millis(20);
    let (handle, _gate) = start(PACE);
    let (_to_worker, reports, _) = stream(&handle).await;
    handle.open(NAME, spec(1, 4), greedy()).await.unwrap();
    let (report, _) = last(&reports, 1).await;
    let Report {
        activity, walks, ..
    } = report;
    assert_eq!((activity.steps, walks.steps), (4, 4));
    let busy = Duration::from_micros(activity.busy_us);
    assert!(busy >= 4 * PACE, "{busy:?}");
}

#[tokio::test]
async fn a_full_inbox_refuses_calls_and_holds_up_streams() {
    let (handle, gate) = start(Duration::ZERO);
    let (to_worker, reports, tasks) = stream(&handle).await;
    gate.close();
    handle.open(NAME, spec(1, 8), greedy()).await.unwrap();
    gate.arrived().await;
    let mut waiting = Vec::new();
    while handle.queued() < INBOX {
        let mut call = Box::pin(handle.open(NAME, spec(2, 8), greedy()));
        assert_eq!((&mut call).now_or_never(), None);
        waiting.push(call);
    }
    let refused = handle.open(NAME, spec(3, 8), greedy()).await.unwrap_err();
    assert!(refused.to_string().contains("inbox is full"), "{refused}");
    // One caller gives up before its stream is known, another one waits.
    let second = |incarnation| StreamName {
        coordinator: 2,
        incarnation,
    };
    let never = futures::stream::pending::<Result<CoordinatorFrame, String>>;
    let left = TaskTracker::new();
    let given_up = handle.stream(second(1), 2, never(), &left);
    assert!(given_up.now_or_never().is_none());
    drop(waiting);
    left.close();
    let (kept, ()) = tokio::join!(handle.stream(second(2), 3, never(), &tasks), async {
        gate.open();
        left.wait().await;
    });
    // Calls that waited follow into the inbox.
    while handle.queued() >= INBOX {
        tokio::task::yield_now().await;
    }
    let late = handle.open(second(1), spec(4, 8), greedy()).await;
    assert_eq!(late, Err(OpenError::NoStream(second(1))));
    handle.open(second(2), spec(5, 8), greedy()).await.unwrap();
    last(&kept, 5).await;
    // The first stream has lost nothing.
    last(&reports, 1).await;
    assert_eq!(gate.sequences(), (2, 2));
    drop((to_worker, reports, kept));
    tasks.wait().await;
}

#[tokio::test]
async fn the_end_of_the_thread_ends_its_streams() {
    let (handle, _gate) = start(Duration::ZERO);
    let (_to_worker, reports, tasks) = stream(&handle).await;
    handle.stop();
    handle.ended().await;
    assert_eq!(reports.next(1).await, Err(StreamOver(None)));
    tasks.wait().await;
    let late = handle.open(NAME, spec(1, 8), greedy()).await;
    assert_eq!(late, Err(OpenError::Stopped));
}

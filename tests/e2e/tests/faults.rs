//! The quick form of the fault table: one repetition of the cheap rows, without figures.
//!
//! While there is another worker of the role, no request fails, and no token differs from plain decoding.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use offshoot_e2e::faults::load::Jobs;
use offshoot_e2e::faults::rig::{Layout, Pace, Rig, Role};
use offshoot_e2e::faults::row::{Fault, Link, Notice};
use offshoot_e2e::faults::table;
use offshoot_e2e::faults::trial::{Plan, Timing, series};
use offshoot_e2e::strategies;

const LAYOUT: Layout = Layout {
    drafts: 2,
    qualifiers: 1,
    targets: 2,
    coordinators: 2,
    pace: Pace {
        draft: 2.0,
        qualifier: 7.0,
        target: 20.0,
    },
    seed: 1,
};

/// Faults that clients do not notice, then faults after which they have to resume.
const ROWS: [Fault; 12] = [
    Fault::Kill(Role::Draft),
    Fault::Kill(Role::Qualifier),
    Fault::Kill(Role::Target),
    Fault::Reset(Link::Worker(Role::Target)),
    Fault::Reset(Link::Worker(Role::Draft)),
    Fault::Reset(Link::Worker(Role::Qualifier)),
    Fault::BlackHole(Link::Worker(Role::Draft)),
    Fault::Slow(Link::Worker(Role::Target)),
    Fault::RollingRestart(Role::Qualifier),
    Fault::LateJoin(Role::Draft),
    Fault::Reset(Link::Client),
    Fault::Kill(Role::Coordinator),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_and_no_token_differs() {
    let strategies: Vec<&str> = strategies().iter().map(|entry| entry.name).collect();
    let plan = Plan {
        layout: LAYOUT,
        clients: 3,
        jobs: Jobs::new(4, 64, &strategies).await.unwrap(),
        repetitions: 1,
        timing: Timing::QUICK,
    };
    let mut rig = Rig::start(LAYOUT).await.unwrap();
    for fault in ROWS {
        let done = series(&plan, &mut rig, fault, |_| {}).await.unwrap();
        println!("{}", table::line(&done));
        let one = &done.repetitions[0];
        let what = format!("{}, {}: {one:?}", fault.name(), fault.place());
        assert!(one.requests >= plan.clients, "{what}");
        assert_eq!((one.failed, one.differing), (0, 0), "{what}");
        match fault.notice() {
            Notice::Hidden => assert_eq!((one.interrupted, one.notes.len()), (0, 0), "{what}"),
            // Otherwise the fault affected no request, and the row proves nothing.
            Notice::Disconnected | Notice::Silent => assert!(one.interrupted > 0, "{what}"),
        }
    }
}

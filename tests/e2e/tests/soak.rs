//! The soak, shortly: mixed traffic under random faults. The hour is in docs/faults.md.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::Duration;

use offshoot_e2e::full;
use offshoot_e2e::soak::report::Bounds;
use offshoot_e2e::soak::{Plan, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_nothing_differs_and_nothing_is_left_over() {
    let time = Duration::from_secs(if full() { 600 } else { 40 });
    let plan = Plan {
        time,
        between_rests: if full() { time / 2 } else { time },
        clients: 6,
        requests: 16,
        seed: 1,
    };
    let bounds = Bounds {
        // The first minutes fill what is kept for later.
        memory: 32.0,
        acceptance: None,
    };
    let findings = run(plan, |_| {}).await.unwrap();
    println!("{}", findings.tables());
    assert_eq!(findings.faults_found(bounds), Vec::<String>::new());
}

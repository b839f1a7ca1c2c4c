//! Thousands of schedules, every seed that has ever failed, and that a seed says everything.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use simulation::Coverage;
use speculation::strategy::Registry;

/// Runs seeds until one fails, and says how to look at it.
fn hold(seeds: impl IntoIterator<Item = u64>) -> Coverage {
    let registry = Registry::default();
    seeds.into_iter().fold(Coverage::default(), |total, seed| {
        match simulation::check(seed, &registry) {
            Ok(coverage) => total.plus(coverage),
            Err(reason) => panic!(
                "seed {seed}: {reason}\nreplay: cargo run --release -p offshoot-sim --bin simulate -- --seed {seed}"
            ),
        }
    })
}

#[test]
fn every_schedule_ends_with_the_plain_text_and_leaves_nothing_behind() {
    let total = hold(0..4_000);
    // Schedules that never reach what they are for would prove nothing.
    assert!(total.failovers > 1_500, "{total:?}");
    assert!(total.takebacks > 150, "{total:?}");
    assert!(total.preemptions > 100, "{total:?}");
    assert!(total.waits > 3_000, "{total:?}");
    assert!(total.retirements > 1_500, "{total:?}");
    assert!(total.resumes > 500, "{total:?}");
    assert!(total.refusals > 1_000, "{total:?}");
    assert!(total.failures > 500, "{total:?}");
    for entry in Registry::default().entries() {
        let requests = total.strategies.get(entry.name).copied().unwrap_or(0);
        assert!(requests > 500, "{} of {total:?}", entry.name);
    }
}

#[test]
fn what_has_failed_once_holds() {
    let seeds = include_str!("../seeds/regressions.txt");
    let seeds: Vec<u64> = (seeds.lines())
        .filter_map(|line| line.split('#').next())
        .map(str::trim)
        .filter(|seed| !seed.is_empty())
        .map(|seed| seed.parse().unwrap())
        .collect();
    assert!(!seeds.is_empty());
    hold(seeds);
}

#[test]
fn a_seed_says_everything_that_happens() {
    let registry = Registry::default();
    for seed in [3, 256, 3414] {
        let (first, result) = simulation::replay(seed, &registry);
        let (second, _) = simulation::replay(seed, &registry);
        assert!(result.is_ok() && first.len() > 10, "{result:?}");
        assert_eq!(first, second);
    }
}

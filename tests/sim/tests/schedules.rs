//! Thousands of schedules, every seed that has ever failed, and that a seed says everything.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use offshoot_sim::Coverage;

/// Runs seeds until one fails, and says how to look at it.
fn hold(seeds: impl IntoIterator<Item = u64>) -> Coverage {
    seeds.into_iter().fold(Coverage::default(), |total, seed| {
        match offshoot_sim::check(seed) {
            Ok(coverage) => total.plus(coverage),
            Err(reason) => panic!(
                "seed {seed}: {reason}\nreplay: cargo run --release -p offshoot-sim --bin simulate -- --seed {seed}"
            ),
        }
    })
}

#[test]
fn every_schedule_ends_with_the_plain_text_and_leaves_nothing_behind() {
    let total = hold(0..6_000);
    // Schedules that never reach what they are for would prove nothing.
    assert!(total.replays > 2_000, "{total:?}");
    assert!(total.takebacks > 200, "{total:?}");
    assert!(total.failures > 500, "{total:?}");
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
    for seed in [3, 256, 3414] {
        let (first, result) = offshoot_sim::replay(seed);
        let (second, _) = offshoot_sim::replay(seed);
        assert!(result.is_ok() && first.len() > 10, "{result:?}");
        assert_eq!(first, second);
    }
}

//! The rule `fuzzy` in real sessions of a draft, a qualifier and a target whose models are tables.

use decode::sampling::SamplingParams;
use decode::{Rule, Sampler, Tolerance};
use speculation::duty::Role;
use speculation::stats::WalkStats;
use speculation::strategy::Settings;

use crate::rejection::{Fault, run};

const TOKENS: usize = 24;

fn text(strategy: &Settings, (temperature, seed): (f32, u64)) -> (Vec<u32>, WalkStats) {
    let params = SamplingParams {
        temperature,
        seed,
        ..SamplingParams::default()
    };
    let roles = [Role::Draft, Role::Qualifier, Role::Target];
    let mut sampler = Sampler::new(5);
    let (text, stats) = run(
        strategy,
        (&roles, TOKENS),
        params,
        Fault::None,
        &mut sampler,
    );
    (text, stats.walks)
}

fn within(draft: f32, qualifier: f32) -> Settings {
    Settings::new("auto").by(Rule::Fuzzy(Tolerance { draft, qualifier }))
}

/// What differs from plain decoding, and what was tolerated, over some seeds and two temperatures.
fn compare(strategy: &Settings) -> (usize, u64) {
    let (mut differing, mut tolerated) = (0, 0);
    for temperature in [0.0, 1.0] {
        for seed in 0..60 {
            let (plain, _) = text(&Settings::new("ar"), (temperature, seed));
            let (fuzzy, walks) = text(strategy, (temperature, seed));
            assert_eq!(fuzzy.len(), TOKENS);
            assert!(
                walks.tolerated > 0 || fuzzy == plain,
                "{temperature}, {seed}"
            );
            differing += usize::from(fuzzy != plain);
            tolerated += walks.tolerated;
        }
    }
    (differing, tolerated)
}

/// A text differs only where a token was tolerated, and nothing is without a tolerance between qualifier and target: what
/// the qualifier lets pass is advice.
#[test]
fn without_tolerance_it_is_exact_and_with_it_texts_differ_where_tokens_were_tolerated() {
    assert_eq!(compare(&within(0.0, 0.0)), (0, 0));
    assert_eq!(compare(&within(5.0, 0.0)), (0, 0));
    let (differing, tolerated) = compare(&within(0.4, 0.5));
    assert!(differing > 0 && tolerated > 0, "{differing}, {tolerated}");
    let (_, more) = compare(&within(5.0, 5.0));
    assert!(more > tolerated, "{more} of {tolerated}");
}

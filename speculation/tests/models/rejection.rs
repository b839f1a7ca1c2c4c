//! The rule `rejection` against exact enumeration: real sessions, relay, walk and sampler over models that are tables.
//!
//! Texts of three tokens from a vocabulary of five are generated for many seeds, and their frequencies compared with the
//! probabilities that the target's table gives them. Three faults that would bias the text are planted one by one, and the
//! same comparison has to find each.

use std::collections::BTreeMap;

use decode::sampling::{JudgeNoise, Noise, NoiseKey, SamplingParams};
use decode::{Answer, Ask, History, Judgement, Rule, Sampler, SamplerState, StepPlan};
use speculation::Time;
use speculation::bypass::Plan;
use speculation::duty::Role;
use speculation::learned::Learned;
use speculation::message::{Scoring, SessionId, Stopping};
use speculation::relay::{Candidate, Relay, RelayConfig, WorkerKey};
use speculation::stats::SessionStats;
use speculation::strategy::Settings;

use crate::rig::{AMPLE, MS, Next, VOCAB, Worker, registry};

pub(crate) const PROMPT: [u32; 2] = [3, 1];

/// Generated tokens of a text.
const TOKENS: usize = 3;

/// A check fails below this probability of its statistic. Seeds are fixed, so a check that passes always passes.
const ALPHA: f64 = 1e-4;

/// What is wrong, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// A rejection continues with the target's distribution instead of the residual.
    Biased,
    /// What was drawn is passed on only where the draft found its first token likely.
    Included,
    /// Acceptances are decided with the noise that the draft has drawn with.
    SharedNoise,
}

/// Logits by the last two tokens, where each model has its own table.
pub(crate) fn logits(role: Role, past: &[u32]) -> Vec<f32> {
    let [before, last] = [past[past.len() - 2], past[past.len() - 1]].map(f64::from);
    let at = |token: u32| {
        let token = f64::from(token);
        let common = (1.3 * last + 0.7 * before + 2.1 * token).sin();
        let own = match role {
            Role::Target => (0.9 * token - last).cos(),
            Role::Draft => (1.7 * token + before).sin(),
            Role::Qualifier => (1.3 * token - 0.6 * before).cos(),
        };
        (1.2 * common + 0.9 * own) as f32
    };
    (0..VOCAB).map(at).collect()
}

/// The probability of each text, by the target's table alone.
fn enumerated(params: &SamplingParams) -> BTreeMap<Vec<u32>, f64> {
    let mut texts = BTreeMap::from([(Vec::new(), 1.0)]);
    for _ in 0..TOKENS {
        let mut longer = BTreeMap::new();
        for (text, probability) in texts {
            let logits = logits(Role::Target, &[&PROMPT[..], &text].concat());
            let weights = logits
                .iter()
                .map(|&l| (f64::from(l) / f64::from(params.temperature)).exp());
            let mut weights: Vec<f64> = weights.collect();
            let mut sorted = weights.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            if params.top_k > 0 {
                let least = sorted[params.top_k as usize - 1];
                for weight in weights.iter_mut().filter(|weight| **weight < least) {
                    *weight = 0.0;
                }
            }
            let mass: f64 = weights.iter().sum();
            for (token, weight) in (0..).zip(weights) {
                let longer_text = [&text[..], &[token]].concat();
                longer.insert(longer_text, probability * weight / mass);
            }
        }
        texts = longer;
    }
    texts
}

/// A worker with its model.
struct Model {
    worker: Worker,
    role: Role,
    params: SamplingParams,
    state: SamplerState,
    fault: Fault,
}

impl Model {
    fn answers(&mut self, sampler: &mut Sampler, plan: &StepPlan) -> Vec<Answer> {
        let Model {
            worker,
            role,
            params,
            state,
            fault,
        } = self;
        worker.answers_by(plan, |text, path, ask| {
            let logits = logits(*role, &[text, path].concat());
            let history = History {
                text,
                path,
                prompt_len: PROMPT.len() as u32,
            };
            match (ask, &*fault) {
                (Ask::Judge { judgement, score }, fault) => {
                    let by = &plan.judgements[usize::from(judgement)];
                    let Judgement::Rejection(drawn) = by else {
                        return sampler.judge((by, score), &logits, state, &history);
                    };
                    let sound = JudgeNoise::at(params, history.position());
                    let key = |noise| NoiseKey::of(noise, params.seed, 0, history.position());
                    let shared = JudgeNoise {
                        accept: key(Noise::Draft),
                        ..sound
                    };
                    let judged = match fault {
                        Fault::SharedNoise => {
                            let by = (drawn, &shared);
                            let pick = sampler.reject(&logits, params, history.position(), by);
                            Answer::Pick(pick.unwrap())
                        }
                        _ => sampler.judge((by, None), &logits, state, &history),
                    };
                    let Answer::Pick(pick) = &judged else {
                        panic!("tables are finite");
                    };
                    let is_rejected = drawn.tokens().all(|token| token != pick.token);
                    if *fault == Fault::Biased && is_rejected {
                        let plain = sampler.pick_after(&logits, state, &history);
                        return Answer::Pick(plain.unwrap());
                    }
                    judged
                }
                (Ask::Draw(_), Fault::Included) => {
                    let answer = sampler.answer(ask, &logits, state, &history);
                    let Some(Answer::Drawn(drawn)) = answer else {
                        panic!("tables are finite");
                    };
                    let first = drawn.tokens().next();
                    let own = (drawn.support()).find(|&(token, _)| Some(token) == first);
                    let total: u32 = drawn.support().map(|(_, weight)| u32::from(weight)).sum();
                    match own.is_some_and(|(_, weight)| 4 * u32::from(weight) > total) {
                        true => Answer::Drawn(drawn),
                        false => Answer::NotFinite,
                    }
                }
                _ => sampler.answer(ask, &logits, state, &history).unwrap(),
            }
        })
    }
}

/// The generated tokens of one request by a draft and a target.
fn text(
    strategy: &Settings,
    params: SamplingParams,
    fault: Fault,
    sampler: &mut Sampler,
) -> Vec<u32> {
    let roles = [Role::Draft, Role::Target];
    run(strategy, (&roles, TOKENS, 0), params, fault, sampler).0
}

/// The first schedule in which the worker whose role comes first is far slower than the others; the next ones are of the next
/// roles.
pub(crate) const ONE_IS_SLOW: u64 = 6;

/// How many turns a worker sits out for each that it takes, on average, and one more.
fn slowness(schedule: u64, key: WorkerKey) -> u64 {
    match schedule.checked_sub(ONE_IS_SLOW) {
        None => 1 + schedule % 5,
        Some(slow) if slow == u64::from(key.0) => 12,
        Some(_) => 1,
    }
}

/// The generated tokens of one request, and how it went. Workers step in the order of their roles; with a `schedule` other
/// than 0 each sits out as many turns as that decides, or from [`ONE_IS_SLOW`] on only one of them.
pub(crate) fn run(
    strategy: &Settings,
    (roles, tokens, schedule): (&[Role], usize, u64),
    params: SamplingParams,
    fault: Fault,
    sampler: &mut Sampler,
) -> (Vec<u32>, SessionStats) {
    let mut relay = Relay::new(RelayConfig {
        session: SessionId(1),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: PROMPT.len() as u32,
            max_len: (PROMPT.len() + tokens) as u32,
            ..Stopping::default()
        },
        scoring: Scoring::default(),
        strategy: registry().choose(strategy).unwrap(),
        vocab: VOCAB,
    });
    let mut models: BTreeMap<WorkerKey, Model> = BTreeMap::new();
    for (key, &role) in (0..).map(WorkerKey).zip(roles) {
        let Some(spec) = relay.add_worker(key, Candidate::new(role)) else {
            // Plain decoding has no use for a draft.
            continue;
        };
        let learned = Learned::new(Time::ZERO, Plan::default());
        let model = Model {
            worker: Worker::with(&spec, AMPLE, learned),
            role,
            params,
            state: params.into(),
            fault,
        };
        models.insert(key, model);
        relay.handle_opened(key);
    }
    for turn in 1..4000 {
        let now = MS * turn;
        for (&key, model) in &mut models {
            let dice = NoiseKey::new(schedule, key.0, turn).hash(turn / 16);
            if schedule > 0 && !dice.is_multiple_of(slowness(schedule, key)) {
                continue;
            }
            while let Some(update) = relay.poll_update(key) {
                model.worker.update(now, &update.message);
            }
            if let Next::Step(plan) = model.worker.poll(now, 256) {
                let answers = model.answers(sampler, &plan);
                model.worker.finish(now, &plan, &answers);
            }
            if let Some(report) = model.worker.report() {
                let term = relay.term_of(key).expect("it has the session");
                relay.handle_report(key, term, &report).unwrap();
            }
        }
        if relay.finish().is_some() {
            return (relay.text()[PROMPT.len()..].to_vec(), relay.stats());
        }
    }
    panic!("the text does not end");
}

/// The p-value of the frequencies of texts against their probabilities.
fn fit(strategy: &Settings, params: SamplingParams, fault: Fault, draws: u64) -> f64 {
    let mut sampler = Sampler::new(VOCAB);
    let mut counts: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
    for seed in 0..draws {
        let params = SamplingParams { seed, ..params };
        *counts
            .entry(text(strategy, params, fault, &mut sampler))
            .or_default() += 1;
    }
    let mut statistic = 0.0;
    let mut cells = 0_usize;
    let mut rare = (0.0, 0.0);
    for (text, probability) in enumerated(&params) {
        let count = counts.get(&text).copied().unwrap_or(0) as f64;
        let expected = probability * draws as f64;
        if probability == 0.0 && count > 0.0 {
            return 0.0;
        }
        if expected < 5.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            statistic += (count - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rare.1 >= 5.0 {
        statistic += (rare.0 - rare.1).powi(2) / rare.1;
        cells += 1;
    }
    p_value(statistic, cells - 1)
}

/// The probability that a chi-square variate with `freedom` degrees is at least `statistic` (Wilson and Hilferty's
/// cube-root normal approximation, 1931; the normal tail by approximation 7.1.26 of Abramowitz and Stegun).
fn p_value(statistic: f64, freedom: usize) -> f64 {
    let spread = 2.0 / (9.0 * freedom as f64);
    let z = ((statistic / freedom as f64).cbrt() - (1.0 - spread)) / spread.sqrt();
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736
                + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let tail = 0.5 * poly * (-x * x).exp();
    if z > 0.0 { tail } else { 1.0 - tail }
}

/// Chains and sibling groups.
fn strategies() -> Vec<Settings> {
    let tree =
        |depth, width| (Settings::new("serial-tree").with("depth", depth)).with("width", width);
    let all = [
        Settings::new("serial").with("gamma", 1.0),
        Settings::new("serial").with("gamma", 3.0),
        tree(2.0, 2.0),
        tree(3.0, 4.0),
        Settings::new("parallel").with("gamma", 2.0),
    ];
    all.map(|settings| settings.by(Rule::Rejection)).into()
}

fn at(temperature: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        ..SamplingParams::default()
    }
}

const DRAWS: u64 = 6_000;

#[test]
fn texts_have_the_targets_distribution_at_every_temperature() {
    for strategy in strategies() {
        for temperature in [0.4, 1.0, 1.8] {
            let p = fit(&strategy, at(temperature), Fault::None, DRAWS);
            assert!(p > ALPHA, "{strategy:?} at T = {temperature}: p = {p:e}");
        }
    }
}

#[test]
fn filters_apply_to_the_targets_distribution() {
    for strategy in &strategies()[1..4] {
        let params = SamplingParams {
            top_k: 3,
            ..at(1.0)
        };
        let p = fit(strategy, params, Fault::None, DRAWS);
        assert!(p > ALPHA, "{strategy:?}: p = {p:e}");
    }
}

/// Each fault is found for a chain and for sibling groups.
#[test]
fn planted_faults_are_found() {
    for fault in [Fault::Biased, Fault::Included, Fault::SharedNoise] {
        for strategy in [&strategies()[1], &strategies()[3]] {
            let p = fit(strategy, at(1.0), fault, DRAWS);
            assert!(
                p < ALPHA,
                "{fault:?} is not found with {strategy:?}: p = {p:e}"
            );
        }
    }
}

#[test]
fn at_temperature_zero_it_is_exact() {
    let mut sampler = Sampler::new(VOCAB);
    let plain = text(&Settings::new("ar"), at(0.0), Fault::None, &mut sampler);
    for strategy in strategies() {
        for seed in 0..20 {
            let params = SamplingParams { seed, ..at(0.0) };
            let judged = text(&strategy, params, Fault::None, &mut sampler);
            assert_eq!(judged, plain, "{strategy:?}");
        }
    }
}

/// Guesses are worth something: otherwise the comparison above would be one of plain decoding with itself.
#[test]
fn guesses_are_accepted_and_rejected() {
    let mut sampler = Sampler::new(VOCAB);
    let strategy = &strategies()[0];
    let rejecting = |seed| {
        text(
            strategy,
            SamplingParams { seed, ..at(1.0) },
            Fault::None,
            &mut sampler,
        )
    };
    let texts: Vec<_> = (0..200).map(rejecting).collect();
    let again = |seed| {
        text(
            strategy,
            SamplingParams { seed, ..at(1.0) },
            Fault::None,
            &mut Sampler::new(VOCAB),
        )
    };
    assert!(
        (0..200).map(again).eq(texts.iter().cloned()),
        "the seed decides"
    );
    let exact = Settings::new("ar");
    let plain = |seed| {
        text(
            &exact,
            SamplingParams { seed, ..at(1.0) },
            Fault::None,
            &mut Sampler::new(VOCAB),
        )
    };
    let same = (0..200)
        .filter(|&seed| plain(seed) == texts[seed as usize])
        .count();
    assert!(
        same < 150,
        "{same} of 200 texts are those of plain decoding"
    );
}

#[test]
fn one_draft_draws() {
    let mut relay = Relay::new(RelayConfig {
        session: SessionId(1),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: PROMPT.len() as u32,
            max_len: 100,
            ..Stopping::default()
        },
        scoring: Scoring::default(),
        strategy: registry().choose(&strategies()[0]).unwrap(),
        vocab: VOCAB,
    });
    let draft = Candidate::new(Role::Draft);
    assert!(relay.add_worker(WorkerKey(1), draft).is_some());
    assert!(relay.add_worker(WorkerKey(2), draft).is_none());
}

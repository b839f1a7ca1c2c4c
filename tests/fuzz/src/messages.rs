//! Messages as a peer that knows the protocol, and means no good, would write them.

use std::collections::HashMap;

use prost::Message;
use proto::v1;
use speculation::strategy::BUILT_IN;

use crate::VOCAB;
use crate::dice::Dice;

/// What a sender knows of the session it lies about.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The text as the receiver has it.
    pub text: &'a [u32],
    /// The number that the next new node would have.
    pub next_id: u32,
    /// The term under which it holds the session.
    pub term: u32,
}

/// Encodes, perhaps damages, and decodes, as the network would; `None` where the bytes are refused.
pub(crate) fn cross<M: Message + Default>(message: &M, dice: &mut Dice<'_>) -> Option<M> {
    let mut bytes = message.encode_to_vec();
    if dice.chance(32) && !bytes.is_empty() {
        for _ in 0..=dice.below(4) {
            let at = dice.any() as usize % bytes.len();
            bytes[at] = dice.byte();
        }
    }
    proto::codec::check(&bytes).ok()?;
    M::decode(bytes.as_slice()).ok()
}

fn token(dice: &mut Dice<'_>) -> u32 {
    match dice.byte() {
        // Few different tokens meet each other more often.
        0..=239 => u32::from(dice.byte()) % 4,
        240..=251 => u32::from(dice.byte()) % (VOCAB + 1),
        _ => dice.any(),
    }
}

fn length(dice: &mut Dice<'_>) -> usize {
    match dice.byte() {
        0..=223 => dice.below(9),
        224..=251 => dice.below(80),
        _ => 500 + dice.below(16) * 40,
    }
}

/// Tokens that continue `text` from `from` on, the known part of it right most of the time.
fn tokens(dice: &mut Dice<'_>, text: &[u32], from: u32) -> Vec<u32> {
    let known = text.get(from as usize..).unwrap_or(&[]);
    let mut tokens: Vec<u32> = if dice.chance(16) {
        Vec::new()
    } else {
        known.to_vec()
    };
    for _ in 0..length(dice) {
        tokens.push(token(dice));
    }
    if dice.chance(16) && !tokens.is_empty() {
        let at = dice.any() as usize % tokens.len();
        tokens[at] = token(dice);
    }
    tokens
}

fn nodes(dice: &mut Dice<'_>, context: Context<'_>) -> Option<v1::Nodes> {
    let count = length(dice);
    if count == 0 && dice.chance(200) {
        return None;
    }
    let first_id = dice.near(context.next_id);
    let mut nodes = v1::Nodes {
        first_id,
        ..v1::Nodes::default()
    };
    for at in 0..count as u32 {
        let above = match dice.byte() {
            0..=79 => 0,
            // One of this message, mostly the one just before.
            80..=199 => first_id
                .saturating_add(at)
                .saturating_sub(1 + u32::from(dice.byte() / 128)),
            _ => dice.near(context.next_id / 2),
        };
        nodes.parents.push(above);
        nodes.tokens.push(token(dice));
        nodes.edges.push(match dice.byte() {
            0..=250 => u32::from(dice.byte()) * 257,
            _ => dice.any(),
        });
        nodes.owners.push(dice.byte());
    }
    if dice.chance(128) {
        for _ in 0..count {
            nodes.sources.push(dice.byte() % 4);
            nodes.qs.push(u32::from(dice.byte()) * 257);
            nodes.margins.push(dice.byte());
        }
    }
    if dice.chance(8) {
        nodes.sources.pop();
    }
    if dice.chance(8) {
        nodes.parents.pop();
    }
    if dice.chance(8) {
        nodes.owners.push(0);
    }
    if dice.chance(24) {
        groups(dice, &mut nodes);
    }
    Some(nodes)
}

/// Sibling groups, most of which could have been drawn.
fn groups(dice: &mut Dice<'_>, nodes: &mut v1::Nodes) {
    for _ in 0..1 + dice.below(3) {
        let size = dice.below(4) as u8;
        let draws = dice.below(3) as u8;
        nodes.group_parents.push(dice.near(nodes.first_id));
        nodes.group_sizes.push(size);
        nodes.group_draws.push(draws);
        for id in 0..size {
            nodes.group_ids.push(id.into());
            nodes.group_weights.push(dice.near(1));
        }
        for _ in 0..draws {
            nodes.group_order.push(dice.below(3) as u8);
        }
    }
    if dice.chance(8) {
        nodes.group_weights.pop();
    }
}

fn shard(dice: &mut Dice<'_>) -> Option<v1::Shard> {
    dice.chance(64).then(|| v1::Shard {
        index: dice.near(0),
        count: dice.near(2),
    })
}

fn activity(dice: &mut Dice<'_>) -> Option<v1::Activity> {
    dice.chance(64).then(|| v1::Activity {
        steps: dice.total(),
        rows: dice.total(),
        busy_us: dice.total(),
        bubble_us: dice.total(),
        parked_us: dice.total(),
        life_us: dice.total(),
        abandoned_steps: dice.total(),
    })
}

fn walks(dice: &mut Dice<'_>) -> Option<v1::WalkStats> {
    dice.chance(64).then(|| v1::WalkStats {
        steps: dice.total(),
        starved_steps: dice.total(),
        starved_us: dice.total(),
        resting_steps: dice.total(),
        tokens: dice.total(),
        hits: dice.total(),
        misses: dice.total(),
        chain_submitted: dice.total(),
        chain_accepted: dice.total(),
        guesses_submitted: dice.total(),
        guesses_accepted: dice.total(),
        tolerated: dice.total(),
        heads_steps: 3,
        source_nodes: (0..dice.below(4)).map(|_| dice.total()).collect(),
        source_committed: Vec::new(),
        source_hits: vec![1; dice.below(12)],
    })
}

fn base(dice: &mut Dice<'_>, text: &[u32]) -> u32 {
    let len = text.len() as u32;
    match dice.byte() {
        0..=127 => dice.near(len),
        _ => len.saturating_sub(u32::from(dice.byte()) % 8),
    }
}

/// What a coordinator may say about a session.
pub(crate) fn update(dice: &mut Dice<'_>, context: Context<'_>) -> v1::SessionUpdate {
    let base_len = base(dice, context.text);
    let rescored = if dice.chance(64) { length(dice) } else { 0 };
    v1::SessionUpdate {
        session: 1,
        term: dice.near(context.term),
        base_len,
        commit: tokens(dice, context.text, base_len),
        nodes: nodes(dice, context),
        rescored_ids: (0..rescored)
            .map(|_| dice.near(context.next_id / 2))
            .collect(),
        rescored_edges: (0..rescored)
            .map(|_| u32::from(dice.byte()) * 257)
            .collect(),
        round_done: dice.chance(64).then(|| dice.near(base_len)),
        allowed_len: dice.near(1000),
        prompt_scored: if dice.chance(16) { dice.near(4) } else { 0 },
        shard: shard(dice),
        outlook: dice.chance(32).then(|| dice.float() * 8.0),
        mode: dice.below(4) as i32,
        misses: base_len,
        forecast: i32::from(dice.byte() % 5),
        step_us: dice.chance(32).then(|| dice.near(20_000)),
    }
}

/// Scores of so many tokens, or nearly.
fn scores(dice: &mut Dice<'_>, tokens: usize) -> v1::TokenScores {
    let tokens = dice.near(tokens as u32).min(600) as usize;
    let top_n = dice.near(1).min(30);
    let tops = tokens * top_n as usize;
    v1::TokenScores {
        logprobs: (0..tokens).map(|_| -dice.float()).collect(),
        ranks: (0..tokens).map(|_| dice.near(1)).collect(),
        top_n,
        top_ids: (0..tops).map(|_| token(dice)).collect(),
        top_logprobs: (0..tops).map(|_| -dice.float()).collect(),
    }
}

/// What a report speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// Guesses, as of a worker that proposes.
    Guesses,
    /// Picks, as of a worker that advises or commits.
    Picks,
    /// Both.
    Both,
}

/// What a worker may say about a session.
pub(crate) fn report(dice: &mut Dice<'_>, context: Context<'_>, about: About) -> v1::SessionReport {
    let base_len = base(dice, context.text);
    let mut report = v1::SessionReport {
        session: 1,
        term: dice.near(context.term),
        base_len,
        activity: activity(dice),
        ..v1::SessionReport::default()
    };
    if about != About::Guesses {
        picks(dice, context, &mut report);
    }
    if about != About::Picks {
        report.nodes = nodes(dice, context);
        report.round_done = dice.chance(64).then(|| dice.near(base_len));
    }
    report
}

fn picks(dice: &mut Dice<'_>, context: Context<'_>, report: &mut v1::SessionReport) {
    report.picks = tokens(dice, context.text, report.base_len);
    report.margins = report.picks.iter().map(|_| dice.byte()).collect();
    if dice.chance(8) {
        report.margins.pop();
    }
    report.scores = (!dice.chance(8)).then(|| scores(dice, report.picks.len()));
    report.prompt_scores_first = dice.near(1);
    report.prompt_scores = dice.chance(64).then(|| scores(dice, 3));
    if dice.chance(16) {
        report.finish = dice.near(1) as i32;
    }
    report.walks = walks(dice);
    report.outlook = dice.chance(32).then(|| dice.float() * 8.0);
    report.mode = dice.below(4) as i32;
    report.forecast = i32::from(dice.byte() % 5);
    report.step_us = dice.chance(32).then(|| dice.near(20_000));
}

/// What a coordinator may open, for these duties.
pub(crate) fn open(dice: &mut Dice<'_>, duties: &[&str]) -> v1::OpenRequest {
    let (strategy, knobs) = strategy(dice);
    let prompt = 1 + dice.below(12) as u32;
    let text: Vec<u32> = (0..prompt).map(|_| token(dice) % VOCAB).collect();
    let room = 1 + u32::from(dice.byte());
    v1::OpenRequest {
        coordinator: 1,
        incarnation: 1,
        session: 1,
        term: 1,
        stopping: Some(v1::Stopping {
            prompt_len: dice.near(prompt),
            max_len: dice.near(prompt + room),
            max_len_is_context: dice.chance(128),
            stop_ids: (0..dice.below(3)).map(|_| token(dice)).collect(),
        }),
        sampling: Some(v1::Sampling {
            temperature: dice.float(),
            top_k: dice.near(0),
            top_p: dice.float(),
            min_p: dice.float(),
            seed: dice.total(),
            choice: dice.near(0),
            bias_ids: (0..dice.below(3)).map(|_| token(dice)).collect(),
            bias_values: (0..dice.below(3)).map(|_| dice.float()).collect(),
            repetition_penalty: dice.float(),
            presence_penalty: dice.float(),
            frequency_penalty: dice.float(),
            min_tokens: dice.near(0),
        }),
        scoring: dice.chance(64).then(|| v1::Scoring {
            picks: dice.chance(128).then(|| dice.near(1)),
            basis: dice.near(1) as i32,
            prompt: dice.chance(128).then(|| dice.near(1)),
            prompt_first: dice.near(1),
        }),
        allowed_len: dice.near(1000),
        strategy,
        knobs,
        duties: duties.iter().map(|&duty| duty.to_owned()).collect(),
        shard: shard(dice),
        shared_device: dice.chance(128),
        acceptance: dice.chance(48).then(|| v1::Acceptance {
            rule: dice.near(1) as i32,
            tau_q: dice.chance(128).then(|| dice.float()),
            tau_t: dice.chance(128).then(|| dice.float()),
        }),
        text,
        journal: true,
        history: vec![7; if dice.chance(8) { dice.below(40) } else { 32 }],
    }
}

/// One duty most of the time, as a worker expects it.
pub(crate) fn duties(dice: &mut Dice<'_>) -> Vec<&'static str> {
    const NAMES: [&str; 3] = ["propose", "advise", "commit"];
    let mut duties = vec![NAMES[dice.below(NAMES.len())]];
    if dice.chance(8) {
        duties.push(NAMES[dice.below(NAMES.len())]);
    }
    if dice.chance(2) {
        duties.push("more");
    }
    duties
}

/// A strategy by name, and some of its knobs.
fn strategy(dice: &mut Dice<'_>) -> (String, HashMap<String, f64>) {
    let entry = BUILT_IN[dice.below(BUILT_IN.len())];
    let mut knobs = HashMap::new();
    for knob in entry.knobs {
        if dice.chance(64) {
            let value = match dice.byte() {
                0..=223 => f64::from(dice.byte() % 17),
                _ => f64::from(dice.float()),
            };
            knobs.insert(knob.name.to_owned(), value);
        }
    }
    if dice.chance(2) {
        knobs.insert("unknown".to_owned(), 1.0);
    }
    let name = if dice.chance(2) {
        "unknown"
    } else {
        entry.name
    };
    (name.to_owned(), knobs)
}

//! The coordinator's side of a session, with workers that lie.

use proto::{inward, v1};
use speculation::duty::Role;
use speculation::message::{Basis, FromWorker, PromptScoring, Scoring, SessionId, Stopping};
use speculation::relay::{Candidate, Relay, RelayConfig, WorkerKey};
use speculation::strategy::{Registry, Settings};

use crate::VOCAB;
use crate::dice::Dice;
use crate::messages::{self, About, Context, cross};

/// Workers of the session: two drafts, a qualifier, the target.
const ROLES: [Role; 4] = [Role::Draft, Role::Draft, Role::Qualifier, Role::Target];

/// Things that happen, at most; more of the same finds nothing and takes long.
const MOST_EVENTS: usize = 400;

/// The input says what each worker sends, in which order, and what happens in between.
pub fn run(input: &[u8]) {
    let mut dice = Dice::new(input);
    let mut relay = start(&mut dice);
    let max_len = 4 + 64;
    let mut next_ids = [1_u32; ROLES.len()];
    let mut delivered: Vec<u32> = relay.text().to_vec();
    for _ in 0..MOST_EVENTS {
        if dice.is_empty() {
            break;
        }
        let before = relay.text().to_vec();
        let at = dice.below(ROLES.len());
        let key = WorkerKey(at as u32);
        match dice.byte() {
            0..=191 => {
                let context = Context {
                    text: &before,
                    next_id: next_ids[at],
                    term: relay.term_of(key).map_or(0, |term| term.0),
                };
                report(&mut relay, key, ROLES[at], context, &mut dice);
                next_ids[at] = next_ids[at].saturating_add(1 + dice.below(8) as u32);
            }
            192..=223 => {
                if let Some(update) = relay.poll_update(key) {
                    let update = update.message;
                    let end = update.base_len as usize + update.commit.len();
                    assert!(end <= relay.text().len());
                    assert_eq!(update.commit, relay.text()[update.base_len as usize..end]);
                }
            }
            224..=239 => {
                delivered.extend(relay.poll_text().0);
                let _ = relay.poll_prompt_scores();
                assert_eq!(delivered, relay.text());
                relay.handle_consumed(dice.near(8));
            }
            240..=247 => relay.handle_opened(key),
            248..=251 => {
                let _ = relay.handle_lost(key);
            }
            _ => {
                let _ = relay.add_worker(key, Candidate::new(ROLES[at]));
                next_ids[at] = 1;
            }
        }
        let text = relay.text();
        assert!(text.starts_with(&before), "the text was taken back");
        assert!(text.len() <= max_len, "{} tokens", text.len());
        assert!(text.iter().all(|&token| token < VOCAB), "{text:?}");
    }
    let stats = relay.stats();
    for share in [
        stats.waste(),
        stats.walks.hit_rate(),
        stats.walks.path_rollback(),
    ] {
        assert!(share.is_finite(), "{share}");
    }
}

fn start(dice: &mut Dice<'_>) -> Relay {
    let settings = match dice.byte() % 4 {
        0 => Settings::new("ar"),
        1 => Settings::new("serial").with("gamma", 3.0),
        2 => (Settings::new("serial-tree").with("depth", 3.0))
            .with("width", 2.0)
            .with("rows", 6.0),
        _ => Settings::new("auto"),
    };
    let strategy = (Registry::default().choose(&settings)).expect("they are registered");
    let mut relay = Relay::new(RelayConfig {
        session: SessionId(1),
        text: vec![1, 2, 3, 0],
        scoring: Scoring {
            picks: dice.chance(128).then_some(1),
            basis: Basis::Raw,
            prompt: dice
                .chance(128)
                .then_some(PromptScoring { top: 1, first: 1 }),
        },
        stopping: Stopping {
            prompt_len: 4,
            max_len: 4 + 64,
            max_len_is_context: false,
            stop_ids: vec![VOCAB - 1],
        },
        strategy,
        vocab: VOCAB,
    });
    for (at, role) in ROLES.into_iter().enumerate() {
        let key = WorkerKey(at as u32);
        if relay.add_worker(key, Candidate::new(role)).is_some() {
            relay.handle_opened(key);
        }
    }
    relay
}

fn report(
    relay: &mut Relay,
    key: WorkerKey,
    role: Role,
    context: Context<'_>,
    dice: &mut Dice<'_>,
) {
    let drafts = role == Role::Draft;
    // A worker may also speak of what it was not asked to do.
    let about = match (dice.chance(4), drafts) {
        (false, true) => About::Guesses,
        (false, false) => About::Picks,
        (true, _) => [About::Guesses, About::Picks, About::Both][dice.below(3)],
    };
    let frame = v1::WorkerFrame {
        reports: vec![messages::report(dice, context, about)],
        faults: Vec::new(),
    };
    let Some(Ok(messages)) = cross(&frame, dice).map(inward::worker_frame) else {
        return;
    };
    let refused = messages.iter().any(|message| match &message.message {
        FromWorker::Report(report) => relay.handle_report(key, message.term, report).is_err(),
        FromWorker::Fault(_) | FromWorker::Preempted => false,
    });
    // As the coordinator does with a worker that breaks the protocol; sometimes it is late with it.
    if refused && !dice.chance(64) {
        let _ = relay.handle_lost(key);
    }
}

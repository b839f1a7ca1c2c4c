//! A worker's side of a session, with a coordinator that lies. The model is made up by the input too.

use std::time::Duration;

use proto::{inward, v1};
use speculation::calibration::Calibration;
use speculation::cost::CostModel;
use speculation::draft::{DraftSession, Guess};
use speculation::message::{Activity, ReplicaUpdate, Score, SessionSpec};
use speculation::replica::{Poll, StepPlan, TailLogits};
use speculation::verify::VerifySession;
use speculation::walk::Picked;

use crate::VOCAB;
use crate::dice::Dice;
use crate::messages::{self, Context, cross};

/// Rows a session may hold, as a worker limits it.
const ROWS: u16 = 64;
/// Longest text, as a worker limits it.
const CONTEXT: u32 = 512;
/// Things that happen, at most; more of the same finds nothing and takes long.
const MOST_EVENTS: usize = 400;

enum Session {
    Draft(Box<DraftSession>, Box<Calibration>),
    Verify(Box<VerifySession>),
}

/// The input says how the session is opened, and then what happens to it.
pub fn run(input: &[u8]) {
    let mut dice = Dice::new(input);
    let task = if dice.chance(128) {
        messages::grow(&mut dice)
    } else {
        messages::commit_or_advise(&mut dice)
    };
    let request = messages::open(&mut dice, task);
    let Some(Ok((mut spec, _))) = cross(&request, &mut dice).map(inward::open) else {
        return;
    };
    // What the worker itself checks before it opens a session.
    if spec.text.iter().any(|&token| token >= VOCAB) || spec.stopping.max_len > CONTEXT {
        return;
    }
    spec.task = spec.task.within(ROWS);
    let mut session = match open(&spec) {
        Some(session) => session,
        None => return,
    };
    let mut text = spec.text.clone();
    let mut next_id = 1_u32;
    let mut now = Duration::ZERO;
    let mut cost = CostModel::new(Duration::from_micros(100));
    for _ in 0..MOST_EVENTS {
        if dice.is_empty() {
            break;
        }
        now += Duration::from_micros(u64::from(dice.byte()) * 100);
        match dice.byte() {
            0..=127 => {
                let context = Context {
                    text: &text,
                    next_id,
                    term: 1,
                };
                let frame = v1::RelayFrame {
                    updates: vec![messages::update(&mut dice, context)],
                    ..v1::RelayFrame::default()
                };
                let Some(Ok(relayed)) = cross(&frame, &mut dice).map(inward::relay_frame) else {
                    continue;
                };
                for update in relayed.updates {
                    let named = update.message.nodes.len() as u32;
                    if !session.update(now, &update.message, &mut text) {
                        // The worker gives the session up.
                        return;
                    }
                    next_id = next_id.saturating_add(named);
                }
            }
            128..=223 => {
                let room = 1 + dice.below(40);
                if let Poll::Step(plan) = session.poll(now, &cost, room) {
                    assert!(plan.rows() <= room, "{} rows of {room}", plan.rows());
                    assert!(plan.append.iter().all(|&token| token < VOCAB));
                    let took = Duration::from_micros(u64::from(dice.byte()) * 10);
                    cost.observe(plan.rows(), took);
                    session.step(now, &plan, took, &mut dice);
                }
            }
            224..=239 => session.report(&text),
            _ => session.settle(),
        }
        if let Session::Verify(session) = &session {
            assert!(
                session.text().starts_with(&spec.text),
                "the prompt was lost"
            );
            assert!(session.text().len() <= spec.stopping.max_len as usize);
            text = session.text().to_vec();
        }
    }
}

fn open(spec: &SessionSpec) -> Option<Session> {
    if let Ok(session) = DraftSession::new(spec, VOCAB, 0) {
        return Some(Session::Draft(Box::new(session), Box::default()));
    }
    let session = VerifySession::new(Duration::ZERO, spec, VOCAB, 0).ok()?;
    Some(Session::Verify(Box::new(session)))
}

impl Session {
    /// Whether the session lives on.
    fn update(&mut self, now: Duration, update: &ReplicaUpdate, text: &mut Vec<u32>) -> bool {
        match self {
            Session::Draft(session, calibration) => {
                let taken = session.handle_update(update, calibration).is_ok();
                let known = text.len().saturating_sub(update.base_len as usize);
                if taken {
                    text.extend(update.commit.get(known..).unwrap_or(&[]));
                }
                taken
            }
            Session::Verify(session) => session.handle_update(now, update).is_ok(),
        }
    }

    fn poll(&mut self, now: Duration, cost: &CostModel, room: usize) -> Poll {
        match self {
            Session::Draft(session, _) => session.poll_step(cost, room),
            Session::Verify(session) => session.poll_step(now, cost, room),
        }
    }

    fn step(&mut self, now: Duration, plan: &StepPlan, took: Duration, dice: &mut Dice<'_>) {
        match self {
            Session::Draft(session, calibration) => {
                session.handle_step(plan, calibration, |_, _, most| {
                    (0..dice.below(4).min(most))
                        .map(|rank| Guess {
                            token: (u32::from(dice.byte()) + rank as u32) % 4,
                            weight: f32::from(dice.byte()) / 255.0,
                        })
                        .collect()
                });
            }
            Session::Verify(session) if plan.tail == TailLogits::All => {
                let top = session.scoring().prompt.map_or(0, |prompt| prompt.top);
                session.handle_scored(plan, |_, _| Ok(score(top)));
            }
            Session::Verify(session) => {
                let top = session.scoring().picks;
                session.handle_step(now, plan, took, |_, _| {
                    if dice.chance(1) {
                        return Err(speculation::verify::NotFinite);
                    }
                    Ok(Picked {
                        token: u32::from(dice.byte()) % 4,
                        margin: f32::from(dice.byte()) / 16.0,
                        score: top.map(score),
                    })
                })
            }
        }
    }

    fn report(&mut self, text: &[u32]) {
        let activity = Activity::default();
        match self {
            Session::Draft(session, _) => {
                if let Some(report) = session.poll_report(activity) {
                    assert_eq!(report.base_len as usize, text.len());
                }
            }
            Session::Verify(session) => {
                if let Some(report) = session.poll_report(activity) {
                    assert_eq!(report.picks.len(), report.margins.len());
                }
            }
        }
    }

    fn settle(&mut self) {
        let _ = match self {
            Session::Draft(session, _) => session.poll_cache_ops(),
            Session::Verify(session) => session.poll_cache_ops(),
        };
    }
}

/// With so many strongest tokens.
fn score(top: u8) -> Score {
    Score {
        logprob: -1.0,
        rank: 1,
        top: vec![(1, -1.0); top.into()],
    }
}

//! A target's steps taken again from its journal, by the session machine that took them: with the guesses that were there,
//! as many of them are submitted, the same are accepted, and the text grows by as many tokens.

use alloc::vec::Vec;

use decode::sampling::Pick;
use decode::{Answer, Ask, NodeId};

use crate::Time;
use crate::allocation::Share;
use crate::bypass::Plan;
use crate::duty::{Duties, Duty, Source};
use crate::journal::{Number, Run, Taken};
use crate::learned::Learned;
use crate::limits::MAX_COMMIT;
use crate::message::{Scoring, SessionId, SessionSpec, Shard, Stopping, Term};
use crate::replica::Poll;
use crate::session::{Capacity, Session, SessionError};
use crate::stats::WalkStats;
use crate::strategy::Registry;

/// Tokens from here on were no guess; those below are the numbers of guesses.
const NO_GUESS: u32 = 1 << 31;

/// What became of a step that was taken again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// Guesses that it submitted.
    pub submitted: usize,
    /// Tokens that it committed.
    pub tokens: usize,
}

/// A journal is not that of a target of this version, or was damaged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReplayError {
    /// No such session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A guess that cannot have come, or a pick that was none.
    #[error("guess {0} is not one of those that were there")]
    Guess(Number),
    /// There are more guesses than can be numbered, or more picks in a step than a step commits.
    #[error("it has too many guesses or picks")]
    TooMany,
    /// It does not pick anything there.
    #[error("the text has ended before the step")]
    Ended,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Replay {
    session: Session,
    learned: Learned,
    /// The guesses by their numbers, from 1.
    nodes: Vec<NodeId>,
    /// Tokens so far that were no guess.
    others: u32,
}

impl Replay {
    /// Before the first step of a run.
    ///
    /// # Errors
    /// When its strategy is not in the registry.
    pub fn new(run: &Run, registry: &Registry) -> Result<Self, ReplayError> {
        let max_len = run.room.saturating_add(1);
        let spec = SessionSpec {
            session: SessionId(1),
            term: Term(1),
            // One token stands for the whole text, which is in the cache.
            text: alloc::vec![0],
            stopping: Stopping {
                prompt_len: 1,
                max_len,
                ..Stopping::default()
            },
            allowed_len: max_len,
            scoring: Scoring::default(),
            strategy: run.strategy.clone(),
            duties: Duties::of(Duty::Commit),
            shard: Shard::default(),
            is_shared: false,
            history: None,
            has_journal: false,
        };
        let capacity = Capacity {
            vocab: u32::MAX,
            rows: u16::MAX,
            source: Source::Unknown,
        };
        Ok(Replay {
            session: Session::new(Time::ZERO, &spec, registry, capacity, 0)?,
            learned: Learned::new(Time::ZERO, Plan::default()),
            nodes: Vec::new(),
            others: 0,
        })
    }

    /// Takes the next step.
    ///
    /// # Errors
    /// When the journal is none. Nothing more can be taken then.
    pub fn step(&mut self, step: &Taken) -> Result<Again, ReplayError> {
        if step.picks.len() > MAX_COMMIT || self.nodes.len() + step.nodes.len() >= NO_GUESS as usize
        {
            return Err(ReplayError::TooMany);
        }
        for &arrived in &step.nodes {
            let number = self.nodes.len() as u32 + 1;
            let parent = match arrived.parent {
                0 => None,
                parent => Some(self.node(parent)?),
            };
            let grafted = (self.session).graft_recorded(parent, number, arrived);
            self.nodes.push(grafted.ok_or(ReplayError::Guess(number))?);
        }
        for &(number, edge) in &step.rescored {
            let id = self.node(number)?;
            self.session.rescore_recorded(id, edge);
        }
        let text: Vec<u32> = (step.picks.iter())
            .map(|&number| match number {
                0 => {
                    self.others += 1;
                    Ok(NO_GUESS + self.others)
                }
                number => self.node(number).map(|_| number),
            })
            .collect::<Result<_, _>>()?;
        // It is not asked whether it would have waited: it did not.
        let room = self.session.base_rows() + usize::from(step.room);
        let base = match (self.session).poll_step(step.ended, room, &mut self.learned) {
            Poll::Work(work) | Poll::Wait(_, Some(work)) => work.base,
            Poll::Wait(_, None) => self.session.base_rows(),
            Poll::Parked | Poll::Done => return Err(ReplayError::Ended),
        };
        let share = Share {
            base,
            guesses: step.submitted.into(),
        };
        let plan = self.session.plan_step(share);
        let _ = self.session.poll_cache_ops();
        // What is asked behind the text, then behind each guess; only what lies on the way is known.
        let places = (plan.asks.iter().map(|_| Some(0))).chain(
            (plan.rows.iter())
                .filter(|row| row.ask != Ask::Nothing)
                .map(|row| {
                    let at = text.iter().position(|&token| token == row.token)?;
                    Some(at + 1)
                }),
        );
        let answers: Vec<Answer> = places
            .map(|place| match place.and_then(|at| text.get(at)) {
                None => Answer::Skipped,
                Some(&token) => Answer::Pick(Pick {
                    token,
                    margin: 0.0,
                    score: None,
                }),
            })
            .collect();
        let before = self.session.text().len();
        (self.session).handle_step(step.ended, step.took, &plan, &answers, &mut self.learned);
        self.session.set_forecast(step.forecast);
        Ok(Again {
            submitted: plan.rows.len(),
            tokens: self.session.text().len() - before,
        })
    }

    /// What its walks have counted.
    pub fn walks(&mut self) -> WalkStats {
        self.session.walks()
    }

    fn node(&self, number: Number) -> Result<NodeId, ReplayError> {
        let known = (number as usize)
            .checked_sub(1)
            .and_then(|at| self.nodes.get(at));
        known.copied().ok_or(ReplayError::Guess(number))
    }
}

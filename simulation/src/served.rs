//! What a simulated worker has for one session: a stupid model, a stupid cache, and checks of everything that the
//! session plans and says.

use std::collections::{BTreeMap, BTreeSet};

use decode::{Answer, Ask, CacheOp, StepPlan};
use speculation::duty::Duty;
use speculation::limits::MAX_COMMIT;
use speculation::message::{NodeNumber, ROOT, ReplicaUpdate, Report, SessionSpec};
use speculation::session::{Capacity, Session};
use speculation::strategy::{Growth, Registry};

use crate::cache::{Admitted, Cache};
use crate::reference::{Model, VOCAB, hash, score};

/// The texts that somebody guessed, as hashes: a row for any other text is made up.
pub type Guessed = BTreeSet<u64>;

/// What the strategy promises about the rows of a session.
#[derive(Clone, Copy, Debug)]
enum Bounds {
    Propose(Growth),
    Commit { rows: u16 },
    Advise { rows: u16, ahead: u16 },
}

/// See the module documentation.
#[derive(Debug)]
pub struct Served {
    /// The text that the session has been told or has decided, kept a second time.
    pub text: Vec<u32>,
    /// What the model's cache holds.
    pub cache: Cache,
    model: Model,
    bounds: Bounds,
    capacity: Capacity,
    max_len: usize,
    /// How many picks that no walk can reach are skipped, percent.
    skips: u32,
    /// What this session guessed itself.
    own: Guessed,
    /// The whole text of every node that it reported.
    reported: BTreeMap<NodeNumber, Vec<u32>>,
}

impl Served {
    /// A session over a cache that may hold the beginning of its text already.
    ///
    /// # Panics
    /// When the strategy is not in the registry, or there is not one duty.
    pub fn new(
        spec: &SessionSpec,
        registry: &Registry,
        capacity: Capacity,
        model: Model,
        cache: Cache,
        skips: u32,
    ) -> Self {
        let strategy = registry.choose(&spec.strategy).expect("it is registered");
        let mut duties = spec.duties.iter();
        let duty = duties.next().expect("a worker has a duty");
        let verification = strategy.verification(duty);
        let half = capacity.rows / 2;
        let bounds = match duty {
            Duty::Propose => Bounds::Propose(strategy.growth()),
            Duty::Commit => Bounds::Commit {
                rows: verification.rows.min(capacity.rows),
            },
            Duty::Advise => Bounds::Advise {
                rows: verification.rows.min(half),
                ahead: strategy.advice().ahead.min(half),
            },
        };
        Served {
            text: spec.text.clone(),
            cache,
            model,
            bounds,
            capacity,
            max_len: spec.stopping.max_len as usize,
            skips,
            own: Guessed::new(),
            reported: BTreeMap::new(),
        }
    }

    /// Does what the session says about its cache.
    ///
    /// # Panics
    /// When no cache could, or when something is held in vain.
    pub fn apply(&mut self, ops: Vec<CacheOp>) {
        self.cache.apply(ops);
        self.cache.check(&self.text);
    }

    /// Compares what the session thinks of itself with what is true.
    ///
    /// # Panics
    /// When they differ.
    pub fn check(&self, session: &Session) {
        assert_eq!(session.text(), self.text, "the text is what was told");
        assert_eq!(
            session.cached_text(),
            self.cache.text(),
            "the session knows what is cached"
        );
        assert_eq!(session.rows_held(), self.cache.rows(), "rows are counted");
    }

    /// The new tokens of an update; nothing if it cannot be right.
    pub fn fresh(&self, update: &ReplicaUpdate) -> Option<Vec<u32>> {
        let base = update.base_len as usize;
        let is_right = update.commit.len() <= MAX_COMMIT
            && base <= self.text.len()
            && base + update.commit.len() <= self.max_len
            && update.commit.iter().all(|&token| token < VOCAB)
            && (update.commit.iter())
                .zip(&self.text[base..])
                .all(|(told, have)| told == have);
        is_right.then(|| {
            let known = self.text.len() - base;
            update.commit.get(known..).unwrap_or(&[]).to_vec()
        })
    }

    /// Whether an update leaves nothing of a step in flight that would be of use, as the session says.
    ///
    /// # Panics
    /// When the session gives up what is of use, or keeps what is of none.
    pub fn is_obsolete(
        &self,
        session: &Session,
        plan: &StepPlan,
        admitted: &Admitted,
        update: &ReplicaUpdate,
    ) -> bool {
        let is_obsolete = session.is_obsolete(plan, update);
        let fresh = self.fresh(update).unwrap_or_default();
        let is_silent = fresh.is_empty() || !plan.append.is_empty();
        let is_useless = match self.bounds {
            Bounds::Commit { .. } => false,
            Bounds::Propose(_) => {
                let text = [&self.text[..], &fresh].concat();
                let is_alive = admitted.paths.iter().any(|path| path.starts_with(&text));
                !is_silent && !plan.rows.is_empty() && !is_alive
            }
            Bounds::Advise { .. } => {
                // The walk begins at the first row that is asked.
                let mut asked = plan.rows.iter().filter(|row| row.ask != Ask::Nothing);
                match asked.next() {
                    Some(tip) => !is_silent && !tip.path.starts_with(&fresh),
                    None => is_obsolete,
                }
            }
        };
        assert_eq!(is_obsolete, is_useless, "only worthless steps are given up");
        is_obsolete
    }

    /// Checks a plan for a step with `room` rows.
    ///
    /// # Panics
    /// When no cache could compute it, or the strategy promises something else.
    pub fn admit(&self, plan: &StepPlan, room: usize) -> Admitted {
        assert!(
            plan.len() <= room,
            "{} rows where {room} had room",
            plan.len()
        );
        let admitted = self.cache.admit(&self.text, plan);
        for path in &admitted.paths {
            assert!(
                path.len() < self.max_len,
                "a row at the very end could pick nothing"
            );
        }
        let rows = plan.rows.len();
        let held = self.cache.rows() + rows;
        assert!(
            held <= usize::from(self.capacity.rows),
            "{held} rows are more than fit"
        );
        match self.bounds {
            Bounds::Propose(growth) => {
                let nodes = growth.nodes.min(self.capacity.rows);
                assert!(held <= usize::from(nodes), "{held} rows held");
            }
            Bounds::Commit { rows: most } => {
                assert!(rows <= usize::from(most), "{rows} rows submitted");
                assert_eq!(self.cache.rows(), 0, "a target keeps no rows between steps");
            }
            Bounds::Advise { rows: most, ahead } => {
                let most = usize::from(most) + usize::from(ahead) + 1;
                assert!(held <= most, "{held} rows held");
            }
        }
        admitted
    }

    /// Computes an admitted plan: one answer for everything that is asked, in order.
    pub fn compute(
        &mut self,
        plan: &StepPlan,
        admitted: &Admitted,
        mut guessed: Option<&mut Guessed>,
    ) -> Vec<Answer> {
        self.cache.compute(plan, admitted);
        let mut answers = Vec::new();
        let first = admitted.text.len() - plan.asks.len();
        let mut tail = None;
        for (at, &ask) in plan.asks.iter().enumerate() {
            let prefix = &admitted.text[..=first + at];
            let answer = self.answer(prefix, ask, guessed.as_deref_mut());
            tail = Onward::behind(answer.as_ref());
            answers.extend(answer);
        }
        let mut onward: BTreeMap<_, Option<Onward>> = BTreeMap::new();
        for (row, path) in plan.rows.iter().zip(&admitted.paths) {
            let above = match row.parent {
                None => tail,
                Some(parent) => onward.get(&parent).copied().flatten(),
            };
            let is_reachable = match above {
                Some(Onward::With(token)) => token == row.token,
                Some(Onward::Nowhere) => false,
                None => true,
            };
            let is_pick = matches!(row.ask, Ask::Pick { .. });
            let is_skipped = is_pick && !is_reachable && hash(7, path) % 100 < self.skips.into();
            let answer = match is_skipped {
                true => Some(Answer::Skipped),
                false => self.answer(path, row.ask, guessed.as_deref_mut()),
            };
            let next = match is_reachable {
                true => Onward::behind(answer.as_ref()),
                false => Some(Onward::Nowhere),
            };
            onward.insert(row.node, next);
            answers.extend(answer);
        }
        answers
    }

    /// What the model answers behind `prefix`.
    fn answer(
        &mut self,
        prefix: &[u32],
        ask: Ask,
        guessed: Option<&mut Guessed>,
    ) -> Option<Answer> {
        let answer = match ask {
            Ask::Nothing => return None,
            Ask::Judge { .. } | Ask::Draw(_) => {
                unreachable!("the strategies of a scenario are decoded by the rule `exact`")
            }
            Ask::Pick { score } => self.model.pick(prefix, score.map(|(_, top)| top)),
            Ask::Guesses(most) => self.model.guesses(prefix, usize::from(most)),
            Ask::Score { token, top } => {
                let known = [prefix, &[token]].concat();
                Answer::Score(Box::new(score(self.model.language, &known, top)))
            }
        };
        let tokens: Vec<u32> = match &answer {
            Answer::Pick(pick) => vec![pick.token],
            Answer::Guesses(guesses) => guesses.iter().map(|guess| guess.token).collect(),
            Answer::Drawn(_)
            | Answer::Skipped
            | Answer::Score(_)
            | Answer::End(_)
            | Answer::NotFinite => Vec::new(),
        };
        let found = (tokens.iter()).map(|&token| hash(0, &[prefix, &[token]].concat()));
        if let Some(guessed) = guessed {
            guessed.extend(found.clone());
        }
        if matches!(answer, Answer::Guesses(_)) {
            self.own.extend(found);
        }
        Some(answer)
    }

    /// The answers were handed to the session, whose text this is now: a target has more of it.
    ///
    /// # Panics
    /// When that is not the target's own text, or somebody else has changed it.
    pub fn follow(&mut self, text: Vec<u32>) {
        let before = self.text.len();
        self.text = text;
        match self.bounds {
            Bounds::Propose(_) | Bounds::Advise { .. } => assert_eq!(self.text.len(), before),
            Bounds::Commit { .. } => {
                for at in before..self.text.len() {
                    let token = self.model.language.next(&self.text[..at]);
                    assert_eq!(self.text[at], token, "the text is the target's own");
                }
            }
        }
    }

    /// A draft reports its own guesses, and other nodes only to name what these continue.
    ///
    /// # Panics
    /// When it reports what it was told, or guesses further than its strategy allows.
    pub fn check_report(&mut self, report: &Report) {
        let nodes = &report.nodes;
        for (at, (&parent, &token)) in nodes.parents.iter().zip(&nodes.tokens).enumerate() {
            let above = if parent == ROOT {
                &self.text[..report.base_len as usize]
            } else {
                &self.reported[&parent]
            };
            let path = [above, &[token]].concat();
            let id = nodes.first_id + at as NodeNumber;
            let is_own = self.own.contains(&hash(0, &path));
            assert!(
                is_own || nodes.parents.contains(&id),
                "{path:?} was told back"
            );
            if let Bounds::Propose(growth) = self.bounds {
                let depth = path.len() - report.base_len as usize;
                assert!(
                    !is_own || depth <= usize::from(growth.depth),
                    "{depth} tokens ahead"
                );
            }
            self.reported.insert(id, path);
        }
    }
}

/// Where a walk goes on behind a row that was asked for a pick. It goes on with anything behind other rows.
#[derive(Clone, Copy, Debug)]
enum Onward {
    With(u32),
    Nowhere,
}

impl Onward {
    fn behind(answer: Option<&Answer>) -> Option<Onward> {
        match answer? {
            Answer::Pick(pick) => Some(Onward::With(pick.token)),
            Answer::Skipped | Answer::NotFinite => Some(Onward::Nowhere),
            Answer::Guesses(_) | Answer::Drawn(_) | Answer::Score(_) | Answer::End(_) => None,
        }
    }
}

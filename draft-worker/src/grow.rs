//! The draft's kind of work: a model's logits become guesses, and guesses become nodes.

use engine::sampling::{Past, Recipe, Sampler};
use speculation::Time;
use speculation::calibration::Calibration;
use speculation::cost::CostModel;
use speculation::draft::{DraftSession, Guess};
use speculation::link::LinkError;
use speculation::message::{Activity, DraftReport, ReplicaUpdate, SessionSpec};
use speculation::replica::{CacheOp, Poll, StepPlan};
use speculation::verify::WrongTask;
use worker::{Computed, Kind};

/// Grows trees. What it learns about its own confidence is shared by all its sessions.
#[derive(Debug)]
pub struct Grow {
    vocab: u32,
    sampler: Sampler,
    calibration: Calibration,
    found: Vec<engine::sampling::Guess>,
}

impl Grow {
    /// For a model whose tokenizer has `vocab` tokens.
    pub fn new(vocab: u32) -> Self {
        Grow {
            vocab,
            sampler: Sampler::new(vocab),
            calibration: Calibration::default(),
            found: Vec::new(),
        }
    }
}

impl Kind for Grow {
    type Session = DraftSession;
    type Report = DraftReport;

    fn open(
        &mut self,
        _now: Time,
        spec: &SessionSpec,
        cached: u32,
    ) -> Result<DraftSession, WrongTask> {
        DraftSession::new(spec, self.vocab, cached)
    }

    fn cached_text<'a>(&self, session: &'a DraftSession) -> &'a [u32] {
        session.cached_text()
    }

    fn handle_update(
        &mut self,
        session: &mut DraftSession,
        _now: Time,
        update: &ReplicaUpdate,
    ) -> Result<(), LinkError> {
        session.handle_update(update, &mut self.calibration)
    }

    fn poll_step(
        &mut self,
        session: &mut DraftSession,
        _now: Time,
        cost: &CostModel,
        room: usize,
    ) -> Poll {
        session.poll_step(cost, room)
    }

    fn poll_cache_ops(&mut self, session: &mut DraftSession) -> Vec<CacheOp> {
        session.poll_cache_ops()
    }

    fn handle_step(
        &mut self,
        session: &mut DraftSession,
        recipe: &mut Recipe,
        computed: Computed<'_>,
    ) {
        let (sampler, found) = (&mut self.sampler, &mut self.found);
        session.handle_step(computed.plan, &self.calibration, |at, history, most| {
            let Some(logits) = computed.logits.row(at) else {
                return Vec::new();
            };
            let past = Past {
                text: history.text,
                path: history.path,
                prompt_len: history.prompt_len as usize,
            };
            // Logits that cannot be sampled from give no guesses; the target finds its own way.
            if sampler
                .guesses_after(logits, recipe, &past, most.max(2), found)
                .is_err()
            {
                return Vec::new();
            }
            let guess = |guess: &engine::sampling::Guess| Guess {
                token: guess.token,
                weight: guess.weight,
            };
            found.iter().take(most).map(guess).collect()
        });
    }

    fn obsoletes(&self, session: &DraftSession, plan: &StepPlan, update: &ReplicaUpdate) -> bool {
        session.obsoletes(plan, update)
    }

    fn poll_report(
        &mut self,
        session: &mut DraftSession,
        activity: Activity,
    ) -> Option<DraftReport> {
        session.poll_report(activity)
    }
}

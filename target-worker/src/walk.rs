//! The verifier's kind of work: a model's logits become the tokens it picks.

use engine::sampling::{Sampler, SamplingParams};
use speculation::Time;
use speculation::cost::CostModel;
use speculation::link::LinkError;
use speculation::message::{Activity, ReplicaUpdate, SessionSpec, VerifyReport};
use speculation::replica::{CacheOp, Poll, StepPlan};
use speculation::verify::{NotFinite, VerifySession, WrongTask};
use speculation::walk::Picked;
use worker::{Computed, Kind};

/// Walks trees.
#[derive(Debug)]
pub struct Walk {
    vocab: u32,
    sampler: Sampler,
}

impl Walk {
    /// For a model whose tokenizer has `vocab` tokens.
    pub fn new(vocab: u32) -> Self {
        Walk {
            vocab,
            sampler: Sampler::new(vocab),
        }
    }
}

impl Kind for Walk {
    type Session = VerifySession;
    type Report = VerifyReport;

    fn open(
        &mut self,
        now: Time,
        spec: &SessionSpec,
        cached: u32,
    ) -> Result<VerifySession, WrongTask> {
        VerifySession::new(now, spec, self.vocab, cached)
    }

    fn cached_text<'a>(&self, session: &'a VerifySession) -> &'a [u32] {
        session.cached_text()
    }

    fn handle_update(
        &mut self,
        session: &mut VerifySession,
        now: Time,
        update: &ReplicaUpdate,
    ) -> Result<(), LinkError> {
        session.handle_update(now, update)
    }

    fn poll_step(
        &mut self,
        session: &mut VerifySession,
        now: Time,
        cost: &CostModel,
        room: usize,
    ) -> Poll {
        session.poll_step(now, cost, room)
    }

    fn poll_cache_ops(&mut self, session: &mut VerifySession) -> Vec<CacheOp> {
        session.poll_cache_ops()
    }

    fn handle_step(
        &mut self,
        session: &mut VerifySession,
        params: &SamplingParams,
        computed: Computed<'_>,
    ) {
        let sampler = &mut self.sampler;
        session.handle_step(
            computed.now,
            computed.plan,
            computed.took,
            |at, position| {
                let logits = computed.logits.row(at).ok_or(NotFinite)?;
                let pick = sampler
                    .pick(logits, params, position)
                    .map_err(|engine::sampling::NotFinite| NotFinite)?;
                Ok(Picked {
                    token: pick.token,
                    margin: pick.margin,
                })
            },
        );
    }

    fn obsoletes(&self, session: &VerifySession, plan: &StepPlan, update: &ReplicaUpdate) -> bool {
        session.obsoletes(plan, update)
    }

    fn poll_report(
        &mut self,
        session: &mut VerifySession,
        activity: Activity,
    ) -> Option<VerifyReport> {
        session.poll_report(activity)
    }
}

//! The verifier's kind of work: a model's logits become the tokens it picks.

use engine::sampling::{self, Past, Recipe, Sampler, SamplingParams, TokenScore};
use speculation::Time;
use speculation::cost::CostModel;
use speculation::link::LinkError;
use speculation::message::{Activity, Basis, ReplicaUpdate, Score, SessionSpec, VerifyReport};
use speculation::replica::{CacheOp, Poll, StepPlan, TailLogits};
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
        recipe: &mut Recipe,
        computed: Computed<'_>,
    ) {
        let sampler = &mut self.sampler;
        let scoring = session.scoring();
        if computed.plan.tail == TailLogits::All {
            let top = scoring.prompt.map_or(0, |prompt| prompt.top.into());
            let own = SamplingParams::default();
            session.handle_scored(computed.plan, |at, token| {
                let logits = computed.logits.row(at).ok_or(NotFinite)?;
                let score = sampler
                    .score(logits, &own, token, top)
                    .map_err(not_finite)?;
                Ok(told(score))
            });
            return;
        }
        let basis = match scoring.basis {
            Basis::Raw => sampling::Basis::Raw,
            Basis::Processed => sampling::Basis::Processed,
        };
        session.handle_step(computed.now, computed.plan, computed.took, |at, history| {
            let logits = computed.logits.row(at).ok_or(NotFinite)?;
            let past = Past {
                text: history.text,
                path: history.path,
                prompt_len: history.prompt_len as usize,
            };
            let pick = sampler
                .pick_after(logits, recipe, &past)
                .map_err(not_finite)?;
            let score = match scoring.picks {
                None => None,
                Some(top) => Some(
                    sampler
                        .score_after(logits, recipe, &past, pick.token, (basis, top.into()))
                        .map_err(not_finite)?,
                ),
            };
            Ok(Picked {
                token: pick.token,
                margin: pick.margin,
                score: score.map(told),
            })
        });
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

fn not_finite(_: sampling::NotFinite) -> NotFinite {
    NotFinite
}

fn told(score: TokenScore) -> Score {
    Score {
        logprob: score.logprob,
        rank: score.rank,
        top: score.top,
    }
}

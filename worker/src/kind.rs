//! What makes a worker a draft or a verifier.

use engine::StepOutput;
use engine::sampling::Recipe;
use speculation::Time;
use speculation::cost::CostModel;
use speculation::link::LinkError;
use speculation::message::{Activity, ReplicaUpdate, SessionSpec};
use speculation::replica::{CacheOp, Poll, RowAt, StepPlan};
use speculation::verify::WrongTask;

/// A kind of worker: how the model thread drives one session's state machine.
pub trait Kind: Send + 'static {
    /// The state machine.
    type Session: Send;
    /// What it tells the coordinator.
    type Report: Send + 'static;

    /// Starts a session whose cache holds the first `cached` tokens of its text.
    fn open(
        &mut self,
        now: Time,
        spec: &SessionSpec,
        cached: u32,
    ) -> Result<Self::Session, WrongTask>;

    /// The tokens of the text that the session's cache holds, once its pending operations are done.
    fn cached_text<'a>(&self, session: &'a Self::Session) -> &'a [u32];

    /// Takes the coordinator's newest state.
    fn handle_update(
        &mut self,
        session: &mut Self::Session,
        now: Time,
        update: &ReplicaUpdate,
    ) -> Result<(), LinkError>;

    /// What the session wants of the next step, which has `room` rows left.
    fn poll_step(
        &mut self,
        session: &mut Self::Session,
        now: Time,
        cost: &CostModel,
        room: usize,
    ) -> Poll;

    /// What the cache has to do before that step.
    fn poll_cache_ops(&mut self, session: &mut Self::Session) -> Vec<CacheOp>;

    /// The step was computed; `recipe` is how the session samples.
    fn handle_step(
        &mut self,
        session: &mut Self::Session,
        recipe: &mut Recipe,
        computed: Computed<'_>,
    );

    /// Whether the commit in `update` leaves nothing of use in a step in flight.
    fn obsoletes(&self, session: &Self::Session, plan: &StepPlan, update: &ReplicaUpdate) -> bool;

    /// What to tell the coordinator, if anything is new.
    fn poll_report(
        &mut self,
        session: &mut Self::Session,
        activity: Activity,
    ) -> Option<Self::Report>;
}

/// One session's part of a step that was computed.
pub struct Computed<'a> {
    /// When it ended.
    pub now: Time,
    /// How long the step took, pace included.
    pub took: Time,
    /// What the session had asked for.
    pub plan: &'a StepPlan,
    /// The model's answer.
    pub logits: Logits<'a>,
}

/// The logits of one session's rows within a step's output.
#[derive(Clone, Copy)]
pub struct Logits<'a> {
    pub(crate) output: &'a StepOutput,
    pub(crate) first: usize,
    /// Appended rows that have logits; the tree rows' follow.
    pub(crate) appended: usize,
}

impl Logits<'_> {
    /// Raw logits of a row, as many as the model's vocabulary; `None` when one of them is not a number.
    ///
    /// # Panics
    /// When the plan did not ask for that row.
    pub fn row(&self, at: RowAt) -> Option<&[f32]> {
        let index = match at {
            RowAt::Tail => self.first + self.appended - 1,
            RowAt::Appended(row) => self.first + row,
            RowAt::Row(row) => self.first + self.appended + row,
        };
        self.output.healthy(index).then(|| self.output.row(index))
    }
}

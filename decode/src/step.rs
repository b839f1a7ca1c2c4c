//! What a session asks of a model in one step, and what the model answers.
//!
//! What a row has to answer is known when the row is planned. The backend computes exactly that: logits never leave
//! it. Sessions plan in these types and backends compute in them, so nothing between the two translates.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::rule::Judgement;
use crate::sampling::{Drawn, Guess, Pick};
use crate::scores::{Basis, Score};

/// Names a node of a session's tree: a guessed token at a position under a parent. An index that is used again gets
/// another generation, so an id never comes to mean another node. A model's cache keeps the rows of nodes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// Index in the arena of the tree.
    pub index: u32,
    /// How often the index was given to another node.
    pub generation: u32,
}

/// What a row has to answer besides storing its keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// The token that follows, as [`crate::Sampler::pick`] gives it, with its score if one is wanted.
    ///
    /// A row below another row of the same step that is asked for a pick matters only if that pick is the row's own
    /// token: otherwise the walk never gets there, and the backend may answer [`Answer::Skipped`].
    Pick {
        /// Where the score is taken from and with how many of the strongest tokens; `None`: no score.
        score: Option<(Basis, u8)>,
    },
    /// The token that follows by a judgement of the guesses for it, as [`crate::Sampler::reject`] and
    /// [`crate::Sampler::tolerate`] give it; answered and skipped like a pick.
    Judge {
        /// Which of [`StepPlan::judgements`].
        judgement: u16,
        /// As of a pick.
        score: Option<(Basis, u8)>,
    },
    /// Up to this many siblings drawn from the model's own distribution, as [`crate::Sampler::draw`] gives them.
    Draw(u16),
    /// Up to this many tokens that may follow, best first, as [`crate::Sampler::guesses`] gives them.
    Guesses(u16),
    /// The score of a token that is known to follow, from the model's own logits.
    Score {
        /// The token.
        token: u32,
        /// With this many of the strongest tokens at its position.
        top: u8,
    },
}

/// What a row answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A pick that no walk could reach.
    Skipped,
    /// To [`Ask::Pick`] and [`Ask::Judge`].
    Pick(Pick),
    /// To [`Ask::Draw`].
    Drawn(Box<Drawn>),
    /// To [`Ask::Guesses`].
    Guesses(Vec<Guess>),
    /// To [`Ask::Score`].
    Score(Box<Score>),
    /// To [`StepPlan::end`], behind all others, from a backend that has what is asked.
    End(Box<EndAnswer>),
    /// The row's logits cannot be sampled from: one of them is not a number.
    NotFinite,
}

/// What is asked of the row where the walk of the session ends, besides its pick. Which row that is, the backend learns
/// with the picks, so that it computes this for one row of the step and not for all. Tokens do not depend on any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndAsk {
    /// Tokens that each head beside the model guesses (Medusa, arXiv 2401.10774); 0: none is asked.
    pub heads: u8,
    /// Picks behind which the heads are of no use, because guesses go on there already: the place of a row among those that
    /// are asked, and the token picked there; ascending.
    pub known: Vec<(u16, u32)>,
    /// Whether a forecast of the next step is wanted.
    pub forecast: Wanted,
}

/// Whether something is to be answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// No.
    #[default]
    No,
    /// Yes, by a backend that can.
    Yes,
}

impl EndAsk {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heads == 0 && self.forecast == Wanted::No
    }
}

/// What is known where a walk ended.
#[derive(Clone, Debug, PartialEq)]
pub struct EndAnswer {
    /// The place of the row among those that are asked.
    pub place: u16,
    /// What was picked there.
    pub token: u32,
    /// What the heads guess.
    pub heads: Option<HeadGuesses>,
    /// What is expected of the next step.
    pub forecast: Option<Forecast>,
}

/// Guesses of the heads beside a model, from its hidden state where a walk ended.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadGuesses {
    /// For each head its guesses, best first: the first at the position behind the pick, the second one further, and so on.
    pub ranked: Vec<Vec<Guess>>,
    /// What the heads cost, as a share of what a step of one row costs.
    pub share: f32,
}

/// How much of a chain of guesses the next step is expected to accept (H-RAD, arXiv 2506.01979, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forecast {
    /// Not one.
    Nothing,
    /// Some of them.
    Some,
    /// All of them.
    Everything,
}

impl Forecast {
    /// In the order of the classes.
    pub const ALL: [Forecast; 3] = [Forecast::Nothing, Forecast::Some, Forecast::Everything];
}

/// One row of a tree in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The node that is computed.
    pub node: NodeId,
    /// The node it continues; `None` for the text.
    pub parent: Option<NodeId>,
    /// Its token id.
    pub token: u32,
    /// The tokens after the text, down to this one, itself included. Empty for a row that is asked for nothing.
    pub path: Vec<u32>,
    /// What it has to answer.
    pub ask: Ask,
}

/// What one session puts into one step of its model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// Committed tokens to append to the cache.
    pub append: Vec<u32>,
    /// What the last appended tokens have to answer, in order: none of them, the last, or all.
    pub asks: Vec<Ask>,
    /// Tree rows, parents before children.
    pub rows: Vec<Row>,
    /// What [`Ask::Judge`] refers to.
    pub judgements: Vec<Judgement>,
    /// What is asked where the walk ends.
    pub end: EndAsk,
}

impl StepPlan {
    /// Appends tokens that have nothing to answer.
    #[must_use]
    pub fn append(tokens: &[u32]) -> Self {
        StepPlan {
            append: tokens.to_vec(),
            ..StepPlan::default()
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.append.len() + self.rows.len()
    }

    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.append.is_empty() && self.rows.is_empty()
    }

    /// Everything that is asked of rows, in the order of the answers: appended tokens, then tree rows. [`Ask::Nothing`] has
    /// no answer. One to [`StepPlan::end`] may follow.
    pub fn asked(&self) -> impl Iterator<Item = Ask> + '_ {
        let rows = self.rows.iter().map(|row| row.ask);
        (self.asks.iter().copied().chain(rows)).filter(|ask| *ask != Ask::Nothing)
    }
}

/// What the owner of the cache has to do, in order, before it computes the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheOp {
    /// These rows, a chain after the cached text, have become text.
    Keep(Vec<NodeId>),
    /// These rows are not needed any more; rows below them are dropped by their own ids.
    Drop(Vec<NodeId>),
    /// Only this many positions of the text stay cached; every row beyond is dropped.
    Shorten(u32),
}

/// The tokens before a token that is to be picked or guessed.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// Prompt and committed tokens. Within a session it only grows.
    pub text: &'a [u32],
    /// The guesses after the text, down to the token of the row that is asked.
    pub path: &'a [u32],
    /// How many tokens of the text are the prompt.
    pub prompt_len: u32,
}

impl History<'_> {
    /// The position of the token that is to be picked or guessed.
    #[must_use]
    pub fn position(&self) -> u32 {
        // Texts are bounded by a model's context, far below 2^32.
        (self.text.len() + self.path.len()) as u32
    }

    pub(crate) fn output_len(&self) -> usize {
        (self.text.len() + self.path.len()).saturating_sub(self.prompt_len as usize)
    }
}

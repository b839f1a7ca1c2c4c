//! What is asked of a simulation: a cluster, a load and a way of decoding.

use std::fmt;
use std::sync::Arc;

use engine::LoadError;
use engine::synthetic::Profile;
use speculation::Time;
use speculation::duty::Role;
use speculation::strategy::{Settings, StrategyError};

/// How long a step of so many rows lasts.
#[derive(Clone)]
pub struct StepTime(Arc<dyn Fn(usize) -> Time + Send + Sync>);

impl StepTime {
    /// Any function of the rows of a step.
    pub fn new(of_rows: impl Fn(usize) -> Time + Send + Sync + 'static) -> Self {
        StepTime(Arc::new(of_rows))
    }

    /// The same time for every step.
    #[must_use]
    pub fn constant(time: Time) -> Self {
        StepTime::new(move |_| time)
    }

    /// The time of a step of so many rows.
    #[must_use]
    pub fn of(&self, rows: usize) -> Time {
        (self.0)(rows)
    }
}

impl fmt::Debug for StepTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StepTime({:?} for one row)", self.of(1))
    }
}

/// How long the steps of each role last.
#[derive(Clone, Debug)]
pub struct StepTimes {
    /// Of targets.
    pub target: StepTime,
    /// Of qualifiers.
    pub qualifier: StepTime,
    /// Of drafts.
    pub draft: StepTime,
}

impl StepTimes {
    /// Those of a role.
    #[must_use]
    pub fn of(&self, role: Role) -> &StepTime {
        match role {
            Role::Target => &self.target,
            Role::Qualifier => &self.qualifier,
            Role::Draft => &self.draft,
        }
    }
}

/// The way between the coordinator and each worker. Messages keep their order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Network {
    /// How long a message takes one way, at least.
    pub trip: Time,
    /// How much longer it may take; evenly distributed.
    pub jitter: Time,
}

/// Workers by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Targets, at least 1.
    pub targets: usize,
    /// Qualifiers.
    pub qualifiers: usize,
    /// Drafts.
    pub drafts: usize,
}

impl Counts {
    /// Devices: every worker has one of its own.
    #[must_use]
    pub fn devices(self) -> usize {
        self.targets + self.qualifiers + self.drafts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}T", self.targets)?;
        for (count, letter) in [(self.qualifiers, 'Q'), (self.drafts, 'D')] {
            if count > 0 {
                write!(f, "+{count}{letter}")?;
            }
        }
        Ok(())
    }
}

/// The tokens of the models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Token ids lie below it.
    pub size: u32,
    /// The tokens that texts are made of, ascending.
    pub tokens: Vec<u32>,
    /// Tokens that end a text. None of them is ever drawn.
    pub eos: Vec<u32>,
}

impl Default for Vocabulary {
    /// As many tokens as vocabularies have, so that drawn text hardly repeats itself.
    fn default() -> Self {
        const SIZE: u32 = 32_000;
        Vocabulary {
            size: SIZE,
            tokens: (0..SIZE).collect(),
            eos: Vec::new(),
        }
    }
}

/// The workers and what is between them.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The tokens of all models.
    pub vocabulary: Vocabulary,
    /// How draft, qualifier and target agree.
    pub profile: Profile,
    /// How many workers there are.
    pub counts: Counts,
    /// How long their steps last.
    pub times: StepTimes,
    /// How long messages take.
    pub network: Network,
    /// When sessions get the answers of a step.
    pub answers: Answers,
    /// What the host's own work adds to a step for each of its rows: planning, trees, messages.
    pub host_per_row: Time,
}

/// When sessions get the answers of a step, and begin to wait for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// At its end, as from a model.
    #[default]
    AtEnd,
    /// At its beginning, as on a rig whose steps are computed or drawn first and then padded.
    AtBeginning,
}

/// What requests begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompts {
    /// So many tokens, drawn for each request on its own, at least 1.
    Drawn(u32),
    /// These in turn, each with the seed of its requests.
    Given(Vec<(Vec<u32>, u64)>),
}

impl Prompts {
    /// Tokens of the longest.
    #[must_use]
    pub fn longest(&self) -> usize {
        match self {
            Prompts::Drawn(tokens) => *tokens as usize,
            Prompts::Given(prompts) => {
                let lengths = prompts.iter().map(|(tokens, _)| tokens.len());
                lengths.max().unwrap_or(0)
            }
        }
    }
}

/// When requests are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// By as many clients as requests may run at one time: each sends its next one when its last one was answered.
    #[default]
    Closed,
    /// At these times, ascending, one for each request; who finds no room waits.
    At(Vec<Time>),
}

/// Who asks for what.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// All requests together.
    pub requests: usize,
    /// Requests that run at one time, at most.
    pub concurrency: usize,
    /// When requests are sent.
    pub arrivals: Arrivals,
    /// What they begin with.
    pub prompts: Prompts,
    /// Tokens that each request generates, at least 2: speed is measured from the first to the last.
    pub tokens: u32,
    /// Which class of the profile serves, as for [`engine::synthetic`].
    pub temperature: f32,
    /// Decides prompts, texts and delays.
    pub seed: u64,
    /// Positions of each text that are recorded, at most.
    pub record: usize,
    /// The time whose steps are noted down, from and until.
    pub watch: Option<(Time, Time)>,
}

/// A way of decoding.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// The strategy with its knobs.
    pub settings: Settings,
    /// Drafts that a request has, at most.
    pub drafts: usize,
    /// Qualifiers that a request has, at most.
    pub qualifiers: usize,
}

/// The longest text, prompt included.
const MAX_TEXT: u32 = 1 << 20;
/// The most workers of a cluster.
const MAX_WORKERS: usize = 4096;
/// The most requests at one time.
const MAX_CLIENTS: usize = 1 << 15;

/// An experiment that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A size is out of its range.
    #[error("{name} is {value}; allowed are {least} to {most}")]
    Size {
        /// What.
        name: &'static str,
        /// As given.
        value: usize,
        /// The least.
        least: usize,
        /// The most.
        most: usize,
    },
    /// There is no such strategy.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// The profile does not fit.
    #[error(transparent)]
    Backend(#[from] LoadError),
    /// A prompt that no model could take.
    #[error("prompt {number} has a token that is not below {size}, the size of the vocabulary")]
    Prompt {
        /// Which one, from 1.
        number: usize,
        /// The size.
        size: u32,
    },
    /// A session did not end as every session of a cluster without faults does.
    #[error("the simulation went wrong, which is a bug: {0}")]
    Broken(String),
}

fn within(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), LabError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(LabError::Size {
        name,
        value,
        least,
        most,
    })
}

/// Checks every size before anything is allocated.
pub(crate) fn check(cluster: &Cluster, load: &Load) -> Result<(), LabError> {
    let Counts {
        targets,
        qualifiers,
        drafts,
    } = cluster.counts;
    within("targets", targets, 1, MAX_WORKERS)?;
    within("qualifiers", qualifiers, 0, MAX_WORKERS)?;
    within("drafts", drafts, 0, MAX_WORKERS)?;
    within("requests", load.requests, 1, 1 << 24)?;
    if let Arrivals::At(times) = &load.arrivals {
        within(
            "times of arrival",
            times.len(),
            load.requests,
            load.requests,
        )?;
    }
    within("concurrency", load.concurrency, 1, MAX_CLIENTS)?;
    let most = MAX_TEXT as usize / 2;
    within("tokens of a prompt", load.prompts.longest(), 1, most)?;
    within("tokens", load.tokens as usize, 2, most)?;
    // Texts of all clients at once, on every worker: what caches are made for.
    let positions = load.concurrency * (load.prompts.longest() + load.tokens as usize);
    within("positions of all texts", positions, 1, 1 << 26)?;
    let size = cluster.vocabulary.size;
    if let Prompts::Given(prompts) = &load.prompts {
        for (number, (tokens, _)) in (1..).zip(prompts) {
            within("tokens of a prompt", tokens.len(), 1, most)?;
            if tokens.iter().any(|&token| token >= size) {
                return Err(LabError::Prompt { number, size });
            }
        }
    }
    Ok(())
}

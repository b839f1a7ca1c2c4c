//! From the wire to the domain. Everything is checked here once; behind it, types are trusted.

use std::time::Duration;

use speculation::limits::{MAX_BIASED, MAX_NODES_PER_UPDATE, MAX_PROMPT_SCORES};
use speculation::message::{
    Activity, DraftReport, Finish, LinkName, NodeBatch, Prob16, PromptScores, ReplicaUpdate,
    SessionId, SessionSpec, Shard, Stopping, Task, Term, VerifyReport,
};
pub use speculation::message::{Addressed, Relayed};
use speculation::policy::{
    AdvicePolicy, AutoKnobs, GrowthPolicy, Launch, Pause, Strategy, VerifyPolicy,
};
use speculation::stats::WalkStats;

use crate::{MAX_SESSIONS_PER_FRAME, Sampling, scores, v1};

/// A message that cannot be understood. The text names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number is out of its range.
    #[error("{field} is {value}; allowed is {allowed}")]
    Range {
        /// The field.
        field: &'static str,
        /// What was sent.
        value: String,
        /// What may be sent.
        allowed: &'static str,
    },
    /// An unknown strategy.
    #[error("unknown strategy {0:?}; known are ar, serial, serial-tree, auto")]
    Strategy(String),
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

pub(crate) fn range(field: &'static str, value: impl ToString, allowed: &'static str) -> WireError {
    WireError::Range {
        field,
        value: value.to_string(),
        allowed,
    }
}

fn u16_of(field: &'static str, value: u32) -> Result<u16, WireError> {
    u16::try_from(value).map_err(|_| range(field, value, "0..=65535"))
}

fn probability(field: &'static str, value: f32) -> Result<f32, WireError> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(range(field, value, "0..=1"))
    }
}

pub(crate) fn at_most(
    field: &'static str,
    len: usize,
    most: usize,
    allowed: &'static str,
) -> Result<(), WireError> {
    if len > most {
        return Err(range(field, len, allowed));
    }
    Ok(())
}

fn shard(shard: v1::Shard) -> Result<Shard, WireError> {
    let valid = (1..=64).contains(&shard.count) && shard.index < shard.count;
    if !valid {
        let value = format!("{} of {}", shard.index, shard.count);
        return Err(range("shard", value, "index < count <= 64"));
    }
    Ok(Shard {
        index: shard.index as u8,
        count: shard.count as u8,
    })
}

fn edges(field: &'static str, edges: &[u32]) -> Result<Vec<Prob16>, WireError> {
    edges
        .iter()
        .map(|&edge| u16_of(field, edge).map(Prob16))
        .collect()
}

fn nodes(nodes: Option<v1::Nodes>) -> Result<NodeBatch, WireError> {
    let Some(nodes) = nodes else {
        return Ok(NodeBatch::default());
    };
    at_most(
        "nodes.tokens",
        nodes.tokens.len(),
        MAX_NODES_PER_UPDATE,
        "at most 512 nodes",
    )?;
    at_most(
        "nodes.edges",
        nodes.edges.len(),
        MAX_NODES_PER_UPDATE,
        "at most 512 nodes",
    )?;
    Ok(NodeBatch {
        first_id: nodes.first_id,
        parents: nodes.parents,
        tokens: nodes.tokens,
        edges: edges("nodes.edges", &nodes.edges)?,
        owners: nodes.owners,
    })
}

fn walk(walk: Option<v1::Walk>) -> Result<VerifyPolicy, WireError> {
    let walk = walk.ok_or(WireError::Missing("walk"))?;
    let launch = match walk.launch() {
        v1::walk::Launch::AtOnce => Launch::AtOnce,
        v1::walk::Launch::Round => {
            Launch::Round(Duration::from_micros(walk.round_deadline_us.into()))
        }
        v1::walk::Launch::WhenWaitingCosts => Launch::WhenWaitingCosts,
        v1::walk::Launch::Unspecified => return Err(WireError::Missing("walk.launch")),
    };
    Ok(VerifyPolicy {
        launch,
        rows: u16_of("walk.rows", walk.rows)?,
        min_path: probability("walk.min_path", walk.min_path)?,
    })
}

fn grow(grow: v1::Grow) -> Result<Task, WireError> {
    let policy = GrowthPolicy {
        width: u16_of("grow.width", grow.width)?.max(1),
        branch: u16_of("grow.branch", grow.branch)?.clamp(1, 64),
        depth: u16_of("grow.depth", grow.depth)?.max(1),
        nodes: u16_of("grow.nodes", grow.nodes)?,
        min_path: probability("grow.min_path", grow.min_path)?,
        pause: match u16_of("grow.pause_after_steps", grow.pause_after_steps)? {
            0 => Pause::WhenWorthless,
            steps => Pause::AfterSteps(steps),
        },
    };
    let shard = grow.shard.map_or(Ok(Shard::default()), shard)?;
    Ok(Task::Grow { policy, shard })
}

/// An open call: what to do and how to sample. The text is checked against the model by who owns one.
pub fn open(request: v1::OpenRequest) -> Result<(SessionSpec, Sampling), WireError> {
    let stopping = request.stopping.ok_or(WireError::Missing("stopping"))?;
    let sampling = request.sampling.ok_or(WireError::Missing("sampling"))?;
    at_most(
        "stopping.stop_ids",
        stopping.stop_ids.len(),
        64,
        "at most 64 stop ids",
    )?;
    let len = request.text.len();
    // A text may be complete already: what was lost then is its end, or scores of its prompt.
    if stopping.prompt_len == 0
        || stopping.prompt_len as usize > len
        || stopping.prompt_len >= stopping.max_len
        || len > stopping.max_len as usize
    {
        let value = format!(
            "{len} tokens, prompt {}, max_len {}",
            stopping.prompt_len, stopping.max_len
        );
        return Err(range(
            "text",
            value,
            "1 <= prompt_len <= tokens <= max_len, prompt_len < max_len",
        ));
    }
    let task = match request.task.ok_or(WireError::Missing("task"))? {
        v1::open_request::Task::Grow(task) => grow(task)?,
        v1::open_request::Task::Commit(task) => Task::Commit(walk(Some(task))?),
        v1::open_request::Task::Advise(task) => {
            let advice = AdvicePolicy {
                ahead: u16_of("advise.ahead", task.ahead)?,
                bare_share: probability("advise.bare_share", task.bare_share)?,
            };
            Task::Advise(walk(task.walk)?, advice)
        }
    };
    let scoring = scores::scoring(request.scoring, stopping.prompt_len)?;
    let spec = SessionSpec {
        session: SessionId(request.session),
        term: Term(request.term),
        text: request.text,
        stopping: Stopping {
            prompt_len: stopping.prompt_len,
            max_len: stopping.max_len,
            max_len_is_context: stopping.max_len_is_context,
            stop_ids: stopping.stop_ids,
        },
        allowed_len: request.allowed_len,
        scoring,
        task,
    };
    Ok((spec, self::sampling(sampling)?))
}

/// The counts are checked here; the values by who samples.
fn sampling(sampling: v1::Sampling) -> Result<Sampling, WireError> {
    if sampling.bias_ids.len() != sampling.bias_values.len() {
        let value = format!(
            "{} and {}",
            sampling.bias_ids.len(),
            sampling.bias_values.len()
        );
        return Err(range("sampling.bias", value, "arrays of equal length"));
    }
    at_most(
        "sampling.bias",
        sampling.bias_ids.len(),
        MAX_BIASED,
        "at most 1024 tokens",
    )?;
    Ok(Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        seed: sampling.seed,
        choice: sampling.choice,
        bias: (sampling.bias_ids.into_iter())
            .zip(sampling.bias_values)
            .collect(),
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        min_tokens: sampling.min_tokens,
    })
}

/// Who is calling, from the first frame of a stream or from an open call.
pub fn link_name(coordinator: u64, incarnation: u64) -> Result<LinkName, WireError> {
    if coordinator == 0 {
        return Err(range("coordinator", 0, "a number that names the caller"));
    }
    if incarnation == 0 {
        return Err(range("incarnation", 0, "at least 1"));
    }
    Ok(LinkName {
        coordinator,
        incarnation,
    })
}

/// A frame from a coordinator.
pub fn relay_frame(frame: v1::RelayFrame) -> Result<Relayed, WireError> {
    at_most(
        "updates",
        frame.updates.len(),
        MAX_SESSIONS_PER_FRAME,
        "at most 256 sessions",
    )?;
    let updates = frame
        .updates
        .into_iter()
        .map(update)
        .collect::<Result<_, _>>()?;
    at_most(
        "closed",
        frame.closed.len(),
        MAX_SESSIONS_PER_FRAME,
        "at most 256 sessions",
    )?;
    if frame.closed.len() != frame.closed_terms.len() {
        let value = format!("{} and {}", frame.closed.len(), frame.closed_terms.len());
        return Err(range("closed", value, "arrays of equal length"));
    }
    let closed = (frame.closed.into_iter().map(SessionId))
        .zip(frame.closed_terms.into_iter().map(Term))
        .collect();
    Ok(Relayed { updates, closed })
}

fn update(update: v1::SessionUpdate) -> Result<Addressed<ReplicaUpdate>, WireError> {
    if update.rescored_ids.len() != update.rescored_edges.len() {
        let value = format!(
            "{} and {}",
            update.rescored_ids.len(),
            update.rescored_edges.len()
        );
        return Err(range("rescored", value, "arrays of equal length"));
    }
    at_most(
        "rescored_ids",
        update.rescored_ids.len(),
        1024,
        "at most 1024 nodes",
    )?;
    let rescored = edges("rescored_edges", &update.rescored_edges)?;
    Ok(Addressed {
        session: SessionId(update.session),
        term: Term(update.term),
        message: ReplicaUpdate {
            base_len: update.base_len,
            commit: update.commit,
            nodes: nodes(update.nodes)?,
            rescored: update.rescored_ids.into_iter().zip(rescored).collect(),
            round_done: update.round_done,
            allowed_len: update.allowed_len,
            prompt_scored: update.prompt_scored,
            shard: update.shard.map(shard).transpose()?,
        },
    })
}

/// What a worker says in one frame.
#[derive(Clone, Debug)]
pub struct Reported<T> {
    /// New states.
    pub reports: Vec<Addressed<T>>,
    /// Sessions it can no longer serve, and why.
    pub faults: Vec<Addressed<String>>,
}

/// Bytes of a fault's text that are kept: it is logged and told to clients.
const MAX_FAULT: usize = 1024;

fn faults(faults: Vec<v1::Fault>) -> Result<Vec<Addressed<String>>, WireError> {
    at_most(
        "faults",
        faults.len(),
        MAX_SESSIONS_PER_FRAME,
        "at most 256 sessions",
    )?;
    let addressed = |mut fault: v1::Fault| {
        let kept = fault.message.char_indices().map(|(at, _)| at);
        if let Some(end) = kept.take_while(|&at| at <= MAX_FAULT).last()
            && fault.message.len() > MAX_FAULT
        {
            fault.message.truncate(end);
        }
        Addressed {
            session: SessionId(fault.session),
            term: Term(fault.term),
            message: fault.message,
        }
    };
    Ok(faults.into_iter().map(addressed).collect())
}

/// A frame from a draft.
pub fn draft_frame(frame: v1::DraftFrame) -> Result<Reported<DraftReport>, WireError> {
    at_most(
        "reports",
        frame.reports.len(),
        MAX_SESSIONS_PER_FRAME,
        "at most 256 sessions",
    )?;
    let report = |report: v1::DraftSessionReport| {
        Ok(Addressed {
            session: SessionId(report.session),
            term: Term(report.term),
            message: DraftReport {
                base_len: report.base_len,
                nodes: nodes(report.nodes)?,
                round_done: report.round_done,
                activity: activity(report.activity),
            },
        })
    };
    Ok(Reported {
        reports: frame
            .reports
            .into_iter()
            .map(report)
            .collect::<Result<_, WireError>>()?,
        faults: faults(frame.faults)?,
    })
}

/// A frame from a target or a qualifier.
pub fn verify_frame(frame: v1::VerifyFrame) -> Result<Reported<VerifyReport>, WireError> {
    at_most(
        "reports",
        frame.reports.len(),
        MAX_SESSIONS_PER_FRAME,
        "at most 256 sessions",
    )?;
    Ok(Reported {
        reports: frame
            .reports
            .into_iter()
            .map(verify_report)
            .collect::<Result<_, WireError>>()?,
        faults: faults(frame.faults)?,
    })
}

fn verify_report(report: v1::VerifySessionReport) -> Result<Addressed<VerifyReport>, WireError> {
    let finish = finish(report.finish());
    let picked = (report.scores)
        .map(|sent| scores::scores("scores", sent, report.picks.len()))
        .transpose()?;
    if let Some(scores) = &picked
        && scores.len() != report.picks.len()
    {
        return Err(range("scores", scores.len(), "one for each pick"));
    }
    let prompt_scores = match report.prompt_scores {
        None => None,
        Some(_) if report.prompt_scores_first == 0 => {
            return Err(WireError::Missing("prompt_scores_first"));
        }
        Some(sent) => Some(PromptScores {
            first: report.prompt_scores_first,
            scores: scores::scores("prompt_scores", sent, MAX_PROMPT_SCORES)?,
        }),
    };
    Ok(Addressed {
        session: SessionId(report.session),
        term: Term(report.term),
        message: VerifyReport {
            base_len: report.base_len,
            picks: report.picks,
            margins: report.margins,
            scores: picked.map(Box::new),
            prompt_scores: prompt_scores.map(Box::new),
            finish,
            activity: activity(report.activity),
            walks: walks(report.walks),
        },
    })
}

/// Why a text ended, if it did.
pub fn finish(reason: v1::FinishReason) -> Option<Finish> {
    match reason {
        v1::FinishReason::Unspecified => None,
        v1::FinishReason::Stop => Some(Finish::Stop),
        v1::FinishReason::Length => Some(Finish::Length),
        v1::FinishReason::Context => Some(Finish::Context),
        v1::FinishReason::NotFinite => Some(Finish::NotFinite),
    }
}

/// Totals of a worker; absent counts as zero.
pub fn activity(activity: Option<v1::Activity>) -> Activity {
    let activity = activity.unwrap_or_default();
    Activity {
        steps: activity.steps,
        rows: activity.rows,
        busy_us: activity.busy_us,
        bubble_us: activity.bubble_us,
        parked_us: activity.parked_us,
        life_us: activity.life_us,
        abandoned_steps: activity.abandoned_steps,
    }
}

/// Totals of a verifier; absent counts as zero.
pub fn walks(walks: Option<v1::WalkStats>) -> WalkStats {
    let walks = walks.unwrap_or_default();
    WalkStats {
        steps: walks.steps,
        starved_steps: walks.starved_steps,
        starved_us: walks.starved_us,
        tokens: walks.tokens,
        hits: walks.hits,
        misses: walks.misses,
        chain_submitted: walks.chain_submitted,
        chain_accepted: walks.chain_accepted,
        guesses_submitted: walks.guesses_submitted,
        guesses_accepted: walks.guesses_accepted,
    }
}

/// The strategy a client asks for.
pub fn strategy(strategy: Option<v1::Strategy>) -> Result<Strategy, WireError> {
    let asked = strategy.unwrap_or_default();
    let knob = |field, value, default, most: u16, allowed| match value {
        0 => Ok(default),
        value if value <= u32::from(most) => Ok(value as u16),
        value => Err(range(field, value, allowed)),
    };
    let gamma = knob("strategy.gamma", asked.gamma, 4, 64, "1..=64")?;
    let auto = AutoKnobs::default();
    match asked.name.as_str() {
        "ar" => Ok(Strategy::Ar),
        "serial" => Ok(Strategy::Serial { gamma }),
        "serial-tree" => Ok(Strategy::SerialTree {
            depth: knob("strategy.depth", asked.depth, 4, 64, "1..=64")?,
            width: knob("strategy.width", asked.width, 4, 32, "1..=32")?,
            rows: knob("strategy.rows", asked.rows, 16, 128, "1..=128")?,
        }),
        "" | "auto" => Ok(Strategy::Auto(AutoKnobs {
            width: knob("strategy.width", asked.width, auto.width, 32, "1..=32")?,
            rows: knob("strategy.rows", asked.rows, auto.rows, 128, "1..=128")?,
            depth: knob("strategy.depth", asked.depth, auto.depth, 256, "1..=256")?,
            ahead: knob("strategy.ahead", asked.ahead, auto.ahead, 128, "1..=128")?,
        })),
        other => Err(WireError::Strategy(other.to_owned())),
    }
}

//! From the wire to the domain. Everything is checked here once; after that, types are trusted.

use decode::sampling::{SamplingParams, Shaping};
use decode::{PromptScores, Rule, Sampling};
use speculation::by_source::BySource;
use speculation::bypass::Mode;
use speculation::duty::{Duties, Duty, Source};
use speculation::history::HistoryKey;
use speculation::limits::{MAX_BIASED, MAX_KNOBS, MAX_NODES_PER_UPDATE, MAX_PROMPT_SCORES};
use speculation::message::{
    Activity, Addressed, CoordinatorFrame, Finish, Forecast, FromWorker, Margin, NodeBatch, Origin,
    Outlook, Prob16, ReplicaUpdate, Report, SessionId, SessionSpec, Shard, Stopping, StreamName,
    Term,
};
use speculation::misses::{MissCause, Misses};
use speculation::recording::{MAX_GUESSES, Picked, Seen};
use speculation::stats::{SourceStats, WalkStats};
use speculation::strategy::{Knobs, Settings};

pub use crate::journal::run;
use crate::{MAX_SESSIONS_PER_FRAME, groups, journal, scores, v1};

/// An invalid message. The text names the field.
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
    /// A duty that this version does not know.
    #[error("unknown duty {0:?}; known are propose, advise and commit")]
    Duty(String),
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
        origins: origins(&nodes)?,
        groups: groups::take(&nodes)?,
        surprisals: groups::take_surprisals(&nodes)?,
        parents: nodes.parents,
        tokens: nodes.tokens,
        edges: edges("nodes.edges", &nodes.edges)?,
        owners: nodes.owners,
    })
}

fn origins(nodes: &v1::Nodes) -> Result<Vec<Origin>, WireError> {
    let len = nodes.sources.len();
    let is_whole = |given| given == len || given == 0;
    let is_rated = nodes.qs.len() == nodes.margins.len() && is_whole(nodes.qs.len());
    if !is_rated || ![0, nodes.tokens.len()].contains(&len) {
        let value = format!(
            "{len} sources, {} qs, {} margins",
            nodes.qs.len(),
            nodes.margins.len()
        );
        return Err(range(
            "nodes.sources",
            value,
            "one of each for every node, sources alone, or none",
        ));
    }
    let qs = edges("nodes.qs", &nodes.qs)?;
    let origins = nodes.sources.iter().enumerate();
    Ok(origins
        .map(|(at, &source)| Origin {
            source: Source::from_code(source),
            q: qs.get(at).copied().unwrap_or_default(),
            margin: Margin(
                nodes
                    .margins
                    .get(at)
                    .map_or(0, |margin| margin.cast_signed()),
            ),
        })
        .collect())
}

pub use crate::groups::rule;

/// A strategy and its knobs, by the rule `exact`. Whether there is such a strategy is checked where there is a registry.
///
/// # Errors
/// When there are more knobs than any strategy has, or one is not a number.
pub fn settings(
    name: String,
    knobs: impl IntoIterator<Item = (String, f64)>,
) -> Result<Settings, WireError> {
    let knobs: Vec<(String, f64)> = knobs.into_iter().collect();
    at_most("knobs", knobs.len(), MAX_KNOBS, "at most 32")?;
    if let Some((name, value)) = knobs.iter().find(|(_, value)| !value.is_finite()) {
        return Err(range(
            "knobs",
            format!("{name} = {value}"),
            "finite numbers",
        ));
    }
    Ok(Settings {
        name,
        knobs: knobs.into_iter().collect::<Knobs>(),
        rule: Rule::Exact,
    })
}

fn duties(names: Vec<String>) -> Result<Duties, WireError> {
    at_most("duties", names.len(), 8, "at most 8")?;
    (names.into_iter())
        .map(|name| Duty::from_name(&name).ok_or(WireError::Duty(name)))
        .collect()
}

/// An open call: what to do and how to sample. The text is checked against the model by the model's owner.
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
    let scoring = scores::scoring(request.scoring, stopping.prompt_len)?;
    let history = history(&request.history)?;
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
        strategy: settings(request.strategy, request.knobs)?.by(rule(request.acceptance)?),
        duties: duties(request.duties)?,
        shard: request.shard.map_or(Ok(Shard::default()), shard)?,
        is_shared: request.shared_device,
        history,
        has_journal: request.journal,
    };
    let sampling = self::sampling(sampling, &spec.stopping.stop_ids)?;
    Ok((spec, sampling))
}

fn history(key: &[u8]) -> Result<Option<HistoryKey>, WireError> {
    match key {
        [] => Ok(None),
        key => match key.try_into() {
            Ok(key) => Ok(Some(HistoryKey(key))),
            Err(_) => Err(range(
                "history",
                format!("{} bytes", key.len()),
                "32 bytes or none",
            )),
        },
    }
}

/// The counts are checked here; the values by the sampler.
fn sampling(sampling: v1::Sampling, stop_ids: &[u32]) -> Result<Sampling, WireError> {
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
        params: SamplingParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            choice: sampling.choice,
        },
        shaping: Shaping {
            bias: (sampling.bias_ids.into_iter())
                .zip(sampling.bias_values)
                .collect(),
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            min_tokens: sampling.min_tokens,
            stop_ids: stop_ids.to_vec(),
        },
    })
}

/// Who is calling, from the first frame of a stream or from an open call.
pub fn stream_name(coordinator: u64, incarnation: u64) -> Result<StreamName, WireError> {
    if coordinator == 0 {
        return Err(range("coordinator", 0, "a number that names the caller"));
    }
    if incarnation == 0 {
        return Err(range("incarnation", 0, "at least 1"));
    }
    Ok(StreamName {
        coordinator,
        incarnation,
    })
}

/// A frame from a coordinator.
pub fn coordinator_frame(frame: v1::CoordinatorFrame) -> Result<CoordinatorFrame, WireError> {
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
    Ok(CoordinatorFrame { updates, closed })
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
            outlook: Outlook {
                misses: update.misses,
                step_us: update.step_us,
                ..outlook(update.outlook, mode(update.mode), update.forecast)?
            },
        },
    })
}

/// What a newer peer may ask besides is not known here: then nothing is made, which no text depends on.
fn mode(mode: i32) -> Mode {
    match v1::Mode::try_from(mode) {
        Ok(v1::Mode::Speculate) => Mode::Speculate,
        Ok(v1::Mode::Turns) => Mode::Turns,
        Ok(v1::Mode::Rest) | Err(_) => Mode::Rest,
    }
}

fn outlook(accepted: Option<f32>, mode: Mode, class: i32) -> Result<Outlook, WireError> {
    if let Some(odd) = accepted.filter(|accepted| !(0.0..=1e6).contains(accepted)) {
        return Err(range("outlook", odd, "a number of tokens"));
    }
    // A class that only a newer peer knows says nothing here.
    let forecast = match v1::Forecast::try_from(class) {
        Ok(v1::Forecast::Unspecified) | Err(_) => None,
        Ok(v1::Forecast::Nothing) => Some(Forecast::Nothing),
        Ok(v1::Forecast::Some) => Some(Forecast::Some),
        Ok(v1::Forecast::Everything) => Some(Forecast::Everything),
    };
    Ok(Outlook {
        accepted,
        mode,
        forecast,
        step_us: None,
        misses: 0,
    })
}

fn margins(margins: Vec<u8>) -> Vec<Margin> {
    (margins.into_iter())
        .map(|margin| Margin(margin.cast_signed()))
        .collect()
}

/// Bytes of a fault's text that are kept: it is logged and shown to clients.
const MAX_FAULT: usize = 1024;

fn fault(mut fault: v1::Fault) -> Addressed<FromWorker> {
    let kept = fault.message.char_indices().map(|(at, _)| at);
    if let Some(end) = kept.take_while(|&at| at <= MAX_FAULT).last()
        && fault.message.len() > MAX_FAULT
    {
        fault.message.truncate(end);
    }
    Addressed {
        session: SessionId(fault.session),
        term: Term(fault.term),
        message: match fault.preempted {
            true => FromWorker::Preempted,
            false => FromWorker::Fault(fault.message),
        },
    }
}

/// A frame from a worker: its messages about sessions.
///
/// # Errors
/// When it is larger than a frame may be, or a report is invalid.
pub fn worker_frame(frame: v1::WorkerFrame) -> Result<Vec<Addressed<FromWorker>>, WireError> {
    for (field, len) in [
        ("reports", frame.reports.len()),
        ("faults", frame.faults.len()),
    ] {
        at_most(field, len, MAX_SESSIONS_PER_FRAME, "at most 256 sessions")?;
    }
    let reports = frame.reports.into_iter().map(report);
    reports
        .chain(frame.faults.into_iter().map(|wire| Ok(fault(wire))))
        .collect()
}

fn report(report: v1::SessionReport) -> Result<Addressed<FromWorker>, WireError> {
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
        message: FromWorker::Report(Report {
            base_len: report.base_len,
            picks: report.picks,
            margins: margins(report.margins),
            surprisals: groups::surprisals(&report.surprisals)?,
            scores: picked.map(Box::new),
            prompt_scores: prompt_scores.map(Box::new),
            finish,
            nodes: nodes(report.nodes)?,
            round_done: report.round_done,
            outlook: Outlook {
                misses: report.settled_misses,
                step_us: report.step_us,
                ..outlook(report.outlook, mode(report.mode), report.forecast)?
            },
            activity: activity(report.activity),
            walks: walks(report.walks),
            misses: misses(report.misses),
            journal: journal::report(report.journal)?,
        }),
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

/// Misses by cause; absent counts as zero.
pub fn misses(misses: Option<v1::Misses>) -> Misses {
    let sent = misses.unwrap_or_default();
    let mut misses = Misses::default();
    for (cause, count) in [
        (MissCause::Unranked, sent.unranked),
        (MissCause::Pruned, sent.pruned),
        (MissCause::Full, sent.full),
        (MissCause::Unexpanded, sent.unexpanded),
        (MissCause::Contradicted, sent.contradicted),
        (MissCause::Behind, sent.behind),
        (MissCause::InFlight, sent.in_flight),
        (MissCause::Withheld, sent.withheld),
    ] {
        misses.set(cause, count);
    }
    misses
}

/// One recorded position.
///
/// # Errors
/// When a place or a length is out of its range.
pub fn seen(sent: v1::RecordedPosition) -> Result<Seen, WireError> {
    let range = |field, value: String, allowed| WireError::Range {
        field,
        value,
        allowed,
    };
    let guesses = sent.q.len();
    if !(1..=MAX_GUESSES).contains(&guesses) {
        return Err(range("q", format!("{guesses} guesses"), "1 to 12 guesses"));
    }
    if sent.gaps.len() != guesses.max(2) - 1 {
        let gaps = format!("{} gaps of {guesses} guesses", sent.gaps.len());
        return Err(range("gaps", gaps, "one for each guess but the first"));
    }
    let place = |field, place: u32| match u8::try_from(place) {
        Ok(place) if usize::from(place) < guesses => Ok(place),
        _ => Err(range(field, place.to_string(), "the place of a guess")),
    };
    let gaps = margins(sent.gaps);
    if !gaps.is_sorted() || gaps.iter().any(|gap| gap.0 < 0) {
        return Err(range("gaps", format!("{gaps:?}"), "ascending distances"));
    }
    let q = sent.q.iter().map(|&q| u16::try_from(q).map(Prob16));
    let q = q.collect::<Result<Vec<_>, _>>();
    let lead = i8::try_from(sent.lead);
    Ok(Seen {
        place: match sent.place.checked_sub(1) {
            None => None,
            Some(at) => Some(place("place", at)?),
        },
        picked: match sent.picked {
            0 => Picked::Nothing,
            1 => Picked::Committed,
            2 => Picked::Other,
            more => Picked::Guess(place("picked", more - 3)?),
        },
        lead: lead
            .map(Margin)
            .map_err(|_| range("lead", sent.lead.to_string(), "-128 to 127"))?,
        gaps,
        q: q.map_err(|_| range("q", format!("{:?}", sent.q), "0 to 65535"))?,
    })
}

/// What is there of each known source; absent counts as zero.
fn sources(walks: &v1::WalkStats) -> BySource<SourceStats> {
    let mut sources = BySource::default();
    for source in Source::ALL {
        let of = |counts: &[u64]| counts.get(usize::from(source.code())).copied();
        sources[source] = SourceStats {
            nodes: of(&walks.source_nodes).unwrap_or_default(),
            committed: of(&walks.source_committed).unwrap_or_default(),
            hits: of(&walks.source_hits).unwrap_or_default(),
        };
    }
    sources
}

/// Totals of a verifier; absent counts as zero.
pub fn walks(walks: Option<v1::WalkStats>) -> WalkStats {
    let walks = walks.unwrap_or_default();
    WalkStats {
        sources: sources(&walks),
        steps: walks.steps,
        starved_steps: walks.starved_steps,
        starved_us: walks.starved_us,
        resting_steps: walks.resting_steps,
        tokens: walks.tokens,
        hits: walks.hits,
        misses: walks.misses,
        chain_submitted: walks.chain_submitted,
        chain_accepted: walks.chain_accepted,
        guesses_submitted: walks.guesses_submitted,
        guesses_accepted: walks.guesses_accepted,
        tolerated: walks.tolerated,
        heads_steps: walks.heads_steps,
    }
}

//! From the domain to the wire.

use decode::Sampling;
use speculation::by_source::BySource;
use speculation::bypass::Mode;
use speculation::duty::{Duties, Duty, Source};
use speculation::message::{
    Activity, Addressed, Finish, Forecast, Margin, NodeBatch, Origin, Prob16, ReplicaUpdate,
    Report, SessionId, SessionSpec, Shard, StreamName, Term, WorkerInfo,
};
use speculation::misses::{MissCause, Misses};
use speculation::recording::{Picked, Recording, Seen};
use speculation::stats::SessionStats;
use speculation::stats::{SourceStats, WalkStats};

pub use crate::groups::acceptance;
pub use crate::scores::sent as token_scores;
use crate::{OLDEST_PROTOCOL, PROTOCOL, groups, journal, scores, v1};

fn nodes(nodes: NodeBatch) -> Option<v1::Nodes> {
    if nodes.is_empty() {
        return None;
    }
    // Who passes nodes on knows where they came from, and not how they were rated.
    let rated = |origin: &Origin| (origin.q, origin.margin) != Default::default();
    let rated = if nodes.origins.iter().any(rated) {
        &nodes.origins[..]
    } else {
        &[]
    };
    let mut sent = v1::Nodes {
        first_id: nodes.first_id,
        parents: nodes.parents,
        tokens: nodes.tokens,
        edges: nodes.edges.into_iter().map(edge).collect(),
        owners: nodes.owners,
        sources: (nodes.origins.iter())
            .map(|origin| origin.source.code())
            .collect(),
        qs: rated.iter().map(|origin| edge(origin.q)).collect(),
        margins: margins(rated.iter().map(|origin| origin.margin)),
        ..v1::Nodes::default()
    };
    groups::put(nodes.groups, &mut sent);
    groups::put_surprisals(&nodes.surprisals, &mut sent);
    Some(sent)
}

fn edge(edge: Prob16) -> u32 {
    u32::from(edge.0)
}

fn shard(shard: Shard) -> v1::Shard {
    v1::Shard {
        index: shard.index.into(),
        count: shard.count.into(),
    }
}

fn margins(margins: impl Iterator<Item = Margin>) -> Vec<u8> {
    margins
        .map(|Margin(margin)| margin.cast_unsigned())
        .collect()
}

/// What a worker can do, as the handshake names it: to advise is to verify without committing.
fn capabilities(duties: Duties) -> Vec<String> {
    let names = duties.iter().map(|duty| match duty {
        Duty::Propose => "propose",
        Duty::Advise => "verify",
        Duty::Commit => "commit",
    });
    names.map(str::to_owned).collect()
}

/// A coordinator's side of the handshake.
pub fn hello_request() -> v1::HelloRequest {
    v1::HelloRequest {
        protocol: PROTOCOL,
        oldest_protocol: OLDEST_PROTOCOL,
    }
}

/// A worker's side of the handshake; `instance` names the process.
pub fn hello(info: &WorkerInfo, instance: u64) -> v1::HelloReply {
    v1::HelloReply {
        protocol: PROTOCOL,
        role: info.role.name().to_owned(),
        model: info.model.clone(),
        numerics_id: info.numerics_id.clone(),
        vocabulary_hash: info.vocabulary_hash.clone(),
        vocabulary_len: info.vocabulary_len,
        max_context: info.max_context,
        max_sessions: info.max_sessions,
        eos_ids: info.eos_ids.clone(),
        kv_positions: info.kv_positions,
        kv_page: info.kv_page,
        capabilities: capabilities(info.duties),
        oldest_protocol: OLDEST_PROTOCOL,
        instance,
        device: info.device.clone(),
    }
}

/// An open call for a session that belongs to this stream.
pub fn open(stream: StreamName, spec: SessionSpec, sampling: Sampling) -> v1::OpenRequest {
    let Sampling { params, shaping } = sampling;
    v1::OpenRequest {
        coordinator: stream.coordinator,
        incarnation: stream.incarnation,
        session: spec.session.0,
        term: spec.term.0,
        text: spec.text,
        stopping: Some(v1::Stopping {
            prompt_len: spec.stopping.prompt_len,
            max_len: spec.stopping.max_len,
            max_len_is_context: spec.stopping.max_len_is_context,
            stop_ids: spec.stopping.stop_ids,
        }),
        sampling: Some(v1::Sampling {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            seed: params.seed,
            choice: params.choice,
            bias_ids: shaping.bias.iter().map(|&(id, _)| id).collect(),
            bias_values: shaping.bias.iter().map(|&(_, value)| value).collect(),
            repetition_penalty: shaping.repetition_penalty,
            presence_penalty: shaping.presence_penalty,
            frequency_penalty: shaping.frequency_penalty,
            min_tokens: shaping.min_tokens,
        }),
        allowed_len: spec.allowed_len,
        scoring: Some(scores::asked(spec.scoring)),
        strategy: spec.strategy.name,
        knobs: (spec.strategy.knobs.iter())
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        duties: (spec.duties.iter())
            .map(|duty| duty.name().to_owned())
            .collect(),
        shard: Some(shard(spec.shard)),
        shared_device: spec.is_shared,
        acceptance: acceptance(spec.strategy.rule),
        history: spec.history.map_or(Vec::new(), |key| key.0.to_vec()),
        journal: spec.has_journal,
    }
}

/// The request that continues a completion of which these tokens have arrived: the same request, with what its stream
/// said first, for this one of its completions.
pub fn resume(
    request: v1::GenerateRequest,
    started: &v1::Started,
    token_ids: &[u32],
    choice: u32,
) -> v1::GenerateRequest {
    let ids = started.prompt_token_ids.clone();
    v1::GenerateRequest {
        prompt: Some(v1::generate_request::Prompt::Tokens(v1::TokenIds { ids })),
        seed: Some(started.seed),
        n: 0,
        resume: Some(v1::Resume {
            token_ids: token_ids.to_vec(),
            numerics_id: started.system_fingerprint.clone(),
            choice,
        }),
        ..request
    }
}

/// The first frame of a stream: who is calling.
pub fn greeting(stream: StreamName) -> v1::CoordinatorFrame {
    v1::CoordinatorFrame {
        coordinator: stream.coordinator,
        incarnation: stream.incarnation,
        ..v1::CoordinatorFrame::default()
    }
}

/// A coordinator's update of one session.
pub fn update(update: Addressed<ReplicaUpdate>) -> v1::SessionUpdate {
    let message = update.message;
    let (rescored_ids, rescored_edges) = (message.rescored.into_iter())
        .map(|(id, to)| (id, edge(to)))
        .unzip();
    v1::SessionUpdate {
        session: update.session.0,
        term: update.term.0,
        base_len: message.base_len,
        commit: message.commit,
        nodes: nodes(message.nodes),
        rescored_ids,
        rescored_edges,
        round_done: message.round_done,
        allowed_len: message.allowed_len,
        shard: message.shard.map(shard),
        prompt_scored: message.prompt_scored,
        outlook: message.outlook.accepted,
        mode: mode(message.outlook.mode).into(),
        misses: message.outlook.misses,
        forecast: forecast(message.outlook.forecast).into(),
        step_us: message.outlook.step_us,
    }
}

fn mode(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Speculate => v1::Mode::Speculate,
        Mode::Turns => v1::Mode::Turns,
        Mode::Rest => v1::Mode::Rest,
    }
}

fn forecast(forecast: Option<Forecast>) -> v1::Forecast {
    match forecast {
        None => v1::Forecast::Unspecified,
        Some(Forecast::Nothing) => v1::Forecast::Nothing,
        Some(Forecast::Some) => v1::Forecast::Some,
        Some(Forecast::Everything) => v1::Forecast::Everything,
    }
}

/// A worker's report about one session.
pub fn report(report: Addressed<Report>) -> v1::SessionReport {
    let message = report.message;
    let (prompt_scores_first, prompt_scores) = match message.prompt_scores {
        Some(part) => (part.first, Some(scores::sent(part.scores))),
        None => (0, None),
    };
    v1::SessionReport {
        session: report.session.0,
        term: report.term.0,
        base_len: message.base_len,
        picks: message.picks,
        margins: margins(message.margins.into_iter()),
        surprisals: (message.surprisals.iter())
            .map(|surprisal| surprisal.0.into())
            .collect(),
        finish: finish(message.finish).into(),
        activity: Some(activity(message.activity)),
        walks: Some(walks(message.walks)),
        scores: message.scores.map(|scores| scores::sent(*scores)),
        prompt_scores_first,
        prompt_scores,
        nodes: nodes(message.nodes),
        round_done: message.round_done,
        outlook: message.outlook.accepted,
        mode: mode(message.outlook.mode).into(),
        settled_misses: message.outlook.misses,
        misses: (message.misses != Misses::default()).then(|| misses(message.misses)),
        forecast: forecast(message.outlook.forecast).into(),
        step_us: message.outlook.step_us,
        journal: journal::sent(&message.journal),
    }
}

/// A worker gives up a session.
pub fn fault(fault: Addressed<String>) -> v1::Fault {
    v1::Fault {
        session: fault.session.0,
        term: fault.term.0,
        message: fault.message,
        preempted: false,
    }
}

/// A worker gives up a session for the sake of others.
pub fn preempted(session: SessionId, term: Term) -> v1::Fault {
    v1::Fault {
        session: session.0,
        term: term.0,
        message: "the cache is full".to_owned(),
        preempted: true,
    }
}

/// Why a text ended, if it did.
pub fn finish(finish: Option<Finish>) -> v1::FinishReason {
    match finish {
        None => v1::FinishReason::Unspecified,
        Some(Finish::Stop) => v1::FinishReason::Stop,
        Some(Finish::Length) => v1::FinishReason::Length,
        Some(Finish::Context) => v1::FinishReason::Context,
        Some(Finish::NotFinite) => v1::FinishReason::NotFinite,
    }
}

/// Totals of a worker.
pub fn activity(activity: Activity) -> v1::Activity {
    v1::Activity {
        steps: activity.steps,
        rows: activity.rows,
        busy_us: activity.busy_us,
        bubble_us: activity.bubble_us,
        parked_us: activity.parked_us,
        life_us: activity.life_us,
        abandoned_steps: activity.abandoned_steps,
    }
}

/// Totals of a verifier.
pub fn walks(walks: WalkStats) -> v1::WalkStats {
    v1::WalkStats {
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
        source_nodes: counts(&walks.sources, |source| source.nodes),
        source_committed: counts(&walks.sources, |source| source.committed),
        source_hits: counts(&walks.sources, |source| source.hits),
        heads_steps: walks.heads_steps,
    }
}

/// Misses by cause.
pub fn misses(misses: Misses) -> v1::Misses {
    v1::Misses {
        unranked: misses.of(MissCause::Unranked),
        pruned: misses.of(MissCause::Pruned),
        full: misses.of(MissCause::Full),
        unexpanded: misses.of(MissCause::Unexpanded),
        contradicted: misses.of(MissCause::Contradicted),
        behind: misses.of(MissCause::Behind),
        in_flight: misses.of(MissCause::InFlight),
        withheld: misses.of(MissCause::Withheld),
    }
}

/// One count of each source, by its number, without the zeros at the end.
fn counts(sources: &BySource<SourceStats>, of: impl Fn(&SourceStats) -> u64) -> Vec<u64> {
    let mut counts = vec![0; Source::CODES];
    for (source, stats) in sources.iter() {
        counts[usize::from(source.code())] = of(stats);
    }
    let len = counts
        .iter()
        .rposition(|&count| count > 0)
        .map_or(0, |last| last + 1);
    counts.truncate(len);
    counts
}

/// How the models agreed in one text, as far as that was recorded.
pub fn recorded(temperature: f32, recording: &Recording) -> v1::RecordedText {
    v1::RecordedText {
        temperature,
        positions: recording.seen().iter().map(position).collect(),
        unseen: recording.unseen(),
        runs: recording.runs().map(journal::sent_run).collect(),
    }
}

fn position(seen: &Seen) -> v1::RecordedPosition {
    v1::RecordedPosition {
        place: seen.place.map_or(0, |place| u32::from(place) + 1),
        picked: match seen.picked {
            Picked::Nothing => 0,
            Picked::Committed => 1,
            Picked::Other => 2,
            Picked::Guess(place) => u32::from(place) + 3,
        },
        lead: seen.lead.0.into(),
        gaps: seen.gaps.iter().map(|gap| gap.0.cast_unsigned()).collect(),
        q: seen.q.iter().map(|q| q.0.into()).collect(),
    }
}

/// How a session went.
pub fn statistics(stats: SessionStats) -> v1::SessionStatistics {
    v1::SessionStatistics {
        walks: Some(walks(stats.walks)),
        target: Some(activity(stats.target)),
        drafts: stats.drafts.into_iter().map(activity).collect(),
        qualifiers: stats.qualifiers.into_iter().map(activity).collect(),
        drafted_nodes: stats.drafted_nodes,
        drafted_committed: stats.drafted_committed,
        advised: stats.advised.0,
        advised_committed: stats.advised.1,
        misses: Some(misses(stats.misses)),
    }
}

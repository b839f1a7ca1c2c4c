//! From the domain to the wire.

use speculation::message::{
    Activity, DraftReport, Finish, LinkName, NodeBatch, Prob16, ReplicaUpdate, SessionSpec, Shard,
    Task, VerifyReport, WorkerInfo,
};
use speculation::policy::{Launch, Pause, Strategy, VerifyPolicy};
use speculation::relay::SessionStats;
use speculation::stats::WalkStats;

use crate::inward::Addressed;
pub use crate::scores::sent as token_scores;
use crate::{PROTOCOL, Sampling, scores, v1};

fn nodes(nodes: NodeBatch) -> Option<v1::Nodes> {
    (!nodes.is_empty()).then(|| v1::Nodes {
        first_id: nodes.first_id,
        parents: nodes.parents,
        tokens: nodes.tokens,
        edges: nodes.edges.into_iter().map(edge).collect(),
        owners: nodes.owners,
    })
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

fn walk(policy: VerifyPolicy) -> v1::Walk {
    let (launch, deadline) = match policy.launch {
        Launch::AtOnce => (v1::walk::Launch::AtOnce, 0),
        Launch::Round(deadline) => (
            v1::walk::Launch::Round,
            u32::try_from(deadline.as_micros()).unwrap_or(u32::MAX),
        ),
        Launch::WhenWaitingCosts => (v1::walk::Launch::WhenWaitingCosts, 0),
    };
    v1::Walk {
        launch: launch.into(),
        round_deadline_us: deadline,
        rows: policy.rows.into(),
        min_path: policy.min_path,
    }
}

/// A worker's side of the handshake.
pub fn hello(role: &str, info: &WorkerInfo) -> v1::HelloReply {
    v1::HelloReply {
        protocol: PROTOCOL,
        role: role.to_owned(),
        model: info.model.clone(),
        numerics_id: info.numerics_id.clone(),
        vocabulary_hash: info.vocabulary_hash.clone(),
        vocabulary_len: info.vocabulary_len,
        max_context: info.max_context,
        max_sessions: info.max_sessions,
        eos_ids: info.eos_ids.clone(),
        kv_positions: info.kv_positions,
        kv_page: info.kv_page,
    }
}

/// An open call for a session that belongs to the stream `link`.
pub fn open(link: LinkName, spec: SessionSpec, sampling: Sampling) -> v1::OpenRequest {
    let task = match spec.task {
        Task::Grow {
            policy,
            shard: part,
        } => v1::open_request::Task::Grow(v1::Grow {
            width: policy.width.into(),
            branch: policy.branch.into(),
            depth: policy.depth.into(),
            nodes: policy.nodes.into(),
            min_path: policy.min_path,
            pause_after_steps: match policy.pause {
                Pause::AfterSteps(steps) => steps.into(),
                Pause::WhenWorthless => 0,
            },
            shard: Some(shard(part)),
        }),
        Task::Commit(policy) => v1::open_request::Task::Commit(walk(policy)),
        Task::Advise(policy, advice) => v1::open_request::Task::Advise(v1::Advise {
            walk: Some(walk(policy)),
            ahead: advice.ahead.into(),
            bare_share: advice.bare_share,
        }),
    };
    v1::OpenRequest {
        coordinator: link.coordinator,
        incarnation: link.incarnation,
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
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            choice: sampling.choice,
            bias_ids: sampling.bias.iter().map(|&(id, _)| id).collect(),
            bias_values: sampling.bias.iter().map(|&(_, value)| value).collect(),
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            min_tokens: sampling.min_tokens,
        }),
        allowed_len: spec.allowed_len,
        task: Some(task),
        scoring: Some(scores::asked(spec.scoring)),
    }
}

/// The request for the rest of a completion of which these tokens have arrived: the same one, by what its stream said
/// first. It asks for this one of several completions.
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
pub fn greeting(link: LinkName) -> v1::RelayFrame {
    v1::RelayFrame {
        coordinator: link.coordinator,
        incarnation: link.incarnation,
        ..v1::RelayFrame::default()
    }
}

/// A coordinator's word about one session.
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
    }
}

/// A draft's word about one session.
pub fn draft_report(report: Addressed<DraftReport>) -> v1::DraftSessionReport {
    v1::DraftSessionReport {
        session: report.session.0,
        term: report.term.0,
        base_len: report.message.base_len,
        nodes: nodes(report.message.nodes),
        round_done: report.message.round_done,
        activity: Some(activity(report.message.activity)),
    }
}

/// A verifier's word about one session.
pub fn verify_report(report: Addressed<VerifyReport>) -> v1::VerifySessionReport {
    let (prompt_scores_first, prompt_scores) = match report.message.prompt_scores {
        Some(part) => (part.first, Some(scores::sent(part.scores))),
        None => (0, None),
    };
    v1::VerifySessionReport {
        session: report.session.0,
        term: report.term.0,
        base_len: report.message.base_len,
        picks: report.message.picks,
        margins: report.message.margins,
        finish: finish(report.message.finish).into(),
        activity: Some(activity(report.message.activity)),
        walks: Some(walks(report.message.walks)),
        scores: report.message.scores.map(|scores| scores::sent(*scores)),
        prompt_scores_first,
        prompt_scores,
    }
}

/// A worker gives up a session.
pub fn fault(fault: Addressed<String>) -> v1::Fault {
    v1::Fault {
        session: fault.session.0,
        term: fault.term.0,
        message: fault.message,
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
        tokens: walks.tokens,
        hits: walks.hits,
        misses: walks.misses,
        chain_submitted: walks.chain_submitted,
        chain_accepted: walks.chain_accepted,
        guesses_submitted: walks.guesses_submitted,
        guesses_accepted: walks.guesses_accepted,
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
    }
}

/// A strategy as a client asks for it.
pub fn strategy(strategy: Strategy) -> v1::Strategy {
    let mut asked = v1::Strategy {
        name: strategy.name().to_owned(),
        ..v1::Strategy::default()
    };
    match strategy {
        Strategy::Ar => {}
        Strategy::Serial { gamma } => asked.gamma = gamma.into(),
        Strategy::SerialTree { depth, width, rows } => {
            asked.depth = depth.into();
            asked.width = width.into();
            asked.rows = rows.into();
        }
        Strategy::Auto(knobs) => {
            asked.width = knobs.width.into();
            asked.rows = knobs.rows.into();
            asked.depth = knobs.depth.into();
            asked.ahead = knobs.ahead.into();
        }
    }
    asked
}

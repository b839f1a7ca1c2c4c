//! What a coordinator counts. Names that begin with `vllm:` mean what they mean there, so that dashboards carry over;
//! all others are ours. `docs/metrics.md` lists them.

use std::fmt::Debug;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use runtime::metrics::LATENCY_BUCKETS;
use speculation::duty::Role;
use speculation::message::Finish;
use speculation::misses::MissCause;
use speculation::stats::SessionStats;
use tonic::Code;

use crate::discovery::Kind;
use crate::worker;
use crate::worker_totals::Totals;

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// Why a request ended without an error, in vLLM's words.
const FINISHED: [&str; 3] = ["stop", "length", "abort"];
/// The statuses that a request can be refused or fail with.
const CODES: [Code; 8] = [
    Code::InvalidArgument,
    Code::OutOfRange,
    Code::DeadlineExceeded,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::Unavailable,
    Code::Internal,
];
/// What a worker can be doing.
const STATES: [&str; 3] = ["ready", "connecting", "refused"];

/// Bounds of the whole time of a request, in seconds.
const REQUEST_BUCKETS: [f64; 15] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0,
];

/// The counters of one coordinator.
#[derive(Debug)]
pub(crate) struct CoordinatorMetrics {
    running: Gauge,
    waiting: Gauge,
    sessions: Gauge,
    workers: Family<[(&'static str, &'static str); 2], Gauge>,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    success: Family<Label, Counter>,
    failures: Family<Label, Counter>,
    rejections: Family<Label, Counter>,
    bypasses: Family<Label, Counter>,
    discovery_failures: Family<Label, Counter>,
    pub(crate) migrations: Counter,
    pub(crate) parked: Counter,
    pub(crate) queue_time: Histogram,
    pub(crate) first_token: Histogram,
    pub(crate) token_gap: Histogram,
    pub(crate) token_time: Histogram,
    pub(crate) request_time: Histogram,
    drafted_nodes: Counter,
    wasted_nodes: Counter,
    missed: Family<Label, Counter>,
    walks: WalkCounters,
}

/// Copied from the targets' reports whenever metrics are read.
#[derive(Debug, Default)]
struct WalkCounters {
    drafts: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    target_steps: Counter,
    starved_steps: Counter,
    resting_steps: Counter,
    hits: Counter,
    misses: Counter,
    rollback_tokens: Counter,
    source_nodes: Family<Label, Counter>,
    source_committed: Family<Label, Counter>,
    source_hits: Family<Label, Counter>,
    heads_steps: Counter,
}

impl Default for CoordinatorMetrics {
    fn default() -> Self {
        let latency = || Histogram::new(LATENCY_BUCKETS);
        CoordinatorMetrics {
            running: Gauge::default(),
            waiting: Gauge::default(),
            sessions: Gauge::default(),
            workers: Family::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            success: Family::default(),
            failures: Family::default(),
            rejections: Family::default(),
            bypasses: Family::default(),
            discovery_failures: Family::default(),
            migrations: Counter::default(),
            parked: Counter::default(),
            queue_time: latency(),
            first_token: latency(),
            token_gap: latency(),
            token_time: latency(),
            request_time: Histogram::new(REQUEST_BUCKETS),
            drafted_nodes: Counter::default(),
            wasted_nodes: Counter::default(),
            missed: Family::default(),
            walks: WalkCounters::default(),
        }
    }
}

impl CoordinatorMetrics {
    /// Describes them all. Every known value of a label is there from the start, so that rates can be computed from the first event on.
    pub(crate) fn register(&self, registry: &mut Registry) {
        for reason in FINISHED {
            self.success
                .get_or_create_owned(&[("finished_reason", reason)]);
        }
        for code in CODES {
            self.failures
                .get_or_create_owned(&[("code", code_name(code))]);
            self.rejections
                .get_or_create_owned(&[("reason", code_name(code))]);
        }
        for role in Role::ALL {
            self.bypasses.get_or_create_owned(&[("role", role.name())]);
        }
        for cause in MissCause::ALL {
            self.missed.get_or_create_owned(&[("cause", cause.name())]);
        }
        for kind in Kind::ALL {
            self.discovery_failures
                .get_or_create_owned(&[("source", kind.name())]);
        }
        self.register_vllm(registry);
        self.register_ours(registry);
        let registry = registry.sub_registry_with_labels(
            [
                ("gen_ai_operation_name".into(), "text_completion".into()),
                ("gen_ai_provider_name".into(), "offshoot".into()),
            ]
            .into_iter(),
        );
        seconds(
            registry,
            [
                (
                    "gen_ai_server_time_to_first_token",
                    "Time from a request to its first token",
                    &self.first_token,
                ),
                (
                    "gen_ai_server_time_per_output_token",
                    "Mean time of each token after the first, by request",
                    &self.token_time,
                ),
                (
                    "gen_ai_server_request_duration",
                    "Time from a request to its last token",
                    &self.request_time,
                ),
            ],
        );
    }

    fn register_vllm(&self, registry: &mut Registry) {
        gauges(
            registry,
            [
                (
                    "vllm:num_requests_running",
                    "Requests that run",
                    &self.running,
                ),
                (
                    "vllm:num_requests_waiting",
                    "Requests that wait for their turn or for a target",
                    &self.waiting,
                ),
            ],
        );
        counters(
            registry,
            [
                (
                    "vllm:prompt_tokens",
                    "Prompt tokens of requests that started",
                    &self.prompt_tokens,
                ),
                (
                    "vllm:generation_tokens",
                    "Tokens generated",
                    &self.generation_tokens,
                ),
                (
                    "vllm:spec_decode_num_drafts",
                    "Target steps that verified at least one guess",
                    &self.walks.drafts,
                ),
                (
                    "vllm:spec_decode_num_draft_tokens",
                    "Guesses that target steps verified",
                    &self.walks.draft_tokens,
                ),
                (
                    "vllm:spec_decode_num_accepted_tokens",
                    "Guesses that became text",
                    &self.walks.accepted_tokens,
                ),
            ],
        );
        registry.register(
            "vllm:request_success",
            "Requests that ended without an error, by reason; abort: the client disconnected",
            self.success.clone(),
        );
        seconds(
            registry,
            [
                (
                    "vllm:time_to_first_token",
                    "Time from a request to its first token",
                    &self.first_token,
                ),
                (
                    "vllm:inter_token_latency",
                    "Time between tokens; those that are committed together count as one",
                    &self.token_gap,
                ),
                (
                    "vllm:e2e_request_latency",
                    "Time from a request to its last token",
                    &self.request_time,
                ),
                (
                    "vllm:request_queue_time",
                    "Time that a request waited for its turn",
                    &self.queue_time,
                ),
            ],
        );
    }

    fn register_ours(&self, registry: &mut Registry) {
        gauges(
            registry,
            [(
                "offshoot_sessions",
                "Sessions that have a reservation on a target",
                &self.sessions,
            )],
        );
        registry.register(
            "offshoot_workers",
            "Workers by role and state",
            self.workers.clone(),
        );
        counters(
            registry,
            [
                (
                    "offshoot_hits",
                    "Target walks whose last token was already a guess",
                    &self.walks.hits,
                ),
                (
                    "offshoot_misses",
                    "Target walks whose last token was not",
                    &self.walks.misses,
                ),
                (
                    "offshoot_target_steps",
                    "Target steps that ended in a walk",
                    &self.walks.target_steps,
                ),
                (
                    "offshoot_starved_steps",
                    "Target steps without a live guess",
                    &self.walks.starved_steps,
                ),
                (
                    "offshoot_resting_steps",
                    "Target steps without guesses because guesses did not pay",
                    &self.walks.resting_steps,
                ),
                (
                    "offshoot_heads_steps",
                    "Target steps in which heads were evaluated",
                    &self.walks.heads_steps,
                ),
                (
                    "offshoot_rollback_tokens",
                    "Tokens of submitted main chains that were discarded",
                    &self.walks.rollback_tokens,
                ),
                (
                    "offshoot_drafted_nodes",
                    "Nodes that drafts added to trees",
                    &self.drafted_nodes,
                ),
                (
                    "offshoot_wasted_nodes",
                    "Of those, nodes that were never committed",
                    &self.wasted_nodes,
                ),
                (
                    "offshoot_migrations",
                    "Times that a session that had lost its target was given to a target again",
                    &self.migrations,
                ),
                (
                    "offshoot_parked",
                    "Times that a session gave its workers up because its client took nothing",
                    &self.parked,
                ),
            ],
        );
        for (name, help, family) in [
            (
                "offshoot_source_nodes",
                "Nodes of targets' trees, by the source that gave them",
                &self.walks.source_nodes,
            ),
            (
                "offshoot_source_committed",
                "Of those, nodes whose token was committed",
                &self.walks.source_committed,
            ),
            (
                "offshoot_source_hits",
                "Target walks whose last token was already a guess, by the source that gave it",
                &self.walks.source_hits,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "offshoot_rejections",
            "Requests refused on arrival, by status",
            self.rejections.clone(),
        );
        registry.register(
            "offshoot_request_failures",
            "Requests that were accepted and failed, by status",
            self.failures.clone(),
        );
        registry.register(
            "offshoot_miss_causes",
            "Target steps that ended in a token without a guess, by cause, as drafts account for them",
            self.missed.clone(),
        );
        registry.register(
            "offshoot_bypasses",
            "Times that a session went on without one of its workers, by role",
            self.bypasses.clone(),
        );
        registry.register(
            "offshoot_discovery_failures",
            "Times that a source of workers could not be asked, by its kind",
            self.discovery_failures.clone(),
        );
    }

    /// A request was refused on arrival.
    pub(crate) fn rejected(&self, code: Code) {
        self.rejections
            .get_or_create(&[("reason", code_name(code))])
            .inc();
    }

    /// A request failed.
    pub(crate) fn failed(&self, code: Code) {
        self.failures
            .get_or_create(&[("code", code_name(code))])
            .inc();
    }

    /// A request ended without an error; `None` when its client disconnected.
    pub(crate) fn succeeded(&self, finish: Option<Finish>) {
        self.success
            .get_or_create(&[("finished_reason", finish_name(finish))])
            .inc();
    }

    /// A session went on without a worker of this role.
    pub(crate) fn bypassed(&self, role: Role) {
        self.bypasses.get_or_create(&[("role", role.name())]).inc();
    }

    /// A source of workers could not be asked.
    pub(crate) fn discovery_failed(&self, kind: Kind) {
        self.discovery_failures
            .get_or_create(&[("source", kind.name())])
            .inc();
    }

    /// A session is over.
    pub(crate) fn ended(&self, stats: &SessionStats) {
        self.drafted_nodes.inc_by(stats.drafted_nodes);
        let wasted = stats.drafted_nodes.saturating_sub(stats.drafted_committed);
        self.wasted_nodes.inc_by(wasted);
        for cause in MissCause::ALL {
            (self.missed.get_or_create(&[("cause", cause.name())])).inc_by(stats.misses.of(cause));
        }
    }

    /// Sets what other parts know: requests that run and wait, open sessions, the totals of all targets, workers.
    pub(crate) fn refresh(
        &self,
        running: usize,
        waiting: usize,
        walked: &Totals,
        workers: &[(Option<Role>, &'static str, usize)],
    ) {
        use std::sync::atomic::Ordering::Relaxed;
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
        for role in Role::ALL.map(Some).into_iter().chain([None]) {
            for state in STATES {
                let count = workers
                    .iter()
                    .filter(|(r, s, _)| *r == role && *s == state)
                    .count();
                let name = role.map_or(worker::UNKNOWN, Role::name);
                let labels = [("role", name), ("state", state)];
                self.workers.get_or_create(&labels).set(count as i64);
            }
        }
        let targets = workers
            .iter()
            .filter(|(role, ..)| *role == Some(Role::Target));
        self.sessions
            .set(targets.map(|(.., sessions)| *sessions as i64).sum());
        let walks = &walked.walks;
        for (counter, total) in [
            (
                &self.walks.drafts,
                (walks.steps)
                    .saturating_sub(walks.starved_steps)
                    .saturating_sub(walks.resting_steps),
            ),
            (&self.walks.draft_tokens, walks.guesses_submitted),
            (&self.walks.accepted_tokens, walks.guesses_accepted),
            (&self.walks.target_steps, walks.steps),
            (&self.walks.starved_steps, walks.starved_steps),
            (&self.walks.resting_steps, walks.resting_steps),
            (&self.walks.hits, walks.hits),
            (&self.walks.misses, walks.misses),
            (&self.walks.heads_steps, walks.heads_steps),
            (
                &self.walks.rollback_tokens,
                walks.chain_submitted.saturating_sub(walks.chain_accepted),
            ),
        ] {
            counter.inner().store(total, Relaxed);
        }
        for (source, stats) in walks.sources.iter() {
            for (family, total) in [
                (&self.walks.source_nodes, stats.nodes),
                (&self.walks.source_committed, stats.committed),
                (&self.walks.source_hits, stats.hits),
            ] {
                let counter = family.get_or_create_owned(&[("source", source.name())]);
                counter.inner().store(total, Relaxed);
            }
        }
    }
}

fn counters<const N: usize>(registry: &mut Registry, all: [(&str, &str, &Counter); N]) {
    for (name, help, counter) in all {
        registry.register(name, help, counter.clone());
    }
}

fn gauges<const N: usize>(registry: &mut Registry, all: [(&str, &str, &Gauge); N]) {
    for (name, help, gauge) in all {
        registry.register(name, help, gauge.clone());
    }
}

fn seconds<const N: usize>(registry: &mut Registry, all: [(&str, &str, &Histogram); N]) {
    for (name, help, histogram) in all {
        registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    }
}

/// vLLM's name for how a request ended.
pub(crate) fn finish_name(finish: Option<Finish>) -> &'static str {
    match finish {
        Some(Finish::Stop) => "stop",
        Some(Finish::Length | Finish::Context) => "length",
        Some(Finish::NotFinite) => "error",
        None => "abort",
    }
}

/// The label of a status.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

//! Metrics of a worker process: where the time of its model thread goes, and what it holds.
//!
//! The four times together are the life of the model thread, but for the moments between steps: *busy* in steps,
//! a *bubble* while an open session waits for others, *parked* while more work has no value to any of them, *vacant*
//! without a session. They are the worker's own wall time; a session's share of it is in its statistics.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use control::activity::Status;
use engine::Backend;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use runtime::metrics::LATENCY_BUCKETS;
use speculation::duty::Role;
use speculation::history::HistoryCache;

/// A total of seconds.
type Seconds = Counter<f64, AtomicU64>;

/// Counters of one worker; clones share them.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    steps: Counter,
    abandoned_steps: Counter,
    rows: Counter,
    step_time: Histogram,
    queue_wait: Histogram,
    busy: Seconds,
    bubble: Seconds,
    parked: Seconds,
    vacant: Seconds,
    opened: Counter,
    refused: Counter,
    faults: Counter,
    preemptions: Counter,
    /// Sessions that are open.
    pub(crate) sessions: Gauge,
    /// Events that wait for the model thread.
    pub(crate) inbox: Gauge,
    pages_used: Gauge,
    pages_total: Gauge,
    history_tokens: Gauge,
    histories: Gauge,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        WorkerMetrics {
            steps: Counter::default(),
            abandoned_steps: Counter::default(),
            rows: Counter::default(),
            step_time: Histogram::new(LATENCY_BUCKETS),
            queue_wait: Histogram::new(LATENCY_BUCKETS),
            busy: Seconds::default(),
            bubble: Seconds::default(),
            parked: Seconds::default(),
            vacant: Seconds::default(),
            opened: Counter::default(),
            refused: Counter::default(),
            faults: Counter::default(),
            preemptions: Counter::default(),
            sessions: Gauge::default(),
            inbox: Gauge::default(),
            pages_used: Gauge::default(),
            pages_total: Gauge::default(),
            history_tokens: Gauge::default(),
            histories: Gauge::default(),
        }
    }
}

impl WorkerMetrics {
    /// Describes them all to `registry`, with the worker's role as a label.
    pub fn register(&self, registry: &mut Registry, role: Role) {
        let registry = registry.sub_registry_with_label(("role".into(), role.name().into()));
        let times = [
            (
                "offshoot_busy",
                "Time of the model thread inside steps",
                &self.busy,
            ),
            (
                "offshoot_bubble",
                "Time of the model thread idle although an open session waited for others",
                &self.bubble,
            ),
            (
                "offshoot_parked",
                "Time of the model thread idle because more work had no value to any open session",
                &self.parked,
            ),
            (
                "offshoot_vacant",
                "Time of the model thread without a session",
                &self.vacant,
            ),
        ];
        for (name, help, seconds) in times {
            registry.register_with_unit(name, help, Unit::Seconds, seconds.clone());
        }
        let step = "Length of a finished step, pace included";
        registry.register_with_unit("offshoot_step", step, Unit::Seconds, self.step_time.clone());
        let wait = "Time from the arrival of updates of sessions until the model thread took them";
        let waits = self.queue_wait.clone();
        registry.register_with_unit("offshoot_queue_wait", wait, Unit::Seconds, waits);
        let counters = [
            (
                "offshoot_steps",
                "Finished steps, all sessions of a step together",
                &self.steps,
            ),
            (
                "offshoot_abandoned_steps",
                "Steps given up because a commit had made them worthless",
                &self.abandoned_steps,
            ),
            (
                "offshoot_rows",
                "Rows (tokens) of finished steps, prompts included",
                &self.rows,
            ),
            (
                "offshoot_sessions_opened",
                "Sessions that were opened here",
                &self.opened,
            ),
            (
                "offshoot_sessions_refused",
                "Open calls that were refused",
                &self.refused,
            ),
            (
                "offshoot_session_faults",
                "Sessions that were given up here",
                &self.faults,
            ),
            (
                "vllm:num_preemptions",
                "Sessions that were given up because the cache was full, to go on later",
                &self.preemptions,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let gauges = [
            ("offshoot_sessions", "Open sessions", &self.sessions),
            (
                "offshoot_queue_depth",
                "Events that wait for the model thread",
                &self.inbox,
            ),
            (
                "offshoot_kv_pages_used",
                "Cache pages held by sessions",
                &self.pages_used,
            ),
            (
                "offshoot_kv_pages_total",
                "Cache pages in all",
                &self.pages_total,
            ),
            (
                "offshoot_history_tokens",
                "Tokens of completed texts that are kept for requests that share them",
                &self.history_tokens,
            ),
            (
                "offshoot_histories",
                "Names under which such texts are kept",
                &self.histories,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }

    /// A step of the whole batch was computed.
    pub(crate) fn stepped(&self, rows: usize, took: Duration) {
        self.steps.inc();
        self.rows.inc_by(rows as u64);
        self.busy.inc_by(took.as_secs_f64());
        self.step_time.observe(took.as_secs_f64());
    }

    /// Updates of sessions have waited for the model thread for this long.
    pub(crate) fn queued(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    /// A step was given up.
    pub(crate) fn abandoned(&self, took: Duration) {
        self.abandoned_steps.inc();
        self.busy.inc_by(took.as_secs_f64());
    }

    /// The thread had nothing to compute for this long; this is what its sessions were doing.
    pub(crate) fn idled(&self, time: Duration, sessions: impl Iterator<Item = Status>) {
        let mut why = &self.vacant;
        for status in sessions {
            match status {
                Status::Waiting | Status::Working => {
                    why = &self.bubble;
                    break;
                }
                Status::Parked => why = &self.parked,
                Status::Done => {}
            }
        }
        why.inc_by(time.as_secs_f64());
    }

    /// Somebody asked for a session.
    pub(crate) fn answered<T, E>(&self, answer: &Result<T, E>) {
        match answer {
            Ok(_) => self.opened.inc(),
            Err(_) => self.refused.inc(),
        };
    }

    /// A session was given up.
    pub(crate) fn fault(&self) {
        self.faults.inc();
    }

    /// A session was given up for the sake of others.
    pub(crate) fn preempted(&self) {
        self.preemptions.inc();
    }

    /// Pages were taken or given back.
    pub(crate) fn pages(&self, backend: &dyn Backend) {
        let total = backend.facts().total_pages;
        self.pages_total.set(total as i64);
        self.pages_used.set((total - backend.free_pages()) as i64);
    }

    /// Sessions have begun or ended, and with them perhaps texts that are kept.
    pub(crate) fn history(&self, history: &HistoryCache) {
        self.history_tokens.set(history.size() as i64);
        self.histories.set(history.keys() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_a_bubble_if_any_session_waits() {
        let metrics = WorkerMetrics::default();
        let second = Duration::from_secs(1);
        metrics.idled(second, [].into_iter());
        metrics.idled(second * 2, [Status::Done, Status::Parked].into_iter());
        metrics.idled(second * 4, [Status::Parked, Status::Waiting].into_iter());
        metrics.idled(second * 8, [Status::Done].into_iter());
        assert_eq!(metrics.vacant.get(), 9.0);
        assert_eq!(metrics.parked.get(), 2.0);
        assert_eq!(metrics.bubble.get(), 4.0);
    }
}

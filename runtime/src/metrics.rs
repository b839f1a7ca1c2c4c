//! The metrics of a process, in the OpenMetrics 1.0 text format that Prometheus scrapes.
//!
//! Counters are atomics that their owners hold: a model thread adds to them without a lock. Gauges whose value already
//! exists elsewhere (open sessions, the length of a queue) are set by a refresh callback when the metrics are rendered,
//! so that they cannot drift.

use std::fmt;

use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one process.
#[derive(Default)]
pub struct Metrics {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    registry: Registry,
    refresh: Vec<Box<dyn Fn() + Send>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `register` to add metrics, with their descriptions and units.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.inner.lock().registry);
    }

    /// Calls `refresh` before every rendering, to set gauges to their current values. It must not block.
    pub fn refresh(&self, refresh: impl Fn() + Send + 'static) {
        self.inner.lock().refresh.push(Box::new(refresh));
    }

    /// Renders the current values of all metrics.
    #[must_use]
    pub fn render(&self) -> String {
        let inner = self.inner.lock();
        for refresh in &inner.refresh {
            refresh();
        }
        let mut out = String::new();
        text::encode(&mut out, &inner.registry).expect("writing to a string does not fail");
        out
    }
}

/// Bucket bounds of a latency histogram in seconds, from a fast step to a slow request.
pub const LATENCY_BUCKETS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0,
];

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Unit;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    #[test]
    fn counters_keep_fractions_and_gauges_are_read_when_asked() {
        let metrics = Metrics::new();
        let busy = Counter::<f64, AtomicU64>::default();
        let depth = Gauge::<i64, AtomicI64>::default();
        metrics.register(|registry| {
            registry.register_with_unit(
                "offshoot_busy",
                "Time in steps",
                Unit::Seconds,
                busy.clone(),
            );
            registry.register("vllm:depth", "Events", depth.clone());
        });
        let truth = std::sync::Arc::new(AtomicI64::new(3));
        let seen = std::sync::Arc::clone(&truth);
        metrics.refresh(move || {
            depth.set(seen.load(Ordering::Relaxed));
        });
        busy.inc_by(0.25);
        let text = metrics.render();
        assert!(
            text.contains("offshoot_busy_seconds_total 0.25\n"),
            "{text}"
        );
        assert!(text.contains("vllm:depth 3\n"), "{text}");
        assert!(
            text.contains("# HELP offshoot_busy_seconds Time in steps.\n"),
            "{text}"
        );
        truth.store(0, Ordering::Relaxed);
        assert!(metrics.render().contains("vllm:depth 0\n"));
    }
}

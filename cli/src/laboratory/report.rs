//! What a simulation says: one JSON object per strategy, and one table.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use laboratory::{Arrivals, Cluster, Load, Outcome};
use proto::outward;
use serde::Serialize;
use speculation::Time;
use speculation::duty::Role;
use speculation::misses::MissCause;

use super::args::TrafficArgs;
use crate::bench::{Contender, align};
use crate::statistics::{Totals, median, milliseconds, percentile};
use crate::strategy::REFERENCE;

/// All strategies of one run.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Always true: these figures were computed, not measured.
    simulated: bool,
    profile: String,
    step_ms: BTreeMap<&'static str, String>,
    delay_ms: f64,
    jitter_ms: f64,
    workers: String,
    requests: usize,
    concurrency: usize,
    prompt_tokens: usize,
    max_tokens: u32,
    temperature: f32,
    seed: u64,
    strategies: Vec<Row>,
    /// Requests were sent at times of their own.
    has_arrivals: bool,
    #[serde(skip)]
    texts: Option<Vec<Vec<u32>>>,
}

/// One strategy.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) label: String,
    /// Workers that had a session, each a device.
    pub(crate) devices: usize,
    /// Median over requests, tokens per second after the first.
    pub(crate) tok_s: f64,
    /// All tokens over the whole time.
    pub(crate) throughput_tok_s: f64,
    pub(crate) throughput_per_device: f64,
    /// Throughput per device over that of `ar`; none where `ar` was not among the strategies.
    pub(crate) per_device_to_ar: Option<f64>,
    pub(crate) acceptance_length: f64,
    pub(crate) hit_rate: f64,
    pub(crate) path_rollback: f64,
    pub(crate) waste: f64,
    pub(crate) target_busy: f64,
    pub(crate) target_bubble: f64,
    pub(crate) target_starved: f64,
    pub(crate) draft_bubble: f64,
    pub(crate) target_rows: f64,
    pub(crate) ttft_ms: Option<f64>,
    /// Misses by cause, as shares of all target steps.
    pub(crate) misses: BTreeMap<&'static str, f64>,
    /// Requests whose text differs from that of the first strategy.
    pub(crate) differing_requests: usize,
    /// How long requests waited for workers: the median and the 99th percentile.
    pub(crate) queue_ms: Option<[f64; 2]>,
    /// From the moment a request was sent to its last token: the median and the 99th percentile.
    pub(crate) latency_ms: Option<[f64; 2]>,
    /// The share of their time that the workers of each role were in steps.
    pub(crate) utilisation: BTreeMap<&'static str, f64>,
    /// What became of the requests that were sent in each part of the whole time, with times of arrival.
    pub(crate) parts: Vec<Part>,
    /// Virtual seconds, and events that happened in them.
    pub(crate) seconds: f64,
    pub(crate) events: u64,
}

/// An equal part of the time in which requests were sent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Part {
    /// When it begins, seconds.
    from_s: f64,
    requests: usize,
    /// Tokens that arrived in it, per second.
    tok_s: f64,
    /// Median speed of a request that was sent in it.
    request_tok_s: Option<f64>,
    acceptance_length: f64,
    queue_p99_ms: f64,
}

/// Parts of a run with times of arrival: three hours of a day each.
const PARTS: usize = 8;

impl Part {
    fn all(outcome: &Outcome) -> Vec<Part> {
        let last = outcome.requests.iter().map(|request| request.asked).max();
        let Some(last) = last
            .map(|last| last.as_secs_f64())
            .filter(|&last| last > 0.0)
        else {
            return Vec::new();
        };
        let length = last / PARTS as f64;
        let part_of = |time: Time| ((time.as_secs_f64() / length) as usize).min(PARTS - 1);
        let mut tokens = [0; PARTS];
        for &(at, count) in outcome
            .requests
            .iter()
            .flat_map(|request| &request.arrivals)
        {
            if at.as_secs_f64() <= last {
                tokens[part_of(at)] += count;
            }
        }
        (0..PARTS)
            .map(|part| {
                let within: Vec<_> = (outcome.requests.iter())
                    .filter(|request| part_of(request.asked) == part)
                    .collect();
                let statistics: Vec<_> = (within.iter())
                    .map(|request| outward::statistics(request.stats.clone()))
                    .collect();
                let waits = within.iter().map(|request| waited(request));
                Part {
                    from_s: part as f64 * length,
                    requests: within.len(),
                    tok_s: tokens[part] as f64 / length,
                    request_tok_s: median(within.iter().filter_map(|request| request.speed())),
                    acceptance_length: Totals::of(&statistics).acceptance_length(),
                    queue_p99_ms: percentile(waits, 0.99).unwrap_or(0.0),
                }
            })
            .collect()
    }

    fn cells(&self, label: &str) -> Vec<String> {
        vec![
            label.to_owned(),
            format!("{:.0}", self.from_s),
            self.requests.to_string(),
            format!("{:.0}", self.tok_s),
            or_none(self.request_tok_s, 1),
            format!("{:.2}", self.acceptance_length),
            format!("{:.0}", self.queue_p99_ms),
        ]
    }
}

fn waited(request: &laboratory::Request) -> f64 {
    milliseconds(request.began - request.asked)
}

/// The median and the 99th percentile.
fn spread(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let values: Vec<f64> = values.collect();
    Some([
        median(values.iter().copied())?,
        percentile(values.iter().copied(), 0.99)?,
    ])
}

fn or_none(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

impl Row {
    pub(crate) fn of(contender: &Contender, outcome: &Outcome) -> Row {
        let statistics: Vec<_> = (outcome.requests.iter())
            .map(|request| outward::statistics(request.stats.clone()))
            .collect();
        let totals = Totals::of(&statistics);
        let throughput = outcome.throughput();
        let first = |request: &laboratory::Request| {
            let &(at, _) = request.arrivals.first()?;
            Some(milliseconds(at - request.asked))
        };
        Row {
            label: contender.to_string(),
            devices: outcome.devices,
            tok_s: outcome.speed(),
            throughput_tok_s: throughput,
            throughput_per_device: throughput / outcome.devices.max(1) as f64,
            per_device_to_ar: None,
            acceptance_length: totals.acceptance_length(),
            hit_rate: totals.hit_rate(),
            path_rollback: totals.path_rollback(),
            waste: totals.waste(),
            target_busy: totals.target_busy(),
            target_bubble: totals.target_bubble(),
            target_starved: totals.target_starved(),
            draft_bubble: totals.draft_bubble(),
            target_rows: totals.target_rows(),
            ttft_ms: median(outcome.requests.iter().filter_map(first)),
            misses: totals.misses(),
            differing_requests: 0,
            queue_ms: spread(outcome.requests.iter().map(waited)),
            latency_ms: spread(outcome.requests.iter().filter_map(|request| {
                let &(at, _) = request.arrivals.last()?;
                Some(milliseconds(at - request.asked))
            })),
            utilisation: (outcome.busy.keys())
                .map(|&role| (role.name(), outcome.utilisation(role)))
                .collect(),
            parts: Vec::new(),
            seconds: outcome.took.as_secs_f64(),
            events: outcome.events,
        }
    }
}

impl Report {
    /// Without any strategy yet.
    ///
    /// # Errors
    /// When the profile cannot be read.
    pub(crate) fn new(cluster: &Cluster, load: &Load, traffic: &TrafficArgs) -> Result<Report> {
        let step_ms = (Role::ALL.into_iter())
            .filter_map(|role| Some((role.name(), traffic.step_ms.get(role)?.to_string())))
            .collect();
        let profile = match (traffic.accept.as_slice(), traffic.accept_beta.as_slice()) {
            ([], []) => cluster.profile.name().to_owned(),
            ([], of) => format!("Beta-distributed acceptance {of:?}"),
            (shares, _) => format!("independent acceptance {shares:?}"),
        };
        Ok(Report {
            simulated: true,
            profile,
            step_ms,
            delay_ms: milliseconds(cluster.network.trip),
            jitter_ms: milliseconds(cluster.network.jitter),
            workers: cluster.counts.to_string(),
            requests: load.requests,
            concurrency: load.concurrency,
            prompt_tokens: load.prompts.longest(),
            max_tokens: load.tokens,
            temperature: load.temperature,
            seed: load.seed,
            strategies: Vec::new(),
            has_arrivals: load.arrivals != Arrivals::Closed,
            texts: None,
        })
    }

    /// One more strategy. Its texts are compared with those of the first.
    pub(crate) fn add(&mut self, contender: &Contender, outcome: Outcome) {
        let mut row = Row::of(contender, &outcome);
        if self.has_arrivals {
            row.parts = Part::all(&outcome);
        }
        let texts: Vec<Vec<u32>> = (outcome.requests.into_iter())
            .map(|request| request.tokens)
            .collect();
        let reference = self.texts.get_or_insert_with(|| texts.clone());
        let pairs = texts.iter().zip(reference.iter());
        row.differing_requests = pairs.filter(|(one, other)| one != other).count();
        self.strategies.push(row);
        let plain = (self.strategies.iter())
            .find(|row| row.label == REFERENCE)
            .map(|row| row.throughput_per_device);
        for row in &mut self.strategies {
            row.per_device_to_ar = plain.map(|plain| row.throughput_per_device / plain);
        }
    }

    /// The table, with a heading that says what it is.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let steps: Vec<String> = (self.step_ms.iter())
            .map(|(role, table)| format!("{role} {table} ms"))
            .collect();
        let _ = writeln!(
            out,
            "SIMULATED in virtual time: profile {}, T = {}, steps {}, network {} ms one way + up to {} ms; {} requests of {} + {} \
             tokens, {} at a time; workers {}",
            self.profile,
            self.temperature,
            steps.join(", "),
            self.delay_ms,
            self.jitter_ms,
            self.requests,
            self.prompt_tokens,
            self.max_tokens,
            self.concurrency,
            self.workers
        );
        let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
        rows.extend(self.strategies.iter().map(Row::cells));
        align(&mut out, &rows);
        let missed =
            (self.strategies.iter()).filter(|row| row.misses.values().any(|&one| one > 0.0));
        let mut rows = vec![vec!["misses per 100 target steps".to_owned()]];
        rows[0].extend(MissCause::ALL.map(|cause| cause.name().to_owned()));
        rows.extend(missed.map(Row::missed));
        if rows.len() > 1 {
            out.push('\n');
            align(&mut out, &rows);
        }
        if self.concurrency > 1 || self.has_arrivals {
            let mut rows = vec![LOAD.map(str::to_owned).to_vec()];
            rows.extend(self.strategies.iter().map(Row::load));
            out.push('\n');
            align(&mut out, &rows);
        }
        if self.has_arrivals {
            let mut rows = vec![PART.map(str::to_owned).to_vec()];
            for row in &self.strategies {
                rows.extend(row.parts.iter().map(|part| part.cells(&row.label)));
            }
            out.push('\n');
            align(&mut out, &rows);
        }
        out
    }
}

const LOAD: [&str; 9] = [
    "load",
    "all tok/s",
    "queue ms",
    "p99",
    "latency ms",
    "p99",
    "targets used",
    "qualifiers",
    "drafts",
];

const PART: [&str; 7] = [
    "parts of the time",
    "from s",
    "requests",
    "all tok/s",
    "tok/s",
    "M",
    "queue p99 ms",
];

const HEADINGS: [&str; 17] = [
    "strategy",
    "devices",
    "tok/s",
    "all tok/s",
    "/device",
    "x ar/dev",
    "M",
    "hits",
    "rollback",
    "waste",
    "busy",
    "bubble",
    "starved",
    "d.bubble",
    "rows",
    "ttft ms",
    "differ",
];

impl Row {
    fn cells(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        vec![
            self.label.clone(),
            self.devices.to_string(),
            format!("{:.1}", self.tok_s),
            format!("{:.1}", self.throughput_tok_s),
            format!("{:.1}", self.throughput_per_device),
            or_none(self.per_device_to_ar, 2),
            format!("{:.2}", self.acceptance_length),
            percent(self.hit_rate),
            percent(self.path_rollback),
            percent(self.waste),
            percent(self.target_busy),
            percent(self.target_bubble),
            percent(self.target_starved),
            percent(self.draft_bubble),
            format!("{:.1}", self.target_rows),
            or_none(self.ttft_ms, 1),
            self.differing_requests.to_string(),
        ]
    }

    fn load(&self) -> Vec<String> {
        let at =
            |spread: Option<[f64; 2]>, index: usize| or_none(spread.map(|spread| spread[index]), 0);
        let used = |role: Role| match self.utilisation.get(role.name()) {
            Some(share) => format!("{:.1}%", 100.0 * share),
            None => "-".to_owned(),
        };
        vec![
            self.label.clone(),
            format!("{:.1}", self.throughput_tok_s),
            at(self.queue_ms, 0),
            at(self.queue_ms, 1),
            at(self.latency_ms, 0),
            at(self.latency_ms, 1),
            used(Role::Target),
            used(Role::Qualifier),
            used(Role::Draft),
        ]
    }

    fn missed(&self) -> Vec<String> {
        let share = |cause: MissCause| self.misses.get(cause.name()).copied().unwrap_or(0.0);
        std::iter::once(self.label.clone())
            .chain(MissCause::ALL.map(|cause| format!("{:.1}", 100.0 * share(cause))))
            .collect()
    }
}

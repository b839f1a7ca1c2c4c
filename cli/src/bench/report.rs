//! The results of a comparison: one JSON object per strategy, and one table.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use proto::v1;
use serde::Serialize;
use speculation::misses::MissCause;

use super::contender::{Contender, Qualifiers};
use super::measure::Samples;
use crate::client::Completion;
use crate::statistics::{
    self, RoleTime, SourceCounts, Totals, median, milliseconds, percentile, quartiles,
};
use crate::strategy::REFERENCE;

/// A whole run.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Minimum step times by role in milliseconds; null when nothing was paced.
    pub(crate) paced: Option<BTreeMap<&'static str, f64>>,
    /// Step times by role, as tables of rows and milliseconds; null when there are none.
    pub(crate) step_ms: Option<BTreeMap<&'static str, String>>,
    /// What the answers were drawn from; null when models computed them.
    pub(crate) synthetic: Option<Synthetic>,
    pub(crate) machine: Machine,
    /// Folder of each role's model.
    pub(crate) models: BTreeMap<&'static str, String>,
    pub(crate) drafts: u16,
    pub(crate) prompts: usize,
    pub(crate) repeats: usize,
    pub(crate) concurrency: usize,
    pub(crate) max_tokens: u32,
    pub(crate) temperature: f32,
    pub(crate) seed: u64,
    pub(crate) strategies: Vec<StrategyReport>,
}

/// A profile that answers were drawn from.
#[derive(Serialize)]
pub(crate) struct Synthetic {
    /// Its name.
    pub(crate) profile: String,
    /// Whether the models' steps were computed all the same: `computed` or `not computed`.
    pub(crate) steps: &'static str,
}

/// What figures have to say of how they were taken.
#[derive(Clone, Copy)]
pub(crate) struct Labels {
    pub(crate) paced: bool,
    pub(crate) synthetic: bool,
}

/// The machine it ran on.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
}

/// The results of one strategy. Shares are of a session's life. Rates and shares are ratios of sums over all requests;
/// speeds and times to the first token are medians over requests.
#[derive(Serialize)]
pub(crate) struct StrategyReport {
    pub(crate) strategy: String,
    /// Tokens per second after the first arrival.
    pub(crate) tok_s: Option<f64>,
    /// Tokens per second of the whole request, prefill included.
    pub(crate) total_tok_s: Option<f64>,
    /// Tokens of all requests over the time during which any was running.
    pub(crate) throughput_tok_s: Option<f64>,
    /// Speed over that of `ar` on the same request.
    pub(crate) ratio_to_ar: Option<f64>,
    /// Speed over that of the fastest `serial` of the run on the same request.
    pub(crate) ratio_to_serial: Option<f64>,
    /// Speed over that of the fastest `serial-tree` of the run on the same request.
    pub(crate) ratio_to_serial_tree: Option<f64>,
    pub(crate) acceptance_length: f64,
    pub(crate) path_rollback: f64,
    pub(crate) waste: f64,
    pub(crate) hit_rate: f64,
    /// Target steps that missed, by cause, as shares of all target steps.
    pub(crate) misses: BTreeMap<&'static str, f64>,
    pub(crate) target_busy: f64,
    pub(crate) target_bubble: f64,
    pub(crate) target_starved: f64,
    pub(crate) draft_bubble: f64,
    /// Guesses verified in a target step, on average.
    pub(crate) target_rows: f64,
    /// What each source of guesses gave the target.
    pub(crate) sources: BTreeMap<&'static str, SourceCounts>,
    /// How each role's workers spent their time.
    pub(crate) roles: BTreeMap<&'static str, RoleTime>,
    pub(crate) ttft_ms: Option<f64>,
    /// 99th percentile of the gaps between tokens, over all requests.
    pub(crate) itl_p99_ms: Option<f64>,
    /// Requests whose token ids differ from those of `ar`; null without a reference.
    pub(crate) differing_requests: Option<usize>,
    /// Per request, in order of repeat, then prompt.
    pub(crate) token_ids: Vec<Vec<u32>>,
    /// Tokens per second of each request, in the same order; null where a text came at once.
    pub(crate) request_tok_s: Vec<Option<f64>>,
    pub(crate) paced: bool,
    pub(crate) synthetic: bool,
    /// What was set or tuned, by name; drafts and qualifiers too.
    pub(crate) knobs: BTreeMap<String, f64>,
    pub(crate) requests: usize,
    pub(crate) tokens: usize,
    /// As on the command line, knobs included.
    pub(crate) label: String,
    /// Workers that computed for a request, each counted as a device.
    pub(crate) devices: usize,
    /// First and third quartile of `tok_s` over requests.
    pub(crate) tok_s_quartiles: Option<[f64; 2]>,
    /// How each worker spent its time.
    pub(crate) workers: Vec<WorkerReport>,
}

/// One worker in the requests of a strategy.
#[derive(Serialize)]
pub(crate) struct WorkerReport {
    /// Its role, with a number where there are several.
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) time: RoleTime,
    /// Share of the sessions' lives that it spent in steps without a guess; of targets.
    pub(crate) starved: Option<f64>,
}

/// What the others are compared with.
#[derive(Clone, Copy, Default)]
struct Baselines<'a> {
    ar: Option<&'a Samples>,
    serial: Option<&'a Samples>,
    serial_tree: Option<&'a Samples>,
}

/// The results of the first `listed` contenders; the rest are references that were not asked for.
pub(crate) fn strategies(
    contenders: &[Contender],
    samples: &[Samples],
    listed: usize,
    labels: Labels,
) -> Vec<StrategyReport> {
    let best = |name: &str| {
        let of_name = contenders
            .iter()
            .zip(samples)
            .filter(|(contender, _)| contender.name() == name);
        of_name
            .map(|(_, samples)| samples)
            .max_by(|a, b| speed(a).total_cmp(&speed(b)))
    };
    let baselines = Baselines {
        ar: best(REFERENCE),
        serial: best("serial"),
        serial_tree: best("serial-tree"),
    };
    let all = contenders.iter().zip(samples).take(listed);
    all.map(|(contender, samples)| strategy(contender, samples, baselines, labels))
        .collect()
}

fn strategy(
    contender: &Contender,
    samples: &Samples,
    baselines: Baselines<'_>,
    labels: Labels,
) -> StrategyReport {
    let completions = &samples.completions;
    let totals = Totals::of(completions.iter().map(|completion| &completion.statistics));
    let tokens: usize = completions
        .iter()
        .map(|completion| completion.token_ids.len())
        .sum();
    let wall = samples.wall.as_secs_f64();
    let set = contender.settings.knobs.iter();
    let mut knobs: BTreeMap<_, _> = set.map(|(knob, value)| (knob.to_owned(), value)).collect();
    if let Some(drafts) = contender.drafts {
        knobs.insert("drafts".to_owned(), f64::from(drafts));
    }
    match contender.qualifiers {
        Qualifiers::Allowed => {}
        Qualifiers::Off => {
            knobs.insert("qualifiers".to_owned(), 0.0);
        }
    }
    StrategyReport {
        strategy: contender.name().to_owned(),
        tok_s: median(completions.iter().filter_map(decode_speed)),
        total_tok_s: median(completions.iter().filter_map(total_speed)),
        throughput_tok_s: (wall > 0.0).then(|| tokens as f64 / wall),
        ratio_to_ar: baselines.ar.and_then(|ar| paired_ratio(samples, ar)),
        ratio_to_serial: baselines
            .serial
            .and_then(|serial| paired_ratio(samples, serial)),
        ratio_to_serial_tree: baselines
            .serial_tree
            .and_then(|tree| paired_ratio(samples, tree)),
        acceptance_length: totals.acceptance_length(),
        path_rollback: totals.path_rollback(),
        waste: totals.waste(),
        hit_rate: totals.hit_rate(),
        misses: totals.misses(),
        target_busy: totals.target_busy(),
        target_bubble: totals.target_bubble(),
        target_starved: totals.target_starved(),
        draft_bubble: totals.draft_bubble(),
        target_rows: totals.target_rows(),
        sources: totals.sources(),
        roles: totals.roles(),
        ttft_ms: median(completions.iter().filter_map(first_token_ms)),
        itl_p99_ms: percentile(
            completions
                .iter()
                .flat_map(|completion| statistics::token_gaps_ms(&completion.arrivals)),
            0.99,
        ),
        differing_requests: baselines.ar.map(|ar| differing(samples, ar)),
        token_ids: completions
            .iter()
            .map(|completion| completion.token_ids.clone())
            .collect(),
        request_tok_s: completions.iter().map(decode_speed).collect(),
        paced: labels.paced,
        synthetic: labels.synthetic,
        knobs,
        requests: completions.len(),
        tokens,
        label: contender.to_string(),
        devices: devices(completions),
        tok_s_quartiles: quartiles(completions.iter().filter_map(decode_speed)),
        workers: workers(completions, &totals),
    }
}

/// Workers that had a step in a request, at most.
fn devices(completions: &[Completion]) -> usize {
    let of = |completion: &Completion| {
        let statistics = &completion.statistics;
        (statistics.target.iter())
            .chain(&statistics.qualifiers)
            .chain(&statistics.drafts)
            .filter(|activity| activity.steps > 0)
            .count()
    };
    completions.iter().map(of).max().unwrap_or(0)
}

/// Adds up what each worker did, by its place among those of its role.
fn workers(completions: &[Completion], totals: &Totals) -> Vec<WorkerReport> {
    type Of = fn(&v1::SessionStatistics) -> &[v1::Activity];
    let roles: [(&str, Of); 3] = [
        ("target", |one| one.target.as_slice()),
        ("qualifier", |one| &one.qualifiers),
        ("draft", |one| &one.drafts),
    ];
    let mut found = Vec::new();
    for (role, of) in roles {
        let mut sums: Vec<v1::Activity> = Vec::new();
        for completion in completions {
            for (at, activity) in of(&completion.statistics).iter().enumerate() {
                if at == sums.len() {
                    sums.push(v1::Activity::default());
                }
                statistics::add_activity(&mut sums[at], activity);
            }
        }
        let several = sums.len() > 1;
        for (number, sum) in (1..).zip(sums).filter(|(_, sum)| sum.steps > 0) {
            found.push(WorkerReport {
                name: match several {
                    true => format!("{role} {number}"),
                    false => role.to_owned(),
                },
                time: RoleTime::of(&sum),
                starved: (role == "target").then(|| totals.target_starved()),
            });
        }
    }
    found
}

fn decode_speed(completion: &Completion) -> Option<f64> {
    statistics::decode_speed(&completion.arrivals)
}

fn total_speed(completion: &Completion) -> Option<f64> {
    let seconds = completion.arrivals.last()?.at.as_secs_f64();
    (seconds > 0.0).then(|| completion.token_ids.len() as f64 / seconds)
}

fn first_token_ms(completion: &Completion) -> Option<f64> {
    completion
        .arrivals
        .first()
        .map(|arrival| milliseconds(arrival.at))
}

fn speed(samples: &Samples) -> f64 {
    median(samples.completions.iter().filter_map(decode_speed)).unwrap_or(0.0)
}

/// The median over requests of one speed over the other on the same request.
fn paired_ratio(samples: &Samples, base: &Samples) -> Option<f64> {
    let pairs = samples.completions.iter().zip(&base.completions);
    median(pairs.filter_map(|(one, other)| Some(decode_speed(one)? / decode_speed(other)?)))
}

fn differing(samples: &Samples, reference: &Samples) -> usize {
    let pairs = samples.completions.iter().zip(&reference.completions);
    pairs
        .filter(|(one, other)| one.token_ids != other.token_ids)
        .count()
}

impl Report {
    /// How the figures were taken.
    pub(crate) fn heading(&self) -> String {
        fn by_role<T: Display>(times: &BTreeMap<&'static str, T>) -> String {
            let steps: Vec<_> = (times.iter())
                .map(|(role, ms)| format!("{role} {ms} ms"))
                .collect();
            steps.join(", ")
        }
        let steps = match (&self.paced, &self.step_ms) {
            (Some(pace), _) => format!("PACED rig (each step padded to: {})", by_role(pace)),
            (None, Some(times)) => {
                format!("PACED rig (step times by rows: {})", by_role(times))
            }
            (None, None) => "not paced (steps run at full speed)".to_owned(),
        };
        match &self.synthetic {
            Some(Synthetic {
                profile,
                steps: are,
            }) => format!(
                "SYNTHETIC (answers drawn from the profile {profile}, steps {are}), {steps}"
            ),
            None => steps,
        }
    }

    /// The table, with a heading that says how it was taken.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let pace = self.heading();
        let requests = self.prompts * self.repeats;
        let _ = writeln!(
            out,
            "{pace}; {requests} requests x {} tokens, T = {}, concurrency {}, {} draft(s); {}, {} cores",
            self.max_tokens,
            self.temperature,
            self.concurrency,
            self.drafts,
            self.machine.cpu,
            self.machine.cores
        );
        let mut rows = vec![
            HEADINGS
                .iter()
                .map(|heading| (*heading).to_owned())
                .collect::<Vec<_>>(),
        ];
        rows.extend(self.strategies.iter().map(StrategyReport::cells));
        align(&mut out, &rows);
        let mut rows = vec![vec!["misses per 100 target steps".to_owned()]];
        rows[0].extend(MissCause::ALL.map(|cause| cause.name().to_owned()));
        let missed = (self.strategies.iter()).filter(|report| report.has_misses());
        rows.extend(missed.map(StrategyReport::missed));
        if rows.len() > 1 {
            out.push('\n');
            align(&mut out, &rows);
        }
        out
    }
}

/// Writes cells in columns.
pub(crate) fn align(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<_> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(out, "{cell:<width$}")
            } else {
                write!(out, "  {cell:>width$}")
            };
        }
        out.push('\n');
    }
}

const HEADINGS: [&str; 17] = [
    "strategy", "tok/s", "x ar", "x serial", "x tree", "M", "rollback", "waste", "hits", "busy",
    "bubble", "starved", "d.bubble", "rows", "ttft ms", "itl99 ms", "differ",
];

impl StrategyReport {
    /// Whether a draft has accounted for misses.
    fn has_misses(&self) -> bool {
        self.misses.values().any(|&share| share > 0.0)
    }

    fn missed(&self) -> Vec<String> {
        let share = |cause: MissCause| self.misses.get(cause.name()).copied().unwrap_or(0.0);
        std::iter::once(self.label.clone())
            .chain(MissCause::ALL.map(|cause| format!("{:.1}", 100.0 * share(cause))))
            .collect()
    }

    fn cells(&self) -> Vec<String> {
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        vec![
            self.label.clone(),
            number(self.tok_s, 1),
            number(self.ratio_to_ar, 2),
            number(self.ratio_to_serial, 2),
            number(self.ratio_to_serial_tree, 2),
            format!("{:.2}", self.acceptance_length),
            percent(self.path_rollback),
            percent(self.waste),
            percent(self.hit_rate),
            percent(self.target_busy),
            percent(self.target_bubble),
            percent(self.target_starved),
            percent(self.draft_bubble),
            format!("{:.1}", self.target_rows),
            number(self.ttft_ms, 1),
            number(self.itl_p99_ms, 1),
            self.differing_requests
                .map_or_else(|| "-".to_owned(), |count| count.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Arrival;
    use std::time::Duration;

    /// Requests of one token, then `tokens` more, `ms` later.
    fn samples(requests: &[(u64, u32)]) -> Samples {
        let completions = requests.iter().map(|&(ms, tokens)| Completion {
            token_ids: (0..=tokens).collect(),
            arrivals: vec![
                Arrival {
                    at: Duration::from_millis(5),
                    tokens: 1,
                },
                Arrival {
                    at: Duration::from_millis(5 + ms),
                    tokens: tokens as usize,
                },
            ],
            ..Completion::default()
        });
        Samples {
            completions: completions.collect(),
            wall: Duration::from_secs(1),
        }
    }

    fn report() -> Report {
        let contenders: Vec<Contender> = ["auto", "serial:gamma=2", "serial:gamma=8", "ar"]
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        let measured = [
            samples(&[(100, 10), (100, 10), (100, 40)]),
            samples(&[(100, 10), (200, 10), (400, 40)]),
            samples(&[(900, 10), (900, 10), (900, 40)]),
            samples(&[(200, 10), (400, 10), (800, 41)]),
        ];
        Report {
            paced: Some(BTreeMap::from([("draft", 2.0), ("target", 20.0)])),
            step_ms: None,
            synthetic: None,
            machine: Machine {
                cpu: "a cpu".to_owned(),
                cores: 2,
            },
            models: BTreeMap::new(),
            drafts: 1,
            prompts: 3,
            repeats: 1,
            concurrency: 1,
            max_tokens: 42,
            temperature: 0.0,
            seed: 0,
            strategies: strategies(
                &contenders,
                &measured,
                3,
                Labels {
                    paced: true,
                    synthetic: false,
                },
            ),
        }
    }

    #[test]
    fn ratios_are_paired_and_to_the_best_baseline() {
        let report = report();
        let auto = &report.strategies[0];
        assert_eq!(auto.tok_s, Some(100.0));
        assert_eq!(
            auto.ratio_to_serial,
            Some(2.0),
            "1, 2 and 4 times the faster serial"
        );
        assert_eq!(
            auto.ratio_to_ar.map(|ratio| (ratio * 100.0).round()),
            Some(400.0)
        );
        assert_eq!(auto.ratio_to_serial_tree, None);
        assert_eq!(
            auto.differing_requests,
            Some(1),
            "the reference has one token more in the last request"
        );
        assert_eq!((auto.requests, auto.tokens), (3, 63));
        assert_eq!(auto.throughput_tok_s, Some(63.0));
        assert_eq!(auto.ttft_ms, Some(5.0));
    }

    #[test]
    fn the_reference_is_not_listed_and_the_fields_are_as_promised() {
        let json = serde_json::to_value(report()).unwrap();
        let strategies = json["strategies"].as_array().unwrap();
        assert_eq!(strategies.len(), 3);
        for field in [
            "strategy",
            "tok_s",
            "ratio_to_ar",
            "acceptance_length",
            "path_rollback",
            "waste",
            "hit_rate",
            "target_bubble",
            "target_starved",
            "draft_bubble",
            "ttft_ms",
            "itl_p99_ms",
            "differing_requests",
            "token_ids",
            "paced",
            "knobs",
            "requests",
            "tokens",
        ] {
            assert!(!strategies[1][field].is_null(), "{field}");
        }
        assert_eq!(strategies[1]["knobs"]["gamma"], 2.0);
        assert_eq!(json["paced"]["target"], 20.0);
    }

    #[test]
    fn the_heading_says_that_answers_were_drawn() {
        let mut report = report();
        report.paced = None;
        report.synthetic = Some(Synthetic {
            profile: "nano".to_owned(),
            steps: "not computed",
        });
        let heading = report.heading();
        assert!(
            heading.starts_with("SYNTHETIC") && heading.contains("nano"),
            "{heading}"
        );
        assert!(heading.contains("not paced"), "{heading}");
        report.step_ms = Some(BTreeMap::from([("target", "1:20,64:40".to_owned())]));
        let table = report.table();
        assert!(
            table.starts_with("SYNTHETIC") && table.contains("target 1:20,64:40 ms"),
            "{table}"
        );
    }

    #[test]
    fn the_table_says_that_it_was_paced() {
        let table = report().table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(
            lines[0].contains("PACED") && lines[0].contains("target 20 ms"),
            "{}",
            lines[0]
        );
        assert!(lines[3].starts_with("serial:gamma=2"), "{}", lines[3]);
        assert!(
            lines[1..].iter().all(|line| line.len() == lines[1].len()),
            "columns are not aligned:\n{table}"
        );
    }
}

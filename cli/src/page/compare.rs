//! The tables of a page. Strategies that use different numbers of devices are never in one table.

use std::fmt::Write;

use speculation::misses::MissCause;

use super::{Story, breakable, table};
use crate::bench::{Report, StrategyReport};
use crate::trace::escape;

/// How the figures were taken.
pub(super) fn heading(report: &Report) -> String {
    let mut out = format!(
        "<p><span class=\"flag\">{}</span></p>\n<dl>\n",
        escape(&report.heading())
    );
    let models: Vec<String> = (report.models.iter())
        .map(|(role, model)| format!("{role}: {}", last_part(model)))
        .collect();
    let requests = format!(
        "{} prompts, {} times each, {} tokens, T = {}, {} at a time, seed {}",
        report.prompts,
        report.repeats,
        report.max_tokens,
        report.temperature,
        report.concurrency,
        report.seed
    );
    let machine = format!("{}, {} cores", report.machine.cpu, report.machine.cores);
    for (name, value) in [
        ("requests", requests),
        ("models", models.join(", ")),
        ("machine", machine),
    ] {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    out.push_str("</dl>\n");
    let differing: Option<usize> = (report.strategies.iter())
        .map(|strategy| strategy.differing_requests)
        .sum();
    out.push_str(&match differing {
        Some(0) => "<p>Every text is that of plain decoding, token for token.</p>\n".to_owned(),
        Some(count) => format!(
            "<p><strong class=\"bad\">{count} requests differ from plain decoding.</strong> Under the rule exact none may.</p>\n"
        ),
        None => {
            "<p>There was no plain decoding to compare texts with.</p>\n".to_owned()
        }
    });
    out
}

/// The last folder of a path: where a model lies on this machine is nobody's business.
fn last_part(path: &str) -> &str {
    path.rsplit(['/', '\\'])
        .find(|part| !part.is_empty())
        .unwrap_or(path)
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A table for each number of devices.
pub(super) fn speed(report: &Report) -> String {
    let mut out = String::from(
        "<p>One table for each number of devices: every worker that computes counts as one, whatever it runs on here. \
         A strategy is compared only with those that use as many; the column <em>per device</em> is what is left for \
         comparisons across tables.</p>\n<p class=\"note\">tok/s: median over requests, after the first token; the bar is the middle \
         half of the requests, the tick the median; per device: over the number of devices. M: tokens per target step. × ar, × serial, × tree: the median of ratios to plain decoding, on one device, and to the best serial and serial-tree of the run, on the \
         same request. \
         p99 gap: the 99th percentile of the pauses between tokens. ★: the fastest of its table.</p>\n",
    );
    let most = (report.strategies.iter())
        .filter_map(|strategy| Some(strategy.tok_s_quartiles?[1].max(strategy.tok_s?)))
        .fold(0.0, f64::max);
    let mut counts: Vec<usize> = (report.strategies.iter())
        .map(|strategy| strategy.devices)
        .collect();
    counts.sort_unstable();
    counts.dedup();
    for count in counts {
        let group: Vec<&StrategyReport> = (report.strategies.iter())
            .filter(|strategy| strategy.devices == count)
            .collect();
        let best = (group.iter())
            .filter_map(|strategy| strategy.tok_s)
            .fold(0.0, f64::max);
        let rows: Vec<_> = (group.iter())
            .map(|strategy| cells(strategy, best, most, group.len()))
            .collect();
        let caption = match count {
            1 => "1 device".to_owned(),
            count => format!("{count} devices"),
        };
        out.push_str(&table(&caption, &HEADINGS, &rows));
        out.push_str("<p></p>\n");
    }
    out
}

const HEADINGS: [&str; 17] = [
    "strategy",
    "tok/s",
    "spread",
    "per device",
    "× ar",
    "× serial",
    "× tree",
    "M",
    "path rollback",
    "waste",
    "hits",
    "bubble",
    "starved",
    "rows",
    "first token ms",
    "p99 gap ms",
    "differing",
];

fn cells(strategy: &StrategyReport, best: f64, most: f64, of: usize) -> Vec<String> {
    let is_best = of > 1 && strategy.tok_s.is_some_and(|speed| speed >= best);
    let tok_s = match is_best {
        true => format!("\u{0}<td class=\"best\">{}</td>", number(strategy.tok_s, 1)),
        false => number(strategy.tok_s, 1),
    };
    let differing = match strategy.differing_requests {
        None => "–".to_owned(),
        Some(0) => format!("0 of {}", strategy.requests),
        Some(count) => format!(
            "\u{0}<td class=\"bad\">{count} of {}</td>",
            strategy.requests
        ),
    };
    let per_device = strategy
        .tok_s
        .map(|speed| speed / strategy.devices.max(1) as f64);
    vec![
        breakable(&strategy.label),
        tok_s,
        spread(strategy, most),
        number(per_device, 1),
        number(strategy.ratio_to_ar, 2),
        number(strategy.ratio_to_serial, 2),
        number(strategy.ratio_to_serial_tree, 2),
        format!("{:.2}", strategy.acceptance_length),
        percent(strategy.path_rollback),
        percent(strategy.waste),
        percent(strategy.hit_rate),
        percent(strategy.target_bubble),
        percent(strategy.target_starved),
        format!("{:.1}", strategy.target_rows),
        number(strategy.ttft_ms, 1),
        number(strategy.itl_p99_ms, 1),
        differing,
    ]
}

/// A cell with the quartiles and the median, from 0 to the highest of the page.
fn spread(strategy: &StrategyReport, most: f64) -> String {
    let (Some(median), Some([low, high])) = (strategy.tok_s, strategy.tok_s_quartiles) else {
        return "–".to_owned();
    };
    let at = |value: f64| 160.0 * value / most.max(1e-9);
    format!(
        "\u{0}<td class=\"chart\"><svg viewBox=\"0 0 162 20\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"from {low:.1} to \
         {high:.1}\"><title>middle half from {low:.1} to {high:.1} tok/s</title><path d=\"M0 10H161\" class=\"tick\"/><rect x=\"{:.1}\" \
         y=\"4\" width=\"{:.1}\" height=\"12\" class=\"target\" fill-opacity=\".45\"/><rect x=\"{:.1}\" y=\"1\" width=\"2.5\" height=\"18\" \
         class=\"say\"/></svg></td>",
        at(low),
        (at(high) - at(low)).max(1.0),
        at(median) - 1.0
    )
}

/// How each worker spent its time.
pub(super) fn workers(report: &Report) -> String {
    let mut rows = Vec::new();
    for strategy in &report.strategies {
        for worker in &strategy.workers {
            let time = &worker.time;
            rows.push(vec![
                breakable(&strategy.label),
                worker.name.clone(),
                time.steps.to_string(),
                time.abandoned_steps.to_string(),
                format!("{:.2}", time.step_ms),
                format!("{:.1}", time.rows),
                percent(time.busy),
                percent(time.bubble),
                worker.starved.map_or_else(|| "–".to_owned(), percent),
                percent(time.parked),
            ]);
        }
    }
    let headings = [
        "strategy", "worker", "steps", "given up", "step ms", "rows", "busy", "bubble", "starved",
        "parked",
    ];
    let note = "<p class=\"note\">Shares of the sessions' lives. Bubble: idle though the session is alive and not parked. Starved: in steps \
                without a guess. Parked: more work would have had no value. Given up: a commit had made the step useless.</p>\n";
    note.to_owned() + &table("How workers spent their time", &headings, &rows)
}

/// Misses by cause.
pub(super) fn misses(report: &Report) -> String {
    let rows: Vec<Vec<String>> = (report.strategies.iter())
        .map(|strategy| {
            let share = |cause: MissCause| {
                let share = strategy.misses.get(cause.name()).copied().unwrap_or(0.0);
                format!("{:.1}", 100.0 * share)
            };
            std::iter::once(breakable(&strategy.label))
                .chain([percent(strategy.hit_rate)])
                .chain(MissCause::ALL.map(share))
                .collect()
        })
        .collect();
    let mut headings = vec!["strategy", "hits"];
    headings.extend(MissCause::ALL.map(MissCause::name));
    let note = "<p class=\"note\">As drafts account for them: unranked, not among the guesses; pruned, ranked and found too unlikely; full, \
                no room in the tree; unexpanded, not come to yet; contradicted, a qualifier had picked otherwise; behind, the draft heard of it \
                with the commit; in flight and withheld, made but not there in time.</p>\n";
    note.to_owned() + &table("Misses per 100 target steps, by cause", &headings, &rows)
}

/// Positions of a chain that are shown, at most.
const POSITIONS: u64 = 12;

/// How far main chains were accepted, in the traced requests.
pub(super) fn positions(stories: &[Story]) -> String {
    let mut rows = Vec::new();
    for story in stories {
        let walks: Vec<_> = (story.timelines.iter())
            .flat_map(|timeline| &timeline.tracks)
            .flat_map(|track| &track.bars)
            .filter_map(|bar| bar.walk)
            .collect();
        if walks.iter().all(|walk| walk.submitted == 0) {
            continue;
        }
        let mut row = vec![breakable(&story.label), walks.len().to_string()];
        for position in 1..=POSITIONS {
            let submitted = walks
                .iter()
                .filter(|walk| walk.submitted >= position)
                .count();
            let accepted = walks
                .iter()
                .filter(|walk| walk.accepted >= position)
                .count();
            row.push(match submitted {
                0 => "–".to_owned(),
                _ => {
                    let share = 100.0 * accepted as f64 / submitted as f64;
                    format!(
                        "\u{0}<td class=\"heat\" title=\"{accepted} of {submitted} steps\">{share:.0} %<i style=\"width:{share:.0}%\"></i></td>"
                    )
                }
            });
        }
        rows.push(row);
    }
    let positions: Vec<String> = (1..=POSITIONS)
        .map(|position| position.to_string())
        .collect();
    let mut headings = vec!["strategy", "steps"];
    headings.extend(positions.iter().map(String::as_str));
    let note = "<p class=\"note\">Of the target steps whose main chain was at least so long, the share in which it was accepted so far, in all \
                traced requests.</p>\n";
    note.to_owned()
        + &table(
            "Accepted up to the position in the main chain",
            &headings,
            &rows,
        )
}

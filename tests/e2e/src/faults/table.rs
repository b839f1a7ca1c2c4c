//! The report: a Markdown table and JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::measure::median;
use super::trial::{Repetition, Series};

/// The first two lines of the table.
pub const HEAD: &str = "\
| fault | where | repetitions | requests | failed | interrupted | differing tokens | longest gap, ms: median / max | \
full speed after, s: median / max | speed left | used after, s: median / max |
|---|---|---|---|---|---|---|---|---|---|---|";

/// One line of the table.
#[must_use]
pub fn line(series: &Series) -> String {
    let all = &series.repetitions;
    let sum = |each: fn(&Repetition) -> usize| all.iter().map(each).sum::<usize>();
    let gaps: Vec<_> = all.iter().map(|one| one.longest_gap).collect();
    let recoveries: Vec<_> = all.iter().filter_map(|one| one.recovery).collect();
    let never = all.len() - recoveries.len();
    let mut recovery = pair(&recoveries, |time| format!("{:.1}", time.as_secs_f64()));
    if never > 0 {
        recovery.push_str(&format!(" (never: {never})"));
    }
    let used: Vec<_> = all.iter().filter_map(|one| one.used_after).collect();
    let cells = [
        series.fault.name(),
        series.fault.place(),
        all.len().to_string(),
        sum(|one| one.requests).to_string(),
        sum(|one| one.failed).to_string(),
        sum(|one| one.interrupted).to_string(),
        sum(|one| one.differing).to_string(),
        pair(&gaps, |time| time.as_millis().to_string()),
        recovery,
        share_left(series).map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
        pair(&used, |time| format!("{:.1}", time.as_secs_f64())),
    ];
    format!("| {} |", cells.join(" | "))
}

/// The lines below the table: other errors, with their number. Texts that differ only in numbers count as one.
#[must_use]
pub fn notes(series: &[Series]) -> Vec<String> {
    let mut lines = Vec::new();
    for one in series {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for note in one.repetitions.iter().flat_map(|one| &one.notes) {
            *seen.entry(without_numbers(note)).or_default() += 1;
        }
        for (text, count) in seen {
            let (fault, place) = (one.fault.name(), one.fault.place());
            lines.push(format!("- {fault}, {place}: {text} ({count} times)"));
        }
    }
    lines
}

fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        let shown = if letter.is_ascii_digit() { '#' } else { letter };
        if shown != '#' || !out.ends_with('#') {
            out.push(shown);
        }
    }
    out
}

/// All figures, by repetition.
#[must_use]
pub fn json(series: &[Series]) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let repetition = |one: &Repetition| {
        json!({
            "requests": one.requests,
            "failed": one.failed,
            "interrupted": one.interrupted,
            "differing_tokens": one.differing,
            "longest_gap_ms": ms(one.longest_gap),
            "full_speed_after_ms": one.recovery.map(ms),
            "used_after_ms": one.used_after.map(ms),
            "tokens_per_s_before": one.rate,
            "notes": one.notes,
        })
    };
    let rows = series.iter().map(|one| {
        json!({
            "fault": one.fault.name(),
            "where": one.fault.place(),
            "tokens_per_s_left": one.left,
            "repetitions": one.repetitions.iter().map(repetition).collect::<Vec<_>>(),
        })
    });
    Value::Array(rows.collect())
}

/// The speed of the cluster that is left, as a share of the speed before.
fn share_left(series: &Series) -> Option<f64> {
    let rates: Vec<_> = series.repetitions.iter().map(|one| one.rate).collect();
    let before = median(&rates).filter(|&rate| rate > 0.0)?;
    Some(series.left? / before)
}

fn pair<T: Copy + PartialOrd>(values: &[T], show: impl Fn(T) -> String) -> String {
    let most = values
        .iter()
        .copied()
        .reduce(|a, b| if b > a { b } else { a });
    match (median(values), most) {
        (Some(middle), Some(most)) => format!("{} / {}", show(middle), show(most)),
        (None, _) | (_, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::rig::Role;
    use crate::faults::row::Fault;

    fn one(gap_ms: u64, recovery_ms: Option<u64>) -> Repetition {
        Repetition {
            requests: 10,
            failed: 1,
            longest_gap: Duration::from_millis(gap_ms),
            recovery: recovery_ms.map(Duration::from_millis),
            rate: 200.0,
            notes: vec![format!("failed: lost after {gap_ms} tokens")],
            ..Repetition::default()
        }
    }

    #[test]
    fn a_line_has_a_cell_for_each_column_and_the_right_figures() {
        let series = Series {
            fault: Fault::Kill(Role::Draft),
            left: Some(150.0),
            repetitions: vec![one(100, Some(200)), one(900, None), one(300, Some(1200))],
        };
        let line = line(&series);
        assert_eq!(
            line,
            "| kill -9 | draft | 3 | 30 | 3 | 0 | 0 | 300 / 900 | 1.2 / 1.2 (never: 1) | 75 % |  |"
        );
        let cells = |text: &str| text.matches('|').count();
        assert!(HEAD.lines().all(|head| cells(head) == cells(&line)));
        assert_eq!(
            notes(&[series]),
            ["- kill -9, draft: failed: lost after # tokens (3 times)"]
        );
    }
}

//! The judgement on a run, and its tables.

use std::fmt::Write;

use super::Findings;
use super::gauges::{Used, thirds};

/// What still counts as flat.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// MiB by which the resident memory of a process may have grown, in the mean of the looks of the last third over those of
    /// the third before.
    pub memory: f64,
    /// Share by which the acceptance of the traffic may have fallen or risen; timing has its part in it. `None`: there are too
    /// few looks to tell.
    pub acceptance: Option<f64>,
}

/// Share by which the acceptance of the probes may vary. They are the same texts, so that little but a draft that is given less
/// to do changes it; on a machine with much else to do a draft may come too late for a step.
const PROBE: f64 = 0.2;

impl Findings {
    /// What is not as it has to be. Empty: nothing failed, nothing differed, and everything is flat.
    #[must_use]
    pub fn faults_found(&self, bounds: Bounds) -> Vec<String> {
        let mut found = Vec::new();
        let total = self.outcomes.total();
        let mut say = |is_wrong: bool, what: String| {
            if is_wrong {
                found.push(what);
            }
        };
        say(total.complete == 0, "no request was completed".to_owned());
        say(
            total.failed > 0,
            format!("{} requests failed", total.failed),
        );
        say(
            total.differing > 0,
            format!("{} requests differ", total.differing),
        );
        say(
            self.deaths > 0,
            format!("{} processes ended by themselves", self.deaths),
        );
        say(self.panics > 0, format!("{} panics", self.panics));
        for name in self.survivors() {
            let Some((middle, last)) = self.thirds_of(&name, |used| used.resident) else {
                continue;
            };
            let grown = last - middle;
            say(
                grown > bounds.memory,
                format!("the memory of {name} grew by {grown:.1} MiB"),
            );
        }
        let probes: Vec<_> = self.rests.iter().map(|rest| rest.probe).collect();
        let first = probes.first().copied().unwrap_or_default();
        for &probe in &probes {
            say(
                (probe - first).abs() > PROBE * first,
                format!("the acceptance of the probes is {probe:.3}, at first it was {first:.3}"),
            );
        }
        if let (Some(most), Some((middle, last))) = (bounds.acceptance, self.acceptance()) {
            say(
                (last - middle).abs() > most * middle,
                format!("the acceptance of the traffic went from {middle:.3} to {last:.3}"),
            );
        }
        found
    }

    /// The processes that ran from the first to the last.
    fn survivors(&self) -> Vec<String> {
        let first = self.rests.first();
        let names = first.into_iter().flat_map(|rest| rest.look.used.keys());
        names.filter(|name| name.ends_with(" 0")).cloned().collect()
    }

    fn series(&self, name: &str, of: impl Fn(&Used) -> f64) -> Vec<f64> {
        let looks = self
            .rests
            .iter()
            .filter_map(|rest| rest.look.used.get(name));
        looks.map(of).collect()
    }

    /// The look before any fault is not counted.
    fn thirds_of(&self, name: &str, of: impl Fn(&Used) -> f64) -> Option<(f64, f64)> {
        thirds(self.series(name, of).get(1..)?)
    }

    fn acceptance(&self) -> Option<(f64, f64)> {
        let series: Vec<_> = self.rests.iter().map(|rest| rest.acceptance).collect();
        thirds(series.get(1..)?)
    }

    /// Everything as tables in Markdown.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let minutes = self
            .rests
            .last()
            .map_or(0.0, |rest| rest.after.as_secs_f64() / 60.0);
        writeln!(out, "{minutes:.0} minutes, {} rests.\n", self.rests.len())?;
        writeln!(
            out,
            "| a client that … | requests | whole | interrupted | failed | differing | tokens |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|")?;
        let rows = self
            .outcomes
            .counts
            .iter()
            .map(|(manner, count)| (manner.name(), *count));
        for (name, count) in rows.chain([("all", self.outcomes.total())]) {
            writeln!(
                out,
                "| {name} | {} | {} | {} | {} | {} | {} |",
                count.requests,
                count.complete,
                count.interrupted,
                count.failed,
                count.differing,
                count.tokens
            )?;
        }
        writeln!(
            out,
            "\n| fault | draft | qualifier | target | coordinator |\n|---|---|---|---|---|"
        )?;
        let names = self.faults.keys().filter_map(|key| key.rsplit_once(", "));
        let names: std::collections::BTreeSet<_> = names.map(|(name, _)| name).collect();
        for name in names {
            let count = |role: &str| self.faults.get(&format!("{name}, {role}")).copied();
            let count = |role| count(role).unwrap_or_default();
            writeln!(
                out,
                "| {name} | {} | {} | {} | {} |",
                count("draft"),
                count("qualifier"),
                count("target"),
                count("coordinator")
            )?;
        }
        writeln!(
            out,
            "\n| process | memory at first, MiB | second third | last third | grown | peak | descriptors at first / last | threads |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|")?;
        for name in self.survivors() {
            let series = self.series(&name, |used| used.resident);
            let (middle, last) = self
                .thirds_of(&name, |used| used.resident)
                .unwrap_or_default();
            let descriptors = self.series(&name, |used| used.descriptors as f64);
            let threads = self.series(&name, |used| used.threads as f64);
            let peak = self.series(&name, |used| used.peak);
            let ends = |of: &[f64]| {
                let ends = (of.first().copied(), of.last().copied());
                format!(
                    "{} / {}",
                    ends.0.unwrap_or_default(),
                    ends.1.unwrap_or_default()
                )
            };
            writeln!(
                out,
                "| {name} | {:.1} | {middle:.1} | {last:.1} | {:.1} | {:.1} | {} | {} |",
                series.first().copied().unwrap_or_default(),
                last - middle,
                peak.last().copied().unwrap_or_default(),
                ends(&descriptors),
                ends(&threads)
            )?;
        }
        let (middle, last) = self.acceptance().unwrap_or_default();
        let probes = self.rests.iter().map(|rest| rest.probe);
        let least = probes.clone().fold(f64::INFINITY, f64::min);
        let most = probes.fold(0.0, f64::max);
        writeln!(
            out,
            "\nTokens per target step: probes {least:.3} to {most:.3}; traffic {middle:.2} in the second third, {last:.2} in the last."
        )?;
        writeln!(
            out,
            "{} processes ended by themselves, {} panics.",
            self.deaths, self.panics
        )?;
        for note in &self.outcomes.notes {
            writeln!(out, "- {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::soak::Rest;
    use crate::soak::gauges::Look;
    use crate::soak::traffic::{Count, Manner};

    const BOUNDS: Bounds = Bounds {
        memory: 4.0,
        acceptance: Some(0.1),
    };

    fn rest(resident: f64, probe: f64, acceptance: f64) -> Rest {
        let used = Used {
            resident,
            peak: resident,
            descriptors: 20,
            threads: 5,
        };
        Rest {
            after: Duration::ZERO,
            look: Look {
                used: [("target 0".to_owned(), used)].into(),
                ..Look::default()
            },
            probe,
            acceptance,
        }
    }

    fn findings(rests: [(f64, f64, f64); 4]) -> Findings {
        let mut findings = Findings {
            rests: rests.map(|(a, b, c)| rest(a, b, c)).into(),
            ..Findings::default()
        };
        let count = Count {
            requests: 9,
            complete: 9,
            ..Count::default()
        };
        findings.outcomes.counts.insert(Manner::Reads, count);
        findings
    }

    #[test]
    fn what_grows_falls_or_fails_is_found() {
        let flat = findings([
            (50.0, 3.0, 0.0),
            (90.0, 3.0, 2.0),
            (92.0, 3.0, 2.1),
            (95.0, 3.0, 2.0),
        ]);
        assert_eq!(flat.faults_found(BOUNDS), Vec::<String>::new());
        assert!(
            flat.tables()
                .contains("| target 0 | 50.0 | 92.0 | 95.0 | 3.0 |")
        );
        let grown = findings([
            (50.0, 3.0, 0.0),
            (60.0, 3.0, 2.0),
            (70.0, 3.0, 2.0),
            (80.0, 3.0, 2.0),
        ]);
        assert_eq!(grown.faults_found(BOUNDS).len(), 1);
        let worse = findings([
            (50.0, 3.0, 0.0),
            (50.0, 2.3, 2.0),
            (50.0, 3.0, 2.0),
            (50.0, 3.0, 1.5),
        ]);
        assert_eq!(worse.faults_found(BOUNDS).len(), 2);
        let wrong: [fn(&mut Findings); 5] = [
            |of: &mut Findings| of.deaths = 1,
            |of: &mut Findings| of.panics = 1,
            |of: &mut Findings| of.outcomes = super::super::Outcomes::default(),
            |of: &mut Findings| {
                of.outcomes
                    .counts
                    .entry(Manner::Cancels)
                    .or_default()
                    .failed = 1
            },
            |of: &mut Findings| {
                of.outcomes
                    .counts
                    .entry(Manner::Cancels)
                    .or_default()
                    .differing = 1
            },
        ];
        for change in wrong {
            let mut found = flat.clone();
            change(&mut found);
            assert_eq!(found.faults_found(BOUNDS).len(), 1, "{found:?}");
        }
    }
}

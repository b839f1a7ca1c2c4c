//! What an evaluation found, for programs and for people.

use std::fmt::Write;

use serde::Serialize;

use super::agreement::RANKS;
use super::completion::Completions;
use super::score::Scores;

/// A whole run.
#[derive(Serialize)]
pub(super) struct Evaluation {
    /// Tokens of one window.
    pub(super) window: u32,
    /// Tokens of one completion at most.
    pub(super) max_tokens: u32,
    pub(super) seed: u64,
    /// The family that was measured, last; before it the one it is compared with.
    pub(super) families: Vec<FamilyReport>,
}

/// What was found about one family.
#[derive(Serialize)]
pub(super) struct FamilyReport {
    /// Its column's heading.
    pub(super) label: &'static str,
    pub(super) scores: Scores,
    pub(super) completions: Completions,
}

impl Evaluation {
    /// The tables, in Markdown; families side by side.
    pub(super) fn tables(&self) -> String {
        let mut out = String::new();
        let Some(last) = self.families.last() else {
            return out;
        };
        let _ = writeln!(
            out,
            "{} tokens ({} bytes, {} documents) in windows of {}; seed {}.\n",
            last.scores.tokens, last.scores.bytes, last.scores.documents, self.window, self.seed
        );
        self.losses(&mut out, &last.scores);
        self.agreement(&mut out, &last.scores);
        self.parse_rates(&mut out, &last.completions);
        out
    }

    fn heading(&self, out: &mut String, columns: &[&str], repeated: &[&str]) {
        let mut cells: Vec<String> = columns.iter().map(|&name| name.to_owned()).collect();
        for name in repeated {
            for family in &self.families {
                cells.push(match self.families.len() {
                    1 => (*name).to_owned(),
                    _ => format!("{name}, {}", family.label),
                });
            }
        }
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        let _ = writeln!(out, "|{}", " --- |".repeat(cells.len()));
    }

    fn losses(&self, out: &mut String, last: &Scores) {
        self.heading(out, &["model"], &["nats per token", "bits per byte"]);
        for (row, loss) in last.losses.iter().enumerate() {
            let _ = write!(out, "| {} |", loss.model);
            for family in &self.families {
                let _ = write!(out, " {:.3} |", family.scores.losses[row].nats_per_token);
            }
            for family in &self.families {
                let _ = write!(out, " {:.3} |", family.scores.losses[row].bits_per_byte);
            }
            out.push('\n');
        }
        out.push('\n');
    }

    fn agreement(&self, out: &mut String, last: &Scores) {
        let ranks = RANKS.map(|rank| format!("{rank}"));
        let ranks: Vec<&str> = ranks.iter().map(String::as_str).collect();
        let mut repeated = ranks;
        repeated.push("1 - TV");
        self.heading(out, &["pair", "T", "noise"], &repeated);
        for (row, pair) in last.agreement.iter().enumerate() {
            // Without noise there is nothing to share.
            let kinds: &[&str] = if pair.temperature > 0.0 {
                &["shared", "independent"]
            } else {
                &["none"]
            };
            for kind in kinds {
                let _ = write!(
                    out,
                    "| {}, {} | {} | {kind} |",
                    pair.smaller, pair.larger, pair.temperature
                );
                for rank in 0..RANKS.len() {
                    for family in &self.families {
                        let found = &family.scores.agreement[row];
                        let shares = match *kind {
                            "independent" => &found.independent_noise,
                            _ => &found.shared_noise,
                        };
                        let _ = write!(out, " {:.3} |", shares[rank]);
                    }
                }
                for family in &self.families {
                    let _ = write!(out, " {:.3} |", family.scores.agreement[row].one_minus_tv);
                }
                out.push('\n');
            }
        }
        out.push('\n');
    }

    fn parse_rates(&self, out: &mut String, last: &Completions) {
        let Some(first) = last.rates.first() else {
            return;
        };
        let _ = writeln!(
            out,
            "{} functions, cut in the middle of the body, at most {} tokens each.\n",
            first.functions, self.max_tokens
        );
        self.heading(out, &["model", "T"], &["closed", "parse"]);
        for (row, rate) in last.rates.iter().enumerate() {
            let _ = write!(out, "| {} | {} |", rate.model, rate.temperature);
            for family in &self.families {
                let _ = write!(out, " {:.3} |", family.completions.rates[row].closed);
            }
            for family in &self.families {
                let _ = write!(out, " {:.3} |", family.completions.rates[row].parsed);
            }
            out.push('\n');
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::super::agreement::Agreement;
    use super::super::completion::ParseRate;
    use super::super::score::Loss;
    use super::*;

    fn family(label: &'static str, nats: f64) -> FamilyReport {
        FamilyReport {
            label,
            scores: Scores {
                tokens: 10,
                bytes: 30,
                documents: 1,
                losses: vec![Loss {
                    model: "target",
                    nats_per_token: nats,
                    bits_per_byte: nats / 2.0,
                }],
                agreement: vec![Agreement {
                    smaller: "draft",
                    larger: "target",
                    temperature: 1.0,
                    shared_noise: [0.1, 0.2, 0.3, 0.4],
                    independent_noise: [0.05, 0.1, 0.15, nats / 10.0],
                    one_minus_tv: 0.6,
                }],
            },
            completions: Completions {
                rates: vec![ParseRate {
                    model: "target",
                    temperature: 0.0,
                    functions: 4,
                    closed: 0.75,
                    parsed: 0.5,
                }],
                samples: Vec::new(),
            },
        }
    }

    fn evaluation(families: Vec<FamilyReport>) -> Evaluation {
        Evaluation {
            window: 512,
            max_tokens: 128,
            seed: 0,
            families,
        }
    }

    #[test]
    fn two_families_stand_side_by_side() {
        let tables = evaluation(vec![family("before", 2.5), family("now", 2.25)]).tables();
        let expected = [
            "| model | nats per token, before | nats per token, now | bits per byte, before | bits per byte, now |",
            "| target | 2.500 | 2.250 | 1.250 | 1.125 |",
            "| draft, target | 1 | shared | 0.100 | 0.100 | 0.200 |",
            "0.250 | 0.225 | 0.600 | 0.600 |",
            "| target | 0 | 0.750 | 0.750 | 0.500 | 0.500 |",
        ];
        for line in expected {
            assert!(tables.contains(line), "{line}\n{tables}");
        }
    }

    #[test]
    fn every_row_has_as_many_cells_as_its_heading() {
        for families in [
            vec![family("now", 2.0)],
            vec![family("before", 2.5), family("now", 2.0)],
        ] {
            let tables = evaluation(families).tables();
            for table in tables.split("\n\n").filter(|part| part.starts_with('|')) {
                let cells: Vec<usize> = table
                    .lines()
                    .map(|line| line.matches('|').count())
                    .collect();
                assert!(cells.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
            }
        }
    }
}

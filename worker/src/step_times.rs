//! How long steps last, by rows: what stands in for a model's speed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest step that can be asked for, in milliseconds; anything longer is more likely a typing mistake.
pub(crate) const MOST_MS: f64 = 60_000.0;
/// The most rows that a table names.
const MOST_ROWS: u32 = 1 << 16;
/// The most entries of a table.
const MOST_ENTRIES: usize = 64;

/// Step time as a function of the rows of a step, from a table: `1:20,16:22,64:40` are 20 ms up to one row, 22 ms at 16,
/// 40 ms at 64, on straight lines between those and on the last line beyond them. One number alone, `20`, is the time of
/// every step. More rows never make a step shorter.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    /// Rows, ascending, and milliseconds, not descending. At least one entry.
    entries: Vec<(u32, f64)>,
}

/// A table of step times that cannot be used; the message says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StepTimesError(String);

impl StepTimes {
    /// The time of a step of so many rows.
    #[must_use]
    pub fn at(&self, rows: usize) -> Duration {
        let rows = rows as f64;
        let upper = self
            .entries
            .partition_point(|&(entry, _)| f64::from(entry) < rows);
        let ms = match (upper.checked_sub(1), self.entries.get(upper)) {
            (None, Some(&(_, ms))) => ms,
            (Some(lower), Some(&upper)) => line(self.entries[lower], upper, rows),
            (_, None) => match self.entries.as_slice() {
                [.., before, last] => line(*before, *last, rows),
                [only] => only.1,
                [] => 0.0,
            },
        };
        Duration::from_secs_f64(ms.clamp(0.0, MOST_MS) / 1000.0)
    }

    /// The time of the shortest step.
    #[must_use]
    pub fn least(&self) -> Duration {
        self.at(1)
    }
}

/// The straight line through two entries of different rows.
fn line(lower: (u32, f64), upper: (u32, f64), rows: f64) -> f64 {
    let share = (rows - f64::from(lower.0)) / f64::from(upper.0 - lower.0);
    lower.1 + share * (upper.1 - lower.1)
}

impl FromStr for StepTimes {
    type Err = StepTimesError;

    fn from_str(given: &str) -> Result<StepTimes, StepTimesError> {
        let mut entries: Vec<(u32, f64)> = Vec::new();
        for item in given.split(',') {
            let (rows, ms) = match item.split_once(':') {
                Some(entry) => entry,
                None if given == item => ("1", item),
                None => {
                    return Err(StepTimesError(format!(
                        "{item:?} is not ROWS:MS, as in 1:20,16:22,64:40"
                    )));
                }
            };
            let entry = (count(rows)?, milliseconds(ms)?);
            if let Some(last) = entries.last() {
                if entry.0 <= last.0 {
                    return Err(StepTimesError(format!(
                        "{} rows follow on {}; name each number once, in ascending order",
                        entry.0, last.0
                    )));
                }
                if entry.1 < last.1 {
                    return Err(StepTimesError(format!(
                        "{} rows take less than {}; more rows never make a step shorter",
                        entry.0, last.0
                    )));
                }
            }
            if entries.len() == MOST_ENTRIES {
                return Err(StepTimesError(format!(
                    "there are more than {MOST_ENTRIES} entries"
                )));
            }
            entries.push(entry);
        }
        Ok(StepTimes { entries })
    }
}

fn count(rows: &str) -> Result<u32, StepTimesError> {
    match rows.trim().parse() {
        Ok(rows) if (1..=MOST_ROWS).contains(&rows) => Ok(rows),
        _ => Err(StepTimesError(format!(
            "{rows:?} is not a number of rows from 1 to {MOST_ROWS}"
        ))),
    }
}

fn milliseconds(ms: &str) -> Result<f64, StepTimesError> {
    match ms.trim().parse() {
        Ok(ms) if (0.0..=MOST_MS).contains(&ms) => Ok(ms),
        _ => Err(StepTimesError(format!(
            "{ms:?} is not a number of milliseconds from 0 to {MOST_MS}"
        ))),
    }
}

impl fmt::Display for StepTimes {
    /// As it is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (rows, ms)) in self.entries.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{rows}:{ms}")?;
        }
        Ok(())
    }
}

/// How long the steps of a worker last at least.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Each as long as this. What it takes to compute them stays what rows cost.
    Floor(Duration),
    /// As long as the table says, and that is what rows cost.
    Table(StepTimes),
}

impl Pace {
    /// What no step is shorter than.
    pub(crate) fn least(&self) -> Duration {
        match self {
            Pace::Floor(floor) => *floor,
            Pace::Table(times) => times.least(),
        }
    }

    /// How long a step of so many rows lasts at least.
    pub(crate) fn of(&self, rows: usize) -> Duration {
        match self {
            Pace::Floor(floor) => *floor,
            Pace::Table(times) => times.at(rows),
        }
    }

    /// What sessions learn that a step of so many rows cost, which was computed in `computed`.
    pub(crate) fn cost(&self, rows: usize, computed: Duration) -> Duration {
        match self {
            Pace::Floor(_) => computed,
            Pace::Table(times) => computed.max(times.at(rows)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: &StepTimes, rows: usize) -> f64 {
        times.at(rows).as_secs_f64() * 1000.0
    }

    #[test]
    fn times_lie_on_lines() {
        let times: StepTimes = "2:20,16:27, 64:75".parse().unwrap();
        for (rows, expected) in [
            (0, 20.0),
            (1, 20.0),
            (2, 20.0),
            (4, 21.0),
            (16, 27.0),
            (40, 51.0),
            (64, 75.0),
            (128, 139.0),
            (usize::MAX, MOST_MS),
        ] {
            assert!((ms(&times, rows) - expected).abs() < 1e-6, "{rows} rows");
        }
        assert_eq!(times.least(), Duration::from_millis(20));
        assert_eq!(times.to_string(), "2:20,16:27,64:75");
        assert_eq!(times.to_string().parse(), Ok(times));
    }

    #[test]
    fn one_number_is_for_every_step() {
        for given in ["20.5", "1:20.5"] {
            let times: StepTimes = given.parse().unwrap();
            assert_eq!((ms(&times, 1), ms(&times, 4096)), (20.5, 20.5));
            assert_eq!(times.to_string(), "1:20.5");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for (bad, why) in [
            ("", "not a number of milliseconds"),
            ("fast", "not a number of milliseconds"),
            ("-1", "not a number of milliseconds"),
            ("NaN", "not a number of milliseconds"),
            ("1:1e9", "not a number of milliseconds"),
            ("0:1", "not a number of rows"),
            ("99999:1", "not a number of rows"),
            ("1:2,3", "not ROWS:MS"),
            ("1:2,1:3", "ascending"),
            ("1:2,4:1", "never make a step shorter"),
        ] {
            let error = bad.parse::<StepTimes>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?} gave {error}");
        }
        let many: Vec<String> = (1..=65).map(|rows| format!("{rows}:1")).collect();
        assert!(many.join(",").parse::<StepTimes>().is_err());
    }

    #[test]
    fn only_a_table_says_what_rows_cost() {
        let (quick, slow) = (Duration::from_millis(1), Duration::from_millis(90));
        let floor = Pace::Floor(Duration::from_millis(20));
        assert_eq!((floor.of(9), floor.cost(9, quick)), (floor.least(), quick));
        let table = Pace::Table("1:20,64:83".parse().unwrap());
        assert_eq!(table.of(9), Duration::from_millis(28));
        assert_eq!(table.cost(9, quick), Duration::from_millis(28));
        assert_eq!(table.cost(9, slow), slow);
    }
}

//! Flags that the commands share, and what they mean for the laboratory.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use decode::rule::Rule;
use engine::synthetic::Profile;
use laboratory::{
    Answers, Arrivals, Cluster, Counts, LabError, Load, Network, Outcome, Prompts, StepTime,
    StepTimes, Vocabulary, acceptance, arrivals,
};
use speculation::Time;
use speculation::duty::Role;
use speculation::strategy::Registry;
use worker::StepTimes as Table;

use crate::bench::{Contender, Qualifiers};
use crate::cluster::{Drawn, PerRole, Use, step_ms};

/// What models agree on, and how fast they are.
#[derive(Args, Clone, Debug)]
pub(crate) struct TrafficArgs {
    /// How the models agree: a profile or a recording, a file or the name of a bundled profile
    #[arg(
        long,
        visible_alias = "recording",
        value_name = "PROFILE",
        default_value = "nano",
        conflicts_with = "accept"
    )]
    pub(crate) profile: PathBuf,
    /// Independent acceptance instead of a profile: how often the target's token is the draft's first guess, its second, ...
    #[arg(long, value_name = "SHARE,...", value_delimiter = ',')]
    pub(crate) accept: Vec<f64>,
    /// Acceptance from a Beta distribution instead of a profile: its mean and its concentration (alpha + beta), then how often the
    /// target's token is the second guess, the third, ... where the first is wrong. A draft knows how sure it is
    #[arg(
        long,
        value_name = "MEAN,CONCENTRATION,...",
        value_delimiter = ',',
        conflicts_with_all = ["profile", "accept"]
    )]
    pub(crate) accept_beta: Vec<f64>,
    /// With --accept or --accept-beta: how often a qualifier picks the target's token
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    pub(crate) qualifier_accept: f64,
    /// Time of a step by role in milliseconds, one number or ROWS:MS,..., as for a bench
    #[arg(
        long,
        value_name = "ROLE=TABLE,...",
        default_value = "target=20,qualifier=7,draft=2",
        value_parser = step_ms
    )]
    pub(crate) step_ms: PerRole<Table>,
}

/// What lies between coordinator and workers.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct NetworkArgs {
    /// How long a message between coordinator and worker takes one way, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.1, value_parser = delay)]
    pub(crate) delay_ms: f64,
    /// How much longer it may take, milliseconds, evenly distributed
    #[arg(long, value_name = "MS", default_value_t = 0.0, value_parser = delay)]
    pub(crate) jitter_ms: f64,
    /// What the workers' own work adds to a step for each of its rows, microseconds
    #[arg(long, value_name = "US", default_value_t = 0.0, value_parser = delay)]
    pub(crate) host_us: f64,
    /// When sessions get the answers of a step: at its end, as from a model, or at its beginning, as on a rig that pads its steps
    /// [default: end, with --against beginning]
    #[arg(long, value_name = "WHEN")]
    pub(crate) answers: Option<When>,
}

/// When sessions get the answers of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum When {
    End,
    Beginning,
}

/// Who asks for what.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Requests, all together; with --arrivals at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) requests: u32,
    /// Requests that run at one time, at most
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: u32,
    /// When requests are sent: a file with a time in seconds on each line, or day:PEAK[:SECONDS], a day's curve with PEAK requests
    /// a second at its busiest, pressed into so many seconds [default: 600]. Who finds no room waits. Without it each of as
    /// many clients as may run sends its next request when the last one was answered
    #[arg(long, value_name = "FILE | day:PEAK")]
    pub(crate) arrivals: Option<ArrivalsArg>,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) prompt_tokens: u32,
    /// Tokens to generate per request
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=65_536))]
    pub(crate) max_tokens: u32,
    /// Temperature: the class of the profile that is nearest to it serves
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Decides prompts, texts and delays
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// When requests are sent, as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ArrivalsArg {
    /// A day's curve: requests a second at its busiest, and how long the day is.
    Day(f64, Time),
    File(PathBuf),
}

impl FromStr for ArrivalsArg {
    type Err = String;

    fn from_str(given: &str) -> Result<ArrivalsArg, String> {
        let Some(day) = given.strip_prefix("day:") else {
            return Ok(ArrivalsArg::File(given.into()));
        };
        let (peak, seconds) = day.split_once(':').unwrap_or((day, "600"));
        let number = |given: &str, most: f64| {
            let value: Option<f64> = given.parse().ok();
            value.filter(|value| (1e-6..=most).contains(value))
        };
        match (number(peak, 1e6), number(seconds, 1e7)) {
            (Some(peak), Some(seconds)) => Ok(ArrivalsArg::Day(peak, Time::from_secs_f64(seconds))),
            _ => Err(format!("{given:?} is not day:PEAK or day:PEAK:SECONDS")),
        }
    }
}

impl ArrivalsArg {
    /// At most `most` times of arrival.
    fn times(&self, seed: u64, most: usize) -> Result<Vec<Time>> {
        match self {
            ArrivalsArg::Day(peak, length) => Ok(arrivals::day(*peak, *length, seed, most)),
            ArrivalsArg::File(path) => {
                let place = path.display();
                let text =
                    fs::read_to_string(path).with_context(|| format!("cannot read {place}"))?;
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                let mut times = Vec::new();
                for line in lines.take(most) {
                    match line.trim().parse() {
                        Ok(seconds) if (0.0..=1e9).contains(&seconds) => {
                            times.push(Time::from_secs_f64(seconds));
                        }
                        _ => bail!("{place}: {line:?} is not a time in seconds"),
                    }
                }
                times.sort();
                Ok(times)
            }
        }
    }
}

fn delay_of(given: &str) -> Option<f64> {
    let ms: f64 = given.trim().parse().ok()?;
    (0.0..=60_000.0).contains(&ms).then_some(ms)
}

fn delay(given: &str) -> Result<f64, String> {
    match delay_of(given) {
        Some(ms) => Ok(ms),
        None => Err(format!(
            "{given:?} is not a number of milliseconds from 0 to 60000"
        )),
    }
}

/// A number that is not negative, of hundredths.
pub(crate) fn percent(given: &str) -> Result<f64, String> {
    match given.parse() {
        Ok(percent) if (0.0..=1e6).contains(&percent) => Ok(percent),
        _ => Err(format!("{given:?} is not a number of percent")),
    }
}

/// Two times of which the first comes first, at most ten seconds apart.
pub(crate) fn window(given: &str) -> Result<(Time, Time), String> {
    const LONGEST: Time = Time::from_secs(10);
    let times = given.split_once(',').and_then(|(from, until)| {
        let time = |given: &str| Some(Time::from_secs_f64(delay_of(given)? / 1000.0));
        Some((time(from)?, time(until)?))
    });
    match times {
        Some((from, until)) if from < until && until - from <= LONGEST => Ok((from, until)),
        _ => Err(format!(
            "{given:?} is not FROM,UNTIL in milliseconds, at most ten seconds apart"
        )),
    }
}

impl LoadArgs {
    /// As the laboratory has it.
    ///
    /// # Errors
    /// When times of arrival cannot be read, or there are none.
    pub(crate) fn load(&self) -> Result<Load> {
        let mut requests = self.requests as usize;
        let arrivals = match &self.arrivals {
            None => Arrivals::Closed,
            Some(given) => {
                let times = given.times(self.seed, requests)?;
                requests = times.len();
                if requests == 0 {
                    bail!("--arrivals: no request is ever sent");
                }
                Arrivals::At(times)
            }
        };
        Ok(Load {
            requests,
            concurrency: self.concurrency as usize,
            arrivals,
            prompts: Prompts::Drawn(self.prompt_tokens),
            tokens: self.max_tokens,
            temperature: self.temperature,
            seed: self.seed,
            record: 0,
            watch: None,
        })
    }
}

impl NetworkArgs {
    fn network(self) -> Network {
        let time = |ms: f64| Time::from_secs_f64(ms / 1000.0);
        Network {
            trip: time(self.delay_ms),
            jitter: time(self.jitter_ms),
        }
    }
}

impl TrafficArgs {
    /// How the models agree.
    ///
    /// # Errors
    /// When the profile cannot be read, or shares are none.
    pub(crate) fn profile(&self) -> Result<Profile> {
        if !self.accept_beta.is_empty() {
            return acceptance::beta(&self.accept_beta, self.qualifier_accept)
                .context("--accept-beta and --qualifier-accept");
        }
        if self.accept.is_empty() {
            let drawn = Drawn::find(&self.profile, None, Use::Alone)?;
            return Ok(Profile::read(&drawn.file)?);
        }
        acceptance::independent(&self.accept, self.qualifier_accept)
            .context("--accept and --qualifier-accept")
    }

    /// The cluster of these workers.
    ///
    /// # Errors
    /// When the profile cannot be read, or a role that has workers has no step time.
    pub(crate) fn cluster(&self, counts: Counts, network: &NetworkArgs) -> Result<Cluster> {
        Ok(Cluster {
            vocabulary: Vocabulary::default(),
            profile: self.profile()?,
            counts,
            times: times(&self.step_ms, counts)?,
            network: network.network(),
            answers: match network.answers {
                None | Some(When::End) => Answers::AtEnd,
                Some(When::Beginning) => Answers::AtBeginning,
            },
            host_per_row: Time::from_secs_f64(network.host_us / 1e6),
        })
    }
}

/// The step times of all roles that have workers.
///
/// # Errors
/// When one of them has none.
pub(crate) fn times(tables: &PerRole<Table>, counts: Counts) -> Result<StepTimes> {
    let of = |role: Role, workers: usize| match tables.get(role) {
        Some(table) => {
            let table = table.clone();
            Ok(StepTime::new(move |rows| table.at(rows)))
        }
        None if workers == 0 => Ok(StepTime::constant(Time::ZERO)),
        None => bail!("--step-ms says nothing of the role {}", role.name()),
    };
    Ok(StepTimes {
        target: of(Role::Target, counts.targets)?,
        qualifier: of(Role::Qualifier, counts.qualifiers)?,
        draft: of(Role::Draft, counts.drafts)?,
    })
}

/// Runs one contender, with the workers per request that the product would give it.
///
/// # Errors
/// When it decodes by another rule than `exact`, or a size is out of its range.
pub(crate) fn run(
    cluster: &Cluster,
    load: &Load,
    contender: &Contender,
    registry: &Registry,
) -> Result<Outcome> {
    if contender.settings.rule != Rule::Exact {
        bail!(
            "{contender}: only acceptance=exact can be simulated, since a profile has no distributions"
        );
    }
    let lab = laboratory::Contender {
        settings: contender.settings.clone(),
        drafts: contender
            .drafts
            .map_or(usize::MAX, |drafts| drafts as usize),
        qualifiers: match contender.qualifiers {
            Qualifiers::Allowed => 1,
            Qualifiers::Off => 0,
        },
    };
    laboratory::run(cluster, load, &lab, registry)
        .map_err(|error: LabError| anyhow::Error::new(error).context(contender.to_string()))
}

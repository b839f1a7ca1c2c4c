//! Strategies on the command line: `--strategy`, a flag for each knob, and `offshoot strategies`.
//!
//! Everything here is read from the [`Registry`]. A strategy that is added there can be chosen here, and its knobs are
//! flags with their own help; no code in this crate names a knob.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use decode::rule::{self, Rule, Tolerance};
use proto::v1;
use speculation::strategy::{DEFAULT, Knob, Range, Registry, Settings};

use crate::{End, console};

/// The tolerances of the rule `fuzzy`.
pub(crate) const TAU_Q: &str = "tau-q";
pub(crate) const TAU_T: &str = "tau-t";

/// The heading under which `--help` lists these flags.
const HEADING: &str = "Decoding";

/// The name of the strategy that others are compared with.
pub(crate) const REFERENCE: &str = "ar";

/// How a request is decoded: `--strategy NAME`, a flag for each knob of each strategy, and `--knob NAME=VALUE`.
///
/// Flatten it after a command's own flags: a knob whose name is one of those gets no flag of its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StrategyArgs {
    /// Accepted by the registry.
    pub(crate) settings: Settings,
}

/// The value of a knob's flag. With a type of its own it is never mistaken for a command's flag of the same name.
#[derive(Clone, Copy, Debug)]
struct KnobValue(f64);

impl Args for StrategyArgs {
    fn augment_args(command: Command) -> Command {
        flags(command, &Registry::default())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StrategyArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let settings = settings(matches, &Registry::default())
            .map_err(|why| clap::Error::raw(ErrorKind::ValueValidation, format!("{why}\n")))?;
        Ok(StrategyArgs { settings })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The command with the flags of these strategies.
fn flags(mut command: Command, registry: &Registry) -> Command {
    let mut names = String::from("How to decode; it changes the speed, never the text:\n");
    for entry in registry.entries() {
        let _ = write!(names, "\n  {:<12} {}", entry.name, entry.about);
    }
    let strategy = Arg::new("strategy")
        .long("strategy")
        .value_name("NAME")
        .default_value(DEFAULT)
        .help("How to decode; it changes the speed, never the text")
        .long_help(names)
        .help_heading(HEADING);
    command = command.arg(strategy);
    for (name, uses) in knobs(registry) {
        let is_taken = |arg: &Arg| arg.get_id().as_str() == name || arg.get_long() == Some(name);
        if command.get_arguments().any(is_taken) {
            continue;
        }
        let help: Vec<_> = (uses.iter())
            .map(|(strategy, knob)| format!("{strategy}: {}", knob.help))
            .collect();
        let is_whole = |(_, knob): &(_, &Knob)| matches!(knob.range, Range::Whole(..));
        let flag = Arg::new(name)
            .long(name)
            .value_name(if uses.iter().all(is_whole) { "N" } else { "X" })
            .value_parser(|text: &str| number(text).map(KnobValue))
            .allow_negative_numbers(true)
            .help(help.join("; "))
            .help_heading(HEADING);
        command = command.arg(flag);
    }
    let acceptance = Arg::new("acceptance")
        .long("acceptance")
        .value_name("RULE")
        .value_parser(rule::NAMES)
        .default_value(rule::NAMES[0])
        .help("When a guess is accepted; every rule but exact gives another text")
        .long_help(
            "When a guess is accepted:\n\n  exact      by equality: the text is that of plain decoding\n  \
             rejection  with probability min(1, p/q): another text of the same distribution\n  \
             fuzzy      where two models find it about equally likely: lossy",
        )
        .help_heading(HEADING);
    command = command.arg(acceptance);
    for (name, help) in [
        (
            TAU_Q,
            "fuzzy: how far log-probabilities of draft and qualifier may differ [default: 0.4]",
        ),
        (
            TAU_T,
            "fuzzy: how far log-probabilities of qualifier and target may differ [default: 0.5]",
        ),
    ] {
        let flag = Arg::new(name)
            .long(name)
            .value_name("X")
            .value_parser(clap::value_parser!(f32))
            .allow_negative_numbers(true)
            .help(help)
            .help_heading(HEADING);
        command = command.arg(flag);
    }
    let knob = Arg::new("knob")
        .long("knob")
        .value_name("NAME=VALUE")
        .action(ArgAction::Append)
        .value_parser(assignment)
        .help("Sets any knob of the strategy by name; can be repeated")
        .help_heading(HEADING);
    command.arg(knob)
}

/// The name of a strategy, if there is one of that name.
pub(crate) fn known(name: &str) -> Result<String, String> {
    let settings = Settings::new(name);
    match Registry::default().choose(&settings) {
        Ok(_) => Ok(settings.name),
        Err(why) => Err(why.to_string()),
    }
}

/// What the flags say, if the registry accepts it.
fn settings(matches: &ArgMatches, registry: &Registry) -> Result<Settings, String> {
    let name = matches.get_one::<String>("strategy");
    let mut set = BTreeMap::new();
    for (name, _) in knobs(registry) {
        // An error means that the flag of this name is the command's own.
        if let Ok(Some(&KnobValue(value))) = matches.try_get_one(name) {
            set.insert(name.to_owned(), value);
        }
    }
    let named = matches.get_many::<(String, f64)>("knob");
    for (name, value) in named.into_iter().flatten() {
        if set.insert(name.clone(), *value).is_some() {
            return Err(format!("{name} is set twice"));
        }
    }
    let settings = Settings {
        name: name.cloned().unwrap_or_default(),
        knobs: set.into_iter().collect(),
        rule: acceptance(matches)?,
    };
    let chosen = registry.choose(&settings);
    Ok(chosen.map_err(|error| error.to_string())?.settings)
}

/// The acceptance rule that the flags say.
fn acceptance(matches: &ArgMatches) -> Result<Rule, String> {
    let tau = |name| matches.get_one::<f32>(name).copied();
    let name = matches.get_one::<String>("acceptance");
    by_name(
        name.map_or(rule::NAMES[0], String::as_str),
        tau(TAU_Q),
        tau(TAU_T),
    )
}

/// The acceptance rule of this name. Whether a strategy supports it, the registry says.
pub(crate) fn by_name(name: &str, tau_q: Option<f32>, tau_t: Option<f32>) -> Result<Rule, String> {
    let default = Tolerance::default();
    let tolerance = Tolerance {
        draft: tau_q.unwrap_or(default.draft),
        qualifier: tau_t.unwrap_or(default.qualifier),
    };
    let known = rule::NAMES.join(", ");
    let rule = Rule::from_name(name, tolerance)
        .ok_or_else(|| format!("acceptance is {name:?}; known are {known}"))?;
    if !matches!(rule, Rule::Fuzzy(_)) && (tau_q.is_some() || tau_t.is_some()) {
        return Err(format!(
            "{TAU_Q} and {TAU_T} are for acceptance fuzzy, not {name}"
        ));
    }
    Ok(rule)
}

/// Each name of a knob, with the strategies that have one and what it is there.
fn knobs(registry: &Registry) -> BTreeMap<&'static str, Vec<(&'static str, &'static Knob)>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in registry.entries() {
        for knob in entry.knobs {
            all.entry(knob.name).or_default().push((entry.name, knob));
        }
    }
    all
}

/// `NAME=VALUE`.
pub(crate) fn assignment(text: &str) -> Result<(String, f64), String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("{text:?} is not NAME=VALUE"));
    };
    Ok((name.to_owned(), number(value)?))
}

/// A number.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a number"))
}

/// Makes a request one that is decoded this way.
pub(crate) fn apply(settings: &Settings, request: &mut v1::GenerateRequest) {
    request.strategy.clone_from(&settings.name);
    request.knobs = (settings.knobs.iter())
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    request.acceptance = proto::outward::acceptance(settings.rule);
}

/// Runs `offshoot strategies`.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn list() -> Result<End> {
    console::put(&listing(&Registry::default()))?;
    Ok(End::Done)
}

/// Each strategy with what it does, where it was published, and its knobs.
fn listing(registry: &Registry) -> String {
    let mut lines = Vec::new();
    for entry in registry.entries() {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let default = if entry.name == DEFAULT {
            " (default)"
        } else {
            ""
        };
        lines.push(format!("{}{default}", entry.name));
        lines.push(format!("  {}", entry.about));
        if !entry.source.is_empty() {
            lines.push(format!("  Source: {}", entry.source));
        }
        for knob in entry.knobs {
            lines.push(format!(
                "  {:<8} {}; {} [default: {}]",
                knob.name, knob.help, knob.range, knob.default
            ));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use speculation::duty::{Duties, Duty, Role};
    use speculation::strategy::{Entry, Knobs, Strategy};
    use std::sync::Arc;

    /// A strategy that only this test registers.
    static GUESSING: Entry = Entry {
        name: "guessing",
        about: "Guesses by luck",
        source: "arXiv 0000.00000",
        knobs: &[Knob {
            name: "luck",
            range: Range::Real(-1.0, 1.0),
            default: 0.5,
            help: "how lucky the draft is",
            sweep: &[],
        }],
        is_sensible: |_| true,
        build: |_| Arc::new(Guessing),
    };

    #[derive(Debug)]
    struct Guessing;

    impl Strategy for Guessing {
        fn duties(&self, _role: Role) -> Duties {
            Duties::of(Duty::Commit)
        }
    }

    fn registry() -> Registry {
        Registry::default().with(&GUESSING)
    }

    /// What a command with these strategies, and a flag `--rows` of its own, makes of a command line.
    fn parse(line: &[&str]) -> Result<Settings, String> {
        let own = Arg::new("rows")
            .long("rows")
            .value_parser(clap::value_parser!(u32));
        let command = flags(Command::new("probe").arg(own), &registry());
        let words = ["probe"].iter().chain(line);
        let matches = command.try_get_matches_from(words);
        settings(&matches.map_err(|error| error.to_string())?, &registry())
    }

    fn chosen(name: &str, knobs: &[(&str, f64)]) -> Settings {
        let set = knobs.iter().map(|&(knob, value)| (knob.to_owned(), value));
        Settings {
            name: name.to_owned(),
            knobs: set.collect::<Knobs>(),
            ..Settings::default()
        }
    }

    #[test]
    fn knobs_are_flags_and_reach_the_request() {
        assert_eq!(parse(&[]).unwrap(), chosen(DEFAULT, &[]));
        let serial = parse(&["--strategy", "serial", "--gamma", "7"]).unwrap();
        assert_eq!(serial, chosen("serial", &[("gamma", 7.0)]));
        let tree = [
            "--strategy",
            "serial-tree",
            "--depth",
            "5",
            "--knob",
            "width=2",
        ];
        let tree = parse(&tree).unwrap();
        assert_eq!(
            tree,
            chosen("serial-tree", &[("depth", 5.0), ("width", 2.0)])
        );
        let mut request = v1::GenerateRequest::default();
        apply(&tree, &mut request);
        assert_eq!(request.strategy, "serial-tree");
        assert_eq!(request.knobs.len(), 2);
        assert_eq!(request.knobs["depth"], 5.0);
    }

    #[test]
    fn the_acceptance_rule_is_a_flag_and_reaches_the_request() {
        let line = ["--strategy", "serial", "--acceptance", "rejection"];
        let settings = parse(&line).unwrap();
        assert_eq!(settings, chosen("serial", &[]).by(Rule::Rejection));
        let mut request = v1::GenerateRequest::default();
        apply(&settings, &mut request);
        let acceptance = request.acceptance.unwrap();
        assert_eq!(acceptance.rule(), v1::acceptance::Rule::Rejection);
        apply(&chosen("serial", &[]), &mut request);
        assert_eq!(request.acceptance, None);
    }

    #[test]
    fn a_strategy_that_is_registered_needs_no_code_here() {
        let line = ["--strategy", "guessing", "--luck", "-0.5"];
        assert_eq!(parse(&line).unwrap(), chosen("guessing", &[("luck", -0.5)]));
        let listed = listing(&registry());
        for part in [
            "auto (default)\n",
            "guessing\n  Guesses by luck\n  Source: arXiv 0000.00000\n",
            "luck     how lucky the draft is; numbers from -1 to 1 [default: 0.5]\n",
            "gamma    tokens drafted per round; 0: as many as pay for the time that the target waits; whole numbers from 0 to 64 [default: 0]\n",
        ] {
            assert!(listed.contains(part), "{part} is not in {listed}");
        }
        let mut command = flags(Command::new("probe"), &registry());
        let help = command.render_long_help().to_string();
        for part in [
            "--luck <X>",
            "guessing: how lucky",
            "--gamma <N>",
            "Guesses by luck",
        ] {
            assert!(help.contains(part), "{part} is not in {help}");
        }
    }

    #[test]
    fn a_flag_of_the_command_hides_a_knob_of_its_name() {
        assert_eq!(parse(&["--rows", "3"]).unwrap(), chosen(DEFAULT, &[]));
        let rows = parse(&["--rows", "3", "--knob", "rows=9"]).unwrap();
        assert_eq!(rows, chosen(DEFAULT, &[("rows", 9.0)]));
    }

    #[test]
    fn mistakes_are_named_in_the_registrys_words() {
        for (line, why) in [
            (
                &["--strategy", "magic"][..],
                "unknown strategy \"magic\"; known are ar, serial",
            ),
            (
                &["--gamma", "4"],
                "strategy auto: there is no knob \"gamma\"",
            ),
            (
                &["--strategy", "serial", "--gamma", "65"],
                "gamma is 65; allowed are whole",
            ),
            (&["--strategy", "serial", "--gamma", "1.5"], "gamma is 1.5"),
            (&["--gamma", "many"], "\"many\" is not a number"),
            (&["--knob", "depth"], "\"depth\" is not NAME=VALUE"),
            (&["--acceptance", "lenient"], "exact, rejection, fuzzy"),
            (
                &["--acceptance", "rejection"],
                "strategy auto does not support acceptance rejection",
            ),
            (&["--tau-q", "0.5"], "are for acceptance fuzzy, not exact"),
            (&["--depth", "3", "--knob", "depth=3"], "depth is set twice"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(why), "{line:?} gave {error}");
        }
    }
}

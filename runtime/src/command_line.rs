//! Reads a command line, with the environment as the second source of its flags.
//!
//! A process shares its environment with others. Orchestrators set variables for every service that a process can reach
//! (`NAME_PORT=tcp://10.0.0.1:7000` for a service called NAME, as Kubernetes and linked containers have it), and templates
//! set variables to nothing. So a variable counts only if it has a value, and if that value is no such link; and an error
//! that an environment variable causes names the variable.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Parser};

/// Values with which a service link begins.
const LINKS: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// Parses the arguments of this process. On an error, and for `--help` and `--version`, it prints what there is to say and
/// ends the process.
#[must_use]
pub fn parse<P: Parser>() -> P {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match attempt(&arguments, None) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Where even standard error is closed, the exit status still reports the failure.
            let _ = error.print();
            for note in notes::<P>(&arguments, &error) {
                let _ = writeln!(io::stderr(), "\nnote: {note}");
            }
            std::process::exit(error.exit_code())
        }
    }
}

/// Parses, as if the variable `without` were not set.
fn attempt<P: Parser>(arguments: &[OsString], without: Option<&OsStr>) -> Result<P, clap::Error> {
    let mut command = without_ignored(P::command(), &|name| {
        without == Some(name) || value(name).is_none()
    });
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The same command, whose flags do not read the variables that `is_ignored` names.
fn without_ignored(command: Command, is_ignored: &dyn Fn(&OsStr) -> bool) -> Command {
    let command = command.mut_args(|argument| {
        if argument.get_env().is_some_and(is_ignored) {
            argument.env(clap::builder::Resettable::Reset)
        } else {
            argument
        }
    });
    command.mut_subcommands(|command| without_ignored(command, is_ignored))
}

/// The value of a variable, if it counts.
fn value(name: &OsStr) -> Option<OsString> {
    std::env::var_os(name).filter(|value| counts(name, value))
}

fn counts(name: &OsStr, value: &OsStr) -> bool {
    let is_link = |text: &str| LINKS.iter().any(|scheme| text.starts_with(scheme));
    let may_be_link = name.as_encoded_bytes().ends_with(b"_PORT");
    let is_one = may_be_link && value.to_str().is_some_and(is_link);
    !value.is_empty() && !is_one
}

/// The entries of a list, without blanks around them and without empty ones: in environment variables lists are often
/// put together from parts of which some are not there.
pub fn items(given: &[String]) -> impl Iterator<Item = &str> {
    let trimmed = given.iter().map(|item| item.trim());
    trimmed.filter(|item| !item.is_empty())
}

/// What an error has to do with the environment.
fn notes<P: Parser>(arguments: &[OsString], error: &clap::Error) -> Vec<String> {
    if !error.use_stderr() {
        return Vec::new();
    }
    let mut command = P::command();
    // Only then do flags know how usage messages show them.
    command.build();
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return missing(&command, error);
    }
    // A variable is to blame if there is another outcome, or another error, without it.
    let is_to_blame = |name: &OsStr| match attempt::<P>(arguments, Some(name)) {
        Ok(_) => true,
        Err(other) => complaint(&other) != complaint(error),
    };
    let names = variables(&command).into_iter();
    let set = names.filter_map(|(name, _)| Some((value(&name)?, name)));
    set.filter(|(_, name)| is_to_blame(name))
        .map(|(value, name)| {
            format!(
                "the environment variable {} is set to {value:?}: correct it, or unset it; a flag on the command line \
                 overrides it",
                name.display()
            )
        })
        .collect()
}

/// What an error says, without the usage behind it, which lists what is set.
fn complaint(error: &clap::Error) -> String {
    let text = error.to_string();
    let end = text.find("\n\nUsage:").unwrap_or(text.len());
    text[..end].to_owned()
}

/// By which variables the flags can be set that are missing.
fn missing(command: &Command, error: &clap::Error) -> Vec<String> {
    let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else {
        return Vec::new();
    };
    let names = variables(command).into_iter();
    names
        .filter(|(_, flag)| missing.contains(flag))
        .map(|(name, flag)| match std::env::var_os(&name) {
            Some(_) => format!(
                "the environment variable {}, which {flag} reads as well, is empty: that counts as not set",
                name.display()
            ),
            None => format!(
                "{flag} can also be given as the environment variable {}",
                name.display()
            ),
        })
        .collect()
}

/// The variables that a command and its subcommands read, each with its flag as usage messages have it.
fn variables(command: &Command) -> BTreeSet<(OsString, String)> {
    let own = (command.get_arguments())
        .filter_map(|argument| Some((argument.get_env()?.to_owned(), argument.to_string())));
    let below = command.get_subcommands().flat_map(variables);
    own.chain(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_put_into_the_environment_does_not_count() {
        for (name, value, expected) in [
            ("OFFSHOOT_PORT", "7000", true),
            ("OFFSHOOT_PORT", "", false),
            ("OFFSHOOT_PORT", "tcp://10.0.0.1:7000", false),
            ("OFFSHOOT_PORT", "udp://10.0.0.1:7000", false),
            // A mistake, which is reported and not ignored.
            ("OFFSHOOT_PORT", "seven", true),
            ("OFFSHOOT_CONNECT", "tcp://10.0.0.1:7000", true),
            ("OFFSHOOT_TENANT", "", false),
        ] {
            let found = counts(OsStr::new(name), OsStr::new(value));
            assert_eq!(found, expected, "{name}={value}");
        }
    }
}

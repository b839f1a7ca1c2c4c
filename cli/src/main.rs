//! The `offshoot` binary: every role as a subcommand, local clusters of real processes, generation and benches.
//!
//! This file parses the command line, runs one command and turns its outcome into an exit status. A command writes its
//! result to standard output (a completion, addresses, a table) and everything else to standard error. What this crate
//! does *not* do: it neither computes nor relays tokens. Workers and the coordinator do, in their own processes, and the
//! clients here talk to them over the same gRPC API as any other client.

mod bench;
mod certs;
mod chat;
mod client;
mod cluster;
mod console;
mod deepen;
mod engine_bench;
mod evaluate;
mod generate;
mod laboratory;
mod models;
mod page;
mod request;
mod roles;
mod sampling;
mod serving;
mod sources;
mod statistics;
mod strategy;
mod top;
mod trace;
mod train;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit status after Ctrl-C, as shells report an interrupt.
const INTERRUPTED: u8 = 130;

/// Distributed speculative decoding: draft, qualifier and target models run in separate processes that never wait for
/// each other.
#[derive(Parser)]
#[command(name = "offshoot", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  offshoot generate \"fn main() {\"
  offshoot chat --model SmolLM2-135M-Instruct.Q4_1.gguf
  offshoot up --port 7000
  offshoot generate --connect 127.0.0.1:7000 --temperature 0.7 --seed 1 \"struct Point\"
  offshoot bench --prompts prompts.jsonl --pace target=20,qualifier=7,draft=2";

#[derive(Subcommand)]
enum Command {
    /// Complete a prompt, on a local cluster or on a running one
    Generate(Box<generate::GenerateArgs>),
    /// Talk with a model in the terminal
    Chat(Box<chat::ChatArgs>),
    /// Start a local cluster, print its addresses and run until Ctrl-C
    Up(Box<up::UpArgs>),
    /// Run a draft worker (proposes tokens)
    DraftWorker(Box<draft_worker::Args>),
    /// Run a target or qualifier worker (verifies tokens)
    TargetWorker(Box<target_worker::Args>),
    /// Run a coordinator (serves clients and connects the workers)
    Coordinator(Box<coordinator::Args>),
    /// Show what the workers of a running cluster are doing
    Top(top::TopArgs),
    /// Collect traces and draw them
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// List the decoding strategies and their knobs
    Strategies,
    /// Compare strategies on a local cluster
    Bench(Box<bench::BenchArgs>),
    /// Fetch how the models of a running cluster agree on its traffic, for simulate and advise
    Record(laboratory::RecordArgs),
    /// Compute how fast strategies would be on a cluster, in virtual time
    Simulate(Box<laboratory::SimulateArgs>),
    /// Say which strategy and which workers would serve a traffic best, in virtual time
    Advise(Box<laboratory::AdviseArgs>),
    /// Measure the step time of the engine by number of rows
    BenchEngine(engine_bench::EngineBenchArgs),
    /// Train Medusa heads beside a target (in a build with --features candle)
    TrainHeads(Box<train::HeadsArgs>),
    /// Train a classifier that forecasts how guesses will do, H-RAD (in a build with --features candle)
    TrainHrad(Box<train::HradArgs>),
    /// Create a test CA and a certificate for each role, to try TLS
    Certs(certs::CertsArgs),
    /// Find, fetch, inspect, modify and evaluate models
    #[command(subcommand)]
    Models(deepen::ModelsCommand),
}

/// How a command ended when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It completed.
    Done,
    /// It was interrupted.
    Interrupted,
}

fn main() -> ExitCode {
    runtime::tls::install_provider();
    let cli: Cli = runtime::parse();
    let outcome = match cli.command {
        Command::Generate(mut args) => {
            (args.models().fetch()).and_then(|()| roles::block_on(generate::run(*args)))
        }
        Command::Chat(mut args) => {
            (args.models().fetch()).and_then(|()| roles::block_on(chat::run(*args)))
        }
        Command::Up(mut args) => {
            (args.models().fetch()).and_then(|()| roles::block_on(up::run(*args)))
        }
        Command::DraftWorker(args) => roles::serve(draft_worker::run(*args)),
        Command::TargetWorker(args) => roles::serve(target_worker::run(*args)),
        Command::Coordinator(args) => coordinator::run(*args).map(|()| End::Done),
        Command::Top(args) => roles::block_on(top::run(args)),
        Command::Trace(command) => trace::run(command),
        Command::Strategies => strategy::list(),
        Command::Bench(mut args) => {
            (args.models().fetch()).and_then(|()| roles::block_on(bench::run(*args)))
        }
        Command::Record(args) => roles::block_on(laboratory::record(args)),
        Command::Simulate(args) => laboratory::simulate(&args),
        Command::Advise(args) => laboratory::advise(&args),
        Command::BenchEngine(args) => engine_bench::run(&args).map(|()| End::Done),
        Command::TrainHeads(args) => train::heads(&args).map(|()| End::Done),
        Command::TrainHrad(args) => train::hrad(&args).map(|()| End::Done),
        Command::Certs(args) => certs::run(&args),
        Command::Models(command) => deepen::run(&command).map(|()| End::Done),
    };
    match outcome {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Interrupted) => ExitCode::from(INTERRUPTED),
        // Whoever reads the output, such as `head`, has read enough; that is not a failure.
        Err(error) if console::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(&format!("error: {}", runtime::report(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help() {
        for command in Cli::command().get_subcommands() {
            assert!(
                command.get_about().is_some(),
                "{} has no help",
                command.get_name()
            );
        }
    }
}

//! `offshoot record`: how the models of a running cluster agree on its traffic, as a profile.
//!
//! The coordinator records places and distances of guesses, if it was started to. No token and no text leaves it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use laboratory::recording::{self, Text};
use proto::inward;
use runtime::{Caller, Purpose, TlsArgs};

use super::runs;
use crate::End;
use crate::bench;
use crate::client::Client;
use crate::console;

/// Arguments of `offshoot record`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot coordinator --record 32768 ...      # or OFFSHOOT_RECORD=32768 in its environment
  offshoot record --connect 127.0.0.1:7000 --out traffic.json
  offshoot advise --recording traffic.json --step-ms target=20,qualifier=7,draft=2

The file is a profile (docs/synthetic.md): at each position the place of the text's token among the draft's guesses, their
distances, and whether a qualifier picked it. Beside it stand the steps of the target (docs/laboratory.md), which
offshoot simulate --replay takes again. It holds no text and no token.")]
pub(crate) struct RecordArgs {
    /// Address of the coordinator
    #[arg(long, value_name = "HOST:PORT", env = "OFFSHOOT_CONNECT")]
    connect: String,
    /// The file to write
    #[arg(long, value_name = "OUT.json")]
    out: PathBuf,
    /// What the recording calls itself
    #[arg(long, value_name = "NAME", default_value = "recording")]
    name: String,
    /// How to connect to a coordinator that requires TLS
    #[command(flatten)]
    tls: TlsArgs,
}

/// Fetches what was recorded, and writes it.
///
/// # Errors
/// When the coordinator cannot be reached, does not record or has recorded nothing yet, or the file cannot be written.
pub(crate) async fn record(args: RecordArgs) -> Result<End> {
    bench::check_writable(&args.out)?;
    let caller = Caller::new(args.tls.load(Purpose::Call)?);
    let mut client = Client::connect(&args.connect, &caller).await?;
    let reply = client.recording().await?;
    let mut texts = Vec::with_capacity(reply.texts.len());
    let mut runs = Vec::new();
    let (mut positions, mut unseen) = (0, 0_u64);
    for text in reply.texts {
        let seen = (text.positions.into_iter())
            .map(inward::seen)
            .collect::<Result<Vec<_>, _>>()
            .context("the coordinator sent a recording that is none")?;
        positions += seen.len();
        unseen = unseen.saturating_add(text.unseen);
        runs.extend(text.runs);
        texts.push(Text {
            temperature: text.temperature,
            seen,
        });
    }
    if positions == 0 {
        bail!("nothing is recorded yet: no completion with guesses of a draft has ended");
    }
    let about = format!(
        "recorded from a running cluster: {positions} positions of {} completions, {unseen} more that no draft had reached",
        texts.len()
    );
    let profile = recording::profile(args.name, about, &texts)?;
    let recorded = runs.len();
    let content = runs::write(profile.to_json(), runs)?;
    fs::write(&args.out, content)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    console::say(&format!(
        "{positions} positions of {} completions ({unseen} more were not seen), and the steps of {recorded}, are in {}",
        texts.len(),
        args.out.display()
    ));
    Ok(End::Done)
}

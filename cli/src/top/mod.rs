//! `offshoot top`: the workers of a running cluster and how they spend their time, in a terminal.
//!
//! Everything shown comes from the coordinator's `Cluster` call: sums of what its sessions have reported. [`figures`]
//! computes what happened between two such replies and [`view`] draws it; this file calls, waits and reads keys.

mod figures;
mod view;

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use proto::v1;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use runtime::{Caller, Drain, Purpose, TlsArgs};

use crate::End;
use crate::client::Client;
use crate::console;
use figures::Figures;

/// Arguments of `offshoot top`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot top --connect 127.0.0.1:7000
  offshoot top --connect 127.0.0.1:7000 --once

Shares are of the lives of the sessions on a worker. q, Esc and Ctrl-C quit.")]
pub(crate) struct TopArgs {
    /// Address of the coordinator
    #[arg(long, value_name = "HOST:PORT", env = "OFFSHOOT_CONNECT")]
    connect: String,
    /// Seconds between updates
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Print the averages since the coordinator started, once, and exit
    #[arg(long)]
    once: bool,
    /// How to connect to a coordinator that requires TLS
    #[command(flatten)]
    tls: TlsArgs,
}

fn seconds(given: &str) -> Result<Duration, String> {
    match given.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!(
            "{given:?} is not a number of seconds from 0.1 to 3600"
        )),
    }
}

/// Shows the cluster until the user quits.
///
/// # Errors
/// When the coordinator cannot be reached or the terminal cannot be used.
pub(crate) async fn run(args: TopArgs) -> Result<End> {
    let caller = Caller::new(args.tls.load(Purpose::Call)?);
    let checked = caller.authority(&args.connect);
    checked.context("--connect or OFFSHOOT_CONNECT")?;
    let mut client = Client::connect(&args.connect, &caller).await?;
    let first = client.cluster().await?;
    if args.once {
        let figures = Figures::since_start(&first);
        console::put(&view::plain(&args.connect, &figures))?;
        return Ok(End::Done);
    }
    if !console::stdout_is_terminal() {
        bail!("standard output is not a terminal; use --once");
    }
    let drain = Drain::new();
    drain.on_signals()?;
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let shown = show(&mut terminal, &args, &mut client, first, &drain).await;
    ratatui::restore();
    shown.map(|()| End::Done)
}

async fn show(
    terminal: &mut DefaultTerminal,
    args: &TopArgs,
    client: &mut Client,
    first: v1::ClusterReply,
    drain: &Drain,
) -> Result<()> {
    let mut figures = Figures::since_start(&first);
    let (mut before, mut looked) = (first, Instant::now());
    let mut stale = None;
    loop {
        terminal.draw(|frame| {
            view::draw(
                frame.area(),
                frame.buffer_mut(),
                &args.connect,
                &figures,
                stale.as_deref(),
            );
        })?;
        let due = args.interval.saturating_sub(looked.elapsed());
        // Waiting for a key blocks, so it needs a blocking thread.
        let waiting = tokio::task::spawn_blocking(move || wait(due));
        let woken = tokio::select! {
            woken = waiting => woken.context("reading keys failed")??,
            () = drain.stopping() => Woken::Quit,
        };
        match woken {
            Woken::Quit => return Ok(()),
            Woken::Redraw => {}
            Woken::Due => {
                let elapsed = looked.elapsed();
                looked = Instant::now();
                match client.cluster().await {
                    Ok(after) => {
                        figures = Figures::between(&before, &after, elapsed);
                        before = after;
                        stale = None;
                    }
                    // It may come back; the last figures stay, marked as stale.
                    Err(error) => stale = Some(error.to_string()),
                }
            }
        }
    }
}

/// Why the wait for the next update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Due,
    Redraw,
    Quit,
}

/// Waits for a key or for the time to pass.
fn wait(due: Duration) -> io::Result<Woken> {
    if !event::poll(due)? {
        return Ok(Woken::Due);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => {
            let interrupt = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => Woken::Quit,
                KeyCode::Char('c') if interrupt => Woken::Quit,
                _ => Woken::Redraw,
            }
        }
        _ => Woken::Redraw,
    })
}

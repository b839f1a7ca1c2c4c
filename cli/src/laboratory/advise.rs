//! `offshoot advise`: every strategy on every set of workers that a number of devices allows, ranked.
//!
//! Comparisons are at equal devices: plain decoding gets a target on each of them.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use laboratory::{Cluster, Counts};
use serde::Serialize;
use speculation::duty::Role;
use speculation::strategy::Registry;

use super::args::{LoadArgs, NetworkArgs, TrafficArgs, run};
use super::report::Row;
use crate::End;
use crate::bench::{self, Contender, Qualifiers, align};
use crate::console::{self, Progress};
use crate::strategy::REFERENCE;

/// Arguments of `offshoot advise`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot advise --step-ms target=20,qualifier=7,draft=2 --devices 3
  offshoot advise --recording traffic.json --step-ms target=1:24,64:41,draft=3 --devices 4 --concurrency 8 --requests 64
  offshoot advise --accept 0.6,0.1 --step-ms target=12,draft=4 --devices 2

Every strategy is simulated on every set of workers that fits the devices, one device for each worker. The ranking goes by
the tokens of all requests per second. Plain decoding is given a target on every device.")]
pub(crate) struct AdviseArgs {
    /// Devices that there are, one for each worker
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    devices: u16,
    /// Strategies to choose from, with knobs as in a bench [default: all]
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        default_values_t = Contender::all(),
        hide_default_value = true
    )]
    strategies: Vec<Contender>,
    /// Rows of the ranking
    #[arg(long, value_name = "N", default_value_t = 12)]
    top: usize,
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    network: NetworkArgs,
    /// Also write all results to this file, as JSON
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// What has to be this many times better is worth it: less is within what a few requests can show.
const WORTH: f64 = 1.02;

/// One strategy on one set of workers.
#[derive(Debug, Serialize)]
struct Choice {
    #[serde(skip)]
    counts: Counts,
    workers: String,
    #[serde(flatten)]
    row: Row,
}

/// Simulates everything that fits, and says what is best.
///
/// # Errors
/// When an input is invalid.
pub(crate) fn advise(args: &AdviseArgs) -> Result<End> {
    if let Some(path) = &args.json {
        bench::check_writable(path)?;
    }
    let registry = Registry::default();
    let mut contenders = args.strategies.clone();
    if !contenders.iter().any(is_plain) {
        contenders.push(Contender::new(REFERENCE));
    }
    let mut trials = Vec::new();
    for contender in &contenders {
        let strategy = registry.choose(&contender.settings)?;
        let uses = |role: &Role| {
            let is_there = *role != Role::Qualifier
                || (args.traffic.step_ms.get(Role::Qualifier).is_some()
                    && contender.qualifiers == Qualifiers::Allowed);
            is_there && !strategy.duties(*role).is_empty()
        };
        let roles: Vec<Role> = Role::ALL.into_iter().filter(uses).collect();
        let layouts = layouts(args.devices.into(), &roles);
        trials.extend(layouts.into_iter().map(|counts| (contender, counts)));
    }
    let progress = Progress::counted(trials.len(), "simulating");
    let most = Counts {
        targets: 1,
        qualifiers: 0,
        drafts: 1,
    };
    let base = args.traffic.cluster(most, &args.network)?;
    let load = args.load.load()?;
    let mut choices = Vec::with_capacity(trials.len());
    for (contender, counts) in trials {
        let cluster = Cluster {
            counts,
            times: super::args::times(&args.traffic.step_ms, counts)?,
            ..base.clone()
        };
        let outcome = run(&cluster, &load, contender, &registry)?;
        choices.push(Choice {
            counts,
            workers: counts.to_string(),
            row: Row::of(contender, &outcome),
        });
        progress.step();
    }
    progress.clear();
    choices.sort_by(|one, other| {
        let speed = |choice: &Choice| choice.row.throughput_tok_s;
        // Of equals the one with fewer devices.
        (speed(other).total_cmp(&speed(one)))
            .then(one.counts.devices().cmp(&other.counts.devices()))
    });
    console::put(&say(args, &base, &choices)?)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string(&choices).context("cannot write the choices as JSON")?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(End::Done)
}

fn is_plain(contender: &Contender) -> bool {
    contender.name() == REFERENCE
}

/// Every set of workers with at most so many devices and of no other roles than these; no more qualifiers than targets.
fn layouts(devices: usize, roles: &[Role]) -> Vec<Counts> {
    let mut found = Vec::new();
    for targets in 1..=devices {
        let left = devices - targets;
        let most = match roles.contains(&Role::Qualifier) {
            true => targets.min(left),
            false => 0,
        };
        for qualifiers in 0..=most {
            let drafts = match roles.contains(&Role::Draft) {
                true => 1..=left - qualifiers,
                false => 0..=0,
            };
            found.extend(drafts.map(|drafts| Counts {
                targets,
                qualifiers,
                drafts,
            }));
        }
    }
    found
}

/// The ranking, and what follows from it.
fn say(args: &AdviseArgs, cluster: &Cluster, choices: &[Choice]) -> Result<String> {
    let mut out = String::new();
    let LoadArgs {
        requests,
        concurrency,
        max_tokens,
        temperature,
        ..
    } = args.load;
    let _ = writeln!(
        out,
        "SIMULATED in virtual time: profile {}, T = {temperature}, {requests} requests of {max_tokens} tokens, {concurrency} at a \
         time, {} ms one way; up to {} devices",
        cluster.profile.name(),
        args.network.delay_ms,
        args.devices
    );
    // Plain decoding with a target on each device.
    let plain = |devices: usize| {
        (choices.iter())
            .filter(|choice| choice.row.label == REFERENCE && choice.counts.devices() <= devices)
            .map(|choice| choice.row.throughput_tok_s)
            .fold(0.0, f64::max)
    };
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    for (rank, choice) in choices.iter().take(args.top.max(1)).enumerate() {
        let Row {
            label,
            tok_s,
            throughput_tok_s,
            acceptance_length,
            hit_rate,
            target_busy,
            ..
        } = &choice.row;
        let devices = choice.counts.devices();
        rows.push(vec![
            label.clone(),
            (rank + 1).to_string(),
            choice.workers.clone(),
            devices.to_string(),
            format!("{throughput_tok_s:.1}"),
            format!("{tok_s:.1}"),
            format!("{:.2}", throughput_tok_s / plain(devices)),
            format!("{acceptance_length:.2}"),
            format!("{:.1}%", 100.0 * hit_rate),
            format!("{:.1}%", 100.0 * target_busy),
        ]);
    }
    align(&mut out, &rows);
    out.push('\n');
    let Some(best) = choices.first() else {
        bail!("there is no strategy to choose from");
    };
    let devices = best.counts.devices();
    let gain = best.row.throughput_tok_s / plain(args.devices.into());
    let _ = writeln!(
        out,
        "best: {} on {} ({devices} devices), {:.1} tok/s",
        best.row.label, best.workers, best.row.throughput_tok_s
    );
    let _ = match best.row.label == REFERENCE || gain < WORTH {
        true => writeln!(
            out,
            "speculation: does not pay here; plain decoding with a target on each device is as good"
        ),
        false => writeln!(
            out,
            "speculation: pays, {gain:.2} times plain decoding with a target on each of {} devices",
            args.devices
        ),
    };
    for line in drafts(choices).into_iter().chain(qualifier(choices)) {
        let _ = writeln!(out, "{line}");
    }
    Ok(out)
}

const HEADINGS: [&str; 10] = [
    "strategy",
    "rank",
    "workers",
    "devices",
    "all tok/s",
    "tok/s",
    "x ar",
    "M",
    "hits",
    "busy",
];

/// What more drafts give the strategy that is best with one, beside one target and no qualifier.
fn drafts(choices: &[Choice]) -> Option<String> {
    let of = |choice: &&Choice| choice.counts.targets == 1 && choice.counts.qualifiers == 0;
    let best = (choices.iter().filter(of)).find(|choice| choice.counts.drafts == 1)?;
    let mut same: Vec<&Choice> = (choices.iter().filter(of))
        .filter(|choice| choice.row.label == best.row.label)
        .collect();
    if same.len() < 2 {
        return None;
    }
    same.sort_by_key(|choice| choice.counts.drafts);
    let each: Vec<String> = (same.iter())
        .map(|choice| {
            let Choice { counts, row, .. } = choice;
            let gain = row.throughput_tok_s / best.row.throughput_tok_s;
            format!(
                "{}: {:.1} tok/s ({gain:.2}x)",
                counts.drafts, row.throughput_tok_s
            )
        })
        .collect();
    Some(format!(
        "drafts of {} for one target: {}",
        best.row.label,
        each.join(", ")
    ))
}

/// Whether a qualifier is worth its device: the best with one against the best without, on the same number of devices.
fn qualifier(choices: &[Choice]) -> Vec<String> {
    let most = (choices.iter()).map(|choice| choice.counts.devices()).max();
    let best = |devices: usize, with: bool| {
        (choices.iter()).find(|choice| {
            choice.counts.devices() == devices && (choice.counts.qualifiers > 0) == with
        })
    };
    (3..=most.unwrap_or(0))
        .filter_map(|devices| {
            let (with, without) = (best(devices, true)?, best(devices, false)?);
            let gain = with.row.throughput_tok_s / without.row.throughput_tok_s;
            let verdict = match gain {
                gain if gain > WORTH => "worth its device",
                gain if gain < 1.0 / WORTH => "not worth its device",
                _ => "as good as another use of its device",
            };
            Some(format!(
                "a qualifier on {devices} devices: {verdict}, {gain:.2} times ({} on {} against {} on {})",
                with.row.label, with.workers, without.row.label, without.workers
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_may_have_a_worker_and_no_more() {
        let names = |devices, roles: &[Role]| -> Vec<String> {
            (layouts(devices, roles).iter())
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(names(3, &[Role::Target]), ["1T", "2T", "3T"]);
        assert_eq!(
            names(3, &[Role::Target, Role::Draft]),
            ["1T+1D", "1T+2D", "2T+1D"]
        );
        assert_eq!(
            names(3, &Role::ALL),
            ["1T+1D", "1T+2D", "1T+1Q+1D", "2T+1D"]
        );
        assert!(layouts(1, &Role::ALL).is_empty());
    }
}

//! Journals of targets: flat arrays on the wire.

use speculation::Time;
use speculation::duty::Source;
use speculation::journal::{Arrived, Run, Taken};
use speculation::limits::{MAX_JOURNAL_NODES, MAX_JOURNAL_STEPS};
use speculation::message::Forecast;
use speculation::recording::MAX_JOURNAL;

use crate::inward::{WireError, range, settings};
use crate::v1;

fn micros(time: Time) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn forecast(forecast: Option<Forecast>) -> u8 {
    forecast.map_or(0, |forecast| forecast as u8 + 1)
}

/// Steps as they are sent; nothing where there are none.
pub(crate) fn sent(steps: &[Taken]) -> Option<v1::Journal> {
    if steps.is_empty() {
        return None;
    }
    // What one message has of anything is far below 2^32.
    let counts = |count: fn(&Taken) -> usize| steps.iter().map(|step| count(step) as u32).collect();
    let nodes = || steps.iter().flat_map(|step| &step.nodes);
    let rescored = || steps.iter().flat_map(|step| &step.rescored);
    Some(v1::Journal {
        node_counts: counts(|step| step.nodes.len()),
        rescored_counts: counts(|step| step.rescored.len()),
        pick_counts: counts(|step| step.picks.len()),
        rooms: steps.iter().map(|step| step.room.into()).collect(),
        submitted: steps.iter().map(|step| step.submitted.into()).collect(),
        ended_us: steps.iter().map(|step| micros(step.ended)).collect(),
        took_us: steps.iter().map(|step| micros(step.took)).collect(),
        forecasts: steps.iter().map(|step| forecast(step.forecast)).collect(),
        parents: nodes().map(|node| node.parent).collect(),
        edges: nodes().map(|node| node.edge).collect(),
        sources: nodes().map(|node| node.source.code()).collect(),
        rescored: rescored().map(|&(number, _)| number).collect(),
        rescored_edges: rescored().map(|&(_, edge)| edge).collect(),
        picks: steps
            .iter()
            .flat_map(|step| step.picks.iter().copied())
            .collect(),
    })
}

pub(crate) fn sent_run(run: &Run) -> v1::RecordedRun {
    v1::RecordedRun {
        strategy: run.strategy.name.clone(),
        knobs: (run.strategy.knobs.iter())
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        room: run.room,
        journal: sent(&run.steps),
    }
}

/// The journal of a report.
pub(crate) fn report(journal: Option<v1::Journal>) -> Result<Vec<Taken>, WireError> {
    steps(journal, MAX_JOURNAL_STEPS, MAX_JOURNAL_NODES)
}

/// The recorded steps of one target.
///
/// # Errors
/// When arrays do not fit together, or a number is out of its range.
pub fn run(run: v1::RecordedRun) -> Result<Run, WireError> {
    Ok(Run {
        strategy: settings(run.strategy, run.knobs)?,
        room: run.room,
        steps: steps(run.journal, MAX_JOURNAL, MAX_JOURNAL)?,
    })
}

/// Takes `count` from the beginning of what is left.
fn part<'a, T>(field: &'static str, left: &mut &'a [T], count: u32) -> Result<&'a [T], WireError> {
    let have = left.len();
    let fits = usize::try_from(count).ok().filter(|&count| count <= have);
    let count = fits.ok_or_else(|| range(field, count, "no more than are left"))?;
    let (part, rest) = left.split_at(count);
    *left = rest;
    Ok(part)
}

fn steps(
    journal: Option<v1::Journal>,
    most: usize,
    numbers: usize,
) -> Result<Vec<Taken>, WireError> {
    let Some(journal) = journal else {
        return Ok(Vec::new());
    };
    let count = journal.node_counts.len();
    let arrays = [
        journal.rescored_counts.len(),
        journal.pick_counts.len(),
        journal.rooms.len(),
        journal.submitted.len(),
        journal.ended_us.len(),
        journal.took_us.len(),
        journal.forecasts.len(),
    ];
    let all = journal.parents.len() + journal.rescored.len() + journal.picks.len();
    if count > most || all > numbers {
        let value = format!("{count} steps with {all} numbers");
        return Err(range("journal", value, "as many as one message may have"));
    }
    let pairs = [
        (journal.parents.len(), journal.edges.len()),
        (journal.parents.len(), journal.sources.len()),
        (journal.rescored.len(), journal.rescored_edges.len()),
    ];
    if arrays.iter().any(|&len| len != count) || pairs.iter().any(|(a, b)| a != b) {
        let value = format!("{count} steps, {arrays:?}, {pairs:?}");
        return Err(range("journal", value, "arrays of equal length"));
    }
    let is_probability = |edge: &f32| (0.0..=1.0).contains(edge);
    let edges = journal.edges.iter().chain(&journal.rescored_edges);
    if let Some(odd) = edges.copied().find(|edge| !is_probability(edge)) {
        return Err(range("journal.edges", odd, "0 to 1"));
    }
    let small =
        |field, value: u32| u16::try_from(value).map_err(|_| range(field, value, "0 to 65535"));
    let nodes: Vec<Arrived> = (journal.parents.iter().zip(&journal.edges))
        .zip(&journal.sources)
        .map(|((&parent, &edge), &source)| Arrived {
            parent,
            edge,
            source: Source::from_code(source),
        })
        .collect();
    let rescored: Vec<(u32, f32)> = (journal.rescored.iter().copied())
        .zip(journal.rescored_edges.iter().copied())
        .collect();
    let (mut nodes, mut rescored, mut picks) = (&nodes[..], &rescored[..], &journal.picks[..]);
    let mut steps = Vec::with_capacity(count);
    for at in 0..count {
        let nodes = part("journal.node_counts", &mut nodes, journal.node_counts[at])?;
        let rescored = part(
            "journal.rescored_counts",
            &mut rescored,
            journal.rescored_counts[at],
        )?;
        let picks = part("journal.pick_counts", &mut picks, journal.pick_counts[at])?;
        steps.push(Taken {
            nodes: nodes.to_vec(),
            rescored: rescored.to_vec(),
            room: small("journal.rooms", journal.rooms[at])?,
            submitted: small("journal.submitted", journal.submitted[at])?,
            picks: picks.to_vec(),
            ended: Time::from_micros(journal.ended_us[at]),
            took: Time::from_micros(journal.took_us[at]),
            // A class that only a newer peer knows says nothing here.
            forecast: (Forecast::ALL.into_iter())
                .find(|&class| forecast(Some(class)) == journal.forecasts[at]),
        });
    }
    let left = nodes.len() + rescored.len() + picks.len();
    if left > 0 {
        return Err(range(
            "journal",
            format!("{left} numbers of no step"),
            "none",
        ));
    }
    Ok(steps)
}

//! One experiment from its beginning to its end.

use std::collections::BTreeMap;

use speculation::Time;
use speculation::duty::Role;
use speculation::strategy::Registry;

use crate::clock::{Clock, Event};
use crate::coordinator::Coordinator;
use crate::experiment::{Arrivals, Cluster, Contender, Counts, LabError, Load, check};
use crate::outcome::Outcome;
use crate::worker::{Sizes, Worker};

/// Sessions of a worker as the product has them if nothing else is said.
const SESSIONS: usize = 16;

/// Runs every request of a load on a cluster, decoded in one way.
///
/// # Errors
/// When a size is out of its range, the strategy is not in the registry, or the profile does not fit.
pub fn run(
    cluster: &Cluster,
    load: &Load,
    contender: &Contender,
    registry: &Registry,
) -> Result<Outcome, LabError> {
    check(cluster, load)?;
    let strategy = registry.choose(&contender.settings)?;
    let sizes = Sizes {
        // A session that has just ended may still occupy its place when the next one opens.
        sessions: SESSIONS.max(2 * load.concurrency),
        positions: load.prompts.longest() + load.tokens as usize,
    };
    let Counts {
        targets,
        qualifiers,
        drafts,
    } = cluster.counts;
    let mut workers = Vec::with_capacity(cluster.counts.devices());
    for (role, count) in [
        (Role::Target, targets),
        (Role::Qualifier, qualifiers),
        (Role::Draft, drafts),
    ] {
        // What the strategy has no use for is not even made.
        let count = match strategy.duties(role).is_empty() {
            true => 0,
            false => count,
        };
        for _ in 0..count {
            workers.push(Worker::new(
                workers.len(),
                role,
                cluster,
                sizes,
                (registry, load.watch),
            )?);
        }
    }
    let mut clock = Clock::new(cluster.network, workers.len(), load.seed);
    let mut home = Coordinator::new(
        (load, cluster.vocabulary.size),
        contender,
        strategy,
        &workers,
        sizes,
    );
    match &load.arrivals {
        Arrivals::Closed => (0..load.concurrency).for_each(|_| clock.at(Time::ZERO, Event::Ask)),
        Arrivals::At(times) => times.iter().for_each(|&time| clock.at(time, Event::Ask)),
    }
    let (mut events, mut took) = (0, Time::ZERO);
    while let Some(event) = clock.next() {
        events += 1;
        match event {
            Event::ToWorker(at, what) => workers[at].receive(&mut clock, what)?,
            Event::ToCoordinator(at, what) => home.receive(&mut clock, at, what)?,
            Event::StepEnds(at, step) => workers[at].step_ends(&mut clock, step)?,
            Event::Tick(at) => workers[at].run(&mut clock)?,
            Event::Ask => home.ask(&mut clock)?,
            Event::Wake(id) => home.wake(&mut clock, id)?,
        }
        if !home.is_done() {
            took = clock.now;
        }
    }
    if !home.is_done() {
        return Err(LabError::Broken("requests never ended".to_owned()));
    }
    if let Some(worker) = workers.iter().find(|worker| worker.sessions() > 0) {
        return Err(LabError::Broken(format!(
            "worker {} still holds sessions",
            worker.at
        )));
    }
    let mut requests = home.done;
    requests.sort_by_key(|request| request.number);
    if let Some(last) = requests.iter().filter_map(|one| one.arrivals.last()).max() {
        took = took.max(last.0);
    }
    let mut busy = BTreeMap::new();
    for worker in &workers {
        let (time, count) = busy.entry(worker.role).or_insert((Time::ZERO, 0));
        *time += worker.busy;
        *count += 1;
    }
    Ok(Outcome {
        took,
        busy,
        devices: workers.iter().filter(|worker| worker.was_used).count(),
        noted: (workers.into_iter())
            .filter(|worker| worker.was_used)
            .map(Worker::into_noted)
            .collect(),
        requests,
        events,
    })
}

//! A whole simulated cluster in virtual time: *whatever processes, links, clients and the clock do, every client reads
//! the text that its target decodes alone, and nothing is left behind.*
//!
//! One seed stands for one cluster with its clients and everything that goes wrong ([`run`]). The state machines of
//! `speculation` are the real ones; what surrounds them in real processes (model thread, registry, a session's task)
//! is told here as events in virtual time, after the same rules. There is no thread, no socket and no clock.
//! `docs/simulation.md` says what is real and what is told.

mod air;
mod cache;
mod client;
mod coordinator;
mod hosted;
mod reference;
mod scenario;
#[cfg(test)]
mod session;
mod task;
mod worker;
mod world;

pub use world::Coverage;

/// Runs the schedule of a seed to its end.
///
/// # Panics
/// With the reason, when anything is not as it has to be.
pub fn run(seed: u64) -> Coverage {
    world::World::new(seed).run()
}

/// Like [`run`], but gives back what has happened, line by line, and the reason of a failure if there was one.
pub fn replay(seed: u64) -> (Vec<String>, Result<Coverage, String>) {
    let mut world = world::World::new(seed);
    world.air.log = Some(Vec::new());
    let run = std::panic::AssertUnwindSafe(|| world.run());
    let result = std::panic::catch_unwind(run).map_err(|panic| reason(&*panic));
    (world.air.log.take().unwrap_or_default(), result)
}

/// What a panic said.
fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "a panic without words".to_owned(),
    }
}

/// Runs the schedule of a seed.
///
/// # Errors
/// With the reason, when anything is not as it has to be.
pub fn check(seed: u64) -> Result<Coverage, String> {
    std::panic::catch_unwind(|| run(seed)).map_err(|panic| reason(&*panic))
}

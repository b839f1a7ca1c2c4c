//! A whole simulated cluster in virtual time: *whatever processes, streams, clients and the clock do, every client reads
//! the text that its target decodes alone, and nothing is left behind.*
//!
//! One seed stands for one cluster with its clients and everything that goes wrong ([`run`]). Everything that decides is
//! what the product runs: `control` and `speculation` as they are. What is simulated is what they are given: clocks, a
//! network, models, caches and clients. There is no thread, no socket and no clock. `docs/simulation.md` says what is
//! real and what is simulated.

pub mod cache;
mod client;
mod coordinator;
mod delivery;
mod network;
mod placement;
pub mod reference;
mod replayed;
mod request;
mod scenario;
pub mod served;
mod worker;
mod world;

use speculation::strategy::Registry;

pub use world::Coverage;

/// Runs the schedule of a seed to its end, with the strategies of this registry.
///
/// # Panics
/// With the reason, when anything is not as it has to be.
pub fn run(seed: u64, registry: &Registry) -> Coverage {
    world::World::new(seed, registry).run()
}

/// Like [`run`], but gives back what has happened, line by line, and the reason of a failure if there was one.
pub fn replay(seed: u64, registry: &Registry) -> (Vec<String>, Result<Coverage, String>) {
    let mut world = world::World::new(seed, registry);
    world.network.log = Some(Vec::new());
    let run = std::panic::AssertUnwindSafe(|| world.run());
    let result = std::panic::catch_unwind(run).map_err(|panic| reason(&*panic));
    (world.network.log.take().unwrap_or_default(), result)
}

/// What a panic said.
fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "a panic without a message".to_owned(),
    }
}

/// Runs the schedule of a seed.
///
/// # Errors
/// With the reason, when anything is not as it has to be.
pub fn check(seed: u64, registry: &Registry) -> Result<Coverage, String> {
    let run = std::panic::AssertUnwindSafe(|| run(seed, registry));
    std::panic::catch_unwind(run).map_err(|panic| reason(&*panic))
}

//! How fast a cluster would be, in virtual time: *the same strategies, sessions, relay, fleet and hosts that the product
//! runs, over answers drawn from a profile and steps that last as long as a table says.*
//!
//! [`run`] gives one way of decoding a cluster and a load, and returns what a client would have measured. Everything that
//! decides is `control` and `speculation` as they ship, and answers are those of [`engine::synthetic`]; what is simulated
//! is time, the network and clients. Nothing waits: an hour of a cluster takes as long as its decisions take to compute.
//! Every number follows from the experiment and its seed, to the last bit.
//!
//! [`closed`] has what the literature says of the same quantities, to hold the results against.
//!
//! What there is *not*: faults (`simulation` has them), bytes, TLS, tokenizers, and time that anything but a step and the
//! network takes.

pub mod acceptance;
pub mod arrivals;
mod clock;
pub mod closed;
mod coordinator;
mod experiment;
mod outcome;
pub mod recording;
pub mod replay;
mod worker;
mod world;

pub use experiment::{
    Answers, Arrivals, Cluster, Contender, Counts, LabError, Load, Network, Prompts, StepTime,
    StepTimes, Vocabulary,
};
pub use outcome::{Noted, Outcome, Request, Step};
pub use world::run;

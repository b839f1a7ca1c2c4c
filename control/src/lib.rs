//! The decisions around sessions, pure: which workers serve a session, for how long, and what happens when one is lost.
//!
//! At a coordinator: [`admission`] (who may run), [`fleet`] with its [`placement`] queue (who gets a reservation on
//! which worker), and one [`session::SessionMachine`] per request with its [`failover`] and its [`parking`]. On a worker: one
//! [`host::Host`], with its [`table`] of sessions and the [`ownership`] of each.
//!
//! What a machine decides is returned from `poll_*` as a closed enum of actions; there are no callbacks. The same code
//! runs in the product and in the simulation, which adds only clocks, a network and models.
//!
//! This crate is `no_std`. It has no clock, socket, thread or random numbers; it knows nothing of gRPC, addresses or
//! text.

#![no_std]

extern crate alloc;

pub mod activity;
pub mod admission;
pub mod failover;
pub mod fleet;
pub mod host;
pub mod ownership;
pub mod parking;
pub mod placement;
pub mod session;
pub mod table;

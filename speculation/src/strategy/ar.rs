//! `ar`: plain autoregressive decoding, the reference of every comparison.

use alloc::sync::Arc;

use super::{Entry, Strategy};
use crate::duty::{Duties, Duty, Role};

pub(super) const ENTRY: Entry = Entry {
    name: "ar",
    about: "Plain decoding: one token per target step, no draft work at all",
    source: "",
    knobs: &[],
    is_sensible: |_| true,
    build: |_| Arc::new(Plain),
};

#[derive(Debug)]
struct Plain;

impl Strategy for Plain {
    fn duties(&self, role: Role) -> Duties {
        match role {
            Role::Target => Duties::of(Duty::Commit),
            Role::Draft | Role::Qualifier => Duties::default(),
        }
    }
}

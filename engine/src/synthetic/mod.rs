//! A backend without weights: what models would have answered is drawn from a profile of how they agree.
//!
//! The target's next token is a hash of the token path before it and of the request's seed and choice. A draft knows that
//! token too: it draws from the [`Profile`] at which place among its guesses the token stands, and fills the other places
//! with other tokens. A qualifier draws whether it agrees, and where it does not, which other token it picks. So the seed
//! decides the text and every path has one answer, as with real models; that no token means anything is the difference.
//!
//! A profile holds *positions*: what the three models found at one place of a text, all at once, so that draft and
//! qualifier agree with each other as often as they were seen to. Positions are replayed in blocks of consecutive ones (a
//! block bootstrap; Politis and Romano, *A circular block-resampling procedure for stationary data*, 1992), so that easy and
//! hard places come in streaks as in the text they were recorded from. Which block a position of a path lies in, and where
//! that block begins in the profile, follows from the path up to the block and from the request alone. It does so on
//! every path, whether it becomes text or not.
//!
//! Sequences, pages, rows and refusals are those of the engine, by the same code. What is cached of a position is the hash
//! of the path down to it, so a row that is kept, dropped or computed again where it should not be gives other tokens.
//!
//! A step takes no time here: how long steps last is up to whoever owns the backend. Its `numerics_id` begins with
//! `synthetic-`, so that no report can take it for a model.

mod backend;
mod file;
mod overlay;
mod path;
mod position;
mod profile;
mod replay;
mod stated;

pub use backend::{Spec, Synthetic};
pub use overlay::Overlay;
pub use position::{Gap, Position, QualifierPick};
pub use profile::{Class, MAX_GUESSES, Profile, ProfileError, Q_BUCKETS, QTable};
pub use replay::Member;

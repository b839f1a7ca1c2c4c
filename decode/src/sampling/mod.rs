//! The sampling contract: logits, parameters and a seed in, one token out.
//!
//! The token at absolute position `t` of a request with seed `s` is
//! `argmax_i(l_i / T + Gumbel(s, choice, t, i))` over the tokens that survive the
//! filters (the Gumbel-max trick: the argmax is distributed as the softmax of
//! `l / T`). The noise is a pure function of its four arguments, so the token
//! depends on nothing but the logits and the parameters: not on which process
//! asks, when, or how often. Drafts rank their own logits under the *same*
//! noise (drafter-invariant coupling, arXiv 2408.07978), which makes their
//! guesses agree with the target far more often than independent draws would.
//!
//! The order of operations is pinned: logit bias, penalties (repetition over
//! prompt and output, frequency and presence over the output), masks ([`Shaping`]),
//! then divide by T, top-k, top-p, min-p. Ties go to the lowest id everywhere. At
//! `T = 0` there is no noise and no filter: the strongest logit, as shaped, always
//! survives. A parameter at its neutral value leaves every bit as it is.
//!
//! Under [`Rule::Rejection`](crate::Rule::Rejection) drafts *draw* instead ([`Drawn`]) and the target
//! *judges* what they drew, each with noise of its own kind ([`Noise`]).
//!
//! A [`Sampling`] is what one request says about it, a [`SamplerState`] follows the text of
//! one session; every answer is given with it and the tokens before the row
//! ([`History`](crate::step::History)).
//!
//! What is exact here is exact on every machine: sums are taken in one fixed
//! order, `exp` and `ln` are those of [`math`](crate::math), and the vector code paths differ
//! in speed only.

#[cfg(test)]
mod dice;
mod drawn;
mod filter;
mod judge;
mod noise;
mod params;
mod ranking;
#[cfg(test)]
mod reference;
mod sampler;
mod scan;
mod score;
mod shaping;
mod state;
mod strongest;

pub use drawn::{Drawn, MAX_SUPPORT};
pub use judge::JudgeNoise;
pub use noise::{Noise, NoiseKey, gumbel, gumbel_of, uniform_of};
pub use params::{ParamError, SamplingParams};
pub use sampler::{Guess, NotFinite, Pick, Sampler};
pub use shaping::{Changes, MAX_BIASED, Shaping};
pub use state::{SamplerState, Sampling};

/// Names everything that decides which token is picked from given logits: the
/// noise, the order of the filters and the arithmetic. It is part of the
/// `numerics_id`; a change to any of them needs a new name.
pub const fn version() -> &'static str {
    "gumbel-max-1"
}

//! The wire format: protobuf messages, gRPC services, and the one place where bytes become domain values.
//!
//! [`v1`] is generated from `offshoot/v1/*.proto`. [`inward`] turns messages into the types of the `speculation`
//! crate and refuses what no correct peer would send, before anything is allocated for it; [`outward`] turns them
//! back, [`codec`] counts what a message holds before it is decoded, and [`stream`] does both for the frames of a link. This crate opens no socket and knows nothing of models, sessions or policies.

pub mod codec;
pub mod inward;
pub mod outward;
mod scores;
pub mod stream;

/// Generated from `offshoot/v1/*.proto`.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("offshoot.v1");
}

/// Incremented whenever an older peer would misread a message.
pub const PROTOCOL: u32 = 3;

/// Bytes one message of a hot stream may have, after which the link is an error.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Bytes of an open call or a client's request: a prompt of the longest context, and room.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Sessions one frame may speak of.
pub const MAX_SESSIONS_PER_FRAME: usize = 256;

/// How the chosen token of each position is drawn; the wire form of the sampling contract.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is plain argmax.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Decides the text.
    pub seed: u64,
    /// Number of the choice among several of one request.
    pub choice: u32,
    /// Added to the logits of these tokens; ids are unique.
    pub bias: Vec<(u32, f32)>,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Taken once from the logits of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens in the output as often as they are there; 0 is off.
    pub frequency_penalty: f32,
    /// Stop ids are masked until the output has so many tokens.
    pub min_tokens: u32,
}

impl Default for Sampling {
    /// Plain argmax, and everything else off.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            choice: 0,
            bias: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            min_tokens: 0,
        }
    }
}

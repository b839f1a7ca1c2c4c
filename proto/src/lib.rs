//! The wire format: protobuf messages, gRPC services, and the one place where bytes become domain values.
//!
//! [`v1`] is generated from `offshoot/v1/*.proto`. [`inward`] turns messages into the types of the `speculation`
//! crate and refuses what no correct peer would send, before anything is allocated for it; [`outward`] turns them
//! back, [`codec`] counts what a message holds before it is decoded, and [`stream`] does both for the frames of a
//! stream. This crate opens no socket and knows nothing of models, sessions or strategies.

pub mod codec;
mod groups;
pub mod inward;
mod journal;
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

/// The services and messages as an encoded `google.protobuf.FileDescriptorSet`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The newest protocol that this version speaks; incremented whenever an older peer would misread a message.
pub const PROTOCOL: u32 = 4;

/// The oldest protocol that this version speaks. Versions 1 to 3 had a service for each kind of worker.
pub const OLDEST_PROTOCOL: u32 = 4;

/// Bytes one message of a hot stream may have; a larger one ends the stream.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Bytes of an open call or a client's request: a prompt of the longest context, with room to spare.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Bytes of the name of a history.
pub const MAX_HISTORY_BYTES: usize = 128;

/// Sessions in one frame.
pub const MAX_SESSIONS_PER_FRAME: usize = 256;

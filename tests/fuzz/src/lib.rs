//! Hostile input, as functions of bytes: what a peer may send, and what it may do to the state behind the checks; and what a
//! downloaded file may say.
//!
//! Each target takes any bytes and must not panic, run long or keep more than the limits say. `tests/replay.rs` runs
//! all files of `corpus/` in CI; `tests/fuzz/run TARGET MINUTES` searches for new ones with libFuzzer. An input that
//! broke something is committed to the corpus together with the fix. Nothing here is used by the product, and nothing
//! here opens a socket.

mod cache;
pub mod config;
mod dice;
mod folder;
pub mod gguf;
pub mod messages;
pub mod relay;
pub mod request;
pub mod safetensors;
pub mod template;
pub mod tokenizer;
pub mod wire;
pub mod worker;

use std::path::PathBuf;

/// Token ids of the models that targets pretend to have are below this.
pub const VOCAB: u32 = 16;

/// A function that has to bear any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Names it on the command line, and its folder in the corpus.
    pub name: &'static str,
    /// Panics if something is broken.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "wire",
        run: wire::run,
    },
    Target {
        name: "request",
        run: request::run,
    },
    Target {
        name: "relay",
        run: relay::run,
    },
    Target {
        name: "worker",
        run: worker::run,
    },
    Target {
        name: "gguf",
        run: gguf::run,
    },
    Target {
        name: "safetensors",
        run: safetensors::run,
    },
    Target {
        name: "config",
        run: config::run,
    },
    Target {
        name: "tokenizer",
        run: tokenizer::run,
    },
    Target {
        name: "template",
        run: template::run,
    },
];

/// The committed inputs.
pub fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

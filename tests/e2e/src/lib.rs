//! End-to-end tests of Offshoot: real processes, real sockets, the bundled models.
//!
//! [`cluster`] starts one process per role from the `offshoot` binary and can kill any of them; [`client`] calls the
//! coordinator as a user's program would; [`collector`] receives traces and [`admin`] reads metrics as
//! an operator's tools would; [`oracle`] decodes with candle-transformers' own Llama, which shares no
//! code with the engine. [`proxy`] disturbs a connection, and [`faults`] measures what users notice of lost processes and
//! disturbed connections; [`soak`] disturbs everything for an hour. [`dns`] serves names that change, [`fake_hub`] models.
//! [`wait`] waits for conditions, and [`usage`] says what a process uses. Nothing here is used by the product.

pub mod admin;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod dns;
pub mod fake_hub;
pub mod faults;
pub mod oracle;
pub mod proxy;
pub mod soak;
pub mod usage;
pub mod wait;

use std::path::PathBuf;

use speculation::duty::Role;
use speculation::strategy::{Entry, Registry, Settings};

/// The strategy that gives the reference text: plain decoding.
pub const REFERENCE: &str = "ar";

/// Every registered strategy but [`REFERENCE`].
pub fn strategies() -> Vec<&'static Entry> {
    let registry = Registry::default();
    let others = registry.entries().iter().copied();
    others.filter(|entry| entry.name != REFERENCE).collect()
}

/// Whether a strategy uses workers of this role.
pub fn uses(entry: &Entry, role: Role) -> bool {
    let chosen = Registry::default().choose(&Settings::new(entry.name));
    chosen.is_ok_and(|strategy| !strategy.duties(role).is_empty())
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A bundled model's directory.
pub fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// The bundled prompts, at most `most`: those written for tests, then those that no bundled model was trained on.
pub fn prompts(most: usize) -> anyhow::Result<Vec<String>> {
    let mut lines = String::new();
    for file in ["rust.jsonl", "heldout.jsonl"] {
        lines += &std::fs::read_to_string(root().join("tests/prompts").join(file))?;
    }
    let prompt = |line: &str| -> anyhow::Result<String> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let prompt = value["prompt"].as_str();
        Ok(prompt
            .ok_or_else(|| anyhow::anyhow!("no prompt in {line}"))?
            .to_owned())
    };
    lines.lines().take(most).map(prompt).collect()
}

/// Whether the long form of the tests was requested (`OFFSHOOT_E2E=full`).
pub fn full() -> bool {
    std::env::var("OFFSHOOT_E2E").is_ok_and(|value| value == "full")
}

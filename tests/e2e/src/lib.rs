//! End-to-end tests of Offshoot: real processes, real sockets, the bundled models.
//!
//! [`cluster`] starts one process per role from the `offshoot` binary and can kill any of them; [`client`] calls the
//! coordinator as a user's program would; [`collector`] receives traces and [`admin`] reads metrics as
//! an operator's tools would; [`oracle`] decodes with candle-transformers' own Llama, which shares no
//! code with the engine. [`proxy`] disturbs a link, and [`faults`] measures what users notice of lost processes and
//! disturbed links. Nothing here is used by the product.

pub mod admin;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod faults;
pub mod oracle;
pub mod proxy;

use std::path::PathBuf;

/// The root of the checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A bundled model's directory.
pub fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// The bundled prompts, at most `most`.
pub fn prompts(most: usize) -> anyhow::Result<Vec<String>> {
    let lines = std::fs::read_to_string(root().join("tests/prompts/rust.jsonl"))?;
    let prompt = |line: &str| -> anyhow::Result<String> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let prompt = value["prompt"].as_str();
        Ok(prompt
            .ok_or_else(|| anyhow::anyhow!("no prompt in {line}"))?
            .to_owned())
    };
    lines.lines().take(most).map(prompt).collect()
}

/// Whether the long form of the tests was asked for (`OFFSHOOT_E2E=full`).
pub fn full() -> bool {
    std::env::var("OFFSHOOT_E2E").is_ok_and(|value| value == "full")
}

//! The weight files of a folder that somebody downloaded: one file, or an index with its shards.

use crate::folder::{CONFIG, compute, folder, weights};

/// The first byte says what the rest is: an index beside two good shards if it is odd, else the file with the weights.
pub fn run(input: &[u8]) {
    let Some((kind, file)) = input.split_first() else {
        return;
    };
    let config = ("config.json", CONFIG.as_bytes());
    let dir = if kind.is_multiple_of(2) {
        folder(&[config, ("model.safetensors", file)])
    } else {
        let is_first = |name: &str| name.contains("mlp");
        let (first, second) = (weights(is_first), weights(|name| !is_first(name)));
        folder(&[
            config,
            ("model.safetensors.index.json", file),
            ("1.safetensors", &first),
            ("2.safetensors", &second),
        ])
    };
    compute(dir.path());
}

//! What a downloaded folder says about its model: `config.json` and, behind a zero byte, `generation_config.json`.

use engine::ModelConfig;

use crate::folder::{compute, folder, weights};

/// The two files.
pub fn run(input: &[u8]) {
    let (config, generation) = match input.iter().position(|&byte| byte == 0) {
        Some(at) => (&input[..at], Some(&input[at + 1..])),
        None => (input, None),
    };
    let weights = weights(|_| true);
    let mut files = vec![("config.json", config), ("model.safetensors", &weights)];
    files.extend(generation.map(|generation| ("generation_config.json", generation)));
    let dir = folder(&files);
    let Ok(config) = ModelConfig::read(dir.path()) else {
        return;
    };
    assert!(config.vocab_size > 0 && config.max_positions > 0);
    let mut ids = config.eos.iter();
    assert!(ids.all(|&id| (id as usize) < config.vocab_size));
    // Mostly a model that the weights are not of, which has to show before anything is allocated for it.
    compute(dir.path());
}

//! SmolLM 3 (Hugging Face, 2025): a Llama in which every fourth layer has no positions (NoPE, arXiv 2501.18795).

use crate::config::{self, Fields, ModelConfig, Tied, Turn};
use crate::gguf::Metadata;
use crate::load::LoadError;
use crate::model::family::Traits;
use crate::model::llama;

pub(super) use crate::model::llama::layer;

pub(super) const TRAITS: Traits = Traits {
    model_type: "smollm3",
    architecture: "smollm3",
    theta: 2_000_000.0,
    tied: Tied::Shared,
    ..llama::TRAITS
};

/// One layer of so many has no positions, the last of them.
const INTERVAL: usize = 4;

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.rope = config::rope(fields, TRAITS.theta)?;
    let interval = match fields.count("no_rope_layer_interval")? {
        Some(0) => return Err("no_rope_layer_interval is 0, it has to be positive".to_owned()),
        interval => interval.unwrap_or(INTERVAL),
    };
    // Despite its name the list has a 1 for each layer with positions.
    let turned: Vec<bool> = match fields.get::<Vec<u8>>("no_rope_layers")? {
        Some(list) if list.len() == config.layers => list.iter().map(|n| *n != 0).collect(),
        Some(list) => {
            return Err(format!(
                "no_rope_layers has {} layers of {}",
                list.len(),
                config.layers
            ));
        }
        None => by_interval(config.layers, interval),
    };
    set(config, &turned);
    if fields.get("use_sliding_window")? == Some(true) {
        let window = config::window(fields)?;
        let windowed = config::windowed(fields, config.layers, |i| !turned[i])?;
        for (layer, is_windowed) in config.attention.iter_mut().zip(windowed) {
            layer.window = window.filter(|_| is_windowed);
        }
    }
    Ok(())
}

pub(super) fn of_gguf(file: &Metadata<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    set(config, &by_interval(config.layers, INTERVAL));
    file.no_window()
}

fn by_interval(layers: usize, interval: usize) -> Vec<bool> {
    (1..=layers).map(|n| !n.is_multiple_of(interval)).collect()
}

fn set(config: &mut ModelConfig, turned: &[bool]) {
    for (layer, is_turned) in config.attention.iter_mut().zip(turned) {
        layer.turn = if *is_turned { Turn::Rope } else { Turn::None };
    }
}

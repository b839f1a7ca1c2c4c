//! Mistral (arXiv 2310.06825): a Llama whose rows may see a window only. GGUF files call it a Llama.

use crate::config::{self, Fields, ModelConfig};
use crate::model::family::Traits;
use crate::model::llama;

pub(super) use crate::model::llama::{layer, of_gguf};

pub(super) const TRAITS: Traits = Traits {
    model_type: "mistral",
    ..llama::TRAITS
};

/// The window where `config.json` does not have the field at all.
const WINDOW: usize = 4096;

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.rope = config::rope(fields, TRAITS.theta)?;
    let window = match fields.has("sliding_window") {
        true => config::window(fields)?,
        false => Some(WINDOW),
    };
    let windowed = config::windowed(fields, config.layers, |_| true)?;
    for (layer, is_windowed) in config.attention.iter_mut().zip(windowed) {
        layer.window = window.filter(|_| is_windowed);
    }
    Ok(())
}

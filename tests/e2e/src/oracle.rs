//! Greedy decoding with the Llama of candle-transformers.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};

/// A model as candle-transformers runs it, in f32.
pub struct Oracle {
    model: Llama,
    config: Config,
}

impl Oracle {
    /// Loads a checkpoint directory, sharded or not.
    pub fn load(dir: &Path) -> anyhow::Result<Oracle> {
        let config: LlamaConfig = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
        let config = config.into_config(false);
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                let content = std::fs::read(&path)?;
                tensors.extend(candle_core::safetensors::load_buffer(
                    &content,
                    &Device::Cpu,
                )?);
            }
        }
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let model = Llama::load(vars, &config)?;
        Ok(Oracle { model, config })
    }

    /// The most likely token after each prefix, `count` times or until `stop` was chosen.
    pub fn greedy(&self, prompt: &[u32], count: usize, stop: u32) -> anyhow::Result<Vec<u32>> {
        let mut cache = Cache::new(true, DType::F32, &self.config, &Device::Cpu)?;
        let mut tokens = Vec::new();
        let mut input = prompt.to_vec();
        let mut position = 0;
        while tokens.len() < count {
            let batch = Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
            let logits = self.model.forward(&batch, position, &mut cache)?;
            let logits: Vec<f32> = logits.squeeze(0)?.to_vec1()?;
            position += input.len();
            let best = (logits.iter().enumerate())
                .max_by(|(a_at, a), (b_at, b)| a.total_cmp(b).then(b_at.cmp(a_at)))
                .context("the model has a vocabulary")?;
            let token = u32::try_from(best.0)?;
            tokens.push(token);
            if token == stop {
                break;
            }
            input = vec![token];
        }
        Ok(tokens)
    }
}

//! The stock candle matmul over a model's weight shapes: what the engine's kernels are compared with.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use engine::ModelConfig;
use rayon::ThreadPool;

/// f32 weights that are allocated at most; of a larger model some layers are timed, and the rest is scaled up.
const MOST_WEIGHTS: usize = 1 << 29;

/// Outputs and inputs of one weight matrix.
type Dims = (usize, usize);

/// The matrices of one layer, as a stock Llama multiplies by them: q, k, v, o, gate, up, down.
fn layer(config: &ModelConfig) -> [Dims; 7] {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let queries = config.heads * config.head_dim;
    let keys = config.kv_heads * config.head_dim;
    [
        (queries, hidden),
        (keys, hidden),
        (keys, hidden),
        (hidden, queries),
        (inner, hidden),
        (inner, hidden),
        (hidden, inner),
    ]
}

fn count(dims: &[Dims]) -> usize {
    dims.iter().map(|(outputs, inputs)| outputs * inputs).sum()
}

/// Weights that one row is multiplied by: all layers and the head.
pub(crate) fn weights(config: &ModelConfig) -> usize {
    config.layers * count(&layer(config)) + config.vocab_size * config.hidden
}

/// A model's weight matrices as candle tensors, f32 because candle's CPU matmul takes no bf16.
pub(crate) struct Stock {
    layers: Vec<Vec<Tensor>>,
    head: Tensor,
    /// Layers of the model over layers held here.
    scale: f64,
    /// candle runs on the rayon pool it is called from.
    pool: ThreadPool,
}

impl Stock {
    /// Allocates the weights.
    ///
    /// # Errors
    /// When candle or the system refuses.
    pub(crate) fn new(config: &ModelConfig, threads: NonZeroUsize) -> Result<Stock> {
        let dims = layer(config);
        let held = (MOST_WEIGHTS / count(&dims).max(1)).clamp(1, config.layers);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .build()
            .context("cannot start the threads of the stock matmul")?;
        // Ones, because untouched zeros would all be one page of memory and stay in the cache.
        let matrix =
            |(outputs, inputs): Dims| Tensor::ones((outputs, inputs), DType::F32, &Device::Cpu);
        let layers = (0..held)
            .map(|_| dims.into_iter().map(matrix).collect())
            .collect::<candle_core::Result<Vec<_>>>()?;
        let head = matrix((config.vocab_size, config.hidden))?;
        Ok(Stock {
            layers,
            head,
            scale: config.layers as f64 / held as f64,
            pool,
        })
    }

    /// Share of the layers that is really timed.
    pub(crate) fn share(&self) -> f64 {
        1.0 / self.scale
    }

    /// The time of all matmuls of a step of `rows` rows; nothing else of a step is in it.
    ///
    /// # Errors
    /// When candle refuses.
    pub(crate) fn pass(&self, rows: usize) -> Result<Duration> {
        self.pool.install(|| {
            let mut in_layers = Duration::ZERO;
            for weight in self.layers.iter().flatten() {
                in_layers += time(weight, rows)?;
            }
            Ok(in_layers.mul_f64(self.scale) + time(&self.head, rows)?)
        })
    }
}

/// One matmul of `rows` rows, as candle's own linear layer does it. The rows themselves are made outside the time.
fn time(weight: &Tensor, rows: usize) -> candle_core::Result<Duration> {
    let x = Tensor::ones((rows, weight.dim(1)?), DType::F32, &Device::Cpu)?;
    let begun = Instant::now();
    black_box(x.matmul(&weight.t()?)?);
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;

    #[test]
    fn the_shapes_are_those_of_the_checkpoint() {
        let dir = models::bundled(None).unwrap().join("draft");
        let config = ModelConfig::read(&dir).unwrap();
        let file = std::fs::read(dir.join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let matrices = tensors
            .tensors()
            .into_iter()
            .map(|(_, tensor)| tensor.shape().to_vec());
        let stored: usize = matrices
            .filter(|shape| shape.len() == 2)
            .map(|shape| shape.iter().product::<usize>())
            .sum();
        assert_eq!(
            weights(&config),
            stored,
            "the embedding is the head, so every matrix counts once"
        );
        let stock = Stock::new(&config, NonZeroUsize::MIN).unwrap();
        assert_eq!(stock.share(), 1.0);
        assert!(stock.pass(2).unwrap() > Duration::ZERO);
    }
}

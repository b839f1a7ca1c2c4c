//! The stock candle matmul over a model's weight shapes: what the engine's kernels are compared with.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use engine::ModelConfig;
use rayon::ThreadPool;

use super::shapes::{Dims, count, layer};

/// f32 weights that are allocated at most; of a larger model some layers are timed, and the rest is scaled up.
const MOST_WEIGHTS: usize = 1 << 29;

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
    fn a_pass_over_the_bundled_draft_takes_time() {
        let dir = models::bundled(None).unwrap().join("draft");
        let config = ModelConfig::read(&dir).unwrap();
        let stock = Stock::new(&config, NonZeroUsize::MIN).unwrap();
        assert_eq!(stock.share(), 1.0);
        assert!(stock.pass(2).unwrap() > Duration::ZERO);
    }
}

//! Stands in for the stock matmul in a build without the feature `candle`.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Result, bail};
use engine::ModelConfig;

/// There is none.
pub(crate) enum Stock {}

impl Stock {
    /// # Errors
    /// Always.
    pub(crate) fn new(_: &ModelConfig, _: NonZeroUsize) -> Result<Stock> {
        bail!("this build has no stock matmul to compare with: build it with --features candle")
    }

    pub(crate) fn share(&self) -> f64 {
        match *self {}
    }

    pub(crate) fn pass(&self, _: usize) -> Result<Duration> {
        match *self {}
    }
}

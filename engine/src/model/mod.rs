//! Model families, and the small networks beside a model: one file each, written in the operations of a
//! [`Device`](crate::device::Device).

mod decoder;
mod family;
mod gemma2;
mod gemma3;
mod hrad;
mod llama;
mod medusa;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod smollm3;
mod tensors;

use crate::config::ModelConfig;

pub(crate) use decoder::{Decoder, Tapped};
pub use family::Family;
pub(crate) use hrad::Hrad;
pub(crate) use medusa::Medusa;
pub(crate) use rope::RopeTable;
pub(crate) use tensors::{EndTensors, LayerTensors};

/// What attention has to know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionShape {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key/value heads; divides `heads`.
    pub(crate) kv_heads: usize,
    /// Width of one head; even.
    pub(crate) head_dim: usize,
}

impl AttentionShape {
    /// That of a model.
    pub(crate) fn of(config: &ModelConfig) -> AttentionShape {
        AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Query heads that share one key/value head.
    pub(crate) fn group(self) -> usize {
        self.heads / self.kv_heads
    }
}

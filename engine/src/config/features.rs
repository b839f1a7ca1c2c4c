//! What a model needs of a device beyond what Llama needs.

use crate::config::{Bias, ModelConfig, Turn};
use crate::model::Family;

/// The name of a feature that shows in the tensors of a checkpoint.
pub(crate) const BIASES: &str = "a bias of queries, keys and values";
/// Names of others that not every device lacks.
pub(crate) const HEAD_NORMS: &str = "normalised queries and keys (QK-norm)";
pub(crate) const NO_POSITIONS: &str = "layers without positions (NoPE)";
pub(crate) const PART_TURNED: &str = "rotary embedding of a part of each head";
pub(crate) const FUSED: &str = "fused matrices";

impl ModelConfig {
    /// What the model needs beyond the operations of Llama, in words; nothing for a Llama.
    #[must_use]
    pub fn features(&self) -> Vec<&'static str> {
        let is_gemma = matches!(self.family, Family::Gemma2 | Family::Gemma3);
        let any = |has: fn(&crate::LayerAttention) -> bool| self.attention.iter().any(has);
        let all = [
            (self.bias != Bias::None, BIASES),
            (self.family.traits().head_norms, HEAD_NORMS),
            (is_gemma, "GeGLU"),
            (is_gemma, "norms behind blocks"),
            (is_gemma, "scaled embeddings"),
            (any(|layer| layer.window.is_some()), "a sliding window"),
            (any(|layer| layer.turn == Turn::None), NO_POSITIONS),
            (
                any(|layer| layer.turn == Turn::LocalRope),
                "two rotary embeddings",
            ),
            (
                self.attention_cap.is_some() || self.logits_cap.is_some(),
                "bounded scores or logits (softcap)",
            ),
            (self.rotary_dim != self.head_dim, PART_TURNED),
            (self.family.traits().fused, FUSED),
        ];
        let needed = all.into_iter().filter(|(is_needed, _)| *is_needed);
        needed.map(|(_, name)| name).collect()
    }
}

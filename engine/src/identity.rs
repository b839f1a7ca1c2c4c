//! The numerics identity: two engines with the same one compute the same bits.

use std::num::NonZeroUsize;

use decode::sampling;

use crate::config::{BIASES, ModelConfig};
use crate::load::Checkpoint;
use crate::options::WeightDtype;
use crate::sequence::PAGE;

/// How a device computes.
#[derive(Clone, Copy)]
pub(crate) struct Arithmetic<'a> {
    /// Names the order in which its kernels, norms, softmax and elementary functions compute. Anything that changes a bit of a
    /// result needs a new name.
    pub(crate) kernels: &'a str,
    /// The type of its cache.
    pub(crate) cache: &'a str,
}

/// Hex blake3 over everything a logit depends on besides its token path: configuration, weights as in the
/// checkpoint, their storage type here, the cache's type and page size, the kernel order class and the sampler. `threads` read
/// the weights.
pub(crate) fn numerics_id(
    arithmetic: Arithmetic<'_>,
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    dtype: WeightDtype,
    threads: NonZeroUsize,
) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut field = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    field(arithmetic.kernels);
    field(dtype.name());
    field(arithmetic.cache);
    field(sampling::version());
    field(&format!("page-{PAGE}"));
    // End-of-text ids steer the walk, not the logits: a checkpoint edited there still computes the same bits.
    let ModelConfig {
        vocab_size,
        max_positions,
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        ..
    } = config;
    field(&format!(
        "{vocab_size} {max_positions} {hidden} {intermediate} {layers} {heads} {kv_heads} {head_dim} {:08x} {:?} {:?}",
        config.norm_eps.to_bits(),
        config.rope,
        config.tied
    ));
    // What a Llama has needs no mention, nor does a bias, which is among the tensors.
    let is_plain = (config.features().iter()).all(|feature| *feature == BIASES);
    if !is_plain {
        let caps = [config.attention_cap, config.logits_cap].map(|cap| cap.map(f32::to_bits));
        field(&format!(
            "{} {} {:?} {:?} {:08x} {caps:x?}",
            config.family.model_type(),
            config.rotary_dim,
            config.local_rope,
            config.attention,
            config.attention_scale.to_bits(),
        ));
    }
    if let Some(factors) = checkpoint.rope_factors() {
        field(&format!(
            "rope factors {:x?}",
            factors.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        ));
    }
    for ((name, entry, _), hash) in checkpoint.entries().zip(checkpoint.hashes(threads)) {
        match entry.blocks {
            None => field(&format!("{name} {:?} {:?}", entry.dtype, entry.shape)),
            Some(format) => field(&format!("{name} {} {:?}", format.name(), entry.shape)),
        }
        field(hash.to_hex().as_str());
    }
    hasher.finalize().to_hex().to_string()
}

//! Medusa heads (arXiv 2401.10774): each predicts one later token from the hidden state that the model's own head reads,
//! that of the last layer behind the final norm. Head `k` is some residual blocks `x + silu(W x + b)`, then a matrix to the
//! vocabulary; it predicts the token `k + 1` places behind the one that the model itself predicts there.
//!
//! Checkpoints have the published layout: `config.json` with `medusa_num_heads` and `medusa_num_layers`, and the tensors
//! `{head}.{layer}.linear.weight`, `{head}.{layer}.linear.bias` and `{head}.{layers}.weight`, here in
//! `medusa_lm_head.safetensors`. With `shares_lm_head` in `config.json`, which is not part of the published layout, the last
//! one is absent and the model's own head serves all of them; that makes heads of a small model small.

use std::ops::ControlFlow;
use std::path::Path;

use serde::Deserialize;

use crate::config::{self, ModelConfig};
use crate::device::Device;
use crate::load::{Checkpoint, LoadError};

/// The weight file.
const FILE: &str = "medusa_lm_head.safetensors";
/// More heads or layers than any published checkpoint has.
const MOST: usize = 16;

/// `config.json`, with the defaults of the published code.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default = "four")]
    medusa_num_heads: usize,
    #[serde(default = "one")]
    medusa_num_layers: usize,
    #[serde(default)]
    shares_lm_head: bool,
}

fn four() -> usize {
    4
}

fn one() -> usize {
    1
}

/// One residual block.
struct Block<D: Device> {
    /// `hidden -> hidden`
    weight: D::Weight,
    /// `[hidden]`
    bias: D::Vector,
}

/// One head.
struct Head<D: Device> {
    blocks: Vec<Block<D>>,
    /// `hidden -> vocab`; none: the model's own.
    output: Option<D::Weight>,
}

/// The heads beside a model.
pub(crate) struct Medusa<D: Device> {
    heads: Vec<Head<D>>,
    /// `[1][hidden]`
    x: D::Tensor,
    /// `[1][hidden]`
    delta: D::Tensor,
    /// What heads that share the model's head give it, `[heads][hidden]`.
    stacked: D::Tensor,
    /// `[heads][vocab]`, or `[1][vocab]` of a head with an output of its own.
    logits: D::Tensor,
}

impl<D: Device> Medusa<D> {
    /// Loads heads for a model of this configuration, whose steps have at most `most_rows` rows.
    pub(crate) fn load(
        device: &D,
        dir: &Path,
        model: &ModelConfig,
        most_rows: usize,
    ) -> Result<Medusa<D>, LoadError> {
        let refused = |reason: String| LoadError::Beside {
            path: dir.to_owned(),
            reason,
        };
        let file = dir.join(FILE);
        if !file.is_file() {
            return Err(refused(match dir.join("medusa_lm_head.pt").is_file() {
                true => format!(
                    "its medusa_lm_head.pt is a pickle, which is not read: save the same tensors as {FILE}"
                ),
                false => format!("no folder of Medusa heads: it needs config.json and {FILE}"),
            }));
        }
        let raw: RawConfig = config::parse(&dir.join("config.json"))?;
        let (count, layers) = (raw.medusa_num_heads, raw.medusa_num_layers);
        if !(1..=MOST.min(most_rows)).contains(&count) || layers > MOST {
            return Err(refused(format!(
                "config.json has {count} heads of {layers} layers; from 1 to {} heads of up to {MOST} layers can be served",
                MOST.min(most_rows)
            )));
        }
        let checkpoint = Checkpoint::of_file(&file)?;
        let (hidden, vocab) = (model.hidden, model.vocab_size);
        let matrix = |name: &str, outputs: usize| {
            let matrix = checkpoint.matrix(name, outputs, hidden)?;
            device.weight(&[matrix], checkpoint.dtype_of(name))
        };
        let head = |i: usize| {
            let block = |j: usize| {
                let bias = checkpoint.tensor(&format!("{i}.{j}.linear.bias"), &[hidden])?;
                Ok::<_, LoadError>(Block {
                    weight: matrix(&format!("{i}.{j}.linear.weight"), hidden)?,
                    bias: device.vector(&bias.to_vec()),
                })
            };
            let output = match raw.shares_lm_head {
                true => None,
                false => Some(matrix(&format!("{i}.{layers}.weight"), vocab)?),
            };
            Ok::<_, LoadError>(Head {
                blocks: (0..layers).map(block).collect::<Result<_, _>>()?,
                output,
            })
        };
        if raw.shares_lm_head && checkpoint.has(&format!("0.{layers}.weight")) {
            return Err(refused(format!(
                "config.json says shares_lm_head, but {FILE} has 0.{layers}.weight"
            )));
        }
        Ok(Medusa {
            heads: (0..count).map(head).collect::<Result<_, _>>()?,
            x: device.tensor(hidden),
            delta: device.tensor(hidden),
            stacked: device.tensor(hidden),
            logits: device.tensor(vocab),
        })
    }

    /// Bytes of weights that are read where a walk ends; `lm_head` are those of the model's own head.
    pub(crate) fn bytes(&self, device: &D, lm_head: usize) -> usize {
        let is_shared = self.heads.iter().any(|head| head.output.is_none());
        let own = self.heads.iter().flat_map(|head| {
            let blocks = head.blocks.iter().map(|block| &block.weight);
            blocks.chain(&head.output).map(|w| device.weight_bytes(w))
        });
        own.sum::<usize>() + if is_shared { lm_head } else { 0 }
    }

    /// Gives the logits of each head in turn, from `hidden`, which the model's own `lm_head` reads too. `each` may end it.
    pub(crate) fn evaluate(
        &mut self,
        device: &D,
        hidden: &[f32],
        lm_head: &D::Weight,
        each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>,
    ) {
        let mut shared = Vec::new();
        for head in &self.heads {
            device.write(&[hidden.to_vec()], &mut self.x);
            for Block { weight, bias } in &head.blocks {
                device.matmul(&self.x, weight, &mut self.delta);
                device.add_silu(&mut self.x, &self.delta, bias);
            }
            match &head.output {
                None => shared.push(device.row(&self.x, 0).to_vec()),
                Some(output) => {
                    device.matmul(&self.x, output, &mut self.logits);
                    if each(device.row(&self.logits, 0)).is_break() {
                        return;
                    }
                }
            }
        }
        if shared.is_empty() {
            return;
        }
        device.write(&shared, &mut self.stacked);
        device.matmul(&self.stacked, lm_head, &mut self.logits);
        for row in 0..shared.len() {
            if each(device.row(&self.logits, row)).is_break() {
                return;
            }
        }
    }
}

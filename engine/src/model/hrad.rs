//! The classifier of H-RAD (SpecBranch, arXiv 2506.01979, section 4.2): from the hidden states of the model's last four
//! layers where a walk ends, and the embedding of the token that is picked there, whether the next step accepts nothing,
//! some or all of a chain of guesses. A perceptron `5 hidden -> 256 -> 64 -> 3` with ReLU.
//!
//! As hidden states count what the Hugging Face implementations give: the residual stream behind each layer, that of the
//! last one behind the final norm.
//!
//! A folder has `config.json` with `hrad_layers` (4) and `gamma`, the length of the chain it was trained for, and
//! `hrad.safetensors` with `{0,1,2}.weight` and `{0,1,2}.bias`.

use std::path::Path;

use decode::Forecast;
use serde::Deserialize;

use crate::config::{self, ModelConfig};
use crate::device::Device;
use crate::load::{Checkpoint, LoadError};

/// Layers of the model whose hidden states are read.
pub(crate) const LAYERS: usize = 4;
/// Widths of the perceptron behind its input.
const WIDTHS: [usize; 3] = [256, 64, 3];
/// The weight file.
const FILE: &str = "hrad.safetensors";

#[derive(Deserialize)]
struct RawConfig {
    hrad_layers: usize,
}

/// One layer of the perceptron.
struct Layer<D: Device> {
    weight: D::Weight,
    bias: D::Vector,
    output: D::Tensor,
}

/// The classifier.
pub(crate) struct Hrad<D: Device> {
    /// `[1][(LAYERS + 1) * hidden]`
    input: D::Tensor,
    layers: Vec<Layer<D>>,
    /// The bias of the classes, which the host adds.
    last_bias: Vec<f32>,
}

impl<D: Device> Hrad<D> {
    /// Loads a classifier for a model of this configuration.
    pub(crate) fn load(device: &D, dir: &Path, model: &ModelConfig) -> Result<Hrad<D>, LoadError> {
        let refused = |reason: String| LoadError::Beside {
            path: dir.to_owned(),
            reason,
        };
        let file = dir.join(FILE);
        if !file.is_file() {
            return Err(refused(format!(
                "no folder of an H-RAD classifier: it needs config.json and {FILE}"
            )));
        }
        let raw: RawConfig = config::parse(&dir.join("config.json"))?;
        if raw.hrad_layers != LAYERS || model.layers < LAYERS {
            return Err(refused(format!(
                "config.json reads {} layers of a model that has {}; {LAYERS} are supported",
                raw.hrad_layers, model.layers
            )));
        }
        let checkpoint = Checkpoint::of_file(&file)?;
        let inputs = (LAYERS + 1) * model.hidden;
        let mut layers = Vec::new();
        let mut width = inputs;
        for (i, outputs) in WIDTHS.into_iter().enumerate() {
            let name = format!("{i}.weight");
            let matrix = checkpoint.matrix(&name, outputs, width)?;
            let bias = checkpoint.tensor(&format!("{i}.bias"), &[outputs])?;
            layers.push(Layer {
                weight: device.weight(&[matrix], checkpoint.dtype_of(&name))?,
                bias: device.vector(&bias.to_vec()),
                output: device.tensor(outputs),
            });
            width = outputs;
        }
        let last = checkpoint.tensor(&format!("{}.bias", WIDTHS.len() - 1), &[width])?;
        Ok(Hrad {
            input: device.tensor(inputs),
            layers,
            last_bias: last.to_vec(),
        })
    }

    /// The likeliest class for these features; none where one of them is not a number. The first of equals.
    pub(crate) fn forecast(&mut self, device: &D, features: Vec<f32>) -> Option<Forecast> {
        device.write(&[features], &mut self.input);
        let mut x = &self.input;
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            device.matmul(x, &layer.weight, &mut layer.output);
            if i < last {
                device.relu(&mut layer.output, &layer.bias);
            }
            x = &layer.output;
        }
        let logits: Vec<f32> = (device.row(x, 0).iter().zip(&self.last_bias))
            .map(|(x, bias)| x + bias)
            .collect();
        if !logits.iter().all(|x| x.is_finite()) {
            return None;
        }
        let mut best = 0;
        for class in 1..logits.len() {
            if logits[class] > logits[best] {
                best = class;
            }
        }
        Forecast::ALL.get(best).copied()
    }
}

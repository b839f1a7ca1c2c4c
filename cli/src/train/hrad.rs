//! The classifier of H-RAD (SpecBranch, arXiv 2506.01979, section 4.2), trained as published: dropout 0.2, at most 20 epochs,
//! batches of 32, cross-entropy. Unlike there, training ends when the loss on texts set aside for that has not fallen for some
//! epochs, and the weights of the best one are kept.
//!
//! The rows are those where the steps of `serial` end that verify a chain of `gamma` guesses of the draft in these texts. Under
//! the rule `exact` text and guesses do not depend on timing, so that the steps follow from the text and from where the draft
//! agrees with it. The label of a row is the fate of the next step's chain, the first that verifies what follows the pick.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss, ops};
use decode::sampling::NoiseKey;
use engine::CpuEngine;
use text::Tokenizer;

use super::HradArgs;
use super::collect::{self, Keep, Text};
use super::sources::{self, HeldOut};
use crate::console::{self, Progress};
use crate::models;

/// Widths behind the input.
const WIDTHS: [usize; 3] = [256, 64, 3];
/// Rows of one optimiser step.
const BATCH: usize = 32;
const RATE: f64 = 3e-4;
const DROPOUT: f32 = 0.2;
/// One in so many rows, those of the last texts, decides when training ends.
const SET_ASIDE: usize = 8;
/// Epochs without a lower loss on them, after which it does.
const PATIENCE: usize = 3;
const CLASSES: [&str; 3] = ["nothing", "some", "everything"];

/// Features and labels.
#[derive(Default)]
struct Rows {
    /// `[rows][width]`
    features: Vec<f32>,
    labels: Vec<u32>,
}

impl Rows {
    fn width(&self) -> usize {
        self.features.len() / self.labels.len().max(1)
    }

    /// Takes the rows behind the first `count` off.
    fn split_off(&mut self, count: usize) -> Rows {
        let width = self.width();
        Rows {
            features: self.features.split_off(count * width),
            labels: self.labels.split_off(count),
        }
    }

    /// Takes the rows where the steps of a text end.
    fn take(&mut self, text: &Text, agrees: &[bool], gamma: usize, target: &CpuEngine) {
        let width = text.states.len() / agrees.len().max(1);
        let mut row = 0;
        // `agrees[row]` is about the token that the row picks; the chain behind it is about the next ones.
        while let Some(chain) = agrees.get(row + 1..=row + gamma) {
            let accepted = chain.iter().take_while(|&&agrees| agrees).count();
            let states = &text.states[row * width..(row + 1) * width];
            self.features.extend_from_slice(states);
            let pick = text.tokens[text.prompt + row];
            self.features.extend(target.embedding(pick));
            self.labels.push(match accepted {
                0 => 0,
                n if n < gamma => 1,
                _ => 2,
            });
            row += accepted + 1;
        }
    }
}

/// The perceptron being trained: weight and bias of each layer.
struct Mlp {
    layers: Vec<(Var, Var)>,
}

impl Mlp {
    /// Random weights, uniform with the variance `1 / (3 inputs)` as PyTorch's linear layers begin.
    fn new(inputs: usize, seed: u64) -> Result<Mlp> {
        let mut layers = Vec::new();
        let mut width = inputs;
        for (i, outputs) in WIDTHS.into_iter().enumerate() {
            let bound = 1.0 / (width as f32).sqrt();
            let dice = |at: u32, what: u32| {
                let word = NoiseKey::new(seed, what, at).hash(0);
                ((word >> 40) as f32 / (1 << 23) as f32 - 1.0) * bound
            };
            let weight = (0..outputs * width).map(|at| dice(at as u32, 2 * i as u32));
            let weight: Vec<f32> = weight.collect();
            let weight = Tensor::from_vec(weight, (outputs, width), &Device::Cpu)?;
            let bias: Vec<f32> = (0..outputs)
                .map(|at| dice(at as u32, 2 * i as u32 + 1))
                .collect();
            let bias = Tensor::from_vec(bias, outputs, &Device::Cpu)?;
            layers.push((Var::from_tensor(&weight)?, Var::from_tensor(&bias)?));
            width = outputs;
        }
        Ok(Mlp { layers })
    }

    /// The weights as they are now.
    fn copy(&self) -> Result<Vec<(Tensor, Tensor)>> {
        let layers = self.layers.iter();
        layers
            .map(|(weight, bias)| Ok((weight.as_tensor().copy()?, bias.as_tensor().copy()?)))
            .collect()
    }

    fn put(&self, weights: &[(Tensor, Tensor)]) -> Result<()> {
        for ((weight, bias), (new_weight, new_bias)) in self.layers.iter().zip(weights) {
            weight.set(new_weight)?;
            bias.set(new_bias)?;
        }
        Ok(())
    }

    fn forward(&self, x: &Tensor, dropout: f32) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, (weight, bias)) in self.layers.iter().enumerate() {
            x = x.matmul(&weight.t()?)?.broadcast_add(bias)?;
            if i + 1 < self.layers.len() {
                x = x.relu()?;
                if dropout > 0.0 {
                    x = ops::dropout(&x, dropout)?;
                }
            }
        }
        Ok(x)
    }
}

/// Mean and deviation of each feature.
struct Scale {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Scale {
    fn of(rows: &Rows) -> Scale {
        let (width, count) = (rows.width(), rows.labels.len() as f64);
        let mut sums = vec![(0.0_f64, 0.0_f64); width];
        for row in rows.features.chunks_exact(width) {
            for ((sum, squares), &x) in sums.iter_mut().zip(row) {
                *sum += f64::from(x);
                *squares += f64::from(x) * f64::from(x);
            }
        }
        let mean = sums.iter().map(|(sum, _)| (sum / count) as f32).collect();
        let deviation = (sums.iter())
            .map(|(sum, squares)| (squares / count - (sum / count).powi(2)).max(1e-6).sqrt() as f32)
            .collect();
        Scale { mean, deviation }
    }

    fn apply(&self, rows: &mut Rows) {
        for row in rows.features.chunks_exact_mut(self.mean.len()) {
            for ((x, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *x = (*x - mean) / deviation;
            }
        }
    }
}

/// Trains, evaluates and writes the classifier.
pub(super) fn run(args: &HradArgs) -> Result<()> {
    let (mut train, mut test) = collect(args)?;
    let mut deciding = train.split_off(train.labels.len() - train.labels.len() / SET_ASIDE);
    ensure!(
        train.labels.len() >= BATCH && !deciding.labels.is_empty(),
        "too few texts: ask for more --texts"
    );
    let scale = Scale::of(&train);
    for rows in [&mut train, &mut deciding, &mut test] {
        scale.apply(rows);
    }
    let mlp = Mlp::new(train.width(), args.texts.seed)?;
    fit(&mlp, &train, &deciding, args)?;
    report(&mlp, &train, &test)?;
    save(&mlp, &scale, args)
}

fn collect(args: &HradArgs) -> Result<(Rows, Rows)> {
    let texts = &args.texts;
    let folder = |given: &Option<std::path::PathBuf>, name: &str| match given {
        Some(dir) => models::checked(dir.clone()),
        None => models::checked(models::bundled(texts.models.as_deref())?.join(name)),
    };
    let (target, draft) = (
        folder(&texts.target, "target")?,
        folder(&args.draft, "draft")?,
    );
    let tokenizer = Tokenizer::load(&target)?;
    (Tokenizer::load(&draft)?.vocabulary())
        .agrees_with(tokenizer.vocabulary())
        .context("the vocabularies of target and draft differ")?;
    let held_out = HeldOut::read(&texts.held_out, &tokenizer)?;
    let chosen = (texts.texts, texts.seed);
    let prompts = sources::prompts(&texts.sources, &held_out, chosen, &tokenizer)?;
    let options = collect::options(1024, texts.threads);
    let mut target = CpuEngine::load(&target, &options)?;
    // For embeddings, while the other one generates.
    let tokens = CpuEngine::load(&folder(&texts.target, "target")?, &options)?;
    let mut draft = CpuEngine::load(&draft, &options)?;
    let mut rows = |prompts: &[Vec<u32>], seed: u64| -> Result<Rows> {
        let mut rows = Rows::default();
        let how = (texts.tokens, seed, Keep::LastFour);
        collect::generate(&mut target, prompts, how, |texts| {
            for text in &texts {
                let agrees = collect::agreement(&mut draft, text)?;
                rows.take(text, &agrees, usize::from(args.gamma), &tokens);
            }
            Ok(())
        })?;
        Ok(rows)
    };
    let train = rows(&prompts, texts.seed)?;
    let test = rows(&held_out.prompts, texts.seed.wrapping_add(1))?;
    Ok((train, test))
}

fn batch(rows: &Rows, chosen: &[usize]) -> Result<(Tensor, Tensor)> {
    let width = rows.width();
    let features: Vec<f32> = (chosen.iter())
        .flat_map(|&row| &rows.features[row * width..(row + 1) * width])
        .copied()
        .collect();
    let labels: Vec<u32> = chosen.iter().map(|&row| rows.labels[row]).collect();
    Ok((
        Tensor::from_vec(features, (chosen.len(), width), &Device::Cpu)?,
        Tensor::from_vec(labels, chosen.len(), &Device::Cpu)?,
    ))
}

/// Shows the logits of all rows, some at a time, with their labels.
fn evaluate(
    mlp: &Mlp,
    rows: &Rows,
    mut show: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    let every: Vec<usize> = (0..rows.labels.len()).collect();
    for chosen in every.chunks(1024) {
        let (features, labels) = batch(rows, chosen)?;
        show(&mlp.forward(&features, 0.0)?, &labels)?;
    }
    Ok(())
}

/// The mean cross-entropy.
fn loss_on(mlp: &Mlp, rows: &Rows) -> Result<f64> {
    let mut sum = 0.0;
    evaluate(mlp, rows, |logits, labels| {
        let loss = loss::cross_entropy(logits, labels)?.to_scalar::<f32>()?;
        sum += f64::from(loss) * labels.elem_count() as f64;
        Ok(())
    })?;
    Ok(sum / rows.labels.len().max(1) as f64)
}

fn fit(mlp: &Mlp, rows: &Rows, deciding: &Rows, args: &HradArgs) -> Result<()> {
    let vars = mlp.layers.iter().flat_map(|(w, b)| [w.clone(), b.clone()]);
    let mut optimiser = AdamW::new(vars.collect(), ParamsAdamW::default())?;
    let steps = rows.labels.len() / BATCH;
    let total = steps * args.epochs;
    let progress = Progress::counted(total, "training");
    let mut best = (f64::INFINITY, 0, Vec::new());
    for epoch in 0..args.epochs {
        let mut order: Vec<usize> = (0..rows.labels.len()).collect();
        let seed = args.texts.seed;
        order.sort_by_key(|&row| NoiseKey::new(seed, epoch as u32, row as u32).hash(1));
        let mut sum = 0.0;
        for (step, chosen) in order.chunks_exact(BATCH).enumerate() {
            let done = (epoch * steps + step) as f64 / total as f64;
            optimiser.set_learning_rate(RATE * (1.0 - 0.95 * done));
            let (features, labels) = batch(rows, chosen)?;
            let loss = loss::cross_entropy(&mlp.forward(&features, DROPOUT)?, &labels)?;
            optimiser.backward_step(&loss)?;
            sum += f64::from(loss.to_scalar::<f32>()?);
            progress.step();
        }
        let aside = loss_on(mlp, deciding)?;
        progress.say(&format!(
            "epoch {}: loss {:.4}, {aside:.4} on texts set aside",
            epoch + 1,
            sum / steps as f64
        ));
        if aside < best.0 {
            best = (aside, epoch, mlp.copy()?);
        } else if epoch - best.1 >= PATIENCE {
            break;
        }
    }
    progress.clear();
    ensure!(
        !best.2.is_empty(),
        "the loss was never a number: the texts or the models are at fault"
    );
    mlp.put(&best.2)
}

/// Accuracy by class on the held-out rows, beside what always saying the commonest class gives.
fn report(mlp: &Mlp, train: &Rows, test: &Rows) -> Result<()> {
    // [label][class]
    let mut confused = [[0_usize; 3]; 3];
    evaluate(mlp, test, |logits, labels| {
        let classes = logits.argmax(1)?.to_vec1::<u32>()?;
        for (label, class) in labels.to_vec1::<u32>()?.into_iter().zip(classes) {
            confused[label as usize][class as usize] += 1;
        }
        Ok(())
    })?;
    let mut common = [0_usize; 3];
    for &label in &train.labels {
        common[label as usize] += 1;
    }
    let majority = (0..3).max_by_key(|&class| common[class]).unwrap_or(0);
    let total = test.labels.len().max(1) as f64;
    let right: usize = (0..3).map(|class| confused[class][class]).sum();
    let baseline: usize = confused[majority].iter().sum();
    let mut page = format!(
        "{} rows for training, {} held out\n\naccuracy {:.3}; always \"{}\": {:.3}\n\n\
         | class | share | found (recall) | right when said (precision) |\n| --- | --- | --- | --- |\n",
        train.labels.len(),
        test.labels.len(),
        right as f64 / total,
        CLASSES[majority],
        baseline as f64 / total,
    );
    for (class, name) in CLASSES.iter().enumerate() {
        let of_class: usize = confused[class].iter().sum();
        let said: usize = confused.iter().map(|row| row[class]).sum();
        let share = |n: usize, of: usize| n as f64 / of.max(1) as f64;
        page += &format!(
            "| {name} | {:.3} | {:.3} | {:.3} |\n",
            of_class as f64 / total,
            share(confused[class][class], of_class),
            share(confused[class][class], said),
        );
    }
    console::put(&page)?;
    Ok(())
}

/// Writes the weights for features as they are: the first layer does the scaling.
fn save(mlp: &Mlp, scale: &Scale, args: &HradArgs) -> Result<()> {
    let out = &args.texts.out;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut tensors = HashMap::new();
    for (i, (weight, bias)) in mlp.layers.iter().enumerate() {
        let (mut weight, mut bias) = (weight.as_tensor().clone(), bias.as_tensor().clone());
        if i == 0 {
            let width = scale.mean.len();
            let mean = Tensor::from_slice(&scale.mean, (width, 1), &Device::Cpu)?;
            let deviation = Tensor::from_slice(&scale.deviation, (1, width), &Device::Cpu)?;
            weight = weight.broadcast_div(&deviation)?;
            bias = (bias - weight.matmul(&mean)?.squeeze(1)?)?;
        }
        tensors.insert(format!("{i}.weight"), weight.to_dtype(DType::F16)?);
        tensors.insert(format!("{i}.bias"), bias.to_dtype(DType::F32)?);
    }
    candle_core::safetensors::save(&tensors, out.join("hrad.safetensors"))?;
    let config = serde_json::json!({ "hrad_layers": 4, "gamma": args.gamma });
    let config = serde_json::to_string_pretty(&config)? + "\n";
    fs::write(out.join("config.json"), config)?;
    console::say(&format!("wrote {}", out.display()));
    Ok(())
}

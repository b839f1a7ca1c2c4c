//! Medusa heads (arXiv 2401.10774, "Medusa-1": the model itself stays as it is), residual blocks in front of the target's own
//! head, trained by cross-entropy on what the target generates.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss};
use decode::sampling::NoiseKey;
use engine::CpuEngine;
use text::Tokenizer;

use super::collect::{self, Keep, Text};
use super::sources::{self, HeldOut};
use super::{HeadsArgs, TextArgs};
use crate::console::{self, Progress};
use crate::models;

/// Rows of one optimiser step.
const BATCH: usize = 512;
/// The learning rate rises to this one and falls to a twentieth of it.
const RATE: f64 = 1e-3;
/// How many of a head's tokens are looked at.
const TOP: [usize; 3] = [1, 4, 8];

/// Hidden states, and the tokens that follow: the heads' tasks.
struct Rows {
    /// `[rows][hidden]`
    states: Vec<f32>,
    /// `[rows][heads]`
    labels: Vec<u32>,
    count: usize,
}

impl Rows {
    /// Takes the rows of a text for which all heads have a token to predict.
    fn take(&mut self, text: &Text, hidden: usize, heads: usize) {
        let generated = &text.tokens[text.prompt..];
        for (row, state) in text.states.chunks_exact(hidden).enumerate() {
            // The model itself predicts `generated[row]`.
            if let Some(labels) = generated.get(row + 1..=row + heads) {
                self.states.extend_from_slice(state);
                self.labels.extend_from_slice(labels);
                self.count += 1;
            }
        }
    }
}

/// One head being trained.
struct Head {
    /// `[hidden][hidden]` and `[hidden]` of each block.
    blocks: Vec<(Var, Var)>,
}

impl Head {
    fn new(hidden: usize, layers: usize) -> Result<Head> {
        let device = &Device::Cpu;
        let block = || -> Result<_> {
            let weight = Var::zeros((hidden, hidden), DType::F32, device)?;
            Ok((weight, Var::zeros(hidden, DType::F32, device)?))
        };
        Ok(Head {
            blocks: (0..layers).map(|_| block()).collect::<Result<_>>()?,
        })
    }

    /// Logits `[rows][vocab]` from states `[rows][hidden]`; `output` is the model's head, transposed.
    fn forward(&self, states: &Tensor, output: &Tensor) -> Result<Tensor> {
        let mut x = states.clone();
        for (weight, bias) in &self.blocks {
            let inner = x.matmul(&weight.t()?)?.broadcast_add(bias)?;
            x = (x + inner.silu()?)?;
        }
        Ok(x.matmul(output)?)
    }
}

/// Trains, evaluates and writes the heads.
pub(super) fn run(args: &HeadsArgs) -> Result<()> {
    let (heads, layers) = (usize::from(args.heads), usize::from(args.layers));
    let texts = &args.texts;
    let (train, test, output) = collect(texts, heads)?;
    let hidden = output.dims()[0];
    ensure!(train.count >= BATCH, "too few texts: ask for more --texts");
    let trained: Vec<Head> = (0..heads)
        .map(|_| Head::new(hidden, layers))
        .collect::<Result<_>>()?;
    fit(&trained, &train, &output, args)?;
    report(&trained, &train, &test, &output)?;
    save(&trained, args)
}

/// The rows for training and for evaluation, and the model's head, transposed.
fn collect(args: &TextArgs, heads: usize) -> Result<(Rows, Rows, Tensor)> {
    let dir = match &args.target {
        Some(dir) => models::checked(dir.clone())?,
        None => models::checked(models::bundled(args.models.as_deref())?.join("target"))?,
    };
    let tokenizer = Tokenizer::load(&dir)?;
    let held_out = HeldOut::read(&args.held_out, &tokenizer)?;
    let chosen = (args.texts, args.seed);
    let prompts = sources::prompts(&args.sources, &held_out, chosen, &tokenizer)?;
    let mut engine = CpuEngine::load(&dir, &collect::options(1024, args.threads))?;
    let (hidden, vocab) = (engine.config().hidden, engine.config().vocab_size as u32);
    let rows = |engine: &mut CpuEngine, prompts: &[Vec<u32>], seed: u64| -> Result<Rows> {
        let mut rows = Rows {
            states: Vec::new(),
            labels: Vec::new(),
            count: 0,
        };
        collect::generate(engine, prompts, (args.tokens, seed, Keep::Last), |texts| {
            texts.iter().for_each(|text| rows.take(text, hidden, heads));
            Ok(())
        })?;
        Ok(rows)
    };
    let train = rows(&mut engine, &prompts, args.seed)?;
    let test = rows(&mut engine, &held_out.prompts, args.seed.wrapping_add(1))?;
    let output: Vec<f32> = (0..vocab)
        .flat_map(|token| engine.output_row(token))
        .collect();
    let output = Tensor::from_vec(output, (vocab as usize, hidden), &Device::Cpu)?;
    Ok((train, test, output.t()?.contiguous()?))
}

/// The rows with these numbers as tensors: states `[rows][hidden]`, and labels `[rows]` for each head.
fn batch(rows: &Rows, chosen: &[usize], heads: usize) -> Result<(Tensor, Vec<Tensor>)> {
    let hidden = rows.states.len() / rows.count;
    let states: Vec<f32> = (chosen.iter())
        .flat_map(|&row| &rows.states[row * hidden..(row + 1) * hidden])
        .copied()
        .collect();
    let labels = (0..heads).map(|head| {
        let of_head: Vec<u32> = (chosen.iter())
            .map(|&row| rows.labels[row * heads + head])
            .collect();
        Ok(Tensor::from_vec(of_head, chosen.len(), &Device::Cpu)?)
    });
    let labels = labels.collect::<Result<_>>()?;
    let states = Tensor::from_vec(states, (chosen.len(), hidden), &Device::Cpu)?;
    Ok((states, labels))
}

fn fit(trained: &[Head], rows: &Rows, output: &Tensor, args: &HeadsArgs) -> Result<()> {
    let vars = trained.iter().flat_map(|head| &head.blocks);
    let vars = vars.flat_map(|(w, b)| [w.clone(), b.clone()]).collect();
    let mut optimiser = AdamW::new(vars, ParamsAdamW::default())?;
    let steps = rows.count / BATCH;
    let total = steps * args.epochs;
    let progress = Progress::counted(total, "training");
    for epoch in 0..args.epochs {
        let mut order: Vec<usize> = (0..rows.count).collect();
        let dice = |row: usize| NoiseKey::new(args.texts.seed, epoch as u32, row as u32).hash(0);
        order.sort_by_key(|&row| dice(row));
        let mut sum = 0.0;
        for (step, chosen) in order.chunks_exact(BATCH).enumerate() {
            let done = (epoch * steps + step) as f64 / total as f64;
            optimiser.set_learning_rate(RATE * (done * 20.0).min(1.0) * (1.0 - 0.95 * done));
            let (states, labels) = batch(rows, chosen, trained.len())?;
            let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            for (head, labels) in trained.iter().zip(&labels) {
                let loss = loss::cross_entropy(&head.forward(&states, output)?, labels)?;
                total = (total + loss)?;
            }
            optimiser.backward_step(&total)?;
            sum += f64::from(total.to_scalar::<f32>()?) / trained.len() as f64;
            progress.step();
        }
        progress.say(&format!(
            "epoch {}: {:.3} nats per token",
            epoch + 1,
            sum / steps as f64
        ));
    }
    progress.clear();
    Ok(())
}

/// The share of held-out rows at which the token is among a head's strongest.
fn report(trained: &[Head], train: &Rows, test: &Rows, output: &Tensor) -> Result<()> {
    let mut among = vec![[0_usize; TOP.len()]; trained.len()];
    let every: Vec<usize> = (0..test.count).collect();
    for chosen in every.chunks(BATCH) {
        let (states, labels) = batch(test, chosen, trained.len())?;
        for ((head, labels), among) in trained.iter().zip(&labels).zip(&mut among) {
            let logits = head.forward(&states, output)?;
            let own = logits.gather(&labels.unsqueeze(1)?, 1)?;
            let better = logits.broadcast_gt(&own)?.to_dtype(DType::U32)?;
            for rank in better.sum(1)?.to_vec1::<u32>()? {
                for (among, top) in among.iter_mut().zip(TOP) {
                    *among += usize::from((rank as usize) < top);
                }
            }
        }
    }
    console::put(&format!(
        "{} rows for training, {} held out\n\n| head | among its first 1 | 4 | 8 |\n| --- | --- | --- | --- |\n",
        train.count, test.count
    ))?;
    for (head, among) in among.iter().enumerate() {
        let share = among.map(|n| format!("{:.3}", n as f64 / test.count.max(1) as f64));
        console::put(&format!("| {} | {} |\n", head + 1, share.join(" | ")))?;
    }
    Ok(())
}

fn save(trained: &[Head], args: &HeadsArgs) -> Result<()> {
    let out = &args.texts.out;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut tensors = HashMap::new();
    for (i, head) in trained.iter().enumerate() {
        for (j, (weight, bias)) in head.blocks.iter().enumerate() {
            let half = |tensor: &Tensor| tensor.to_dtype(DType::F16);
            tensors.insert(format!("{i}.{j}.linear.weight"), half(weight)?);
            tensors.insert(format!("{i}.{j}.linear.bias"), half(bias)?);
        }
    }
    candle_core::safetensors::save(&tensors, out.join("medusa_lm_head.safetensors"))?;
    let config = serde_json::json!({
        "medusa_num_heads": args.heads,
        "medusa_num_layers": args.layers,
        "shares_lm_head": true,
    });
    let config = serde_json::to_string_pretty(&config)? + "\n";
    fs::write(out.join("config.json"), config)?;
    console::say(&format!("wrote {}", out.display()));
    Ok(())
}

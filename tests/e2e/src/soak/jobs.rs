//! Random requests, and the completions that plain decoding gives them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use proto::v1::{GenerateRequest, LogprobsMode};

use super::dice::Dice;
use crate::client::{Client, Completion, request};
use crate::cluster::{Cluster, Shape};
use crate::{REFERENCE, prompts};

/// Text that is no Rust: characters of several bytes, some of them in several tokens.
const UNUSUAL: &str = "let größe = \"日本語 🦀\"; // ¿qué? \u{200d}\u{301}\nfn ";
/// Bytes of the longest prompts. The bundled models have room for 1024 tokens.
const LONG: usize = 1500;
/// Histories that are shared.
const HISTORIES: usize = 4;

/// A request and its completions, by choice.
#[derive(Clone, Debug)]
pub struct Job {
    /// Without a strategy.
    pub request: GenerateRequest,
    /// What plain decoding gave.
    pub expected: BTreeMap<u32, Completion>,
}

/// The requests of a run.
#[derive(Clone, Debug)]
pub struct Jobs {
    /// Of all kinds.
    pub mixed: Arc<Vec<Job>>,
    /// With more to say than a connection holds unread.
    pub large: Arc<Vec<Job>>,
    /// Short ones with one completion, to measure by.
    pub probes: Arc<Vec<Job>>,
}

impl Jobs {
    /// Draws `count` requests and decodes them with plain decoding, on an undisturbed cluster of one target.
    ///
    /// # Errors
    /// When that cluster does not work.
    pub async fn new(count: usize, seed: u64) -> anyhow::Result<Jobs> {
        let shape = Shape {
            drafts: 0,
            qualifiers: 0,
            target_pace: 0,
        };
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(shape)).await??;
        let client = Client::connect(&cluster.coordinator.addr, 1).await?;
        let mut dice = Dice::new(seed);
        let prompts = prompts(64)?;
        let mut mixed = Vec::new();
        for _ in 0..count {
            mixed.push(decode(&client, drawn(&mut dice, &prompts)).await?);
        }
        let mut large = Vec::new();
        for prompt in &prompts[..2] {
            let asked = GenerateRequest {
                n: 4,
                logprobs: Some(20),
                ignore_eos: true,
                ..request(prompt, 400, 0.8, "")
            };
            large.push(decode(&client, asked).await?);
        }
        let mut probes = Vec::new();
        for prompt in &prompts[..4] {
            let asked = GenerateRequest {
                ignore_eos: true,
                ..request(prompt, 64, 0.0, "")
            };
            probes.push(decode(&client, asked).await?);
        }
        Ok(Jobs {
            mixed: Arc::new(mixed),
            large: Arc::new(large),
            probes: Arc::new(probes),
        })
    }
}

async fn decode(client: &Client, request: GenerateRequest) -> anyhow::Result<Job> {
    let asked = GenerateRequest {
        strategy: REFERENCE.to_owned(),
        history: String::new(),
        ..request.clone()
    };
    let expected = client.generate_all(asked).await;
    let expected = expected.with_context(|| format!("plain decoding of {request:?}"))?;
    anyhow::ensure!(expected.len() == request.n.max(1) as usize);
    Ok(Job { request, expected })
}

/// A random request.
fn drawn(dice: &mut Dice, prompts: &[String]) -> GenerateRequest {
    let prompt = match dice.below(10) {
        0 => UNUSUAL.to_owned(),
        1 => "f".to_owned(),
        2 | 3 => {
            let mut long = String::new();
            while long.len() < LONG {
                long += &prompts[dice.below(prompts.len())];
            }
            long
        }
        _ => prompts[dice.below(prompts.len())].clone(),
    };
    let tokens = dice.pick(&[1, 8, 40, 40, 80, 120, 200]);
    let temperature = dice.pick(&[0.0, 0.0, 0.4, 0.8, 1.2]);
    let mut asked = request(&prompt, tokens, temperature, "");
    asked.seed = Some(dice.bits());
    asked.ignore_eos = dice.once_in(2);
    asked.priority = dice.between(0, 2) as i32 - 1;
    if dice.once_in(4) {
        (asked.top_k, asked.top_p, asked.min_p) = (40, Some(0.95), 0.01);
    }
    if dice.once_in(6) {
        asked.repetition_penalty = Some(1.2);
        (asked.presence_penalty, asked.frequency_penalty) = (0.3, 0.2);
    }
    if dice.once_in(6) {
        (asked.bias_ids, asked.bias_values) = (vec![10, 300], vec![-2.0, 1.5]);
    }
    if dice.once_in(4) {
        asked.stop = vec!["}\n".to_owned(), " = ".to_owned()];
        asked.include_stop = dice.once_in(2);
        asked.min_tokens = dice.between(0, 9) as u32;
    }
    if dice.once_in(4) {
        asked.logprobs = Some(dice.between(0, 5) as u32);
        if dice.once_in(2) {
            asked.logprobs_mode = LogprobsMode::Processed.into();
        }
    }
    if dice.once_in(10) {
        asked.prompt_logprobs = Some(2);
    }
    asked.n = dice.pick(&[0, 0, 0, 0, 0, 0, 2, 4]);
    if dice.once_in(6) {
        asked.history = format!("soak {}", dice.below(HISTORIES));
    }
    asked
}

//! Requests that are traced, once everything is measured: what each worker did, and who had guessed which token.

use std::fmt::Write;

use anyhow::{Context, Result};
use runtime::TraceContext;
use speculation::duty::Role;
use text::{Special, Tokenizer};
use tonic::metadata::MetadataMap;

use super::contender::Contender;
use super::measure::{Rig, seed};
use crate::cluster::ClusterPlan;
use crate::page::{Guesser, Piece, Story};
use crate::trace::{Collector, Timeline, guessers};

/// The beginning of a prompt that is not shown, if it is longer than that.
const PROMPT: usize = 600;

/// A traced request of a contender.
pub(crate) struct Sent {
    contender: usize,
    prompt: usize,
    trace: String,
    token_ids: Vec<u32>,
}

/// Sends the first `prompts` prompts once more for each contender, traced.
///
/// # Errors
/// When a request fails.
pub(crate) async fn send(rig: &Rig, contenders: &[Contender], prompts: usize) -> Result<Vec<Sent>> {
    let mut sent = Vec::new();
    for prompt in 0..prompts.min(rig.prompts.len()) {
        for (index, contender) in contenders.iter().enumerate() {
            let trace = trace_id(index, prompt);
            let mut client = rig.client.clone().traced(context(&trace)?);
            let request = rig.request(contender, prompt);
            let completion = (client.generate(request, |_| Ok(())).await)
                .with_context(|| format!("prompt {} by {contender}, traced", prompt + 1))?;
            rig.progress.step();
            sent.push(Sent {
                contender: index,
                prompt,
                trace,
                token_ids: completion.token_ids,
            });
        }
    }
    Ok(sent)
}

/// An id for each request of this process; nobody else sends any to its cluster.
fn trace_id(contender: usize, prompt: usize) -> String {
    let high = seed(contender as u64, prompt) | 1;
    let low = seed(u64::from(std::process::id()), contender) | 1;
    format!("{high:016x}{low:016x}")
}

fn context(trace: &str) -> Result<TraceContext> {
    let mut metadata = MetadataMap::new();
    let parent = format!("00-{trace}-{}-01", &trace[..16]);
    metadata.insert("traceparent", parent.parse().context("a trace id")?);
    Ok(TraceContext::from_metadata(&metadata))
}

/// What the collector has received of the requests, by contender, prompts in their order. The first request of a contender
/// comes with its text.
///
/// # Errors
/// When spans are missing, or the tokenizer cannot be read.
pub(crate) fn stories(
    sent: &[Sent],
    collector: &Collector,
    rig: &Rig,
    plan: &ClusterPlan,
    contenders: &[Contender],
) -> Result<Vec<Story>> {
    let tokenizer = Tokenizer::load(&plan.target)?;
    let mut stories: Vec<Story> = (contenders.iter())
        .map(|contender| Story::new(contender.to_string()))
        .collect();
    for one in sent {
        let timeline = collector.timeline(&one.trace)?;
        let story = &mut stories[one.contender];
        let prompt = &rig.prompts[one.prompt];
        let prompt_ids = tokenizer.encode(prompt, Special::Add)?;
        let guessed = guessed(&timeline, prompt_ids.len(), one.token_ids.len());
        if story.timelines.is_empty() {
            story.prompt = tail(prompt);
            let texts = pieces(&tokenizer, &prompt_ids, &one.token_ids)?;
            story.pieces = (texts.into_iter().zip(&guessed))
                .map(|(text, &guesser)| Piece { text, guesser })
                .collect();
        }
        story.guessers.extend(guessed);
        story.timelines.push(timeline);
    }
    Ok(stories)
}

/// Who had guessed each of the tokens behind a prompt.
fn guessed(timeline: &Timeline, prompt: usize, tokens: usize) -> Vec<Guesser> {
    let targets = (timeline.tracks.iter()).filter(|track| track.role() == Role::Target.name());
    let mut known = std::collections::BTreeMap::new();
    for track in targets {
        known.extend(guessers(track));
    }
    (prompt..prompt + tokens)
        .map(|position| {
            let name = known.get(&(position as u64));
            name.map_or(Guesser::Unknown, |name| Guesser::of(name))
        })
        .collect()
}

/// The text of each token. One that ends in the middle of a character has none, and the one that completes it has it all.
fn pieces(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> Result<Vec<String>> {
    let mut stream = tokenizer.stream();
    for &id in prompt {
        stream.push(id)?;
    }
    let mut texts = (ids.iter())
        .map(|&id| stream.push(id))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(last) = texts.last_mut() {
        let _ = write!(last, "{}", stream.finish());
    }
    Ok(texts)
}

/// The end of a prompt.
fn tail(prompt: &str) -> String {
    let skipped = prompt.chars().count().saturating_sub(PROMPT);
    match skipped {
        0 => prompt.to_owned(),
        _ => format!("… {}", prompt.chars().skip(skipped).collect::<String>()),
    }
}

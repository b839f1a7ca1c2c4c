//! A draft worker without a model: its guesses come from a [`Proposer`].
//!
//! For rules, lookups of one's own, and drafts that give a whole block at once. It is a worker like any other: it says hello,
//! opens sessions, follows their texts, and its guesses count under their own source.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use decode::Proposer;
use engine::{Backend, Computer, EngineOptions, Maker, PAGE, Proposing, ProposingSpec};
use speculation::duty::{Duties, Duty, Role, Source};
use speculation::message::WorkerInfo;
use text::Tokenizer;

use crate::metrics::WorkerMetrics;
use crate::model::{Loaded, MAX_ROWS, ModelError};
use crate::step_times::Pace;
use crate::watchdog::StepClock;

/// What a proposing worker is.
#[derive(Clone, Debug)]
pub struct ProposingArgs {
    /// Names it in the handshake and in reports.
    pub name: String,
    /// Folder with the tokenizer.json of the target, or the file itself.
    pub tokenizer: PathBuf,
    /// What its guesses count as.
    pub source: Source,
    /// The longest text.
    pub max_context: u32,
    /// Sessions served at the same time.
    pub max_sessions: u16,
    /// Nodes of one session's tree.
    pub tree_rows: u16,
}

/// Prepares a worker that asks the proposers that `make` makes, one for each text.
///
/// # Errors
/// When the tokenizer cannot be read, a size cannot be served, or a proposer asks for hidden states of the target.
pub fn load<P>(
    args: &ProposingArgs,
    mut make: impl FnMut() -> P + Send + 'static,
) -> Result<Loaded, ModelError>
where
    P: Proposer + Send + 'static,
{
    let taps = make().taps();
    if taps.layers > 0 {
        return Err(ModelError::Taps {
            name: args.name.clone(),
            layers: taps.layers,
        });
    }
    let tokenizer = Tokenizer::load(&args.tokenizer)?;
    let vocabulary = tokenizer.vocabulary();
    let vocab = vocabulary.len() as u32;
    let sessions = usize::from(args.max_sessions);
    let max_positions = args.max_context as usize;
    let options = EngineOptions {
        vocab: Some(vocab),
        kv_pages: max_positions.div_ceil(PAGE) * sessions,
        max_sequences: sessions,
        scratch_rows: args.tree_rows,
        max_rows: MAX_ROWS,
        ..EngineOptions::default()
    };
    let make: Maker = Box::new(move || Box::new(make()));
    let spec = ProposingSpec {
        name: args.name.clone(),
        vocab,
        max_positions,
        make,
    };
    let backend = Proposing::new(spec, &options)?;
    let info = WorkerInfo {
        role: Role::Draft,
        duties: Duties::of(Duty::Propose),
        model: args.name.clone(),
        numerics_id: backend.facts().numerics_id.clone(),
        vocabulary_hash: vocabulary.hash().to_owned(),
        vocabulary_len: vocab,
        max_context: args.max_context,
        max_sessions: args.max_sessions.into(),
        eos_ids: Vec::new(),
        kv_positions: (options.kv_pages * PAGE) as u32,
        kv_page: PAGE as u32,
        // Its steps are too short to be in anybody's way.
        device: String::new(),
    };
    Ok(Loaded {
        backend: Box::new(backend),
        tree_rows: args.tree_rows,
        history_tokens: 0,
        source: args.source,
        pace: Pace::Floor(Duration::ZERO),
        pin: None,
        nice: 0,
        prompt_stretch: 2.0,
        computer: Computer::Cpu.describe(),
        info,
        metrics: WorkerMetrics::default(),
        clock: Arc::new(StepClock::new()),
    })
}

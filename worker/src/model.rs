//! Loading a model for a worker: its flags, its sizes, and what the handshake says about it.
//!
//! A model may be synthetic: then its answers are drawn from a profile ([`engine::synthetic`]), and its name and its
//! `numerics_id` begin with `synthetic-`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::synthetic::{Member, Overlay, Profile, ProfileError, Spec, Synthetic};
use engine::{
    Backend, Beside, Computer, Cuda, DeviceName, EngineOptions, LoadError, ModelConfig, PAGE,
    WeightDtype,
};
use speculation::duty::{Duties, Duty, Role, Source};
use speculation::message::WorkerInfo;
use text::{TextError, Tokenizer};

use crate::loading;
use crate::metrics::WorkerMetrics;
use crate::step_times::{MOST_MS, Pace, StepTimes};
use crate::watchdog::StepClock;

/// Flags about the model, the same for every role.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// Hugging Face checkpoint directory (config.json, safetensors, tokenizer.json), a GGUF file, or hf://owner/name[:file] of
    /// a hub.
    #[arg(
        long,
        env = "OFFSHOOT_MODEL",
        value_name = "DIR | FILE.gguf | hf://..."
    )]
    pub model: PathBuf,
    /// What the model computes on: cpu, cuda:N for an NVIDIA GPU by its number, or auto for the first GPU that can be used for
    /// the model, else the CPU.
    #[arg(
        long,
        env = "OFFSHOOT_DEVICE",
        default_value = "cpu",
        value_name = "cpu|cuda:N|auto"
    )]
    pub device: DeviceName,
    /// Threads of one model step.
    #[arg(long, env = "OFFSHOOT_THREADS", default_value = "1", value_name = "N")]
    pub threads: NonZeroUsize,
    /// Pin the model thread to this CPU.
    #[arg(long, env = "OFFSHOOT_PIN", value_name = "CPU")]
    pub pin: Option<usize>,
    /// Lower the priority of the model thread by this much, 19 at most. For a draft or qualifier on the processors of a
    /// target.
    #[arg(long, env = "OFFSHOOT_NICE", default_value = "0", value_name = "N", value_parser = clap::value_parser!(i32).range(0..=19))]
    pub nice: i32,
    /// Pad every step to this many milliseconds, to stand in for a larger model. Figures become *paced*.
    #[arg(long, env = "OFFSHOOT_PACE", default_value = "0", value_name = "MS", value_parser = milliseconds)]
    pub pace: Duration,
    /// Make steps last as long as a table says, by rows: milliseconds, or ROWS:MS,ROWS:MS,... for straight lines between
    /// those. For the worker that is also what rows cost.
    #[arg(
        long,
        env = "OFFSHOOT_STEP_MS",
        value_name = "TABLE",
        conflicts_with = "pace"
    )]
    pub step_ms: Option<StepTimes>,
    /// Draw answers from this profile instead of computing them. Of --model only config.json and tokenizer.json are read, no
    /// weights. Reports name the model synthetic.
    #[arg(
        long,
        env = "OFFSHOOT_SYNTHETIC",
        value_name = "PROFILE",
        conflicts_with = "overlay"
    )]
    pub synthetic: Option<PathBuf>,
    /// Run every step of the model, but draw its answers from this profile. Reports name the model synthetic.
    #[arg(long, env = "OFFSHOOT_OVERLAY", value_name = "PROFILE")]
    pub overlay: Option<PathBuf>,
    /// Of a worker that commits: a folder of Medusa heads beside its model, which guess tokens, or none. Default: the folder
    /// heads of the model, if there is one.
    #[arg(long, env = "OFFSHOOT_HEADS", value_name = "DIR | none")]
    pub heads: Option<PathBuf>,
    /// Of a worker that commits: a folder of an H-RAD classifier, which forecasts how guesses will do, or none. Default: the
    /// folder hrad of the model, if there is one.
    #[arg(long, env = "OFFSHOOT_HRAD", value_name = "DIR | none")]
    pub hrad: Option<PathBuf>,
    /// Data type of the weights in memory; as in the checkpoint if not given.
    #[arg(long, env = "OFFSHOOT_DTYPE", value_name = "f32|bf16|q8_0|q4_0", value_parser = dtype)]
    pub dtype: Option<WeightDtype>,
    /// Sessions served at the same time.
    #[arg(long, env = "OFFSHOOT_MAX_NUM_SEQS", default_value_t = 16, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub max_num_seqs: u16,
    /// Memory for the key/value cache [default: 1024, or what the rest of the model leaves of --gpu-memory-utilization]
    #[arg(long, env = "OFFSHOOT_KV_MIB", value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_mib: Option<u32>,
    /// Of a worker on a GPU: the share of the GPU's memory that it may take, for example 0.45 for each of two workers. The
    /// key/value cache gets what the weights and activations leave, or --kv-mib if that is less.
    #[arg(long, env = "OFFSHOOT_GPU_MEMORY_UTILIZATION", value_name = "SHARE", value_parser = share)]
    pub gpu_memory_utilization: Option<f64>,
    /// How many times as long as one of plain decoding a step of several texts may take, for prompts that are computed
    /// beside them and for guesses. A higher value shortens the time to the first token of new requests, at the cost of the
    /// others.
    #[arg(long, env = "OFFSHOOT_PROMPT_STRETCH", default_value = "2", value_name = "X", value_parser = stretch)]
    pub prompt_stretch: f64,
}

/// Parses a share of a GPU's memory, above 0 and up to 1.
///
/// # Errors
/// One line that says what it has to be.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!("{text:?} is not a share above 0 and up to 1")),
    }
}

fn stretch(text: &str) -> Result<f64, String> {
    let times: f64 = (text.parse()).map_err(|_| format!("{text:?} is not a number"))?;
    if !(1.0..=1000.0).contains(&times) {
        return Err(format!("{times} is not within 1..=1000"));
    }
    Ok(times)
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let ms: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of milliseconds"))?;
    if !(0.0..=MOST_MS).contains(&ms) {
        return Err(format!("{ms} ms is not within 0..={MOST_MS}"));
    }
    Ok(Duration::from_secs_f64(ms / 1000.0))
}

fn dtype(text: &str) -> Result<WeightDtype, String> {
    let found = WeightDtype::NAMES.iter().find(|(name, _)| *name == text);
    found.map(|(_, dtype)| *dtype).ok_or_else(|| {
        let names = WeightDtype::NAMES.map(|(name, _)| name).join(", ");
        format!("{text:?} is not a weight type; use one of {names}")
    })
}

/// A model that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The weights or the configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The profile of a synthetic model.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// More tokens than logits.
    #[error(
        "the tokenizer has {tokens} tokens, but the model has only {logits} logits; is this the model's own tokenizer.json?"
    )]
    Vocabulary {
        /// Tokens in the tokenizer.
        tokens: usize,
        /// Logits of the model.
        logits: usize,
    },
    /// Hidden states that nobody sends.
    #[error(
        "{name} asks for hidden states of {layers} layers of the target, which do not cross the network"
    )]
    Taps {
        /// Who asks.
        name: String,
        /// For how many layers.
        layers: u16,
    },
}

/// What a worker is used for and what it does for sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Announced in the handshake, and the label of logs, metrics and spans.
    pub role: Role,
    /// What a session may be opened for.
    pub duties: Duties,
    /// Tree rows that the cache holds for one session.
    pub tree_rows: u16,
    /// Tokens of completed texts that are kept for requests that share them, at most; 0: none is kept.
    pub history_tokens: usize,
}

/// A loaded model with the sizes of its worker.
pub struct Loaded {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) tree_rows: u16,
    pub(crate) history_tokens: usize,
    /// What its proposals count as.
    pub(crate) source: Source,
    pub(crate) pace: Pace,
    pub(crate) pin: Option<usize>,
    /// By how much the priority of the model thread is lower than that of others.
    pub(crate) nice: i32,
    /// How many times as long as one of plain decoding a step of several texts may last.
    pub(crate) prompt_stretch: f64,
    /// What the model computes on, for the log.
    pub(crate) computer: String,
    /// For the handshake.
    pub info: WorkerInfo,
    /// Counted by the model thread; the process exports a clone.
    pub metrics: WorkerMetrics,
    /// Written by the model thread; the process checks a clone.
    pub(crate) clock: Arc<StepClock>,
}

/// The most pages that are wanted where memory decides how many there are.
const MOST_PAGES: usize = 1 << 26;
/// Memory for the key/value cache that is reserved if nothing else is asked for.
const KV_MIB: u32 = 1024;

/// Rows of one step, all sessions together; longer prompts are prefilled in chunks.
pub(crate) const MAX_ROWS: usize = 256;

fn positions(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Reads everything a worker needs. Slow: call it off the async threads.
///
/// # Errors
/// When the model or its tokenizer cannot be read, or do not belong together.
pub fn load(args: &ModelArgs, offer: &Offer) -> Result<Loaded, ModelError> {
    let candidates = args.device.candidates();
    for (gpu, next) in candidates.iter().zip(&candidates[1..]) {
        let computer = Computer::open(*gpu).map_err(ModelError::from);
        match computer.and_then(|computer| load_on(&computer, args, offer)) {
            // Of several, the next one may serve the model.
            Err(ModelError::Load(error @ LoadError::Device { .. })) => {
                let next = next.map_or(DeviceName::Cpu, DeviceName::Cuda);
                // A GPU that is there and is not used will be missed.
                if Cuda::count().is_ok_and(|count| count > 0) {
                    tracing::warn!("{error}; trying {next}");
                } else {
                    tracing::info!("{error}; trying {next}");
                }
            }
            loaded => return loaded,
        }
    }
    let last = candidates.last().copied().flatten();
    load_on(&Computer::open(last)?, args, offer)
}

fn load_on(computer: &Computer, args: &ModelArgs, offer: &Offer) -> Result<Loaded, ModelError> {
    let config = ModelConfig::read(&args.model)?;
    let vocabulary = text::vocabulary(&args.model)?;
    if vocabulary.len() > config.vocab_size {
        return Err(ModelError::Vocabulary {
            tokens: vocabulary.len(),
            logits: config.vocab_size,
        });
    }
    let vocabulary_len = vocabulary.len() as u32;
    let vocabulary_hash = vocabulary.hash().to_owned();
    drop(vocabulary);
    let gpu_memory = match computer {
        // Answers that are drawn take no memory of a GPU.
        Computer::Cuda(_) if args.synthetic.is_none() => args.gpu_memory_utilization,
        _ if args.gpu_memory_utilization.is_some() => {
            tracing::warn!(
                "--gpu-memory-utilization is for models on a GPU; this one has --kv-mib"
            );
            None
        }
        _ => None,
    };
    let position_bytes =
        config.layers * 2 * config.kv_heads * config.head_dim * computer.cache_bytes();
    let page_bytes = position_bytes * PAGE;
    let sessions = usize::from(args.max_num_seqs);
    let wanted = config.max_positions.div_ceil(PAGE) * sessions;
    let kv_pages = match (args.kv_mib, gpu_memory) {
        (None, Some(_)) => wanted.min(MOST_PAGES),
        (mib, _) => {
            let budget = mib.unwrap_or(KV_MIB) as usize * (1 << 20) / page_bytes.max(1);
            wanted.min(budget.max(1))
        }
    };
    let options = EngineOptions {
        dtype: args.dtype,
        vocab: Some(vocabulary_len),
        threads: args.threads,
        kv_pages,
        gpu_memory,
        max_sequences: sessions,
        scratch_rows: offer.tree_rows,
        max_rows: MAX_ROWS,
        beside: beside(args, offer, computer),
    };
    let spec = |profile: Profile| -> Result<Spec, TextError> {
        Ok(Spec {
            profile,
            member: member(offer.role),
            vocab: vocabulary_len,
            tokens: Tokenizer::load(&args.model)?.printable_ids(),
            max_positions: config.max_positions,
            eos: config.eos.clone(),
        })
    };
    let model = &args.model;
    let name_of = folder(model);
    let real = || engine::load(model, &options, computer, &mut loading::watch(&name_of));
    let (backend, name): (Box<dyn Backend>, String) = match (&args.synthetic, &args.overlay) {
        (Some(profile), _) => {
            let profile = Profile::read(profile)?;
            let name = format!("synthetic-{}", profile.name());
            (Box::new(Synthetic::new(spec(profile)?, &options)?), name)
        }
        (None, Some(profile)) => {
            let profile = Profile::read(profile)?;
            let name = format!("synthetic-{}-over-{name_of}", profile.name());
            (
                Box::new(Overlay::new(real()?, spec(profile)?, &options)?),
                name,
            )
        }
        (None, None) => (real()?, name_of.clone()),
    };
    // As many as there is memory for.
    let kv_pages = backend.facts().total_pages;
    let info = WorkerInfo {
        role: offer.role,
        duties: offer.duties,
        model: name,
        numerics_id: format!(
            "{}-{}",
            backend.facts().numerics_id,
            vocabulary_hash.get(..16).unwrap_or_default()
        ),
        vocabulary_hash,
        vocabulary_len,
        // A context that could never fit the cache is not offered.
        max_context: positions(config.max_positions.min(kv_pages * PAGE)),
        max_sessions: args.max_num_seqs.into(),
        eos_ids: backend.facts().eos.clone(),
        kv_positions: positions(kv_pages * PAGE),
        kv_page: positions(PAGE),
        device: device(args, computer),
    };
    Ok(Loaded {
        backend,
        computer: computer.describe(),
        tree_rows: offer.tree_rows,
        history_tokens: offer.history_tokens,
        source: Source::Draft,
        pace: match &args.step_ms {
            Some(times) => Pace::Table(times.clone()),
            None => Pace::Floor(args.pace),
        },
        pin: args.pin,
        nice: args.nice,
        prompt_stretch: args.prompt_stretch,
        info,
        metrics: WorkerMetrics::default(),
        clock: Arc::new(StepClock::new()),
    })
}

/// The networks beside the model of a worker that commits: those that are named, else those in the model's own folder, which
/// a GPU does without.
fn beside(args: &ModelArgs, offer: &Offer, computer: &Computer) -> Beside {
    if !offer.duties.has(Duty::Commit) {
        return Beside::default();
    }
    let find = |given: &Option<PathBuf>, name: &str| match given {
        Some(given) if given.as_os_str() == NONE => None,
        Some(given) => Some(given.clone()),
        None if matches!(computer, Computer::Cuda(_)) => None,
        None => Some(args.model.join(name)).filter(|dir| dir.join("config.json").is_file()),
    };
    Beside {
        heads: find(&args.heads, "heads"),
        hrad: find(&args.hrad, "hrad"),
    }
}

/// What stands for no folder.
const NONE: &str = "none";

/// Names what steps are computed on, for others that compute there too: a GPU, or the processors of this machine. A worker with
/// a processor of its own, or whose steps wait or draw instead of computing, slows nobody down.
fn device(args: &ModelArgs, computer: &Computer) -> String {
    let waits = !args.pace.is_zero() || args.step_ms.is_some();
    if args.synthetic.is_some() || waits {
        return String::new();
    }
    if let Computer::Cuda(gpu) = computer {
        return format!("cuda-{}", gpu.uuid());
    }
    if args.pin.is_some() {
        return String::new();
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match boot.trim() {
        "" => String::new(),
        boot => format!("cpu-{boot}"),
    }
}

/// The name of a model: that of its folder or file, or of the repository that its folder is of.
fn folder(model: &Path) -> String {
    if model.is_dir()
        && let Some(name) = hub::repository_at(model)
    {
        return name;
    }
    model.file_name().map_or_else(
        || model.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Which of a profile's models a worker of this role stands for.
fn member(role: Role) -> Member {
    match role {
        Role::Target => Member::Target,
        Role::Qualifier => Member::Qualifier,
        Role::Draft => Member::Draft,
    }
}

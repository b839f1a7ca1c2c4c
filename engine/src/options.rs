//! What an engine reserves when it loads a model.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::load::LoadError;
use crate::sequence::PAGE;

/// How matmul weights are stored. Arithmetic is f32 fused multiply-add whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, widened exactly to f32 as it is read.
    Bf16,
    /// 34 bytes for 32 weights, quantised where the checkpoint has something else; matrices whose inputs are no whole number of
    /// blocks become f32.
    Q8_0,
    /// 18 bytes for 32 weights, likewise.
    Q4_0,
    /// Each matrix as in the checkpoint: quantised weights stay in their blocks and become f32 as they are read, bf16 stays
    /// bf16, all else becomes f32.
    AsStored,
}

impl WeightDtype {
    /// What the command line calls the types that can be asked for.
    pub const NAMES: [(&str, WeightDtype); 4] = [
        ("f32", WeightDtype::F32),
        ("bf16", WeightDtype::Bf16),
        ("q8_0", WeightDtype::Q8_0),
        ("q4_0", WeightDtype::Q4_0),
    ];

    /// The name used in reports and in the numerics identity.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            WeightDtype::F32 => "f32",
            WeightDtype::Bf16 => "bf16",
            WeightDtype::Q8_0 => "q8_0",
            WeightDtype::Q4_0 => "q4_0",
            WeightDtype::AsStored => "as-stored.1",
        }
    }
}

/// Sizes of an engine, all reserved at load.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// How matmul weights are stored; none: as in the checkpoint (f16 becomes f32, blocks of a GGUF file stay as they are).
    /// Arithmetic is f32 either way.
    pub dtype: Option<WeightDtype>,
    /// Tokens of the vocabulary: ids below it are answered, what logits the model has beyond it are padding. None: all
    /// that the model has.
    pub vocab: Option<u32>,
    /// Threads of one step, the calling one included.
    pub threads: NonZeroUsize,
    /// Pages for committed positions, of [`PAGE`] positions each.
    pub kv_pages: usize,
    /// The share of a GPU's memory that the model may take, above 0 and up to 1. With it `kv_pages` are those that are wanted at
    /// most: there are as many as the rest of the model leaves. On a CPU it means nothing.
    pub gpu_memory: Option<f64>,
    /// Sequences open at a time.
    pub max_sequences: usize,
    /// Tree rows per sequence.
    pub scratch_rows: u16,
    /// Rows of one step, all sequences together.
    pub max_rows: usize,
    /// What is evaluated beside the model, where walks end. No token depends on it.
    pub beside: Beside,
}

/// Small networks that read a model's hidden states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// A folder of Medusa heads.
    pub heads: Option<PathBuf>,
    /// A folder of an H-RAD classifier.
    pub hrad: Option<PathBuf>,
}

impl Default for EngineOptions {
    /// One thread, eight sequences of 2048 positions, trees of 128 rows, steps of 256 rows.
    fn default() -> EngineOptions {
        EngineOptions::for_sequences(2048, 8)
    }
}

impl EngineOptions {
    /// Room for `sequences` sequences of `context` positions each.
    #[must_use]
    pub fn for_sequences(context: usize, sequences: usize) -> EngineOptions {
        EngineOptions {
            dtype: None,
            vocab: None,
            threads: NonZeroUsize::MIN,
            kv_pages: context.div_ceil(PAGE).saturating_mul(sequences),
            gpu_memory: None,
            max_sequences: sequences,
            scratch_rows: 128,
            max_rows: 256,
            beside: Beside::default(),
        }
    }

    /// Refuses sizes that cannot be served.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let vocab = self.vocab.map_or(1, |vocab| vocab as usize);
        let bounds = [
            ("vocab", vocab, u32::MAX as usize),
            ("threads", self.threads.get(), 1024),
            ("kv_pages", self.kv_pages, 1 << 28),
            ("max_sequences", self.max_sequences, 1 << 16),
            ("max_rows", self.max_rows, 1 << 16),
        ];
        for (name, value, most) in bounds {
            if value == 0 || value > most {
                let reason = format!("is {value}, it has to be between 1 and {most}");
                return Err(LoadError::Option { name, reason });
            }
        }
        if self
            .gpu_memory
            .is_some_and(|share| !(share > 0.0 && share <= 1.0))
        {
            return Err(LoadError::Option {
                name: "gpu_memory",
                reason: "has to be above 0 and at most 1".to_owned(),
            });
        }
        Ok(())
    }
}

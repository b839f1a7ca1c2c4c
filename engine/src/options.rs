//! What an engine reserves when it loads a model.

use std::num::NonZeroUsize;

use crate::cache::PAGE;
use crate::kernels::WeightDtype;
use crate::load::LoadError;

/// Sizes of an engine, all reserved at load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// How matmul weights are stored; none: as in the checkpoint (f16 becomes f32). Arithmetic is f32 either way.
    pub dtype: Option<WeightDtype>,
    /// Threads of one step, the calling one included.
    pub threads: NonZeroUsize,
    /// Pages for committed positions, of [`PAGE`] positions each.
    pub kv_pages: usize,
    /// Sequences open at a time.
    pub max_sequences: usize,
    /// Tree rows per sequence.
    pub scratch_rows: u16,
    /// Rows of one step, all sequences together.
    pub max_rows: usize,
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
            threads: NonZeroUsize::MIN,
            kv_pages: context.div_ceil(PAGE).saturating_mul(sequences),
            max_sequences: sequences,
            scratch_rows: 128,
            max_rows: 256,
        }
    }

    /// Refuses sizes that cannot be served.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let bounds = [
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
        Ok(())
    }
}

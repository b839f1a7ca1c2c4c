//! What kernels are handed: the structures of `kernels/*.cuh`, field by field, where their documentation is. An address is that of
//! device memory.
#![expect(
    unsafe_code,
    reason = "only who writes these structures can say that they are plain numbers"
)]

use super::driver::Plain;

/// Defines structures of numbers as C lays them out.
macro_rules! structures {
    ($($(#[$about:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }

        // SAFETY: numbers alone, and as many bytes as they have together: there is no padding.
        unsafe impl Plain for $name {}
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*);
    )*};
}

/// See `Then` in `kernels/matmul.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Then {
    Store = 0,
    Add = 1,
    Gate = 2,
    Turn = 3,
}

structures! {
    /// `kernels/matmul.cuh`
    Matmul {
        weights: u64, x: u64, y: u64, turns: u64, positions: u64, slots: u64, keys: u64, values: u64,
        partials: u64, arrived: u64, chunks: u32, outputs: u32, stride_x: u32, stride_y: u32, then: u32,
        heads: u32, kv_heads: u32, head_dim: u32,
    }
    /// `kernels/rows.cu`; the last field is what C pads with.
    Norm { x: u64, gain: u64, y: u64, which: u64, width: u32, stride_y: u32, eps: f32, unused: u32 }
    /// `kernels/rows.cu`
    Embed { table: u64, tokens: u64, x: u64, width: u32, chunks: u32 }
    /// `kernels/rows.cu`
    Move {
        keys: u64, values: u64, from: u64, to: u64, layer: u64, layers: u32, kv_heads: u32, head_dim: u32, moves: u32,
    }
    /// `kernels/rows.cu`
    Heads {
        x: u64, bias: u64, query_gain: u64, key_gain: u64, turns: u64, positions: u64, slots: u64, queries: u64, keys: u64,
        values: u64, heads: u32, kv_heads: u32, head_dim: u32, turned: u32, eps: f32, unused: u32,
    }
    /// `kernels/attention.cu`
    Attend {
        queries: u64, keys: u64, values: u64, y: u64, committed: u64, first_page: u64, pages: u64, first_path: u64,
        path_length: u64, paths: u64, room: u64, kv_heads: u32, stride_y: u32, most_pieces: u32, scale: f32,
        rows: u32, together: u32, takes: u32, group: u32, head_dim: u32, unused: u32,
    }
    /// `kernels/sampling.cuh`
    Task {
        kind: u32, row: u32, guesses: u32, top: u32, token: u32, of: i32, temperature: f32, top_k: u32, top_p: f32,
        min_p: f32, choice: u32, position: u32, seed: [u32; 2], first_bias: u32, biases: u32, first_seen: u32, seens: u32,
        first_mask: u32, masks: u32, repetition: f32, presence: f32, frequency: f32, unused: u32,
    }
    /// `kernels/sampling.cuh`
    Guessed { token: u32, q: f32, margin: f32, weight: f32 }
    /// `Answer` in `kernels/sampling.cuh`
    Answered {
        state: u32, count: u32, logprob: f32, rank: u32, tops: u32, top_ids: [u32; MOST_TOP],
        top_logprobs: [f32; MOST_TOP], guesses: [Guessed; MOST_GUESSES],
    }
    /// `kernels/sampling.cuh`
    Seen { token: u32, in_prompt: u32, in_output: u32 }
    /// `kernels/sampling.cuh`
    Bias { token: u32, value: f32 }
    /// `kernels/sampling.cuh`
    Asks {
        logits: u64, tasks: u64, answers: u64, found: u64, shaped: u64, maxima: u64, sound: u64, candidates: u64,
        biases: u64, seen: u64, masks: u64, vocab: u32, stride: u32, room: u32, unused: u32,
    }
}

/// Kinds of a [`Task`].
pub(super) const PICK: u32 = 1;
pub(super) const GUESSES: u32 = 2;
pub(super) const SCORE: u32 = 3;
/// State of an [`Answered`] that is here; any other says that the row is not of numbers.
pub(super) const HERE: u32 = 1;

/// Guesses that a row may be asked for.
pub(super) const MOST_GUESSES: usize = 64;
/// Strongest tokens that a score may come with.
pub(super) const MOST_TOP: usize = 20;
/// Pieces of a row that blocks look at side by side.
pub(super) const SHARES: usize = 32;
/// Bytes of `Asks::maxima` of a task.
pub(super) const MAXIMA_BYTES: usize = SHARES * 16 * 8;
/// Bytes of `Found`.
pub(super) const FOUND_BYTES: usize = 40;
/// Candidates of a task.
pub(super) const CANDIDATES: usize = 4096;
/// Bytes of a `Candidate`.
pub(super) const CANDIDATE_BYTES: usize = 16;
/// Positions of a piece of attention.
pub(super) const PIECE: usize = 128;

//! GGUF files: one file that holds a model's metadata, tokenizer and weights, often quantised in blocks.
//!
//! [`Gguf::open`] maps a file and checks all of its structure: magic, version, counts, types, dimensions, alignment, and that
//! every tensor lies inside the file and overlaps no other. What is found is then asked by key ([`Gguf::text`],
//! [`Gguf::integer`] and so on) and by tensor. A [`BlockFormat`] says what the bytes of a quantised tensor mean.
//!
//! Files are taken for hostile: nothing is allocated for a number that the file's own length does not bear out.
//!
//! The format is that of the GGUF specification of the ggml project, versions 2 and 3, little-endian. This crate knows nothing
//! of model families, tokenizers or kernels.

mod blocks;
mod error;
mod file;
mod parse;
mod quantise;

pub use blocks::{Block, BlockFormat, MOST_GROUPS, MOST_INPUTS, Shape};
pub use error::GgufError;
pub use file::{Element, Gguf, Tensor, is_gguf, release};
pub use quantise::{quantise_q4_0, quantise_q8_0};

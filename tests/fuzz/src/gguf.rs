//! A GGUF file that somebody downloaded: its structure, its tokenizer, its model, and one step of it.

use gguf::Gguf;
use text::{Special, Tokenizer};

use crate::folder::{compute, folder};

/// What tokenizers that load are asked to encode.
const TEXT: &str = "The year 1234, naïve\n\n  日本 <s></s>";

/// The input is the file.
pub fn run(input: &[u8]) {
    let Ok(file) = Gguf::from_bytes(input.to_vec()) else {
        return;
    };
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len(), tensor.range.len(), "{tensor:?}");
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&file)
        && let Ok(ids) = tokenizer.encode(TEXT, Special::Add)
    {
        let most = tokenizer.vocabulary().len();
        assert!(ids.iter().all(|&id| (id as usize) < most), "{ids:?}");
        let _ = tokenizer.decode(&ids);
    }
    let dir = folder(&[("model.gguf", input)]);
    compute(&dir.path().join("model.gguf"));
}

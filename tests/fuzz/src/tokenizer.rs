//! A `tokenizer.json` that somebody downloaded, and everything that a coordinator asks a tokenizer.

use text::{Special, Tokenizer};

/// What tokenizers that load are asked to encode.
const TEXT: &str = "The year 1234, naïve\n\n  日本 <s></s>aaab";

/// The input is the file.
pub fn run(input: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(input) else {
        return;
    };
    let most = tokenizer.vocabulary().len();
    let _ = tokenizer.least_tokens(TEXT.len());
    let printable = tokenizer.printable_ids();
    assert!(printable.iter().all(|&id| (id as usize) < most));
    for special in [Special::Add, Special::Omit] {
        let Ok(ids) = tokenizer.encode(TEXT, special) else {
            continue;
        };
        let _ = tokenizer.decode(&ids);
        let mut stream = tokenizer.stream();
        for id in ids.into_iter().chain([0, u32::MAX]) {
            let _ = stream.push(id);
        }
        let _ = stream.finish();
    }
}

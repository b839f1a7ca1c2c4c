//! A byte-level tokenizer whose token id is the byte, with one special token behind them.

use text::Tokenizer;

/// The end-of-text token.
pub(crate) const END: u32 = 256;

/// All bytes and the end.
pub(crate) const TOKENS: usize = 257;

/// The tokenizer with its first `tokens` tokens, and the end in any case.
pub(crate) fn tokenizer(tokens: usize) -> Tokenizer {
    let mut next = 256;
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255_u32 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let stands_for = if printable { byte } else { next };
        if !printable {
            next += 1;
        }
        if (byte as usize) < tokens {
            let symbol = char::from_u32(stands_for).unwrap().to_string();
            vocab.insert(symbol, byte.into());
        }
    }
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{
            "id": END, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
        },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] }
    });
    Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

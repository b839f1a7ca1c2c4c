//! The chat template of a model that somebody downloaded.

use text::{MAX_INPUT_BYTES, Message, Special, Tokenizer};

use crate::folder::{TOKENIZER, folder};

/// The input is `chat_template.jinja`, unless it begins with a zero byte: then the rest is `tokenizer_config.json`.
pub fn run(input: &[u8]) {
    let (name, content) = match input.split_first() {
        Some((0, rest)) => ("tokenizer_config.json", rest),
        _ => ("chat_template.jinja", input),
    };
    let dir = folder(&[("tokenizer.json", TOKENIZER.as_bytes()), (name, content)]);
    let tokenizer = Tokenizer::load(dir.path()).expect("the tokenizer is a good one");
    let said = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let messages = [
        said("system", "be brief"),
        said("user", " <|end|> naïve 日本\n"),
        said("assistant", "ab"),
        said("user", "{{ 7 }}"),
    ];
    if let Ok(parts) = tokenizer.render_chat(&messages) {
        let bytes: usize = parts.iter().map(String::len).sum();
        assert!(bytes <= MAX_INPUT_BYTES, "{bytes} bytes");
        for part in parts.iter().take(8).filter(|part| part.len() < 1 << 16) {
            let _ = tokenizer.encode(part, Special::Omit);
        }
    }
}

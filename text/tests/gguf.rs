//! Tokenizers of GGUF files against the definitions of the models' publishers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use gguf::Gguf;
use offshoot_text::{Message, Special, TextError, Tokenizer};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/gguf")
        .join(name)
}

/// The lines of the fixtures, each with the ids that it has to get.
fn expected(name: &str) -> Vec<(String, Vec<u32>)> {
    let content = std::fs::read(file("expected.json")).unwrap();
    let all: Value = serde_json::from_slice(&content).unwrap();
    let lines: Vec<String> = serde_json::from_value(all["lines"].clone()).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(all["tokens"][name].clone()).unwrap();
    assert!(lines.len() == ids.len() && lines.len() > 10);
    lines.into_iter().zip(ids).collect()
}

/// A file whose `from` was replaced by `to` of the same length, wherever it stands.
fn altered(name: &str, from: &str, to: &str) -> Result<Tokenizer, TextError> {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(file(name)).unwrap();
    let places: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from.as_bytes()))
        .collect();
    assert!(!places.is_empty(), "{from} is not in {name}");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    Tokenizer::from_gguf(&Gguf::from_bytes(bytes).unwrap())
}

#[test]
fn text_is_cut_as_the_file_says() {
    let as_gpt2 = altered("llama.gguf", "smollm", "gpt-2\0");
    assert!(matches!(as_gpt2, Err(TextError::Unsupported { .. })));
    for (name, pre) in [("llama.gguf", "smollm"), ("qwen2.gguf", "qwen2")] {
        let tokenizer = Tokenizer::load(&file(name)).unwrap();
        for (line, ids) in expected(pre) {
            assert_eq!(
                tokenizer.encode(&line, Special::Add).unwrap(),
                ids,
                "{pre}: {line:?}"
            );
        }
    }
    // The same vocabulary, another rule of as many letters. Llama 3 begins texts with a token unless the file says otherwise,
    // which this one does.
    let llama3 = altered("llama.gguf", "smollm", "llama3").unwrap();
    for (line, ids) in expected("llama-bpe") {
        assert_eq!(
            llama3.encode(&line, Special::Add).unwrap(),
            ids,
            "llama3: {line:?}"
        );
    }
    let gpt2 = altered("qwen2.gguf", "qwen2", "gpt-2").unwrap();
    for (line, ids) in expected("gpt-2") {
        assert_eq!(
            gpt2.encode(&line, Special::Add).unwrap(),
            ids,
            "gpt-2: {line:?}"
        );
    }
    let digits = |tokenizer: &Tokenizer| tokenizer.encode("123", Special::Omit).unwrap().len();
    let smollm = Tokenizer::load(&file("llama.gguf")).unwrap();
    assert_eq!((digits(&smollm), digits(&gpt2)), (3, 1));
}

#[test]
fn sentence_pieces_are_merged_by_their_scores() {
    let tokenizer = Tokenizer::load(&file("tied.gguf")).unwrap();
    for (line, ids) in expected("sentence-pieces") {
        assert_eq!(
            tokenizer.encode(&line, Special::Add).unwrap(),
            ids,
            "{line:?}"
        );
        let text = tokenizer.decode(&ids).unwrap();
        // Llama's definition drops one space in front.
        assert_eq!(text, line, "{ids:?}");
    }
    assert_eq!(tokenizer.encode("é", Special::Omit).unwrap().len(), 3);
}

/// Gemma: no space in front, and tokens that users define, runs of spaces and line breaks among them.
#[test]
fn runs_of_spaces_that_a_user_has_defined_come_first() {
    let oracle = file("../oracle/expected.json");
    let all: Value = serde_json::from_slice(&std::fs::read(oracle).unwrap()).unwrap();
    let lines: Vec<String> = serde_json::from_value(all["lines"].clone()).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(all["tokens"].clone()).unwrap();
    assert!(lines.len() == ids.len() && lines.len() > 5);
    let tokenizer = Tokenizer::load(&file("../oracle/gemma3.gguf")).unwrap();
    for (line, ids) in lines.iter().zip(&ids) {
        let found = tokenizer.encode(line, Special::Add).unwrap();
        assert_eq!(found, *ids, "{line:?}");
    }
}

#[test]
fn what_a_byte_level_text_says_comes_back() {
    let tokenizer = Tokenizer::load(&file("llama.gguf")).unwrap();
    for (line, ids) in expected("smollm") {
        let plain = line.replace("<|im_start|>", "").replace("<|im_end|>", "");
        assert_eq!(tokenizer.decode(&ids).unwrap(), plain);
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for id in ids {
            text += &stream.push(id).unwrap();
        }
        assert_eq!(text + &stream.finish(), plain);
    }
}

#[test]
fn the_chat_template_comes_along() {
    let can_chat = |name| Tokenizer::load(&file(name)).unwrap().can_chat();
    can_chat("llama.gguf").unwrap();
    assert!(matches!(
        can_chat("tied.gguf"),
        Err(TextError::NoChatTemplate)
    ));
}

#[test]
fn control_tokens_come_from_the_template_and_from_nobody_else() {
    const THERE: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}";
    let wanted = "<|im_start|>{{ messages[0].content }}<|im_end|>{#";
    let wanted = format!("{wanted:<width$}#}}", width = THERE.len() - 2);
    let tokenizer = altered("llama.gguf", THERE, &wanted).unwrap();
    let said = |content: &str| {
        let message = Message {
            role: "user".to_owned(),
            content: content.to_owned(),
        };
        let texts = tokenizer.render_chat(&[message]).unwrap();
        let ids: Vec<u32> = (texts.iter())
            .flat_map(|text| tokenizer.encode(text, Special::Omit).unwrap())
            .collect();
        // <|im_start|> and <|im_end|>.
        assert_eq!((ids.first(), ids.last()), (Some(&1), Some(&2)));
        ids[1..ids.len() - 1].to_vec()
    };
    let plain = |text| tokenizer.encode(text, Special::Omit).unwrap();
    assert_eq!(said("hi there"), plain("hi there"));
    for spelled in [
        "<|im_end|>",
        "a <|im_end|><|im_start|>b",
        "\u{FDD0}<|im_end|>",
    ] {
        assert!(plain(spelled).contains(&2));
        let ids = said(spelled);
        assert!(ids.iter().all(|&id| id > 2), "{spelled}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), spelled);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (name, from, to, part) in [
        (
            "llama.gguf",
            "smollm",
            "tekken",
            "tokenizer.ggml.pre is \"tekken\"",
        ),
        (
            "llama.gguf",
            "gpt2",
            "bert",
            "tokenizer.ggml.model is \"bert\"",
        ),
        (
            "llama.gguf",
            "tokenizer.ggml.pre",
            "tokenizer.ggml.xxx",
            "tokenizer.ggml.pre is missing",
        ),
        (
            "llama.gguf",
            "ggml.merges",
            "ggml.mergex",
            "tokenizer.ggml.merges is missing",
        ),
        (
            "tied.gguf",
            "ggml.scores",
            "ggml.scorex",
            "tokenizer.ggml.scores is missing",
        ),
        (
            "tied.gguf",
            "ggml.tokens",
            "ggml.tokenx",
            "tokenizer.ggml.tokens is missing",
        ),
        (
            "tied.gguf",
            "bos_token_id",
            "bxs_token_id",
            "bos_token_id is missing",
        ),
    ] {
        let error = altered(name, from, to).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

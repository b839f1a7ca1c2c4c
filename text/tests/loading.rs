//! Loading, encoding, and files and texts that mean harm.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod fixtures;

use fixtures::Decoder;
use offshoot_text::{MAX_INPUT_BYTES, MAX_TOKENIZER_BYTES, Special, TextError, Tokenizer};
use proptest::prelude::*;

#[test]
fn a_directory_or_its_file_load_the_same_tokenizer() {
    let by_file = fixtures::bundled();
    let by_directory = Tokenizer::load(&fixtures::repository().join("models/target")).unwrap();
    assert_eq!(by_file.vocabulary(), by_directory.vocabulary());
    assert_eq!(by_file.vocabulary().len(), 4096);
    assert_eq!(by_file.vocabulary().token(0), Some("<|endoftext|>"));
}

#[test]
fn the_bundled_family_shares_one_vocabulary() {
    let target = fixtures::bundled();
    for model in ["draft", "qualifier"] {
        let other = Tokenizer::load(&fixtures::repository().join("models").join(model)).unwrap();
        assert_eq!(target.vocabulary().agrees_with(other.vocabulary()), Ok(()));
        assert_eq!(target.vocabulary().hash(), other.vocabulary().hash());
    }
    let stranger = fixtures::sentencepiece(Decoder::Strip);
    let mismatch = target
        .vocabulary()
        .agrees_with(stranger.vocabulary())
        .unwrap_err();
    assert_eq!(
        (mismatch.id, mismatch.theirs.as_deref()),
        (0, Some("<unk>"))
    );
}

#[test]
fn encoding_and_decoding_are_inverse_on_real_text() {
    let tokenizer = fixtures::bundled();
    for text in fixtures::texts() {
        let ids = tokenizer.encode(&text, Special::Omit).unwrap();
        assert!(ids.len() < text.len());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    assert_eq!(
        tokenizer.encode("", Special::Add).unwrap(),
        Vec::<u32>::new()
    );
}

#[test]
fn only_the_template_adds_special_tokens() {
    let tokenizer = fixtures::sentencepiece(Decoder::Strip);
    let plain = tokenizer.encode("fn a", Special::Omit).unwrap();
    let framed = tokenizer.encode("fn a", Special::Add).unwrap();
    assert_eq!(framed[0], 1);
    assert_eq!(framed[1..], plain[..]);
    assert_eq!(tokenizer.decode(&framed).unwrap(), "fn a");
}

#[test]
fn printable_ids_make_text_in_any_order() {
    for tokenizer in [fixtures::bundled(), fixtures::sentencepiece(Decoder::Strip)] {
        let ids = tokenizer.printable_ids();
        assert!(ids.is_sorted() && !ids.is_empty());
        let backwards: Vec<u32> = ids.iter().rev().copied().collect();
        for ids in [&ids, &backwards] {
            let text = tokenizer.decode(ids).unwrap();
            assert!(!text.contains(char::REPLACEMENT_CHARACTER));
            assert!(
                !text
                    .chars()
                    .any(|c| c.is_control() && c != '\n' && c != '\t')
            );
        }
    }
    let bundled = fixtures::bundled();
    let ids = bundled.printable_ids();
    assert!(!ids.contains(&0), "<|endoftext|> is special");
    // Nearly all; the rest are the bytes beyond ASCII, which are parts of characters.
    assert!(ids.len() > 3700 && ids.len() < 4096, "{}", ids.len());
}

#[test]
fn padding_and_truncation_of_the_file_are_ignored() {
    let mut file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixtures::bundled_file()).unwrap()).unwrap();
    file["truncation"] = serde_json::json!({"direction": "Right", "max_length": 3,
        "strategy": "LongestFirst", "stride": 0});
    file["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
    let text = "fn main() { let answer = 42; }";
    assert_eq!(
        tokenizer.encode(text, Special::Omit).unwrap(),
        fixtures::bundled().encode(text, Special::Omit).unwrap()
    );
}

#[test]
fn a_missing_or_oversized_file_is_a_typed_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err();
    assert!(matches!(error, TextError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");

    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    std::fs::write(dir.path().join("tokenizer.json"), pointer).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err();
    assert!(matches!(error, TextError::LfsPointer { .. }), "{error}");
    assert!(error.to_string().contains("git lfs pull"), "{error}");

    let big = dir.path().join("tokenizer.json");
    let file = std::fs::File::create(&big).unwrap();
    file.set_len(MAX_TOKENIZER_BYTES as u64 + 1).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err();
    assert!(
        matches!(
            error,
            TextError::TooLarge {
                limit: MAX_TOKENIZER_BYTES,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_text_beyond_the_limit_is_refused() {
    let tokenizer = fixtures::bundled();
    let text = "a".repeat(MAX_INPUT_BYTES + 1);
    let error = tokenizer.encode(&text, Special::Omit).unwrap_err();
    assert!(
        matches!(error, TextError::InputTooLong { bytes, limit } if bytes == limit + 1),
        "{error}"
    );
}

#[test]
fn contents_that_are_no_tokenizer_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge_id = r#"{"version":"1.0","added_tokens":[{"id":4294967295,"content":"x",
        "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "model":{"type":"WordLevel","vocab":{"a":4294967294},"unk_token":"a"}}"#;
    // The library panics on this one: a decoder that is not even an object.
    let no_decoder = r#"{"version":"1.0","decoder":{"type":"Nonsense"},
        "model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#;
    let contents = [
        "",
        "{}",
        "null",
        "[]",
        "{\"version\":\"1.0\"}",
        "\u{0}\u{1}",
        &deep,
        huge_id,
        no_decoder,
    ];
    for content in contents {
        let error = Tokenizer::from_bytes(content.as_bytes()).unwrap_err();
        assert!(matches!(error, TextError::Invalid { .. }), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_truncated_file_is_an_error(share in 0.0..1.0_f64) {
        let content = std::fs::read(fixtures::bundled_file()).unwrap();
        let end = content.iter().rposition(|&byte| byte == b'}').unwrap();
        let cut = (end as f64 * share) as usize;
        let error = Tokenizer::from_bytes(&content[..cut]).unwrap_err();
        prop_assert!(matches!(error, TextError::Invalid { .. }), "{}", error);
    }

    /// A damaged file is refused, or is another tokenizer that works: it never
    /// panics, neither on load nor in use.
    #[test]
    fn a_damaged_file_never_panics(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        head in any::<bool>(),
    ) {
        let mut content = std::fs::read(fixtures::bundled_file()).unwrap();
        // Half of the damage goes where the structure is, not the vocabulary.
        let range = if head { 900 } else { content.len() };
        for (place, value) in flips {
            content[place.index(range)] = value;
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes(&content) {
            let _ = tokenizer.encode("fn main() { 日本 🦀 }", Special::Add);
            let _ = tokenizer.decode(&[0, 1, 2, 300, 4095, 5000]);
            let mut stream = tokenizer.stream();
            for id in 0..300 {
                let _ = stream.push(id * 13);
            }
            let _ = stream.finish();
        }
    }
}

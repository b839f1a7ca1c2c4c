//! A stream of pieces is the whole text, and no piece is broken.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod fixtures;

use fixtures::Decoder;
use offshoot_text::{Special, Tokenizer};
use proptest::prelude::*;

fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish());
    pieces
}

fn assert_streams(tokenizer: &Tokenizer, ids: &[u32]) {
    assert_eq!(
        pieces(tokenizer, ids).concat(),
        tokenizer.decode(ids).unwrap(),
        "{ids:?}"
    );
}

#[test]
fn real_text_comes_through_every_tokenizer_unchanged() {
    let byte_level = fixtures::bundled();
    for text in fixtures::texts() {
        let ids = byte_level.encode(&text, Special::Omit).unwrap();
        assert_eq!(pieces(&byte_level, &ids).concat(), text);
    }
    for decoder in [Decoder::Strip, Decoder::Metaspace] {
        let tokenizer = fixtures::sentencepiece(decoder);
        for text in fixtures::texts() {
            let ids = tokenizer.encode(&text, Special::Add).unwrap();
            assert_eq!(ids[0], 1, "the template puts <s> first");
            assert_streams(&tokenizer, &ids);
            // The Metaspace decoder drops all leading spaces, as the library does.
            let decoded = tokenizer.decode(&ids).unwrap();
            assert_eq!(decoded.trim_start(), text.trim_start(), "{decoder:?}");
        }
    }
}

#[test]
fn half_a_character_is_held_back_and_no_more_than_that() {
    let tokenizer = fixtures::bundled();
    // Bytes of U+1F980 (F0 9F A6 80) between letters, one token each.
    let byte = |byte: u8| {
        let shown = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            0..=0x20 => char::from_u32(256 + u32::from(byte)).unwrap(),
            0x7f..=0xa0 => char::from_u32(289 + u32::from(byte) - 0x7f).unwrap(),
            0xad => '\u{143}',
        };
        let vocabulary = tokenizer.vocabulary();
        (0..vocabulary.len() as u32)
            .find(|&id| vocabulary.token(id) == Some(shown.to_string().as_str()))
            .unwrap()
    };
    let ids: Vec<u32> = [
        b'a', 0xf0, 0x9f, 0xa6, 0x80, b'b', 0xf0, 0x9f, b'c', 0xe2, 0x82,
    ]
    .into_iter()
    .map(byte)
    .collect();
    let want = [
        "a",
        "",
        "",
        "",
        "🦀",
        "b",
        "",
        "",
        "\u{fffd}c",
        "",
        "",
        "\u{fffd}",
    ];
    assert_eq!(pieces(&tokenizer, &ids), want);
}

#[test]
fn byte_fallback_characters_come_out_whole() {
    for decoder in [Decoder::Strip, Decoder::Metaspace] {
        let tokenizer = fixtures::sentencepiece(decoder);
        let crab = [0xf0, 0x9f, 0xa6, 0x80].map(|byte: u32| byte + 3);
        let ids: Vec<u32> = crab.iter().chain(&crab).copied().collect();
        assert_eq!(
            pieces(&tokenizer, &ids),
            ["", "", "", "🦀", "", "", "", "🦀", ""]
        );
        // A replacement character that was meant is not taken for a broken one.
        let meant = [0xef, 0xbf, 0xbd].map(|byte: u32| byte + 3);
        let ids: Vec<u32> = meant.iter().chain(&crab).copied().collect();
        assert_eq!(
            pieces(&tokenizer, &ids),
            ["", "", "\u{fffd}", "", "", "", "🦀", ""]
        );
        // A character that never gets complete is let go after a few tokens.
        let mut stream = tokenizer.stream();
        let sent: String = (0..100).map(|_| stream.push(0x80 + 3).unwrap()).collect();
        assert!(
            sent.chars().count() >= 90,
            "{} characters",
            sent.chars().count()
        );
        assert!(stream.finish().chars().count() <= 10);
    }
}

#[test]
fn a_leading_space_depends_on_what_came_before() {
    for decoder in [Decoder::Strip, Decoder::Metaspace] {
        let tokenizer = fixtures::sentencepiece(decoder);
        let ids = tokenizer.encode("let let fn a", Special::Omit).unwrap();
        let pieces = pieces(&tokenizer, &ids);
        assert_eq!(pieces.concat(), "let let fn a", "{pieces:?}");
        assert_eq!(
            &pieces[..2],
            ["let", " let"],
            "no lost and no doubled space"
        );
    }
}

#[test]
fn special_and_unknown_ids_say_nothing_in_the_stream_either() {
    for tokenizer in [fixtures::bundled(), fixtures::sentencepiece(Decoder::Strip)] {
        let words = tokenizer.encode("let a", Special::Omit).unwrap();
        let special = tokenizer.stream().push(0).unwrap();
        assert_eq!(special, "");
        let mut ids = vec![0, u32::MAX];
        for id in words {
            ids.extend([id, 0, 4_000_000, 0]);
        }
        assert_streams(&tokenizer, &ids);
        assert_eq!(pieces(&tokenizer, &ids).concat(), "let a");
    }
}

#[test]
fn a_finished_stream_starts_anew() {
    for tokenizer in [fixtures::bundled(), fixtures::sentencepiece(Decoder::Strip)] {
        let ids = tokenizer.encode("fn let a", Special::Omit).unwrap();
        let mut stream = tokenizer.stream();
        for _ in 0..2 {
            let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            text += &stream.finish();
            assert_eq!(text, "fn let a");
        }
    }
}

/// A long stream costs per token what a short one does: the held state stays
/// small, which shows in its debug form.
#[test]
fn the_state_of_a_stream_stays_small() {
    let tokenizer = fixtures::sentencepiece(Decoder::Strip);
    let bytes_and_words: Vec<u32> = (3..tokenizer.vocabulary().len() as u32).collect();
    let mut stream = tokenizer.stream();
    let empty = format!("{stream:?}").len();
    for id in bytes_and_words.iter().cycle().take(5000) {
        stream.push(*id).unwrap();
        let grown = format!("{stream:?}").len() - empty;
        assert!(grown < 1000, "{grown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_ids_stream_as_they_decode(ids in proptest::collection::vec(0_u32..4100, 0..120)) {
        assert_streams(&bundled_once(), &ids);
    }

    /// Single bytes make broken characters of every kind.
    #[test]
    fn any_bytes_stream_as_they_decode(ids in proptest::collection::vec(1_u32..258, 0..60)) {
        assert_streams(&bundled_once(), &ids);
    }

    #[test]
    fn any_words_and_characters_stream_as_they_decode(
        parts in proptest::collection::vec(
            prop_oneof![
                (259_u32..380).prop_map(|id| vec![id]),
                any::<char>().prop_map(|c| c.to_string().bytes().map(|b| u32::from(b) + 3).collect()),
                Just(vec![2]),
            ],
            0..40,
        ),
    ) {
        let ids: Vec<u32> = parts.concat();
        for decoder in [Decoder::Strip, Decoder::Metaspace] {
            assert_streams(&fixtures::sentencepiece(decoder), &ids);
        }
    }
}

/// Loading takes milliseconds, and a property runs hundreds of times.
fn bundled_once() -> Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(fixtures::bundled).clone()
}

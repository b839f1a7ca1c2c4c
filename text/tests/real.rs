//! Tokenizers of models that people really run, against what transformers makes of a thousand odd lines.
//!
//! `tests/real/fetch.py` fetches the models; those that are not there are skipped. `tests/real/ids.py` wrote what is expected.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_text::{Control, Encoder, Progress, Special, Tokenizer};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// FNV-1a of 32 bits over the ids as little-endian words.
fn hash(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

fn ids(mut encoder: Encoder) -> Vec<u32> {
    while encoder.step().unwrap() == Progress::More {}
    encoder.into_ids()
}

#[test]
fn odd_lines_have_the_ids_that_transformers_gives_them() {
    let read = |name: &str| std::fs::read(at("tests/real").join(name)).unwrap();
    let lines: Vec<String> = serde_json::from_slice(&read("lines.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&read("ids.json")).unwrap();
    assert!(lines.len() == 1000 && expected.len() == 3);
    let mut wrong = Vec::new();
    for (model, ways) in expected {
        let file = at("target/real").join(format!("{model}.gguf"));
        if !file.is_file() {
            println!("skipped: {model}, which tests/real/fetch.py fetches");
            continue;
        }
        let tokenizer = Tokenizer::load(&file).unwrap();
        for (way, hashes) in ways {
            let control = match way.as_str() {
                "tokens" => Control::Tokens,
                "text" => Control::Text,
                other => panic!("{other} is no way to encode"),
            };
            let hashes: Vec<&str> = hashes.split(' ').collect();
            assert_eq!(hashes.len(), lines.len());
            let mut equal = 0;
            for (line, expected) in lines.iter().zip(hashes) {
                let found = ids(tokenizer.encoder(line.clone(), Special::Omit, control));
                if hash(&found) == expected {
                    equal += 1;
                } else {
                    wrong.push(format!("{model}, {way}: {line:?} becomes {found:?}"));
                }
            }
            println!(
                "{model}, control tokens as {way}: {equal} of {} lines",
                lines.len()
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

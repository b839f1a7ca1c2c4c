//! How a tokenizer makes words and tokens of a text, as a hash: two with the same tokens may still encode a text differently.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Hex digits of the hash.
const DIGITS: usize = 16;

/// The parts of a `tokenizer.json` that decide, its tokens left out.
#[derive(Deserialize)]
pub(crate) struct Definition {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    unk_id: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    fuse_unk: Value,
    #[serde(default)]
    byte_fallback: Value,
    #[serde(default)]
    ignore_merges: Value,
    #[serde(default)]
    merges: Merges,
    #[serde(default)]
    vocab: Scored,
}

/// Hash over the merges in their order. There are up to some hundred thousands, so they are never held together.
#[derive(Default)]
struct Merges(Option<blake3::Hash>);

/// One merge: `"a b"`, or `["a", "b"]` as newer files have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

/// Hash over tokens and scores where the vocabulary is a list of them (Unigram). Elsewhere it is a map of tokens to ids.
#[derive(Default)]
struct Scored(Option<blake3::Hash>);

impl Merges {
    fn of<'a>(all: impl Iterator<Item = [&'a str; 2]>) -> Merges {
        let mut hasher = blake3::Hasher::new();
        for parts in all {
            parts.into_iter().for_each(|part| add(&mut hasher, part));
        }
        Merges(Some(hasher.finalize()))
    }
}

impl Definition {
    /// The same with these merges in place of its own.
    pub(crate) fn with_merges<'a>(mut self, all: impl Iterator<Item = [&'a str; 2]>) -> Definition {
        self.model.merges = Merges::of(all);
        self
    }
}

fn add(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Merges, E> {
                Ok(Merges(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Merges, A::Error> {
                let mut hasher = blake3::Hasher::new();
                while let Some(merge) = all.next_element::<Merge>()? {
                    let joined = match &merge {
                        Merge::Joined(text) => text.split_once(' ').unwrap_or((text, "")),
                        Merge::Pair(left, right) => (left.as_str(), right.as_str()),
                    };
                    add(&mut hasher, joined.0);
                    add(&mut hasher, joined.1);
                }
                Ok(Merges(Some(hasher.finalize())))
            }
        }
        from.deserialize_any(InOrder)
    }
}

impl<'de> Deserialize<'de> for Scored {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Scored;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Scored, A::Error> {
                while all.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scored(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Scored, A::Error> {
                let mut hasher = blake3::Hasher::new();
                while let Some((token, score)) = all.next_element::<(String, f64)>()? {
                    add(&mut hasher, &token);
                    hasher.update(&score.to_le_bytes());
                }
                Ok(Scored(Some(hasher.finalize())))
            }
        }
        from.deserialize_any(Either)
    }
}

/// Leaves out what says the same as nothing, and what changes no id.
fn plain(value: Value) -> Value {
    match value {
        Value::String(text) if text.is_empty() => Value::Null,
        Value::Array(all) => Value::Array(all.into_iter().map(plain).collect()),
        Value::Object(mut all) => {
            // Where a token's text lies; only for those who ask for that.
            all.remove("trim_offsets");
            let all: serde_json::Map<_, _> = (all.into_iter())
                .map(|(name, value)| (name, plain(value)))
                .collect();
            alone(&all).unwrap_or(Value::Object(all))
        }
        other => other,
    }
}

/// A sequence of one step is that step, and one of none is nothing.
fn alone(step: &serde_json::Map<String, Value>) -> Option<Value> {
    if step.get("type")? != "Sequence" {
        return None;
    }
    let steps = step
        .get("normalizers")
        .or_else(|| step.get("pretokenizers"))?;
    match steps.as_array()?.as_slice() {
        [] => Some(Value::Null),
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// Whether a step, or one of a sequence of them, is of this type.
fn has_step(step: &Value, name: &str) -> bool {
    let steps = step["pretokenizers"].as_array();
    step["type"] == name || steps.is_some_and(|all| all.iter().any(|one| has_step(one, name)))
}

/// Hash over merges, normaliser, pre-tokenizer and the model's own settings, as hex digits; equal for files that mean the same
/// in this and write it differently.
pub(crate) fn hash(definition: Definition, kind: &str) -> String {
    let Definition {
        normalizer,
        pre_tokenizer,
        model,
    } = definition;
    let truth = |value: Value| value == Value::Bool(true);
    let (normalizer, pre_tokenizer) = (plain(normalizer), plain(pre_tokenizer));
    // Every byte has its token where words are bytes, so that nothing is unknown.
    let unknown = match has_step(&pre_tokenizer, "ByteLevel") {
        true => Value::Null,
        false => plain(model.unk_token),
    };
    // Without a token for what is unknown there is nothing to fuse.
    let fuses = truth(model.fuse_unk) && !unknown.is_null();
    let hex = |hash: Option<blake3::Hash>| hash.map(|hash| hash.to_hex().to_string());
    let rules = serde_json::json!({
        "kind": kind,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "unk_token": unknown,
        "unk_id": model.unk_id,
        "continuing_subword_prefix": plain(model.continuing_subword_prefix),
        "end_of_word_suffix": plain(model.end_of_word_suffix),
        "dropout": model.dropout,
        "fuse_unk": fuses,
        "byte_fallback": truth(model.byte_fallback),
        "ignore_merges": truth(model.ignore_merges),
        "merges": hex(model.merges.0),
        "scores": hex(model.vocab.0),
    });
    let mut hash = blake3::hash(sorted(rules).to_string().as_bytes())
        .to_hex()
        .to_string();
    hash.truncate(DIGITS);
    hash
}

/// With the fields of every object in one order, whatever order the library keeps.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(all) => {
            let all: std::collections::BTreeMap<_, _> = (all.into_iter())
                .map(|(name, value)| (name, sorted(value)))
                .collect();
            Value::Object(all.into_iter().collect())
        }
        Value::Array(all) => Value::Array(all.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use serde_json::json;

    use super::*;

    fn bytes(trim_offsets: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim_offsets, "use_regex": true})
    }

    fn file() -> Value {
        json!({
            "normalizer": {"type": "NFC"}, "pre_tokenizer": bytes(true),
            "model": {"type": "BPE", "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3}, "merges": ["a b", "b a"]},
        })
    }

    fn of(file: &Value) -> String {
        hash(serde_json::from_value(file.clone()).unwrap(), "BPE")
    }

    #[test]
    fn what_means_the_same_has_the_same_hash() {
        let mut other = file();
        other["model"]["merges"] = json!([["a", "b"], ["b", "a"]]);
        other["model"]["fuse_unk"] = json!(true);
        other["model"]["unk_token"] = json!("a");
        other["model"]["continuing_subword_prefix"] = json!("");
        other["model"]["ignore_merges"] = json!(false);
        other["model"]["vocab"] = json!({"b": 1, "a": 0});
        other["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]});
        other["pre_tokenizer"] = bytes(false);
        other["post_processor"] = bytes(false);
        assert_eq!(of(&other), of(&file()));
        assert_eq!(of(&file()).len(), DIGITS);
    }

    #[test]
    fn merges_may_be_given_apart() {
        let apart = |merges: [[&'static str; 2]; 2]| {
            let definition: Definition = serde_json::from_value(file()).unwrap();
            hash(definition.with_merges(merges.into_iter()), "BPE")
        };
        assert_eq!(apart([["a", "b"], ["b", "a"]]), of(&file()));
        assert_ne!(apart([["b", "a"], ["a", "b"]]), of(&file()));
    }

    #[test]
    fn what_encodes_differently_has_another_hash() {
        let changes: [(&str, Value); 6] = [
            ("/model/merges", json!(["b a", "a b"])),
            ("/model/merges", json!(["a b"])),
            ("/model/byte_fallback", json!(true)),
            ("/normalizer", json!(null)),
            ("/pre_tokenizer/add_prefix_space", json!(true)),
            ("/pre_tokenizer", json!({"type": "Whitespace"})),
        ];
        let mut seen = std::collections::BTreeSet::from([of(&file())]);
        for (place, value) in changes {
            let mut other = file();
            *other.pointer_mut(place).unwrap() = value;
            assert!(seen.insert(of(&other)), "{place}");
        }
        let unknown = |token: Value| json!({"model": {"unk_token": token, "vocab": {"a": 0}}});
        assert_ne!(of(&unknown(json!("a"))), of(&unknown(json!(null))));
        let scored = |score: f64| json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", score]]}});
        assert_ne!(of(&scored(-1.0)), of(&scored(-1.5)));
        assert!(serde_json::from_str::<Definition>("{}").is_err());
    }
}

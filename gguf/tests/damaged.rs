//! Files that are not what they say: a reason for each, no panic for any, and nothing allocated for sizes that cannot be.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use offshoot_gguf::Gguf;
use proptest::prelude::*;

/// A file, written as the test wants it.
#[derive(Default)]
struct Written(Vec<u8>);

impl Written {
    fn begin(version: u32, tensors: u64, entries: u64) -> Written {
        let mut file = Written(b"GGUF".to_vec());
        file.u32(version).u64(tensors).u64(entries);
        file
    }

    fn u32(&mut self, n: u32) -> &mut Written {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(&mut self, n: u64) -> &mut Written {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Written {
        self.u64(text.len() as u64).0.extend(text.as_bytes());
        self
    }

    fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> &mut Written {
        self.text(name).u32(shape.len() as u32);
        for &size in shape {
            self.u64(size);
        }
        self.u32(kind).u64(offset)
    }

    /// Pads the header and puts so many bytes of weights behind it.
    fn weights(&mut self, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 7);
        self.0.clone()
    }
}

fn reason(bytes: Vec<u8>) -> String {
    match Gguf::from_bytes(bytes) {
        Ok(_) => panic!("the file is taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_that_is_whole_is_taken() {
    let mut file = Written::begin(3, 2, 1);
    file.text("general.name").u32(8).text("x");
    file.tensor("a", &[32, 2], 8, 0).tensor("b", &[4], 0, 96);
    let file = Gguf::from_bytes(file.weights(96 + 16)).unwrap();
    assert_eq!(file.text("general.name").unwrap(), Some("x"));
    assert_eq!(file.tensors()[0].shape, [2, 32]);
    assert_eq!(file.data(&file.tensors()[0]).len(), 68);
    assert_eq!(file.data(&file.tensors()[1]).len(), 16);
}

#[test]
fn whatever_is_wrong_is_named() {
    let one = |kind, shape: &[u64], offset, bytes| {
        let mut file = Written::begin(3, 1, 0);
        reason(file.tensor("a", shape, kind, offset).weights(bytes))
    };
    let entry = |kind: u32, value: &[u8]| {
        let mut file = Written::begin(3, 0, 1);
        file.text("key").u32(kind).0.extend(value);
        reason(file.weights(0))
    };
    let mut doubled = Written::begin(3, 2, 0);
    doubled.tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32);
    let mut overlapping = Written::begin(3, 2, 0);
    overlapping
        .tensor("a", &[16], 0, 0)
        .tensor("b", &[8], 0, 32);
    let mut unaligned = Written::begin(3, 0, 1);
    unaligned.text("general.alignment").u32(4).u32(24);
    let mut split = Written::begin(3, 0, 1);
    split.text("split.count").u32(2).0.extend([3, 0]);
    let mut twice = Written::begin(3, 0, 2);
    twice.text("key").u32(4).u32(1).text("key").u32(4).u32(1);
    let mut array = 4_u32.to_le_bytes().to_vec();
    array.extend(u64::MAX.to_le_bytes());
    let mut texts = 8_u32.to_le_bytes().to_vec();
    texts.extend(u64::MAX.to_le_bytes());
    let mut nested = 9_u32.to_le_bytes().to_vec();
    nested.extend(1_u64.to_le_bytes());
    for (found, part) in [
        (reason(b"GGML".to_vec()), "does not begin with GGUF"),
        (reason(Vec::new()), "does not begin with GGUF"),
        (reason(Written::begin(1, 0, 0).0), "version 1"),
        (
            reason(Written::begin(3_u32.swap_bytes(), 0, 0).0),
            "big-endian",
        ),
        (reason(Written::begin(3, u64::MAX, 0).0), "too short"),
        (
            reason(Written::begin(3, 0, 1 << 60).weights(64)),
            "too short",
        ),
        (one(0, &[1 << 40], 0, 64), "ends behind the file"),
        (one(0, &[1 << 33, 1 << 33], 0, 64), "too large"),
        (one(0, &[0], 0, 64), "impossible dimension"),
        (one(0, &[1; 5], 0, 64), "5 dimensions"),
        (one(0, &[8], 1 << 40, 64), "ends behind the file"),
        (one(0, &[8], u64::MAX - 31, 64), "ends behind the file"),
        (one(0, &[8], 4, 64), "not aligned"),
        (one(8, &[33], 0, 64), "blocks of 32"),
        (one(7, &[32], 0, 64), "Q5_1"),
        (one(10, &[256], 0, 640), "Q2_K"),
        (one(77, &[256], 0, 640), "number 77"),
        (reason(doubled.weights(64)), "twice"),
        (reason(overlapping.weights(64)), "overlap"),
        (reason(unaligned.weights(0)), "general.alignment"),
        (reason(split.weights(0)), "one of 3 parts"),
        (reason(twice.weights(0)), "key is there twice"),
        (entry(99, &[0; 64]), "type 99"),
        (entry(7, &[2]), "truth value"),
        (entry(8, &[255; 8]), "key"),
        (entry(9, &array), "ends behind the file"),
        (entry(9, &texts), "ends behind the file"),
        (entry(9, &nested), "arrays of values of type 9"),
    ] {
        assert!(found.contains(part), "{found:?} does not say {part:?}");
    }
    assert!(Gguf::open(Path::new("no/such/file")).is_err());
}

/// Everything that can be asked of a file.
fn ask(file: &Gguf) {
    for key in [
        "general.architecture",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.scores",
    ] {
        let _ = (file.text(key), file.texts(key), file.integers(key));
        let _ = (
            file.floats(key),
            file.integer(key),
            file.float(key),
            file.truth(key),
        );
    }
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len(), tensor.range.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/gguf");
        let mut bytes = std::fs::read(folder.join("tied.gguf")).unwrap();
        let end = cut.map_or(bytes.len(), |cut| cut.index(bytes.len()));
        if end < bytes.len() {
            prop_assert!(Gguf::from_bytes(bytes[..end].to_vec()).is_err());
        }
        // Half of the bytes are the header, where the structure is.
        let reach = 14 << 10;
        for (at, value) in flips {
            bytes[at.index(reach)] ^= value;
        }
        bytes.truncate(end);
        // A byte may say that there are fewer tensors, and they may all be there.
        if let Ok(file) = Gguf::from_bytes(bytes) {
            ask(&file);
        }
    }
}

//! Every input of the corpus, among them those that once broke something.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use offshoot_fuzz::{TARGETS, corpus};

#[test]
fn the_corpus_breaks_nothing() {
    for target in TARGETS {
        let folder = corpus().join(target.name);
        let mut inputs: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "no inputs in {}", folder.display());
        for input in inputs {
            let bytes = std::fs::read(&input).unwrap();
            let name = input.file_name().unwrap().display();
            let ended = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(ended.is_ok(), "{}: {name} panics", target.name);
        }
    }
}

/// Inputs nobody has kept: short ones, long ones, all bytes, and what a fixed generator makes.
#[test]
fn neither_do_inputs_made_up_here() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    for target in TARGETS {
        (target.run)(&[]);
        for value in 0..=u8::MAX {
            (target.run)(&[value; 64]);
        }
        for round in 0..2000 {
            let input: Vec<u8> = (0..round % 600).map(|_| byte()).collect();
            (target.run)(&input);
        }
    }
}

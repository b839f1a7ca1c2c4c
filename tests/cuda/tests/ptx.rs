//! The committed PTX is of the committed sources.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use offshoot_cuda_kernels::{hash, root, sources};

fn current(sources: &[(String, Vec<u8>)]) -> String {
    let hash = hash(
        sources
            .iter()
            .map(|(name, text)| (name.as_str(), &text[..])),
    );
    format!("{hash:016x}")
}

#[test]
fn the_ptx_is_of_these_sources() {
    let folder = root().join("engine/src/cuda/ptx");
    let record = std::fs::read_to_string(folder.join("SOURCES")).unwrap();
    let mut sources = sources().unwrap();
    assert!(
        record
            .split_whitespace()
            .any(|word| word == current(&sources)),
        "run engine/src/cuda/ptx/regenerate.py"
    );
    for (name, _) in sources.iter().filter(|(name, _)| name.ends_with(".cu")) {
        let bench = root().join("tests/device/kernels");
        let folder = if name == "bench.cu" { &bench } else { &folder };
        for architecture in ["sm_80", "sm_90a", "sm_100"] {
            let stem = name.trim_end_matches(".cu");
            let ptx = std::fs::read_to_string(folder.join(format!("{stem}.{architecture}.ptx")));
            let ptx = ptx.unwrap_or_else(|error| panic!("{stem} for {architecture}: {error}"));
            assert!(ptx.contains(&format!(".target {architecture}")), "{name}");
            assert!(
                ptx.contains(".entry"),
                "{name} for {architecture} has no kernel"
            );
        }
    }
    // One changed letter is found.
    sources[0].1[0] ^= 1;
    assert!(!record.contains(&current(&sources)));
}

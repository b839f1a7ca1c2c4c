//! The committed PTX is of the committed sources.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use offshoot_cuda_kernels::compile::kernels;
use offshoot_cuda_kernels::{files, hash, root};

fn hash_of(files: &[(String, Vec<u8>)]) -> String {
    let files = files.iter().map(|(name, text)| (name.as_str(), &text[..]));
    format!("fnv1a64 {:016x}", hash(files))
}

#[test]
fn the_ptx_is_of_these_sources() {
    let folder = root().join("engine/src/cuda/ptx");
    let bench = root().join("tests/device/kernels");
    let record = std::fs::read_to_string(folder.join("SOURCES")).unwrap();
    let (made_from, came_of_it) = record.split_once('\n').unwrap();
    let mut sources = files(&kernels(&root()), &["cu", "cuh"]).unwrap();
    assert!(
        made_from.contains(&hash_of(&sources)),
        "run engine/src/cuda/ptx/regenerate.py"
    );
    let mut results = files(&folder, &["ptx"]).unwrap();
    results.extend(files(&bench, &["cu"]).unwrap());
    results.extend(files(&bench, &["ptx"]).unwrap());
    assert!(
        came_of_it.contains(&hash_of(&results)),
        "run engine/src/cuda/ptx/regenerate.py"
    );
    let named = |name: &str| {
        let found = results.iter().find(|(known, _)| known == name);
        String::from_utf8_lossy(&found.unwrap_or_else(|| panic!("{name} is missing")).1)
    };
    let benches = files(&bench, &["cu"]).unwrap();
    for (name, _) in sources.iter().chain(&benches) {
        let Some(stem) = name.strip_suffix(".cu") else {
            continue;
        };
        for architecture in ["sm_80", "sm_90a", "sm_100"] {
            let ptx = named(&format!("{stem}.{architecture}.ptx"));
            assert!(ptx.contains(&format!(".target {architecture}")), "{name}");
            assert!(
                ptx.contains(".entry"),
                "{name} for {architecture} has no kernel"
            );
        }
    }
    // One changed letter is found.
    sources[0].1[0] ^= 1;
    assert!(!made_from.contains(&hash_of(&sources)));
    results[0].1[0] ^= 1;
    assert!(!came_of_it.contains(&hash_of(&results)));
}

//! The CUDA kernels without a GPU.
//!
//! `emulator/` compiles the kernels of `engine/src/cuda/kernels` as C++ and runs them on small shapes: rows are equal to
//! the bit in every surrounding, results meet a slow reference within a bound, and the asks answer what the CPU's sampler
//! answers ([`cases`]), to the bit. `tests/emulator.rs` compiles and runs it, and plants bugs that it must find; `tests/ptx.rs`
//! compares the committed PTX with the sources by their hash. `emulator/driver.cpp` is a fake `libcuda.so.1` over the emulator
//! ([`compile::fake_driver`]), on which the backend's tests run (`engine/tests/cuda.rs`), and the scripts for a card
//! (`tests/scripts.rs`). Nothing here is used by the product, and nothing here needs a GPU, a driver or a toolkit. What needs a card
//! is in `tests/device`.

pub mod cases;
pub mod compile;

use std::path::{Path, PathBuf};

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What PTX is made with besides the sources; the same as in `engine/src/cuda/ptx/regenerate.py`.
pub const OPTIONS: [&str; 2] = ["--fmad=false", "--std=c++17"];

/// 64-bit FNV-1a over name, length and text of each file, and the options: as `regenerate.py` computes it.
#[must_use]
pub fn hash<'a>(files: impl Iterator<Item = (&'a str, &'a [u8])>) -> u64 {
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for (name, text) in files {
        add(name.as_bytes());
        add(text.len().to_string().as_bytes());
        add(text);
    }
    for option in OPTIONS {
        add(option.as_bytes());
    }
    digest
}

/// The files of a folder that end so, with their names, in the order in which they are hashed.
///
/// # Errors
/// What the file system says.
pub fn files(folder: &Path, endings: &[&str]) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|end| end.to_str());
        if extension.is_some_and(|end| endings.contains(&end)) {
            let name = path.file_name().unwrap_or_default();
            files.push((name.to_string_lossy().into_owned(), std::fs::read(&path)?));
        }
    }
    files.sort();
    Ok(files)
}

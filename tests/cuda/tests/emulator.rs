//! Compiles the kernels as C++ and runs them, as they are and with bugs planted in a copy.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
#![allow(
    clippy::print_stderr,
    reason = "a skipped test says that it was skipped"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use offshoot_cuda_kernels::cases::cases;
use offshoot_cuda_kernels::{kernels, root};

/// The compiler that there is, if there is one.
fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let known = ["c++", "g++", "clang++"].map(str::to_owned);
    let found = (named.into_iter().chain(known))
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    if found.is_none() {
        eprintln!("skipped: no C++ compiler");
    }
    found
}

/// A folder of the build for this test alone.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn build(compiler: &str, kernels: &Path, folder: &Path) -> PathBuf {
    let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator");
    let binary = folder.join("kernels");
    let output = Command::new(compiler)
        // Products and sums are not contracted, as on the device.
        .args(["-std=c++17", "-O1", "-ffp-contract=off", "-DOFFSHOOT_EMULATED"])
        .args(["-Wall", "-Wextra", "-Wno-unknown-pragmas"])
        .arg("-I")
        .arg(&emulator)
        .arg("-I")
        .arg(kernels)
        .arg(emulator.join("main.cpp"))
        .arg("-o")
        .arg(&binary)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    binary
}

fn run(binary: &Path, folder: &Path, only: &str) -> Output {
    let answers = folder.join("cases");
    std::fs::write(&answers, cases(7, 200)).unwrap();
    Command::new(binary)
        .arg(root().join("decode/tests/vectors/noise.json"))
        .arg(answers)
        .arg(only)
        .output()
        .unwrap()
}

#[test]
fn the_kernels_are_what_they_should_be() {
    let Some(compiler) = compiler() else { return };
    let folder = scratch("as-they-are");
    let output = run(&build(&compiler, &kernels(), &folder), &folder, "");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for part in ["matmul", "attention", "sampling", "model"] {
        assert!(said.contains(part), "{said}");
    }
}

/// A file, the part of the test that must find the bug, what is replaced, and by what.
const PLANTS: [(&str, &str, &str, &str); 6] = [
    // Numbers are used before they have arrived.
    (
        "matmul.cuh",
        "matmul",
        "copy_wait<STAGES - 2>();\n        const u8*",
        "copy_wait<STAGES - 1>();\n        const u8*",
    ),
    // The parts of K are added in another order where blocks share them.
    (
        "matmul.cuh",
        "matmul",
        "added(added(added(all[0][k], all[1][k]), all[2][k]), all[3][k])",
        "added(added(all[0][k], all[1][k]), added(all[2][k], all[3][k]))",
    ),
    // A barrier is missing.
    (
        "attention.cu",
        "attention",
        "    copy_wait<0>();\n    block_sync();\n",
        "    copy_wait<0>();\n",
    ),
    // What a row sees is cut where its path begins.
    (
        "attention.cu",
        "attention",
        "return u32(committed) / PIECE;",
        "return (u32(committed) + PIECE - 1) / PIECE;",
    ),
    // The noise is another.
    (
        "sampling.cuh",
        "sampling",
        "return mix(key + u64(token) * STEP);",
        "return mix(key ^ u64(token) * STEP);",
    ),
    // A sum is taken in another order.
    (
        "asks.cu",
        "sampling",
        "u32 half = LANES / 2; half > 0; half /= 2",
        "u32 half = 1; half < LANES; half *= 2",
    ),
];

#[test]
fn planted_bugs_are_found() {
    let Some(compiler) = compiler() else { return };
    for (i, (file, part, right, wrong)) in PLANTS.into_iter().enumerate() {
        let folder = scratch(&format!("plant-{i}"));
        for entry in std::fs::read_dir(kernels()).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap();
            let text = if name == file {
                assert_eq!(text.matches(right).count(), 1, "{file} has {right:?} once");
                text.replace(right, wrong)
            } else {
                text
            };
            std::fs::write(folder.join(name), text).unwrap();
        }
        let output = run(&build(&compiler, &folder, &folder), &folder, part);
        assert!(!output.status.success(), "nobody found {wrong:?} in {file}");
    }
}

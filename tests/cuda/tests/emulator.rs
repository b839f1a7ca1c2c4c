//! Compiles the kernels as C++ and runs them, as they are and with bugs planted in a copy.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use offshoot_cuda_kernels::cases::cases;
use offshoot_cuda_kernels::compile::{SMALL_BLOCKS, compile, compiler, kernels};
use offshoot_cuda_kernels::root;

/// A folder of the build for this test alone.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn build(compiler: &str, kernels: &Path, folder: &Path, flags: &[&str]) -> PathBuf {
    let binary = folder.join("kernels");
    let flags = [&["-O1"], flags].concat();
    let paths = [Path::new("main.cpp"), kernels, &binary];
    compile(&root(), compiler, paths, &flags).unwrap();
    binary
}

fn run(binary: &Path, folder: &Path) -> Output {
    let answers = folder.join("cases");
    std::fs::write(&answers, cases(7, 200)).unwrap();
    Command::new(binary)
        .arg(root().join("decode/tests/vectors/noise.json"))
        .arg(answers)
        .output()
        .unwrap()
}

#[test]
fn the_kernels_are_what_they_should_be() {
    let Some(compiler) = compiler() else { return };
    // On a card whose blocks have little shared memory only the matmul differs.
    let small = [SMALL_BLOCKS, "-DONE_PART", "-DPART_MATMUL"];
    for (name, flags, parts) in [
        (
            "as-they-are",
            &[][..],
            &["matmul", "attention", "rows", "sampling", "model"][..],
        ),
        ("small-blocks", &small, &["matmul"]),
    ] {
        let folder = scratch(name);
        let output = run(
            &build(&compiler, &kernels(&root()), &folder, flags),
            &folder,
        );
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        for part in parts {
            assert!(said.contains(part), "{said}");
        }
    }
}

/// A file, the part of the test that must find the bug, what is replaced, and by what.
const PLANTS: [(&str, &str, &str, &str); 8] = [
    // Numbers are used before they have arrived.
    (
        "matmul.cuh",
        "PART_MATMUL",
        "copy_wait<STAGES - 2>();\n        const u8*",
        "copy_wait<STAGES - 1>();\n        const u8*",
    ),
    // The parts of K are added in another order where blocks share them.
    (
        "matmul.cuh",
        "PART_MATMUL",
        "added(added(added(all[0][k], all[1][k]), all[2][k]), all[3][k])",
        "added(added(all[0][k], all[1][k]), added(all[2][k], all[3][k]))",
    ),
    // A barrier is missing.
    (
        "attention.cu",
        "PART_ATTENTION",
        "    copy_wait<0>();\n    block_sync();\n",
        "    copy_wait<0>();\n",
    ),
    // What a row sees is cut where its path begins.
    (
        "attention.cu",
        "PART_ATTENTION",
        "return u32(committed) / PIECE;",
        "return (u32(committed) + PIECE - 1) / PIECE;",
    ),
    // Keys are loaded before the kernel that stores them has ended.
    (
        "attention.cu",
        "PART_MODEL",
        "    if (!has_waited) wait_for_kernel_before();\n    has_waited = true;\n    block_sync();\n    load_piece<GROUP, DIM>(at, team, head, count, keys);\n",
        "    block_sync();\n    load_piece<GROUP, DIM>(at, team, head, count, keys);\n    if (!has_waited) wait_for_kernel_before();\n    has_waited = true;\n",
    ),
    // A block that has nothing to do ends before the kernel before it has.
    (
        "attention.cu",
        "PART_ATTENTION",
        "    if (!has_waited) wait_for_kernel_before();\n}",
        "}",
    ),
    // The noise is another.
    (
        "sampling.cuh",
        "PART_SAMPLING",
        "return mix(key + u64(token) * STEP);",
        "return mix(key ^ u64(token) * STEP);",
    ),
    // A sum is taken in another order.
    (
        "asks.cu",
        "PART_SAMPLING",
        "u32 half = LANES / 2; half > 0; half /= 2",
        "u32 half = 1; half < LANES; half *= 2",
    ),
];

#[test]
fn planted_bugs_are_found() {
    let Some(compiler) = compiler() else { return };
    // Compilers take most of the time: two at once.
    let (some, others) = PLANTS.split_at(PLANTS.len() / 2);
    thread::scope(|scope| {
        scope.spawn(|| some.iter().for_each(|plant| is_found(&compiler, plant)));
        others.iter().for_each(|plant| is_found(&compiler, plant));
    });
}

fn is_found(compiler: &str, plant: &(&str, &str, &str, &str)) {
    let (file, part, right, wrong) = *plant;
    let number = PLANTS.iter().position(|known| known == plant);
    let folder = scratch(&format!("plant-{}", number.unwrap()));
    for entry in std::fs::read_dir(kernels(&root())).unwrap() {
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
    let flags = ["-DONE_PART", &format!("-D{part}")];
    let output = run(&build(compiler, &folder, &folder, &flags), &folder);
    assert!(!output.status.success(), "nobody found {wrong:?} in {file}");
}

//! The scripts for a card (`tests/device`), over a fake driver and on tiny models: that they run, and find nothing wrong.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::io::{Write, stderr};
use std::path::Path;
use std::process::Command;

use offshoot_cuda_kernels::compile::{compiler, fake_driver};
use offshoot_cuda_kernels::root;

#[test]
fn the_check_for_a_card_runs_and_finds_nothing() {
    let Some(compiler) = compiler() else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        let _ = writeln!(stderr(), "skipped: no Python");
        return;
    }
    let driver = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-driver");
    fake_driver(&root(), &compiler, &driver, &[]).unwrap();
    let output = Command::new("python3")
        .arg(root().join("tests/device/bench.py"))
        .args(["--tiny", "--only", "invariance", "--models", "8B"])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LD_LIBRARY_PATH", driver)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(
        said.contains("tiny 8B") && said.contains("\n0 wrong in all\n"),
        "{said}"
    );
}

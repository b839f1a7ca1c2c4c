//! The pure crate builds where there is no clock, thread or socket.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::io::Write;
use std::path::Path;
use std::process::Command;

use offshoot_tidy::{Workspace, cargo};

const TARGET: &str = "wasm32-unknown-unknown";

#[test]
fn speculation_builds_for_wasm() {
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .unwrap();
    let sysroot = String::from_utf8(sysroot.stdout).unwrap();
    let installed = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib");
    if !installed.is_dir() {
        // Straight to the stream: the runner hides what a passing test prints.
        let mut shown = std::io::stderr();
        let why = format!("{TARGET} is not installed (rustup target add {TARGET})");
        writeln!(shown, "skipped speculation_builds_for_wasm: {why}").unwrap();
        return;
    }
    let built = Command::new(cargo())
        .args(["build", "--release", "-p", "offshoot-speculation"])
        .args(["--target", TARGET])
        .current_dir(Workspace::load().unwrap().root())
        .status()
        .unwrap();
    assert!(built.success());
}

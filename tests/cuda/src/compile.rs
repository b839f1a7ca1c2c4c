//! Compiling the emulator, where there is a C++ compiler. A file of its own, which the engine's tests use too: nothing depends on
//! this crate.

use std::io::{Error, Result, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::Command;

/// For one whose blocks may have 99 KiB of shared memory; all else is for 227 KiB.
pub const SMALL_BLOCKS: &str = "-DOFFSHOOT_SMALL_BLOCKS";

/// The compiler that there is, on Linux; none is said to standard error, past the runner of tests, which shows only what failed.
#[must_use]
pub fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let known = ["c++", "g++", "clang++"].map(str::to_owned);
    let found = (named.into_iter().chain(known))
        .find(|name| Command::new(name).arg("--version").output().is_ok())
        .filter(|_| cfg!(target_os = "linux"));
    if found.is_none() {
        let _ = writeln!(stderr(), "skipped: no C++ compiler, or not Linux");
    }
    found
}

/// Where the kernels lie in the repository.
#[must_use]
pub fn kernels(root: &Path) -> PathBuf {
    root.join("engine/src/cuda/kernels")
}

/// Compiles a source of `emulator/` with the kernels of a folder.
///
/// # Errors
/// What the compiler says.
pub fn compile(
    root: &Path,
    compiler: &str,
    [source, kernels, to]: [&Path; 3],
    flags: &[&str],
) -> Result<()> {
    let emulator = root.join("tests/cuda/emulator");
    let output = Command::new(compiler)
        // Products and sums are not contracted, as on the device.
        .args(["-std=c++17", "-ffp-contract=off", "-DOFFSHOOT_EMULATED"])
        .args(["-Wall", "-Wextra", "-Wno-unknown-pragmas"])
        .args(flags)
        .arg("-I")
        .arg(&emulator)
        .arg("-I")
        .arg(kernels)
        .arg("-I")
        .arg(root.join("tests/device/kernels"))
        .arg(emulator.join(source))
        .arg("-o")
        .arg(to)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::other(said))
}

/// Compiles a fake `libcuda.so` into a folder, which a process finds through `LD_LIBRARY_PATH`, under every name that it may look
/// for first.
///
/// # Errors
/// What the compiler or the file system says.
pub fn fake_driver(root: &Path, compiler: &str, folder: &Path, flags: &[&str]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let library = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden"];
    let flags = [&library, flags].concat();
    let to = folder.join("libcuda.so");
    let paths = [Path::new("driver.cpp"), &kernels(root), &to];
    compile(root, compiler, paths, &flags)?;
    std::fs::copy(&to, folder.join("libcuda.so.1")).map(|_| ())
}

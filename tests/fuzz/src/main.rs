//! libFuzzer over the targets of this crate. `tests/fuzz/run` builds it with the instrumentation it needs and starts
//! it; which target it runs is said by the variable `OFFSHOOT_FUZZ_TARGET`. It keeps what is new to it in the first
//! folder it is given. The targets are the library's; nothing is decided here.
#![no_main]
#![allow(
    unsafe_code,
    missing_docs,
    reason = "libFuzzer's entry points are made by its macro"
)]

use std::sync::LazyLock;

use offshoot_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("OFFSHOOT_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.into_iter().find(|target| target.name == name);
    found
        .unwrap_or_else(|| panic!("OFFSHOOT_FUZZ_TARGET is {name:?}, which is none of {TARGETS:?}"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));

//! A fence around the tokenizer library, which panics on crafted input.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Set while this thread runs guarded code, so that the panic hook stays
    /// silent for panics that come back to the caller as an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Wraps the hook that is in place once per process. A hook that the process
/// installs later replaces this one: the error stays the same, and the panic
/// is printed as well.
static HOOK: Once = Once::new();

/// Runs `work`; a panic inside it comes back as its message.
///
/// The caller must hold nothing that a half-finished `work` could leave
/// inconsistent: the tokenizer is only read here, and its internal caches are
/// built to survive a poisoned lock.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                previous(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.map_err(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        format!("the tokenizer library panicked: {message}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_comes_back_as_its_message() {
        let outcome: Result<(), String> = guarded(|| panic!("number {}", 7));
        assert_eq!(
            outcome.expect_err("the closure panics"),
            "the tokenizer library panicked: number 7"
        );
        assert_eq!(guarded(|| 3), Ok(3));
        assert!(!GUARDED.get(), "the fence is down again after a panic");
    }
}

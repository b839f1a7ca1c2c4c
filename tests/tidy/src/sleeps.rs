//! No test waits for time to pass: it would be slow where it is right and wrong where a machine is slow.
//!
//! A test waits for what it is about (a channel, a notification, a state with a deadline) or runs under tokio's paused
//! clock, where sleeping costs nothing and is exact.

use super::code::{self, Halves};

/// A file of tests that may sleep.
#[derive(Clone, Copy, Debug)]
pub struct MaySleep {
    /// The file, or the folder if it ends in a slash.
    pub path: &'static str,
    /// Why nothing else would do.
    pub reason: &'static str,
}

/// All of them.
pub const MAY_SLEEP: &[MaySleep] = &[
    MaySleep {
        path: "tests/e2e/src/faults/",
        reason: "the fault table is an experiment in real time: how long a fault lasts is what is measured",
    },
    MaySleep {
        path: "tests/e2e/src/soak/",
        reason: "the soak lasts as long as it is asked to, and clients that are slow or pause are what it is about",
    },
    MaySleep {
        path: "tests/e2e/src/client.rs",
        reason: "a client that is refused waits as long as the server tells it to, as clients do",
    },
    MaySleep {
        path: "tests/e2e/examples/client.rs",
        reason: "the example of a client pauses before it asks the next coordinator, as clients should",
    },
    MaySleep {
        path: "tests/e2e/src/proxy/",
        reason: "a network is made slow by holding back what it carries until it is due",
    },
];

/// Sleeps in a masked source that only tests compile.
#[must_use]
pub fn sleeps(path: &str, masked: &str) -> Vec<String> {
    if MAY_SLEEP.iter().any(|may| covers(may.path, path)) {
        return Vec::new();
    }
    let awake = code::without(masked, |attribute| {
        let squeezed: String = attribute.split_whitespace().collect();
        squeezed.contains("start_paused=true")
    });
    code::names(&awake)
        .filter(|(_, name)| matches!(*name, "sleep" | "sleep_until" | "sleep_ms"))
        .map(|(line, name)| format!("{path}:{line}: {name} in a test"))
        .collect()
}

/// The same for the tests in a source of the product.
#[must_use]
pub fn sleeps_of_tests(path: &str, halves: &Halves) -> Vec<String> {
    sleeps(path, &halves.tests)
}

fn covers(allowed: &str, path: &str) -> bool {
    path == allowed || (allowed.ends_with('/') && path.starts_with(allowed))
}

/// Whether a path lies in a folder of tests.
#[must_use]
pub fn is_test_file(path: &str) -> bool {
    path.ends_with(".rs") && path.split('/').any(|folder| folder == "tests")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{halves, mask};

    #[test]
    fn a_planted_sleep_is_found() {
        let path = "worker/tests/a.rs";
        for planted in [
            "std::thread::sleep(PAUSE);",
            "use tokio::time::sleep;",
            "tokio::time::sleep_until(then).await;",
            "#[tokio::test]\nasync fn f() { tokio::time::sleep(PAUSE).await; }",
        ] {
            assert_eq!(sleeps(path, &mask(planted)).len(), 1, "{planted}");
        }
        let product = "fn f() { sleep(PAUSE); }\n#[cfg(test)]\nmod tests {\n    fn g() { sleep(PAUSE); }\n}\n";
        let found = sleeps_of_tests("worker/src/a.rs", &halves(&mask(product)));
        assert_eq!(found, ["worker/src/a.rs:4: sleep in a test"]);
    }

    #[test]
    fn paused_time_and_listed_files_may_sleep() {
        let paused = "#[tokio::test(start_paused = true)]\nasync fn f() { tokio::time::sleep(PAUSE).await; }\n";
        assert_eq!(sleeps("worker/tests/a.rs", &mask(paused)), [""; 0]);
        let sleeps_on = "fn f() { sleep(PAUSE); }";
        assert_eq!(sleeps("tests/e2e/src/faults/row.rs", sleeps_on), [""; 0]);
        assert_eq!(sleeps("tests/e2e/src/faultless.rs", sleeps_on).len(), 1);
        let asleep = mask("let asleep = 1; // sleep\n");
        assert_eq!(sleeps("a/tests/b.rs", &asleep), [""; 0]);
    }

    #[test]
    fn tests_are_known_by_their_folder() {
        for path in [
            "tests/e2e/src/client.rs",
            "worker/tests/a.rs",
            "worker/src/tests/a.rs",
        ] {
            assert!(is_test_file(path), "{path}");
        }
        for path in [
            "worker/src/a.rs",
            "tests/e2e/Cargo.toml",
            "src/contests/a.rs",
        ] {
            assert!(!is_test_file(path), "{path}");
        }
    }
}

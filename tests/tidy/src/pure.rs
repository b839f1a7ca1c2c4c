//! What pure crates do without: a clock, threads, sockets, files, hashes, and the floats of the C library.
//!
//! `#![no_std]` alone does not prove it. A crate below that links `std` (one file of `decode` does, for the machine's
//! own fused multiply-add and square root) brings `f32::ln` and its like into every crate above it, and
//! `extern crate std` is one line.

use super::code::{self, Halves};

/// Whether a crate may use the standard library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Std {
    /// It is `no_std` with `alloc`, and takes float functions from `decode::math`.
    Absent,
    /// It uses what of it is pure.
    Present,
}

/// A crate that decides and does not act.
#[derive(Clone, Copy, Debug)]
pub struct Pure {
    /// Its folder.
    pub member: &'static str,
    /// What it may use.
    pub std: Std,
    /// All it may link into the product besides members of the workspace.
    pub dependencies: &'static [&'static str],
    /// What it may use all the same.
    pub exceptions: &'static [Exception],
}

/// A finding that is none.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// In this file.
    pub path: &'static str,
    /// What would be found.
    pub finding: &'static str,
    /// Why it may be there.
    pub reason: &'static str,
}

/// The pure crates.
pub const PURE: &[Pure] = &[
    Pure {
        member: "decode",
        std: Std::Absent,
        dependencies: &["thiserror"],
        exceptions: &[
            Exception {
                path: "decode/src/math.rs",
                finding: "extern crate std",
                reason: "fused multiply-add, square root and the question which instructions there are",
            },
            Exception {
                path: "decode/src/math.rs",
                finding: "std::is_x86_feature_detected",
                reason: "kernels ask it for the instructions of the machine; results do not depend on it",
            },
            Exception {
                path: "decode/src/math.rs",
                finding: ".sqrt(",
                reason: "correctly rounded by IEEE 754, so the same on every machine",
            },
        ],
    },
    Pure {
        member: "speculation",
        std: Std::Absent,
        dependencies: &["thiserror"],
        exceptions: &[],
    },
    Pure {
        member: "control",
        std: Std::Absent,
        dependencies: &["thiserror"],
        exceptions: &[],
    },
    Pure {
        member: "simulation",
        std: Std::Present,
        dependencies: &["thiserror"],
        exceptions: &[],
    },
];

/// Names that have no place in any pure crate, whatever path leads to them.
const NAMES: [&str; 21] = [
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "HashMap",
    "HashSet",
    "hash_map",
    "hash_set",
    "RandomState",
    "DefaultHasher",
    "hashbrown",
    "thread_local",
    "JoinHandle",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "tokio",
    "rand",
    "getrandom",
    "tracing",
];

/// Macros that write to the streams of the process.
const PRINTING: [&str; 5] = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];

/// Modules of `std` that reach out of the process or hide its state, for crates that may use the rest.
const IMPURE_MODULES: [&str; 8] = ["thread", "net", "fs", "env", "process", "io", "os", "hash"];

/// Methods of `f32` and `f64` that are in `std` and not in `core`. Their last bits are the C library's.
const FLOAT_METHODS: [&str; 34] = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "cos",
    "cosh",
    "exp",
    "exp2",
    "exp_m1",
    "floor",
    "fract",
    "hypot",
    "ln",
    "ln_1p",
    "log",
    "log10",
    "log2",
    "mul_add",
    "powf",
    "powi",
    "round",
    "round_ties_even",
    "sin",
    "sin_cos",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
];

/// What is impure about one source of such a crate. Only the half that goes into the product is looked at.
#[must_use]
pub fn impurities(path: &str, halves: &Halves, pure: &Pure) -> Vec<String> {
    let mut found: Vec<(usize, String)> = code::names(&halves.product)
        .filter(|(_, name)| NAMES.contains(name))
        .map(|(line, name)| (line, name.to_owned()))
        .collect();
    for (number, line) in halves.product.lines().enumerate() {
        let number = number + 1;
        let calls = |name: &&&str| {
            line.match_indices(**name)
                .any(|(at, _)| !line[..at].ends_with(is_word))
        };
        let printing = PRINTING.iter().find(calls);
        found.extend(printing.map(|name| (number, (*name).to_owned())));
        match pure.std {
            Std::Absent => {
                let squeezed: Vec<&str> = line.split_whitespace().collect();
                if squeezed.join(" ").contains("extern crate std") {
                    found.push((number, "extern crate std".to_owned()));
                }
                found.extend(std_names(line).map(|name| (number, format!("std::{name}"))));
                found.extend(float_methods(line, pure).map(|finding| (number, finding)));
            }
            Std::Present => found.extend(
                (std_names(line).filter(|name| IMPURE_MODULES.contains(&name.as_str())))
                    .map(|name| (number, format!("std::{name}"))),
            ),
        }
    }
    found.sort();
    (found.into_iter())
        .filter(|(_, finding)| {
            !(pure.exceptions.iter()).any(|e| e.path == path && e.finding == finding)
        })
        .map(|(line, finding)| format!("{path}:{line}: {finding} has no place in pure code"))
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What follows each `std::`: one name, or those of a group.
fn std_names(line: &str) -> impl Iterator<Item = String> + '_ {
    line.match_indices("std::").flat_map(|(at, found)| {
        let is_whole = !line[..at].ends_with(is_word);
        let rest = &line[at + found.len()..];
        let names: Vec<String> = match rest.strip_prefix('{') {
            _ if !is_whole => Vec::new(),
            Some(group) => (group.split([',', '}']))
                .map(|path| {
                    path.trim()
                        .split("::")
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                })
                .filter(|name| !name.is_empty() && name.chars().all(is_word))
                .collect(),
            None => vec![rest.chars().take_while(|&c| is_word(c)).collect()],
        };
        names
    })
}

fn float_methods<'a>(line: &'a str, pure: &'a Pure) -> impl Iterator<Item = String> + 'a {
    (FLOAT_METHODS.iter())
        // A fused multiply-add is rounded once, by definition; the contract of `decode` is written in it.
        .filter(|&&name| !(name == "mul_add" && pure.member == "decode"))
        .map(|name| format!(".{name}("))
        .filter(|call| line.contains(call.as_str()))
}

/// The root file of a `no_std` crate that does not say so.
#[must_use]
pub fn says_no_std(path: &str, halves: &Halves) -> Option<String> {
    let mut lines = (halves.product.lines()).filter(|line| !line.trim().is_empty());
    let inner = lines
        .by_ref()
        .take_while(|line| line.trim_start().starts_with("#!["));
    let found = inner.into_iter().any(|line| line.trim() == "#![no_std]");
    (!found).then(|| format!("{path}: does not begin with #![no_std]"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::code::{halves, mask};

    fn pure(member: &str) -> &'static Pure {
        PURE.iter().find(|pure| pure.member == member).unwrap()
    }

    fn found(member: &str, text: &str) -> Vec<String> {
        impurities("x/src/a.rs", &halves(&mask(text)), pure(member))
    }

    #[test]
    fn what_is_planted_is_found() {
        for planted in [
            "let now = std::time::Instant::now();",
            "fn f(now: Instant) {}",
            "extern crate std;",
            "extern  crate std as alias;",
            "use std::collections::BTreeMap;",
            "let map: HashMap<u32, u32> = HashMap::new();",
            "use hashbrown::HashSet;",
            "std::thread::spawn(|| ());",
            "let y = x.ln();",
            "let y = (x + 1.0).exp();",
            "let y = x.powi(2) + x.powf(0.5);",
            "let y = x.sqrt().round().floor().ceil();",
            "let y = x.log2().sin();",
            "let n: u32 = rand::random();",
            "println!(\"{x}\");",
            "thread_local! { static X: u8 = 0; }",
        ] {
            for member in ["decode", "speculation", "control"] {
                assert!(!found(member, planted).is_empty(), "{planted} in {member}");
            }
        }
        assert!(!found("speculation", "let y = a.mul_add(b, c);").is_empty());
        assert!(found("decode", "let y = a.mul_add(b, c);").is_empty());
    }

    #[test]
    fn what_is_planted_into_the_simulation_is_found() {
        for planted in [
            "let now = Instant::now();",
            "use std::{collections::BTreeMap, fs};",
            "use std::thread;",
            "let socket = std::net::TcpStream::connect(to);",
            "let seen: HashSet<u8> = HashSet::new();",
            "let home = std::env::var(name);",
            "tokio::spawn(run());",
        ] {
            assert!(!found("simulation", planted).is_empty(), "{planted}");
        }
        let fine = "use std::collections::BTreeMap;\nuse std::time::Duration;\nlet y = x.ln();\n\
                    let print = fingerprint(x);\nimprint!(x);";
        assert_eq!(found("simulation", fine), [""; 0]);
    }

    #[test]
    fn words_and_tests_are_not_code() {
        let text = "//! Links no std::thread, no HashMap.\nuse core::time::Duration;\n\
                    fn instant(name: &str) { log(\"std::fs\"); mystd::run(); x.lnx(); }\n\
                    #[cfg(test)]\nextern crate std;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert_eq!(found("control", text), [""; 0]);
        let line = found("control", &format!("{text}use std::fs;\n"));
        assert_eq!(line, ["x/src/a.rs:10: std::fs has no place in pure code"]);
    }

    #[test]
    fn exceptions_hold_for_their_file_only() {
        let text =
            "extern crate std;\nlet y = x.sqrt();\nif std::is_x86_feature_detected!(\"avx2\") {}\n";
        let split = halves(&mask(text));
        let decode = pure("decode");
        assert_eq!(impurities("decode/src/math.rs", &split, decode), [""; 0]);
        assert_eq!(impurities("decode/src/scores.rs", &split, decode).len(), 3);
        let clock = halves(&mask("let now = std::time::Instant::now();"));
        assert_eq!(impurities("decode/src/math.rs", &clock, decode).len(), 2);
    }

    #[test]
    fn no_std_stands_at_the_top() {
        let says = |text: &str| says_no_std("x/src/lib.rs", &halves(&mask(text)));
        assert_eq!(
            says("//! Docs.\n\n#![no_std]\n\nextern crate alloc;\n"),
            None
        );
        assert_eq!(says("#![forbid(unsafe_code)]\n#![no_std]\nmod a;\n"), None);
        assert!(says("//! #![no_std]\nextern crate alloc;\n").is_some());
        assert!(says("mod a;\n#![no_std]\n").is_some());
        assert!(says("#![cfg_attr(not(test), no_std)]\nmod a;\n").is_some());
    }
}

//! What no file of the repository may contain, and what each crate must say.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use offshoot_tidy::{HELD, Source, Workspace, checks, code, is_held, pure, sleeps, walk, words};

fn repository() -> Vec<Source> {
    let found = walk(Workspace::load().unwrap().root()).unwrap();
    assert!(
        found.iter().any(|source| source.path == "Cargo.toml"),
        "the walk did not start at the repository's root"
    );
    found
}

/// Fails with every finding at once, one a line.
fn none(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<_> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn files_have_a_readable_length_and_a_telling_name() {
    let sources = repository();
    none(sources.iter().filter_map(checks::length));
    none(sources.iter().filter_map(checks::name));
}

#[test]
fn crates_say_what_they_are() {
    let sources = repository();
    let workspace = Workspace::load().unwrap();
    for member in workspace.members() {
        let root = |name: &str| format!("{member}/src/{name}.rs");
        assert!(
            sources
                .iter()
                .any(|source| source.path == root("lib") || source.path == root("main")),
            "{member} has neither src/lib.rs nor src/main.rs"
        );
    }
    none(sources.iter().filter_map(checks::crate_docs));
}

#[test]
fn nothing_is_left_for_later_or_bound_to_one_machine() {
    let sources = repository();
    none(sources.iter().flat_map(checks::unfinished));
    none(sources.iter().flat_map(checks::machine_paths));
}

#[test]
fn pure_crates_take_no_clock_thread_socket_hash_or_float_of_the_c_library() {
    let sources = repository();
    for pure in pure::PURE {
        let files = code::crate_halves(&sources, pure.member);
        if HELD.is_none() || is_held(pure.member) {
            assert!(!files.is_empty(), "{} has no sources", pure.member);
        }
        none(
            files
                .iter()
                .flat_map(|(path, halves)| pure::impurities(path, halves, pure)),
        );
        if pure.std == pure::Std::Absent {
            let root = format!("{}/src/lib.rs", pure.member);
            let found = files.iter().find(|(path, _)| *path == root);
            let (path, halves) = found.expect("a library has a root");
            none(pure::says_no_std(path, halves));
        }
        for exception in pure.exceptions {
            let without = pure::Pure {
                exceptions: &[],
                ..*pure
            };
            let mut all =
                (files.iter()).flat_map(|(path, halves)| pure::impurities(path, halves, &without));
            assert!(
                all.any(|line| line.contains(exception.path) && line.contains(exception.finding)),
                "{exception:?} is not needed any more"
            );
        }
    }
}

/// The Rust sources that are held to the newest rules.
fn held(sources: &[Source]) -> Vec<(&str, String)> {
    let held: Vec<_> = (sources.iter())
        .filter(|source| source.path.ends_with(".rs") && is_held(&source.path))
        .map(|source| (source.path.as_str(), code::mask(&source.text)))
        .collect();
    assert!(held.len() > 50, "{} files", held.len());
    held
}

#[test]
fn retired_words_do_not_come_back() {
    let sources = repository();
    let held = held(&sources);
    // The lists themselves stand in quotes.
    none(
        held.iter()
            .flat_map(|(path, masked)| words::retired(path, masked)),
    );
}

#[test]
fn a_concept_has_one_type() {
    let sources = repository();
    let workspace = Workspace::load().unwrap();
    let of_product = |member: &&str| is_held(member) && !member.starts_with("tests/");
    for member in workspace.members().filter(of_product) {
        let files = code::crate_halves(&sources, member);
        none((files.iter()).flat_map(|(path, halves)| words::twins(member, path, halves)));
    }
}

#[test]
fn no_test_sleeps() {
    let sources = repository();
    for (path, masked) in held(&sources) {
        if sleeps::is_test_file(path) {
            none(sleeps::sleeps(path, &masked));
        } else {
            none(sleeps::sleeps_of_tests(path, &code::halves(&masked)));
        }
    }
    if HELD.is_none() {
        for may in sleeps::MAY_SLEEP {
            let is_there = |source: &Source| source.path.starts_with(may.path);
            assert!(
                sources.iter().any(is_there),
                "{may:?} is not needed any more"
            );
        }
    }
}

#[test]
fn versions_are_the_workspaces() {
    let sources = repository();
    let workspace = Workspace::load().unwrap();
    let manifests: Vec<_> = workspace
        .members()
        .map(|member| format!("{member}/Cargo.toml"))
        .collect();
    none(
        sources
            .iter()
            .filter(|source| manifests.contains(&source.path))
            .flat_map(checks::own_versions),
    );
}

#[test]
fn the_documents_a_newcomer_looks_for_are_there() {
    let sources = repository();
    for path in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "justfile",
        "deny.toml",
        "rust-toolchain.toml",
        ".ci/run",
        "models/README.md",
    ] {
        assert!(
            sources.iter().any(|source| source.path == path),
            "{path} is missing"
        );
    }
    let text = |path: &str| {
        let found = sources.iter().find(|source| source.path == path);
        found.map(|source| source.text.clone()).unwrap()
    };
    // The two commands that have to work on a fresh clone.
    for command in [
        "cargo run --release -- generate \"fn main() {\"",
        "cargo test --release --workspace",
    ] {
        for path in ["README.md", ".ci/run"] {
            assert!(text(path).contains(command), "{path} lacks {command}");
        }
    }
}

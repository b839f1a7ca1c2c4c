//! What no file of the repository may contain, and what each crate must say.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use offshoot_tidy::{Source, Workspace, checks, walk};

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
fn the_pure_crate_takes_no_clock_thread_or_socket() {
    let sources = repository();
    let pure: Vec<_> = sources
        .iter()
        .filter(|source| source.path.starts_with("speculation/src/"))
        .collect();
    assert!(!pure.is_empty());
    none(pure.into_iter().flat_map(checks::impurities));
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

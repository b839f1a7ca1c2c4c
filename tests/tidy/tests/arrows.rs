//! Who may depend on whom. The table here and the one in ARCHITECTURE.md say
//! the same; a new arrow needs both, and a reason.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeSet;

use offshoot_tidy::{Kind, Workspace};

/// Everything that `cli` puts together.
const ALL: &[&str] = &[
    "coordinator",
    "draft-worker",
    "engine",
    "proto",
    "runtime",
    "speculation",
    "target-worker",
    "text",
    "worker",
];

const MODEL_WORKER: &[&str] = &[
    "engine",
    "proto",
    "runtime",
    "speculation",
    "text",
    "worker",
];

/// What each member may link into what users run. Tests' crates are not listed:
/// nothing stands above them, so they may depend on anything.
const ARROWS: &[(&str, &[&str])] = &[
    ("speculation", &[]),
    ("text", &[]),
    ("engine", &[]),
    ("runtime", &[]),
    ("proto", &["speculation"]),
    ("worker", &["engine", "runtime", "speculation", "text"]),
    ("draft-worker", MODEL_WORKER),
    ("target-worker", MODEL_WORKER),
    ("coordinator", &["proto", "runtime", "speculation", "text"]),
    ("cli", ALL),
];

/// What a member's own tests may link beyond its arrows.
const DEV_ARROWS: &[(&str, &[&str])] = &[
    // The oracle tests feed the bundled prompts, which have to be tokenised.
    ("engine", &["text"]),
];

/// Packages that a member must never link, however indirectly, and why.
const ABSENT: &[(&str, &[&str], &str)] = &[
    (
        "speculation",
        &[
            "tokio",
            "tonic",
            "candle-core",
            "candle-nn",
            "rand",
            "getrandom",
            "tracing",
            "metrics",
            "mio",
            "socket2",
        ],
        "it is pure: now and seed are arguments",
    ),
    (
        "coordinator",
        &["candle-core", "candle-nn", "candle-transformers"],
        "it serves clients and holds no model",
    ),
    (
        "engine",
        &["tonic", "tokio", "prost", "hyper"],
        "it knows of models and nothing of networks",
    ),
    (
        "runtime",
        &["candle-core", "tokenizers"],
        "every process links it, also those without a model",
    ),
    (
        "text",
        &["candle-core", "tokio", "tonic"],
        "the coordinator links it and the engine stays out of it",
    ),
    (
        "proto",
        &["candle-core", "tokenizers"],
        "the wire carries ids and scores",
    ),
];

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn every_member_has_its_place_in_the_table() {
    let workspace = Workspace::load().unwrap();
    let listed: BTreeSet<_> = ARROWS.iter().map(|(name, _)| *name).collect();
    let present: BTreeSet<_> = workspace
        .members()
        .filter(|name| !name.starts_with("tests/"))
        .collect();
    assert_eq!(present, listed);
}

#[test]
fn nobody_depends_on_more_than_the_arrows_allow() {
    let workspace = Workspace::load().unwrap();
    for (member, allowed) in ARROWS {
        for kind in [Kind::Normal, Kind::Build] {
            let below = workspace.members_below(member, kind);
            let extra: Vec<_> = below.difference(&set(allowed)).cloned().collect();
            assert!(
                extra.is_empty(),
                "{member} must not depend on {extra:?} ({kind:?}); its arrows are {allowed:?}"
            );
        }
        let exceptions: BTreeSet<_> = DEV_ARROWS
            .iter()
            .filter(|(name, _)| name == member)
            .flat_map(|(_, extra)| set(extra))
            .chain(set(allowed))
            .collect();
        let below = workspace.members_below(member, Kind::Development);
        let extra: Vec<_> = below.difference(&exceptions).cloned().collect();
        assert!(
            extra.is_empty(),
            "the tests of {member} must not depend on {extra:?}; list an exception if they have to"
        );
    }
}

#[test]
fn nothing_depends_on_the_tests() {
    let workspace = Workspace::load().unwrap();
    for (member, _) in ARROWS {
        for kind in [Kind::Normal, Kind::Development, Kind::Build] {
            let tests: Vec<_> = workspace
                .members_below(member, kind)
                .into_iter()
                .filter(|name| name.starts_with("tests/"))
                .collect();
            assert!(tests.is_empty(), "{member} depends on {tests:?}");
        }
    }
}

#[test]
fn what_must_be_absent_is_absent() {
    let workspace = Workspace::load().unwrap();
    for (member, absent, why) in ABSENT {
        let linked = workspace.linked(member);
        for package in *absent {
            if let Some(chain) = linked.get(*package) {
                panic!("{member} links {package} by {}; {why}", chain.join(" -> "));
            }
        }
    }
}

/// The walk over the graph finds what is there, or the test above proves
/// nothing.
#[test]
fn the_walk_reaches_what_is_linked() {
    let workspace = Workspace::load().unwrap();
    let cli = workspace.linked("cli");
    for package in ["offshoot-speculation", "candle-core", "tokio", "mio"] {
        assert!(cli.contains_key(package), "cli does not link {package}");
    }
    assert!(cli["mio"].len() > 2, "mio is only reached through others");
    assert!(workspace.linked("runtime").contains_key("tonic"));
}

#[test]
fn every_manifest_says_what_the_crate_is() {
    let workspace = Workspace::load().unwrap();
    for member in workspace.members() {
        let words = workspace.description(member).split_whitespace().count();
        assert!(words >= 4, "{member}/Cargo.toml has no description");
    }
}

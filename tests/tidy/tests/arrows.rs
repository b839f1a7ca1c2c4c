//! Who depends on whom, as cargo resolves it, against the tables in `walls`.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeSet;

use offshoot_tidy::walls::{
    ABSENT, ARROWS, documented, extra_arrows, extra_dependencies, forbidden,
};
use offshoot_tidy::{HELD, Kind, Workspace, is_held};

/// Fails with every finding at once, one a line.
fn none(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<_> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn every_member_has_its_place_in_the_table() {
    let workspace = Workspace::load().unwrap();
    let listed: BTreeSet<_> = ARROWS.iter().map(|(name, _)| *name).collect();
    let present: BTreeSet<_> = workspace
        .members()
        .filter(|name| !name.starts_with("tests/"))
        .collect();
    assert!(present.is_subset(&listed), "{present:?}");
    if HELD.is_none() {
        assert_eq!(present, listed);
    }
}

#[test]
fn the_map_and_the_table_say_the_same() {
    let root = Workspace::load().unwrap().root().join("ARCHITECTURE.md");
    let page = documented(&std::fs::read_to_string(root).unwrap());
    let table = (ARROWS.iter()).map(|(member, below)| {
        let below = below.iter().map(|&name| name.to_owned()).collect();
        ((*member).to_owned(), below)
    });
    assert_eq!(page, table.collect());
}

#[test]
fn nobody_depends_on_more_than_the_arrows_allow() {
    let workspace = Workspace::load().unwrap();
    let held = ARROWS.iter().filter(|(member, _)| is_held(member));
    none(held.flat_map(|(member, allowed)| extra_arrows(&workspace, member, allowed)));
}

#[test]
fn pure_crates_link_what_is_on_their_lists() {
    none(extra_dependencies(&Workspace::load().unwrap()));
}

#[test]
fn nothing_depends_on_the_tests() {
    let workspace = Workspace::load().unwrap();
    let present: BTreeSet<_> = workspace.members().collect();
    for (member, _) in ARROWS.iter().filter(|(name, _)| present.contains(name)) {
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
    let held = ABSENT.iter().filter(|(member, ..)| is_held(member));
    none(held.flat_map(|(member, absent, why)| forbidden(&workspace, member, absent, why)));
}

/// The walk over the graph finds what is there, or the tests above prove nothing.
#[test]
fn the_walk_reaches_what_is_linked() {
    let workspace = Workspace::load().unwrap();
    let cli = workspace.linked("cli");
    for package in ["offshoot-speculation", "offshoot-decode", "tokio", "mio"] {
        assert!(cli.contains_key(package), "cli does not link {package}");
    }
    assert!(cli["mio"].len() > 2, "mio is only reached through others");
    assert!(workspace.linked("runtime").contains_key("tonic"));
    let direct = workspace.packages_below("decode", Kind::Normal);
    assert!(direct.contains("thiserror"), "{direct:?}");
}

#[test]
fn every_manifest_says_what_the_crate_is() {
    let workspace = Workspace::load().unwrap();
    for member in workspace.members() {
        let words = workspace.description(member).split_whitespace().count();
        assert!(words >= 4, "{member}/Cargo.toml has no description");
    }
}

//! Who depends on whom, as cargo resolves it, against the tables in `walls`.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use offshoot_tidy::walls::{
    ABSENT, ARROWS, documented, extra_arrows, extra_dependencies, forbidden,
};
use offshoot_tidy::{HELD, Kind, Workspace, cargo, is_held};

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

/// The features of each package that a selection of the workspace switches on, by name and version. A package may stand there
/// twice, for the product and for what runs while it is built.
fn features(selection: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(cargo())
        .args([
            "tree", "--locked", "--prefix", "none", "--format", "{p} {f}",
        ])
        .args(selection)
        .current_dir(Workspace::load().unwrap().root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        // Without `(proc-macro)`, a path, and `(*)` where it stood before.
        let mut words = line.split_whitespace().filter(|word| !word.contains('('));
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            let on = words.next().unwrap_or_default().to_owned();
            (found.entry(format!("{name} {version}")).or_default()).insert(on);
        }
    }
    found
}

/// Otherwise `cargo run` and `cargo test` would build it, and every crate above it, once each.
#[test]
fn the_product_and_the_tests_share_every_package_they_both_link() {
    let product = features(&["--package", "offshoot", "--edges", "normal"]);
    let all = features(&["--workspace", "--edges", "normal,dev"]);
    assert!(product.len() > 100, "{product:?}");
    none(product.iter().filter_map(|(package, on)| {
        let built = &all[package];
        let other = on.difference(built).next()?;
        Some(format!(
            "{package} has features {other:?}; for tests {built:?}"
        ))
    }));
}

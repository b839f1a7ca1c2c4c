//! Who may depend on whom. The tables here and ARCHITECTURE.md say the same; a new arrow needs both, and a reason.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Kind, Workspace};
use super::pure::PURE;

/// What each member may link into what users run. Tests' crates are not listed: nothing stands above them, so they may
/// depend on anything.
pub const ARROWS: &[(&str, &[&str])] = &[
    ("decode", &[]),
    ("speculation", &["decode"]),
    ("control", &["decode", "speculation"]),
    ("simulation", &["control", "decode", "speculation"]),
    ("gguf", &[]),
    ("hub", &[]),
    ("text", &["gguf"]),
    ("runtime", &[]),
    ("proto", &["decode", "speculation"]),
    ("engine", &["decode", "gguf"]),
    (
        "worker",
        &[
            "control",
            "decode",
            "engine",
            "hub",
            "proto",
            "runtime",
            "speculation",
            "text",
        ],
    ),
    ("draft-worker", &["worker"]),
    ("target-worker", &["worker"]),
    (
        "coordinator",
        &[
            "control",
            "decode",
            "hub",
            "proto",
            "runtime",
            "speculation",
            "text",
        ],
    ),
    (
        "laboratory",
        &["control", "decode", "engine", "speculation"],
    ),
    (
        "cli",
        &[
            "control",
            "coordinator",
            "decode",
            "draft-worker",
            "engine",
            "laboratory",
            "gguf",
            "hub",
            "proto",
            "runtime",
            "simulation",
            "speculation",
            "target-worker",
            "text",
            "worker",
        ],
    ),
];

/// Packages that a member must never link, however indirectly, and why.
pub const ABSENT: &[(&str, &[&str], &str)] = &[
    (
        "simulation",
        &["tokio", "tonic", "rand", "getrandom", "mio", "socket2"],
        "time, the network and chance are simulated",
    ),
    (
        "laboratory",
        &["tokio", "tonic", "mio", "socket2", "tokenizers"],
        "time, the network and texts are simulated",
    ),
    (
        "engine",
        &["tonic", "tokio", "prost", "hyper", "ureq", "candle-core"],
        "it computes with its own kernels and knows nothing of networks",
    ),
    (
        "worker",
        &["candle-core", "candle-nn", "candle-transformers"],
        "its models are the engine's",
    ),
    (
        "coordinator",
        &["candle-core", "offshoot-engine", "offshoot-worker"],
        "it serves clients and holds no model",
    ),
    (
        "hub",
        &["tokio", "aws-lc-rs", "tokenizers", "safetensors"],
        "it fetches files and does not look into them",
    ),
    (
        "runtime",
        &["candle-core", "tokenizers"],
        "every process links it, also those without a model",
    ),
    (
        "text",
        &["candle-core", "tokio", "tonic"],
        "the coordinator links it, and the engine stays out of it",
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

/// Arrows of a member that the table does not have, those of its tests included.
#[must_use]
pub fn extra_arrows(workspace: &Workspace, member: &str, allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for kind in [Kind::Normal, Kind::Build, Kind::Development] {
        for extra in workspace
            .members_below(member, kind)
            .difference(&set(allowed))
        {
            found.push(format!(
                "{member} must not depend on {extra} ({kind:?}); its arrows are {allowed:?}"
            ));
        }
    }
    found
}

/// Dependencies of the pure crates that their lists do not have.
#[must_use]
pub fn extra_dependencies(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    let present: BTreeSet<&str> = workspace.members().collect();
    for pure in PURE.iter().filter(|pure| present.contains(pure.member)) {
        for kind in [Kind::Normal, Kind::Build] {
            let below = workspace.packages_below(pure.member, kind);
            for extra in below.difference(&set(pure.dependencies)) {
                found.push(format!(
                    "{} must not depend on {extra} ({kind:?}); it is pure and may link {:?}",
                    pure.member, pure.dependencies
                ));
            }
        }
    }
    found
}

/// Packages that a member links although it must not, with the way by which it gets there.
#[must_use]
pub fn forbidden(workspace: &Workspace, member: &str, absent: &[&str], why: &str) -> Vec<String> {
    let linked = workspace.linked(member);
    (absent.iter())
        .filter_map(|package| {
            let chain = linked.get(*package)?.join(" -> ");
            Some(format!("{member} links {package} by {chain}; {why}"))
        })
        .collect()
}

/// The arrows as a page says them: lines that begin with the folder in bold, an arrow, and folders up to a full stop.
#[must_use]
pub fn documented(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with("- **`") {
            continue;
        }
        let mut entry = line.to_owned();
        while let Some(next) = lines.next_if(|next| next.starts_with("  ")) {
            entry.push(' ');
            entry.push_str(next.trim());
        }
        let Some((folders, rest)) = entry.split_once(" → ") else {
            continue;
        };
        let below = rest.split(". ").next().unwrap_or_default();
        let below: BTreeSet<String> = match below {
            "everything above" => found.keys().cloned().collect(),
            _ => quoted(below).collect(),
        };
        for folder in quoted(folders) {
            found.insert(folder, below.clone());
        }
    }
    found
}

/// The folders in backticks.
fn quoted(text: &str) -> impl Iterator<Item = String> + '_ {
    (text.split('`').skip(1).step_by(2)).map(|name| name.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use serde_json::{Value, json};

    /// Cargo's answer about a workspace of these members, each with its dependencies: a name, and for another kind
    /// than the normal one a colon and that kind.
    fn workspace(members: &[(&str, &[&str])], others: &[(&str, &[&str])]) -> Workspace {
        let package = |name: &str| {
            json!({
                "name": name, "id": name, "description": "",
                "manifest_path": format!("/r/{name}/Cargo.toml"),
            })
        };
        let node = |(name, below): &(&str, &[&str])| {
            let deps: Vec<Value> = (below.iter())
                .map(|below| {
                    let (name, kind) = match below.split_once(':') {
                        Some((name, kind)) => (name, Some(kind)),
                        None => (*below, None),
                    };
                    json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] })
                })
                .collect();
            json!({ "id": name, "deps": deps })
        };
        let all: Vec<_> = members.iter().chain(others).collect();
        let answer = json!({
            "workspace_root": "/r",
            "packages": all.iter().map(|(name, _)| package(name)).collect::<Vec<_>>(),
            "resolve": { "nodes": all.iter().map(|each| node(each)).collect::<Vec<_>>() },
            "workspace_members": members.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        });
        Workspace::parse(answer.to_string().as_bytes()).unwrap()
    }

    const OTHERS: &[(&str, &[&str])] = &[
        ("thiserror", &["std-like"]),
        ("std-like", &[]),
        ("rand", &["getrandom"]),
        ("getrandom", &[]),
        ("proptest", &["rand"]),
    ];

    #[test]
    fn a_planted_arrow_is_found_whatever_it_is_for() {
        for planted in ["control", "control:dev", "control:build"] {
            let found = extra_arrows(
                &workspace(
                    &[
                        ("decode", &[]),
                        ("control", &["decode"]),
                        ("speculation", &["decode", planted]),
                    ],
                    &[],
                ),
                "speculation",
                &["decode"],
            );
            assert_eq!(found.len(), 1, "{planted}");
            assert!(found[0].contains("speculation must not depend on control"));
        }
        let right = workspace(&[("decode", &[]), ("speculation", &["decode"])], &[]);
        assert_eq!(extra_arrows(&right, "speculation", &["decode"]), [""; 0]);
    }

    #[test]
    fn a_planted_dependency_of_a_pure_crate_is_found() {
        let with = |dependencies: &[&str]| {
            let members = [("decode", &[][..]), ("control", dependencies)];
            extra_dependencies(&workspace(&members, OTHERS))
        };
        assert_eq!(with(&["decode", "thiserror", "proptest:dev"]), [""; 0]);
        for planted in ["rand", "rand:build", "getrandom"] {
            let found = with(&["decode", "thiserror", planted]);
            assert_eq!(found.len(), 1, "{planted}");
            assert!(found[0].contains("control must not depend on"), "{found:?}");
        }
    }

    #[test]
    fn a_forbidden_package_is_found_through_others() {
        let workspace = workspace(
            &[("simulation", &["helper"]), ("text", &["proptest:dev"])],
            &[&[("helper", &["rand"][..])], OTHERS].concat(),
        );
        let found = forbidden(
            &workspace,
            "simulation",
            &["rand", "tokio"],
            "it is simulated",
        );
        let want = "simulation links rand by simulation -> helper -> rand; it is simulated";
        assert_eq!(found, [want]);
        assert_eq!(forbidden(&workspace, "text", &["rand"], ""), [""; 0]);
    }

    #[test]
    fn a_page_is_read_as_it_is_written() {
        let page = "# Map\n- **`a/`** → nothing. It is `x`. *Knows no `y`.*\n- **`b/`**, **`c/`** → `a`,\n  `z`. Two.\n\
                    - **`models/`** no crate\n- **`cli/`** → everything above. All.\n";
        let found = documented(page);
        let of = |name: &str| found[name].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(found.len(), 4);
        assert_eq!(
            (of("a"), of("b"), of("c")),
            (vec![], vec!["a", "z"], vec!["a", "z"])
        );
        assert_eq!(of("cli"), ["a", "b", "c"]);
    }

    #[test]
    fn the_tables_agree_with_each_other() {
        let listed: BTreeSet<&str> = ARROWS.iter().map(|(member, _)| *member).collect();
        assert_eq!(listed.len(), ARROWS.len(), "each stands once");
        for (member, below) in ARROWS {
            for name in *below {
                let place = |wanted: &str| ARROWS.iter().position(|(name, _)| *name == wanted);
                assert!(place(name) < place(member), "{member} stands below {name}");
            }
        }
        assert!(PURE.iter().all(|pure| listed.contains(pure.member)));
        assert!(ABSENT.iter().all(|(member, ..)| listed.contains(member)));
    }
}

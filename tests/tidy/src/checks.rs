//! Checks over files: their length, their names, and what no file may contain.
//!
//! Each takes text and returns what is wrong with it, one sentence per finding, so that it can be shown to find what it
//! is for.

use super::Source;

/// Longest source file, in lines.
pub const MAX_SOURCE_LINES: usize = 800;
/// Longest ARCHITECTURE.md, in lines.
pub const MAX_ARCHITECTURE_LINES: usize = 250;
/// Fewest lines of `//!` at the top of a crate.
pub const MIN_DOC_LINES: usize = 3;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = [
    "manager", "managers", "helper", "helpers", "util", "utils", "common", "misc",
];

/// Files that nobody reads to the end.
#[must_use]
pub fn length(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    let limit = if source.path == "ARCHITECTURE.md" {
        MAX_ARCHITECTURE_LINES
    } else if is_code(source) {
        MAX_SOURCE_LINES
    } else {
        return None;
    };
    (lines > limit).then(|| format!("{}: {lines} lines, at most {limit}", source.path))
}

/// Files and folders whose name says nothing.
#[must_use]
pub fn name(source: &Source) -> Option<String> {
    if !is_code(source) {
        return None;
    }
    source
        .path
        .split('/')
        .flat_map(|part| part.split(['.', '_', '-']))
        .find(|word| EMPTY_NAMES.contains(&word.to_ascii_lowercase().as_str()))
        .map(|word| format!("{}: {word:?} says nothing about the content", source.path))
}

/// The root file of a crate that does not say what the crate is.
#[must_use]
pub fn crate_docs(source: &Source) -> Option<String> {
    let root = source.path.ends_with("src/lib.rs") || source.path.ends_with("src/main.rs");
    if !root {
        return None;
    }
    let lines = source
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .filter(|line| line.len() > "//! ".len())
        .count();
    (lines < MIN_DOC_LINES).then(|| {
        format!(
            "{}: starts with {lines} lines of //! docs, at least {MIN_DOC_LINES}",
            source.path
        )
    })
}

/// Code that says it will be written later.
#[must_use]
pub fn unfinished(source: &Source) -> Vec<String> {
    let needles = [concat!("to", "do!("), concat!("unimplem", "ented!(")];
    if is_code(source) {
        find(source, &needles, "is unfinished")
    } else {
        Vec::new()
    }
}

/// Paths that exist on one machine only.
#[must_use]
pub fn machine_paths(source: &Source) -> Vec<String> {
    let needles = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("C:", "\\"),
    ];
    find(source, &needles, "is a path of one machine")
}

/// Dependencies whose version is not the workspace's.
#[must_use]
pub fn own_versions(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_dependencies = false;
    // Depth of open brackets, so that an array over several lines counts as
    // the one entry it belongs to.
    let mut depth = 0_usize;
    let mut entry = String::new();
    for (number, raw) in source.text.lines().enumerate() {
        let line = raw.split('#').next().unwrap_or_default().trim();
        if depth == 0 && line.starts_with('[') {
            let section = line.trim_matches(['[', ']']);
            in_dependencies = section.ends_with("dependencies");
            if section.contains("dependencies.") {
                found.push(format!(
                    "{}:{}: write [{section}] as one line with workspace = true",
                    source.path,
                    number + 1
                ));
            }
            continue;
        }
        if !in_dependencies || line.is_empty() {
            continue;
        }
        entry.push_str(line);
        let count = |wanted: [char; 2]| line.chars().filter(|c| wanted.contains(c)).count();
        depth = (depth + count(['[', '{'])).saturating_sub(count([']', '}']));
        if depth == 0 {
            let squeezed: String = entry.split_whitespace().collect();
            if !squeezed.contains("workspace=true") {
                found.push(format!(
                    "{}:{}: {entry:?} does not take its version from the workspace",
                    source.path,
                    number + 1
                ));
            }
            entry.clear();
        }
    }
    found
}

fn is_code(source: &Source) -> bool {
    [".rs", ".proto", ".py", ".sh"]
        .iter()
        .any(|end| source.path.ends_with(end))
}

fn find(source: &Source, needles: &[&str], why: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for needle in needles {
            if line.contains(needle) {
                let path = &source.path;
                found.push(format!("{path}:{}: {needle:?} {why}", number + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn length_counts_code_and_the_map() {
        let long = "x\n".repeat(MAX_SOURCE_LINES + 1);
        assert!(length(&source("engine/src/cache.rs", &long)).is_some());
        assert!(length(&source("engine/src/cache.rs", &long[2..])).is_none());
        assert!(length(&source("ARCHITECTURE.md", &long)).is_some());
        assert!(length(&source("CHANGELOG.md", &long)).is_none());
    }

    #[test]
    fn empty_names_are_found_as_words() {
        for bad in [
            "worker/src/utils.rs",
            "worker/src/session_manager.rs",
            "common/src/lib.rs",
        ] {
            assert!(name(&source(bad, "")).is_some(), "{bad}");
        }
        for good in ["worker/src/utilisation.rs", "text/src/commons_tragedy.rs"] {
            assert!(name(&source(good, "")).is_none(), "{good}");
        }
    }

    #[test]
    fn a_crate_says_what_it_is() {
        let root = "proto/src/lib.rs";
        assert!(crate_docs(&source(root, "//! Placeholder.\n")).is_some());
        assert!(crate_docs(&source(root, "//! a b\n//!\n//!\nmod x;")).is_some());
        assert!(crate_docs(&source(root, "//! a b\n//! c d\n//! e f\n")).is_none());
        assert!(crate_docs(&source("proto/src/wire.rs", "")).is_none());
    }

    #[test]
    fn needles_are_found_with_their_line() {
        let later = format!("fn f() {{\n    {}\"later\")\n}}", concat!("to", "do!("));
        let found = unfinished(&source("a/src/b.rs", &later));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("a/src/b.rs:2:"), "{found:?}");

        let path = format!("see {}me", concat!("/ho", "me/"));
        assert_eq!(machine_paths(&source("README.md", &path)).len(), 1);
    }

    #[test]
    fn versions_of_ones_own_are_found() {
        let manifest = "[package]\nversion = \"1\"\n[dependencies]\nserde.workspace = true\n\
                        tokio = { workspace = true, features = [\n  \"net\",\n] }\n\
                        rand = \"0.9\" # dice\n[dev-dependencies]\nx = { version = \"1\" }\n\
                        [target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"\n\
                        [dependencies.y]\nversion = \"1\"\n[lints]\nworkspace = true\n";
        let found = own_versions(&source("a/Cargo.toml", manifest));
        for name in ["rand", "\"x", "libc", "dependencies.y"] {
            assert!(
                found.iter().any(|line| line.contains(name)),
                "{name} is missing in {found:?}"
            );
        }
        assert_eq!(found.len(), 4, "{found:?}");
    }
}

//! Names that were given up, so that they do not come back; and concepts that have one type.

use super::code;
use super::code::Halves;

/// Words that no name in a Rust source has as a part, in any case, each with what is said instead.
pub const RETIRED: &[(&str, &str)] = &[
    ("ferry", "session machine, driver"),
    ("grant", "ownership"),
    ("grants", "ownership"),
    ("holdings", "session table"),
    ("hope", "expectation"),
    ("hopes", "expectations"),
    ("launch", "step start"),
    ("launches", "step starts"),
    ("ledger", "logprobs"),
    ("mood", "activity status"),
    ("moods", "activity statuses"),
    ("news", "change notification"),
    ("pump", "worker link"),
    ("pumps", "worker links"),
    ("seat", "reservation"),
    ("seats", "reservations"),
    ("seeker", "requester"),
    ("seekers", "placement queue"),
    ("shore", "actions of the session machine"),
    ("tally", "worker totals"),
    ("tallies", "worker totals"),
    ("watched", "request metrics"),
    ("wish", "lost target, need"),
    ("wishes", "needs"),
];

/// Whole names that were given up, without case and underscores.
pub const RETIRED_NAMES: &[(&str, &str)] = &[
    ("appendlogits", "Ask"),
    ("draftreport", "Report"),
    ("draftsession", "session::Session"),
    ("launchrule", "wait::WaitModel"),
    ("linkid", "NodeNumber"),
    ("linkkey", "WorkerKey"),
    ("linkname", "StreamName"),
    ("pastlogits", "Ask"),
    ("plannedrow", "decode::Row"),
    ("taillogits", "Ask"),
    ("tokenscore", "decode::Score"),
    ("treerow", "decode::Row"),
    ("verifyreport", "Report"),
    ("verifysession", "session::Session"),
];

/// Types that stand for a concept wherever it is met, each with the one crate that defines it.
pub const SINGLE: &[(&str, &str)] = &[
    ("Answer", "decode"),
    ("Ask", "decode"),
    ("Basis", "decode"),
    ("CacheOp", "decode"),
    ("Guess", "decode"),
    ("History", "decode"),
    ("NodeId", "decode"),
    ("NotFinite", "decode"),
    ("Pick", "decode"),
    ("Sampling", "decode"),
    ("Score", "decode"),
    ("Scores", "decode"),
    ("StepPlan", "decode"),
    ("Duties", "speculation"),
    ("Report", "speculation"),
    ("SessionId", "speculation"),
    ("WorkerKey", "speculation"),
];

/// Where a retired word is the term of the field.
const AT_HOME: &[(&str, &str)] = &[("launch", "engine/src/cuda/")];

/// Retired words among the names of a masked Rust source.
#[must_use]
pub fn retired(path: &str, masked: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is_at_home = |word: &str| {
        let mut homes = AT_HOME.iter();
        homes.any(|&(term, home)| term == word && path.starts_with(home))
    };
    for (line, name) in code::names(masked) {
        let whole = name.replace('_', "").to_lowercase();
        let parts = parts(name);
        let instead = (RETIRED.iter())
            .find(|(word, _)| parts.iter().any(|part| part == word) && !is_at_home(word))
            .or_else(|| RETIRED_NAMES.iter().find(|(word, _)| *word == whole));
        if let Some((word, instead)) = instead {
            found.push(format!("{path}:{line}: {name} ({word} is now: {instead})"));
        }
    }
    found
}

/// The words that a name is made of, in lower case.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut was_lower = false;
    for c in name.chars() {
        if c == '_' || (c.is_uppercase() && was_lower) {
            parts.push(String::new());
        }
        was_lower = c.is_lowercase() || c.is_numeric();
        if c != '_' {
            let last = parts.last_mut().expect("it begins with one");
            last.extend(c.to_lowercase());
        }
    }
    parts
}

/// Public types of a member that carry the name of a concept whose type lies elsewhere.
#[must_use]
pub fn twins(member: &str, path: &str, halves: &Halves) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in halves.product.lines().enumerate() {
        let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let is_type = |word: &str| matches!(word, "struct" | "enum" | "type");
        let Some(name) = words.find(|word| is_type(word)).and_then(|_| words.next()) else {
            continue;
        };
        let single = (SINGLE.iter()).find(|(known, home)| *known == name && *home != member);
        if let (Some((_, home)), true) = (single, line.trim_start().starts_with("pub ")) {
            let number = number + 1;
            found.push(format!("{path}:{number}: a second {name}; it is {home}'s"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{halves, mask};

    #[test]
    fn a_retired_word_is_found_in_any_case_as_a_word() {
        for planted in [
            "struct Ferry;",
            "fn poll_shore() {}",
            "let holdings = 1;",
            "const MAX_SEATS: u8 = 1;",
            "enum WorkerMood { A }",
            "mod ledger;",
            "let x: LinkId = 1;",
            "let link_key = 1;",
        ] {
            assert_eq!(retired("a/src/b.rs", &mask(planted)).len(), 1, "{planted}");
        }
        for fine in [
            "fn offshore() {}",
            "let seating = 1;",
            "let newsletter = 1;",
            "// a ferry",
            "let s = \"mood\";",
            "let link_identity = 1;",
            "use offshoot::Hoped;",
        ] {
            assert_eq!(retired("a/src/b.rs", &mask(fine)), [""; 0], "{fine}");
        }
        let found = retired("a/src/b.rs", "\n\nlet tally = 0;");
        assert!(found[0].starts_with("a/src/b.rs:3: tally"), "{found:?}");
    }

    #[test]
    fn a_second_type_for_a_concept_is_found() {
        let twins_in = |member, text| twins(member, "x/src/a.rs", &halves(&mask(text)));
        assert_eq!(twins_in("engine", "pub struct Guess {\n}").len(), 1);
        assert_eq!(
            twins_in("worker", "#[derive(Debug)]\npub enum Basis { Raw }").len(),
            1
        );
        assert_eq!(twins_in("worker", "pub(crate) type Report = u8;").len(), 0);
        assert_eq!(twins_in("decode", "pub struct Guess;").len(), 0);
        assert_eq!(
            twins_in("engine", "pub struct GuessList;\nstruct Score;").len(),
            0
        );
        assert_eq!(
            twins_in("engine", "#[cfg(test)]\npub struct Guess;").len(),
            0
        );
    }
}

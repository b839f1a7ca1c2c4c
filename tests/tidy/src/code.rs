//! What the compiler reads of a source: no comments, no text in quotes, and code apart from tests.
//!
//! This is a lexer and a matching of brackets, not a parser: enough to find names where they are used, with their
//! lines.

use super::Source;

/// The text with everything blank that is a comment or stands in quotes. Lines keep their numbers.
#[must_use]
pub fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = blank_end(&chars, at);
        if end == at {
            masked.push(chars[at]);
            at += 1;
        } else {
            let blank = |&c: &char| if c == '\n' { '\n' } else { ' ' };
            masked.extend(chars[at..end].iter().map(blank));
            at = end;
        }
    }
    masked
}

/// Where the comment or quote that begins at `at` ends; `at` itself where none begins.
fn blank_end(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    match (chars[at], next) {
        ('/', Some('/')) => until(chars, at, |rest| rest[0] == '\n'),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('"', _) => quote_end(chars, at + 1, '"'),
        ('\'', Some('\\')) => quote_end(chars, at + 1, '\''),
        ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => at + 3,
        ('r', _) if !is_in_word(chars, at) => raw_string_end(chars, at),
        _ => at,
    }
}

fn until(chars: &[char], from: usize, is_end: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len())
        .find(|&at| is_end(&chars[at..]))
        .unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 1),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

fn quote_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut at = from;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// A raw string from its `r`; a raw name, and every other `r`, is code.
fn raw_string_end(chars: &[char], from: usize) -> usize {
    let hashes = chars[from + 1..].iter().take_while(|&&c| c == '#').count();
    let open = from + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return from;
    }
    let is_end = |rest: &[char]| {
        rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|&c| c == '#')
    };
    (until(chars, open + 1, is_end) + 1 + hashes).min(chars.len())
}

fn is_in_word(chars: &[char], at: usize) -> bool {
    // A `b` or a `c` before the `r` of a raw string belongs to it.
    at > 0 && is_word(chars[at - 1]) && !matches!(chars[at - 1], 'b' | 'c')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The two halves of a masked source: what goes into the product, and what only tests compile. In each the other is
/// blank.
#[derive(Debug)]
pub struct Halves {
    /// Without the items under `#[cfg(test)]`.
    pub product: String,
    /// Those items.
    pub tests: String,
    /// Names of the modules under `#[cfg(test)]` that lie in files of their own.
    pub test_modules: Vec<String>,
}

/// Takes a masked source apart.
#[must_use]
pub fn halves(masked: &str) -> Halves {
    let chars: Vec<char> = masked.chars().collect();
    if masked.contains("#![cfg(test)]") {
        return Halves {
            product: blank(&chars, |_| true),
            tests: masked.to_owned(),
            test_modules: Vec::new(),
        };
    }
    let spans = items(&chars, |attribute| {
        let squeezed: String = attribute.split_whitespace().collect();
        squeezed == "cfg(test)" || squeezed.starts_with("cfg(all(test,")
    });
    let is_test = |at: usize| spans.iter().any(|span| span.contains(&at));
    let modules = spans.iter().filter_map(|span| {
        let item: String = chars[span.clone()].iter().collect();
        let name = item.trim_end().strip_suffix(';')?.rsplit_once("mod ")?.1;
        Some(name.trim().to_owned())
    });
    Halves {
        product: blank(&chars, is_test),
        tests: blank(&chars, |at| !is_test(at)),
        test_modules: modules.collect(),
    }
}

/// The masked source without the items that have such an attribute.
#[must_use]
pub fn without(masked: &str, is_meant: impl Fn(&str) -> bool) -> String {
    let chars: Vec<char> = masked.chars().collect();
    let spans = items(&chars, is_meant);
    blank(&chars, |at| spans.iter().any(|span| span.contains(&at)))
}

fn blank(chars: &[char], is_blank: impl Fn(usize) -> bool) -> String {
    (chars.iter().enumerate())
        .map(|(at, &c)| if c != '\n' && is_blank(at) { ' ' } else { c })
        .collect()
}

/// The items with an attribute of this kind, from that to their ends.
fn items(chars: &[char], is_meant: impl Fn(&str) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut spans: Vec<std::ops::Range<usize>> = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        if chars[at] != '#' || chars.get(at + 1) != Some(&'[') {
            at += 1;
            continue;
        }
        let end = closing(chars, at + 1);
        let attribute: String = chars[at + 2..end.saturating_sub(1).max(at + 2)]
            .iter()
            .collect();
        if is_meant(&attribute) {
            let item = item_end(chars, end);
            spans.push(at..item);
            at = item;
        } else {
            at = end;
        }
    }
    spans
}

/// Behind the bracket that closes the one at `open`.
fn closing(chars: &[char], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in chars.iter().enumerate().skip(open) {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    chars.len()
}

/// Behind the item, field or statement that begins at `from`, perhaps with more attributes.
fn item_end(chars: &[char], from: usize) -> usize {
    let mut at = from;
    let mut angles = 0_usize;
    while at < chars.len() {
        match chars[at] {
            '#' if chars.get(at + 1) == Some(&'[') => at = closing(chars, at + 1),
            '(' | '[' => at = closing(chars, at),
            '{' => return closing(chars, at),
            ';' => return at + 1,
            // The end of a field; among the parameters of a generic item a comma ends nothing.
            ',' if angles == 0 => return at + 1,
            '}' => return at,
            '<' => (angles, at) = (angles + 1, at + 1),
            // Not the head of an arrow.
            '>' if !matches!(chars[at - 1], '-' | '=') => {
                (angles, at) = (angles.saturating_sub(1), at + 1);
            }
            _ => at += 1,
        }
    }
    at
}

/// The Rust sources below `src/` of a member, taken apart. Files that only tests compile have no product.
#[must_use]
pub fn crate_halves(sources: &[Source], member: &str) -> Vec<(String, Halves)> {
    let folder = format!("{member}/src/");
    let mut files: Vec<(String, Halves)> = (sources.iter())
        .filter(|source| source.path.starts_with(&folder) && source.path.ends_with(".rs"))
        .map(|source| (source.path.clone(), halves(&mask(&source.text))))
        .collect();
    let of_tests: Vec<String> = (files.iter())
        .flat_map(|(path, halves)| {
            let below = module_folder(path);
            (halves.test_modules.iter()).map(move |name| format!("{below}{name}"))
        })
        .collect();
    for (path, halves) in &mut files {
        let is_test = of_tests.iter().any(|module| {
            (path.strip_prefix(module.as_str()))
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        });
        if is_test {
            let chars: Vec<char> = halves.product.chars().collect();
            halves.tests = std::mem::take(&mut halves.product);
            halves.product = blank(&chars, |_| true);
        }
    }
    files
}

/// Where the modules that a file declares lie.
fn module_folder(path: &str) -> String {
    for root in ["lib.rs", "main.rs", "mod.rs"] {
        if let Some(folder) = path
            .strip_suffix(root)
            .filter(|folder| folder.ends_with('/'))
        {
            return folder.to_owned();
        }
    }
    format!("{}/", path.trim_end_matches(".rs"))
}

/// Every name in masked code with the number of its line, from 1.
pub fn names(masked: &str) -> impl Iterator<Item = (usize, &str)> {
    (masked.lines().enumerate()).flat_map(|(number, line)| {
        (line.split(|c: char| !is_word(c)))
            .filter(|name| name.starts_with(|c: char| c.is_alphabetic() || c == '_'))
            .map(move |name| (number + 1, name))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn comments_and_quotes_are_blank_and_code_is_not() {
        let text = "let a = \"std::fs\"; // std::net\n/* std::io /* nested */ std::env */ let b = 'x';\n\
                    let c = r#\"std::thread \" quoted\"#; let d: &'static str = '\\'' as_; let r = br\"std\";\n\
                    fn f<'a>(x: &'a str) -> std::fmt::Result {}";
        let masked = mask(text);
        assert_eq!(masked.lines().count(), text.lines().count());
        assert_eq!(masked.matches("std::").count(), 1, "{masked}");
        for code in [
            "let a",
            "let b",
            "let c",
            "&'static str",
            "as_",
            "let r",
            "fn f<'a>",
        ] {
            assert!(masked.contains(code), "{code} is missing in {masked}");
        }
    }

    #[test]
    fn tests_are_taken_apart_from_the_product() {
        let text = "use a::B;\n#[cfg(test)]\nextern crate std;\n#[cfg(test)]\nmod dice;\nfn one() {}\n\
                    struct S {\n    #[cfg(test)]\n    seen: Vec<u8>,\n    kept: u8,\n}\n\
                    #[cfg(test)]\n#[derive(Debug)]\nfn pair<X, Y>(a: X, b: Y) { drop((a, b)); }\nfn two() {}\n\
                    #[cfg(not(test))]\nfn three() {}\n\
                    #[cfg(test)]\nmod tests {\n    fn inner() { if x { y } }\n}\nfn four() {}\n";
        let split = halves(&mask(text));
        for name in ["B", "one", "kept", "two", "three", "four"] {
            assert!(
                names(&split.product).any(|(_, found)| found == name),
                "{name}"
            );
            assert!(
                !names(&split.tests).any(|(_, found)| found == name),
                "{name}"
            );
        }
        for name in ["std", "dice", "pair", "inner", "y"] {
            assert!(
                !names(&split.product).any(|(_, found)| found == name),
                "{name}"
            );
            assert!(
                names(&split.tests).any(|(_, found)| found == name),
                "{name}"
            );
        }
        assert_eq!(split.test_modules, ["dice"]);
        let (line, _) = names(&split.product)
            .find(|(_, name)| *name == "four")
            .unwrap();
        assert_eq!(
            line,
            text.lines().position(|l| l.contains("four")).unwrap() + 1
        );
    }

    #[test]
    fn files_of_test_modules_are_tests() {
        let source = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let sources = [
            source("a/src/lib.rs", "mod kept;\n#[cfg(test)]\nmod dice;\n"),
            source("a/src/dice.rs", "fn of_test() {}"),
            source("a/src/dice/more.rs", "fn of_test_too() {}"),
            source(
                "a/src/kept.rs",
                "#[cfg(test)]\nmod tests;\nfn of_product() {}",
            ),
            source("a/src/kept/tests.rs", "fn of_test() {}"),
            source("a/src/dices.rs", "fn of_product_too() {}"),
            source("ab/src/lib.rs", "fn of_another() {}"),
        ];
        let files = crate_halves(&sources, "a");
        assert_eq!(files.len(), 6);
        for (path, split) in files {
            let is_product = names(&split.product).any(|(_, name)| name.starts_with("of_product"));
            assert_eq!(
                is_product,
                path.contains("kept.rs") || path.contains("dices"),
                "{path}"
            );
            assert!(
                !names(&split.product).any(|(_, name)| name.starts_with("of_test")),
                "{path}"
            );
        }
    }
}

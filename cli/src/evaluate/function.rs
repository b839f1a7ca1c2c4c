//! Functions in source text: where they end, and whether they parse.

/// A function's text and where to cut it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// From the line that names it to its closing brace.
    pub(super) text: String,
    /// Bytes up to the middle of its body, at a line's end.
    pub(super) middle: usize,
}

/// Lines that a body has at least and at most, so that there is something to cut and a chance to finish it.
const BODY_LINES: std::ops::RangeInclusive<usize> = 4..=16;

/// The functions of a source file that parse and whose bodies are neither trivial nor long.
pub(super) fn functions(source: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in source.split_inclusive('\n') {
        if starts_function(line)
            && let Some(end) = closing_brace(&source[start..])
            && let Some(function) = cut(&source[start..start + end])
        {
            found.push(function);
        }
        start += line.len();
    }
    found
}

/// Whether a line begins a function.
fn starts_function(line: &str) -> bool {
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        match word {
            "fn" => return words.peek().is_some(),
            "pub" | "async" | "const" | "unsafe" => {}
            word if word.starts_with("pub(") && word.ends_with(')') => {}
            _ => return false,
        }
    }
    false
}

/// A parsed function with its cut, when the body's length is right.
fn cut(text: &str) -> Option<Function> {
    let open = text.find('{')?;
    let lines: Vec<usize> = text[open..]
        .match_indices('\n')
        .map(|(at, _)| open + at + 1)
        .collect();
    if !BODY_LINES.contains(&lines.len().saturating_sub(1)) || !parses(text) {
        return None;
    }
    Some(Function {
        text: text.to_owned(),
        middle: lines[lines.len() / 2],
    })
}

/// Whether a text is one function, free or in an `impl`.
pub(super) fn parses(text: &str) -> bool {
    syn::parse_str::<syn::ImplItemFn>(text).is_ok()
}

/// Bytes up to and including the brace that closes the first one opened; none when it is not closed.
///
/// Braces in comments, strings and character literals do not count.
pub(super) fn closing_brace(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        at += match byte {
            b'/' if rest.starts_with(b"//") => find(rest, b"\n")?,
            b'/' if rest.starts_with(b"/*") => 2 + find(&rest[2..], b"*/")?,
            b'"' => string(rest)?,
            b'r' if !at
                .checked_sub(1)
                .is_some_and(|before| is_word(bytes[before])) =>
            {
                raw_string(rest)?
            }
            b'\'' => character(rest),
            b'{' => {
                depth += 1;
                1
            }
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
                1
            }
            b';' if depth == 0 => return None,
            _ => 1,
        };
    }
    None
}

fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

/// Bytes up to and including the first occurrence of `what`.
fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    let at = text.windows(what.len()).position(|window| window == what)?;
    Some(at + what.len())
}

/// Length of a string literal; it starts with its quote.
fn string(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Length of a raw string literal, or 1 where there is none.
fn raw_string(text: &[u8]) -> Option<usize> {
    let hashes = text[1..].iter().take_while(|byte| **byte == b'#').count();
    if text.get(1 + hashes) != Some(&b'"') {
        return Some(1);
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let body = 2 + hashes;
    Some(body + find(&text[body..], &end)?)
}

/// Length of a character literal, or 1 where the quote starts a lifetime.
fn character(text: &[u8]) -> usize {
    match text {
        [_, b'\\', _, rest @ ..] => 3 + find(rest, b"'").unwrap_or(0),
        [_, first, ..] => {
            let width = match first {
                0xf0.. => 4,
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            if text.get(1 + width) == Some(&b'\'') {
                2 + width
            } else {
                1
            }
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_that_are_text_do_not_close() {
        let closed = [
            "fn a() { \"}\" }",
            "fn a<'a>(x: &'a str) { '}' }",
            "fn a() { '\\'' ; '{' }",
            "fn a() { '\\u{7d}' }",
            "fn a() { r#\"}\"}\"# }",
            "fn a() { // }\n}",
            "fn a() { /* } */ { } }",
            "fn a() { \"\\\"}\" }",
            "fn error() { bar }",
            "fn a() { 'é' }",
        ];
        for text in closed {
            assert_eq!(
                closing_brace(&format!("{text} }} more")),
                Some(text.len()),
                "{text}"
            );
        }
        for text in [
            "fn a() {",
            "fn a();",
            "} fn a() {",
            "fn a() { \"}",
            "fn a() { /* }",
        ] {
            assert_eq!(closing_brace(text), None, "{text}");
        }
    }

    #[test]
    fn functions_are_cut_in_the_middle_of_the_body() {
        let source = "use a::b;\n\nimpl A {\n    pub(crate) fn long(&self) -> u8 {\n        one();\n        two();\n        \
                      three();\n        4\n    }\n\n    fn short() {}\n}\nfn declared();\n";
        let found = functions(source);
        assert_eq!(found.len(), 1, "{found:?}");
        let head = &found[0].text[..found[0].middle];
        assert!(head.ends_with("two();\n"), "{head}");
        assert!(found[0].text.ends_with("4\n    }"));
    }

    #[test]
    fn only_rust_parses() {
        assert!(parses("pub fn a(&self) -> u8 { 1 }"));
        assert!(!parses("fn a() { let = ; }"));
        assert!(!parses("fn a() {} fn b() {}"));
    }
}

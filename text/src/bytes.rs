//! The bytes behind each token of a byte-level tokenizer.

use crate::vocabulary::Vocabulary;

/// The raw bytes of every token, in one allocation.
///
/// Byte-level tokenizers (GPT-2, Llama 3, Qwen, the bundled one) cut text
/// between any two bytes, so a token's content is bytes and not text. Having
/// them at hand makes streaming exact and constant-time per token.
#[derive(Debug)]
pub(crate) struct TokenBytes {
    /// `starts[id]..starts[id + 1]` is the range of a token in `bytes`.
    starts: Vec<u32>,
    bytes: Vec<u8>,
}

impl TokenBytes {
    /// Tokens for which `skipped` says yes get no bytes: they never show in text.
    pub(crate) fn collect(vocabulary: &Vocabulary, skipped: impl Fn(&str) -> bool) -> TokenBytes {
        let byte_of = byte_of_char();
        let mut starts = Vec::with_capacity(vocabulary.len() + 1);
        let mut bytes = Vec::new();
        for id in 0..vocabulary.len() {
            let id = u32::try_from(id).expect("ids are below MAX_TOKENS");
            starts.push(u32::try_from(bytes.len()).expect("the file is capped at 64 MiB"));
            if let Some(content) = vocabulary.token(id)
                && !skipped(content)
            {
                push_token(&mut bytes, content, &byte_of);
            }
        }
        starts.push(u32::try_from(bytes.len()).expect("the file is capped at 64 MiB"));
        TokenBytes { starts, bytes }
    }

    /// The bytes of a token; empty for skipped tokens and unknown ids.
    pub(crate) fn of(&self, id: u32) -> &[u8] {
        let index = id as usize;
        match (self.starts.get(index), self.starts.get(index + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }
}

/// A token with a character that stands for no byte was added as plain text,
/// and is taken as that whole.
fn push_token(bytes: &mut Vec<u8>, content: &str, byte_of: &[Option<u8>; 324]) {
    let before = bytes.len();
    for character in content.chars() {
        match byte_of.get(character as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(before);
                bytes.extend_from_slice(content.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's alphabet (`bytes_to_unicode` of its published encoder): printable
/// Latin-1 stands for itself, the other 68 bytes for U+0100 and up in order.
fn byte_of_char() -> [Option<u8>; 324] {
    let mut table = [None; 324];
    let mut next = 256;
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        if printable {
            table[usize::from(byte)] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let mut seen: Vec<u8> = byte_of_char().into_iter().flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(byte_of_char()['Ġ' as usize], Some(b' '));
        assert_eq!(byte_of_char()['Ċ' as usize], Some(b'\n'));
    }

    #[test]
    fn tokens_give_their_bytes_and_skipped_ones_nothing() {
        let entries = ["<s>", "Ġhi", "Ã©", "日本"];
        let vocabulary = Vocabulary::collect((0..).zip(entries.map(str::to_owned))).unwrap();
        let bytes = TokenBytes::collect(&vocabulary, |content| content == "<s>");
        assert_eq!(bytes.of(0), b"");
        assert_eq!(bytes.of(1), b" hi");
        assert_eq!(bytes.of(2), "é".as_bytes());
        assert_eq!(bytes.of(3), "日本".as_bytes());
        assert_eq!(bytes.of(4), b"");
    }
}

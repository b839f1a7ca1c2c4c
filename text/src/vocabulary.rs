//! Which token stands behind each id, and whether two models agree on it.

/// The most ids a vocabulary may span. The largest published ones have about a
/// quarter of a million; a crafted file could name id 4294967295 and make a
/// table by id cost gigabytes.
pub const MAX_TOKENS: usize = 1 << 22;

/// The content of every token, by id. Immutable once loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// `None` is an id that no token has: some published tokenizers leave gaps.
    tokens: Vec<Option<Box<str>>>,
    hash: String,
    /// Digits of `hash` that are over the tokens alone.
    of_tokens: usize,
}

/// Two vocabularies put different tokens behind the same id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the vocabularies differ at token id {id}: {} here, {} there; models that speculate together \
     need the same tokenizer",
    quoted(.ours), quoted(.theirs)
)]
pub struct VocabularyMismatch {
    /// The lowest id that differs.
    pub id: u32,
    /// The token of the vocabulary that was asked; `None`: it has none at this id.
    pub ours: Option<String>,
    /// The token of the other vocabulary; `None`: it has none at this id.
    pub theirs: Option<String>,
}

fn quoted(token: &Option<String>) -> String {
    match token {
        Some(content) => format!("{content:?}"),
        None => "no token".to_owned(),
    }
}

impl Vocabulary {
    /// Collects tokens by id. `None` if an id lies at or above [`MAX_TOKENS`].
    /// A later token takes the place of an earlier one with the same id.
    pub(crate) fn collect(entries: impl IntoIterator<Item = (u32, String)>) -> Option<Vocabulary> {
        let mut tokens: Vec<Option<Box<str>>> = Vec::new();
        for (id, content) in entries {
            let index = id as usize;
            if index >= MAX_TOKENS {
                return None;
            }
            if index >= tokens.len() {
                tokens.resize(index + 1, None);
            }
            tokens[index] = Some(content.into_boxed_str());
        }
        let hash = hash(&tokens);
        let of_tokens = hash.len();
        Some(Vocabulary {
            tokens,
            hash,
            of_tokens,
        })
    }

    /// With the hash of how texts become tokens.
    pub(crate) fn with_rules(mut self, rules: &str) -> Vocabulary {
        self.hash = format!("{}-{rules}", self.token_hash());
        self
    }

    /// The highest id plus one. A model's logits may be wider (padding).
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// [`Vocabulary::token_hash`], a hyphen, and 16 hex digits over what makes
    /// tokens of a text: merges, normaliser, pre-tokenizer and the settings of
    /// the model. Tokenizers of equal hashes encode a text alike, but for what
    /// a template puts around it.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// BLAKE3, as 64 hex digits, over `(id, length, content)` of all tokens in
    /// the order of their ids. It comes from the tokenizer alone, so models
    /// whose logits are padded to different widths still have equal hashes.
    pub fn token_hash(&self) -> &str {
        &self.hash[..self.of_tokens]
    }

    /// The token behind `id` as the tokenizer writes it (byte-level tokenizers
    /// write a space as `Ġ`), or `None` if there is none.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)?.as_deref()
    }

    /// Whether ids mean the same in both: the same content, or the same gap, at
    /// every id below the shorter length. The longer one may add tokens at the
    /// end, which is how padded and extended vocabularies differ.
    ///
    /// # Errors
    ///
    /// The lowest id that differs, with both contents.
    pub fn agrees_with(&self, other: &Vocabulary) -> Result<(), VocabularyMismatch> {
        let differing = self
            .tokens
            .iter()
            .zip(&other.tokens)
            .position(|(ours, theirs)| ours != theirs);
        match differing {
            None => Ok(()),
            Some(index) => Err(VocabularyMismatch {
                id: u32::try_from(index).expect("ids are below MAX_TOKENS"),
                ours: self.tokens[index].as_deref().map(str::to_owned),
                theirs: other.tokens[index].as_deref().map(str::to_owned),
            }),
        }
    }
}

/// Ids and lengths are hashed as 32-bit little-endian integers, so that no two
/// vocabularies share a stream of bytes.
fn hash(tokens: &[Option<Box<str>>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (id, token) in (0u32..).zip(tokens) {
        let Some(content) = token else { continue };
        let length = u32::try_from(content.len()).expect("the file is capped at 64 MiB");
        hasher.update(&id.to_le_bytes());
        hasher.update(&length.to_le_bytes());
        hasher.update(content.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn vocabulary(tokens: &[(u32, &str)]) -> Vocabulary {
        Vocabulary::collect(tokens.iter().map(|(id, text)| (*id, (*text).to_owned()))).unwrap()
    }

    #[test]
    fn more_tokens_at_the_end_still_agree() {
        let short = vocabulary(&[(0, "a"), (1, "b")]);
        let long = vocabulary(&[(1, "b"), (0, "a"), (2, "c")]);
        assert_eq!(short.agrees_with(&long), Ok(()));
        assert_eq!(long.agrees_with(&short), Ok(()));
        assert_ne!(short.hash(), long.hash());
        assert_eq!(long.token(2), Some("c"));
        assert_eq!(short.token(2), None);
    }

    #[test]
    fn the_first_differing_id_is_named_with_both_contents() {
        let ours = vocabulary(&[(0, "a"), (1, "b"), (2, "c"), (3, "d")]);
        let theirs = vocabulary(&[(0, "a"), (1, "x"), (2, "y")]);
        let mismatch = ours.agrees_with(&theirs).unwrap_err();
        assert_eq!((mismatch.id, mismatch.ours.as_deref()), (1, Some("b")));
        assert_eq!(mismatch.theirs.as_deref(), Some("x"));
        let text = mismatch.to_string();
        assert!(
            text.contains("token id 1: \"b\" here, \"x\" there"),
            "{text}"
        );
    }

    #[test]
    fn a_gap_is_not_a_token() {
        let gap = vocabulary(&[(0, "a"), (2, "c")]);
        let full = vocabulary(&[(0, "a"), (1, "b"), (2, "c")]);
        let mismatch = gap.agrees_with(&full).unwrap_err();
        assert_eq!((mismatch.id, mismatch.ours.clone()), (1, None));
        assert!(mismatch.to_string().contains("no token here"));
        assert_eq!(gap.len(), 3);
    }

    #[test]
    fn the_hash_sees_ids_contents_and_where_contents_end() {
        let base = vocabulary(&[(0, "ab"), (1, "c")]);
        assert_eq!(base.hash(), vocabulary(&[(1, "c"), (0, "ab")]).hash());
        for other in [
            vocabulary(&[(0, "a"), (1, "bc")]),
            vocabulary(&[(0, "c"), (1, "ab")]),
            vocabulary(&[(0, "ab"), (2, "c")]),
        ] {
            assert_ne!(base.hash(), other.hash());
        }
        assert_eq!(base.hash().len(), 64);
    }

    #[test]
    fn ids_beyond_the_cap_are_refused_before_a_table_is_made() {
        assert!(Vocabulary::collect([(u32::MAX, "a".to_owned())]).is_none());
    }
}

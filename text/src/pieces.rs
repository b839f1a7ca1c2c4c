//! Encoding a long text piece by piece: every step takes little time and memory, and between two steps the work can be given
//! up. The ids are those that encoding the text at once gives.
//!
//! A text is cut only where that holds whatever stands on either side: between two of the words that a byte-level tokenizer
//! splits it into by one regular expression. That scans from left to right and looks back at nothing, so that the words
//! behind a cut are the same without the text before it; that the words before it are the same without the text behind it
//! is looked at, word by word, each time. Tokenizers of other kinds encode a text in one step.

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizer, SplitDelimiterBehavior, Tokenizer as Library,
};

use crate::error::TextError;
use crate::guard::guarded;
use crate::tokenizer::{Control, MAX_INPUT_BYTES, Special, Tokenizer};

/// The longest word of a text that is cut, in bytes; a word is encoded in one step.
pub const MAX_WORD_BYTES: usize = 256 << 10;

/// Sizes of pieces, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    /// Text that is looked at for a place to cut it. It is doubled while there is none.
    window: usize,
    /// Text behind a cut that was looked at, at least.
    margin: usize,
    /// The largest window.
    most: usize,
}

const SIZES: Sizes = Sizes {
    window: 64 << 10,
    margin: 1 << 10,
    most: MAX_WORD_BYTES,
};

/// How a tokenizer's texts are cut.
#[derive(Debug)]
pub(crate) struct Cuts {
    /// What the tokenizer's template puts before and behind a text.
    frame: [Vec<u32>; 2],
    /// Bytes of the longest token that was added to the model's own.
    longest_added: usize,
    /// Where a text may be cut at all.
    places: Places,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Places {
    BetweenWords,
    /// The normaliser composes characters (NFC), with an ASCII character never.
    BeforeAscii,
}

impl Cuts {
    /// How this tokenizer's texts are cut; `None` if they are not.
    pub(crate) fn of(library: &Library, frame: Option<&[Vec<u32>; 2]>) -> Option<Cuts> {
        let places = match library.get_normalizer() {
            None => Places::BetweenWords,
            Some(NormalizerWrapper::NFC(_)) => Places::BeforeAscii,
            Some(_) => return None,
        };
        match library.get_model() {
            ModelWrapper::BPE(bpe) if bpe.dropout.is_none() => {}
            _ => return None,
        }
        if !splits_once(library.get_pre_tokenizer()?) {
            return None;
        }
        let added = library.get_added_tokens_decoder();
        let looks_around =
            (added.values()).any(|token| token.single_word || token.lstrip || token.rstrip);
        if looks_around {
            return None;
        }
        Some(Cuts {
            frame: frame?.clone(),
            longest_added: (added.values())
                .map(|token| token.content.len())
                .max()
                .unwrap_or(0),
            places,
        })
    }
}

/// Whether words come from one regular expression that looks back at nothing, and stand for their bytes.
fn splits_once(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    let steps = match pre_tokenizer {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref(),
        one => std::slice::from_ref(one),
    };
    match steps {
        [PreTokenizerWrapper::ByteLevel(bytes)] => bytes.use_regex && !bytes.add_prefix_space,
        [
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(bytes),
        ] => is_simple(split) && !bytes.use_regex && !bytes.add_prefix_space,
        _ => false,
    }
}

fn is_simple(split: &Split) -> bool {
    let SplitPattern::Regex(pattern) = &split.pattern else {
        return false;
    };
    // Keeps every word apart, and all of the text.
    let is_apart = split.behavior == SplitDelimiterBehavior::Isolated;
    // Outside of a class, "^" is an anchor.
    let without_classes = pattern.replace("[^", "");
    let looks_back = ["(?<", "\\b", "\\B", "\\A", "\\G", "\\K", "^", "$"];
    is_apart && !looks_back.iter().any(|mark| without_classes.contains(mark))
}

/// What the template puts around a text.
pub(crate) fn frame(library: &Library) -> Option<[Vec<u32>; 2]> {
    let encode = |add| {
        let encoding = guarded(|| library.encode_fast("a", add)).ok()?.ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let (bare, framed) = (encode(false)?, encode(true)?);
    if bare.is_empty() {
        return None;
    }
    let at = framed.windows(bare.len()).position(|part| part == bare)?;
    Some([framed[..at].to_vec(), framed[at + bare.len()..].to_vec()])
}

/// A text that is being encoded.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    text: String,
    special: Special,
    control: Control,
    /// What was encoded so far, in bytes.
    at: usize,
    ids: Vec<u32>,
    sizes: Sizes,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A part of the text is left.
    More,
    /// All ids are there.
    Done,
}

impl Encoder {
    /// Nothing of the text is encoded yet.
    pub(crate) fn new(
        tokenizer: Tokenizer,
        text: String,
        special: Special,
        control: Control,
    ) -> Self {
        Encoder {
            tokenizer,
            text,
            special,
            control,
            at: 0,
            ids: Vec::new(),
            sizes: SIZES,
        }
    }

    /// Encodes the next piece.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`], and [`TextError::WordTooLong`].
    pub fn step(&mut self) -> Result<Progress, TextError> {
        let (tokenizer, left) = (&self.tokenizer, self.text.len() - self.at);
        if self.at == 0 && self.control == Control::Text && !tokenizer.spells_control(&self.text) {
            // It makes no difference to this text.
            self.control = Control::Tokens;
        }
        let is_whole = self.at == 0 && left <= self.sizes.window;
        let cuts = match tokenizer.cuts() {
            Some(cuts) if !is_whole => cuts,
            _ => {
                self.ids = tokenizer.encode_as(&self.text, self.special, self.control)?;
                return Ok(self.finish_text());
            }
        };
        if self.text.len() > MAX_INPUT_BYTES {
            return Err(TextError::InputTooLong {
                bytes: self.text.len(),
                limit: MAX_INPUT_BYTES,
            });
        }
        let [before, behind] = match self.special {
            Special::Add => [&cuts.frame[0][..], &cuts.frame[1][..]],
            Special::Omit => [&[][..], &[][..]],
        };
        let rest = &self.text[self.at..];
        let library = tokenizer.library(self.control);
        let piece = &rest[..piece(library, cuts, rest, self.sizes)?];
        let ids = tokenizer.encode_as(piece, Special::Omit, self.control)?;
        if self.at == 0 && !tokenizer.begins(&ids) {
            self.ids.extend_from_slice(before);
        }
        self.ids.extend_from_slice(&ids);
        self.at += piece.len();
        if self.at < self.text.len() {
            return Ok(Progress::More);
        }
        self.ids.extend_from_slice(behind);
        Ok(self.finish_text())
    }

    fn finish_text(&mut self) -> Progress {
        self.text = String::new();
        self.at = 0;
        Progress::Done
    }

    /// Ids so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The ids.
    pub fn into_ids(self) -> Vec<u32> {
        self.ids
    }
}

/// How long the next piece of a text is, of which this is left.
fn piece(library: &Library, cuts: &Cuts, rest: &str, sizes: Sizes) -> Result<usize, TextError> {
    let margin = sizes.margin.max(2 * cuts.longest_added);
    let mut window = sizes.window.max(2 * margin);
    loop {
        let end = match window < rest.len() {
            // A character has at most four bytes.
            true => (window - 3..=window)
                .rfind(|&at| rest.is_char_boundary(at))
                .unwrap_or(0),
            false => rest.len(),
        };
        if end == rest.len() {
            // Short enough to be looked at is short enough to be encoded.
            return Ok(end);
        }
        let starts = starts(library, &rest[..end])?;
        let allowed = |&&start: &&usize| match cuts.places {
            Places::BetweenWords => true,
            Places::BeforeAscii => rest.as_bytes()[start].is_ascii(),
        };
        let found = (starts.iter().rev())
            .filter(|&&start| start > 0 && start + margin <= end)
            .filter(allowed)
            .copied()
            .next();
        // Most of the time it is the first.
        if let Some(cut) = found
            && (starts.iter().copied().take_while(|&start| start < cut))
                .eq(self::starts(library, &rest[..cut])?)
        {
            return Ok(cut);
        }
        if window >= sizes.most {
            return Err(TextError::WordTooLong { limit: sizes.most });
        }
        window = (2 * window).min(sizes.most);
    }
}

/// Where the words of a text start, in bytes, ascending.
fn starts(library: &Library, text: &str) -> Result<Vec<usize>, TextError> {
    let split = || -> Result<Vec<usize>, tokenizers::Error> {
        let added = library.get_added_vocabulary();
        let mut words = added.extract_and_normalize(library.get_normalizer(), text);
        if let Some(pre_tokenizer) = library.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let words = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(words.iter().map(|(_, (start, _), _)| *start).collect())
    };
    let refuse = |reason| TextError::Encode { reason };
    match guarded(split) {
        Ok(Ok(starts)) => Ok(starts),
        Ok(Err(error)) => Err(refuse(error.to_string())),
        Err(reason) => Err(refuse(reason)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Of Llama 3 and of Qwen 2.
    const LLAMA: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    /// A byte-level tokenizer with a few merges that meet across what is no boundary.
    fn tokenizer(normalizer: Value, pre_tokenizer: Value, post_processor: Value) -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        let mut next = 256;
        for byte in 0..=255_u32 {
            let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let stands_for = if printable { byte } else { next };
            next += u32::from(!printable);
            let symbol = char::from_u32(stands_for).unwrap().to_string();
            vocabulary.insert(symbol, byte.into());
        }
        let merges = [
            "Ġ Ġ",
            "ĠĠ ĠĠ",
            "a a",
            "aa aa",
            "Ġ a",
            "' s",
            "Ċ Ċ",
            "1 1",
            "Ã ©",
            "l l",
        ];
        for merge in merges {
            let id = vocabulary.len();
            vocabulary.insert(merge.replace(' ', ""), id.into());
        }
        let added = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(266, "<|end|>"), added(267, "<s>"), added(268, "</s>")],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary,
                "merges": merges},
        });
        Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    fn bytes(use_regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex})
    }

    fn split(pattern: &str) -> Value {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern},
            "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    }

    /// One of each kind that is cut.
    fn each() -> Vec<Tokenizer> {
        let template = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [267], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [268], "tokens": ["</s>"]}}});
        vec![
            tokenizer(Value::Null, bytes(true), Value::Null),
            tokenizer(Value::Null, split(LLAMA), template),
            tokenizer(json!({"type": "NFC"}), split(LLAMA), Value::Null),
        ]
    }

    fn in_pieces(tokenizer: &Tokenizer, text: &str, sizes: Sizes) -> (Vec<u32>, usize) {
        let mut encoder = Encoder {
            sizes,
            ..tokenizer.encoder(text.to_owned(), Special::Add, Control::Tokens)
        };
        let mut steps = 1;
        while encoder.step().unwrap() == Progress::More {
            steps += 1;
        }
        (encoder.into_ids(), steps)
    }

    /// So small that a text of a line is cut, with room for any word of the tests.
    const SMALL: Sizes = Sizes {
        window: 40,
        margin: 8,
        most: 1 << 20,
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn pieces_are_what_the_whole_is(parts in prop::collection::vec(prop::sample::select(vec![
            "a", "aaaa", "ll", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "'s", "'", "don't", "1", "11", "1234567",
            "é", "e\u{301}", "\u{301}", "日本語", "🦀", "👩‍👩‍👧", "<|end|>", "<|en", "d|>", "<s>", "-", "...", "_", "\u{a0}",
            "\u{1100}", "\u{1161}", "\u{11a8}", "\u{3000}",
        ]), 0..200)) {
            let text = parts.concat();
            for tokenizer in each() {
                let whole = tokenizer.encode(&text, Special::Add).unwrap();
                prop_assert_eq!(in_pieces(&tokenizer, &text, SMALL).0, whole);
            }
        }
    }

    fn encoded(tokenizer: &Tokenizer, text: &str, control: Control, sizes: Sizes) -> Vec<u32> {
        let text = text.to_owned();
        let mut encoder = Encoder {
            sizes,
            ..tokenizer.encoder(text, Special::Add, control)
        };
        while encoder.step().unwrap() == Progress::More {}
        encoder.into_ids()
    }

    #[test]
    fn control_tokens_are_text_unless_they_are_asked_for() {
        let spelled = "a<|end|>  aa</s>".repeat(9);
        for tokenizer in each() {
            for sizes in [SIZES, SMALL] {
                let tokens = encoded(&tokenizer, &spelled, Control::Tokens, sizes);
                assert_eq!(tokens, tokenizer.encode(&spelled, Special::Add).unwrap());
                assert_eq!(tokens.iter().filter(|&&id| id == 266).count(), 9);
                let text = encoded(&tokenizer, &spelled, Control::Text, sizes);
                let framed = usize::from(tokenizer.begins(&text));
                assert!(
                    text[framed..text.len() - framed].iter().all(|&id| id < 266),
                    "{text:?}"
                );
                assert_eq!(tokenizer.decode(&text).unwrap(), spelled);
            }
            // A text that spells none out is the same either way.
            let plain = "let a = 11; // <|en d|>".repeat(9);
            let [text, tokens] = [Control::Text, Control::Tokens]
                .map(|control| encoded(&tokenizer, &plain, control, SMALL));
            assert_eq!(text, tokens);
            assert_eq!(tokenizer.control_id("<|end|>"), Some(266));
            assert_eq!(tokenizer.control_id("a"), None);
        }
    }

    #[test]
    fn what_a_text_begins_with_is_not_put_before_it_again() {
        let tokenizer = &each()[1];
        let rest = "aa aa\n".repeat(40);
        for sizes in [SIZES, SMALL] {
            let plain = encoded(tokenizer, &rest, Control::Tokens, sizes);
            assert_eq!((plain[0], plain.last()), (267, Some(&268)));
            let begun = format!("<s>{rest}");
            assert_eq!(encoded(tokenizer, &begun, Control::Tokens, sizes), plain);
            // A second one is somebody's own.
            let twice = encoded(tokenizer, &format!("<s>{begun}"), Control::Tokens, sizes);
            assert_eq!(twice[..3], [267, 267, plain[1]]);
            let text = encoded(tokenizer, &begun, Control::Text, sizes);
            assert_eq!(text.iter().filter(|&&id| id == 267).count(), 1);
            assert!(text.len() > plain.len());
        }
        let omitted = tokenizer.encode("<s>a", Special::Omit).unwrap();
        assert_eq!(omitted[0], 267);
        assert!(!each()[0].begins(&[267]));
    }

    #[test]
    fn long_texts_are_cut_into_small_pieces() {
        let text = "let a = b + 11; // don't\n".repeat(20_000);
        for tokenizer in each() {
            let (ids, steps) = in_pieces(&tokenizer, &text, SIZES);
            assert!(steps >= text.len() / SIZES.window, "{steps}");
            assert_eq!(ids, tokenizer.encode(&text, Special::Add).unwrap());
        }
    }

    #[test]
    fn a_word_of_the_whole_text_is_refused_before_it_is_encoded() {
        let tokenizer = &each()[0];
        let mut encoder = tokenizer.encoder("a".repeat(2 << 20), Special::Add, Control::Text);
        let error = encoder.step().unwrap_err();
        assert!(error.to_string().contains("262144"), "{error}");
        let mut encoder = tokenizer.encoder("a".repeat(200_000), Special::Add, Control::Text);
        assert_eq!(encoder.step().unwrap(), Progress::Done);
        assert_eq!(encoder.ids().len(), 50_000);
    }

    #[test]
    fn what_may_look_back_is_not_cut() {
        let is_cut = |pre_tokenizer: Value, normalizer: Value| {
            tokenizer(normalizer, pre_tokenizer, Value::Null)
                .cuts()
                .is_some()
        };
        assert!(is_cut(split(r"[^\s]+|\s+"), Value::Null));
        for pattern in [r"(?<=a)b", r"\bx", r"^a", r"a$"] {
            assert!(!is_cut(split(pattern), Value::Null), "{pattern}");
        }
        assert!(!is_cut(bytes(true), json!({"type": "Lowercase"})));
        assert!(!is_cut(bytes(false), Value::Null), "the text is one word");
        let two = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, bytes(true)]});
        assert!(!is_cut(two, Value::Null));
    }
}

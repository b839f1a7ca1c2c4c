//! Stop texts: where a completion ends, found in text that arrives in pieces.

use std::ops::Range;

/// Looks for stop texts in a completion. Text that might be the beginning of one is held back.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopTexts {
    stops: Vec<String>,
    /// The control tokens that are stop texts, with the numbers of these. They have no text in a completion.
    tokens: Vec<(u32, usize)>,
    inclusion: Inclusion,
    /// Held back; always a proper prefix of a stop text, or empty.
    held: String,
}

/// Whether a stop text is part of the completion that it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Inclusion {
    #[default]
    Excluded,
    Included,
}

/// What is certain after one more piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    /// Text that is certain now.
    pub(crate) text: String,
    /// The stop text that ended the completion, by its number.
    pub(crate) stopped: Option<usize>,
}

impl StopTexts {
    /// `stops` are not empty texts.
    pub(crate) fn new(stops: Vec<String>, inclusion: Inclusion) -> Self {
        StopTexts {
            stops,
            tokens: Vec::new(),
            inclusion,
            held: String::new(),
        }
    }

    /// Learns which stop texts are control tokens.
    pub(crate) fn name_tokens(&mut self, id: impl Fn(&str) -> Option<u32>) {
        let numbered = self.stops.iter().enumerate();
        self.tokens = numbered
            .filter_map(|(number, stop)| Some((id(stop)?, number)))
            .collect();
    }

    /// The stop text that this token is, if it is one.
    pub(crate) fn token(&self, id: u32) -> Option<usize> {
        let found = self.tokens.iter().find(|(token, _)| *token == id);
        found.map(|(_, number)| *number)
    }

    /// The token of this stop text has come behind all the text, of which `rest` is new.
    pub(crate) fn stop_at_token(&mut self, number: usize, rest: &str) -> Released {
        let mut text = self.finish();
        text.push_str(rest);
        if self.inclusion == Inclusion::Included {
            text.push_str(&self.stops[number]);
        }
        Released {
            text,
            stopped: Some(number),
        }
    }

    /// Takes the text of one more token. The stop text that begins first ends the completion; of several that begin
    /// at one place, the longest.
    pub(crate) fn push(&mut self, piece: &str) -> Released {
        if self.stops.is_empty() {
            return Released {
                text: piece.to_owned(),
                stopped: None,
            };
        }
        self.held.push_str(piece);
        if let Some((at, found)) = self.find() {
            let end = match self.inclusion {
                Inclusion::Excluded => found.start,
                Inclusion::Included => found.end,
            };
            let mut text = std::mem::take(&mut self.held);
            text.truncate(end);
            return Released {
                text,
                stopped: Some(at),
            };
        }
        let certain = self.held.len() - self.uncertain();
        let rest = self.held.split_off(certain);
        Released {
            text: std::mem::replace(&mut self.held, rest),
            stopped: None,
        }
    }

    /// Text in which no stop text counts, whatever was held back before it.
    pub(crate) fn pass(&mut self, piece: &str) -> Released {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        Released {
            text,
            stopped: None,
        }
    }

    /// The text has ended otherwise: what was held back belongs to it.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop text of this number.
    pub(crate) fn text_of(&self, number: usize) -> Option<&str> {
        self.stops.get(number).map(String::as_str)
    }

    fn find(&self) -> Option<(usize, Range<usize>)> {
        (self.stops.iter().enumerate())
            .filter_map(|(at, stop)| {
                let start = self.held.find(stop)?;
                Some((at, start..start + stop.len()))
            })
            .min_by_key(|(at, found)| (found.start, usize::MAX - found.end, *at))
    }

    /// Bytes at the end of what is held that begin a stop text.
    fn uncertain(&self) -> usize {
        let longest = |stop: &String| {
            (1..stop.len().min(self.held.len() + 1))
                .rev()
                .find(|&len| self.held.as_bytes().ends_with(&stop.as_bytes()[..len]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], inclusion: Inclusion, pieces: &[&str]) -> (String, Option<usize>) {
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut watch = StopTexts::new(stops, inclusion);
        let mut all = String::new();
        for piece in pieces {
            let released = watch.push(piece);
            all.push_str(&released.text);
            if released.stopped.is_some() {
                return (all, released.stopped);
            }
        }
        all.push_str(&watch.finish());
        (all, None)
    }

    #[test]
    fn a_stop_text_is_found_across_pieces() {
        for (inclusion, text) in [
            (Inclusion::Excluded, "fn a() "),
            (Inclusion::Included, "fn a() {\n"),
        ] {
            let found = run(
                &["{\n", "never"],
                inclusion,
                &["fn a", "() {", "\n  b", "c"],
            );
            assert_eq!(found, (text.to_owned(), Some(0)));
        }
    }

    #[test]
    fn only_what_may_become_a_stop_text_is_held_back() {
        let mut watch = StopTexts::new(vec!["aab".to_owned()], Inclusion::Excluded);
        let text = |released: Released| released.text;
        assert_eq!(text(watch.push("xaa")), "x");
        assert_eq!(text(watch.push("a")), "a");
        assert_eq!(text(watch.push("c")), "aac");
        assert_eq!(text(watch.push("ä")), "ä");
        assert_eq!(text(watch.push("a")), "");
        assert_eq!(watch.finish(), "a");
    }

    #[test]
    fn of_two_the_earlier_wins_and_then_the_longer() {
        let found = run(&["cd", "b", "bc"], Inclusion::Included, &["a", "bcd"]);
        assert_eq!(found, ("abc".to_owned(), Some(2)));
    }

    #[test]
    fn what_is_passed_never_stops() {
        let mut watch = StopTexts::new(vec!["ab".to_owned()], Inclusion::Excluded);
        assert_eq!(watch.push("a").text, "");
        assert_eq!(watch.pass("bab").text, "abab");
        assert_eq!(watch.push("b").stopped, None);
    }

    #[test]
    fn a_control_token_ends_the_text_behind_what_was_held_back() {
        for (inclusion, text) in [
            (Inclusion::Excluded, "a<"),
            (Inclusion::Included, "a<<end>"),
        ] {
            let mut watch = StopTexts::new(vec!["b".to_owned(), "<end>".to_owned()], inclusion);
            watch.name_tokens(|text| (text == "<end>").then_some(7));
            assert_eq!((watch.token(7), watch.token(1)), (Some(1), None));
            let mut all = watch.push("a<").text;
            let released = watch.stop_at_token(1, "");
            all.push_str(&released.text);
            assert_eq!((all.as_str(), released.stopped), (text, Some(1)));
        }
    }

    proptest! {
        /// Against the obvious way: look at the whole text after each piece.
        #[test]
        fn pieces_make_no_difference_to_where_it_ends(
            pieces in prop::collection::vec("[abä]{0,3}", 0..12),
            stops in prop::collection::vec("[abä]{1,4}", 1..4),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let mut whole = String::new();
            let mut expected = None;
            for piece in &pieces {
                whole.push_str(piece);
                let first = stops.iter().filter_map(|stop| whole.find(stop)).min();
                if let Some(first) = first {
                    expected = Some(whole[..first].to_owned());
                    break;
                }
            }
            let (text, stopped) = run(&stops, Inclusion::Excluded, &pieces);
            prop_assert_eq!(stopped.is_some(), expected.is_some());
            prop_assert_eq!(text, expected.unwrap_or(whole));
        }
    }
}

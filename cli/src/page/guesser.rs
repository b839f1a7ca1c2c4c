//! Whose guess a token was, as it is coloured.

/// See the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Guesser {
    /// A draft's first guess.
    First,
    /// A draft's second guess.
    Second,
    /// A draft's guess behind that.
    Later,
    /// A qualifier's alone.
    Qualifier,
    /// Found in the text or in a history.
    Lookup,
    /// Heads beside the target.
    Heads,
    /// A draft that computes no model.
    Rule,
    /// Nobody's: the target's own.
    Target,
    /// The trace does not say.
    Unknown,
}

impl Guesser {
    /// All of them.
    pub(crate) const ALL: [Guesser; 9] = [
        Guesser::First,
        Guesser::Second,
        Guesser::Later,
        Guesser::Qualifier,
        Guesser::Lookup,
        Guesser::Heads,
        Guesser::Rule,
        Guesser::Target,
        Guesser::Unknown,
    ];

    /// As a trace names it: a source with a rank, or `target`.
    pub(crate) fn of(name: &str) -> Guesser {
        match name.split_once(':').unwrap_or((name, "")) {
            ("draft", "1") => Guesser::First,
            ("draft", "2") => Guesser::Second,
            ("draft", _) => Guesser::Later,
            ("qualifier", _) => Guesser::Qualifier,
            ("lookup" | "history", _) => Guesser::Lookup,
            ("heads", _) => Guesser::Heads,
            ("rule", _) => Guesser::Rule,
            (crate::trace::NOBODY, _) => Guesser::Target,
            _ => Guesser::Unknown,
        }
    }

    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Guesser::First => "draft, first guess",
            Guesser::Second => "draft, second guess",
            Guesser::Later => "draft, third guess or later",
            Guesser::Qualifier => "qualifier",
            Guesser::Lookup => "lookup",
            Guesser::Heads => "heads",
            Guesser::Rule => "rule",
            Guesser::Target => "target itself",
            Guesser::Unknown => "not told",
        }
    }

    /// The letter of its style classes: `g` in text, `f` and `u` (filling and underline) in pictures.
    pub(crate) fn class(self) -> char {
        match self {
            Guesser::First => '1',
            Guesser::Second => '2',
            Guesser::Later => '3',
            Guesser::Qualifier => 'q',
            Guesser::Lookup => 'l',
            Guesser::Heads => 'h',
            Guesser::Rule => 'r',
            Guesser::Target => 't',
            Guesser::Unknown => 'u',
        }
    }

    /// The shares of those that are among `all`, in their order.
    pub(crate) fn shares(all: &[Guesser]) -> Vec<(Guesser, f64)> {
        (Guesser::ALL.into_iter())
            .map(|one| (one, all.iter().filter(|&&other| other == one).count()))
            .filter(|&(_, count)| count > 0)
            .map(|(one, count)| (one, count as f64 / all.len() as f64))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_traces() {
        for (name, guesser) in [
            ("draft:1", Guesser::First),
            ("draft:2", Guesser::Second),
            ("draft:17", Guesser::Later),
            ("qualifier:1", Guesser::Qualifier),
            ("history:1", Guesser::Lookup),
            ("heads:3", Guesser::Heads),
            ("target", Guesser::Target),
            ("unknown:1", Guesser::Unknown),
            ("", Guesser::Unknown),
        ] {
            assert_eq!(Guesser::of(name), guesser, "{name}");
        }
    }

    #[test]
    fn shares_add_up() {
        let all = [
            Guesser::Target,
            Guesser::First,
            Guesser::First,
            Guesser::Later,
        ];
        let expected = [
            (Guesser::First, 0.5),
            (Guesser::Later, 0.25),
            (Guesser::Target, 0.25),
        ];
        assert_eq!(Guesser::shares(&all), expected);
        assert!(Guesser::shares(&[]).is_empty());
    }
}

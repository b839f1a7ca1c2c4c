//! What workers are used for, and what they do for a session.

use core::fmt;

/// What a worker is used for, as its handshake says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Proposes guesses.
    Draft,
    /// Gives advice ahead of the target.
    Qualifier,
    /// Decides the text.
    Target,
}

impl Role {
    /// All of them, the target first.
    pub const ALL: [Role; 3] = [Role::Target, Role::Qualifier, Role::Draft];

    /// The name on the wire and in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Draft => "draft",
            Role::Qualifier => "qualifier",
            Role::Target => "target",
        }
    }

    /// The role with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing a worker does for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Duty {
    /// Adds guesses to the tree.
    Propose,
    /// Walks the tree ahead of the target; what it picks is advice.
    Advise,
    /// Walks the tree; what it picks is the text.
    Commit,
}

impl Duty {
    /// All of them.
    pub const ALL: [Duty; 3] = [Duty::Propose, Duty::Advise, Duty::Commit];

    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Duty::Propose => "propose",
            Duty::Advise => "advise",
            Duty::Commit => "commit",
        }
    }

    /// The duty with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Duty> {
        Duty::ALL.into_iter().find(|duty| duty.name() == name)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Everything a worker does for a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duties(u8);

impl Duties {
    /// One duty.
    #[must_use]
    pub fn of(duty: Duty) -> Self {
        Duties(duty.bit())
    }

    /// These duties and one more.
    #[must_use]
    pub fn and(self, duty: Duty) -> Self {
        Duties(self.0 | duty.bit())
    }

    /// Whether they include this duty.
    #[must_use]
    pub fn has(self, duty: Duty) -> bool {
        self.0 & duty.bit() != 0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Duty> {
        Duty::ALL.into_iter().filter(move |&duty| self.has(duty))
    }
}

impl FromIterator<Duty> for Duties {
    fn from_iter<I: IntoIterator<Item = Duty>>(duties: I) -> Self {
        duties.into_iter().fold(Duties::default(), Duties::and)
    }
}

/// Which contributor a node came from. Calibration is by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Source {
    /// Not known.
    #[default]
    Unknown = 0,
    /// A draft model.
    Draft = 1,
    /// A qualifier's advice.
    Qualifier = 2,
    /// An earlier place of the same text.
    Lookup = 3,
    /// Heads beside the target.
    Heads = 4,
    /// A text that was completed before under the same salt.
    History = 5,
    /// A rule: a draft that computes no model.
    Rule = 6,
}

impl Source {
    /// All of them.
    pub const ALL: [Source; 7] = [
        Source::Unknown,
        Source::Draft,
        Source::Qualifier,
        Source::Lookup,
        Source::Heads,
        Source::History,
        Source::Rule,
    ];

    /// Numbers on the wire lie below it.
    pub const CODES: usize = 8;

    /// Its number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The source with this number; a number from a newer peer is [`Source::Unknown`].
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        let known = Source::ALL.into_iter().find(|source| source.code() == code);
        known.unwrap_or_default()
    }

    /// The name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Source::Unknown => "unknown",
            Source::Draft => "draft",
            Source::Qualifier => "qualifier",
            Source::Lookup => "lookup",
            Source::Heads => "heads",
            Source::History => "history",
            Source::Rule => "rule",
        }
    }

    /// The source with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Source> {
        Source::ALL.into_iter().find(|source| source.name() == name)
    }
}

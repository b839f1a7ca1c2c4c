//! Something for each source of guesses, and sets of sources.

use core::ops::{Index, IndexMut};

use crate::duty::Source;

/// One value for each [`Source`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BySource<T>([T; Source::CODES]);

impl<T> BySource<T> {
    /// Each source with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Source, &T)> {
        Source::ALL
            .into_iter()
            .map(|source| (source, &self[source]))
    }
}

impl<T> Index<Source> for BySource<T> {
    type Output = T;

    fn index(&self, source: Source) -> &T {
        &self.0[usize::from(source.code())]
    }
}

impl<T> IndexMut<Source> for BySource<T> {
    fn index_mut(&mut self, source: Source) -> &mut T {
        &mut self.0[usize::from(source.code())]
    }
}

/// A set of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources(u8);

/// Whether a set had a source before it was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It had not.
    New,
    /// It had.
    Known,
}

impl Sources {
    /// Puts one in.
    pub fn insert(&mut self, source: Source) -> Inserted {
        let before = self.0;
        self.0 |= 1 << source.code();
        if self.0 == before {
            Inserted::Known
        } else {
            Inserted::New
        }
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Source> {
        Source::ALL
            .into_iter()
            .filter(move |source| self.0 & (1 << source.code()) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_source_has_a_place_of_its_own() {
        let mut counts = BySource::<u32>::default();
        let mut set = Sources::default();
        for (at, source) in (1..).zip(Source::ALL) {
            assert_eq!(Source::from_code(source.code()), source);
            assert_eq!(Source::from_name(source.name()), Some(source));
            counts[source] += at;
            assert_eq!(set.insert(source), Inserted::New);
            assert_eq!(set.insert(source), Inserted::Known);
        }
        let seen: Vec<u32> = counts.iter().map(|(_, &count)| count).collect();
        assert_eq!(seen, (1..=Source::ALL.len() as u32).collect::<Vec<_>>());
        assert!(set.iter().eq(Source::ALL));
    }
}

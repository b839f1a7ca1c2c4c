//! Merging the sets of all sources into workers that come and go. Pure: it follows no source and links no worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Address;

/// What a new set means for the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A source lists it, and none did before.
    Join(Address),
    /// No source lists it any more.
    Leave(Address),
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The newest set of each source.
    sources: Vec<BTreeSet<Address>>,
    /// `HOST:PORT` of the workers that never leave.
    fixed: BTreeSet<Arc<str>>,
    /// The workers that have joined and not left, by `HOST:PORT`.
    listed: BTreeMap<Arc<str>, Address>,
    /// Workers, at most.
    most: usize,
    left_out: usize,
}

impl Merge {
    /// Merges this many sources. The workers in `fixed` are there already and stay; all together there are at most
    /// `most`.
    pub(crate) fn new(sources: usize, fixed: BTreeSet<Arc<str>>, most: usize) -> Self {
        Merge {
            sources: vec![BTreeSet::new(); sources],
            fixed,
            listed: BTreeMap::new(),
            most,
            left_out: 0,
        }
    }

    /// A source has a new set. Workers that leave come first.
    pub(crate) fn update(&mut self, source: usize, addresses: BTreeSet<Address>) -> Vec<Change> {
        let Some(set) = self.sources.get_mut(source) else {
            return Vec::new();
        };
        *set = addresses;
        let mut wanted: BTreeMap<Arc<str>, Address> = BTreeMap::new();
        for address in self.sources.iter().flatten() {
            if !self.fixed.contains(&address.authority) {
                let authority = Arc::clone(&address.authority);
                // The name in its certificate is what the first source says.
                wanted.entry(authority).or_insert_with(|| address.clone());
            }
        }
        let mut changes = Vec::new();
        self.listed.retain(|authority, address| {
            let stays = wanted.contains_key(authority);
            if !stays {
                changes.push(Change::Leave(address.clone()));
            }
            stays
        });
        self.left_out = 0;
        for (authority, address) in wanted {
            if self.listed.contains_key(&authority) {
                continue;
            }
            if self.fixed.len() + self.listed.len() >= self.most {
                self.left_out += 1;
                continue;
            }
            changes.push(Change::Join(address.clone()));
            self.listed.insert(authority, address);
        }
        changes
    }

    /// Addresses for which there was no room.
    pub(crate) fn left_out(&self) -> usize {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ports: impl IntoIterator<Item = u16>) -> BTreeSet<Address> {
        (ports.into_iter()).map(address).collect()
    }

    fn address(port: u16) -> Address {
        Address::new(&format!("w:{port}"))
    }

    fn join(port: u16) -> Change {
        Change::Join(address(port))
    }

    fn leave(port: u16) -> Change {
        Change::Leave(address(port))
    }

    #[test]
    fn an_address_of_two_sources_is_one_worker_and_leaves_with_the_second() {
        let mut merge = Merge::new(2, BTreeSet::new(), 9);
        assert_eq!(merge.update(0, set([1, 2])), [join(1), join(2)]);
        assert_eq!(merge.update(1, set([2, 3])), [join(3)]);
        assert_eq!(merge.update(0, set([1])), []);
        assert_eq!(merge.update(1, set([])), [leave(2), leave(3)]);
        assert_eq!(merge.update(1, set([3])), [join(3)]);
        assert_eq!(merge.update(7, set([4])), [], "there is no such source");
    }

    #[test]
    fn another_certificate_name_is_no_other_worker() {
        let named = |name: &str| Address {
            certificate_name: Some(name.into()),
            ..address(1)
        };
        let mut merge = Merge::new(2, BTreeSet::new(), 9);
        let first = merge.update(0, BTreeSet::from([named("a")]));
        assert_eq!(first, [Change::Join(named("a"))]);
        assert_eq!(merge.update(1, BTreeSet::from([named("b")])), []);
    }

    #[test]
    fn what_flags_list_neither_joins_nor_leaves() {
        let mut merge = Merge::new(1, BTreeSet::from(["w:1".into()]), 9);
        assert_eq!(merge.update(0, set([1, 2])), [join(2)]);
        assert_eq!(merge.update(0, set([])), [leave(2)]);
    }

    #[test]
    fn workers_that_are_there_stay_when_there_are_too_many() {
        let mut merge = Merge::new(1, BTreeSet::from(["w:9".into()]), 3);
        assert_eq!(merge.update(0, set([5, 6])), [join(5), join(6)]);
        assert_eq!(merge.update(0, set([1, 5, 6])), []);
        assert_eq!(merge.left_out(), 1);
        assert_eq!(merge.update(0, set([1, 6])), [leave(5), join(1)]);
        assert_eq!(merge.left_out(), 0);
    }

    /// Against the obvious: whoever is in some set has joined, whoever is in none has left.
    #[test]
    fn any_updates_end_with_the_union() {
        let mut state = 7_u64;
        let mut roll = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let mut merge = Merge::new(3, BTreeSet::new(), 99);
            let mut sets = vec![BTreeSet::new(); 3];
            let mut present = BTreeSet::new();
            for _ in 0..20 {
                let (source, bits) = (roll(3) as usize, roll(64));
                let new = set((0..6).filter(|port| bits >> port & 1 == 1));
                sets[source] = new.clone();
                for change in merge.update(source, new) {
                    match change {
                        Change::Join(address) => assert!(present.insert(address)),
                        Change::Leave(address) => assert!(present.remove(&address)),
                    }
                }
                let union: BTreeSet<Address> = sets.iter().flatten().cloned().collect();
                assert_eq!(present, union);
            }
        }
    }
}

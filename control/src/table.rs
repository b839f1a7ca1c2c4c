//! What a worker holds: its links, the sessions that coordinators opened on them, and whose turn it is. Who may open,
//! tell, take back and close what is [`Grant`]'s to say.
//!
//! The owner has a model and a clock. `S` is what it keeps for a session, `L` what it still has to say on a link.

use std::collections::BTreeMap;

use crate::Time;
use crate::lease::{Grant, Hold};
use crate::message::{LinkName, SessionId, Term};

/// What still has to be said on a link.
pub trait Slots {
    /// Of this session nothing is said any more.
    fn discard(&mut self, session: SessionId);
}

/// Why an open call is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such link, or it was lost.
    NotLinked,
    /// The session is held, and not for somebody who may take it back with this call.
    Duplicate,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Holdings<L, S> {
    links: BTreeMap<u64, Link<L>>,
    sessions: BTreeMap<SessionId, Held<S>>,
    /// The session that is asked first for the next step, so that none is always last.
    turn: SessionId,
}

#[derive(Debug)]
struct Link<L> {
    name: LinkName,
    slots: L,
}

#[derive(Debug)]
struct Held<S> {
    grant: Grant,
    session: S,
}

impl<L, S> Default for Holdings<L, S> {
    fn default() -> Self {
        Holdings {
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            turn: SessionId(0),
        }
    }
}

impl<L: Slots, S> Holdings<L, S> {
    /// A stream is up; the owner gives it a number that it never uses again.
    pub fn handle_linked(&mut self, link: u64, name: LinkName, slots: L) {
        self.links.insert(link, Link { name, slots });
    }

    /// A stream is lost. Its sessions rest from `now` on; `rests` hears of each.
    pub fn handle_lost(&mut self, link: u64, now: Time, mut rests: impl FnMut(&mut S)) {
        self.links.remove(&link);
        for held in self.sessions.values_mut() {
            if held.grant.handle_lost(link, now) {
                rests(&mut held.session);
            }
        }
    }

    /// A coordinator opens a session. Gives what to [`hold`](Self::hold) it by, and the session it takes the place of.
    ///
    /// # Errors
    /// When the call is not to be carried out; nothing has changed then.
    pub fn handle_open(
        &mut self,
        name: LinkName,
        id: SessionId,
        term: Term,
    ) -> Result<(Grant, Option<S>), Refusal> {
        let mut links = self.links.iter().rev();
        let (&link, _) = (links.find(|(_, link)| link.name == name)).ok_or(Refusal::NotLinked)?;
        let yields = |held: &Held<S>| held.grant.yields_to(name.coordinator, term);
        if !self.sessions.get(&id).is_none_or(yields) {
            return Err(Refusal::Duplicate);
        }
        let before = self.remove(id);
        Ok((Grant::new(name.coordinator, term, link), before))
    }

    /// The session is held from now on.
    pub fn hold(&mut self, id: SessionId, grant: Grant, session: S) {
        self.sessions.insert(id, Held { grant, session });
    }

    /// The session that something told on this link under this term is for.
    pub fn hears(&mut self, link: u64, id: SessionId, term: Term) -> Option<&mut S> {
        let held = self.sessions.get_mut(&id)?;
        (held.grant.hears(link, term)).then_some(&mut held.session)
    }

    /// A coordinator closes a session, perhaps on a later link than the one it was opened on. Gives what was held.
    pub fn handle_close(&mut self, link: u64, id: SessionId, term: Term) -> Option<S> {
        let coordinator = self.links.get(&link)?.name.coordinator;
        let held = self.sessions.get(&id)?;
        if !held.grant.ends_by(coordinator, term) {
            return None;
        }
        self.remove(id)
    }

    /// A session whose lease is over.
    pub fn poll_expired(&mut self, now: Time) -> Option<(SessionId, S)> {
        let over = |held: &Held<S>| matches!(held.grant.hold(), Hold::Lease(until) if until <= now);
        let id = (self.sessions.iter()).find_map(|(&id, held)| over(held).then_some(id))?;
        Some((id, self.remove(id)?))
    }

    /// When the next lease ends.
    pub fn wake(&self) -> Option<Time> {
        let until = |held: &Held<S>| match held.grant.hold() {
            Hold::Lease(until) => Some(until),
            Hold::Link(_) => None,
        };
        self.sessions.values().filter_map(until).min()
    }

    /// Forgets a session; what it still had to say is not said.
    pub fn remove(&mut self, id: SessionId) -> Option<S> {
        let held = self.sessions.remove(&id)?;
        if let Hold::Link(link) = held.grant.hold()
            && let Some(link) = self.links.get_mut(&link)
        {
            link.slots.discard(id);
        }
        Some(held.session)
    }

    /// The sessions that may take part in a step, in the order in which they are asked.
    pub fn in_turn(&self) -> Vec<SessionId> {
        (self.sessions.range(self.turn..))
            .chain(self.sessions.range(..self.turn))
            .filter(|(_, held)| matches!(held.grant.hold(), Hold::Link(_)))
            .map(|(&id, _)| id)
            .collect()
    }

    /// This session was the first of a step: next time another one is.
    pub fn pass_turn(&mut self, id: SessionId) {
        self.turn = SessionId(id.0.wrapping_add(1));
    }

    /// Every session that is on a link, with its term and that link.
    pub fn speakers(&mut self, mut speak: impl FnMut(SessionId, Term, u64, &mut L, &mut S)) {
        for (&id, held) in &mut self.sessions {
            if let Hold::Link(number) = held.grant.hold()
                && let Some(link) = self.links.get_mut(&number)
            {
                let term = held.grant.term();
                speak(id, term, number, &mut link.slots, &mut held.session);
            }
        }
    }

    /// Forgets a session that cannot be served any more. Gives also its term and the link to say so on, if it is on one.
    pub fn give_up(&mut self, id: SessionId) -> Option<(S, Option<(Term, &mut L)>)> {
        let grant = self.sessions.get(&id)?.grant;
        let session = self.remove(id)?;
        let link = match grant.hold() {
            Hold::Link(link) => self.links.get_mut(&link),
            Hold::Lease(_) => None,
        };
        let told = link.map(|link| (grant.term(), &mut link.slots));
        Some((session, told))
    }

    /// The term that a session was opened under.
    pub fn term(&self, id: SessionId) -> Option<Term> {
        self.sessions.get(&id).map(|held| held.grant.term())
    }

    /// A session.
    pub fn get(&self, id: SessionId) -> Option<&S> {
        self.sessions.get(&id).map(|held| &held.session)
    }

    /// A session.
    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut S> {
        self.sessions.get_mut(&id).map(|held| &mut held.session)
    }

    /// All sessions, by number.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &S)> {
        (self.sessions.iter()).map(|(&id, held)| (id, &held.session))
    }

    /// All sessions.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.sessions.values_mut().map(|held| &mut held.session)
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// What there is to say on each link.
    pub fn slots(&self) -> impl Iterator<Item = &L> {
        self.links.values().map(|link| &link.slots)
    }

    /// What there is to say on a link.
    pub fn slots_of(&mut self, link: u64) -> Option<&mut L> {
        self.links.get_mut(&link).map(|link| &mut link.slots)
    }

    /// The newest link of a coordinator.
    pub fn newest(&self, coordinator: u64) -> Option<u64> {
        let mut links = self.links.iter().rev();
        let (&link, _) = links.find(|(_, link)| link.name.coordinator == coordinator)?;
        Some(link)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::lease::LEASE;

    impl Slots for Vec<SessionId> {
        fn discard(&mut self, session: SessionId) {
            self.retain(|&id| id != session);
        }
    }

    fn name(incarnation: u64) -> LinkName {
        LinkName {
            coordinator: 1,
            incarnation,
        }
    }

    const ID: SessionId = SessionId(5);

    #[test]
    fn a_call_is_carried_out_on_its_own_link_only_and_silences_what_it_replaces() {
        let mut held = Holdings::<Vec<SessionId>, &str>::default();
        assert_eq!(
            held.handle_open(name(1), ID, Term(1)).unwrap_err(),
            Refusal::NotLinked
        );
        held.handle_linked(7, name(1), Vec::new());
        let (grant, before) = held.handle_open(name(1), ID, Term(1)).unwrap();
        assert_eq!(before, None);
        held.hold(ID, grant, "first");
        held.speakers(|id, _, _, slots, _| slots.push(id));
        assert_eq!(
            held.handle_open(name(1), ID, Term(1)).unwrap_err(),
            Refusal::Duplicate
        );
        let (grant, before) = held.handle_open(name(1), ID, Term(2)).unwrap();
        assert_eq!(before, Some("first"));
        assert!(
            held.slots_of(7).unwrap().is_empty(),
            "it is still to be said"
        );
        held.hold(ID, grant, "second");
        assert!(held.hears(7, ID, Term(1)).is_none() && held.hears(7, ID, Term(2)).is_some());
    }

    #[test]
    fn a_lost_link_leaves_sessions_that_rest_and_end() {
        let mut held = Holdings::<Vec<SessionId>, &str>::default();
        held.handle_linked(7, name(1), Vec::new());
        let (grant, _) = held.handle_open(name(1), ID, Term(1)).unwrap();
        held.hold(ID, grant, "it");
        assert_eq!(held.in_turn(), [ID]);
        let mut rested = 0;
        held.handle_lost(7, Time::ZERO, |_| rested += 1);
        assert_eq!(
            (rested, held.in_turn().len(), held.wake()),
            (1, 0, Some(LEASE))
        );
        assert_eq!(held.poll_expired(LEASE / 2), None);
        // A close on a later link of the same coordinator.
        held.handle_linked(8, name(2), Vec::new());
        assert_eq!(held.handle_close(9, ID, Term(1)), None);
        assert_eq!(held.handle_close(8, ID, Term(0)), None);
        assert_eq!(held.handle_close(8, ID, Term(1)), Some("it"));
        assert_eq!(held.poll_expired(LEASE), None);
    }

    #[test]
    fn turns_go_round() {
        let mut held = Holdings::<Vec<SessionId>, ()>::default();
        held.handle_linked(7, name(1), Vec::new());
        for id in [1, 2, 3].map(SessionId) {
            let (grant, _) = held.handle_open(name(1), id, Term(1)).unwrap();
            held.hold(id, grant, ());
        }
        held.pass_turn(SessionId(1));
        assert_eq!(held.in_turn(), [2, 3, 1].map(SessionId));
    }
}

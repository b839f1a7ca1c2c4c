//! The sessions that a worker holds: its streams, the sessions that coordinators opened on them, and whose turn it is.
//! [`Ownership`] decides who may open, update, take back and close a session.
//!
//! The owner has a model and a clock. `S` is what it keeps for a session, `L` the slots of a stream.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use speculation::Time;
use speculation::message::{FromWorker, SessionId, StreamName, Term};

use crate::ownership::{Hold, Ownership};

/// One slot for each session of a stream: what is to be sent and was not taken yet. The latest state wins.
pub trait Slots {
    /// Nothing is sent about this session any more.
    fn discard(&mut self, session: SessionId);
    /// Whether what was put last has been taken.
    fn is_vacant(&self, session: SessionId) -> bool;
    /// Fills the slot of a session.
    fn put(&mut self, session: SessionId, term: Term, message: FromWorker);
}

/// Why an open call is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such stream, or it was lost.
    NoStream,
    /// The session is held, and this call may not take it back.
    Duplicate,
    /// The cache has no room for its text.
    Full,
}

/// See the module documentation.
#[derive(Debug)]
pub struct SessionTable<L, S> {
    streams: BTreeMap<u64, Stream<L>>,
    sessions: BTreeMap<SessionId, Held<S>>,
    /// The session that is asked first for the next step, so that none is always last.
    turn: SessionId,
}

#[derive(Debug)]
struct Stream<L> {
    name: StreamName,
    slots: L,
}

#[derive(Debug)]
struct Held<S> {
    owned: Ownership,
    session: S,
}

impl<L, S> Default for SessionTable<L, S> {
    fn default() -> Self {
        SessionTable {
            streams: BTreeMap::new(),
            sessions: BTreeMap::new(),
            turn: SessionId(0),
        }
    }
}

impl<L: Slots, S> SessionTable<L, S> {
    /// A stream is up; the owner gives it a number that it never uses again.
    pub fn handle_stream(&mut self, stream: u64, name: StreamName, slots: L) {
        self.streams.insert(stream, Stream { name, slots });
    }

    /// A stream is lost. Its sessions, which are given, rest from `now` on.
    pub fn handle_lost(&mut self, stream: u64, now: Time) -> impl Iterator<Item = &mut S> {
        self.streams.remove(&stream);
        (self.sessions.values_mut()).filter_map(move |held| {
            held.owned
                .handle_lost(stream, now)
                .then_some(&mut held.session)
        })
    }

    /// A coordinator opens a session. Returns the ownership to [`hold`](Self::hold) it with, and the session that it
    /// replaces.
    ///
    /// # Errors
    /// When the call is not to be carried out; nothing has changed then.
    pub fn handle_open(
        &mut self,
        name: StreamName,
        id: SessionId,
        term: Term,
    ) -> Result<(Ownership, Option<S>), Refusal> {
        let mut streams = self.streams.iter().rev();
        let found = streams.find(|(_, stream)| stream.name == name);
        let (&stream, _) = found.ok_or(Refusal::NoStream)?;
        let yields = |held: &Held<S>| held.owned.yields_to(name.coordinator, term);
        if !self.sessions.get(&id).is_none_or(yields) {
            return Err(Refusal::Duplicate);
        }
        let before = self.remove(id);
        Ok((Ownership::new(name.coordinator, term, stream), before))
    }

    /// The session is held from now on.
    pub fn hold(&mut self, id: SessionId, owned: Ownership, session: S) {
        self.sessions.insert(id, Held { owned, session });
    }

    /// The session that a message on this stream under this term is for.
    pub fn accepts(&mut self, stream: u64, id: SessionId, term: Term) -> Option<&mut S> {
        let held = self.sessions.get_mut(&id)?;
        (held.owned.accepts(stream, term)).then_some(&mut held.session)
    }

    /// A coordinator closes a session, perhaps on a later stream than the one it was opened on. Returns what was held.
    pub fn handle_close(&mut self, stream: u64, id: SessionId, term: Term) -> Option<S> {
        let coordinator = self.streams.get(&stream)?.name.coordinator;
        let held = self.sessions.get(&id)?;
        if !held.owned.ends_by(coordinator, term) {
            return None;
        }
        self.remove(id)
    }

    /// A session whose lease is over.
    pub fn poll_expired(&mut self, now: Time) -> Option<(SessionId, S)> {
        let over = |held: &Held<S>| matches!(held.owned.hold(), Hold::Lease(until) if until <= now);
        let id = (self.sessions.iter()).find_map(|(&id, held)| over(held).then_some(id))?;
        Some((id, self.remove(id)?))
    }

    /// When the next lease ends.
    pub fn wake(&self) -> Option<Time> {
        let until = |held: &Held<S>| match held.owned.hold() {
            Hold::Lease(until) => Some(until),
            Hold::Stream(_) => None,
        };
        self.sessions.values().filter_map(until).min()
    }

    /// Forgets a session; what it had still to report is dropped.
    pub fn remove(&mut self, id: SessionId) -> Option<S> {
        let held = self.sessions.remove(&id)?;
        if let Hold::Stream(stream) = held.owned.hold()
            && let Some(stream) = self.streams.get_mut(&stream)
        {
            stream.slots.discard(id);
        }
        Some(held.session)
    }

    /// The sessions that may take part in a step, in the order in which they are asked.
    pub fn in_turn(&self) -> Vec<SessionId> {
        (self.sessions.range(self.turn..))
            .chain(self.sessions.range(..self.turn))
            .filter(|(_, held)| matches!(held.owned.hold(), Hold::Stream(_)))
            .map(|(&id, _)| id)
            .collect()
    }

    /// This session was the first of a step: next time another one is.
    pub fn pass_turn(&mut self, id: SessionId) {
        self.turn = SessionId(id.0.wrapping_add(1));
    }

    /// Every session that is on a stream, with its term and the slots of that stream.
    pub fn on_streams(&mut self, mut visit: impl FnMut(SessionId, Term, &mut L, &mut S)) {
        for (&id, held) in &mut self.sessions {
            if let Hold::Stream(number) = held.owned.hold()
                && let Some(stream) = self.streams.get_mut(&number)
            {
                let term = held.owned.term();
                visit(id, term, &mut stream.slots, &mut held.session);
            }
        }
    }

    /// Forgets a session that is not served any more, and reports why on its stream, if it is on one.
    pub fn give_up(&mut self, id: SessionId, why: FromWorker) -> Option<S> {
        let owned = self.sessions.get(&id)?.owned;
        let session = self.remove(id)?;
        if let Hold::Stream(stream) = owned.hold()
            && let Some(stream) = self.streams.get_mut(&stream)
        {
            (stream.slots).put(id, owned.term(), why);
        }
        Some(session)
    }

    /// The term that a session was opened under.
    pub fn term(&self, id: SessionId) -> Option<Term> {
        self.sessions.get(&id).map(|held| held.owned.term())
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

    /// Whether a session is on a stream.
    pub fn is_on_stream(&self, id: SessionId) -> bool {
        (self.sessions.get(&id)).is_some_and(|held| matches!(held.owned.hold(), Hold::Stream(_)))
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The slots of every stream.
    pub fn slots(&self) -> impl Iterator<Item = &L> {
        self.streams.values().map(|stream| &stream.slots)
    }

    /// The slots of a stream.
    pub fn slots_of(&mut self, stream: u64) -> Option<&mut L> {
        self.streams
            .get_mut(&stream)
            .map(|stream| &mut stream.slots)
    }

    /// The newest stream of a coordinator.
    pub fn newest(&self, coordinator: u64) -> Option<u64> {
        let mut streams = self.streams.iter().rev();
        let (&stream, _) = streams.find(|(_, stream)| stream.name.coordinator == coordinator)?;
        Some(stream)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::ownership::LEASE;

    impl Slots for Vec<SessionId> {
        fn discard(&mut self, session: SessionId) {
            self.retain(|&id| id != session);
        }

        fn is_vacant(&self, session: SessionId) -> bool {
            !self.contains(&session)
        }

        fn put(&mut self, session: SessionId, _: Term, _: FromWorker) {
            self.push(session);
        }
    }

    fn name(incarnation: u64) -> StreamName {
        StreamName {
            coordinator: 1,
            incarnation,
        }
    }

    const ID: SessionId = SessionId(5);

    #[test]
    fn a_call_is_carried_out_on_its_own_stream_only_and_silences_what_it_replaces() {
        let mut held = SessionTable::<Vec<SessionId>, &str>::default();
        assert_eq!(
            held.handle_open(name(1), ID, Term(1)).unwrap_err(),
            Refusal::NoStream
        );
        held.handle_stream(7, name(1), Vec::new());
        let (owned, before) = held.handle_open(name(1), ID, Term(1)).unwrap();
        assert_eq!(before, None);
        held.hold(ID, owned, "first");
        held.on_streams(|id, _, slots, _| slots.push(id));
        assert_eq!(
            held.handle_open(name(1), ID, Term(1)).unwrap_err(),
            Refusal::Duplicate
        );
        let (owned, before) = held.handle_open(name(1), ID, Term(2)).unwrap();
        assert_eq!(before, Some("first"));
        assert!(
            held.slots_of(7).unwrap().is_empty(),
            "it is still to be sent"
        );
        held.hold(ID, owned, "second");
        assert!(held.accepts(7, ID, Term(1)).is_none() && held.accepts(7, ID, Term(2)).is_some());
    }

    #[test]
    fn a_lost_stream_leaves_sessions_that_rest_and_end() {
        let mut held = SessionTable::<Vec<SessionId>, &str>::default();
        held.handle_stream(7, name(1), Vec::new());
        let (owned, _) = held.handle_open(name(1), ID, Term(1)).unwrap();
        held.hold(ID, owned, "it");
        assert_eq!(held.in_turn(), [ID]);
        let rested = held.handle_lost(7, Time::ZERO).count();
        assert_eq!(
            (rested, held.in_turn().len(), held.wake()),
            (1, 0, Some(LEASE))
        );
        assert_eq!(held.poll_expired(LEASE / 2), None);
        // A close on a later stream of the same coordinator.
        held.handle_stream(8, name(2), Vec::new());
        assert_eq!(held.handle_close(9, ID, Term(1)), None);
        assert_eq!(held.handle_close(8, ID, Term(0)), None);
        assert_eq!(held.handle_close(8, ID, Term(1)), Some("it"));
        assert_eq!(held.poll_expired(LEASE), None);
    }

    #[test]
    fn turns_go_round() {
        let mut held = SessionTable::<Vec<SessionId>, ()>::default();
        held.handle_stream(7, name(1), Vec::new());
        for id in [1, 2, 3].map(SessionId) {
            let (owned, _) = held.handle_open(name(1), id, Term(1)).unwrap();
            held.hold(id, owned, ());
        }
        held.pass_turn(SessionId(1));
        assert_eq!(held.in_turn(), [2, 3, 1].map(SessionId));
    }
}

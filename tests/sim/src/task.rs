//! A coordinator's task of one session: it owns the real [`Ferry`] and is its shore, as `coordinator::session` is.

use std::cell::Cell;
use std::collections::VecDeque;

use speculation::Time;
use speculation::ferry::{self, Answered, Ferry, Fresh, Seat, Shore, Wanted};
use speculation::limits::CLIENT_CREDIT;
use speculation::message::{
    Finish, PromptScores, ReplicaUpdate, Scores, SessionId, SessionSpec, Term,
};
use speculation::relay::{LinkKey, Relay, RelayConfig, RelayError, Role};
use speculation::replay::{Hope, Wish};

use crate::air::{Air, Answer, Event, Said, StreamId, note};
use crate::client::{self, Word};
use crate::coordinator::{Coordinator, Told};
use crate::hosted::Report;
use crate::reference::VOCAB;
use crate::scenario::Request;

/// Messages handled before the workers are told.
const BATCH: usize = 64;

/// Messages that a client may leave untaken.
const CHANNEL: usize = 4;

/// A session's seat on a link.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) worker: usize,
    pub(crate) stream: StreamId,
    role: Role,
    pub(crate) term: Term,
    /// The session fell behind its reports.
    is_behind: Cell<bool>,
    /// It is to be woken when its slot is taken.
    waits: Cell<bool>,
}

impl Place {
    pub(crate) fn new(home: &Coordinator, stream: StreamId) -> Self {
        Place {
            worker: home.link(stream).worker,
            stream,
            role: home.role(stream),
            term: Term(0),
            is_behind: Cell::new(false),
            waits: Cell::new(false),
        }
    }
}

impl Seat for Place {
    fn key(&self) -> LinkKey {
        LinkKey(self.worker as u32)
    }

    fn role(&self) -> Role {
        self.role
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Task {
    ferry: Ferry<Place, Failed>,
    own: Own,
    inbox: VecDeque<(usize, Said)>,
    pub(crate) answers: VecDeque<(usize, StreamId, Term, Answer)>,
    pub(crate) is_woken: bool,
    pub(crate) arrivals: bool,
    is_gone: bool,
    /// The text as it was checked last.
    checked: usize,
}

/// What a task has besides its ferry.
#[derive(Debug)]
struct Own {
    id: SessionId,
    client: usize,
    attempt: u32,
    request: Request,
    /// Since when there is no target, kept a second time.
    targetless: Option<Time>,
    /// Messages that the client has not taken.
    channel: usize,
    unsent: Vec<u32>,
    unsent_scores: Option<Scores>,
}

/// Why a task ends before its text.
type Failed = &'static str;

impl Task {
    pub(crate) fn new(
        id: SessionId,
        client: usize,
        attempt: u32,
        request: &Request,
        text: Vec<u32>,
    ) -> Self {
        let checked = text.len();
        let relay = Relay::new(RelayConfig {
            session: id,
            text,
            stopping: request.stopping.clone(),
            scoring: request.scoring,
            strategy: request.strategy,
            vocab: VOCAB,
        });
        let wanted = Wanted {
            drafts: request.drafts,
            qualifiers: request.qualifiers,
        };
        Task {
            ferry: Ferry::new(relay, wanted, request.prompt.len()),
            own: Own {
                id,
                client,
                attempt,
                request: request.clone(),
                targetless: None,
                channel: 0,
                unsent: Vec::new(),
                unsent_scores: None,
            },
            inbox: VecDeque::new(),
            answers: VecDeque::new(),
            is_woken: false,
            arrivals: false,
            is_gone: false,
            checked,
        }
    }

    fn place(&self, stream: StreamId) -> Option<&Place> {
        (self.ferry.seats().iter()).find(|place| place.stream == stream)
    }

    /// A worker has said something. A session that is so far behind that its inbox is full goes on without it.
    pub(crate) fn hear(&mut self, stream: StreamId, said: Said, most: usize) {
        let Some(place) = self.place(stream) else {
            return;
        };
        if self.inbox.len() >= most {
            place.is_behind.set(true);
        } else {
            let worker = place.worker;
            self.inbox.push_back((worker, said));
        }
    }

    pub(crate) fn is_seeking(&self) -> bool {
        self.ferry.is_seeking()
    }

    pub(crate) fn serves(&self, from: (usize, u32)) -> bool {
        (self.own.client, self.own.attempt) == from
    }

    pub(crate) fn wish(&mut self, wish: client::Wish) {
        match wish {
            client::Wish::Taken => self.own.channel = self.own.channel.saturating_sub(1),
            client::Wish::Gone => self.is_gone = true,
        }
    }

    /// The writer has taken the session's slot; whether the session waits for that.
    pub(crate) fn slot_taken(&mut self, stream: StreamId) -> bool {
        (self.place(stream)).is_some_and(|place| place.waits.take())
    }

    /// Ferries until there is nothing to do; whether the session goes on.
    pub(crate) fn drive(&mut self, air: &mut Air, home: &mut Coordinator) -> bool {
        let word = match self.ferry(air, home) {
            Ok(None) => {
                if let Some(at) = self.ferry.wake(air.now, home.replay_wait) {
                    air.at(at, Event::Run(home.at, home.life, self.own.id));
                }
                return true;
            }
            Ok(Some(End::Gone)) => None,
            Ok(Some(End::Finished(finish))) => Some(Word::Finished(finish)),
            Err(failed) => Some(Word::Failed(failed)),
        };
        note!(air, "{:?} ends: {word:?}", self.own.id);
        let seats = self.ferry.take_seats();
        let mut deck = self.own.deck(air, home);
        seats.into_iter().for_each(|seat| deck.leave(seat));
        if let Some(word) = word {
            deck.flush(None);
            home.say(air, self.own.client, self.own.attempt, word);
        }
        false
    }

    fn ferry(&mut self, air: &mut Air, home: &mut Coordinator) -> Result<Option<End>, Failed> {
        loop {
            let (now, patience) = (air.now, home.replay_wait);
            let mut deck = self.own.deck(air, home);
            if let Some(finish) = self.ferry.poll(&mut deck, now, patience)? {
                return Ok(Some(End::Finished(finish)));
            }
            assert!(
                !(self.ferry.is_seeking() && self.own.is_overdue(now, patience)),
                "a search ends in its time"
            );
            if self.is_gone {
                return Ok(Some(End::Gone));
            }
            if let Some((worker, stream, term, answer)) = self.answers.pop_front() {
                self.answered(air, home, (worker, stream, term), answer)?;
            } else if std::mem::take(&mut self.arrivals) {
                self.ferry.handle_arrivals(&mut self.own.deck(air, home));
            } else if !self.inbox.is_empty() {
                for _ in 0..BATCH {
                    let Some((worker, said)) = self.inbox.pop_front() else {
                        break;
                    };
                    self.take(air, home, worker, said)?;
                }
            } else {
                return Ok(None);
            }
        }
    }

    /// Takes what a worker has said. What it says under another term than its own changes nothing.
    fn take(
        &mut self,
        air: &mut Air,
        home: &mut Coordinator,
        worker: usize,
        said: Said,
    ) -> Result<(), Failed> {
        let Some(place) = (self.ferry.seats().iter()).find(|place| place.worker == worker) else {
            return Ok(());
        };
        let from = (place.key(), said.term);
        let before = (place.term != said.term).then(|| self.fingerprint());
        let said = match said.report {
            Report::Draft(report) => ferry::Said::Drafted(report),
            Report::Verify(report) => ferry::Said::Verified(report),
            #[cfg(test)]
            Report::Opened => unreachable!("an open call has an answer"),
        };
        let now = air.now;
        let mut deck = self.own.deck(air, home);
        self.ferry.handle_said(&mut deck, now, from, said)?;
        if let Some(before) = before {
            assert_eq!(before, self.fingerprint(), "a stale term changes nothing");
        }
        self.check_text();
        Ok(())
    }

    fn fingerprint(&self) -> String {
        let relay = self.ferry.relay();
        let (text, finish) = (relay.text().len(), relay.finish());
        format!("{text} {finish:?} {:?}", relay.stats())
    }

    /// The text has only grown, and is what the target decodes alone.
    fn check_text(&mut self) {
        let text = self.ferry.relay().text();
        let plain = &self.own.request.plain;
        assert!(
            text.len() >= self.checked && text.len() <= plain.len(),
            "{} tokens after {}, of {}",
            text.len(),
            self.checked,
            plain.len()
        );
        assert_eq!(text[self.checked..], plain[self.checked..text.len()]);
        self.checked = text.len();
        let untaken = self.own.unsent.len() as u32;
        assert!(
            untaken <= CLIENT_CREDIT + 1024,
            "a slow client holds the session up"
        );
    }

    fn answered(
        &mut self,
        air: &mut Air,
        home: &mut Coordinator,
        (worker, stream, term): (usize, StreamId, Term),
        answer: Answer,
    ) -> Result<(), Failed> {
        let from = (LinkKey(worker as u32), term);
        let now = air.now;
        let mut deck = self.own.deck(air, home);
        let answer = match answer {
            Answer::Opened => Ok(()),
            refusal => Err(move |deck: &mut Deck<'_>, place: &Place| deck.refused(place, refusal)),
        };
        let answered = (self.ferry).handle_answer(&mut deck, now, from, answer)?;
        if answered == Answered::CloseAgain {
            home.put(air, stream, self.own.id, Told::Close(term));
        }
        Ok(())
    }

    /// The session has a seat.
    pub(crate) fn open_on(&mut self, air: &mut Air, home: &mut Coordinator, stream: StreamId) {
        let place = Place::new(home, stream);
        (self.ferry).handle_seat(&mut self.own.deck(air, home), place);
    }
}

impl Own {
    fn deck<'a>(&'a mut self, air: &'a mut Air, home: &'a mut Coordinator) -> Deck<'a> {
        Deck {
            own: self,
            air,
            home,
        }
    }

    /// Whether a target has been missing for longer than a session waits for one.
    fn is_overdue(&self, now: Time, patience: Time) -> bool {
        (self.targetless).is_some_and(|since| now >= since + patience)
    }
}

/// A task's shore: its coordinator and the network.
struct Deck<'a> {
    own: &'a mut Own,
    air: &'a mut Air,
    home: &'a mut Coordinator,
}

impl Deck<'_> {
    /// What a refusal lets hope for.
    fn refused(&mut self, place: &Place, refusal: Answer) -> Hope {
        let lost = self.home.link(place.stream).is_lost;
        match refusal {
            Answer::Broken | Answer::NotLinked | Answer::Draining if lost => Hope::Returns,
            Answer::Draining | Answer::Broken => {
                self.home.retire(place.stream);
                Hope::Stops
            }
            Answer::NotLinked => Hope::Stops,
            Answer::Full => Hope::Full,
            Answer::Opened | Answer::Duplicate => {
                panic!("{place:?} says {:?} is a duplicate", self.own.id)
            }
        }
    }

    /// Gives the client what it has not got.
    fn flush(&mut self, prompt: Option<PromptScores>) -> u32 {
        let own = &mut *self.own;
        if own.unsent.is_empty() && prompt.is_none() {
            return 0;
        }
        own.channel += 1;
        let tokens = std::mem::take(&mut own.unsent);
        let taken = tokens.len() as u32;
        let scores = own.unsent_scores.take().map(Box::new);
        let word = Word::Tokens(tokens, scores, prompt.map(Box::new));
        (self.home).say(self.air, own.client, own.attempt, word);
        taken
    }
}

impl Shore for Deck<'_> {
    type Seat = Place;
    type Parting = Hope;
    type Loss = Failed;
    type Failure = Failed;

    fn gone(&self, place: &Place) -> Option<Hope> {
        let is_gone = place.is_behind.get() || self.home.link(place.stream).is_lost;
        is_gone.then_some(Hope::Returns)
    }

    fn broken(&self, error: RelayError) -> Hope {
        panic!("an honest report is taken: {error}")
    }

    fn fault(&self, message: String) -> Hope {
        panic!("an honest worker keeps its sessions: {message}")
    }

    fn is_vacant(&mut self, place: &Place) -> bool {
        let slots = &self.home.link(place.stream).slots;
        let is_vacant = !slots.contains_key(&self.own.id);
        if !is_vacant {
            place.waits.set(true);
        }
        is_vacant
    }

    fn tell(&mut self, place: &Place, term: Term, update: ReplicaUpdate, goes_on: bool) {
        assert_eq!(term, place.term, "a worker is told under its own term");
        if goes_on {
            place.waits.set(true);
        }
        let told = Told::Update(term, update);
        (self.home).put(self.air, place.stream, self.own.id, told);
    }

    fn open(&mut self, place: &mut Place, spec: SessionSpec) {
        note!(
            self.air,
            "{:?} goes to worker {} under {:?}",
            self.own.id,
            place.worker,
            spec.term
        );
        place.term = spec.term;
        self.home.call(self.air, self.own.id, place, spec);
    }

    fn leave(&mut self, place: Place) {
        (self.home).leave(self.air, self.own.id, place.stream, place.term);
    }

    fn serves(&mut self, role: Role) {
        if role == Role::Target {
            self.own.targetless = None;
        }
    }

    fn deliver(&mut self, fresh: Fresh) -> u32 {
        let own = &mut *self.own;
        own.unsent.extend(fresh.tokens);
        match (own.unsent_scores.as_mut(), fresh.scores) {
            (Some(unsent), Some(scores)) => assert!(unsent.append(&scores), "scores of one form"),
            (_, scores) => own.unsent_scores = scores,
        }
        if fresh.prompt.is_some() || (!own.unsent.is_empty() && own.channel < CHANNEL) {
            self.flush(fresh.prompt)
        } else {
            0
        }
    }

    fn is_satisfied(&self) -> bool {
        false
    }

    fn find_target(&mut self, wish: &Wish<'_, Failed>) -> Option<Place> {
        let need = self.own.request.stopping.max_len;
        let found = (self.home).replace_target(self.own.id, (wish.key, wish.hope), need);
        if found.is_none() && wish.hope == Hope::Gone {
            let mut open = self.home.open_links(Role::Target).into_iter();
            assert!(
                !open.any(|stream| self.home.has_room(stream, need)),
                "a target with room is not asked"
            );
        }
        found.map(|stream| Place::new(self.home, stream))
    }

    fn find_contributors(&mut self, wanted: Wanted, present: &[Place]) -> Vec<Place> {
        let need = self.own.request.stopping.max_len;
        let home = &mut *self.home;
        let mut found = Vec::new();
        for (role, most) in [
            (Role::Qualifier, wanted.qualifiers),
            (Role::Draft, wanted.drafts),
        ] {
            let free: Vec<StreamId> = (home.open_links(role).into_iter())
                .filter(|&stream| home.has_room(stream, need))
                .filter(|&stream| {
                    let worker = home.link(stream).worker;
                    present.iter().all(|place| place.worker != worker)
                })
                .take(most)
                .collect();
            for stream in free {
                home.take_seat(self.own.id, stream, need);
                found.push(Place::new(home, stream));
            }
        }
        found
    }

    fn bypassed(&mut self, place: &Place, why: Hope) {
        note!(
            self.air,
            "{:?} parts with worker {}: {why:?}",
            self.own.id,
            place.worker
        );
    }

    fn lost(&mut self, place: &Place, why: Hope, tokens: usize) -> Result<(Hope, Failed), Failed> {
        note!(
            self.air,
            "{:?} parts with target {} after {tokens} tokens: {why:?}",
            self.own.id,
            place.worker
        );
        self.own.targetless.get_or_insert(self.air.now);
        Ok((why, "no target is there again"))
    }

    fn fruitless(&self, lost: u32, _: Failed) -> Failed {
        assert!(lost > 2, "{lost} losses are not many");
        "too many targets were lost without a new token"
    }

    fn abandoned(&self, loss: Failed) -> Failed {
        let (now, patience) = (self.air.now, self.home.replay_wait);
        assert!(
            self.own.is_overdue(now, patience),
            "a search is not given up early"
        );
        loss
    }
}

/// How a task ends when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished(Finish),
    Gone,
}

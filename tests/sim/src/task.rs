//! A coordinator's task of one session: it owns the real relay and ferries, as `coordinator::session` does.

use std::collections::VecDeque;

use speculation::Time;
use speculation::limits::{CLIENT_CREDIT, MAX_COMMIT, MAX_NODES_PER_UPDATE};
use speculation::message::{
    Addressed, Finish, PromptScores, ReplicaUpdate, Scores, SessionId, Term,
};
use speculation::relay::{LinkKey, Relay, RelayConfig, Role};
use speculation::replay::{Hope, Replays};

use crate::air::{Air, Answer, Event, Said, StreamId, note};
use crate::client::{Wish, Word};
use crate::coordinator::{Coordinator, Told};
use crate::hosted::Report;
use crate::reference::VOCAB;
use crate::scenario::Request;

/// Messages handled before the workers are told.
const BATCH: usize = 64;

/// Messages that a client may leave untaken.
const CHANNEL: usize = 4;

/// A session's seat on a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) worker: usize,
    pub(crate) stream: StreamId,
    pub(crate) role: Role,
    pub(crate) term: Term,
    /// The session fell behind its reports.
    is_behind: bool,
    /// It is to be woken when its slot is taken.
    waits: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Task {
    id: SessionId,
    client: usize,
    attempt: u32,
    request: Request,
    relay: Relay,
    /// The target first.
    places: Vec<Place>,
    pub(crate) replays: Replays<&'static str>,
    /// Since when there is no target, kept a second time.
    targetless: Option<Time>,
    inbox: VecDeque<(usize, Said)>,
    pub(crate) answers: VecDeque<(usize, StreamId, Term, Answer)>,
    pub(crate) is_woken: bool,
    pub(crate) arrivals: bool,
    is_gone: bool,
    /// Messages that the client has not taken.
    channel: usize,
    unsent: Vec<u32>,
    unsent_scores: Option<Scores>,
    /// The text as it was checked last.
    checked: usize,
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
        Task {
            id,
            client,
            attempt,
            relay: Relay::new(RelayConfig {
                session: id,
                text,
                stopping: request.stopping.clone(),
                scoring: request.scoring,
                strategy: request.strategy,
                vocab: VOCAB,
            }),
            request: request.clone(),
            places: Vec::new(),
            replays: Replays::default(),
            targetless: None,
            inbox: VecDeque::new(),
            answers: VecDeque::new(),
            is_woken: false,
            arrivals: false,
            is_gone: false,
            channel: 0,
            unsent: Vec::new(),
            unsent_scores: None,
            checked,
        }
    }

    /// A worker has said something. A session that is so far behind that its inbox is full goes on without it.
    pub(crate) fn hear(&mut self, stream: StreamId, said: Said, most: usize) {
        let Some(place) = self.places.iter_mut().find(|place| place.stream == stream) else {
            return;
        };
        if self.inbox.len() >= most {
            place.is_behind = true;
        } else {
            self.inbox.push_back((place.worker, said));
        }
    }

    pub(crate) fn serves(&self, from: (usize, u32)) -> bool {
        (self.client, self.attempt) == from
    }

    pub(crate) fn wish(&mut self, wish: Wish) {
        match wish {
            Wish::Taken => self.channel = self.channel.saturating_sub(1),
            Wish::Gone => self.is_gone = true,
        }
    }

    /// The writer has taken the session's slot; whether the session waits for that.
    pub(crate) fn slot_taken(&mut self, stream: StreamId) -> bool {
        (self.places.iter_mut())
            .find(|place| place.stream == stream)
            .is_some_and(|place| std::mem::take(&mut place.waits))
    }

    /// Ferries until there is nothing to do; whether the session goes on.
    pub(crate) fn drive(&mut self, air: &mut Air, home: &mut Coordinator) -> bool {
        let word = match self.ferry(air, home) {
            Ok(None) => {
                if let Some(at) = self.replays.wake(air.now, home.replay_wait) {
                    air.at(at, Event::Run(home.at, home.life, self.id));
                }
                return true;
            }
            Ok(Some(End::Gone)) => None,
            Ok(Some(End::Finished(finish))) => Some(Word::Finished(finish)),
            Err(failed) => Some(Word::Failed(failed)),
        };
        note!(air, "{:?} ends: {word:?}", self.id);
        for place in std::mem::take(&mut self.places) {
            home.leave(air, self.id, place.stream, place.term);
        }
        if let Some(word) = word {
            self.flush(air, home, None);
            home.say(air, self.client, self.attempt, word);
        }
        false
    }

    fn ferry(&mut self, air: &mut Air, home: &mut Coordinator) -> Result<Option<End>, Failed> {
        loop {
            self.part_with_lost(air, home)?;
            self.seek(air, home)?;
            self.hand_out(air, home);
            if let Some(finish) = self.relay.finish() {
                return Ok(Some(End::Finished(finish)));
            }
            self.tell(air, home);
            if self.is_gone {
                return Ok(Some(End::Gone));
            }
            if let Some((worker, stream, term, answer)) = self.answers.pop_front() {
                self.answered(air, home, (worker, stream, term), answer)?;
            } else if std::mem::take(&mut self.arrivals) {
                self.welcome(air, home);
            } else if !self.inbox.is_empty() {
                for _ in 0..BATCH {
                    let Some((worker, said)) = self.inbox.pop_front() else {
                        break;
                    };
                    self.take(worker, &said);
                }
            } else {
                return Ok(None);
            }
        }
    }

    fn hand_out(&mut self, air: &mut Air, home: &mut Coordinator) {
        let (fresh, scores) = self.relay.poll_text();
        let prompt = self.relay.poll_prompt_scores();
        self.unsent.extend(fresh);
        match (self.unsent_scores.as_mut(), scores) {
            (Some(unsent), Some(scores)) => assert!(unsent.append(&scores), "scores of one form"),
            (_, scores) => self.unsent_scores = scores,
        }
        if prompt.is_some() || (!self.unsent.is_empty() && self.channel < CHANNEL) {
            self.flush(air, home, prompt);
        }
    }

    /// Gives the client what it has not got.
    fn flush(&mut self, air: &mut Air, home: &mut Coordinator, prompt: Option<PromptScores>) {
        if self.unsent.is_empty() && prompt.is_none() {
            return;
        }
        self.channel += 1;
        let tokens = std::mem::take(&mut self.unsent);
        self.relay.handle_consumed(tokens.len() as u32);
        let scores = self.unsent_scores.take().map(Box::new);
        let word = Word::Tokens(tokens, scores, prompt.map(Box::new));
        home.say(air, self.client, self.attempt, word);
    }

    fn tell(&mut self, air: &mut Air, home: &mut Coordinator) {
        for place in &mut self.places {
            if home.link(place.stream).slots.contains_key(&self.id) {
                place.waits = true;
                continue;
            }
            let key = LinkKey(place.worker as u32);
            if let Some(Addressed { term, message, .. }) = self.relay.poll_update(key) {
                assert_eq!(term, place.term, "a worker is told under its own term");
                place.waits |= may_go_on(&message);
                home.put(air, place.stream, self.id, Told::Update(term, message));
            }
        }
    }

    /// Takes what a worker has said. What it says under another term than its own changes nothing.
    fn take(&mut self, worker: usize, said: &Said) {
        let Some(place) = self.places.iter().find(|place| place.worker == worker) else {
            return;
        };
        let key = LinkKey(worker as u32);
        let before = (place.term != said.term).then(|| self.fingerprint());
        let taken = match &said.report {
            Report::Draft(report) => self.relay.handle_draft(key, said.term, report),
            Report::Verify(report) => self.relay.handle_verify(key, said.term, report),
            #[cfg(test)]
            Report::Opened => unreachable!("an open call has an answer"),
        };
        assert_eq!(taken, Ok(()), "an honest report is taken");
        if let Some(before) = before {
            assert_eq!(before, self.fingerprint(), "a stale term changes nothing");
        }
        self.check_text();
    }

    fn fingerprint(&self) -> String {
        let (text, finish) = (self.relay.text().len(), self.relay.finish());
        format!("{text} {finish:?} {:?}", self.relay.stats())
    }

    /// The text has only grown, and is what the target decodes alone.
    fn check_text(&mut self) {
        let text = self.relay.text();
        let plain = &self.request.plain;
        assert!(
            text.len() >= self.checked && text.len() <= plain.len(),
            "{} tokens after {}, of {}",
            text.len(),
            self.checked,
            plain.len()
        );
        assert_eq!(text[self.checked..], plain[self.checked..text.len()]);
        self.checked = text.len();
        let untaken = self.unsent.len() as u32;
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
        let key = LinkKey(worker as u32);
        let place = self.places.iter().find(|place| place.worker == worker);
        if self.relay.term_of(key) != Some(term) {
            if answer == Answer::Opened && place.is_none() {
                home.put(air, stream, self.id, Told::Close(term));
            }
            return Ok(());
        }
        let Some(&place) = place else {
            return Ok(());
        };
        let lost = home.link(place.stream).is_lost;
        let hope = match answer {
            Answer::Opened => {
                if place.role == Role::Target {
                    self.replays.handle_served();
                    self.targetless = None;
                }
                self.relay.handle_opened(key);
                return Ok(());
            }
            Answer::Broken | Answer::NotLinked | Answer::Draining if lost => Hope::Returns,
            Answer::Draining | Answer::Broken => {
                home.retire(place.stream);
                Hope::Stops
            }
            Answer::NotLinked => Hope::Stops,
            Answer::Full => Hope::Full,
            Answer::Duplicate => panic!("worker {worker} says {:?} is a duplicate", self.id),
        };
        self.part(air, home, place, hope)
    }

    fn part_with_lost(&mut self, air: &mut Air, home: &mut Coordinator) -> Result<(), Failed> {
        loop {
            let lost = |place: &&Place| place.is_behind || home.link(place.stream).is_lost;
            let Some(&place) = self.places.iter().find(lost) else {
                return Ok(());
            };
            self.part(air, home, place, Hope::Returns)?;
        }
    }

    /// Goes on without this worker; if it is the target, with another one.
    fn part(
        &mut self,
        air: &mut Air,
        home: &mut Coordinator,
        place: Place,
        hope: Hope,
    ) -> Result<(), Failed> {
        let key = LinkKey(place.worker as u32);
        self.relay.handle_lost(key);
        self.places.retain(|other| other.stream != place.stream);
        home.leave(air, self.id, place.stream, place.term);
        note!(
            air,
            "{:?} parts with worker {}: {hope:?}",
            self.id,
            place.worker
        );
        if place.role == Role::Target {
            let tokens = self.relay.text().len() - self.request.prompt.len();
            if self.replays.handle_lost(tokens, hope).is_err() {
                return Err("too many targets were lost without a new token");
            }
            let reason = "no target is there again";
            self.replays.seek(air.now, key, hope, reason);
            self.targetless.get_or_insert(air.now);
        }
        Ok(())
    }

    fn seek(&mut self, air: &mut Air, home: &mut Coordinator) -> Result<(), Failed> {
        let wait = home.replay_wait;
        let wish = (self.replays.poll_wish(air.now, wait)).map(|wish| (wish.key, wish.hope));
        let need = self.request.stopping.max_len;
        match wish.and_then(|wish| home.replace_target(self.id, wish, need)) {
            Some(stream) => {
                self.replays.handle_seated();
                self.open_on(air, home, stream);
                Ok(())
            }
            None => {
                let overdue = (self.targetless).is_some_and(|since| air.now >= since + wait);
                let seeks = self.replays.is_seeking();
                let failure = self.replays.poll_failure(air.now, wait);
                assert_eq!(
                    failure.is_some(),
                    seeks && overdue,
                    "a search ends in its time"
                );
                if wish.is_some_and(|(_, hope)| hope == Hope::Gone) {
                    let mut open = home.open_links(Role::Target).into_iter();
                    assert!(
                        !open.any(|stream| home.has_room(stream, need)),
                        "a target with room is not asked"
                    );
                }
                failure.map_or(Ok(()), Err)
            }
        }
    }

    /// Takes workers that have become ready and that the session still wants.
    fn welcome(&mut self, air: &mut Air, home: &mut Coordinator) {
        let need = self.request.stopping.max_len;
        let wanted = [
            (Role::Qualifier, self.request.qualifiers),
            (Role::Draft, self.request.drafts),
        ];
        for (role, most) in wanted {
            let have = self
                .places
                .iter()
                .filter(|place| place.role == role)
                .count();
            let free: Vec<StreamId> = (home.open_links(role).into_iter())
                .filter(|&stream| home.has_room(stream, need))
                .filter(|&stream| {
                    let worker = home.link(stream).worker;
                    self.places.iter().all(|place| place.worker != worker)
                })
                .take(most.saturating_sub(have))
                .collect();
            for stream in free {
                home.take_seat(self.id, stream, need);
                self.open_on(air, home, stream);
            }
        }
    }

    /// Opens the session on a worker where it has a seat, if the strategy has a use for it.
    pub(crate) fn open_on(&mut self, air: &mut Air, home: &mut Coordinator, stream: StreamId) {
        let worker = home.link(stream).worker;
        let role = home.role(stream);
        match self.relay.add_link(LinkKey(worker as u32), role) {
            None => home.leave(air, self.id, stream, Term(0)),
            Some(spec) => {
                note!(
                    air,
                    "{:?} goes to worker {worker} under {:?}",
                    self.id,
                    spec.term
                );
                let place = Place {
                    worker,
                    stream,
                    role,
                    term: spec.term,
                    is_behind: false,
                    waits: false,
                };
                home.call(air, self.id, &place, spec);
                match role {
                    Role::Target => self.places.insert(0, place),
                    Role::Draft | Role::Qualifier => self.places.push(place),
                }
            }
        }
    }
}

/// How a task ends when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished(Finish),
    Gone,
}

/// Whether an update may have left something out because it was full.
fn may_go_on(update: &ReplicaUpdate) -> bool {
    update.commit.len() >= MAX_COMMIT || update.nodes.len() >= MAX_NODES_PER_UPDATE / 2
}

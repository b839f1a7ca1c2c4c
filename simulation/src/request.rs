//! A coordinator's task of one request: from its arrival over placement to the real [`SessionMachine`], whose actions it
//! carries out.

use std::collections::{BTreeMap, VecDeque};

use control::failover::{MAX_FRUITLESS, NoTarget};
use control::fleet::{NoPlace, Reservation, Text, Wanted};
use control::session::{
    Action, Ended, Opened, Parting, Patience, Refused, RefusedKind, SessionMachine,
};
use speculation::Time;
use speculation::bypass::Mode;
use speculation::duty::Role;
use speculation::history::HistoryKey;
use speculation::limits::MAX_COMMIT;
use speculation::message::{Addressed, Finish, FromWorker, Outlook, SessionId, Term};
use speculation::relay::{Relay, RelayConfig, WorkerKey};

use crate::client::{ClientEvent, FromClient};
use crate::coordinator::{Coordinator, Slot};
use crate::delivery::Unsent;
use crate::network::{Answer, Event, Message, Network, StreamId, note};
use crate::placement::{Place, Requester};
use crate::reference::VOCAB;
use crate::replayed;
use crate::scenario::{Numerics, Request};

/// Messages handled before the workers are told.
const BATCH: usize = 64;

/// Messages that a client may leave untaken.
const CHANNEL: usize = 4;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Task {
    id: SessionId,
    /// The client and its attempt.
    from: (usize, u32),
    request: Request,
    /// What the client has, prompt included.
    text: Vec<u32>,
    /// The numerics that its text goes on with.
    numerics: Option<Numerics>,
    /// Its place among those that run and wait.
    place: Place,
    stage: Stage,
    began: Time,
    pub(crate) is_woken: bool,
    is_gone: bool,
    has_vacancy: bool,
    has_arrivals: bool,
    inbox: VecDeque<(WorkerKey, Message)>,
    pub(crate) answers: VecDeque<(WorkerKey, StreamId, Term, Answer)>,
    /// Streams whose writers have taken the session's slot.
    pub(crate) taken: VecDeque<StreamId>,
    /// Messages that the client has not taken.
    channel: usize,
}

#[derive(Debug)]
enum Stage {
    /// It looks for a target, or waits for its turn.
    Placing,
    Running(Box<Running>),
}

/// A reservation and the stream it is on.
#[derive(Debug)]
struct Held {
    reservation: Reservation,
    stream: StreamId,
    /// The session fell behind its reports.
    is_behind: bool,
}

/// What a session has besides its machine.
#[derive(Debug)]
struct Running {
    machine: SessionMachine,
    held: BTreeMap<WorkerKey, Held>,
    numerics: Numerics,
    max_len: u32,
    /// Positions that are reserved.
    positions: u32,
    /// When its turn is while it waits for another target.
    place: Option<Place>,
    /// Since when there is no target that would do, kept a second time.
    targetless: Option<Time>,
    /// It does not run, because its client takes nothing.
    is_parked: bool,
    /// Since when its text stands because of that, kept a second time.
    stands: Option<Time>,
    credit: u32,
    /// What the target has said of its next steps.
    outlook: Outlook,
    unsent: Unsent,
    /// Length of the text as it was checked last.
    checked: usize,
    timer: Option<Time>,
}

/// Why a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Finished(Finish),
    Failed(&'static str),
    Gone,
}

impl Task {
    pub(crate) fn new(
        id: SessionId,
        from: (usize, u32),
        request: &Request,
        text: &[u32],
        numerics: Option<Numerics>,
        place: Place,
    ) -> Self {
        Task {
            id,
            from,
            request: request.clone(),
            text: text.to_vec(),
            numerics,
            place,
            stage: Stage::Placing,
            began: Time::ZERO,
            is_woken: false,
            is_gone: false,
            has_vacancy: false,
            has_arrivals: false,
            inbox: VecDeque::new(),
            answers: VecDeque::new(),
            taken: VecDeque::new(),
            channel: 0,
        }
    }

    /// Whether it was placed, and is not parked.
    pub(crate) fn is_running(&self) -> bool {
        match &self.stage {
            Stage::Placing => false,
            Stage::Running(running) => !running.is_parked,
        }
    }

    pub(crate) fn serves(&self, from: (usize, u32)) -> bool {
        self.from == from
    }

    fn held_on(&mut self, stream: StreamId) -> Option<(WorkerKey, &mut Held)> {
        let Stage::Running(running) = &mut self.stage else {
            return None;
        };
        let mut held = running.held.iter_mut();
        let (&key, held) = held.find(|(_, held)| held.stream == stream)?;
        Some((key, held))
    }

    /// Whether it has a reservation on this stream.
    pub(crate) fn is_on(&self, stream: StreamId) -> bool {
        match &self.stage {
            Stage::Running(running) => running.held.values().any(|held| held.stream == stream),
            Stage::Placing => false,
        }
    }

    /// A worker has said something; whether the session listens. One that is so far behind that its inbox is full goes on
    /// without that worker.
    pub(crate) fn receive(&mut self, stream: StreamId, message: Message, most: usize) -> bool {
        let is_full = self.inbox.len() >= most;
        let Some((key, held)) = self.held_on(stream) else {
            return false;
        };
        held.is_behind |= is_full;
        if !is_full {
            self.inbox.push_back((key, message));
        }
        true
    }

    /// A reservation may have become free; whether it wants one.
    pub(crate) fn handle_vacancy(&mut self) -> bool {
        let is_looking = match &self.stage {
            Stage::Placing => true,
            Stage::Running(running) => running.machine.is_seeking(),
        };
        self.has_vacancy |= is_looking;
        is_looking
    }

    /// A worker has become ready; whether it may want it.
    pub(crate) fn handle_arrivals(&mut self) -> bool {
        let is_running = matches!(self.stage, Stage::Running(_));
        self.has_arrivals |= is_running;
        is_running
    }

    pub(crate) fn handle_client(&mut self, what: FromClient) {
        match what {
            FromClient::Taken => self.channel = self.channel.saturating_sub(1),
            FromClient::Gone => self.is_gone = true,
        }
    }

    /// Does everything there is to do; whether it has ended.
    pub(crate) fn drive(&mut self, network: &mut Network, home: &mut Coordinator) -> bool {
        let ending = match self.stage {
            Stage::Placing if self.is_gone => Some(Ending::Gone),
            Stage::Placing => match self.place(network, home) {
                Err(why) => Some(Ending::Failed(why)),
                Ok(None) => return false,
                Ok(Some(running)) => {
                    self.began = network.now;
                    self.stage = Stage::Running(Box::new(running));
                    self.run(network, home)
                }
            },
            _ => self.run(network, home),
        };
        let Some(ending) = ending else {
            return false;
        };
        note!(network, "{:?} ends: {ending:?}", self.id);
        let event = match ending {
            Ending::Finished(finish) => Some(ClientEvent::Finished(finish)),
            Ending::Failed(why) => Some(ClientEvent::Failed(why)),
            Ending::Gone => None,
        };
        if let Some(event) = event {
            self.flush(network, home, usize::MAX);
            home.tell(network, self.from, event);
        }
        match &mut self.stage {
            Stage::Placing => home.placement.handle_left(self.place),
            Stage::Running(running) => {
                assert!(
                    running.held.is_empty(),
                    "{:?} still has reservations",
                    self.id
                );
                let closes = running.machine.closing_term();
                home.forget(self.id, closes);
                // Calls that were answered and not looked at have been carried out behind the close, too.
                for (_, stream, _, answer) in self.answers.drain(..) {
                    if answer == Answer::Opened {
                        home.put(network, stream, self.id, Slot::Close(closes));
                    }
                }
                home.calibration = running.machine.relay().calibration().clone();
                if let Some(place) = running.place.take() {
                    home.placement.stop_waiting(place);
                }
                match running.is_parked {
                    true => home.placement.handle_left(self.place),
                    false => {
                        let ran = network.now - self.began;
                        home.placement.handle_ended(self.place, ran);
                    }
                }
            }
        }
        true
    }

    /// Looks for a target. Nothing while there is none.
    fn place(
        &mut self,
        network: &mut Network,
        home: &mut Coordinator,
    ) -> Result<Option<Running>, &'static str> {
        self.has_vacancy = false;
        let received = self.text.len() - self.request.prompt.len();
        let prompt_len = self.request.prompt.len();
        let requester = Requester {
            session: self.id,
            numerics: self.numerics,
            // Without its last token, which may take the last position, and one more.
            context: (prompt_len + received.saturating_sub(1) + 1) as u32,
            positions: self.request.expected.max(self.text.len() as u32),
            lost: None,
        };
        let wanted = Wanted {
            drafts: self.request.drafts,
            qualifiers: self.request.qualifiers,
        };
        let reservations = match home.placement.place(self.place, requester, wanted) {
            Ok(reservations) => reservations,
            Err(NoPlace::Busy) => {
                home.waits += 1;
                return Ok(None);
            }
            Err(NoPlace::Missing) => return Err("no target is ready"),
            Err(NoPlace::OtherNumerics(_)) => return Err("no target of its numerics is ready"),
            Err(NoPlace::TooLong { .. }) => return Err("no target's context holds it"),
        };
        let target = reservations[0].worker;
        let numerics = home.numerics_of(target);
        note!(network, "{:?} has target {}", self.id, target.0);
        home.placed.push((self.id, self.from.0, numerics));
        let stopping = (self.request)
            .stopping_within(home.plans[home.placement.worker_of(target)].max_context);
        let max_len = stopping.max_len;
        let positions = requester.positions.min(max_len);
        let strategy = home.registry.choose(&self.request.strategy);
        let relay = Relay::new(RelayConfig {
            session: self.id,
            text: self.text.clone(),
            stopping,
            scoring: self.request.scoring,
            strategy: strategy.expect("it is registered"),
            vocab: VOCAB,
        });
        let relay = relay.with_calibration(home.calibration.clone());
        let relay = relay.with_credit(home.credit);
        // Some requests share their texts, some of them with few others.
        let shared = self.id.0 % 5;
        let relay = relay.with_history((shared > 0).then_some(HistoryKey([shared as u8; 32])));
        let relay = relay.with_recording(usize::from(self.id.0.is_multiple_of(3)) << 10);
        let patience = Patience {
            failover: home.failover_wait,
            client: home.park_after,
        };
        let mut running = Running {
            machine: SessionMachine::new(relay, wanted, prompt_len, patience),
            held: BTreeMap::new(),
            numerics,
            max_len,
            positions,
            place: None,
            targetless: None,
            is_parked: false,
            stands: None,
            credit: home.credit,
            outlook: Outlook::default(),
            unsent: Unsent::new(self.text.len(), self.request.satisfied_with),
            checked: self.text.len(),
            timer: None,
        };
        if running.unsent.is_satisfied() {
            running.machine.handle_satisfied();
        }
        for reservation in reservations {
            running.reserve(home, reservation);
        }
        Ok(Some(running))
    }

    /// Carries out what the machine decides until there is nothing to do.
    fn run(&mut self, network: &mut Network, home: &mut Coordinator) -> Option<Ending> {
        loop {
            self.look_at_streams(network.now, home);
            let has_vacancy = std::mem::take(&mut self.has_vacancy);
            if self.is_gone {
                self.running().machine.leave_all();
            } else if has_vacancy {
                self.running().machine.handle_vacancy();
            }
            if self.channel < CHANNEL {
                let consumed = self.flush(network, home, CHANNEL);
                self.running().handle_consumed(consumed);
            }
            let (ending, has_looked) = self.act(network, home);
            if ending.is_some() {
                return ending;
            }
            if self.is_gone {
                return Some(Ending::Gone);
            }
            let park_after = home.park_after;
            let running = self.running();
            running.check_standing(network.now, park_after);
            let is_seeking = running.machine.is_seeking();
            assert!(
                has_looked || !has_vacancy || !is_seeking,
                "a vacancy is a reason to look"
            );
            assert!(
                !(is_seeking && running.is_overdue(network.now, home.failover_wait)),
                "a search ends in its time"
            );
            if !self.take_one(network, home) {
                self.set_timer(network, home);
                return None;
            }
        }
    }

    fn running(&mut self) -> &mut Running {
        match &mut self.stage {
            Stage::Running(running) => running,
            stage => panic!("{stage:?} does not run"),
        }
    }

    /// Hands one thing that has happened to the machine, or a batch of messages; whether there was any.
    fn take_one(&mut self, network: &mut Network, home: &mut Coordinator) -> bool {
        if let Some((key, stream, term, answer)) = self.answers.pop_front() {
            self.handle_answer(network, home, (key, stream, term), answer);
        } else if let Some(stream) = self.taken.pop_front() {
            if let Some((key, _)) = self.held_on(stream) {
                self.running().machine.handle_taken(key);
            }
        } else if std::mem::take(&mut self.has_arrivals) {
            self.running().machine.handle_arrivals();
        } else if !self.inbox.is_empty() {
            for _ in 0..BATCH {
                let Some((key, message)) = self.inbox.pop_front() else {
                    break;
                };
                self.handle_message(network.now, key, message);
            }
        } else {
            return false;
        }
        true
    }

    fn set_timer(&mut self, network: &mut Network, home: &Coordinator) {
        let (id, now) = (self.id, network.now);
        let running = self.running();
        let at = running.machine.wake(now);
        if let Some(at) = at
            && running.timer.is_none_or(|timer| timer <= now || timer > at)
        {
            running.timer = Some(at);
            network.at(at, Event::Run(home.at, home.life, id));
        }
    }

    /// Tells the machine which streams are lost, or lost for this session.
    fn look_at_streams(&mut self, now: Time, home: &Coordinator) {
        let running = self.running();
        for (&key, held) in &running.held {
            if home.connections[&held.stream].is_lost {
                running
                    .machine
                    .handle_lost(now, key, "its stream broke".to_owned());
            } else if held.is_behind {
                running.machine.handle_behind(now, key);
            }
        }
    }

    /// Carries out actions; how the session has ended, if it has, and whether a target was looked for.
    fn act(&mut self, network: &mut Network, home: &mut Coordinator) -> (Option<Ending>, bool) {
        let (id, own, mut has_looked) = (self.id, self.place, false);
        while let Some(action) = self.running().machine.poll(network.now) {
            let running = self.running();
            match action {
                Action::Open(key, spec) => {
                    assert!(
                        running.machine.target() == Some(key) || running.outlook.mode != Mode::Rest,
                        "nobody wants what it would make"
                    );
                    note!(
                        network,
                        "{id:?} goes to worker {} under {:?}",
                        key.0,
                        spec.term
                    );
                    let stream = running.held[&key].stream;
                    home.call(network, key, stream, spec);
                }
                Action::Tell(key, term, update) => {
                    let stream = running.held[&key].stream;
                    let own = running.machine.relay().term_of(key);
                    assert_eq!(own, Some(term), "a worker is told under its own term");
                    if running.machine.target() != Some(key) && !update.commit.is_empty() {
                        assert_eq!(
                            update.outlook, running.outlook,
                            "what the target makes of it"
                        );
                    }
                    let slot = home.connections[&stream].slots.get(&id);
                    assert!(
                        !matches!(slot, Some(Slot::Update(..))),
                        "a slot is filled when it is vacant"
                    );
                    home.put(network, stream, id, Slot::Update(term, update));
                }
                Action::AwaitTaken(key) => {
                    let stream = running.held[&key].stream;
                    let connection = home.connections.get_mut(&stream).expect("it is held");
                    if connection.slots.contains_key(&id) {
                        connection.awaited.insert(id);
                    } else {
                        running.machine.handle_taken(key);
                    }
                }
                Action::Leave(key, term) => running.leave(network, home, id, key, term),
                Action::Served(_, Role::Target) => running.targetless = None,
                Action::Served(_, Role::Draft | Role::Qualifier) => {}
                Action::SetMode(key, mode) => {
                    home.placement
                        .set_mode(running.held[&key].reservation, mode);
                }
                Action::Deliver(fresh) => {
                    running.unsent.push(*fresh);
                    if running.unsent.is_satisfied() {
                        running.machine.handle_satisfied();
                    }
                    let most = match running.unsent.has_prompt_scores() {
                        true => usize::MAX,
                        false => CHANNEL,
                    };
                    let consumed = self.flush(network, home, most);
                    let running = self.running();
                    running.handle_consumed(consumed);
                    running.grow(home);
                }
                Action::FindTarget(lost) => {
                    has_looked = true;
                    let requester = Requester {
                        session: id,
                        numerics: Some(running.numerics),
                        context: running.max_len,
                        positions: running.positions,
                        lost: Some(lost),
                    };
                    let place = &mut running.place;
                    match (home.placement).replace_target(requester, own, place) {
                        Ok(reservation) => {
                            running.targetless = None;
                            match std::mem::take(&mut running.is_parked) {
                                true => home.resumes += 1,
                                false => home.failovers += 1,
                            }
                            running.reserve(home, reservation);
                        }
                        Err(why) => {
                            home.waits += 1;
                            running.targetless = match why {
                                NoTarget::Busy => None,
                                NoTarget::Missing => running.targetless.or(Some(network.now)),
                            };
                            running.machine.handle_none(network.now, why);
                        }
                    }
                }
                Action::Park => {
                    note!(network, "{id:?} is parked");
                    assert!(running.held.is_empty(), "{id:?} keeps workers");
                    assert!(!running.is_parked, "{id:?} is parked twice");
                    if let Some(place) = running.place.take() {
                        home.placement.stop_waiting(place);
                    }
                    running.targetless = None;
                    running.is_parked = true;
                    home.placement.handle_parked();
                }
                Action::FindContributors(wanted) => {
                    let present: Vec<WorkerKey> = running.held.keys().copied().collect();
                    let text = Text {
                        tokens: running.machine.relay().text().len() as u32,
                        positions: running.positions,
                    };
                    let found = (home.placement).place_contributors(id, wanted, text, &present);
                    for reservation in found {
                        running.reserve(home, reservation);
                    }
                }
                Action::Bypassed(key, role, why) => {
                    note!(network, "{id:?} leaves {role} {}: {why:?}", key.0);
                    assert!(
                        !matches!(why, Parting::Broken(_)),
                        "an honest report is taken: {why:?}"
                    );
                }
                Action::TargetLost(loss) => {
                    note!(network, "{id:?} has lost its target: {loss:?}");
                    let is_broken = loss.reason.starts_with("it broke the protocol");
                    assert!(!is_broken, "an honest report is taken: {loss:?}");
                }
                Action::End(ended) => {
                    if let Some(recording) = running.machine.take_recording() {
                        replayed::check(&recording, &home.registry);
                    }
                    let ending = running.judge(network.now, home.failover_wait, ended);
                    return (Some(ending), has_looked);
                }
            }
        }
        (None, has_looked)
    }

    /// Gives the client what it has not got, unless `most` messages are untaken. Gives how many tokens that were.
    fn flush(&mut self, network: &mut Network, home: &Coordinator, most: usize) -> u32 {
        let (from, channel) = (self.from, self.channel);
        let Stage::Running(running) = &mut self.stage else {
            return 0;
        };
        if running.unsent.is_empty() || channel >= most {
            return 0;
        }
        let tokens = running.unsent.take(running.numerics);
        let taken = tokens.tokens.len() as u32;
        self.channel += 1;
        home.tell(network, from, ClientEvent::Tokens(Box::new(tokens)));
        taken
    }

    /// Takes what a worker has said. What it says under another term than its own changes nothing.
    fn handle_message(&mut self, now: Time, key: WorkerKey, message: Message) {
        let running = self.running();
        let Addressed { term, message, .. } = message;
        let is_stale = running.machine.relay().term_of(key) != Some(term);
        let before = is_stale.then(|| running.fingerprint());
        if let FromWorker::Report(report) = &message
            && !is_stale
            && running.machine.target() == Some(key)
        {
            running.outlook = report.outlook;
        }
        running.machine.handle_message(now, key, term, message);
        if let Some(before) = before {
            assert_eq!(
                before,
                running.fingerprint(),
                "a stale term changes nothing"
            );
        }
        self.check_text();
    }

    /// The text has only grown, and is what the target decodes alone.
    fn check_text(&mut self) {
        let numerics = self.running().numerics;
        let plain = std::mem::take(&mut self.request.plain[numerics].text);
        let running = self.running();
        let text = running.machine.relay().text();
        assert!(
            text.len() >= running.checked && text.len() <= plain.len(),
            "{} tokens after {}, of {}",
            text.len(),
            running.checked,
            plain.len()
        );
        assert_eq!(text[running.checked..], plain[running.checked..text.len()]);
        running.checked = text.len();
        assert!(
            running.unsent.len() <= running.credit as usize + MAX_COMMIT,
            "a slow client holds the session up"
        );
        self.request.plain[numerics].text = plain;
    }

    fn handle_answer(
        &mut self,
        network: &mut Network,
        home: &mut Coordinator,
        (key, stream, term): (WorkerKey, StreamId, Term),
        answer: Answer,
    ) {
        let id = self.id;
        let machine = &mut self.running().machine;
        let connection = &home.connections[&stream];
        let (worker, incarnation) = (connection.worker, connection.incarnation);
        let refused = |kind, message: &str| {
            Parting::Refused(Refused {
                kind,
                message: message.to_owned(),
            })
        };
        let why = match answer {
            Answer::Opened => {
                if machine.handle_opened(key, term) == Opened::CloseAgain {
                    let term = machine.closing_term();
                    home.put(network, stream, id, Slot::Close(term));
                }
                return;
            }
            _ if connection.is_lost => Parting::Lost("its stream broke".to_owned()),
            Answer::Draining => {
                home.placement.handle_draining(worker, incarnation);
                refused(RefusedKind::Stopping, "it is shutting down")
            }
            Answer::Full => refused(RefusedKind::Full, "it has no room"),
            Answer::Duplicate => {
                let counts = machine.relay().term_of(key) == Some(term);
                assert!(!counts, "worker {worker} says that {id:?} is a duplicate");
                refused(RefusedKind::Other, "it has the session")
            }
            Answer::Broken | Answer::NoStream => {
                panic!("{answer:?} although {stream:?} is not lost")
            }
        };
        machine.handle_refused(network.now, key, term, why);
    }
}

impl Running {
    /// The session has a reservation.
    fn reserve(&mut self, home: &Coordinator, reservation: Reservation) {
        let held = Held {
            stream: home.stream_of(reservation.worker, reservation.incarnation),
            reservation,
            is_behind: false,
        };
        let before = self.held.insert(reservation.worker, held);
        assert!(before.is_none(), "one reservation on a worker");
        if reservation.role == Role::Target {
            self.outlook.mode = reservation.mode;
        }
        self.machine.handle_reserved(&reservation);
    }

    /// Leaves a worker, and tells it to free everything.
    fn leave(
        &mut self,
        network: &mut Network,
        home: &mut Coordinator,
        id: SessionId,
        key: WorkerKey,
        term: Term,
    ) {
        let held = self.held.remove(&key).expect("it has a reservation there");
        let connection = home.connections.get_mut(&held.stream).expect("it is held");
        connection.awaited.remove(&id);
        home.put(network, held.stream, id, Slot::Close(term));
        home.placement.release(held.reservation);
    }

    /// Reserves more when the text is longer than was expected.
    fn grow(&mut self, home: &mut Coordinator) {
        let len = self.machine.relay().text().len() as u32;
        if len > self.positions {
            self.positions = (len + 8).min(self.max_len);
            for held in self.held.values() {
                home.placement.grow(held.reservation, self.positions);
            }
        }
    }

    /// Whether a target has been missing for longer than a session waits for one.
    fn is_overdue(&self, now: Time, patience: Time) -> bool {
        (self.targetless).is_some_and(|since| now >= since + patience)
    }

    /// The client has taken so many tokens.
    fn handle_consumed(&mut self, tokens: u32) {
        self.machine.handle_consumed(tokens);
        if tokens > 0 {
            self.stands = None;
        }
    }

    /// A session whose client takes nothing has no workers after a while, and has some again when it does.
    fn check_standing(&mut self, now: Time, park_after: Time) {
        let relay = self.machine.relay();
        let is_standing =
            relay.is_left_standing() && relay.finish().is_none() && !self.unsent.is_satisfied();
        if !is_standing {
            self.stands = None;
            assert!(!self.machine.is_parked(), "it is parked for nothing");
            return;
        }
        let since = *self.stands.get_or_insert(now);
        assert!(
            self.machine.is_parked() || now < since + park_after,
            "a client that takes nothing holds workers"
        );
        assert!(!self.machine.is_parked() || (self.held.is_empty() && self.is_parked));
    }

    fn fingerprint(&self) -> String {
        let relay = self.machine.relay();
        let (text, finish) = (relay.text().len(), relay.finish());
        format!("{text} {finish:?} {:?}", relay.stats())
    }

    /// How the session has ended, after a look at whether it had to.
    fn judge(&self, now: Time, patience: Time, ended: Ended) -> Ending {
        match ended {
            Ended::Finished(finish) => Ending::Finished(finish),
            Ended::Fruitless(lost, _) => {
                assert!(lost > MAX_FRUITLESS, "{lost} losses are not many");
                Ending::Failed("too many targets were lost without a new token")
            }
            Ended::Abandoned(_) => {
                assert!(
                    self.is_overdue(now, patience),
                    "a search is not given up early"
                );
                Ending::Failed("no target is there again")
            }
            Ended::Invalid(worker, why) => panic!("{worker:?} refuses an honest request: {why}"),
        }
    }
}

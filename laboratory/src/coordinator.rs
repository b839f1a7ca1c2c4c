//! The coordinator: the real [`Fleet`] and one real [`SessionMachine`] per request, whose actions it carries out; and the
//! clients, which read at once.

use std::collections::BTreeMap;

use control::admission::Admission;
use control::fleet::{Fleet, Need, NoPlace, Profile, Reservation, Text, Wanted};
use control::placement::{ClientKey, TargetNeed, Turn};
use control::session::{Action, Ended, Fresh, Opened, Patience, SessionMachine};
use decode::sampling::{NoiseKey, SamplingParams};
use decode::scores::Scoring;
use engine::PAGE;
use speculation::Time;
use speculation::learned::Calibrations;
use speculation::message::{Addressed, CoordinatorFrame, FromWorker, SessionId, Stopping};
use speculation::relay::{Relay, RelayConfig, WorkerKey};
use speculation::strategy::Chosen;

use crate::clock::{Clock, Event, ToCoordinator, ToWorker};
use crate::experiment::{Arrivals, Contender, LabError, Load, Prompts};
use crate::outcome::Request;
use crate::worker::{Sizes, Worker};

/// How long a session waits for another target or its client. No target is ever lost, and clients take all they get.
const PATIENCE: Time = Time::from_secs(10);
/// Name of what the text depends on; one profile serves all.
const NUMERICS: &str = "laboratory";

/// A request that waits for its turn.
#[derive(Debug)]
struct Waiting {
    number: usize,
    asked: Time,
    turn: Turn,
}

/// A request that runs.
#[derive(Debug)]
struct Session {
    turn: Turn,
    machine: SessionMachine,
    held: BTreeMap<WorkerKey, Reservation>,
    params: SamplingParams,
    /// Tokens of the prompt.
    prompt: u32,
    began: Time,
    request: Request,
}

/// See the module documentation.
pub(crate) struct Coordinator {
    fleet: Fleet,
    strategy: Chosen,
    wanted: Wanted,
    load: Load,
    vocab: u32,
    asked: usize,
    waiting: Vec<Waiting>,
    sessions: BTreeMap<SessionId, Session>,
    /// What sessions have learned, for those to come.
    calibration: Calibrations,
    pub(crate) done: Vec<Request>,
}

impl Coordinator {
    pub(crate) fn new(
        (load, vocab): (&Load, u32),
        contender: &Contender,
        strategy: Chosen,
        workers: &[Worker],
        sizes: Sizes,
    ) -> Self {
        let queued = match load.arrivals {
            Arrivals::Closed => 0,
            Arrivals::At(_) => load.requests,
        };
        let mut fleet = Fleet::new(Admission::new(load.concurrency, queued));
        for worker in workers {
            let key = key(worker.at);
            fleet.add_worker(key, Some(worker.role));
            let profile = Profile {
                numerics_id: NUMERICS.to_owned(),
                max_context: sizes.positions as u32,
                max_sessions: sizes.sessions,
                pages: sizes.pages() as u32,
                page: PAGE as u32,
                device: String::new(),
            };
            fleet.handle_ready(key, worker.role, profile);
        }
        fleet.poll_changes();
        Coordinator {
            fleet,
            strategy,
            wanted: Wanted {
                drafts: contender.drafts,
                qualifiers: contender.qualifiers,
            },
            load: load.clone(),
            vocab,
            asked: 0,
            waiting: Vec::new(),
            sessions: BTreeMap::new(),
            calibration: Calibrations::default(),
            done: Vec::new(),
        }
    }

    /// Whether every request was answered.
    pub(crate) fn is_done(&self) -> bool {
        self.done.len() == self.load.requests
    }

    /// A client sends its next request, if there is one left.
    pub(crate) fn ask(&mut self, clock: &mut Clock) -> Result<(), LabError> {
        if self.asked == self.load.requests {
            return Ok(());
        }
        // Each request is a client's of its own.
        let client = ClientKey(self.asked as u64);
        let turn = (self.fleet.enter(1, 0, client)).map_err(|full| broken(format!("{full:?}")))?;
        let turn = (turn.first().copied()).ok_or_else(|| broken("a turn is missing".to_owned()))?;
        self.waiting.push(Waiting {
            number: self.asked,
            asked: clock.now,
            turn,
        });
        self.asked += 1;
        self.place(clock)
    }

    /// Gives those who wait their reservations, as far as there are some.
    fn place(&mut self, clock: &mut Clock) -> Result<(), LabError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut result = Ok(());
        waiting.retain(|one| match self.try_place(clock, one) {
            Ok(is_placed) => !is_placed,
            Err(error) => {
                result = Err(error);
                true
            }
        });
        self.waiting = waiting;
        result
    }

    fn try_place(&mut self, clock: &mut Clock, waiting: &Waiting) -> Result<bool, LabError> {
        let prompt = self.prompt_len(waiting.number);
        // Sessions are counted from 1.
        let id = SessionId(waiting.number as u64 + 1);
        let positions = prompt + self.load.tokens;
        let need = Need {
            wanted: self.wanted,
            numerics: None,
            turn: waiting.turn,
            tokens: prompt,
            positions,
        };
        let reservations = match self.fleet.place(id, &need) {
            Ok(reservations) => reservations,
            Err(NoPlace::Busy) => {
                let need = TargetNeed {
                    numerics: None,
                    not: None,
                    context: prompt + 1,
                    positions,
                };
                self.fleet.wait(waiting.turn, need);
                return Ok(false);
            }
            Err(why) => return Err(broken(format!("no place: {why:?}"))),
        };
        let (text, seed) = self.prompt(waiting.number);
        let relay = Relay::new(RelayConfig {
            session: id,
            text,
            stopping: Stopping {
                prompt_len: prompt,
                max_len: positions,
                max_len_is_context: false,
                stop_ids: Vec::new(),
            },
            scoring: Scoring::default(),
            strategy: self.strategy.clone(),
            vocab: self.vocab,
        });
        let relay =
            (relay.with_calibration(self.calibration.clone())).with_recording(self.load.record);
        let patience = Patience {
            failover: PATIENCE,
            client: PATIENCE,
        };
        let mut session = Session {
            turn: waiting.turn,
            machine: SessionMachine::new(relay, self.wanted, prompt as usize, patience),
            held: BTreeMap::new(),
            params: SamplingParams {
                temperature: self.load.temperature,
                seed,
                ..SamplingParams::default()
            },
            prompt,
            began: clock.now,
            request: Request::new(waiting.number, waiting.asked, clock.now),
        };
        for reservation in reservations {
            session.reserve(reservation);
        }
        self.sessions.insert(id, session);
        self.drive(clock, id)?;
        Ok(true)
    }

    /// 64 bits that belong to a request.
    fn draw(&self, number: usize, place: u32) -> u64 {
        NoiseKey::new(self.load.seed, 2, place).hash(number as u32)
    }

    /// Tokens that a request begins with.
    fn prompt_len(&self, number: usize) -> u32 {
        match &self.load.prompts {
            Prompts::Drawn(tokens) => *tokens,
            Prompts::Given(prompts) => prompts[number % prompts.len()].0.len() as u32,
        }
    }

    /// What a request begins with, and its seed.
    fn prompt(&self, number: usize) -> (Vec<u32>, u64) {
        match &self.load.prompts {
            Prompts::Drawn(tokens) => {
                let token = |at| (self.draw(number, at) % u64::from(self.vocab)) as u32;
                let tokens = (0..*tokens).map(token).collect();
                (tokens, self.draw(number, u32::MAX))
            }
            Prompts::Given(prompts) => prompts[number % prompts.len()].clone(),
        }
    }

    /// Something arrives from a worker.
    pub(crate) fn receive(
        &mut self,
        clock: &mut Clock,
        worker: usize,
        what: ToCoordinator,
    ) -> Result<(), LabError> {
        match what {
            ToCoordinator::Answered(id, term, why) => {
                let Some(session) = self.sessions.get_mut(&id) else {
                    return Ok(());
                };
                match why {
                    Some(why) => {
                        (session.machine).handle_refused(clock.now, key(worker), term, why);
                    }
                    None => {
                        if session.machine.handle_opened(key(worker), term) == Opened::CloseAgain {
                            let term = session.machine.closing_term();
                            close(clock, worker, id, term);
                        }
                    }
                }
                self.drive(clock, id)
            }
            ToCoordinator::Reports(reports) => {
                for report in reports {
                    let Addressed {
                        session,
                        term,
                        message,
                    } = report;
                    self.handle_message(clock, worker, session, term, message)?;
                }
                Ok(())
            }
        }
    }

    fn handle_message(
        &mut self,
        clock: &mut Clock,
        worker: usize,
        id: SessionId,
        term: speculation::message::Term,
        message: FromWorker,
    ) -> Result<(), LabError> {
        let Some(session) = self.sessions.get_mut(&id) else {
            // It has ended meanwhile.
            return Ok(());
        };
        (session.machine).handle_message(clock.now, key(worker), term, message);
        self.drive(clock, id)
    }

    /// A session looks again.
    pub(crate) fn wake(&mut self, clock: &mut Clock, id: SessionId) -> Result<(), LabError> {
        if self.sessions.contains_key(&id) {
            return self.drive(clock, id);
        }
        Ok(())
    }

    /// Carries out what a session decides, until it has nothing to do.
    fn drive(&mut self, clock: &mut Clock, id: SessionId) -> Result<(), LabError> {
        let (fleet, now) = (&mut self.fleet, clock.now);
        let Some(session) = self.sessions.get_mut(&id) else {
            return Ok(());
        };
        while let Some(action) = session.machine.poll(now) {
            match action {
                Action::Open(key, spec) => {
                    clock.send_down(at(key), ToWorker::Open(spec, session.params));
                }
                Action::Tell(key, term, update) => {
                    let frame = CoordinatorFrame {
                        updates: vec![Addressed {
                            session: id,
                            term,
                            message: *update,
                        }],
                        closed: Vec::new(),
                    };
                    clock.send_down(at(key), ToWorker::Frame(frame));
                }
                // The writer of a stream has taken it already.
                Action::AwaitTaken(key) => session.machine.handle_taken(key),
                Action::Leave(key, term) => {
                    if let Some(reservation) = session.held.remove(&key) {
                        fleet.release(reservation);
                    }
                    close(clock, at(key), id, term);
                }
                Action::Served(..) => {}
                Action::SetMode(key, mode) => {
                    if let Some(&reservation) = session.held.get(&key) {
                        fleet.handle_mode(reservation, mode);
                    }
                }
                Action::Deliver(fresh) => {
                    let Fresh { tokens, .. } = *fresh;
                    let taken = tokens.len() as u32;
                    session.request.arrive(now, tokens);
                    session.machine.handle_consumed(taken);
                }
                Action::FindContributors(wanted) => {
                    let text = Text {
                        tokens: session.machine.relay().text().len() as u32,
                        positions: session.prompt + self.load.tokens,
                    };
                    let present: Vec<_> = session.held.keys().copied().collect();
                    for one in fleet.place_contributors(id, wanted, text, &present) {
                        session.reserve(one);
                    }
                }
                Action::Bypassed(_, role, why) => {
                    return Err(broken(format!("a {role} was left: {why:?}")));
                }
                Action::TargetLost(loss) => return Err(broken(format!("{loss:?}"))),
                Action::Park => return Err(broken("a client takes nothing".to_owned())),
                Action::FindTarget(lost) => return Err(broken(format!("{lost:?}"))),
                Action::End(Ended::Finished(_)) => return self.end(clock, id),
                Action::End(ended) => return Err(broken(format!("{ended:?}"))),
            }
        }
        if let Some(wake) = session.machine.wake(now).filter(|&wake| wake > now) {
            clock.at(wake, Event::Wake(id));
        }
        Ok(())
    }

    fn end(&mut self, clock: &mut Clock, id: SessionId) -> Result<(), LabError> {
        let Some(mut session) = self.sessions.remove(&id) else {
            return Ok(());
        };
        let recording = session.machine.take_recording();
        let relay = session.machine.relay();
        self.calibration = relay.calibration().clone();
        self.done.push(Request {
            stats: relay.stats(),
            recording,
            ..session.request
        });
        (self.fleet).handle_ended(session.turn, clock.now - session.began);
        if self.load.arrivals == Arrivals::Closed {
            clock.at(clock.now, Event::Ask);
        }
        if self.fleet.poll_changes().vacancy {
            self.place(clock)?;
        }
        Ok(())
    }
}

impl Session {
    fn reserve(&mut self, reservation: Reservation) {
        self.held.insert(reservation.worker, reservation);
        self.machine.handle_reserved(&reservation);
    }
}

fn close(clock: &mut Clock, worker: usize, id: SessionId, term: speculation::message::Term) {
    let frame = CoordinatorFrame {
        updates: Vec::new(),
        closed: vec![(id, term)],
    };
    clock.send_down(worker, ToWorker::Frame(frame));
}

fn key(worker: usize) -> WorkerKey {
    WorkerKey(worker as u32)
}

fn at(key: WorkerKey) -> usize {
    key.0 as usize
}

fn broken(why: String) -> LabError {
    LabError::Broken(why)
}

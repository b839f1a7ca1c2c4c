//! The simulated cluster: real state machines, a relay between them, and dice that say who acts next.

use decode::Scoring;
use simulation::reference::{Dice, Language, Model, VOCAB};
use simulation::served::Guessed;
use speculation::Time;
use speculation::duty::{Duty, Role};
use speculation::limits::CLIENT_CREDIT;
use speculation::message::{Finish, SessionId, Stopping, Term};
use speculation::relay::{Candidate, Relay, RelayConfig, WorkerKey};
use speculation::replica::Poll;
use speculation::stats::SessionStats;
use speculation::strategy::{Chosen, Registry, Settings};

use crate::session::worker::{Pace, Said, Worker};

/// Everything that defines one run.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) strategy: Settings,
    pub(crate) drafts: usize,
    pub(crate) qualifiers: usize,
    /// Percent of texts at which a draft (a qualifier) agrees with the target.
    pub(crate) agreement: (u32, u32),
    pub(crate) prompt_len: usize,
    pub(crate) new_tokens: u32,
    pub(crate) ends: Ends,
    /// Rows a worker's step has room for.
    pub(crate) room: usize,
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) faults: Faults,
}

/// What else but the length ends the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    Length,
    Context,
    StopToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Prompt,
    Slow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Time passes only when nobody can act: messages take no time, workers are as fast as their pace.
    Paced,
    /// Time passes at every action and workers are let to act at random.
    Random,
}

/// Chances per thousand actions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) lost: u32,
    pub(crate) lost_target: u32,
    pub(crate) duplicated: u32,
    pub(crate) stale: u32,
    pub(crate) garbage: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Deliver(usize),
    Start(usize),
    Finish(usize),
    Report(usize),
    Relay(usize),
    Update(usize),
    Client,
}

/// How a run went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stats: SessionStats,
    /// Steps that computed rows of the target, tokens it decided.
    pub(crate) targets: usize,
    /// Virtual time from the open to the end of the text.
    pub(crate) elapsed: Time,
    pub(crate) parked_for_credit: usize,
}

pub(crate) struct World {
    pub(crate) case: Case,
    pub(crate) dice: Dice,
    pub(crate) now: Time,
    pub(crate) relay: Relay,
    pub(crate) workers: Vec<Worker>,
    pub(crate) plain: Vec<u32>,
    pub(crate) finish: Finish,
    pub(crate) refusals: usize,
    strategy: Chosen,
    language: Language,
    next_key: u32,
    targets: usize,
    guessed: Guessed,
    client: Vec<u32>,
    unread: u32,
    read: u32,
    parked_for_credit: usize,
    /// Tokens that the client may leave unread.
    credit: u32,
}

/// No fault comes later than this: a run has to end.
const FAULTY_ACTIONS: usize = 3000;

/// Messages under way in one direction of a stream, at most.
const IN_FLIGHT: usize = 3;

impl World {
    pub(crate) fn new(case: &Case) -> Self {
        let mut dice = Dice::new(case.seed);
        let language = Language::new(dice.roll());
        let prompt: Vec<u32> = (0..case.prompt_len)
            .map(|_| dice.roll() as u32 % VOCAB)
            .collect();
        let stopping = Stopping {
            prompt_len: case.prompt_len as u32,
            max_len: case.prompt_len as u32 + case.new_tokens,
            max_len_is_context: case.ends == Ends::Context,
            stop_ids: if case.ends == Ends::StopToken {
                vec![2]
            } else {
                Vec::new()
            },
        };
        let (plain, finish) = language.plain(&prompt, &stopping);
        let strategy = (Registry::default().choose(&case.strategy)).expect("knobs in their ranges");
        let relay = Relay::new(RelayConfig {
            session: SessionId(case.seed),
            text: prompt,
            stopping,
            scoring: Scoring::default(),
            strategy: strategy.clone(),
            vocab: VOCAB,
        });
        let credit = [4, CLIENT_CREDIT][(case.seed % 2) as usize];
        let relay = relay.with_credit(credit);
        let mut world = World {
            client: plain[..case.prompt_len].to_vec(),
            case: case.clone(),
            dice,
            now: Time::from_millis(5),
            relay,
            workers: Vec::new(),
            plain,
            finish,
            refusals: 0,
            strategy,
            language,
            next_key: 0,
            targets: 0,
            guessed: Guessed::new(),
            unread: 0,
            read: 0,
            parked_for_credit: 0,
            credit,
        };
        world.add(Role::Target);
        for _ in 0..case.drafts {
            world.add(Role::Draft);
        }
        for _ in 0..case.qualifiers {
            world.add(Role::Qualifier);
        }
        world
    }

    /// Opens the session on one more worker, if the strategy has a use for it.
    pub(crate) fn add(&mut self, role: Role) {
        let key = WorkerKey(self.next_key);
        let useful = !self.strategy.duties(role).is_empty();
        let spec = self.relay.add_worker(key, Candidate::new(role));
        assert_eq!(spec.is_some(), useful);
        let Some(spec) = spec else { return };
        assert_eq!(spec.text, self.relay.text());
        self.next_key += 1;
        let model = match role {
            Role::Target => Model::target(self.language),
            Role::Draft => self.model(self.case.agreement.0),
            Role::Qualifier => self.model(self.case.agreement.1),
        };
        let pace = self.pace(role);
        let mut worker = Worker::open(key, role, &spec, self.now, model, pace);
        if self.case.clock == Clock::Random {
            worker.eager = 1 + self.dice.below(8);
        }
        self.targets += usize::from(role == Role::Target);
        self.workers.push(worker);
        self.stir();
    }

    fn model(&mut self, agreement: u32) -> Model {
        Model {
            language: self.language,
            salt: self.dice.roll(),
            agreement,
            is_target: false,
        }
    }

    fn pace(&mut self, role: Role) -> Pace {
        let paced = match role {
            Role::Target => 20_000,
            Role::Qualifier => 7_000,
            Role::Draft => 2_000,
        };
        match self.case.clock {
            Clock::Paced => Pace {
                base_us: paced,
                per_row_us: 0,
            },
            Clock::Random => Pace {
                base_us: paced / 8 + self.dice.roll() % paced,
                per_row_us: [0, 0, 100, 1000][self.dice.below(4)],
            },
        }
    }

    /// Any worker may have something to be told now.
    pub(crate) fn stir(&mut self) {
        for worker in &mut self.workers {
            worker.may_update = true;
        }
    }

    /// The worker's stream breaks: what was under way is gone, and the relay is told.
    pub(crate) fn lose(&mut self, at: usize) -> Role {
        let worker = self.workers.remove(at);
        assert_eq!(self.relay.handle_lost(worker.key), Some(worker.role));
        assert_eq!(self.relay.handle_lost(worker.key), None);
        self.stir();
        worker.role
    }

    /// Runs to the end and checks the text.
    pub(crate) fn run(mut self) -> Outcome {
        let limit = 20_000 + 600 * self.plain.len() * self.workers.len();
        let mut actions = 0;
        while self.relay.finish().is_none() {
            self.act(actions < FAULTY_ACTIONS);
            actions += 1;
            assert!(actions < limit, "no end after {actions} actions");
        }
        self.check_end();
        let elapsed = self.now;
        // Late messages change nothing.
        for _ in 0..30 {
            if self.enabled().is_empty() {
                break;
            }
            self.act(true);
        }
        self.read_all();
        self.check_end();
        assert_eq!(
            self.client, self.plain,
            "the client has read the whole text"
        );
        Outcome {
            stats: self.relay.stats(),
            targets: self.targets,
            elapsed,
            parked_for_credit: self.parked_for_credit,
        }
    }

    fn check_end(&self) {
        assert_eq!(self.relay.text(), self.plain);
        assert_eq!(self.relay.finish(), Some(self.finish));
    }

    fn enabled(&self) -> Vec<Action> {
        let mut enabled = Vec::new();
        for (at, worker) in self.workers.iter().enumerate() {
            let busy = worker.is_busy();
            if busy && worker.ready <= self.now {
                enabled.push(Action::Finish(at));
            }
            // A busy draft looks at a commit that might make its step worthless; a verifier does not.
            if !worker.inbox.is_empty() && (!busy || (worker.role == Role::Draft && !worker.looked))
            {
                enabled.push(Action::Deliver(at));
            }
            if !busy && (worker.may_step || worker.wake.is_some_and(|wake| wake <= self.now)) {
                enabled.push(Action::Start(at));
            }
            if worker.may_report && worker.outbox.len() < IN_FLIGHT {
                enabled.push(Action::Report(at));
            }
            if !worker.outbox.is_empty() {
                enabled.push(Action::Relay(at));
            }
            if worker.may_update && worker.inbox.len() < IN_FLIGHT {
                enabled.push(Action::Update(at));
            }
        }
        if self.case.client == Client::Prompt && self.readable() {
            enabled.push(Action::Client);
        }
        enabled
    }

    fn readable(&self) -> bool {
        self.unread > 0 || self.client.len() < self.relay.text().len()
    }

    fn act(&mut self, faulty: bool) {
        if self.case.clock == Clock::Random {
            self.now += Time::from_micros(self.dice.roll() % 1500);
        }
        if faulty {
            self.maybe_fault();
        }
        let mut enabled = self.enabled();
        if enabled.is_empty() {
            let wakes = self
                .workers
                .iter()
                .filter_map(|worker| match worker.is_busy() {
                    true => Some(worker.ready),
                    false => worker.wake,
                });
            match wakes.min() {
                Some(wake) => self.now = wake,
                None => {
                    assert!(
                        self.readable(),
                        "a deadlock: nobody can act, nobody waits for a time"
                    );
                    self.read_some();
                }
            }
            enabled = self.enabled();
        }
        if self.case.client == Client::Slow && self.readable() && self.dice.permille(2) {
            self.read_some();
        }
        let mut action = enabled[self.dice.below(enabled.len())];
        for _ in 0..8 {
            if self.dice.below(8) < self.eagerness(action) {
                break;
            }
            action = enabled[self.dice.below(enabled.len())];
        }
        self.perform(action);
        let text = self.relay.text();
        assert!(
            self.plain.starts_with(text),
            "{text:?} is not the plain text"
        );
    }

    fn eagerness(&self, action: Action) -> usize {
        match action {
            Action::Deliver(at) | Action::Start(at) | Action::Finish(at) => self.workers[at].eager,
            Action::Report(_) | Action::Relay(_) | Action::Update(_) | Action::Client => 8,
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Deliver(at) => self.deliver(at),
            Action::Start(at) => {
                let guessed = (self.case.faults.garbage == 0).then_some(&self.guessed);
                let idle = self.workers[at].start(self.now, self.case.room, guessed);
                let worker = &self.workers[at];
                let parked = idle == Some(Poll::Parked);
                self.parked_for_credit += usize::from(parked && worker.role == Role::Target);
            }
            Action::Finish(at) => {
                self.workers[at].finish(self.now, &mut self.guessed);
                if self.dice.percent(50) {
                    self.workers[at].settle();
                }
                self.check_credit(at);
            }
            Action::Report(at) => self.workers[at].report(),
            Action::Relay(at) => {
                if let Some(report) = self.workers[at].outbox.pop_front() {
                    self.relay_takes(at, &report);
                }
            }
            Action::Update(at) => {
                let worker = &mut self.workers[at];
                match self.relay.poll_update(worker.key) {
                    Some(update) => {
                        assert_eq!(update.term, worker.term);
                        worker.inbox.push_back(update.message);
                    }
                    None => worker.may_update = false,
                }
            }
            Action::Client => self.read_some(),
        }
    }

    fn deliver(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        let Some(update) = worker.inbox.front().cloned() else {
            return;
        };
        if !worker.yields_to(&update) {
            worker.looked = true;
            return;
        }
        worker.inbox.pop_front();
        let taken = worker.take(self.now, &update);
        assert_eq!(taken, Ok(()), "an honest update is taken");
        if self.dice.permille(self.case.faults.duplicated * 20) {
            super::faults::duplicate(&mut self.workers[at], self.now, &update);
        }
        if self.dice.percent(50) {
            self.workers[at].settle();
        }
    }

    fn relay_takes(&mut self, at: usize, report: &Said) {
        self.workers[at].sent.push(report.clone());
        let key = self.workers[at].key;
        let term = self.workers[at].term;
        let taken = match report {
            Said::Opened => {
                assert_eq!(
                    self.relay.poll_update(key),
                    None,
                    "nothing before the open is acknowledged"
                );
                self.relay.handle_opened(key);
                Ok(())
            }
            Said::Report(report) => self.relay.handle_report(key, term, report),
        };
        if let Err(error) = taken {
            assert!(
                self.workers[at].tainted,
                "an honest report is taken: {error}"
            );
            self.refusals += 1;
            let role = self.lose(at);
            self.add(role);
        }
        self.stir();
    }

    /// A stale term: changes nothing, whatever it says.
    pub(crate) fn relay_takes_old(&mut self, at: usize, report: &Said) {
        let key = self.workers[at].key;
        let before = self.relay.text().to_vec();
        let taken = match report {
            Said::Opened => return,
            Said::Report(report) => self.relay.handle_report(key, Term(0), report),
        };
        assert_eq!((taken, self.relay.text()), (Ok(()), &before[..]));
    }

    /// A target runs ahead of its client by the credit and one step.
    fn check_credit(&self, at: usize) {
        let worker = &self.workers[at];
        if worker.role == Role::Target {
            let read = self.case.prompt_len + self.read as usize;
            let step = 1 + usize::from(self.strategy.verification(Duty::Commit).rows);
            assert!(worker.text().len() < read + self.credit as usize + step);
        }
    }

    fn read_some(&mut self) {
        let (fresh, _) = self.relay.poll_text();
        self.unread += fresh.len() as u32;
        self.client.extend_from_slice(&fresh);
        let taken = match self.case.client {
            Client::Prompt => self.unread,
            Client::Slow => (1 + self.dice.below(40) as u32).min(self.unread),
        };
        self.unread -= taken;
        self.read += taken;
        self.relay.handle_consumed(taken);
        self.stir();
    }

    fn read_all(&mut self) {
        while self.readable() {
            self.read_some();
        }
    }

    fn maybe_fault(&mut self) {
        let faults = self.case.faults;
        if self.dice.permille(faults.lost) {
            super::faults::lose_helper(self);
        }
        if self.dice.permille(faults.lost_target) {
            super::faults::replace_target(self);
        }
        if self.dice.permille(faults.stale) {
            super::faults::stale(self);
        }
        if self.dice.permille(faults.garbage) {
            super::faults::garbage(self);
        }
    }
}

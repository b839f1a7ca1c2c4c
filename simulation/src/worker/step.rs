//! The steps of a simulated worker: what it computes, how long that lasts, and what it makes useless.

use control::activity::Status;
use control::host::{Batch, Outcome, Usefulness};
use speculation::Time;
use speculation::message::{CoordinatorFrame, SessionId};

use super::{Languages, Worker};
use crate::cache::Admitted;
use crate::network::{Event, Network, note};

#[derive(Debug)]
pub(super) struct Step {
    pub(super) number: u64,
    pub(super) batch: Batch,
    pub(super) admitted: Vec<Admitted>,
    pub(super) useful: Usefulness,
    /// The parts that are of no use any more, kept a second time.
    pub(super) useless: Vec<bool>,
    pub(super) begun: Time,
    pub(super) computed: Time,
    /// With what its pace adds.
    pub(super) took: Time,
    pub(super) is_computed: bool,
}

impl Worker {
    pub(super) fn start(&mut self, network: &mut Network, batch: Batch) {
        self.check_turns(&batch);
        let rows = batch.rows();
        let most = self.plan.max_rows;
        assert!(rows <= most, "{rows} rows where {most} had room");
        let admitted = (batch.parts.iter())
            .map(|part| {
                let own = self.host.own(part.session).expect("it has a part");
                assert!(
                    own.owner.stream.is_some(),
                    "a session that rests does nothing"
                );
                assert!(!own.is_unused, "nobody wants what it makes");
                own.served.admit(&part.plan, most)
            })
            .collect();
        let (times, until) = self.lags;
        let times = if until > network.now { times } else { 1 };
        let computed = self.plan.step_us + self.plan.row_us * rows as u64;
        let computed = Time::from_micros(computed) * times;
        self.steps += 1;
        self.step = Some(Step {
            number: self.steps,
            useful: Usefulness::of(&batch),
            useless: vec![false; batch.parts.len()],
            batch,
            admitted,
            begun: network.now,
            computed,
            took: computed.max(Time::from_micros(self.plan.pace_us)),
            is_computed: false,
        });
        let ends = Event::StepEnds(self.at, self.life, self.steps);
        network.at(network.now + computed, ends);
    }

    /// The step in flight has been computed, or has lasted as long as its pace wants.
    pub(crate) fn step_ends(&mut self, network: &mut Network, number: u64, languages: &Languages) {
        let Some(mut step) = self.step.take_if(|step| step.number == number) else {
            return;
        };
        if !std::mem::replace(&mut step.is_computed, true) {
            self.answer(network.now, &step);
            if step.took > step.computed {
                let ends = Event::StepEnds(self.at, self.life, number);
                network.at(step.begun + step.took, ends);
                self.step = Some(step);
                return;
            }
        }
        (self.host).handle_ended(network.now, &step.batch, step.took, Outcome::Done);
        self.report(network);
        self.run(network, languages);
    }

    /// No session that has something to compute is passed over for ever.
    fn check_turns(&mut self, batch: &Batch) {
        let ids: Vec<SessionId> = self.host.iter().map(|(id, _)| id).collect();
        for &id in &ids {
            let is_ready = self.host.status(id) == Some(Status::Working);
            let has_part = batch.parts.iter().any(|part| part.session == id);
            let (own, ..) = self.host.get_mut(id).expect("it is held");
            own.passed_over = match is_ready && !has_part {
                true => own.passed_over + 1,
                false => 0,
            };
            let limit = 2 * ids.len();
            assert!(
                own.passed_over <= limit,
                "worker {} starves {id:?}",
                self.at
            );
        }
    }

    /// Hands every session its answers.
    fn answer(&mut self, now: Time, step: &Step) {
        let mut answers = Vec::new();
        for (part, admitted) in step.batch.parts.iter().zip(&step.admitted) {
            let (own, text, _) = (self.host.get_mut(part.session)).expect("a step holds it");
            assert_eq!(
                own.served.text, text,
                "nobody is told in the middle of a step"
            );
            answers.push(own.served.compute(&part.plan, admitted, None));
        }
        (self.host).handle_answers(now, &step.batch, &answers, step.computed, step.took);
        for part in &step.batch.parts {
            self.follow(part.session);
        }
    }

    /// The text of a session has changed by its own decision.
    fn follow(&mut self, id: SessionId) {
        let text = self
            .host
            .session(id)
            .expect("a step holds it")
            .text()
            .to_vec();
        let (own, ..) = self.host.get_mut(id).expect("a step holds it");
        own.served.follow(text);
    }

    /// What a frame that arrives during a step makes of it.
    pub(super) fn judge(&mut self, network: &mut Network, frame: &CoordinatorFrame) {
        let Some(step) = &mut self.step else { return };
        for (at, part) in step.batch.parts.iter().enumerate() {
            let id = part.session;
            let own = self.host.own(id).expect("a step holds it");
            let session = self.host.session(id).expect("a step holds it");
            let mut updates = frame.updates.iter();
            let is_obsolete = updates.any(|update| {
                let is_meant = update.session == id && update.term == own.owner.term;
                is_meant
                    && if step.is_computed {
                        session.is_obsolete(&part.plan, &update.message)
                    } else {
                        let admitted = &step.admitted[at];
                        (own.served).is_obsolete(session, &part.plan, admitted, &update.message)
                    }
            });
            let is_closed = frame.closed.iter().any(|&(closed, _)| closed == id);
            step.useless[at] |= is_obsolete || is_closed;
        }
        self.host.judge(&step.batch, frame, &mut step.useful);
        let is_gone = step.useless.iter().all(|&useless| useless);
        assert_eq!(step.useful.is_gone(), is_gone, "what is of use is computed");
        if is_gone && let Some(step) = self.step.take() {
            note!(network, "worker {} gives up a step", self.at);
            let took = network.now - step.begun;
            (self.host).handle_ended(network.now, &step.batch, took, Outcome::Abandoned);
            self.report(network);
        }
    }
}

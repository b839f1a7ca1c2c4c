//! A worker's side of a session, with a coordinator that lies. The model is made up by the input too.

use std::collections::BTreeMap;
use std::time::Duration;

use control::host::{Batch, Host, Limits, Outcome, Part, Usefulness};
use control::table::Slots;
use decode::{Answer, Ask, CacheOp, Drawn, Guess, Pick, Score};
use proto::{MAX_FRAME_BYTES, inward, stream, v1};
use speculation::allocation::Room;
use speculation::bypass::Plan;
use speculation::duty::Source;
use speculation::message::{
    Addressed, CoordinatorFrame, FromWorker, SessionId, SessionSpec, StreamName, Term,
};
use speculation::session::Capacity;
use speculation::strategy::Registry;

use crate::VOCAB;
use crate::cache::Cache;
use crate::dice::Dice;
use crate::messages::{self, Context, cross};

/// Rows a session may hold, as a worker limits it.
const ROWS: u16 = 64;
/// Longest text, as a worker limits it.
const CONTEXT: u32 = 512;
/// Things that happen, at most; more of the same finds nothing and takes long.
const MOST_EVENTS: usize = 400;

const SESSION: SessionId = SessionId(1);
const STREAM: u64 = 7;

/// What was reported and not taken yet.
#[derive(Debug, Default)]
struct Waiting(BTreeMap<SessionId, (Term, FromWorker)>);

impl Slots for Waiting {
    fn discard(&mut self, session: SessionId) {
        self.0.remove(&session);
    }

    fn is_vacant(&self, session: SessionId) -> bool {
        !self.0.contains_key(&session)
    }

    fn put(&mut self, session: SessionId, term: Term, message: FromWorker) {
        self.0.insert(session, (term, message));
    }
}

/// The input says how the session is opened, and then what happens to it.
pub fn run(input: &[u8]) {
    let mut dice = Dice::new(input);
    let duties = messages::duties(&mut dice);
    let request = messages::open(&mut dice, &duties);
    let Some(Ok((spec, _))) = cross(&request, &mut dice).map(inward::open) else {
        return;
    };
    // What the worker itself checks before it opens a session.
    if spec.text.iter().any(|&token| token >= VOCAB) || spec.stopping.max_len > CONTEXT {
        return;
    }
    let mut worker = Worker::new(1 + dice.below(40));
    if !worker.open(SessionSpec {
        session: SESSION,
        ..spec.clone()
    }) {
        return;
    }
    for _ in 0..MOST_EVENTS {
        if dice.is_empty() {
            break;
        }
        worker.now += Duration::from_micros(u64::from(dice.byte()) * 100);
        let lives_on = match dice.byte() {
            0..=127 => match worker.frame(&mut dice) {
                Some(frame) => worker.take(frame),
                None => true,
            },
            128..=223 => worker.step(&mut dice),
            224..=239 => {
                worker.report();
                true
            }
            240..=243 => worker.open_again(&spec, &mut dice),
            _ => {
                let time = Duration::from_micros(dice.byte().into());
                let _ = worker.host.handle_idle(time);
                true
            }
        };
        if !lives_on {
            return;
        }
        let session = worker.host.session(SESSION).expect("it lives on");
        let text = session.text();
        assert!(text.starts_with(&spec.text), "the prompt was lost");
        assert!(text.len() <= spec.stopping.max_len as usize);
        assert!(text.iter().all(|&token| token < VOCAB));
    }
}

struct Worker {
    host: Host<Waiting, Cache>,
    /// Rows of one step.
    rows: usize,
    now: Duration,
    /// The number that the coordinator's next node would have.
    next_id: u32,
}

impl Worker {
    fn new(rows: usize) -> Self {
        let limits = Limits {
            capacity: Capacity {
                vocab: VOCAB,
                rows: ROWS,
                source: Source::Draft,
            },
            room: Room {
                rows,
                prompt_stretch: 2.0,
            },
            cache: control::host::Cache {
                pages: 1000,
                page: 16,
            },
            bypass: Plan::default(),
            history: 1000,
        };
        let pace = Duration::from_micros(100);
        let mut host = Host::new(limits, Registry::default(), pace);
        host.handle_stream(STREAM, NAME, Waiting::default());
        Worker {
            host,
            rows,
            now: Duration::ZERO,
            next_id: 1,
        }
    }

    /// Whether the session is held now.
    fn open(&mut self, spec: SessionSpec) -> bool {
        let Ok(mut opening) = self.host.handle_open(self.now, NAME, &spec) else {
            return self.host.own(SESSION).is_some();
        };
        let mut cache = Cache::default();
        if let Some(before) = opening.before.take() {
            cache = before.own;
            (before.cache_ops.iter()).for_each(|op| cache.apply(op));
            match before.reusable {
                Some(len) => cache.apply(&CacheOp::Shorten(len)),
                None => cache = Cache::default(),
            }
        }
        self.next_id = 1;
        let cached = cache.len as u32;
        (self.host)
            .hold(self.now, opening, &spec, cached, cache)
            .is_ok()
    }

    /// The coordinator gives the session anew, on a part of the text that it has.
    fn open_again(&mut self, spec: &SessionSpec, dice: &mut Dice<'_>) -> bool {
        let session = self.host.session(SESSION).expect("it lives on");
        let keep = spec.text.len() + dice.below(session.text().len() - spec.text.len() + 1);
        let text = session.text()[..keep].to_vec();
        let term = self.host.term(SESSION).expect("it lives on");
        self.open(SessionSpec {
            session: SESSION,
            term: Term(dice.near(term.0.saturating_add(1))),
            text,
            ..spec.clone()
        })
    }

    /// What the coordinator may say now.
    fn frame(&mut self, dice: &mut Dice<'_>) -> Option<CoordinatorFrame> {
        let session = self.host.session(SESSION)?;
        let context = Context {
            text: session.text(),
            next_id: self.next_id,
            term: self.host.term(SESSION)?.0,
        };
        let frame = v1::CoordinatorFrame {
            updates: vec![messages::update(dice, context)],
            ..v1::CoordinatorFrame::default()
        };
        let frame = cross(&frame, dice).map(inward::coordinator_frame)?.ok()?;
        for update in &frame.updates {
            let named = update.message.nodes.len() as u32;
            self.next_id = self.next_id.saturating_add(named);
        }
        Some(frame)
    }

    /// Whether the session lives on.
    fn take(&mut self, frame: CoordinatorFrame) -> bool {
        let released = self.host.handle_frame(self.now, STREAM, frame);
        released.is_empty()
    }

    /// Whether the session lives on.
    fn step(&mut self, dice: &mut Dice<'_>) -> bool {
        let batch = self.host.poll_batch(self.now);
        for (session, ops) in &batch.cache_ops {
            let (cache, ..) = self.host.get_mut(*session).expect("it has asked for this");
            ops.iter().for_each(|op| cache.apply(op));
        }
        let Some(part) = batch.parts.first() else {
            return true;
        };
        self.check(part);
        let took = Duration::from_micros(u64::from(dice.byte()) * 10);
        // Sometimes something arrives during the step.
        let arrived = if dice.chance(32) {
            self.frame(dice)
        } else {
            None
        };
        let mut useful = Usefulness::of(&batch);
        if let Some(frame) = &arrived {
            self.host.judge(&batch, frame, &mut useful);
        }
        self.now += took;
        let outcome = if useful.is_gone() {
            Outcome::Abandoned
        } else {
            self.compute(&batch, took, dice);
            Outcome::Done
        };
        self.host.handle_ended(self.now, &batch, took, outcome);
        arrived.is_none_or(|frame| self.take(frame))
    }

    /// Whether a backend would take it.
    fn check(&self, part: &Part) {
        let (rows, plan) = (self.rows, &part.plan);
        assert!(plan.len() <= rows, "{} rows of {rows}", plan.len());
        assert!(plan.append.iter().all(|&token| token < VOCAB));
        assert!(plan.asks.len() <= plan.append.len(), "{plan:?}");
        let cache = self.host.own(SESSION).expect("it has a part in the step");
        let held = cache.rows() + plan.rows.len();
        assert!(held <= ROWS.into(), "{held} tree rows of {ROWS}");
        let session = self.host.session(SESSION).expect("it has a part in it");
        let appended = session.text().get(cache.len..cache.len + plan.append.len());
        assert_eq!(appended, Some(&plan.append[..]), "no part of the text");
        for row in &plan.rows {
            assert!(row.token < VOCAB);
            let is_led_to = row.path.last() == Some(&row.token);
            assert!(row.ask == Ask::Nothing || is_led_to, "{row:?}");
        }
    }

    fn compute(&mut self, batch: &Batch, took: Duration, dice: &mut Dice<'_>) {
        let answers: Vec<Vec<Answer>> = (batch.parts.iter())
            .map(|part| part.plan.asked().map(|ask| answer(ask, dice)).collect())
            .collect();
        for part in &batch.parts {
            let (cache, ..) = self
                .host
                .get_mut(part.session)
                .expect("it has a part in it");
            cache.step(&part.plan);
        }
        (self.host).handle_answers(self.now, batch, &answers, took, took);
    }

    /// The slots are filled, and what is in them is taken and crosses the network.
    fn report(&mut self) {
        self.host.report(self.now);
        let slots = self.host.slots_of(STREAM).expect("the stream is up");
        let taken = std::mem::take(&mut slots.0).into_iter();
        let messages: Vec<_> = taken
            .map(|(session, (term, message))| Addressed {
                session,
                term,
                message,
            })
            .collect();
        for message in &messages {
            if let FromWorker::Report(report) = &message.message {
                assert_eq!(report.picks.len(), report.margins.len());
            }
        }
        for frame in stream::worker_frames(messages) {
            assert!(prost::Message::encoded_len(&frame) <= MAX_FRAME_BYTES);
            let taken = inward::worker_frame(frame);
            assert!(taken.is_ok(), "an honest worker is refused: {taken:?}");
        }
    }
}

const NAME: StreamName = StreamName {
    coordinator: 1,
    incarnation: 1,
};

fn answer(ask: Ask, dice: &mut Dice<'_>) -> Answer {
    match ask {
        Ask::Nothing => unreachable!("nothing has no answer"),
        Ask::Draw(_) => {
            let weights: Vec<u16> = (0..1 + dice.below(4))
                .map(|_| 1 + u16::from(dice.byte()))
                .collect();
            let ids = (0..weights.len() as u32).collect();
            let first = dice.below(weights.len()) as u8;
            let drawn = Drawn::from_parts(ids, weights, vec![first]);
            drawn.map_or(Answer::NotFinite, |drawn| Answer::Drawn(Box::new(drawn)))
        }
        Ask::Pick { .. } | Ask::Judge { .. } if dice.chance(1) => Answer::NotFinite,
        Ask::Pick { score: wanted } | Ask::Judge { score: wanted, .. } => Answer::Pick(Pick {
            token: u32::from(dice.byte()) % 4,
            margin: f32::from(dice.byte()) / 16.0,
            score: wanted.map(|(_, top)| Box::new(score(top))),
        }),
        Ask::Guesses(_) if dice.chance(1) => Answer::NotFinite,
        Ask::Guesses(most) => Answer::Guesses(
            (0..dice.below(4).min(most.into()))
                .map(|rank| Guess {
                    token: (u32::from(dice.byte()) + rank as u32) % 4,
                    weight: f32::from(dice.byte()) / 255.0,
                    q: f32::from(dice.byte()) / 255.0,
                    margin: f32::from(dice.byte()) / 16.0 - 8.0,
                })
                .collect(),
        ),
        Ask::Score { top, .. } => Answer::Score(Box::new(score(top))),
    }
}

/// With so many strongest tokens.
fn score(top: u8) -> Score {
    Score {
        logprob: -1.0,
        rank: 1,
        top: vec![(1, -1.0); top.into()],
    }
}

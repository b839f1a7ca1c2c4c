//! Clients of every kind: those that read, that read slowly, that stop and read on, that hang up, and that vanish.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use proto::v1::generation_client::GenerationClient;
use proto::v1::{GenerateEvent, GenerateRequest};
use runtime::Caller;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::dice::Dice;
use super::jobs::{Job, Jobs};
use super::received::Received;
use crate::proxy::Proxy;
use crate::{REFERENCE, strategies};

/// How long a request may take, over all attempts.
const REQUEST_LIMIT: Duration = Duration::from_secs(240);
/// How long a client waits for an event before it goes to another coordinator. Longer than any fault.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pause between attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// What is told of what went wrong, at most.
const TOLD: usize = 20;

/// How a client treats its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    /// Reads to the end.
    Reads,
    /// Reads to the end with a pause after each event.
    ReadsSlowly,
    /// Stops reading for longer than a completion keeps its workers, and reads on.
    Pauses,
    /// Cancels the call in the middle.
    Cancels,
    /// Its connection is reset in the middle.
    Breaks,
    /// Nothing is heard of it any more, while its connection stays open.
    FallsSilent,
    /// Its call has a deadline.
    HasDeadline,
    /// Stops reading until it is given up.
    StopsReading,
}

impl Manner {
    /// Those of the traffic, as often as they come.
    const OFTEN: [Manner; 17] = [
        Manner::Reads,
        Manner::Reads,
        Manner::Reads,
        Manner::Reads,
        Manner::Reads,
        Manner::Reads,
        Manner::ReadsSlowly,
        Manner::ReadsSlowly,
        Manner::Pauses,
        Manner::Pauses,
        Manner::Cancels,
        Manner::Cancels,
        Manner::Breaks,
        Manner::FallsSilent,
        Manner::HasDeadline,
        Manner::HasDeadline,
        Manner::StopsReading,
    ];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Manner::Reads => "reads",
            Manner::ReadsSlowly => "reads slowly",
            Manner::Pauses => "pauses, then reads on",
            Manner::Cancels => "cancels",
            Manner::Breaks => "its connection breaks",
            Manner::FallsSilent => "falls silent",
            Manner::HasDeadline => "has a deadline",
            Manner::StopsReading => "stops reading",
        }
    }

    /// Whether it wants the whole text, and resumes it where it was interrupted.
    fn persists(self) -> bool {
        matches!(self, Manner::Reads | Manner::ReadsSlowly | Manner::Pauses)
    }
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that were sent.
    pub requests: usize,
    /// Of those, whose text arrived completely.
    pub complete: usize,
    /// Whose stream broke, so that the client resumed it.
    pub interrupted: usize,
    /// Which no attempt completed, or which ended otherwise than they had to.
    pub failed: usize,
    /// In which anything differs from plain decoding, on any attempt.
    pub differing: usize,
    /// Tokens that arrived.
    pub tokens: usize,
}

/// What became of all requests.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// By manner.
    pub counts: BTreeMap<Manner, Count>,
    /// What went wrong.
    pub notes: Vec<String>,
}

impl Outcomes {
    /// Over all manners.
    #[must_use]
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        for count in self.counts.values() {
            total.requests += count.requests;
            total.complete += count.complete;
            total.interrupted += count.interrupted;
            total.failed += count.failed;
            total.differing += count.differing;
            total.tokens += count.tokens;
        }
        total
    }

    /// Notes what went wrong, as long as there is room.
    pub fn note(&mut self, what: String) {
        if self.notes.len() < TOLD {
            self.notes.push(what);
        }
    }
}

/// What all clients of a run share.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The requests.
    pub jobs: Jobs,
    /// Where coordinators are called.
    pub coordinators: Vec<String>,
    /// Longer than a completion keeps its workers for a client that does not read.
    pub park_after: Duration,
    /// After which a client that does not read is given up.
    pub client_timeout: Duration,
    /// What has become of the requests.
    pub outcomes: Arc<Mutex<Outcomes>>,
    /// Connections of clients that have fallen silent.
    pub silent: Arc<Mutex<Vec<Proxy>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("nobody panics while holding this lock")
}

/// Clients that are running.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    clients: JoinSet<()>,
}

impl Traffic {
    /// What has become of the requests so far.
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        lock(&self.outcomes).clone()
    }

    /// Lets go the connections of clients that have fallen silent.
    pub fn forget_silent(&self) {
        lock(&self.silent).clear();
    }

    /// Notes what went wrong beside the requests.
    pub fn note(&self, what: String) {
        lock(&self.outcomes).note(what);
    }

    /// Starts so many clients, whose choices follow from a seed.
    #[must_use]
    pub fn start(&self, clients: usize, seed: u64) -> Running {
        let stop = CancellationToken::new();
        let mut set = JoinSet::new();
        for number in 0..clients {
            let mut client = Client {
                traffic: self.clone(),
                dice: Dice::new(seed.wrapping_add((number as u64) << 32)),
                at: number % self.coordinators.len(),
                channel: None,
            };
            let stop = stop.clone();
            set.spawn(async move {
                while !stop.is_cancelled() {
                    client.send().await;
                }
            });
        }
        Running { stop, clients: set }
    }

    /// Sends a request once and compares its text, without a fault in the way.
    ///
    /// # Errors
    /// When it fails or differs.
    pub async fn probe(&self, job: &Job, strategy: &str, addr: &str) -> anyhow::Result<()> {
        let mut received = Received::default();
        let asked = GenerateRequest {
            strategy: strategy.to_owned(),
            // Of its own accord it follows step times.
            knobs: [("gamma".to_owned(), 4.0)].into(),
            ..job.request.clone()
        };
        let mut client = GenerationClient::new(runtime::connect(addr).await?);
        let mut events = client.generate(asked).await?.into_inner();
        while let Some(event) = events.message().await? {
            received.take(event);
        }
        let differences = received.differences(job);
        anyhow::ensure!(differences.is_empty(), "{differences:?}");
        anyhow::ensure!(received.missing(&job.request).is_empty(), "it is not whole");
        Ok(())
    }
}

impl Running {
    /// Sends no more requests and waits for those that run.
    ///
    /// # Errors
    /// When a client panics.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client panicked")?;
        }
        Ok(())
    }
}

/// Why an attempt ended before the text did.
#[derive(Debug)]
enum Broken {
    /// Another attempt may succeed.
    Interrupted(String),
    /// No attempt can succeed.
    Refused(Status),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        let is_broken = runtime::client::broken(&status).is_some();
        if is_broken || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) {
            return Broken::Interrupted(status.to_string());
        }
        Broken::Refused(status)
    }
}

/// How a client's request went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Complete,
    /// It ended as its client or its deadline wanted, or a fault ended it that its client did not mind.
    Cut,
}

struct Client {
    traffic: Traffic,
    dice: Dice,
    /// Index of its coordinator.
    at: usize,
    /// Kept from request to request while it works.
    channel: Option<Channel>,
}

impl Client {
    /// Sends a random request and treats its stream in a random manner.
    async fn send(&mut self) {
        let manner = self.dice.pick(&Manner::OFTEN);
        let jobs = self.traffic.jobs.clone();
        let is_large =
            manner == Manner::StopsReading || (manner == Manner::Pauses && self.dice.once_in(2));
        let from = if is_large { &jobs.large } else { &jobs.mixed };
        let job = &from[self.dice.below(from.len())];
        let asked = GenerateRequest {
            strategy: self.strategy(),
            ..job.request.clone()
        };
        let mut received = Received::default();
        let mut interruptions = 0;
        let ended = if manner.persists() {
            self.read(manner, &asked, &mut received, &mut interruptions)
                .await
        } else {
            self.leave(manner, &asked, &mut received).await
        };
        self.account(manner, job, &asked, (&received, interruptions), ended);
    }

    fn strategy(&mut self) -> String {
        match self.dice.below(8) {
            0 => REFERENCE.to_owned(),
            1..4 => {
                let all = strategies();
                all[self.dice.below(all.len())].name.to_owned()
            }
            _ => "auto".to_owned(),
        }
    }

    fn account(
        &self,
        manner: Manner,
        job: &Job,
        asked: &GenerateRequest,
        (received, interruptions): (&Received, usize),
        ended: Result<Outcome, String>,
    ) {
        let mut differences = received.differences(job);
        if ended == Ok(Outcome::Complete) && !received.missing(&job.request).is_empty() {
            differences.push("not all of it arrived".to_owned());
        }
        let mut outcomes = lock(&self.traffic.outcomes);
        let count = outcomes.counts.entry(manner).or_default();
        count.requests += 1;
        count.tokens += received.tokens();
        count.interrupted += usize::from(interruptions > 0);
        count.complete += usize::from(ended == Ok(Outcome::Complete));
        count.failed += usize::from(ended.is_err());
        count.differing += usize::from(!differences.is_empty());
        let strategy = &asked.strategy;
        let about = format!("a client that {} with {strategy}", manner.name());
        if let Err(why) = ended {
            outcomes.note(format!("failed, {about}: {why}"));
        }
        if !differences.is_empty() {
            outcomes.note(format!("differing, {about}: {differences:?} of {asked:?}"));
        }
    }

    /// Reads the whole text, over as many attempts as it takes.
    async fn read(
        &mut self,
        manner: Manner,
        asked: &GenerateRequest,
        received: &mut Received,
        interruptions: &mut usize,
    ) -> Result<Outcome, String> {
        let begun = Instant::now();
        let mut pause_at = match manner {
            Manner::Pauses => Some(self.dice.between(1, 6)),
            _ => None,
        };
        loop {
            let mut broken = None;
            for part in received.missing(asked) {
                let attempt = self.attempt(manner, part, received, &mut pause_at).await;
                if let Err(why) = attempt {
                    broken = Some(why);
                    break;
                }
            }
            let why = match broken {
                None => return Ok(Outcome::Complete),
                Some(Broken::Refused(status)) => return Err(status.to_string()),
                Some(Broken::Interrupted(why)) => why,
            };
            if begun.elapsed() > REQUEST_LIMIT {
                return Err(format!("{} attempts, the last: {why}", *interruptions + 1));
            }
            *interruptions += 1;
            self.channel = None;
            self.at = (self.at + 1) % self.traffic.coordinators.len();
            sleep(PAUSE).await;
        }
    }

    async fn attempt(
        &mut self,
        manner: Manner,
        asked: GenerateRequest,
        received: &mut Received,
        pause_at: &mut Option<usize>,
    ) -> Result<(), Broken> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => channel(&self.traffic.coordinators[self.at])?,
        };
        self.channel = Some(channel.clone());
        let mut events = open(channel, Request::new(asked)).await?;
        while let Some(event) = next(&mut events).await? {
            received.take(event);
            if manner == Manner::ReadsSlowly {
                sleep(self.dice.time(1, 60)).await;
            }
            if pause_at.is_some_and(|at| received.events >= at) {
                *pause_at = None;
                sleep(self.traffic.park_after + self.dice.time(500, 3000)).await;
            }
        }
        Ok(())
    }

    /// Begins to read, and does not read to the end.
    async fn leave(
        &mut self,
        manner: Manner,
        asked: &GenerateRequest,
        received: &mut Received,
    ) -> Result<Outcome, String> {
        match self.try_leave(manner, asked, received).await {
            Ok(outcome) => Ok(outcome),
            // A fault was first. The next request goes elsewhere.
            Err(Broken::Interrupted(_)) => {
                self.at = (self.at + 1) % self.traffic.coordinators.len();
                Ok(Outcome::Cut)
            }
            Err(Broken::Refused(status)) => match (manner, status.code()) {
                (Manner::HasDeadline, Code::DeadlineExceeded | Code::Cancelled)
                | (Manner::StopsReading, Code::Aborted) => Ok(Outcome::Cut),
                _ => Err(status.to_string()),
            },
        }
    }

    async fn try_leave(
        &mut self,
        manner: Manner,
        asked: &GenerateRequest,
        received: &mut Received,
    ) -> Result<Outcome, Broken> {
        let addr = self.traffic.coordinators[self.at].clone();
        let upstream = addr
            .parse()
            .expect("coordinators have addresses of sockets");
        // A connection of its own, of which it can be said when it breaks.
        let proxy = Proxy::start(Some(upstream), self.dice.bits()).await;
        let proxy = proxy.map_err(|error| Broken::Interrupted(error.to_string()))?;
        let mut request = Request::new(asked.clone());
        if manner == Manner::HasDeadline {
            request.set_timeout(self.dice.time(30, 2000));
        }
        let mut events = open(channel(&proxy.addr().to_string())?, request).await?;
        let enough = self.dice.between(0, 60);
        while let Some(event) = next(&mut events).await? {
            received.take(event);
            match manner {
                Manner::Reads | Manner::ReadsSlowly | Manner::Pauses | Manner::HasDeadline => {}
                Manner::Cancels if received.tokens() >= enough => return Ok(Outcome::Cut),
                Manner::Breaks if received.tokens() >= enough => {
                    proxy.reset();
                    // It is broken before it is dropped.
                    while next(&mut events).await?.is_some() {}
                    return Ok(Outcome::Cut);
                }
                Manner::FallsSilent if received.tokens() >= enough => {
                    proxy.black_hole();
                    lock(&self.traffic.silent).push(proxy);
                    return Ok(Outcome::Cut);
                }
                Manner::StopsReading if received.events == 1 => {
                    // It takes a while until nothing more fits on the way.
                    sleep(self.traffic.client_timeout * 2 + self.dice.time(500, 3000)).await;
                }
                Manner::Cancels | Manner::Breaks | Manner::FallsSilent | Manner::StopsReading => {}
            }
        }
        Ok(Outcome::Complete)
    }
}

fn channel(addr: &str) -> Result<Channel, Broken> {
    let channel = Caller::default().channel(addr);
    channel.map_err(|error| Broken::Interrupted(error.to_string()))
}

async fn open(
    channel: Channel,
    asked: Request<GenerateRequest>,
) -> Result<Streaming<GenerateEvent>, Broken> {
    let mut client = GenerationClient::new(channel);
    let stream = timeout(PATIENCE, client.generate(asked)).await;
    Ok(stream.map_err(|_| silent())??.into_inner())
}

async fn next(events: &mut Streaming<GenerateEvent>) -> Result<Option<GenerateEvent>, Broken> {
    Ok(timeout(PATIENCE, events.message())
        .await
        .map_err(|_| silent())??)
}

fn silent() -> Broken {
    Broken::Interrupted(format!("no event for {} s", PATIENCE.as_secs()))
}

//! Clients that send one request after the other, behave as a client library would, and check every token.
//!
//! A request whose stream breaks is not lost: the client resumes it at the next coordinator, or sends it again if it had not
//! started. That is counted (*interrupted*). A request *fails* when no attempt completes it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use proto::v1::generate_event::Event;
use proto::v1::generation_client::GenerationClient;
use proto::v1::{GenerateRequest, Started};
use runtime::Caller;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::measure::{Arrival, Arrivals, longest_gap};
use crate::client::{Client, request};
use crate::cluster::{Cluster, Shape};
use crate::{REFERENCE, prompts};

/// How long a request may take, over all attempts. Far longer than the longest fault.
const REQUEST_LIMIT: Duration = Duration::from_secs(90);
/// The pause before the second attempt; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The temperatures of the requests.
const TEMPERATURES: [f32; 2] = [0.0, 0.8];

/// A request and its expected completion.
#[derive(Clone, Debug)]
struct Job {
    request: GenerateRequest,
    ids: Vec<u32>,
    text: String,
    reason: i32,
}

/// The requests of a run; clients send them in turn.
#[derive(Clone, Debug)]
pub struct Jobs {
    jobs: Arc<Vec<Job>>,
}

impl Jobs {
    /// Decodes `count` prompts at each temperature with plain decoding, on an undisturbed cluster of one target. The requests
    /// have these strategies in turn.
    ///
    /// # Errors
    /// When that cluster does not work.
    pub async fn new(count: usize, max_tokens: u32, strategies: &[&str]) -> anyhow::Result<Jobs> {
        let shape = Shape {
            drafts: 0,
            qualifiers: 0,
            target_pace: 0,
        };
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(shape)).await??;
        let client = Client::connect(&cluster.coordinator.addr, 1).await?;
        Jobs::decode(&client, &prompts(count)?, max_tokens, strategies).await
    }

    /// Decodes the prompts at each temperature with plain decoding, on a cluster that is not disturbed meanwhile.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn decode(
        client: &Client,
        prompts: &[String],
        max_tokens: u32,
        strategies: &[&str],
    ) -> anyhow::Result<Jobs> {
        let mut strategies = strategies.iter().cycle();
        let mut jobs = Vec::new();
        for prompt in prompts {
            for temperature in TEMPERATURES {
                let asked = |strategy| GenerateRequest {
                    // Requests of one length give a steady load.
                    ignore_eos: true,
                    ..request(prompt, max_tokens, temperature, strategy)
                };
                let plain = client.generate(asked(REFERENCE)).await?;
                anyhow::ensure!(
                    plain.ids.len() == max_tokens as usize,
                    "the prompt {prompt:?} has room for {} tokens only",
                    plain.ids.len()
                );
                jobs.push(Job {
                    request: asked(strategies.next().context("no strategies")?),
                    ids: plain.ids,
                    text: plain.text,
                    reason: plain.reason,
                });
            }
        }
        anyhow::ensure!(!jobs.is_empty(), "no prompts");
        Ok(Jobs {
            jobs: Arc::new(jobs),
        })
    }
}

/// The load on a cluster.
#[derive(Clone, Debug)]
pub struct Load {
    /// Concurrent requests.
    pub clients: usize,
    /// The requests.
    pub jobs: Jobs,
    /// The job of the first client, modulo their number; the other clients take the next ones.
    pub first: usize,
    /// The coordinators to use, in this order when one fails.
    pub coordinators: Vec<String>,
    /// How the coordinators are called.
    pub caller: Caller,
    /// How long a client waits for the next event before it tries the next coordinator.
    pub patience: Duration,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All tokens arrived.
    Complete,
    /// Its client gave up, for this reason.
    Failed(String),
}

/// One request, as its user sees it.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was sent, when tokens arrived, and when it ended.
    pub moments: Vec<Instant>,
    /// Why its client had to try again, for each attempt.
    pub interruptions: Vec<String>,
    /// Tokens that differ from plain decoding, on any attempt; missing and surplus tokens count.
    pub differing: usize,
    /// How it ended.
    pub outcome: Outcome,
}

impl Record {
    /// The longest gap between tokens, of those that ended after `since`.
    #[must_use]
    pub fn longest_gap(&self, since: Instant) -> Duration {
        longest_gap(&self.moments, since)
    }
}

/// A load that is running.
#[derive(Debug)]
pub struct Running {
    log: Arc<Log>,
    stop: CancellationToken,
    clients: JoinSet<Vec<Record>>,
}

impl Load {
    /// Starts the clients. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(&self) -> Running {
        let log = Arc::<Log>::default();
        let stop = CancellationToken::new();
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            let client = Busy {
                load: self.clone(),
                number,
                log: Arc::clone(&log),
                at: 0,
                channel: None,
            };
            clients.spawn(client.run(stop.clone()));
        }
        Running { log, stop, clients }
    }
}

impl Running {
    /// The tokens that have arrived so far.
    #[must_use]
    pub fn arrivals(&self) -> Arrivals {
        Arrivals::new(lock(&self.log).clone())
    }

    /// Sends no more requests and waits for those that run.
    ///
    /// # Errors
    /// When a client panics.
    pub async fn finish(mut self) -> anyhow::Result<Vec<Record>> {
        self.stop.cancel();
        let mut records = Vec::new();
        while let Some(of_one) = self.clients.join_next().await {
            records.extend(of_one.context("a client panicked")?);
        }
        Ok(records)
    }
}

/// The tokens that have arrived at all clients.
type Log = Mutex<Vec<Arrival>>;

fn lock(log: &Log) -> MutexGuard<'_, Vec<Arrival>> {
    (log.lock()).expect("nobody panics while holding this lock")
}

/// Why an attempt did not complete the request.
enum Broken {
    /// Another attempt may succeed.
    Interrupted(String),
    /// No attempt can succeed.
    Refused(String),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        let text = format!("{}: {}", status.code(), status.message());
        match status.code() {
            Code::Unavailable | Code::ResourceExhausted => Broken::Interrupted(text),
            _ if runtime::client::broken(&status).is_some() => Broken::Interrupted(text),
            _ => Broken::Refused(text),
        }
    }
}

/// One client.
struct Busy {
    load: Load,
    number: usize,
    log: Arc<Log>,
    /// Index of the coordinator that it uses.
    at: usize,
    /// Kept from request to request while it works.
    channel: Option<Channel>,
}

/// The part of a completion that has arrived.
struct Received {
    client: usize,
    /// The first event of its stream, which is needed to resume it.
    started: Option<Started>,
    ids: Vec<u32>,
    text: String,
    record: Record,
}

impl Busy {
    async fn run(mut self, stop: CancellationToken) -> Vec<Record> {
        let mut records = Vec::new();
        let mut next = self.load.first + self.number;
        while !stop.is_cancelled() {
            let jobs = Arc::clone(&self.load.jobs.jobs);
            records.push(self.complete(&jobs[next % jobs.len()]).await);
            next += self.load.clients;
        }
        records
    }

    /// Completes one request, or gives up.
    async fn complete(&mut self, job: &Job) -> Record {
        let sent = Instant::now();
        let mut received = Received {
            client: self.number,
            started: None,
            ids: Vec::new(),
            text: String::new(),
            record: Record {
                moments: vec![sent],
                interruptions: Vec::new(),
                differing: 0,
                outcome: Outcome::Complete,
            },
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let had = received.ids.len();
            let Err(broken) = self.attempt(job, &mut received).await else {
                break;
            };
            let (text, is_final) = match broken {
                Broken::Interrupted(text) => (text, sent.elapsed() > REQUEST_LIMIT),
                Broken::Refused(text) => (text, true),
            };
            if is_final {
                received.record.outcome = Outcome::Failed(text);
                break;
            }
            received.record.interruptions.push(text);
            self.channel = None;
            self.at = (self.at + 1) % self.load.coordinators.len();
            pause = if received.ids.len() > had {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            tokio::time::sleep(pause).await;
        }
        received.record.moments.push(Instant::now());
        received.record
    }

    async fn attempt(&mut self, job: &Job, received: &mut Received) -> Result<(), Broken> {
        let patience = self.load.patience;
        let mut client = GenerationClient::new(self.channel()?);
        let asked = received.continuation(&job.request);
        let mut events = in_time(patience, client.generate(asked))
            .await?
            .into_inner();
        while let Some(event) = in_time(patience, events.message()).await? {
            match event.event {
                Some(Event::Started(started)) => received.started = Some(started),
                Some(Event::Tokens(tokens)) => {
                    received.text.push_str(&tokens.text);
                    for &id in &tokens.token_ids {
                        received.take(job, id, &self.log);
                    }
                }
                Some(Event::Finished(finished)) => {
                    received.text.push_str(&finished.text);
                    received.compare_end(job, finished.reason);
                    return Ok(());
                }
                Some(Event::PromptScores(_)) | None => {}
            }
        }
        Err(Broken::Interrupted("the stream ended early".to_owned()))
    }

    fn channel(&mut self) -> Result<Channel, Broken> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let channel = (self.load.caller.channel(&self.load.coordinators[self.at]))
            .map_err(|error| Broken::Refused(error.to_string()))?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }
}

impl Received {
    /// The request for what has not arrived yet.
    fn continuation(&self, request: &GenerateRequest) -> GenerateRequest {
        let request = request.clone();
        match &self.started {
            Some(started) => proto::outward::resume(request, started, &self.ids, 0),
            None => request,
        }
    }

    /// Records the next token.
    fn take(&mut self, job: &Job, id: u32, log: &Log) {
        if job.ids.get(self.ids.len()) != Some(&id) {
            self.record.differing += 1;
        }
        self.ids.push(id);
        let now = Instant::now();
        self.record.moments.push(now);
        lock(log).push(Arrival {
            at: now,
            client: self.client,
        });
    }

    /// Counts missing tokens, and a text or finish reason that differs although the tokens are right.
    fn compare_end(&mut self, job: &Job, reason: i32) {
        self.record.differing += job.ids.len().saturating_sub(self.ids.len());
        if (self.text.as_str(), reason) != (job.text.as_str(), job.reason) {
            self.record.differing += 1;
        }
    }
}

/// The result of a call, if it arrives within the client's patience.
async fn in_time<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Broken> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let text = format!("no event for {} ms", patience.as_millis());
            Err(Broken::Interrupted(text))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use proto::v1::TokenIds;
    use proto::v1::generate_request::Prompt;

    fn job() -> Job {
        Job {
            request: GenerateRequest::default(),
            ids: vec![5, 6, 7],
            text: String::new(),
            reason: 0,
        }
    }

    fn received() -> Received {
        Received {
            client: 0,
            started: None,
            ids: Vec::new(),
            text: String::new(),
            record: Record {
                moments: Vec::new(),
                interruptions: Vec::new(),
                differing: 0,
                outcome: Outcome::Complete,
            },
        }
    }

    #[test]
    fn wrong_and_surplus_tokens_differ() {
        let (job, log) = (job(), Log::default());
        let mut received = received();
        for id in [5, 7, 7, 8] {
            received.take(&job, id, &log);
        }
        received.compare_end(&job, 0);
        assert_eq!(received.record.differing, 2);
        assert_eq!(received.record.moments.len(), 4);
        assert_eq!(lock(&log).len(), 4);
    }

    #[test]
    fn missing_tokens_and_another_text_or_reason_differ() {
        let (job, log) = (job(), Log::default());
        let ends: [(&[u32], &str, i32, usize); 4] = [
            (&[5, 6, 7], "", 0, 0),
            (&[5], "", 0, 2),
            (&[5, 6, 7], "x", 0, 1),
            (&[5, 6, 7], "", 1, 1),
        ];
        for (ids, text, reason, differing) in ends {
            let mut received = received();
            ids.iter().for_each(|&id| received.take(&job, id, &log));
            received.text = text.to_owned();
            received.compare_end(&job, reason);
            assert_eq!(
                received.record.differing, differing,
                "{ids:?} {text:?} {reason}"
            );
        }
    }

    #[test]
    fn a_request_is_resumed_with_its_first_event() {
        let (job, log) = (job(), Log::default());
        let mut received = received();
        assert_eq!(received.continuation(&job.request), job.request);
        received.started = Some(Started {
            seed: 9,
            system_fingerprint: "n".to_owned(),
            prompt_token_ids: vec![1, 2],
            ..Started::default()
        });
        received.take(&job, 5, &log);
        let asked = received.continuation(&job.request);
        assert_eq!(asked.seed, Some(9));
        assert_eq!(
            asked.prompt,
            Some(Prompt::Tokens(TokenIds { ids: vec![1, 2] }))
        );
        let resume = asked.resume.unwrap();
        assert_eq!(
            (resume.token_ids, resume.numerics_id),
            (vec![5], "n".to_owned())
        );
    }

    #[test]
    fn only_what_may_work_the_next_time_is_tried_again() {
        let is_final = |status: Status| matches!(Broken::from(status), Broken::Refused(_));
        assert!(is_final(Status::invalid_argument("no")));
        assert!(is_final(Status::internal("no")));
        assert!(!is_final(Status::unavailable("not now")));
        let broken = std::io::Error::other("reset");
        assert!(!is_final(Status::from_error(Box::new(broken))));
    }
}

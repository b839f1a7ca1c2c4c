//! A client program: calls `Generate` and collects what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::v1::generate_event::Event;
use proto::v1::generation_client::GenerationClient;
use proto::v1::{
    ClusterRequest, GenerateRequest, SessionStatistics, Started, TokenScores, WorkerInfo,
};
use runtime::Caller;
use speculation::duty::Source;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use crate::wait::{met, until};

/// How long a cluster may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long sessions may take to open or to close.
const SESSIONS_LIMIT: Duration = Duration::from_secs(60);

/// A completion as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// Token ids, stop token included.
    pub ids: Vec<u32>,
    /// Text.
    pub text: String,
    /// `FinishReason` number.
    pub reason: i32,
    /// The first event.
    pub started: Started,
    /// Scores of the tokens.
    pub scores: Scores,
    /// Scores of the prompt but its first token.
    pub prompt_scores: Scores,
    /// The stop text that ended it.
    pub stop_text: Option<String>,
    /// The statistics of the coordinator.
    pub statistics: SessionStatistics,
}

/// Scores as bits, whatever the sizes of the messages were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scores {
    /// Bits of the log-probabilities.
    pub logprobs: Vec<u32>,
    /// Ranks.
    pub ranks: Vec<u32>,
    /// The most likely tokens of each position, with the bits of their log-probabilities.
    pub top: Vec<(u32, u32)>,
}

impl Completion {
    /// Guesses of one source.
    pub fn guesses(&self, source: Source) -> Guesses {
        let walks = self.statistics.walks.clone().unwrap_or_default();
        let at = usize::from(source.code());
        let of = |counts: &[u64]| counts.get(at).copied().unwrap_or_default();
        Guesses {
            nodes: of(&walks.source_nodes),
            committed: of(&walks.source_committed),
            hits: of(&walks.source_hits),
        }
    }
}

/// What a source of guesses gave a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guesses {
    /// Nodes of the tree.
    pub nodes: u64,
    /// Tokens of the text that were among its nodes, whether or not they were submitted.
    pub committed: u64,
    /// Steps after which the walk went on below a node of its.
    pub hits: u64,
}

impl Scores {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.logprobs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.logprobs.is_empty()
    }

    pub(crate) fn take(&mut self, scores: Option<TokenScores>) {
        let scores = scores.unwrap_or_default();
        self.logprobs
            .extend(scores.logprobs.iter().map(|logprob| logprob.to_bits()));
        self.ranks.extend(scores.ranks);
        let top = scores.top_logprobs.iter().map(|logprob| logprob.to_bits());
        self.top.extend(scores.top_ids.into_iter().zip(top));
    }
}

/// A connection to a coordinator.
#[derive(Clone, Debug)]
pub struct Client {
    inner: GenerationClient<Channel>,
}

/// A request for `max_tokens` tokens at a temperature, with a fixed seed.
pub fn request(prompt: &str, max_tokens: u32, temperature: f32, strategy: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(proto::v1::generate_request::Prompt::Text(prompt.to_owned())),
        max_tokens,
        temperature,
        seed: Some(7),
        strategy: strategy.to_owned(),
        ..GenerateRequest::default()
    }
}

impl Client {
    /// Connects, and waits until `workers` workers are ready.
    pub async fn connect(addr: &str, workers: usize) -> anyhow::Result<Client> {
        Client::connect_as(&Caller::default(), addr, workers).await
    }

    /// As [`Client::connect`], with an identity.
    pub async fn connect_as(caller: &Caller, addr: &str, workers: usize) -> anyhow::Result<Client> {
        Client::connect_when(caller, addr, |known| {
            let ready = known.iter().filter(|worker| worker.state == "ready");
            ready.count() == workers
        })
        .await
    }

    /// Connects to a cluster of any size, and waits until it has a target.
    pub async fn connect_ready(caller: &Caller, addr: &str) -> anyhow::Result<Client> {
        Client::connect_when(caller, addr, |known| {
            (known.iter()).any(|worker| worker.role == "target" && worker.state == "ready")
        })
        .await
    }

    async fn connect_when(
        caller: &Caller,
        addr: &str,
        is_ready: impl Fn(&[WorkerInfo]) -> bool,
    ) -> anyhow::Result<Client> {
        let inner = until(READY_LIMIT, async || {
            let channel = match caller.connect(addr).await {
                Ok(channel) => channel,
                Err(error) => return Ok(Err(error.to_string())),
            };
            let mut inner = GenerationClient::new(channel);
            let cluster = inner.cluster(ClusterRequest {}).await?.into_inner();
            let missing = format!("it is not ready: {:?}", cluster.workers);
            Ok(met(is_ready(&cluster.workers), &missing).map(|()| inner))
        })
        .await?;
        Ok(Client { inner })
    }

    /// The workers that the coordinator knows.
    pub async fn workers(&self) -> anyhow::Result<Vec<WorkerInfo>> {
        let cluster = self.inner.clone().cluster(ClusterRequest {}).await?;
        Ok(cluster.into_inner().workers)
    }

    /// Sends a request and returns the stream of events.
    pub async fn stream(
        &self,
        request: GenerateRequest,
    ) -> Result<tonic::Streaming<proto::v1::GenerateEvent>, tonic::Status> {
        Ok(self.inner.clone().generate(request).await?.into_inner())
    }

    /// Runs a request to its end.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Completion, tonic::Status> {
        self.generate_observed(request, |_| {}).await
    }

    /// Runs a request to its end; `observe` is called with the number of tokens so far whenever some arrive.
    pub async fn generate_observed(
        &self,
        request: GenerateRequest,
        observe: impl FnMut(usize),
    ) -> Result<Completion, tonic::Status> {
        let mut all = self.collect(request, observe).await?;
        Ok(all.remove(&0).unwrap_or_default())
    }

    /// Runs a request to its end, and sends it again when the cluster is full, after the time that the coordinator
    /// states. Also returns how often it was refused.
    pub async fn generate_when_possible(
        &self,
        request: GenerateRequest,
    ) -> Result<(Completion, usize), tonic::Status> {
        let mut refusals = 0;
        loop {
            let status = match self.generate(request.clone()).await {
                Ok(completion) => return Ok((completion, refusals)),
                Err(status) => status,
            };
            let hint = status.get_details_retry_info();
            match hint.and_then(|hint| hint.retry_delay) {
                Some(delay) if status.code() == Code::ResourceExhausted => {
                    refusals += 1;
                    tokio::time::sleep(delay).await;
                }
                Some(_) | None => return Err(status),
            }
        }
    }

    /// Runs a request for several completions to its end.
    pub async fn generate_all(
        &self,
        request: GenerateRequest,
    ) -> Result<BTreeMap<u32, Completion>, tonic::Status> {
        self.collect(request, |_| {}).await
    }

    async fn collect(
        &self,
        request: GenerateRequest,
        mut observe: impl FnMut(usize),
    ) -> Result<BTreeMap<u32, Completion>, tonic::Status> {
        let mut events = self.inner.clone().generate(request).await?.into_inner();
        let mut all: BTreeMap<u32, Completion> = BTreeMap::new();
        while let Some(event) = events.message().await? {
            let completion = all.entry(event.choice).or_default();
            match event.event {
                Some(Event::Tokens(tokens)) => {
                    completion.text.push_str(&tokens.text);
                    completion.ids.extend(tokens.token_ids);
                    completion.scores.take(tokens.scores);
                    observe(completion.ids.len());
                }
                Some(Event::PromptScores(prompt)) => {
                    assert_eq!(prompt.first as usize, completion.prompt_scores.len() + 1);
                    completion.prompt_scores.take(prompt.scores);
                }
                Some(Event::Finished(finished)) => {
                    completion.text.push_str(&finished.text);
                    completion.reason = finished.reason;
                    completion.stop_text = finished.stop_text;
                    completion.statistics = finished.statistics.unwrap_or_default();
                }
                Some(Event::Started(started)) => completion.started = started,
                None => {}
            }
        }
        Ok(all)
    }

    /// Waits until so many completions run or wait.
    pub async fn wait_for_completions(&self, wanted: u32) -> anyhow::Result<()> {
        until(SESSIONS_LIMIT, async || {
            let cluster = self.inner.clone().cluster(ClusterRequest {}).await?;
            let reply = cluster.into_inner();
            let inside = reply.sessions + reply.waiting;
            Ok(met(inside == wanted, &format!("{inside} run or wait")))
        })
        .await
    }

    /// Waits until the number of sessions that the coordinator has open is as wanted.
    pub async fn wait_for_sessions(&self, wanted: impl Fn(u32) -> bool) -> anyhow::Result<()> {
        until(SESSIONS_LIMIT, async || {
            let cluster = self.inner.clone().cluster(ClusterRequest {}).await?;
            let open = cluster.into_inner().sessions;
            Ok(met(wanted(open), &format!("{open} sessions are open")))
        })
        .await
    }
}

//! A coordinator over fake workers, and a client of it.

use std::net::SocketAddr;
use std::time::Duration;

use offshoot_coordinator::config::{DiscoveryConfig, WorkerConfig};
use offshoot_coordinator::{Config, Coordinator};
use proto::v1;
use proto::v1::generate_event::Event;
use proto::v1::generate_request::Prompt;
use proto::v1::generation_client::GenerationClient;
use runtime::{Drain, Listener, NetArgs, Readiness, ServerLimits, health, serve};
use speculation::duty::Role;
use speculation::strategy::Settings;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::draft::FakeDraft;
use super::target::FakeTarget;
use super::vocabulary;

/// Time between two looks at the workers.
const INTERVAL: Duration = Duration::from_millis(10);

/// How many requests a rig takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_sessions: usize,
    pub(crate) max_queued: usize,
    /// How long a request whose target is lost waits for another.
    pub(crate) failover_wait: Duration,
    /// How long a completion keeps its workers for a client that takes nothing, and when that is given up.
    pub(crate) park_after: Duration,
    pub(crate) client_timeout: Duration,
    /// Positions that are recorded.
    pub(crate) record: usize,
}

impl Default for Limits {
    /// Enough for a few requests; what is lost is not waited for.
    fn default() -> Self {
        Limits {
            max_sessions: 16,
            max_queued: 16,
            failover_wait: Duration::ZERO,
            park_after: Duration::from_secs(5),
            client_timeout: Duration::from_secs(60),
            record: 0,
        }
    }
}

pub(crate) struct Rig {
    pub(crate) coordinator: Coordinator,
    pub(crate) drain: Drain,
    pub(crate) readiness: Readiness,
    pub(crate) addr: SocketAddr,
    pub(crate) client: GenerationClient<Channel>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) started: v1::Started,
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    pub(crate) finished: v1::Finished,
}

impl Rig {
    /// A coordinator that has tried each of these workers once.
    pub(crate) async fn start(targets: &[&FakeTarget], drafts: &[&FakeDraft]) -> Rig {
        Rig::limited(targets, drafts, Limits::default()).await
    }

    /// The same with limits of its own.
    pub(crate) async fn limited(
        targets: &[&FakeTarget],
        drafts: &[&FakeDraft],
        limits: Limits,
    ) -> Rig {
        let mut workers = Vec::new();
        for target in targets {
            workers.push((Role::Target, target.server.addr));
        }
        for draft in drafts {
            workers.push((Role::Draft, draft.server.addr));
        }
        Rig::with(&workers, limits).await
    }

    pub(crate) async fn with(workers: &[(Role, SocketAddr)], limits: Limits) -> Rig {
        Rig::discovering(workers, DiscoveryConfig::default(), limits).await
    }

    /// The same with sources of more workers.
    pub(crate) async fn discovering(
        workers: &[(Role, SocketAddr)],
        discovery: DiscoveryConfig,
        limits: Limits,
    ) -> Rig {
        let config = Config {
            workers: (workers.iter())
                .map(|(role, addr)| WorkerConfig {
                    role: Some(*role),
                    address: addr.to_string(),
                })
                .collect(),
            discovery,
            max_sessions: limits.max_sessions,
            max_queued: limits.max_queued,
            failover_wait: limits.failover_wait,
            park_after: limits.park_after,
            client_timeout: limits.client_timeout,
            strategy: Settings::new("auto"),
            tenant: String::new(),
            record: limits.record,
            tls: None,
        };
        let drain = Drain::new();
        let readiness = Readiness::new();
        let tokenizer = vocabulary::tokenizer(vocabulary::TOKENS);
        let coordinator = Coordinator::start(&config, tokenizer, &readiness, &drain).unwrap();
        let listener = Listener::bind(&NetArgs::default()).await.unwrap();
        let addr = listener.local_addr();
        let router = serve::server(&ServerLimits::default())
            .add_service(health::service(&readiness, &drain, &[]).await)
            .add_service(coordinator.service());
        tokio::spawn(serve::serve(listener, router, Drain::new()));
        coordinator.tried().await;
        let channel = runtime::connect(&addr.to_string()).await.unwrap();
        Rig {
            coordinator,
            drain,
            readiness,
            addr,
            client: GenerationClient::new(channel),
        }
    }

    /// Sends a request; the stream may still fail.
    pub(crate) async fn send(
        &self,
        request: v1::GenerateRequest,
    ) -> Result<Streaming<v1::GenerateEvent>, Status> {
        let sent = self.client.clone().generate(request).await;
        sent.map(tonic::Response::into_inner)
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn generate(&self, request: v1::GenerateRequest) -> Result<Reply, Status> {
        collect(self.send(request).await?).await
    }

    /// Waits until the workers are these, with their states, in the order in which they came.
    pub(crate) async fn until_workers(&self, expected: &[(SocketAddr, &str)]) {
        let named: Vec<_> = (expected.iter())
            .map(|(addr, is)| (addr.to_string(), *is))
            .collect();
        let is_so = |reply: &v1::ClusterReply| {
            let found = reply.workers.iter();
            let found = found.map(|worker| (worker.address.as_str(), worker.state.as_str()));
            found.eq(named.iter().map(|(addr, is)| (addr.as_str(), *is)))
        };
        self.until(&format!("the workers {expected:?}"), is_so)
            .await;
    }

    /// Waits until so many completions run and wait.
    pub(crate) async fn until_completions(&self, running: u32, waiting: u32) {
        let is_so =
            |reply: &v1::ClusterReply| (reply.sessions, reply.waiting) == (running, waiting);
        let wanted = format!("{running} running and {waiting} waiting");
        self.until(&wanted, is_so).await;
    }

    /// Waits until no session has a place on any worker.
    pub(crate) async fn until_free(&self) {
        let is_so = |reply: &v1::ClusterReply| reply.workers.iter().all(|w| w.sessions == 0);
        self.until("free workers", is_so).await;
    }

    /// Waits until what clients see of the cluster is what is wanted.
    async fn until(&self, wanted: &str, is_so: impl Fn(&v1::ClusterReply) -> bool) {
        let mut found = None;
        let there = async {
            let mut tick = tokio::time::interval(INTERVAL);
            loop {
                tick.tick().await;
                if is_so(found.insert(self.cluster().await)) {
                    return;
                }
            }
        };
        let is_in_time = tokio::time::timeout(super::PATIENCE, there).await.is_ok();
        assert!(is_in_time, "there never were {wanted}: {found:?}");
    }

    /// A client with this window, in bytes, for what it has not read; it calls from this address of the machine.
    pub(crate) async fn client_from(&self, ip: [u8; 4], window: u32) -> GenerationClient<Channel> {
        let endpoint = runtime::client::endpoint(&self.addr.to_string()).unwrap();
        let endpoint = (endpoint.local_address(Some(ip.into()))).initial_stream_window_size(window);
        GenerationClient::new(endpoint.connect().await.unwrap())
    }

    /// The workers as clients see them.
    pub(crate) async fn workers(&self) -> Vec<v1::WorkerInfo> {
        self.cluster().await.workers
    }

    async fn cluster(&self) -> v1::ClusterReply {
        let mut client = self.client.clone();
        let reply = client.cluster(v1::ClusterRequest {}).await;
        reply.unwrap().into_inner()
    }
}

/// A request for `max_tokens` tokens behind a short prompt.
pub(crate) fn request(strategy: &str, max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(Prompt::Text("hello ".to_owned())),
        max_tokens,
        strategy: strategy.to_owned(),
        seed: Some(7),
        ..v1::GenerateRequest::default()
    }
}

/// The tokens of [`request`]'s prompt.
pub(crate) fn prompt() -> Vec<u32> {
    "hello ".bytes().map(u32::from).collect()
}

/// The event of a message.
pub(crate) async fn event(stream: &mut Streaming<v1::GenerateEvent>) -> Result<Event, Status> {
    let message = tokio::time::timeout(super::PATIENCE, stream.message()).await;
    let message = message.expect("the stream went silent")?;
    Ok(message
        .expect("the stream ended without an end")
        .event
        .unwrap())
}

/// Reads a stream to its end.
pub(crate) async fn collect(mut stream: Streaming<v1::GenerateEvent>) -> Result<Reply, Status> {
    let Event::Started(started) = event(&mut stream).await? else {
        panic!("a stream begins with its start");
    };
    let (mut ids, mut text) = (Vec::new(), String::new());
    loop {
        match event(&mut stream).await? {
            Event::Started(_) => panic!("started twice"),
            Event::Tokens(tokens) => {
                ids.extend(tokens.token_ids);
                text.push_str(&tokens.text);
            }
            Event::PromptScores(_) => panic!("nobody asked for scores"),
            Event::Finished(finished) => {
                assert!(stream.message().await?.is_none(), "an event after the end");
                text.push_str(&finished.text);
                return Ok(Reply {
                    started,
                    ids,
                    text,
                    finished,
                });
            }
        }
    }
}

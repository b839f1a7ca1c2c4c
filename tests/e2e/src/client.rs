//! A user's program: calls `Generate` and collects what comes back.

use std::time::Duration;

use proto::v1::generate_event::Event;
use proto::v1::generation_client::GenerationClient;
use proto::v1::{ClusterRequest, GenerateRequest, SessionStatistics, Strategy};
use runtime::Caller;
use tonic::transport::Channel;

/// A completion as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// Token ids, stop token included.
    pub ids: Vec<u32>,
    /// Text.
    pub text: String,
    /// `FinishReason` number.
    pub reason: i32,
    /// What the cluster counted.
    pub statistics: SessionStatistics,
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
        strategy: Some(Strategy {
            name: strategy.to_owned(),
            ..Strategy::default()
        }),
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
        let mut inner = GenerationClient::new(caller.connect(addr).await?);
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..1500 {
            tick.tick().await;
            let cluster = inner.cluster(ClusterRequest {}).await?.into_inner();
            let ready = cluster
                .workers
                .iter()
                .filter(|worker| worker.state == "ready");
            if ready.count() == workers {
                return Ok(Client { inner });
            }
        }
        anyhow::bail!("the cluster did not become ready within 30 s")
    }

    /// Runs a request to its end.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Completion, tonic::Status> {
        self.generate_watched(request, |_| {}).await
    }

    /// Runs a request to its end; `watch` is told the number of tokens so far whenever some arrive.
    pub async fn generate_watched(
        &self,
        request: GenerateRequest,
        mut watch: impl FnMut(usize),
    ) -> Result<Completion, tonic::Status> {
        let mut events = self.inner.clone().generate(request).await?.into_inner();
        let mut completion = Completion::default();
        while let Some(event) = events.message().await? {
            match event.event {
                Some(Event::Tokens(tokens)) => {
                    completion.text.push_str(&tokens.text);
                    completion.ids.extend(tokens.token_ids);
                    watch(completion.ids.len());
                }
                Some(Event::Finished(finished)) => {
                    completion.text.push_str(&finished.text);
                    completion.reason = finished.reason;
                    completion.statistics = finished.statistics.unwrap_or_default();
                }
                Some(Event::Started(_)) | None => {}
            }
        }
        Ok(completion)
    }

    /// Waits until the number of sessions that the coordinator has open is as wanted.
    pub async fn wait_for_sessions(&self, wanted: impl Fn(u32) -> bool) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        for _ in 0..2000 {
            tick.tick().await;
            let cluster = self.inner.clone().cluster(ClusterRequest {}).await?;
            if wanted(cluster.into_inner().sessions) {
                return Ok(());
            }
        }
        anyhow::bail!("the number of sessions was not as wanted within 10 s")
    }
}

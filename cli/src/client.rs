//! A client of the coordinator, which also records when tokens arrive.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use backon::{BackoffBuilder, ExponentialBuilder};
use proto::v1;
use proto::v1::generate_event::Event;
use proto::v1::generation_client::GenerationClient;
use runtime::{Caller, TraceContext};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// A connection to a coordinator. Clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    address: String,
    stub: GenerationClient<Channel>,
    /// The trace that its calls belong to.
    trace: TraceContext,
}

/// Tokens that arrived together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Time since the request was sent.
    pub(crate) at: Duration,
    /// How many tokens.
    pub(crate) tokens: usize,
}

/// A complete completion.
#[derive(Clone, Debug, Default)]
pub(crate) struct Completion {
    pub(crate) seed: u64,
    /// What the target computes with, as its worker names it.
    pub(crate) numerics: String,
    /// The acceptance rule lets tokens pass that the target would not have drawn.
    pub(crate) is_lossy: bool,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) reason: v1::FinishReason,
    pub(crate) statistics: v1::SessionStatistics,
}

impl Client {
    /// Connects to the coordinator at `HOST:PORT`.
    ///
    /// # Errors
    /// When `address` is invalid, nothing answers there, or the TLS handshake fails.
    pub(crate) async fn connect(address: &str, caller: &Caller) -> Result<Client> {
        let channel = caller.connect(address).await?;
        let stub = GenerationClient::new(channel)
            .max_decoding_message_size(proto::MAX_REQUEST_BYTES)
            .max_encoding_message_size(proto::MAX_REQUEST_BYTES);
        Ok(Client {
            address: address.to_owned(),
            stub,
            trace: TraceContext::none(),
        })
    }

    /// The same client, with calls that belong to this trace.
    pub(crate) fn traced(self, trace: TraceContext) -> Client {
        Client { trace, ..self }
    }

    /// The workers of the cluster.
    ///
    /// # Errors
    /// When the call fails.
    pub(crate) async fn cluster(&mut self) -> Result<v1::ClusterReply> {
        match self.stub.cluster(v1::ClusterRequest {}).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(explain(&status, &self.address)),
        }
    }

    /// How the models of the cluster have agreed, as far as its coordinator records it.
    ///
    /// # Errors
    /// When the call fails, also because nothing is recorded.
    pub(crate) async fn recording(&mut self) -> Result<v1::RecordingReply> {
        match self.stub.recording(v1::RecordingRequest {}).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(explain(&status, &self.address)),
        }
    }

    /// Streams one completion; `on_text` gets each piece of text when it arrives. Dropping the future cancels the
    /// request.
    ///
    /// # Errors
    /// When the request is refused, the stream breaks, or `on_text` fails.
    pub(crate) async fn generate(
        &mut self,
        request: v1::GenerateRequest,
        mut on_text: impl FnMut(&str) -> Result<()>,
    ) -> Result<Completion> {
        let mut received = Received::new();
        let done = self.attempt(request, &mut received, &mut on_text).await;
        done.map_err(|failure| failure.error)?;
        Ok(received.completion)
    }

    /// Streams a completion, or the rest of one, into `received`.
    async fn attempt(
        &mut self,
        request: v1::GenerateRequest,
        received: &mut Received,
        on_text: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<(), Failure> {
        let mut request = Request::new(request);
        self.trace.write_metadata(request.metadata_mut());
        let response = self.stub.generate(request).await;
        let mut stream = response
            .map_err(|status| Failure::from_status(&status, &self.address))?
            .into_inner();
        loop {
            let event = stream
                .message()
                .await
                .map_err(|status| Failure::from_status(&status, &self.address))?;
            let Some(event) = event else {
                return Err(Failure::temporary(anyhow!(
                    "the coordinator at {} closed the stream before the completion was finished",
                    self.address
                )));
            };
            let completion = &mut received.completion;
            match event.event {
                Some(Event::Started(started)) => {
                    completion.seed = started.seed;
                    completion.is_lossy = started.lossy;
                    completion.numerics.clone_from(&started.system_fingerprint);
                    received.started = Some(started);
                }
                Some(Event::PromptScores(_)) => {}
                Some(Event::Tokens(tokens)) => {
                    if !tokens.token_ids.is_empty() {
                        completion.arrivals.push(Arrival {
                            at: received.sent.elapsed(),
                            tokens: tokens.token_ids.len(),
                        });
                    }
                    completion.token_ids.extend(&tokens.token_ids);
                    on_text(&tokens.text)?;
                }
                Some(Event::Finished(finished)) => {
                    on_text(&finished.text)?;
                    completion.reason = finished.reason();
                    completion.statistics = finished.statistics.context(
                        "the coordinator sent no statistics; does it have the same version?",
                    )?;
                    return Ok(());
                }
                // From a newer coordinator; an older client can ignore it.
                None => {}
            }
        }
    }
}

/// How long coordinators are asked to resume a completion without getting a token.
const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// The longest pause before the next attempt, without jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Pauses between attempts.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_factor(2.0)
    .with_max_delay(LONGEST_PAUSE)
    .without_max_times()
    .with_jitter();

/// The coordinators of one cluster; any of them can resume a completion that another one has begun.
pub(crate) struct Coordinators<'a> {
    /// `HOST:PORT` of each, at least one, in the order in which they are asked.
    pub(crate) addresses: &'a [String],
    pub(crate) caller: &'a Caller,
    /// The trace that the calls belong to.
    pub(crate) trace: TraceContext,
}

impl Coordinators<'_> {
    /// As [`Client::generate`]; when a coordinator is lost or full, the next one is asked for the rest. `on_failure` is
    /// called with the error of each failed attempt.
    ///
    /// # Errors
    /// When the request is refused, no coordinator accepts it, none resumes it within [`RESUME_LIMIT`], or `on_text`
    /// fails.
    pub(crate) async fn generate(
        &self,
        request: v1::GenerateRequest,
        mut on_text: impl FnMut(&str) -> Result<()>,
        mut on_failure: impl FnMut(&anyhow::Error),
    ) -> Result<Completion> {
        let mut received = Received::new();
        let mut had = 0;
        // The first failed attempt since the last token.
        let mut failing_since = None;
        let mut pauses = BACKOFF.build();
        let mut addresses = self.addresses.iter().cycle();
        let mut failures = 0;
        loop {
            let address = addresses.next().context("no coordinator is given")?;
            let attempt = async {
                let client = Client::connect(address, self.caller).await;
                let mut client = client
                    .map_err(Failure::temporary)?
                    .traced(self.trace.clone());
                let rest = received.rest(request.clone());
                (client.attempt(rest, &mut received, &mut on_text)).await
            };
            let Err(failure) = attempt.await else {
                return Ok(received.completion);
            };
            let tokens = received.completion.token_ids.len();
            if tokens > had {
                (had, failing_since, pauses) = (tokens, None, BACKOFF.build());
            }
            failures += 1;
            let has_given_up = match &received.started {
                Some(_) => failing_since.get_or_insert_with(Instant::now).elapsed() > RESUME_LIMIT,
                None => failures >= self.addresses.len(),
            };
            if failure.is_final || has_given_up {
                return Err(failure.error);
            }
            on_failure(&failure.error);
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    }
}

/// The part of a completion that has arrived.
struct Received {
    sent: Instant,
    /// The first event of its stream, which is needed to resume it.
    started: Option<v1::Started>,
    completion: Completion,
}

impl Received {
    fn new() -> Self {
        Received {
            sent: Instant::now(),
            started: None,
            completion: Completion::default(),
        }
    }

    /// The request for what has not arrived yet.
    fn rest(&self, request: v1::GenerateRequest) -> v1::GenerateRequest {
        let Some(started) = &self.started else {
            return request;
        };
        proto::outward::resume(request, started, &self.completion.token_ids, 0)
    }
}

/// Why an attempt failed.
struct Failure {
    error: anyhow::Error,
    /// Neither another coordinator nor a later attempt would succeed.
    is_final: bool,
}

impl Failure {
    fn temporary(error: impl Into<anyhow::Error>) -> Self {
        Failure {
            error: error.into(),
            is_final: false,
        }
    }

    fn from_status(status: &Status, address: &str) -> Self {
        let is_broken = runtime::client::broken(status).is_some();
        let is_busy = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
        Failure {
            error: explain(status, address),
            is_final: !is_broken && !is_busy,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure {
            error,
            is_final: true,
        }
    }
}

/// The error message: what happened, and what to do about it.
fn explain(status: &Status, address: &str) -> anyhow::Error {
    let message = status.message();
    if let Some(why) = runtime::client::broken(status) {
        return anyhow!(
            "lost the connection to the coordinator at {address} ({why}); is it running?"
        );
    }
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::FailedPrecondition => {
            anyhow!("{message}")
        }
        Code::ResourceExhausted => anyhow!("the cluster is full: {message}; try again later"),
        Code::Unavailable => anyhow!("the cluster cannot serve this request now: {message}"),
        Code::Unimplemented => {
            anyhow!(
                "the process at {address} does not serve generation; name a coordinator, not a worker"
            )
        }
        code => anyhow!("the coordinator at {address} failed: {code:?}: {message}"),
    }
}

/// The name of a finish reason.
pub(crate) fn reason_name(reason: v1::FinishReason) -> &'static str {
    match reason {
        v1::FinishReason::Unspecified => "unknown",
        v1::FinishReason::Stop => "stop",
        v1::FinishReason::Length => "length",
        v1::FinishReason::Context => "context full",
        v1::FinishReason::NotFinite => "model failure",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_servers_message() {
        let status = Status::invalid_argument("temperature is 9, it must be from 0 to 2");
        assert_eq!(
            explain(&status, "a:1").to_string(),
            "temperature is 9, it must be from 0 to 2"
        );
    }

    #[test]
    fn other_codes_say_what_to_do() {
        let cases = [
            (Status::resource_exhausted("64 wait"), "try again later"),
            (
                Status::unavailable("no target is ready"),
                "no target is ready",
            ),
            (Status::unimplemented("x"), "not a worker"),
            (
                Status::internal("a row is not finite"),
                "a row is not finite",
            ),
        ];
        for (status, part) in cases {
            let text = explain(&status, "a:1").to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    #[tokio::test]
    async fn a_broken_transport_is_a_lost_connection() {
        // Bound and dropped again, so nothing listens there.
        let addr = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let channel = runtime::channel(&addr).unwrap();
        let mut client = Client {
            address: addr.clone(),
            stub: GenerationClient::new(channel),
            trace: TraceContext::none(),
        };
        let error = client.cluster().await.unwrap_err().to_string();
        assert!(
            error.contains("lost the connection") && error.contains(&addr),
            "{error}"
        );
    }
}

//! A client of the coordinator: the same calls that any client makes, with the time of every arrival.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
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
    /// What its calls belong to.
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

/// A completion that ended well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Completion {
    pub(crate) seed: u64,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) reason: v1::FinishReason,
    pub(crate) statistics: v1::SessionStatistics,
}

impl Client {
    /// Connects to the coordinator at `HOST:PORT`.
    ///
    /// # Errors
    /// When `address` is no address, nobody answers there, or there is no trust between the two sides.
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

    /// The same client; its calls belong to this trace.
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

    /// Streams one completion; `on_text` gets every piece of text as it comes. Dropping the future cancels the
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
        done.map_err(|trouble| trouble.error)?;
        Ok(received.completion)
    }

    /// Streams a completion, or the rest of one, into `received`.
    async fn attempt(
        &mut self,
        request: v1::GenerateRequest,
        received: &mut Received,
        on_text: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<(), Trouble> {
        let mut request = Request::new(request);
        self.trace.write_metadata(request.metadata_mut());
        let response = self.stub.generate(request).await;
        let mut stream = response
            .map_err(|status| Trouble::from_status(&status, &self.address))?
            .into_inner();
        loop {
            let event = stream
                .message()
                .await
                .map_err(|status| Trouble::from_status(&status, &self.address))?;
            let Some(event) = event else {
                return Err(Trouble::passing(anyhow!(
                    "the coordinator at {} ended the stream before the completion was finished",
                    self.address
                )));
            };
            let completion = &mut received.completion;
            match event.event {
                Some(Event::Started(started)) => {
                    completion.seed = started.seed;
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
                    completion.statistics = finished
                        .statistics
                        .context("the coordinator sent no statistics; is its version the same?")?;
                    return Ok(());
                }
                // Sent by a newer coordinator; what it means cannot matter to an older client.
                None => {}
            }
        }
    }
}

/// How long a completion that has begun may rest, while coordinators are asked to go on with it.
const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// The pause before a completion is asked for again, first and at most; each doubles the one before.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// The coordinators of one cluster: any of them goes on with what another one has begun.
pub(crate) struct Coordinators<'a> {
    /// `HOST:PORT` of each, at least one, in the order in which they are asked.
    pub(crate) addresses: &'a [String],
    pub(crate) caller: &'a Caller,
    /// What the calls belong to.
    pub(crate) trace: TraceContext,
}

impl Coordinators<'_> {
    /// As [`Client::generate`]; when a coordinator is lost or full the next one is asked for the rest. `on_trouble`
    /// hears of each loss.
    ///
    /// # Errors
    /// When the request is refused, no coordinator takes it, none goes on with it for [`RESUME_LIMIT`], or `on_text`
    /// fails.
    pub(crate) async fn generate(
        &self,
        request: v1::GenerateRequest,
        mut on_text: impl FnMut(&str) -> Result<()>,
        mut on_trouble: impl FnMut(&anyhow::Error),
    ) -> Result<Completion> {
        let mut received = Received::new();
        let mut had = 0;
        // Since when nothing came of asking.
        let mut fruitless = None;
        let mut pause = PAUSES[0];
        let mut turns = self.addresses.iter().cycle();
        let mut refusals = 0;
        loop {
            let address = turns.next().context("no coordinator is named")?;
            let attempt = async {
                let client = Client::connect(address, self.caller).await;
                let mut client = client.map_err(Trouble::passing)?.traced(self.trace.clone());
                let rest = received.rest(request.clone());
                (client.attempt(rest, &mut received, &mut on_text)).await
            };
            let Err(trouble) = attempt.await else {
                return Ok(received.completion);
            };
            let tokens = received.completion.token_ids.len();
            if tokens > had {
                (had, fruitless, pause) = (tokens, None, PAUSES[0]);
            }
            refusals += 1;
            let is_hopeless = match &received.started {
                Some(_) => fruitless.get_or_insert_with(Instant::now).elapsed() > RESUME_LIMIT,
                None => refusals >= self.addresses.len(),
            };
            if trouble.is_final || is_hopeless {
                return Err(trouble.error);
            }
            on_trouble(&trouble.error);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES[1]);
        }
    }
}

/// What there is of a completion.
struct Received {
    sent: Instant,
    /// What its stream said first; it can be resumed by that.
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

    /// The request for what is not there yet.
    fn rest(&self, request: v1::GenerateRequest) -> v1::GenerateRequest {
        let Some(started) = &self.started else {
            return request;
        };
        proto::outward::resume(request, started, &self.completion.token_ids, 0)
    }
}

/// Why there is no completion.
struct Trouble {
    error: anyhow::Error,
    /// No other coordinator, and no later time, would make a difference.
    is_final: bool,
}

impl Trouble {
    fn passing(error: impl Into<anyhow::Error>) -> Self {
        Trouble {
            error: error.into(),
            is_final: false,
        }
    }

    fn from_status(status: &Status, address: &str) -> Self {
        let is_broken = runtime::client::broken(status).is_some();
        let is_busy = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
        Trouble {
            error: explain(status, address),
            is_final: !is_broken && !is_busy,
        }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Trouble {
            error,
            is_final: true,
        }
    }
}

/// A message for people: what happened, and what to do about it.
fn explain(status: &Status, address: &str) -> anyhow::Error {
    let said = status.message();
    if let Some(why) = runtime::client::broken(status) {
        return anyhow!(
            "lost the connection to the coordinator at {address} ({why}); is it running?"
        );
    }
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::FailedPrecondition => {
            anyhow!("{said}")
        }
        Code::ResourceExhausted => anyhow!("the cluster is full: {said}; try again later"),
        Code::Unavailable => anyhow!("the cluster cannot serve this now: {said}"),
        Code::Unimplemented => {
            anyhow!(
                "the process at {address} does not serve generation; name a coordinator, not a worker"
            )
        }
        code => anyhow!("the coordinator at {address} failed: {code:?}: {said}"),
    }
}

/// How users call a finish reason.
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
    fn a_refusal_is_told_in_the_servers_words() {
        let status = Status::invalid_argument("temperature is 9, it has to be from 0 to 2");
        assert_eq!(
            explain(&status, "a:1").to_string(),
            "temperature is 9, it has to be from 0 to 2"
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
        // Bound and dropped again, so nobody listens there.
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

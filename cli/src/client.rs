//! A client of the coordinator: the same calls that any client makes, with the time of every arrival.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use proto::v1;
use proto::v1::generate_event::Event;
use proto::v1::generation_client::GenerationClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A connection to a coordinator. Clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    address: String,
    stub: GenerationClient<Channel>,
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
    /// When `address` is no address or nobody answers there.
    pub(crate) async fn connect(address: &str) -> Result<Client> {
        let channel = runtime::connect(address).await?;
        let stub = GenerationClient::new(channel)
            .max_decoding_message_size(proto::MAX_REQUEST_BYTES)
            .max_encoding_message_size(proto::MAX_REQUEST_BYTES);
        Ok(Client {
            address: address.to_owned(),
            stub,
        })
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
        let sent = Instant::now();
        let response = self.stub.generate(request).await;
        let mut stream = response
            .map_err(|status| explain(&status, &self.address))?
            .into_inner();
        let mut completion = Completion::default();
        loop {
            let event = stream
                .message()
                .await
                .map_err(|status| explain(&status, &self.address))?;
            let Some(event) = event else {
                bail!(
                    "the coordinator at {} ended the stream before the completion was finished",
                    self.address
                );
            };
            match event.event {
                Some(Event::Started(started)) => completion.seed = started.seed,
                Some(Event::PromptScores(_)) => {}
                Some(Event::Tokens(tokens)) => {
                    if !tokens.token_ids.is_empty() {
                        completion.arrivals.push(Arrival {
                            at: sent.elapsed(),
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
                    return Ok(completion);
                }
                // Sent by a newer coordinator; what it means cannot matter to an older client.
                None => {}
            }
        }
    }
}

/// A message for people: what happened, and what to do about it.
fn explain(status: &Status, address: &str) -> anyhow::Error {
    let said = status.message();
    // A status that this side made up because the transport broke has a source; one that was sent has none.
    if std::error::Error::source(status).is_some() {
        return anyhow!(
            "lost the connection to the coordinator at {address} ({said}); check that it is running, then try again"
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
        };
        let error = client.cluster().await.unwrap_err().to_string();
        assert!(
            error.contains("lost the connection") && error.contains(&addr),
            "{error}"
        );
    }
}

//! What a client of Offshoot does, with tonic.
#![allow(
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "an example"
)]

use std::time::Duration;

use proto::v1;
use proto::v1::generate_event::Event;
use proto::v1::generate_request::Prompt;
use proto::v1::generation_client::GenerationClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// What has arrived of a completion.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    pub started: v1::Started,
    pub text: String,
    pub ids: Vec<u32>,
    pub logprobs: Vec<f32>,
}

pub type Client = GenerationClient<Channel>;

/// A request for text with a seed; everything else is as `GenerateRequest` has it by default.
pub fn request(prompt: &str, max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(Prompt::Text(prompt.to_owned())),
        max_tokens,
        temperature: 0.7,
        seed: Some(7),
        ..v1::GenerateRequest::default()
    }
}

/// Adds what a stream brings to `got`; `more` is asked after each event. Hanging up is dropping the stream.
pub async fn stream(
    client: &mut Client,
    request: impl tonic::IntoRequest<v1::GenerateRequest>,
    got: &mut Completion,
    mut more: impl FnMut(&Completion) -> bool,
) -> Result<(), Status> {
    let mut events = client.generate(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Started(started)) if got.started.session == 0 => got.started = started,
            Some(Event::Tokens(tokens)) => {
                got.text += &tokens.text;
                got.ids.extend(tokens.token_ids);
                got.logprobs
                    .extend(tokens.scores.unwrap_or_default().logprobs);
            }
            Some(Event::Finished(finished)) => got.text += &finished.text,
            _ => {}
        }
        if !more(got) {
            break;
        }
    }
    Ok(())
}

/// A call that the server ends when the time is over.
pub fn within(request: v1::GenerateRequest, limit: Duration) -> Request<v1::GenerateRequest> {
    let mut request = Request::new(request);
    request.set_timeout(limit);
    request
}

/// The request for what has not arrived yet.
pub fn rest(mut request: v1::GenerateRequest, got: &Completion) -> v1::GenerateRequest {
    let ids = got.started.prompt_token_ids.clone();
    request.prompt = Some(Prompt::Tokens(v1::TokenIds { ids }));
    request.seed = Some(got.started.seed);
    request.resume = Some(v1::Resume {
        token_ids: got.ids.clone(),
        numerics_id: got.started.system_fingerprint.clone(),
        choice: 0,
    });
    request
}

/// Whether another attempt may succeed, perhaps at another coordinator. A status with a source was made on this side: the
/// connection broke.
pub fn may_pass(status: &Status) -> bool {
    let is_broken = std::error::Error::source(status).is_some();
    is_broken || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

/// A completion that goes on at the next coordinator when one is lost or full.
pub async fn resume(
    coordinators: &[String],
    request: &v1::GenerateRequest,
) -> Result<Completion, Status> {
    let mut got = Completion::default();
    let mut last = Status::unavailable("no coordinator is given");
    for address in coordinators.iter().cycle().take(20) {
        let asked = match got.started.session {
            0 => request.clone(),
            _ => rest(request.clone(), &got),
        };
        let attempt = async {
            let client = Client::connect(format!("http://{address}")).await;
            let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
            stream(&mut client, asked, &mut got, |_| true).await
        };
        match attempt.await {
            Ok(()) => return Ok(got),
            Err(status) if may_pass(&status) => last = status,
            Err(status) => return Err(status),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(last)
}

/// The same text with its log-probabilities, found by another strategy.
pub fn scored(request: v1::GenerateRequest) -> v1::GenerateRequest {
    v1::GenerateRequest {
        logprobs: Some(0),
        strategy: "serial".to_owned(),
        knobs: [("gamma".to_owned(), 4.0)].into(),
        ..request
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::connect("http://127.0.0.1:7000").await?;
    let mut first = Completion::default();
    let asked = within(request("fn main() {", 32), Duration::from_secs(10));
    stream(&mut client, asked, &mut first, |got| got.ids.len() < 8).await?;
    let coordinators = ["127.0.0.1:7000".to_owned()];
    let whole = resume(&coordinators, &request("fn main() {", 32)).await?;
    assert!(whole.text.starts_with(&first.text));
    println!("{}", whole.text);
    Ok(())
}

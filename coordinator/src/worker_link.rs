//! The link to a worker: one task that connects, shakes hands, opens the stream, passes on what comes in, and begins again
//! when the stream is lost.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use control::fleet::State;
use proto::inward::{self, WireError};
use proto::v1::generation_client::GenerationClient;
use proto::v1::worker_client::WorkerClient;
use proto::{MAX_FRAME_BYTES, outward, v1};
use runtime::ConnectError;
use speculation::duty::Role;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::discovery::Address;
use crate::hello::{self, Hello, Mismatch};
use crate::links::{LinkedInstance, Links};
use crate::worker::Worker;
use crate::worker_stream::WorkerStream;

/// How long a worker may take to answer a handshake or to accept a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Pauses between attempts: they double, and jitter makes each up to twice as long, so that many coordinators do not
/// come back together. None is longer than 2 s.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_factor(2.0)
    .with_max_delay(Duration::from_secs(1))
    .without_max_times()
    .with_jitter();

/// The longest pause, jitter included.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// After a stream that lived less than this, the next attempt is not made at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How long a refused worker is left alone: somebody has to replace it first.
const REFUSED_PAUSE: Duration = Duration::from_secs(3);

/// Why there is no stream. In the texts, "it" is the worker.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it does not answer within {} s", ANSWER_LIMIT.as_secs())]
    Timeout,
    #[error("{}: {}", .0.code(), reason(.0))]
    Status(#[from] Status),
    #[error("it sent an invalid message: {0}")]
    Wire(#[from] WireError),
    #[error("it closed the stream")]
    Closed,
    #[error("it no longer knows the stream")]
    Forgotten,
    #[error(transparent)]
    Refused(#[from] Mismatch),
}

impl LinkError {
    /// Whether another attempt would end the same way: somebody has to change something first.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            LinkError::Refused(_)
                | LinkError::Connect(ConnectError::Refused { .. } | ConnectError::Address(_))
        )
    }
}

/// The reason in a status: the worker's own words, or why the connection broke.
fn reason(status: &Status) -> String {
    runtime::client::broken(status).unwrap_or_else(|| status.message().to_owned())
}

/// How one attempt has ended.
enum Outcome {
    /// The stream was up for this long.
    Lost(LinkError, Duration),
    /// There was none.
    Failed(LinkError),
}

/// Serves a worker until the fleet forgets it or the coordinator ends.
pub(crate) async fn run(links: Arc<Links>, worker: Arc<Worker>) {
    tokio::select! {
        () = links.stop.cancelled() => {}
        () = worker.forgotten.cancelled() => {}
        () = serve(&links, &worker) => {}
    }
    // Sessions that are still there learn that the coordinator ends. A worker that is forgotten has none: the last ones
    // are closed there, or end with their leases.
    let ended = State::Connecting(Some("this coordinator is stopping".to_owned()));
    worker.set_down(&links.fleet, ended);
    worker.tried.cancel();
    if worker.forgotten.is_cancelled() {
        links.forget(&worker);
        tracing::info!(worker = %worker.address, role = worker.role_name(), "a worker has left");
    }
}

/// Connects again and again.
async fn serve(links: &Links, worker: &Worker) {
    let mut pauses = BACKOFF.build();
    loop {
        let outcome = attempt(links, worker).await;
        let pause = match &outcome {
            // It was up: if only the stream broke, it is there again at once.
            Outcome::Lost(_, lived) if *lived >= SHORT_LIFE => {
                pauses = BACKOFF.build();
                Duration::ZERO
            }
            Outcome::Failed(error) if error.is_refusal() => REFUSED_PAUSE,
            Outcome::Lost(..) | Outcome::Failed(_) => pauses.next().unwrap_or(LONGEST_PAUSE),
        };
        note(links, worker, outcome);
        worker.tried.cancel();
        tokio::time::sleep(pause).await;
    }
}

/// Tells the fleet how an attempt has ended, and the log if that is new.
fn note(links: &Links, worker: &Worker, outcome: Outcome) {
    let (address, role) = (&worker.address, worker.role_name());
    match outcome {
        Outcome::Lost(error, _) => {
            tracing::warn!(worker = %address, role, %error, "lost a worker");
            worker.set_down(&links.fleet, State::Lost(error.to_string()));
        }
        Outcome::Failed(reason) if reason.is_refusal() => {
            if worker.set_down(&links.fleet, State::Refused(reason.to_string())) {
                tracing::error!(worker = %address, role, %reason, "refused a worker");
            }
        }
        Outcome::Failed(error) => {
            let state = State::Connecting(Some(error.to_string()));
            if worker.set_down(&links.fleet, state) {
                tracing::warn!(worker = %address, role, %error, "worker unreachable; retrying");
            }
        }
    }
}

/// One stream, from the connection to its end.
async fn attempt(links: &Links, worker: &Worker) -> Outcome {
    let Open {
        stream,
        frames,
        linked: _linked,
    } = match open_stream(links, worker).await {
        Ok(open) => open,
        Err(error) => return Outcome::Failed(error),
    };
    tracing::info!(
        worker = %worker.address,
        role = stream.role.name(),
        model = stream.hello.model,
        numerics_id = stream.hello.numerics_id,
        "a worker is ready"
    );
    let begun = Instant::now();
    worker.set_ready(&links.fleet, Arc::clone(&stream));
    worker.tried.cancel();
    let error = read(&stream, frames).await;
    Outcome::Lost(error, begun.elapsed())
}

/// A stream that is up, and what comes in on it.
struct Open<'a> {
    stream: Arc<WorkerStream>,
    frames: Streaming<v1::WorkerFrame>,
    /// Held as long as the stream is read.
    linked: LinkedInstance<'a>,
}

async fn open_stream<'a>(links: &'a Links, worker: &Worker) -> Result<Open<'a>, LinkError> {
    let Address {
        authority,
        certificate_name,
    } = &worker.address;
    let channel = (links.caller)
        .connect_to(authority, certificate_name.as_deref())
        .await?;
    let mut client = WorkerClient::new(channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES);
    let (role, hello) = match shake_hands(links, worker, &mut client).await {
        Err(LinkError::Status(status)) => return Err(judge(status, channel).await),
        shaken => shaken?,
    };
    let linked = links
        .link_instance(hello.instance, authority)
        .map_err(|address| Mismatch::Same {
            address: address.to_string(),
        })?;
    links.set_role(worker, role);
    let name = links.next_stream();
    let stream = WorkerStream::new(worker.peer(role), name, hello, client.clone());
    let stream = Arc::new(stream);
    let frames = answered(client.link(Arc::clone(&stream).frames())).await?;
    Ok(Open {
        stream,
        frames,
        linked,
    })
}

async fn shake_hands(
    links: &Links,
    worker: &Worker,
    client: &mut WorkerClient<Channel>,
) -> Result<(Role, Hello), LinkError> {
    let reply = answered(client.hello(outward::hello_request())).await?;
    let ours = links.tokenizer.vocabulary();
    Ok(hello::check(reply, worker.expected, ours)?)
}

/// What it means that a handshake was answered with a status: whether it will pass, and what the peer is if it is no
/// worker.
async fn judge(status: Status, channel: Channel) -> LinkError {
    let is_broken = runtime::client::broken(&status).is_some();
    match status.code() {
        // Workers before protocol 4 have other services, and so have coordinators.
        Code::Unimplemented => {
            let mut outside = GenerationClient::new(channel);
            match answered(outside.cluster(v1::ClusterRequest {})).await {
                Ok(_) => Mismatch::Coordinator.into(),
                Err(_) => Mismatch::NoService.into(),
            }
        }
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::ResourceExhausted
        | Code::Aborted => status.into(),
        _ if is_broken => status.into(),
        code => Mismatch::Answer {
            code,
            message: status.message().to_owned(),
        }
        .into(),
    }
}

async fn answered<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(ANSWER_LIMIT, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(LinkError::Timeout),
    }
}

/// Reads until the stream ends; never waits for a session.
async fn read(stream: &WorkerStream, mut frames: Streaming<v1::WorkerFrame>) -> LinkError {
    let reading = async {
        loop {
            match frames.message().await {
                Ok(Some(frame)) => match inward::worker_frame(frame) {
                    Ok(messages) => messages
                        .into_iter()
                        .for_each(|message| stream.deliver(message)),
                    Err(error) => return error.into(),
                },
                Ok(None) => return LinkError::Closed,
                Err(status) => return status.into(),
            }
        }
    };
    // A session may find first that the worker has no such stream any more.
    let ended = stream.lost.run_until_cancelled(reading).await;
    ended.unwrap_or(LinkError::Forgotten)
}

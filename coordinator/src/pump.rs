//! One task per worker: connect, say hello, open the stream, pass on what comes in, and begin again when it is lost.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use proto::inward::{self, WireError};
use proto::{PROTOCOL, v1};
use runtime::ConnectError;
use speculation::ferry::Said;
use speculation::message::{SessionId, Term};
use tokio::time::Instant;
use tonic::{Response, Status};

use crate::hello::{self, Hello, Mismatch};
use crate::link::{Client, Link};
use crate::registry::{Shared, State, Worker};

/// How long a worker may take to answer a hello or to accept a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The first pause after a failed attempt; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A stream that lived no longer than this is no reason to hurry back.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How long a refused worker is left alone: somebody has to replace it first.
const REFUSED_PAUSE: Duration = Duration::from_secs(3);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it does not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    #[error("{}: {}", .0.code(), said(.0))]
    Status(#[from] Status),
    #[error("it sent what cannot be understood: {0}")]
    Wire(#[from] WireError),
    #[error("it closed the stream")]
    Closed,
    #[error(transparent)]
    Refused(#[from] Mismatch),
}

type Addressed = (SessionId, Term, Said);

/// A frame from either service, as sessions hear it.
type Frames = BoxStream<'static, Result<Vec<Addressed>, Loss>>;

/// What a status says: the worker's words, or why the connection broke.
fn said(status: &Status) -> String {
    runtime::client::broken(status).unwrap_or_else(|| status.message().to_owned())
}

/// Serves a worker until the coordinator ends.
pub(crate) async fn run(shared: Arc<Shared>, worker: Arc<Worker>) {
    let stopping = shared.stop.clone();
    stopping
        .run_until_cancelled(async {
            let mut pause = FIRST_PAUSE;
            loop {
                let begun = Instant::now();
                let wait = match attempt(&shared, &worker).await {
                    // It was up: if only the stream broke, it is there again at once.
                    Ok(loss) => {
                        tracing::warn!(worker = %worker.address, role = worker.role_name(), %loss, "lost a worker");
                        worker.set(State::Lost(loss.to_string()));
                        if begun.elapsed() < SHORT_LIFE {
                            pause = (pause * 2).min(LONGEST_PAUSE);
                            pause
                        } else {
                            pause = FIRST_PAUSE;
                            Duration::ZERO
                        }
                    }
                    Err(Loss::Refused(reason)) => {
                        if worker.set(State::Refused(reason.to_string())) {
                            tracing::error!(worker = %worker.address, role = worker.role_name(), %reason, "refused a worker");
                        }
                        REFUSED_PAUSE
                    }
                    Err(loss) => {
                        if worker.set(State::Connecting(Some(loss.to_string()))) {
                            tracing::warn!(worker = %worker.address, role = worker.role_name(), %loss, "no link to a worker; trying on");
                        }
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        pause
                    }
                };
                shared.vacancies.tell();
                worker.tried.cancel();
                tokio::time::sleep(wait).await;
            }
        })
        .await;
    worker.lose();
}

/// One life of a link. `Ok` when it was up, with the reason of its end.
async fn attempt(shared: &Shared, worker: &Worker) -> Result<Loss, Loss> {
    let channel = shared.caller.connect(&worker.address).await?;
    let mut client = Client::new(worker.role, channel);
    let hello = hello(shared, worker, &mut client).await?;
    let link = Arc::new(Link::new(
        (worker.key, shared.next_link()),
        worker.role,
        Arc::clone(&worker.address),
        hello,
        client.clone(),
        shared.vacancies.clone(),
        Arc::clone(&worker.tally),
    ));
    let frames = open_stream(&link, &mut client).await?;
    tracing::info!(
        worker = %worker.address,
        role = worker.role_name(),
        model = link.hello.model,
        numerics_id = link.hello.numerics_id,
        "a worker is ready"
    );
    worker.set(State::Ready(Arc::clone(&link)));
    let _up = shared.up(worker.role);
    worker.tried.cancel();
    let loss = pump(&link, frames).await;
    link.lose();
    Ok(loss)
}

async fn hello(shared: &Shared, worker: &Worker, client: &mut Client) -> Result<Hello, Loss> {
    let request = v1::HelloRequest { protocol: PROTOCOL };
    let reply = answered(async {
        match client {
            Client::Draft(client) => client.hello(request).await,
            Client::Verify(client) => client.hello(request).await,
        }
    })
    .await?;
    Ok(hello::check(
        reply,
        worker.role,
        shared.tokenizer.vocabulary(),
    )?)
}

async fn open_stream(link: &Arc<Link>, client: &mut Client) -> Result<Frames, Loss> {
    let outgoing = Arc::clone(link).frames();
    Ok(match client {
        Client::Draft(client) => answered(client.link(outgoing))
            .await?
            .map_err(Loss::from)
            .map(|frame| Ok(drafted(frame?)?))
            .boxed(),
        Client::Verify(client) => answered(client.link(outgoing))
            .await?
            .map_err(Loss::from)
            .map(|frame| Ok(verified(frame?)?))
            .boxed(),
    })
}

async fn answered<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Loss> {
    match tokio::time::timeout(ANSWER_LIMIT, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Loss::Silent),
    }
}

fn drafted(frame: v1::DraftFrame) -> Result<Vec<Addressed>, WireError> {
    let frame = inward::draft_frame(frame)?;
    let reports = (frame.reports.into_iter())
        .map(|report| (report.session, report.term, Said::Drafted(report.message)));
    Ok(reports.chain(faults(frame.faults)).collect())
}

fn verified(frame: v1::VerifyFrame) -> Result<Vec<Addressed>, WireError> {
    let frame = inward::verify_frame(frame)?;
    let reports = (frame.reports.into_iter())
        .map(|report| (report.session, report.term, Said::Verified(report.message)));
    Ok(reports.chain(faults(frame.faults)).collect())
}

fn faults(faults: Vec<inward::Addressed<String>>) -> impl Iterator<Item = Addressed> {
    (faults.into_iter()).map(|fault| (fault.session, fault.term, Said::Fault(fault.message)))
}

/// Reads until the stream ends; never waits for a session.
async fn pump(link: &Link, mut frames: Frames) -> Loss {
    loop {
        match frames.next().await {
            Some(Ok(frame)) => {
                for (session, term, said) in frame {
                    link.hear(session, term, said);
                }
            }
            Some(Err(loss)) => return loss,
            None => return Loss::Closed,
        }
    }
}

//! From an accepted request to a running session, and from its end to the client's last message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use proto::v1;
use runtime::Drain;
use speculation::calibration::Calibration;
use speculation::ferry::Ferry;
use speculation::message::SessionId;
use speculation::relay::{Relay, RelayConfig};
use text::Special;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::admission::{Admission, Ticket};
use crate::delivery::{Delivery, Item};
use crate::failure::Failure;
use crate::link::Down;
use crate::metrics::CoordinatorMetrics;
use crate::open;
use crate::registry::{Need, NoPlace, Place, Registry};
use crate::request::{self, Prompt, Request};
use crate::seat::{Heard, SeatMaker};
use crate::seekers::Seeker;
use crate::session::{End, Own, Session};
use crate::watched::Watched;

/// Messages from all workers of a session that may wait for it. It is only full when the session has not run for
/// hundreds of model steps.
const INBOX: usize = 1024;

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) registry: Registry,
    pub(crate) admission: Admission,
    pub(crate) drain: Drain,
    /// Cancelled when the grace time of the drain is almost over: sessions end, but say so.
    pub(crate) cut: CancellationToken,
    /// How long a session whose target is lost waits for another.
    pub(crate) replay_wait: Duration,
    /// How well qualifiers advise, learned from all sessions; the last one to end wins.
    calibration: Mutex<Calibration>,
    /// The next session's number.
    next: AtomicU64,
    pub(crate) metrics: Arc<CoordinatorMetrics>,
    pub(crate) started: Instant,
}

impl Cluster {
    /// `first` is the first session's number: two coordinators of one cluster should not use the same.
    pub(crate) fn new(
        registry: Registry,
        admission: Admission,
        drain: Drain,
        replay_wait: Duration,
        first: u64,
    ) -> Self {
        Cluster {
            registry,
            admission,
            drain,
            cut: CancellationToken::new(),
            replay_wait,
            calibration: Mutex::new(Calibration::default()),
            next: AtomicU64::new(first),
            metrics: Arc::default(),
            started: Instant::now(),
        }
    }
}

/// One completion of a request, taken in.
pub(crate) struct Completion {
    pub(crate) request: Arc<Request>,
    /// Which one, from 0.
    pub(crate) number: u32,
    pub(crate) ticket: Ticket,
    /// When the client stops waiting.
    pub(crate) deadline: Option<Instant>,
    pub(crate) client: mpsc::Sender<Item>,
    pub(crate) watched: Watched,
}

/// Serves one completion to its end.
pub(crate) async fn serve(cluster: Arc<Cluster>, completion: Completion) {
    let Completion {
        request,
        number,
        ticket,
        deadline,
        client,
        mut watched,
    } = completion;
    let stopping = cluster.drain.stopping();
    let late = async || match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    };
    let running = tokio::select! {
        biased;
        () = client.closed() => return,
        running = ticket.admitted() => running,
        () = late() => {
            refuse(Failure::Deadline { tokens: 0 }, watched, &client).await;
            return;
        }
        () = stopping => {
            refuse(Failure::Stopping, watched, &client).await;
            return;
        }
    };
    watched.admitted();
    let prepared = tokio::select! {
        () = client.closed() => return,
        () = cluster.cut.cancelled() => Err(Failure::Stopping),
        () = late() => Err(Failure::Deadline { tokens: 0 }),
        prepared = prepare(&cluster, &request, number, &client, &mut watched) => prepared,
    };
    match prepared {
        Ok(session) => {
            run(
                &cluster,
                Session {
                    deadline,
                    ..session
                },
                watched,
            )
            .await
        }
        Err(failure) => refuse(failure, watched, &client).await,
    }
    drop(running);
}

/// Tells the client why there is no session.
async fn refuse(failure: Failure, mut watched: Watched, client: &mpsc::Sender<Item>) {
    let status = failure.into();
    watched.failed(&status);
    let _ = client.send(Err(status)).await;
}

async fn prepare(
    cluster: &Cluster,
    request: &Request,
    number: u32,
    client: &mpsc::Sender<Item>,
    watched: &mut Watched,
) -> Result<Session, Failure> {
    let registry = &cluster.registry;
    let prompt = encode(registry, &request.prompt).await?;
    let prompt_len = match u32::try_from(prompt.len()) {
        Ok(0) => return Err(request::empty()),
        Ok(len) => len,
        Err(_) => u32::MAX,
    };
    let id = SessionId(cluster.next.fetch_add(1, Ordering::Relaxed));
    let wake = Arc::new(Notify::new());
    let (sender, inbox) = mpsc::channel::<Heard>(INBOX);
    let seats = SeatMaker {
        inbox: sender,
        wake: Arc::clone(&wake),
    };
    let received = request.received.as_ref();
    let ids = received.map_or(&[][..], |received| &received.ids);
    let need = Need {
        wanted: request.wanted,
        turn: registry.seekers.request(request.priority),
        numerics: received.map(|received| received.numerics_id.as_str()),
        // Without its last token, which may take the last position.
        tokens: prompt_len.saturating_add(ids.len().saturating_sub(1) as u32),
        positions: request.wish(prompt_len),
    };
    let mut seated = place(registry, id, &need, &seats).await?.into_iter();
    let target = seated.next().expect("a place always has a target");
    let stopping = request.stopping(prompt_len, &target.link);
    if ids.len() > (stopping.max_len - prompt_len) as usize {
        let given = format!("{} tokens", ids.len());
        let allowed = format!("at most {}", stopping.max_len - prompt_len);
        return Err(Failure::parameter("resume.token_ids", given, allowed));
    }
    watched.placed(id, &target.link.hello.model, prompt_len as usize, ids.len());
    let mut sampling = request.sampling.clone();
    sampling.choice += number;
    let mut delivery = Delivery::new(
        client.clone(),
        sampling.choice,
        registry.tokenizer().stream(),
        request.stops.clone(),
        sampling.min_tokens,
    );
    delivery.skip(ids);
    let started = v1::Started {
        session: id.0,
        seed: sampling.seed,
        prompt_tokens: prompt_len,
        system_fingerprint: target.link.hello.numerics_id.clone(),
        prompt_token_ids: prompt.clone(),
    };
    let config = RelayConfig {
        session: id,
        text: [&prompt, ids].concat(),
        stopping: stopping.clone(),
        scoring: request.scoring,
        strategy: request.strategy,
        vocab: registry.tokenizer().vocabulary().len() as u32,
    };
    let relay = Relay::new(config).with_calibration(cluster.calibration.lock().clone());
    let own = Own {
        id,
        seats,
        sampling,
        positions: stopping.max_len,
        trace: watched.context().clone(),
        begun: Instant::now(),
        opens: FuturesUnordered::new(),
        delivery,
        started: Some(started),
        waiting: None,
        parted: Vec::new(),
    };
    let mut session = Session {
        ferry: Ferry::new(relay, request.wanted, prompt.len()),
        own,
        deadline: None,
        inbox,
        wake,
    };
    for place in std::iter::once(target).chain(seated) {
        session.sit(cluster, place);
    }
    Ok(session)
}

/// Encoding is work for a processor, so it stays off the threads that relay.
async fn encode(registry: &Registry, prompt: &Prompt) -> Result<Vec<u32>, Failure> {
    match prompt {
        Prompt::Tokens(ids) => Ok(ids.clone()),
        Prompt::Text(text) => {
            let tokenizer = registry.tokenizer().clone();
            let text = text.clone();
            let encoded =
                tokio::task::spawn_blocking(move || tokenizer.encode(&text, Special::Add)).await;
            Ok(encoded.map_err(|_| Failure::Encoder)??)
        }
    }
}

/// Seats the session, waiting while every ready target is full.
async fn place(
    registry: &Registry,
    id: SessionId,
    need: &Need<'_>,
    seats: &SeatMaker,
) -> Result<Vec<Place>, Failure> {
    // Listening begins before looking, so that nothing is missed in between.
    let mut vacancies = registry.vacancies();
    let mut waiting = None;
    loop {
        match registry.place(id, need, seats) {
            Ok(places) => return Ok(places),
            Err(NoPlace::Missing(each)) => return Err(Failure::NoTarget(each)),
            Err(NoPlace::OtherNumerics(present)) => {
                return Err(Failure::OtherNumerics {
                    wanted: need.numerics.unwrap_or_default().to_owned(),
                    present,
                });
            }
            Err(NoPlace::TooLong { context, target }) => {
                return Err(Failure::PromptTooLong {
                    tokens: need.tokens as usize,
                    context,
                    target,
                });
            }
            Err(NoPlace::Busy) => {
                waiting.get_or_insert_with(|| {
                    let seeker = Seeker {
                        numerics: need.numerics.map(str::to_owned),
                        not: None,
                        context: need.tokens.saturating_add(1),
                    };
                    registry.seekers.wait(need.turn, seeker)
                });
                vacancies.heard().await;
            }
        }
    }
}

async fn run(cluster: &Cluster, mut session: Session, mut watched: Watched) {
    let ended = session.drive(cluster, &mut watched).await;
    let relay = session.ferry.relay();
    watched.closed(&relay.stats());
    *cluster.calibration.lock() = relay.calibration().clone();
    let finished = match &ended {
        Ok(End::Finished(finish)) => {
            let finished = session.finished(*finish);
            watched.finished(*finish, finished.completion_tokens);
            Some(finished)
        }
        Ok(End::Gone) | Err(_) => None,
    };
    let tokens = session.ferry.generated();
    let Session { ferry, own, .. } = session;
    let Own {
        id,
        opens,
        delivery,
        ..
    } = own;
    close(cluster, id, opens);
    drop(ferry);
    match (ended, finished) {
        (Ok(_), Some(finished)) => {
            tracing::debug!(session = id.0, tokens, reason = finished.reason, "finished");
            delivery.finish(finished).await;
        }
        (Ok(_), None) => tracing::debug!(session = id.0, tokens, "the client has gone"),
        (Err(failure), _) => {
            tracing::warn!(session = id.0, tokens, %failure, "a request failed");
            let status = Status::from(failure);
            watched.failed(&status);
            delivery.fail(status).await;
        }
    }
}

/// An open call that is still under way may be carried out behind the session's close: it is closed once more when the
/// call has ended.
fn close(cluster: &Cluster, id: SessionId, mut opens: FuturesUnordered<open::Opening>) {
    if opens.is_empty() {
        return;
    }
    let closing = async move {
        while let Some(opened) = opens.next().await {
            (opened.link.outbox).put(id, Down::Close(opened.term));
        }
    };
    // A worker that hangs answers no open call, and must not hold up the drain.
    let cut = cluster.cut.clone();
    (cluster.drain).spawn(cut.run_until_cancelled_owned(closing));
}

//! From an accepted request to a running session, and from its end to the client's last message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use proto::v1;
use runtime::Drain;
use speculation::calibration::Calibration;
use speculation::message::SessionId;
use speculation::relay::{Relay, RelayConfig};
use text::Special;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::admission::{Admission, Ticket};
use crate::delivery::{Delivery, Item};
use crate::failure::Failure;
use crate::link::Down;
use crate::metrics::CoordinatorMetrics;
use crate::open;
use crate::registry::{NoPlace, Place, Registry};
use crate::request::{Prompt, Request};
use crate::seat::{Heard, SeatMaker};
use crate::session::{End, Places, Session};
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
    /// How well qualifiers advise, learned from all sessions; the last one to end wins.
    calibration: Mutex<Calibration>,
    /// The next session's number.
    next: AtomicU64,
    pub(crate) metrics: Arc<CoordinatorMetrics>,
    pub(crate) started: Instant,
}

impl Cluster {
    /// `first` is the first session's number: two coordinators of one cluster should not use the same.
    pub(crate) fn new(registry: Registry, admission: Admission, drain: Drain, first: u64) -> Self {
        Cluster {
            registry,
            admission,
            drain,
            cut: CancellationToken::new(),
            calibration: Mutex::new(Calibration::default()),
            next: AtomicU64::new(first),
            metrics: Arc::default(),
            started: Instant::now(),
        }
    }
}

/// Serves one request to its end.
pub(crate) async fn serve(
    cluster: Arc<Cluster>,
    request: Request,
    ticket: Ticket,
    client: mpsc::Sender<Item>,
    mut watched: Watched,
) {
    let stopping = cluster.drain.stopping();
    let running = tokio::select! {
        biased;
        () = client.closed() => return,
        running = cluster.admission.admit(ticket) => running,
        () = stopping => {
            let status = Failure::Stopping.into();
            watched.failed(&status);
            let _ = client.send(Err(status)).await;
            return;
        }
    };
    watched.admitted();
    let prepared = tokio::select! {
        () = client.closed() => return,
        () = cluster.cut.cancelled() => Err(Failure::Stopping),
        prepared = prepare(&cluster, request, &client, &mut watched) => prepared,
    };
    match prepared {
        Ok(session) => run(&cluster, session, watched).await,
        Err(failure) => {
            let status = failure.into();
            watched.failed(&status);
            let _ = client.send(Err(status)).await;
        }
    }
    drop(running);
}

async fn prepare(
    cluster: &Cluster,
    request: Request,
    client: &mpsc::Sender<Item>,
    watched: &mut Watched,
) -> Result<Session, Failure> {
    let registry = &cluster.registry;
    let prompt = encode(registry, &request.prompt).await?;
    let id = SessionId(cluster.next.fetch_add(1, Ordering::Relaxed));
    let wake = Arc::new(Notify::new());
    let (sender, inbox) = mpsc::channel::<Heard>(INBOX);
    let seats = SeatMaker {
        inbox: sender,
        wake: Arc::clone(&wake),
    };
    let mut places = Places::new(id, place(registry, id, &request, &seats).await?);
    let target = Arc::clone(
        &(places
            .iter()
            .next()
            .expect("a place always has a target")
            .link),
    );
    let prompt_len = prompt.len();
    let stopping = request.stopping(prompt_len, &target)?;
    watched.placed(id, &target.hello.model, prompt_len);
    let vocab = registry.tokenizer().vocabulary().len() as u32;
    let config = RelayConfig {
        session: id,
        prompt,
        stopping,
        strategy: request.strategy,
        vocab,
    };
    let mut relay = Relay::new(config).with_calibration(cluster.calibration.lock().clone());
    let opens = FuturesUnordered::new();
    let mut unused = Vec::new();
    for Place { link, .. } in places.iter() {
        match relay.add_link(link.key, link.role) {
            None => unused.push(link.key),
            Some(spec) => {
                let link = Arc::clone(link);
                let trace = watched.context();
                let opening =
                    open::open(link, registry.coordinator(), spec, request.sampling, trace);
                opens.push(opening);
            }
        }
    }
    for key in unused {
        places.leave(key);
    }
    Ok(Session {
        id,
        relay,
        places,
        inbox,
        wake,
        opens,
        delivery: Delivery::new(client.clone(), registry.tokenizer().stream()),
        started: Some(v1::Started {
            session: id.0,
            seed: request.sampling.seed,
            prompt_tokens: prompt_len as u32,
            system_fingerprint: target.hello.numerics_id.clone(),
        }),
        prompt_len,
    })
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
    request: &Request,
    seats: &SeatMaker,
) -> Result<Vec<Place>, Failure> {
    loop {
        let vacated = registry.vacated().notified();
        tokio::pin!(vacated);
        // Listening begins before looking, so that nothing is missed in between.
        vacated.as_mut().enable();
        match registry.place(id, request.wanted, seats) {
            Ok(places) => return Ok(places),
            Err(NoPlace::Missing(each)) => return Err(Failure::NoTarget(each)),
            Err(NoPlace::Busy) => vacated.await,
        }
    }
}

async fn run(cluster: &Cluster, mut session: Session, mut watched: Watched) {
    let ended = session.drive(&cluster.cut, &mut watched).await;
    watched.closed(&session.relay.stats());
    *cluster.calibration.lock() = session.relay.calibration().clone();
    let finished = match &ended {
        Ok(End::Finished(finish)) => {
            watched.finished(*finish);
            Some(session.finished(*finish))
        }
        Ok(End::Gone) | Err(_) => None,
    };
    let tokens = session.generated();
    let Session {
        id,
        places,
        opens,
        delivery,
        ..
    } = session;
    close(cluster, id, places, opens);
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

/// Frees the session on every worker. An open call that is still under way may be carried out behind the close, so it
/// is closed once more when it has ended.
fn close(
    cluster: &Cluster,
    id: SessionId,
    places: Places,
    mut opens: FuturesUnordered<open::Opening>,
) {
    if !opens.is_empty() {
        let links: Vec<_> = places.iter().map(|place| Arc::clone(&place.link)).collect();
        let closing = async move {
            while let Some((key, _)) = opens.next().await {
                if let Some(link) = links.iter().find(|link| link.key == key) {
                    link.outbox.put(id, Down::Close);
                }
            }
        };
        // A worker that hangs answers no open call, and must not hold up the drain.
        let cut = cluster.cut.clone();
        (cluster.drain).spawn(cut.run_until_cancelled_owned(closing));
    }
    drop(places);
}

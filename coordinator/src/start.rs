//! From an accepted request to a running session, and from its end to the client's last message.

use std::sync::Arc;
use std::time::Duration;

use control::fleet::Need;
use control::placement::TargetNeed;
use control::session::{Patience, SessionMachine};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proto::v1;
use speculation::message::{SessionId, Term};
use speculation::relay::{Relay, RelayConfig};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::client::Client;
use crate::cluster::Cluster;
use crate::delivery::Delivery;
use crate::encode::Encoding;
use crate::failure::Failure;
use crate::fleet_handle::Entry;
use crate::history;
use crate::mailbox::{MailboxMaker, Received};
use crate::open::Opening;
use crate::registry::{Registry, Requester, Unplaced};
use crate::request::Request;
use crate::request_metrics::RequestMetrics;
use crate::reservation::ReservedWorker;
use crate::session_driver::{Beginning, End, SessionDriver};
use crate::worker_stream::ToWorker;

/// Messages from all workers of a session that may wait for it. It is only full when the session has not run for
/// hundreds of model steps.
const INBOX: usize = 1024;

/// One completion of a request, taken in.
pub(crate) struct Completion {
    pub(crate) request: Arc<Request>,
    pub(crate) prompt: Encoding,
    /// Which one, from 0.
    pub(crate) number: u32,
    pub(crate) entry: Entry,
    /// When the client stops waiting.
    pub(crate) deadline: Option<Instant>,
    pub(crate) client: Client,
    pub(crate) metrics: RequestMetrics,
}

/// Serves one completion to its end.
pub(crate) async fn serve(cluster: Arc<Cluster>, completion: Completion) {
    let Completion {
        request,
        prompt,
        number,
        entry,
        deadline,
        client,
        mut metrics,
    } = completion;
    let stopping = cluster.drain.stopping();
    let late = async || match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    };
    let asked = Asked {
        request: &request,
        prompt,
        number,
        deadline,
        client: &client,
    };
    let prepared = tokio::select! {
        () = client.closed() => return,
        () = stopping => Err(Failure::Stopping),
        () = late() => Err(Failure::Deadline { tokens: 0 }),
        prepared = prepare(&cluster, asked, entry, &mut metrics) => prepared,
    };
    match prepared {
        Ok((id, driver)) => run(&cluster, id, driver, metrics).await,
        Err(failure) => refuse(failure, metrics, &client).await,
    }
}

/// Tells the client why there is no session.
async fn refuse(failure: Failure, mut metrics: RequestMetrics, client: &Client) {
    let status = failure.into();
    metrics.failed(&status);
    let _ = client.send(Err(status)).await;
}

/// One completion of a request, as the session gets it.
struct Asked<'a> {
    request: &'a Request,
    prompt: Encoding,
    number: u32,
    deadline: Option<Instant>,
    client: &'a Client,
}

async fn prepare(
    cluster: &Cluster,
    asked: Asked<'_>,
    mut entry: Entry,
    metrics: &mut RequestMetrics,
) -> Result<(SessionId, SessionDriver), Failure> {
    let Asked {
        request,
        prompt,
        number,
        deadline,
        client,
    } = asked;
    let registry = &cluster.registry;
    let prompt = prompt.await?;
    let prompt_len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    let id = cluster.next_session();
    let (sender, inbox) = mpsc::channel::<Received>(INBOX);
    let mailboxes = MailboxMaker {
        inbox: sender,
        wake: Arc::new(Notify::new()),
    };
    let received = request.received.as_ref();
    let ids = received.map_or(&[][..], |received| &received.ids);
    let need = Need {
        wanted: request.wanted,
        turn: entry.turn(),
        numerics: received.map(|received| received.numerics_id.as_str()),
        // Without its last token, which may take the last position.
        tokens: prompt_len.saturating_add(ids.len().saturating_sub(1) as u32),
        positions: request.expected_positions(
            prompt_len,
            prompt_len.saturating_add(ids.len() as u32),
            cluster.expected_tokens(),
        ),
    };
    let requester = Requester {
        session: id,
        mailboxes: &mailboxes,
    };
    let patience = cluster.policy.failover_wait;
    let reserved = place(registry, requester, &need, (&mut entry, patience)).await?;
    let target = &(reserved.first().expect("the target comes first").stream).hello;
    let stopping = request.stopping(prompt_len, target);
    if ids.len() > (stopping.max_len - prompt_len) as usize {
        let given = format!("{} tokens", ids.len());
        let allowed = format!("at most {}", stopping.max_len - prompt_len);
        return Err(Failure::parameter("resume.token_ids", given, allowed));
    }
    metrics.placed(id, &target.model, prompt_len as usize, ids.len());
    let mut sampling = request.sampling.clone();
    sampling.params.choice += number;
    let mut delivery = Delivery::new(
        client.clone(),
        sampling.params.choice,
        registry.tokenizer().stream(),
        request.stops.clone(),
        sampling.shaping.min_tokens,
    );
    delivery.skip(ids);
    let started = v1::Started {
        session: id.0,
        seed: sampling.params.seed,
        prompt_tokens: prompt_len,
        system_fingerprint: target.numerics_id.clone(),
        prompt_token_ids: prompt.to_vec(),
        lossy: !request.strategy.settings.rule.is_lossless(),
    };
    let max_len = stopping.max_len;
    let positions = need.positions.min(max_len);
    let relay = Relay::new(RelayConfig {
        session: id,
        text: [&prompt[..], ids].concat(),
        stopping,
        scoring: request.scoring,
        strategy: request.strategy.clone(),
        vocab: registry.tokenizer().vocabulary().len() as u32,
    });
    let relay = relay
        .with_calibration(cluster.calibrations())
        .with_history(history::key(&cluster.policy.tenant, &request.history))
        .with_recording(cluster.policy.record);
    let patience = Patience {
        failover: cluster.policy.failover_wait,
        client: cluster.policy.park_after,
    };
    let beginning = Beginning {
        id,
        machine: SessionMachine::new(relay, request.wanted, prompt.len(), patience),
        mailboxes,
        inbox,
        delivery,
        entry,
        started,
        sampling,
        is_open_ended: request.is_open_ended(),
        max_len,
        positions,
        trace: metrics.context().clone(),
        deadline,
    };
    Ok((id, SessionDriver::new(beginning, reserved)))
}

/// Reserves workers for the session, waiting while every target that would do is full, or as many run as may. While there
/// is no target any more, it waits for as long as `patience` says.
async fn place(
    registry: &Registry,
    requester: Requester<'_>,
    need: &Need<'_>,
    (entry, patience): (&mut Entry, Duration),
) -> Result<Vec<ReservedWorker>, Failure> {
    // Watching begins before looking, so that nothing is missed in between.
    let mut vacancies = registry.vacancies();
    let mut is_waiting = false;
    // When it gives up, of the time without a target that lasts.
    let mut gives_up = None;
    loop {
        let missing = match registry.place(requester, need) {
            Ok(reserved) => {
                entry.placed();
                return Ok(reserved);
            }
            Err(Unplaced::Failed(failure)) => return Err(failure),
            Err(Unplaced::Missing(failure)) => Some(failure),
            Err(Unplaced::Busy) => None,
        };
        if !is_waiting {
            entry.wait(TargetNeed {
                numerics: need.numerics.map(str::to_owned),
                not: None,
                context: need.tokens.saturating_add(1),
                positions: need.positions,
            });
            is_waiting = true;
            continue;
        }
        let Some(failure) = missing else {
            gives_up = None;
            vacancies.changed().await;
            continue;
        };
        let until = *gives_up.get_or_insert_with(|| Instant::now() + patience);
        if (tokio::time::timeout_at(until, vacancies.changed()).await).is_err() {
            return Err(failure);
        }
    }
}

async fn run(
    cluster: &Cluster,
    id: SessionId,
    mut driver: SessionDriver,
    mut metrics: RequestMetrics,
) {
    let ended = driver.drive(cluster, &mut metrics).await;
    metrics.closed(&driver.relay().stats());
    cluster.learn(driver.relay().calibration().clone());
    if let Some((temperature, recording)) = driver.take_recording() {
        cluster.record(temperature, &recording);
    }
    let finished = match &ended {
        Ok(End::Finished(finish)) => {
            if driver.is_open_ended() {
                cluster.learn_tokens(driver.generated());
            }
            let finished = driver.finished(*finish);
            metrics.finished(*finish, finished.completion_tokens);
            Some(finished)
        }
        Ok(End::Left) | Err(_) => None,
    };
    let tokens = driver.generated();
    let term = driver.closing_term();
    let (delivery, mut entry, opens) = driver.end();
    close(cluster, (id, term), opens);
    let delivering = async move {
        match (ended, finished) {
            (Ok(_), Some(finished)) => {
                tracing::debug!(session = id.0, tokens, reason = finished.reason, "finished");
                delivery.finish(finished).await;
            }
            (Ok(_), None) => tracing::debug!(session = id.0, tokens, "the client disconnected"),
            (Err(failure), _) => {
                tracing::warn!(session = id.0, tokens, %failure, "a request failed");
                let is_unread = matches!(failure, Failure::Unread(_));
                let status = Status::from(failure);
                metrics.failed(&status);
                match is_unread {
                    true => delivery.give_up(status),
                    false => delivery.fail(status).await,
                }
            }
        }
    };
    tokio::pin!(delivering);
    // Nobody waits for a client that does not read the end.
    if (timeout(cluster.policy.park_after, &mut delivering).await).is_err() {
        entry.park();
        delivering.await;
    }
}

/// An open call that is still under way may be carried out behind the session's close: the session is closed once more
/// when the call has ended, under the last term that was given out.
fn close(cluster: &Cluster, (id, term): (SessionId, Term), mut opens: FuturesUnordered<Opening>) {
    if opens.is_empty() {
        return;
    }
    let closing = async move {
        while let Some(opened) = opens.next().await {
            (opened.stream.outbox).put(id, ToWorker::Close(term));
        }
    };
    // A worker that hangs answers no open call, and must not hold up the drain.
    let cut = cluster.cut.clone();
    (cluster.drain).spawn(cut.run_until_cancelled_owned(closing));
}

//! The gRPC service `Worker`: from the wire to the model thread and back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, StreamExt};
use proto::v1::worker_server::{Worker, WorkerServer};
use proto::{
    MAX_FRAME_BYTES, MAX_REQUEST_BYTES, MAX_SESSIONS_PER_FRAME, OLDEST_PROTOCOL, PROTOCOL, inward,
    outward, stream, v1,
};
use runtime::{Drain, Readiness, TraceContext};
use tonic::{Request, Response, Status, Streaming};

use crate::admitted::Admitted;
use crate::handle::WorkerHandle;
use crate::stream::StreamOver;

/// The service of one worker.
#[derive(Clone, Debug)]
pub struct WorkerService {
    handle: WorkerHandle,
    /// Names this process in handshakes; 0 if there were no random numbers.
    instance: u64,
    /// The number of the next stream.
    streams: Arc<AtomicU64>,
    drain: Drain,
    admitted: Admitted,
}

impl WorkerService {
    pub(crate) fn new(handle: WorkerHandle, drain: &Drain, readiness: &Readiness) -> Self {
        WorkerService {
            handle,
            instance: runtime::seed::fresh().unwrap_or_default(),
            streams: Arc::new(AtomicU64::new(1)),
            drain: drain.clone(),
            admitted: Admitted::new(readiness),
        }
    }
}

/// The service, ready to be added to a server. `readiness` is held back while coordinators refuse this worker.
pub fn service(
    handle: WorkerHandle,
    drain: &Drain,
    readiness: &Readiness,
) -> WorkerServer<WorkerService> {
    // Prompts are the largest thing a coordinator sends.
    WorkerServer::new(WorkerService::new(handle, drain, readiness))
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES)
}

/// Refuses a peer that speaks no protocol that this version speaks.
fn check_protocol(peer: v1::HelloRequest) -> Result<(), Status> {
    let (oldest, newest) = (peer.oldest_protocol, peer.protocol);
    if newest < OLDEST_PROTOCOL || PROTOCOL < oldest {
        return Err(Status::failed_precondition(format!(
            "protocol versions {oldest} to {newest} of the coordinator and {OLDEST_PROTOCOL} to {PROTOCOL} of this worker \
             do not overlap; use binaries of the same version"
        )));
    }
    Ok(())
}

/// The answer to whoever wants something new of a worker that drains.
fn stopping() -> Status {
    Status::unavailable("the worker is shutting down")
}

#[tonic::async_trait]
impl Worker for WorkerService {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        if self.drain.is_stopping() {
            return Err(stopping());
        }
        let compatible = check_protocol(request.into_inner());
        self.admitted.handle_hello(&self.drain);
        compatible?;
        Ok(Response::new(outward::hello(
            &self.handle.info,
            self.instance,
        )))
    }

    async fn open(
        &self,
        request: Request<v1::OpenRequest>,
    ) -> Result<Response<v1::OpenReply>, Status> {
        if self.drain.is_stopping() {
            return Err(stopping());
        }
        let trace = TraceContext::from_metadata(request.metadata());
        let request = request.into_inner();
        let name = inward::stream_name(request.coordinator, request.incarnation)?;
        let (spec, sampling) = inward::open(request)?;
        let handle = self.handle.traced(trace);
        handle.open(name, spec, sampling).await?;
        Ok(Response::new(v1::OpenReply {}))
    }

    type LinkStream = Pin<Box<dyn Stream<Item = Result<v1::WorkerFrame, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<v1::CoordinatorFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let (name, frames) = stream::coordinator_frames(request.into_inner()).await?;
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let tasks = self.drain.tracker();
        let frames = Box::pin(frames);
        let reports = self.handle.stream(name, number, frames, tasks).await;
        tracing::info!(stream = number, "stream {name} of a coordinator is up");
        let admission = self.admitted.handle_stream();
        let (handle, stopping) = (self.handle.clone(), self.drain.stopping());
        let drained = async move {
            stopping.await;
            handle.idle().await;
        };
        let frames = futures::stream::unfold(Some(reports), |reports| async move {
            let reports = reports?;
            match reports.next(MAX_SESSIONS_PER_FRAME).await {
                Ok(messages) => {
                    let frames = stream::worker_frames(messages);
                    Some((frames.into_iter().map(Ok).collect(), Some(reports)))
                }
                Err(StreamOver(reason)) => {
                    Some((vec![Err(Status::invalid_argument(reason?))], None))
                }
            }
        });
        let frames = frames.flat_map(futures::stream::iter);
        // The admission ends with the stream.
        let frames = frames.take_until(drained).inspect(move |_| {
            let _ = &admission;
        });
        Ok(Response::new(Box::pin(frames)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn a_peer_without_a_common_protocol_is_refused_with_both_ranges() {
        let peer = |oldest_protocol, protocol| {
            check_protocol(v1::HelloRequest {
                protocol,
                oldest_protocol,
            })
        };
        for (oldest, newest) in [
            (PROTOCOL, PROTOCOL),
            (0, OLDEST_PROTOCOL),
            (PROTOCOL, u32::MAX),
        ] {
            assert!(peer(oldest, newest).is_ok(), "{oldest} to {newest}");
        }
        // The first is a peer from before there were ranges.
        for (oldest, newest) in [(0, OLDEST_PROTOCOL - 1), (PROTOCOL + 1, PROTOCOL + 3)] {
            let refused = peer(oldest, newest).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
            let ours = format!("{OLDEST_PROTOCOL} to {PROTOCOL}");
            let theirs = format!("{oldest} to {newest}");
            assert!(refused.message().contains(&ours), "{refused}");
            assert!(refused.message().contains(&theirs), "{refused}");
        }
    }
}

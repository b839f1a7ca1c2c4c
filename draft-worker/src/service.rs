//! Service `Draft` on the wire.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::sampling::SamplingParams;
use futures::{Stream, StreamExt};
use proto::v1::draft_server::{Draft, DraftServer};
use proto::{MAX_FRAME_BYTES, MAX_REQUEST_BYTES, MAX_SESSIONS_PER_FRAME, inward, outward, v1};
use runtime::Drain;
use speculation::message::{Addressed, DraftReport};
use tonic::{Request, Response, Status, Streaming};
use worker::{LinkEnd, Remedy, WorkerHandle};

/// The service, ready to be added to a server.
pub fn service(handle: WorkerHandle<DraftReport>, drain: &Drain) -> DraftServer<DraftService> {
    let service = DraftService {
        handle,
        links: Arc::new(AtomicU64::new(1)),
        drain: drain.clone(),
    };
    // Prompts are the largest thing a coordinator sends.
    DraftServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES)
}

/// See [`service`].
#[derive(Clone, Debug)]
pub struct DraftService {
    handle: WorkerHandle<DraftReport>,
    links: Arc<AtomicU64>,
    drain: Drain,
}

#[tonic::async_trait]
impl Draft for DraftService {
    async fn hello(
        &self,
        _request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        Ok(Response::new(outward::hello("draft", &self.handle.info)))
    }

    async fn open(
        &self,
        request: Request<v1::OpenRequest>,
    ) -> Result<Response<v1::OpenReply>, Status> {
        if self.drain.is_stopping() {
            return Err(Status::unavailable("the worker is shutting down"));
        }
        let request = request.into_inner();
        let coordinator = request.coordinator;
        let (spec, sampling) = inward::open(request)?;
        let params = SamplingParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            choice: sampling.choice,
        };
        let opened = self.handle.open(coordinator, spec, params).await;
        opened.map_err(|error| {
            let message = error.to_string();
            match error.remedy() {
                Remedy::Change => Status::invalid_argument(message),
                Remedy::Later => Status::resource_exhausted(message),
                Remedy::Link => Status::failed_precondition(message),
                Remedy::Elsewhere => Status::unavailable(message),
            }
        })?;
        Ok(Response::new(v1::OpenReply {}))
    }

    type LinkStream = Pin<Box<dyn Stream<Item = Result<v1::DraftFrame, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<v1::RelayFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?;
        let coordinator = (first.as_ref().map(|frame| frame.coordinator))
            .filter(|&id| id != 0)
            .ok_or_else(|| {
                Status::invalid_argument("the first frame has to name the coordinator")
            })?;
        let link = self.links.fetch_add(1, Ordering::Relaxed);
        let first = futures::stream::iter(first.map(Ok));
        let relayed = first.chain(frames).map(|frame| {
            let frame = frame.map_err(|status| status.to_string())?;
            inward::relay_frame(frame).map_err(|error| error.to_string())
        });
        let (end, pump) = self.handle.link(coordinator, link, Box::pin(relayed));
        tracing::info!(link, "coordinator {coordinator:x} linked");
        self.drain.spawn(pump);
        let (handle, stopping) = (self.handle.clone(), self.drain.stopping());
        let over = async move {
            stopping.await;
            handle.idle().await;
        };
        Ok(Response::new(Box::pin(outgoing(end).take_until(over))))
    }
}

/// The frames of a link, one for each time that something is new.
fn outgoing(end: LinkEnd<DraftReport>) -> impl Stream<Item = Result<v1::DraftFrame, Status>> {
    futures::stream::unfold(end, |end| async move {
        let mut frame = v1::DraftFrame::default();
        for news in end.next(MAX_SESSIONS_PER_FRAME).await {
            let Addressed {
                session,
                term,
                message,
            } = news;
            match message {
                Ok(message) => {
                    let report = Addressed {
                        session,
                        term,
                        message,
                    };
                    frame.reports.push(outward::draft_report(report));
                }
                Err(message) => {
                    let fault = Addressed {
                        session,
                        term,
                        message,
                    };
                    frame.faults.push(outward::fault(fault));
                }
            }
        }
        Some((Ok(frame), end))
    })
}

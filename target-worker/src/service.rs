//! Service `Verify` on the wire.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::sampling::{Recipe, SamplingParams, Shaping};
use futures::{Stream, StreamExt};
use proto::stream::{self, UpFrame};
use proto::v1::verify_server::{Verify, VerifyServer};
use proto::{MAX_FRAME_BYTES, MAX_REQUEST_BYTES, MAX_SESSIONS_PER_FRAME, inward, outward, v1};
use runtime::{Drain, TraceContext};
use speculation::message::VerifyReport;
use tonic::{Request, Response, Status, Streaming};
use worker::{LinkOver, WorkerHandle};

/// See [`service`].
#[derive(Clone, Debug)]
pub struct VerifyService {
    handle: WorkerHandle<VerifyReport>,
    role: &'static str,
    links: Arc<AtomicU64>,
    drain: Drain,
}

/// The service, ready to be added to a server; `role` is told in the handshake.
pub fn service(
    handle: WorkerHandle<VerifyReport>,
    role: &'static str,
    drain: &Drain,
) -> VerifyServer<VerifyService> {
    let service = VerifyService {
        handle,
        role,
        links: Arc::new(AtomicU64::new(1)),
        drain: drain.clone(),
    };
    // Prompts are the largest thing a coordinator sends.
    VerifyServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES)
}

#[tonic::async_trait]
impl Verify for VerifyService {
    async fn hello(
        &self,
        _request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        Ok(Response::new(outward::hello(self.role, &self.handle.info)))
    }

    async fn open(
        &self,
        request: Request<v1::OpenRequest>,
    ) -> Result<Response<v1::OpenReply>, Status> {
        if self.drain.is_stopping() {
            return Err(Status::unavailable("the worker is shutting down"));
        }
        let trace = TraceContext::from_metadata(request.metadata());
        let request = request.into_inner();
        let name = inward::link_name(request.coordinator, request.incarnation)?;
        let (spec, sampling) = inward::open(request)?;
        let params = SamplingParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            choice: sampling.choice,
        };
        let shaping = Shaping {
            bias: sampling.bias,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            min_tokens: sampling.min_tokens,
            stop_ids: spec.stopping.stop_ids.clone(),
        };
        let recipe = Recipe::new(params, shaping);
        (self.handle.traced(trace)).open(name, spec, recipe).await?;
        Ok(Response::new(v1::OpenReply {}))
    }

    type LinkStream = Pin<Box<dyn Stream<Item = Result<v1::VerifyFrame, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<v1::RelayFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let (name, frames) = stream::relayed(request.into_inner()).await?;
        let link = self.links.fetch_add(1, Ordering::Relaxed);
        let (end, pump) = self.handle.link(name, link, Box::pin(frames));
        tracing::info!(link, "coordinator {name} linked");
        self.drain.spawn(pump);
        let (handle, stopping) = (self.handle.clone(), self.drain.stopping());
        let drained = async move {
            stopping.await;
            handle.idle().await;
        };
        let frames = futures::stream::unfold(Some(end), |end| async move {
            let end = end?;
            match end.next(MAX_SESSIONS_PER_FRAME).await {
                Ok(news) => {
                    let frames = v1::VerifyFrame::frames(news);
                    Some((frames.into_iter().map(Ok).collect(), Some(end)))
                }
                Err(LinkOver(reason)) => Some((vec![Err(Status::invalid_argument(reason?))], None)),
            }
        });
        let frames = frames.flat_map(futures::stream::iter);
        Ok(Response::new(Box::pin(frames.take_until(drained))))
    }
}

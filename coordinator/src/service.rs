//! The `Generation` service: what clients call.

use std::sync::Arc;

use proto::v1;
use proto::v1::generation_server::Generation;
use runtime::TraceContext;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::admission::Ticket;
use crate::delivery::{CLIENT_EVENTS, Item};
use crate::failure::Failure;
use crate::request::{self, Request as Asked};
use crate::start::{self, Cluster};
use crate::watched::Watched;

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) cluster: Arc<Cluster>,
}

#[tonic::async_trait]
impl Generation for Service {
    type GenerateStream = ReceiverStream<Item>;

    /// Parameters and places are checked before this returns; what depends on a worker fails in the stream.
    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let cluster = Arc::clone(&self.cluster);
        let parent = TraceContext::from_metadata(request.metadata());
        let request = request.into_inner();
        let mut watched = Watched::arrived(&cluster.metrics, &parent, &request);
        let (request, ticket) = watched.decided(enter(&cluster, request))?;
        let (client, events) = mpsc::channel(CLIENT_EVENTS);
        let drain = cluster.drain.clone();
        let logged = watched.log_span();
        drain.spawn(start::serve(cluster, request, ticket, client, watched).instrument(logged));
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn cluster(
        &self,
        _: Request<v1::ClusterRequest>,
    ) -> Result<Response<v1::ClusterReply>, Status> {
        Ok(Response::new(v1::ClusterReply {
            workers: self.cluster.registry.describe(),
            sessions: self.cluster.admission.running() as u32,
            waiting: self.cluster.admission.queued() as u32,
            generated_tokens: self.cluster.metrics.generation_tokens.get(),
            uptime_us: self.cluster.started.elapsed().as_micros() as u64,
        }))
    }
}

/// The door: what is wrong with a request, or that there is no room for it, is said at once.
fn enter(cluster: &Cluster, request: v1::GenerateRequest) -> Result<(Asked, Ticket), Failure> {
    if cluster.drain.is_stopping() {
        return Err(Failure::Stopping);
    }
    let vocab = cluster.registry.tokenizer().vocabulary().len();
    let request = request::parse(request, vocab, runtime::seed::fresh)?;
    let ticket = cluster.admission.enter()?;
    Ok((request, ticket))
}

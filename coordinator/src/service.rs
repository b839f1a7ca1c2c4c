//! The `Generation` service: what clients call.

use std::sync::Arc;

use proto::v1;
use proto::v1::generation_server::Generation;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::delivery::{CLIENT_EVENTS, Item};
use crate::failure::Failure;
use crate::request;
use crate::start::{self, Cluster};

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
        if cluster.drain.is_stopping() {
            return Err(Failure::Stopping.into());
        }
        let vocab = cluster.registry.tokenizer().vocabulary().len();
        let request = request::parse(request.into_inner(), vocab, runtime::seed::fresh)?;
        let ticket = cluster.admission.enter()?;
        let (client, events) = mpsc::channel(CLIENT_EVENTS);
        let drain = cluster.drain.clone();
        drain.spawn(start::serve(cluster, request, ticket, client));
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn cluster(
        &self,
        _: Request<v1::ClusterRequest>,
    ) -> Result<Response<v1::ClusterReply>, Status> {
        Ok(Response::new(v1::ClusterReply {
            workers: self.cluster.registry.describe(),
            sessions: self.cluster.admission.running() as u32,
        }))
    }
}

//! The `Generation` service: what clients call.

use std::sync::Arc;
use std::time::Duration;

use control::placement::ClientKey;
use proto::v1;
use proto::v1::generation_server::Generation;
use runtime::TraceContext;
use runtime::peer::Peer;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::client::{self, ClientStream};
use crate::client_key;
use crate::cluster::Cluster;
use crate::encode;
use crate::failure::Failure;
use crate::fleet_handle::Entry;
use crate::request::{self, Prompt, Request as Asked};
use crate::request_metrics::Arrival;
use crate::start::{self, Completion};

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) cluster: Arc<Cluster>,
}

#[tonic::async_trait]
impl Generation for Service {
    type GenerateStream = ClientStream;

    /// Parameters, and whether there is room, are checked before this returns; what depends on a worker fails in the stream.
    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let cluster = &self.cluster;
        let deadline = deadline(request.metadata());
        let parent = TraceContext::from_metadata(request.metadata());
        let from = client_key::of(request.extensions().get::<Peer>());
        let request = request.into_inner();
        let default = &cluster.policy.strategy;
        let arrival = Arrival::now(&cluster.metrics, parent, &request, default);
        let (request, prompt, entries) =
            enter(cluster, request, from).map_err(|failure| arrival.refused(failure))?;
        let completions = request.completions;
        let request = Arc::new(request);
        let prompt = encode::begin(Arc::clone(cluster), prompt);
        let (client, events) = client::stream(completions, cluster.policy.client_timeout);
        for (number, entry) in (0..).zip(entries) {
            let metrics = arrival.completion(number);
            let logged = metrics.log_span();
            let completion = Completion {
                request: Arc::clone(&request),
                prompt: prompt.clone(),
                number,
                entry,
                deadline,
                client: client.clone(),
                metrics,
            };
            let serving = start::serve(Arc::clone(cluster), completion);
            (cluster.drain).spawn(serving.instrument(logged));
        }
        Ok(Response::new(events))
    }

    async fn cluster(
        &self,
        _: Request<v1::ClusterRequest>,
    ) -> Result<Response<v1::ClusterReply>, Status> {
        let (running, waiting) = self.cluster.registry.completions();
        Ok(Response::new(v1::ClusterReply {
            workers: self.cluster.registry.describe(),
            sessions: running as u32,
            waiting: waiting as u32,
            generated_tokens: self.cluster.metrics.generation_tokens.get(),
            uptime_us: self.cluster.started.elapsed().as_micros() as u64,
        }))
    }

    async fn recording(
        &self,
        _: Request<v1::RecordingRequest>,
    ) -> Result<Response<v1::RecordingReply>, Status> {
        if self.cluster.policy.record == 0 {
            return Err(Status::failed_precondition(
                "this coordinator does not record; start it with --record N, the positions to keep",
            ));
        }
        let texts = self.cluster.recorded();
        Ok(Response::new(v1::RecordingReply { texts }))
    }
}

/// Takes a request in. A bad parameter, or the lack of room, is reported at once.
fn enter(
    cluster: &Cluster,
    request: v1::GenerateRequest,
    from: ClientKey,
) -> Result<(Asked, Prompt, Vec<Entry>), Failure> {
    if cluster.drain.is_stopping() {
        return Err(Failure::Stopping);
    }
    let vocab = cluster.registry.tokenizer().vocabulary().len();
    let (request, prompt) = request::parse(
        request,
        vocab,
        &cluster.policy.strategy,
        runtime::seed::fresh,
    )?;
    let request = request.stopping_at_tokens(cluster.registry.tokenizer());
    encode::check(cluster, &prompt)?;
    let completions = request.completions as usize;
    let entries = (cluster.registry).enter(completions, request.priority, from)?;
    Ok((request, prompt, entries))
}

/// When the client stops waiting, by its `grpc-timeout` header (gRPC over HTTP/2, "Timeout"): up to eight digits and a
/// unit. The transport itself only applies it to the first answer of a stream. What cannot be read is no deadline.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let after = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Instant::now().checked_add(after)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_read_as_the_protocol_writes_them() {
        let after = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata).map(|at| at - Instant::now())
        };
        assert_eq!(after("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            after("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for bad in ["", "S", "5", "1.5S", "123456789S", "-1S", "5s", "5µ"] {
            assert_eq!(after(bad), None, "{bad:?}");
        }
        assert_eq!(deadline(&MetadataMap::new()), None);
    }
}

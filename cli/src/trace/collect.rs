//! A collector for the time of one command, which traces requests of its own.

use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use runtime::{Drain, Listener, NetArgs, ServerLimits, serve};
use tonic::{Request, Response, Status};

use super::timeline::{self, Exported, Timeline};

/// Spans beyond this number are refused.
const MOST: usize = 1 << 20;

/// Receives spans until it is dropped.
pub(crate) struct Collector {
    spans: Arc<Mutex<Vec<Exported>>>,
    /// Where exporters find it.
    pub(crate) address: String,
}

struct Receiver(Arc<Mutex<Vec<Exported>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let Ok(mut spans) = self.0.lock() else {
            return Err(Status::internal("an earlier export failed"));
        };
        if spans.len() >= MOST {
            return Err(Status::resource_exhausted("there are too many spans"));
        }
        timeline::take(request.into_inner(), &mut spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a free port of this machine until `drain` stops.
    ///
    /// # Errors
    /// When no port can be bound.
    pub(crate) async fn start(drain: &Drain) -> Result<Collector> {
        let listener = Listener::bind(&NetArgs::default()).await?;
        let spans = Arc::new(Mutex::new(Vec::new()));
        let address = format!("http://{}", listener.local_addr());
        let router = serve::server(&ServerLimits::default()).add_service(
            TraceServiceServer::new(Receiver(Arc::clone(&spans)))
                .max_decoding_message_size(proto::MAX_REQUEST_BYTES),
        );
        drain.spawn(serve::serve(listener, router, drain.clone()));
        Ok(Collector { spans, address })
    }

    /// The trace with this id, of what has been received.
    ///
    /// # Errors
    /// When nothing of it was received.
    pub(crate) fn timeline(&self, trace: &str) -> Result<Timeline> {
        let spans = self.spans.lock().map_err(|_| anyhow!("an export failed"))?;
        let of_trace = spans.iter().filter(|span| span.trace == trace).cloned();
        Timeline::of(of_trace.collect(), trace)
            .ok_or_else(|| anyhow!("no span of the trace {trace} was received"))
    }
}

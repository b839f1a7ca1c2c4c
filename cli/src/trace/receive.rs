//! The receiving half of `--otlp-traces-endpoint`: every export becomes one line of a file.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use runtime::{Drain, Listener, NetArgs, ServerLimits, serve};
use tonic::{Request, Response, Status};

use crate::{End, console};

/// How long running exports may take at the end.
const GRACE: Duration = Duration::from_secs(2);

/// Arguments of `offshoot trace receive`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReceiveArgs {
    /// File for the spans
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to listen; the port of collectors is 4317
    #[command(flatten)]
    net: NetArgs,
}

#[derive(Clone)]
struct Receiver {
    file: Arc<Mutex<File>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut line = serde_json::to_string(&request.into_inner())
            .map_err(|error| Status::internal(error.to_string()))?;
        line.push('\n');
        let written = match self.file.lock() {
            Ok(mut file) => file.write_all(line.as_bytes()),
            Err(_) => return Err(Status::internal("an earlier export failed")),
        };
        match written {
            Ok(()) => Ok(Response::new(ExportTraceServiceResponse::default())),
            Err(error) => Err(Status::internal(format!("cannot write: {error}"))),
        }
    }
}

/// Receives spans until the process is asked to stop.
///
/// # Errors
/// When the file cannot be created or the address cannot be bound.
pub(crate) async fn run(args: ReceiveArgs) -> Result<End> {
    let file =
        File::create(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    let drain = Drain::new();
    drain.on_signals()?;
    let listener = Listener::bind(&args.net).await?;
    console::put(&format!("http://{}\n", listener.local_addr()))?;
    let receiver = Receiver {
        file: Arc::new(Mutex::new(file)),
    };
    let router = serve::server(&ServerLimits::default()).add_service(
        TraceServiceServer::new(receiver).max_decoding_message_size(proto::MAX_REQUEST_BYTES),
    );
    drain.spawn(serve::serve(listener, router, drain.clone()));
    drain.stopping().await;
    drain.shutdown(GRACE).await;
    Ok(End::Done)
}

//! The open call: prompts travel by it, so that the stream stays small.

use std::sync::Arc;
use std::time::Duration;

use decode::Sampling;
use futures::future::BoxFuture;
use proto::{outward, v1};
use runtime::TraceContext;
use speculation::message::{SessionSpec, Term};
use tonic::{Code, Request, Status};

use crate::worker_stream::WorkerStream;

/// Pauses before an open that found the worker full is tried again. A session's reservation becomes free when its close
/// is sent, which is a moment before the worker has freed what it held.
const FULL_PAUSES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(160),
];

/// An open call under way.
pub(crate) type Opening = BoxFuture<'static, Opened>;

/// How an open call has ended.
pub(crate) struct Opened {
    /// Where the session was to be opened.
    pub(crate) stream: Arc<WorkerStream>,
    /// Under which term. By now the session may have left that worker, or been given to it anew.
    pub(crate) term: Term,
    pub(crate) answer: Result<(), Status>,
}

/// Opens a session on a worker; what it does there belongs to `trace`. Ends when the stream is lost; then nobody asks for
/// the answer.
pub(crate) fn open(
    stream: Arc<WorkerStream>,
    spec: SessionSpec,
    sampling: Sampling,
    trace: TraceContext,
) -> Opening {
    Box::pin(async move {
        let term = spec.term;
        let request = outward::open(stream.name, spec, sampling);
        let opened = stream
            .lost
            .run_until_cancelled(open_patiently(&stream, request, &trace))
            .await;
        let answer = opened.unwrap_or_else(|| {
            let text = "the stream was lost while the session was opened";
            Err(Status::unavailable(text))
        });
        Opened {
            stream,
            term,
            answer,
        }
    })
}

async fn open_patiently(
    stream: &WorkerStream,
    request: v1::OpenRequest,
    trace: &TraceContext,
) -> Result<(), Status> {
    for pause in FULL_PAUSES {
        match open_once(stream, request.clone(), trace).await {
            Err(status) if status.code() == Code::ResourceExhausted => {
                tokio::time::sleep(pause).await;
            }
            decided => return decided,
        }
    }
    open_once(stream, request, trace).await
}

async fn open_once(
    stream: &WorkerStream,
    request: v1::OpenRequest,
    trace: &TraceContext,
) -> Result<(), Status> {
    let mut request = Request::new(request);
    trace.write_metadata(request.metadata_mut());
    stream.client.clone().open(request).await.map(|_| ())
}

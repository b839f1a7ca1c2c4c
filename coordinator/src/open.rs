//! The open call: prompts travel by it, so that the stream stays small.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use proto::{Sampling, outward, v1};
use runtime::TraceContext;
use speculation::message::{SessionSpec, Term};
use tonic::{Code, Request, Status};

use crate::link::{Client, Link};

/// Pauses before an open that found the worker full is tried again. A session's seat here becomes free when its close
/// is sent, which is a moment before the worker has freed it.
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
    pub(crate) link: Arc<Link>,
    /// Under which term. By now the session may have parted with that worker, or been given to it anew.
    pub(crate) term: Term,
    pub(crate) answer: Result<(), Status>,
}

/// Opens a session on a worker; what it does there belongs to `trace`. Ends when the link is lost; then nobody asks for the answer.
pub(crate) fn open(
    link: Arc<Link>,
    spec: SessionSpec,
    sampling: Sampling,
    trace: TraceContext,
) -> Opening {
    Box::pin(async move {
        let term = spec.term;
        let request = outward::open(link.name, spec, sampling);
        let opened = link
            .lost
            .run_until_cancelled(patiently(&link, request, &trace))
            .await;
        let answer = opened.unwrap_or_else(|| {
            let text = "the link was lost while the session was opened";
            Err(Status::unavailable(text))
        });
        Opened { link, term, answer }
    })
}

async fn patiently(
    link: &Link,
    request: v1::OpenRequest,
    trace: &TraceContext,
) -> Result<(), Status> {
    for pause in FULL_PAUSES {
        match once(link, request.clone(), trace).await {
            Err(status) if status.code() == Code::ResourceExhausted => {
                tokio::time::sleep(pause).await;
            }
            decided => return decided,
        }
    }
    once(link, request, trace).await
}

async fn once(link: &Link, request: v1::OpenRequest, trace: &TraceContext) -> Result<(), Status> {
    let mut request = Request::new(request);
    trace.write_metadata(request.metadata_mut());
    let opened = match link.client.clone() {
        Client::Draft(mut client) => client.open(request).await,
        Client::Verify(mut client) => client.open(request).await,
    };
    if let Err(status) = &opened
        && status.code() == Code::FailedPrecondition
    {
        // The worker knows of no link: whatever this side still holds is not one.
        link.lose();
    }
    opened.map(|_| ())
}

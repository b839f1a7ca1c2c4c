//! The async side of the model thread: opening sessions and taking over streams.

use std::sync::Arc;

use decode::{Rule, Sampling};
use flume::{Sender, TrySendError};
use futures::Stream;
use runtime::TraceContext;
use speculation::message::{CoordinatorFrame, SessionSpec, StreamName, WorkerInfo};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::OpenError;
use crate::event::{Event, OpenCall};
use crate::stream::{self, Reports};

/// Talks to the model thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    events: Sender<Event>,
    sessions: watch::Receiver<usize>,
    ended: CancellationToken,
    /// The trace that sessions opened through this handle belong to.
    trace: TraceContext,
    /// For the handshake.
    pub info: Arc<WorkerInfo>,
}

impl WorkerHandle {
    pub(crate) fn new(
        events: Sender<Event>,
        sessions: watch::Receiver<usize>,
        ended: CancellationToken,
        info: WorkerInfo,
    ) -> Self {
        WorkerHandle {
            events,
            sessions,
            ended,
            trace: TraceContext::none(),
            info: Arc::new(info),
        }
    }

    /// The same worker; sessions opened through the result belong to this trace.
    #[must_use]
    pub fn traced(&self, trace: TraceContext) -> Self {
        WorkerHandle {
            trace,
            ..self.clone()
        }
    }

    /// Events that wait for the model thread.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.events.len()
    }

    /// Sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        *self.sessions.borrow()
    }

    /// Opens a session on a stream that is up.
    ///
    /// # Errors
    /// When the worker cannot or must not serve it; nothing is held for it then.
    pub async fn open(
        &self,
        name: StreamName,
        spec: SessionSpec,
        sampling: impl Into<Sampling>,
    ) -> Result<(), OpenError> {
        let sampling = sampling.into();
        self.check(&spec, &sampling)?;
        let (reply, answer) = oneshot::channel();
        let call = OpenCall {
            name,
            spec,
            sampling,
            trace: self.trace.clone(),
            reply,
        };
        match self.events.try_send(Event::Open(Box::new(call))) {
            Ok(()) => answer.await.unwrap_or(Err(OpenError::Stopped)),
            Err(TrySendError::Full(_)) => Err(OpenError::Full("its inbox is full".to_owned())),
            Err(TrySendError::Disconnected(_)) => Err(OpenError::Stopped),
        }
    }

    /// Refuses what can be refused without the model thread.
    fn check(&self, spec: &SessionSpec, sampling: &Sampling) -> Result<(), OpenError> {
        let info = &self.info;
        if let Some(duty) = spec.duties.iter().find(|&duty| !info.duties.has(duty)) {
            let role = info.role;
            return Err(OpenError::Duty { role, duty });
        }
        let rule = spec.strategy.rule;
        if rule != Rule::Exact && info.numerics_id.starts_with("synthetic-") {
            return Err(OpenError::Rule(rule.name()));
        }
        let vocab = info.vocabulary_len;
        sampling.validate(vocab)?;
        if let Some(position) = spec.text.iter().position(|&token| token >= vocab) {
            let token = spec.text[position];
            return Err(OpenError::Token {
                token,
                position,
                vocab,
            });
        }
        let (max_len, context) = (spec.stopping.max_len, info.max_context);
        if max_len > context {
            return Err(OpenError::TooLong { max_len, context });
        }
        Ok(())
    }

    /// Takes over a coordinator's stream, whose number on this worker is `stream`. A task in `tasks` feeds the model
    /// thread until the stream ends or breaks; from then on its sessions wait for their coordinator, or for the end of
    /// their lease. Returns the reports to send. Sessions may be opened on the stream as soon as this returns.
    pub async fn stream<S>(
        &self,
        name: StreamName,
        stream: u64,
        frames: S,
        tasks: &TaskTracker,
    ) -> Reports
    where
        S: Stream<Item = Result<CoordinatorFrame, String>> + Unpin + Send + 'static,
    {
        let (events, over) = (self.events.clone(), self.ended.child_token());
        stream::start(events, over, (name, stream), frames, tasks).await
    }

    /// Waits until no session is open.
    pub async fn idle(&self) {
        let mut sessions = self.sessions.clone();
        // When the thread has ended, so have its sessions.
        let _ = sessions.wait_for(|&open| open == 0).await;
    }

    /// Waits until the model thread has ended, for whatever reason.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Ends the model thread once it has handled what is in its inbox. If the inbox is full, it ends with the process.
    pub fn stop(&self) {
        let _ = self.events.try_send(Event::Stop);
    }
}

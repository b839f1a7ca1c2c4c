//! The async side of the model thread: opening sessions and pumping links.

use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Sender, TrySendError};
use engine::EngineError;
use engine::sampling::{ParamError, Recipe};
use futures::{Stream, StreamExt};
use runtime::TraceContext;
use runtime::outbox::Outbox;
use speculation::message::{
    Addressed, LinkName, Relayed, SessionId, SessionSpec, Term, WorkerInfo,
};
use speculation::verify::WrongTask;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

// The wire's cap and the sampler's are one.
const _: () = assert!(engine::sampling::MAX_BIASED == speculation::limits::MAX_BIASED);

/// What a worker tells a coordinator about a session.
#[derive(Debug)]
pub enum Up<R> {
    /// Its newest state.
    Report(Term, R),
    /// It can no longer be served here.
    Fault(Term, String),
}

/// The slots of one link, filled by the model thread.
pub type LinkOutbox<R> = Arc<Outbox<SessionId, Up<R>>>;

/// What the model thread is told.
pub(crate) enum Event<R> {
    Open {
        name: LinkName,
        spec: Box<SessionSpec>,
        recipe: Box<Recipe>,
        trace: TraceContext,
        reply: oneshot::Sender<Result<(), OpenError>>,
    },
    Linked {
        name: LinkName,
        link: u64,
        outbox: LinkOutbox<R>,
    },
    Relayed {
        link: u64,
        relayed: Relayed,
    },
    /// Slots are vacant again.
    Taken,
    Lost {
        link: u64,
    },
    Stop,
}

/// A session cannot be opened.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// The session's task is for another kind of worker.
    #[error(transparent)]
    Task(#[from] WrongTask),
    /// A token id the model does not know.
    #[error("token {token} at position {position} is outside the vocabulary of {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Its position in the text.
        position: usize,
        /// Tokens in the vocabulary.
        vocab: u32,
    },
    /// The text may grow beyond the model's context.
    #[error("a text of up to {max_len} tokens was asked for; the model's context is {context}")]
    TooLong {
        /// What was asked for.
        max_len: u32,
        /// What the model can do.
        context: u32,
    },
    /// Every place is taken.
    #[error("the worker is full ({0}); try again later or add workers")]
    Full(String),
    /// There is no such link, or it was lost.
    #[error("coordinator {0} has no such link to this worker; open one first")]
    NotLinked(LinkName),
    /// The session is open already.
    #[error("session {0:?} is already open")]
    Duplicate(SessionId),
    /// The model thread is gone.
    #[error("the worker is shutting down")]
    Stopped,
}

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Self {
        let message = error.to_string();
        match error {
            OpenError::Param(_)
            | OpenError::Task(_)
            | OpenError::Token { .. }
            | OpenError::TooLong { .. }
            | OpenError::Duplicate(_) => Status::invalid_argument(message),
            OpenError::Full(_) => Status::resource_exhausted(message),
            OpenError::NotLinked(_) => Status::failed_precondition(message),
            OpenError::Stopped => Status::unavailable(message),
        }
    }
}

impl From<EngineError> for OpenError {
    fn from(error: EngineError) -> Self {
        OpenError::Full(error.to_string())
    }
}

/// Talks to the model thread. Cheap to clone.
#[derive(Debug)]
pub struct WorkerHandle<R> {
    events: Sender<Event<R>>,
    sessions: watch::Receiver<usize>,
    dead: CancellationToken,
    /// What opens through this handle belong to.
    trace: TraceContext,
    /// For the handshake.
    pub info: Arc<WorkerInfo>,
}

impl<R> Clone for WorkerHandle<R> {
    fn clone(&self) -> Self {
        WorkerHandle {
            events: self.events.clone(),
            sessions: self.sessions.clone(),
            dead: self.dead.clone(),
            trace: self.trace.clone(),
            info: Arc::clone(&self.info),
        }
    }
}

/// The two halves of a link share its end: when one is over, so is the other.
#[derive(Clone, Debug)]
struct Ending {
    over: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

/// The link is over; the reason is the other side's fault, if it was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOver(pub Option<String>);

/// The sending half of a link: what the model thread has to say. Dropping it ends the link.
#[derive(Debug)]
pub struct LinkEnd<R> {
    outbox: LinkOutbox<R>,
    events: Sender<Event<R>>,
    ending: Ending,
}

impl<R> Drop for LinkEnd<R> {
    fn drop(&mut self) {
        self.ending.over.cancel();
    }
}

impl<R> LinkEnd<R> {
    /// The newest states of up to `most` sessions, once there is at least one.
    ///
    /// # Errors
    /// When the link is over: its reading half has ended, or the model thread has.
    pub async fn next(&self, most: usize) -> Result<Vec<Addressed<Result<R, String>>>, LinkOver> {
        let taken = self.ending.over.run_until_cancelled(self.outbox.take(most));
        let Some(taken) = taken.await else {
            return Err(LinkOver(self.ending.reason.get().cloned()));
        };
        // A full inbox means that the thread is busy and will look at the slots anyway.
        let _ = self.events.try_send(Event::Taken);
        Ok(taken
            .into_iter()
            .map(|(session, up)| match up {
                Up::Report(term, report) => Addressed {
                    session,
                    term,
                    message: Ok(report),
                },
                Up::Fault(term, why) => Addressed {
                    session,
                    term,
                    message: Err(why),
                },
            })
            .collect())
    }
}

impl<R: Send + 'static> WorkerHandle<R> {
    pub(crate) fn new(
        events: Sender<Event<R>>,
        sessions: watch::Receiver<usize>,
        dead: CancellationToken,
        info: WorkerInfo,
    ) -> Self {
        WorkerHandle {
            events,
            sessions,
            dead,
            trace: TraceContext::none(),
            info: Arc::new(info),
        }
    }

    /// The same worker; what is opened through the result belongs to this trace.
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

    /// Opens a session on a link that is up; `recipe` is how it samples.
    pub async fn open(
        &self,
        name: LinkName,
        spec: SessionSpec,
        recipe: impl Into<Recipe>,
    ) -> Result<(), OpenError> {
        let recipe = recipe.into();
        let vocab = self.info.vocabulary_len;
        recipe.validate(vocab)?;
        if let Some(position) = spec.text.iter().position(|&token| token >= vocab) {
            let token = spec.text[position];
            return Err(OpenError::Token {
                token,
                position,
                vocab,
            });
        }
        let (max_len, context) = (spec.stopping.max_len, self.info.max_context);
        if max_len > context {
            return Err(OpenError::TooLong { max_len, context });
        }
        let (reply, answer) = oneshot::channel();
        let event = Event::Open {
            name,
            spec: Box::new(spec),
            recipe: Box::new(recipe),
            trace: self.trace.clone(),
            reply,
        };
        match self.events.try_send(event) {
            Ok(()) => answer.await.unwrap_or(Err(OpenError::Stopped)),
            Err(TrySendError::Full(_)) => Err(OpenError::Full("its inbox is full".to_owned())),
            Err(TrySendError::Disconnected(_)) => Err(OpenError::Stopped),
        }
    }

    /// Takes over a coordinator's stream. The returned end gives what is to be sent; the future feeds the model
    /// thread until the stream ends or breaks, then lets the coordinator's sessions go.
    pub fn link<S>(
        &self,
        name: LinkName,
        link: u64,
        mut frames: S,
    ) -> (LinkEnd<R>, impl Future<Output = ()> + Send + 'static)
    where
        S: Stream<Item = Result<Relayed, String>> + Unpin + Send + 'static,
    {
        let outbox = LinkOutbox::default();
        let ending = Ending {
            over: self.dead.child_token(),
            reason: Arc::default(),
        };
        let end = LinkEnd {
            outbox: Arc::clone(&outbox),
            events: self.events.clone(),
            ending: ending.clone(),
        };
        let events = self.events.clone();
        // Before anything is awaited: an open call may follow at once.
        let linked = Event::Linked { name, link, outbox };
        let linked = send(&events, linked);
        let pump = async move {
            if linked.is_ok() {
                let reading = read(&events, link, &mut frames, &ending.reason);
                ending.over.run_until_cancelled(reading).await;
                let _ = send(&events, Event::Lost { link });
            }
            ending.over.cancel();
        };
        (end, pump)
    }

    /// Waits until no session is open.
    pub async fn idle(&self) {
        let mut sessions = self.sessions.clone();
        // When the thread has gone, so have its sessions.
        let _ = sessions.wait_for(|&open| open == 0).await;
    }

    /// Waits until the model thread has ended, for whatever reason.
    pub async fn ended(&self) {
        self.dead.cancelled().await;
    }

    /// Ends the model thread once it has done what it was told before. One whose inbox is full ends with the process.
    pub fn stop(&self) {
        let _ = self.events.try_send(Event::Stop);
    }
}

/// Feeds the model thread until the stream ends or breaks.
async fn read<R, S>(events: &Sender<Event<R>>, link: u64, frames: &mut S, reason: &OnceLock<String>)
where
    S: Stream<Item = Result<Relayed, String>> + Unpin,
{
    while let Some(frame) = frames.next().await {
        match frame {
            Ok(relayed) => {
                if send(events, Event::Relayed { link, relayed }).is_err() {
                    return;
                }
            }
            Err(why) => {
                tracing::warn!(link, why, "link dropped");
                reason.get_or_init(|| why);
                return;
            }
        }
    }
}

/// Hands an event to the model thread. When its inbox is full this holds up the reading half of one link, and so, by
/// the transport's flow control, the coordinator that fills it.
fn send<R>(events: &Sender<Event<R>>, event: Event<R>) -> Result<(), ()> {
    match events.try_send(event) {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(event)) => {
            tokio::task::block_in_place(|| events.send(event)).map_err(|_| ())
        }
        Err(TrySendError::Disconnected(_)) => Err(()),
    }
}

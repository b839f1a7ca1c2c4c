//! The events that the model thread handles, and the inbox that it waits on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use decode::Sampling;
use flume::{Receiver, RecvTimeoutError};
use runtime::TraceContext;
use speculation::message::{CoordinatorFrame, SessionSpec, StreamName};
use tokio::sync::oneshot;

use crate::error::OpenError;
use crate::stream::StreamOutbox;

/// Events that may wait for the model thread. A stream whose next event does not fit waits.
pub(crate) const INBOX: usize = 1024;

/// Everything that can happen to a model thread.
pub(crate) enum Event {
    /// A coordinator opens a session.
    Open(Box<OpenCall>),
    /// A coordinator's stream is up.
    Stream {
        /// As the coordinator names it.
        name: StreamName,
        /// Its number on this worker.
        stream: u64,
        /// Where its sessions report.
        outbox: StreamOutbox,
    },
    /// A coordinator has sent updates of its sessions.
    Frame {
        /// The number of its stream.
        stream: u64,
        /// The updates, and the sessions it closes.
        frame: CoordinatorFrame,
        /// When it arrived.
        at: Instant,
    },
    /// Slots are vacant again.
    Taken,
    /// A stream is over.
    Lost {
        /// Its number.
        stream: u64,
    },
    /// The process is shutting down.
    Stop,
}

/// An open call that waits for its answer.
pub(crate) struct OpenCall {
    /// The stream that the session belongs to.
    pub(crate) name: StreamName,
    /// The session.
    pub(crate) spec: SessionSpec,
    /// How it samples.
    pub(crate) sampling: Sampling,
    /// The trace it belongs to.
    pub(crate) trace: TraceContext,
    /// Closed once the caller has given up.
    pub(crate) reply: oneshot::Sender<Result<(), OpenError>>,
}

/// The events that wait. Those that arrive during a step are looked at then, and handled after it.
pub(crate) struct Inbox {
    events: Receiver<Event>,
    set_aside: VecDeque<Event>,
}

impl Inbox {
    pub(crate) fn new(events: Receiver<Event>) -> Self {
        Inbox {
            events,
            set_aside: VecDeque::new(),
        }
    }

    /// The next event, if one has arrived.
    pub(crate) fn next(&mut self) -> Option<Event> {
        (self.set_aside.pop_front()).or_else(|| self.events.try_recv().ok())
    }

    /// Waits for the next event, for at most this long if there is a limit.
    ///
    /// # Errors
    /// When the time is over, or nobody is left who could send one.
    pub(crate) fn wait(&self, most: Option<Duration>) -> Result<Event, RecvTimeoutError> {
        match most {
            None => (self.events.recv()).map_err(|_| RecvTimeoutError::Disconnected),
            Some(most) => self.events.recv_timeout(most),
        }
    }

    /// Whether no more events can be set aside.
    pub(crate) fn is_full(&self) -> bool {
        self.set_aside.len() >= INBOX
    }

    /// Sets the next event aside if one has arrived and there is room, and shows it.
    pub(crate) fn set_aside(&mut self) -> Option<&Event> {
        if self.is_full() {
            return None;
        }
        let event = self.events.try_recv().ok()?;
        Some(self.keep(event))
    }

    /// Waits for the next event, sets it aside whether there is room or not, and shows it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub(crate) fn wait_aside(&mut self, most: Duration) -> Result<&Event, RecvTimeoutError> {
        let event = self.events.recv_timeout(most)?;
        Ok(self.keep(event))
    }

    fn keep(&mut self, event: Event) -> &Event {
        self.set_aside.push_back(event);
        &self.set_aside[self.set_aside.len() - 1]
    }
}

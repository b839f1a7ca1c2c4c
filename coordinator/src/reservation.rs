//! A session's reservation on a worker, with everything that belongs to it.

use std::sync::Arc;

use speculation::message::SessionId;

use crate::fleet_handle::Reserved;
use crate::mailbox::Mailbox;
use crate::worker_stream::WorkerStream;

/// A worker on which a session has a reservation: the stream that the reservation belongs to, and the mailbox by which the
/// session gets its reports. Dropping it closes the session there and gives the reservation back, whatever ended the session.
#[derive(Debug)]
pub(crate) struct ReservedWorker {
    session: SessionId,
    pub(crate) stream: Arc<WorkerStream>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Given back behind the close, so that whoever gets it next comes after that.
    pub(crate) reserved: Reserved,
}

impl ReservedWorker {
    /// From now on the session gets the reports of the worker.
    pub(crate) fn join(
        session: SessionId,
        stream: Arc<WorkerStream>,
        mailbox: Arc<Mailbox>,
        reserved: Reserved,
    ) -> Self {
        stream.join(session, Arc::clone(&mailbox));
        ReservedWorker {
            session,
            stream,
            mailbox,
            reserved,
        }
    }

    /// Why the worker is of no use to the session any more, if so.
    pub(crate) fn loss(&self) -> Option<Loss> {
        if !self.mailbox.is_lost() {
            None
        } else if self.stream.lost.is_cancelled() {
            Some(Loss::Stream)
        } else {
            Some(Loss::Behind)
        }
    }
}

/// How a session has lost a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The stream broke.
    Stream,
    /// The session's inbox was full, and a report was dropped.
    Behind,
}

impl Drop for ReservedWorker {
    fn drop(&mut self) {
        self.stream.leave(self.session);
    }
}

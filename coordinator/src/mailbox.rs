//! How one worker reaches a session: the reader and the writer of the worker's stream reach the session here without ever
//! waiting for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use speculation::message::{FromWorker, Term};
use speculation::relay::WorkerKey;
use tokio::sync::{Notify, mpsc};

use crate::worker_totals::Totals;

/// A worker's message as it arrives at the session.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) key: WorkerKey,
    pub(crate) term: Term,
    pub(crate) message: FromWorker,
}

/// Held by the session and by the stream, until either lets the other go.
#[derive(Debug)]
pub(crate) struct Mailbox {
    key: WorkerKey,
    inbox: mpsc::Sender<Received>,
    wake: Arc<Notify>,
    /// The term under which the session was opened there.
    term: AtomicU32,
    /// The session has something to say and its slot is filled.
    is_awaiting: AtomicBool,
    /// The stream is lost, or lost for this session. It is never used again.
    is_lost: AtomicBool,
    /// The totals that the session has received last of this worker.
    pub(crate) totals: Mutex<Totals>,
}

/// Makes the mailboxes of one session.
#[derive(Debug)]
pub(crate) struct MailboxMaker {
    /// What the session receives.
    pub(crate) inbox: mpsc::Sender<Received>,
    /// Notified when a slot was taken or a stream is lost.
    pub(crate) wake: Arc<Notify>,
}

impl MailboxMaker {
    /// One for the worker `key`.
    pub(crate) fn mailbox(&self, key: WorkerKey) -> Arc<Mailbox> {
        Arc::new(Mailbox {
            key,
            inbox: self.inbox.clone(),
            wake: Arc::clone(&self.wake),
            term: AtomicU32::new(0),
            is_awaiting: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            totals: Mutex::default(),
        })
    }
}

impl Mailbox {
    /// Hands the session a message. If its inbox is full, the session has fallen far behind and misses this one; reports
    /// are differences, so it cannot go on with this worker.
    pub(crate) fn deliver(&self, term: Term, message: FromWorker) {
        let received = Received {
            key: self.key,
            term,
            message,
        };
        if self.inbox.try_send(received).is_err() {
            self.lose();
        }
    }

    /// The session is opened there under this term.
    pub(crate) fn set_term(&self, term: Term) {
        self.term.store(term.0, Ordering::SeqCst);
    }

    /// The term under which it was opened.
    pub(crate) fn term(&self) -> Term {
        Term(self.term.load(Ordering::SeqCst))
    }

    /// The stream is lost.
    pub(crate) fn lose(&self) {
        self.is_lost.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Whether the stream is lost, or lost for this session.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    /// The session is to be woken when its slot is taken. It has to look at the slot once more after this, because the
    /// writer may just have taken it.
    pub(crate) fn await_taken(&self) {
        self.is_awaiting.store(true, Ordering::SeqCst);
    }

    /// The writer has taken the session's slot.
    pub(crate) fn handle_taken(&self) {
        if self.is_awaiting.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use futures::FutureExt;
    use speculation::message::Report;

    fn mailbox(room: usize) -> (Arc<Mailbox>, mpsc::Receiver<Received>, Arc<Notify>) {
        let (inbox, received) = mpsc::channel(room);
        let wake = Arc::new(Notify::new());
        let maker = MailboxMaker {
            inbox,
            wake: Arc::clone(&wake),
        };
        (maker.mailbox(WorkerKey(1)), received, wake)
    }

    fn report() -> FromWorker {
        FromWorker::Report(Report::default())
    }

    #[test]
    fn a_session_that_does_not_read_loses_the_worker_and_blocks_nobody() {
        let (mailbox, mut received, wake) = mailbox(2);
        mailbox.deliver(Term(1), report());
        mailbox.deliver(Term(1), report());
        assert!(!mailbox.is_lost());
        mailbox.deliver(Term(1), report());
        assert!(mailbox.is_lost());
        assert!(wake.notified().now_or_never().is_some(), "nobody was woken");
        assert_eq!(received.try_recv().unwrap().key, WorkerKey(1));
    }

    #[test]
    fn only_a_session_that_awaits_it_is_woken_and_only_once() {
        let (mailbox, _received, wake) = mailbox(1);
        mailbox.handle_taken();
        assert!(wake.notified().now_or_never().is_none());
        mailbox.await_taken();
        mailbox.handle_taken();
        assert!(wake.notified().now_or_never().is_some());
        mailbox.handle_taken();
        assert!(wake.notified().now_or_never().is_none());
    }
}

//! A session's seat on a link: how the link's reader and writer reach the session without waiting for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use speculation::ferry::Said;
use speculation::message::Term;
use speculation::relay::LinkKey;
use tokio::sync::{Notify, mpsc};

use crate::tally::Totals;

/// What a worker said, as it arrives at the session.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) key: LinkKey,
    pub(crate) term: Term,
    pub(crate) said: Said,
}

/// Held by the session and by the link; lives until either lets the other go.
#[derive(Debug)]
pub(crate) struct Seat {
    key: LinkKey,
    inbox: mpsc::Sender<Heard>,
    wake: Arc<Notify>,
    /// The term under which the session was opened there.
    term: AtomicU32,
    /// The session has something to say and its slot was taken.
    waits: AtomicBool,
    /// The link is lost, or lost for this session; it is never used again.
    gone: AtomicBool,
    /// The totals that the session heard last of this worker.
    pub(crate) totals: Mutex<Totals>,
}

/// Makes the seats of one session.
#[derive(Debug)]
pub(crate) struct SeatMaker {
    pub(crate) inbox: mpsc::Sender<Heard>,
    pub(crate) wake: Arc<Notify>,
}

impl SeatMaker {
    pub(crate) fn seat(&self, key: LinkKey) -> Arc<Seat> {
        Arc::new(Seat {
            key,
            inbox: self.inbox.clone(),
            wake: Arc::clone(&self.wake),
            term: AtomicU32::new(0),
            waits: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            totals: Mutex::default(),
        })
    }
}

impl Seat {
    /// Hands the session what a worker said. A session that is so far behind that its inbox is full has missed
    /// something, and reports are differences: it cannot go on with this worker.
    pub(crate) fn hear(&self, term: Term, said: Said) {
        let heard = Heard {
            key: self.key,
            term,
            said,
        };
        if self.inbox.try_send(heard).is_err() {
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

    /// The link is lost.
    pub(crate) fn lose(&self) {
        self.gone.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// The session wants to be woken when its slot is taken. It has to look at the slot once more after this, because
    /// the writer may just have been there.
    pub(crate) fn wait(&self) {
        self.waits.store(true, Ordering::SeqCst);
    }

    /// The writer has taken the session's slot.
    pub(crate) fn taken(&self) {
        if self.waits.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use futures::FutureExt;
    use speculation::message::DraftReport;

    fn seat(room: usize) -> (Arc<Seat>, mpsc::Receiver<Heard>, Arc<Notify>) {
        let (inbox, heard) = mpsc::channel(room);
        let wake = Arc::new(Notify::new());
        let maker = SeatMaker {
            inbox,
            wake: Arc::clone(&wake),
        };
        (maker.seat(LinkKey(1)), heard, wake)
    }

    fn report() -> Said {
        Said::Drafted(DraftReport::default())
    }

    #[test]
    fn a_session_that_does_not_listen_loses_the_link_and_blocks_nobody() {
        let (seat, mut heard, wake) = seat(2);
        seat.hear(Term(1), report());
        seat.hear(Term(1), report());
        assert!(!seat.is_gone());
        seat.hear(Term(1), report());
        assert!(seat.is_gone());
        assert!(wake.notified().now_or_never().is_some(), "nobody was told");
        assert_eq!(heard.try_recv().unwrap().key, LinkKey(1));
    }

    #[test]
    fn only_who_waits_is_woken_and_only_once() {
        let (seat, _heard, wake) = seat(1);
        seat.taken();
        assert!(wake.notified().now_or_never().is_none());
        seat.wait();
        seat.taken();
        assert!(wake.notified().now_or_never().is_some());
        seat.taken();
        assert!(wake.notified().now_or_never().is_none());
    }
}

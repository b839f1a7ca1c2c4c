//! Watches the inbox while a step is computed: a commit may make the step useless.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use control::host::{Batch, Host, Usefulness};
use flume::RecvTimeoutError;

use crate::event::{Event, Inbox};
use crate::stream::StreamSlots;
use crate::thread::Own;

/// Looks at the events that arrive during a step, to give it up once no part of it is of use.
pub(crate) struct Watch<'a> {
    pub(crate) host: &'a Host<StreamSlots, Own>,
    pub(crate) batch: &'a Batch,
    pub(crate) useful: &'a mut Usefulness,
    pub(crate) inbox: &'a mut Inbox,
}

impl Watch<'_> {
    /// Looks at the events that have arrived. `Break`: no part of the step is of use any more.
    pub(crate) fn look(&mut self) -> ControlFlow<()> {
        while let Some(event) = self.inbox.set_aside() {
            judge(self.host, self.batch, event, self.useful);
        }
        self.verdict()
    }

    /// Lets a paced step last as long as it should. `Break`: no part of the step is of use any more, or every handle is
    /// dropped.
    pub(crate) fn pad(&mut self, begun: Instant, pace: Duration) -> ControlFlow<()> {
        loop {
            self.verdict()?;
            let left = pace.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            if self.inbox.is_full() {
                std::thread::sleep(left);
                return ControlFlow::Continue(());
            }
            match self.inbox.wait_aside(left) {
                Ok(event) => judge(self.host, self.batch, event, self.useful),
                Err(RecvTimeoutError::Timeout) => return ControlFlow::Continue(()),
                Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    fn verdict(&self) -> ControlFlow<()> {
        if self.useful.is_gone() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn judge(host: &Host<StreamSlots, Own>, batch: &Batch, event: &Event, useful: &mut Usefulness) {
    if let Event::Frame { frame, .. } = event {
        host.judge(batch, frame, useful);
    }
}

//! Change notification: tells everybody who watches that something has changed, never what.

use tokio::sync::watch;

/// Announces changes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Notifier(watch::Sender<()>);

/// Waits for changes. Those since it last waited count, so nothing is missed between looking and waiting.
#[derive(Debug)]
pub(crate) struct Watcher(watch::Receiver<()>);

impl Default for Notifier {
    fn default() -> Self {
        Notifier(watch::Sender::new(()))
    }
}

impl Notifier {
    /// Something has changed.
    pub(crate) fn notify(&self) {
        self.0.send_replace(());
    }

    /// Watches from now on.
    pub(crate) fn watch(&self) -> Watcher {
        Watcher(self.0.subscribe())
    }
}

impl Watcher {
    /// Resolves when something has changed since the last time. Cancelling it loses no change.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The notifier is gone, so nothing will ever change.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn changes_before_the_wait_are_reported_once() {
        let notifier = Notifier::default();
        let mut watcher = notifier.watch();
        assert!(watcher.changed().now_or_never().is_none());
        notifier.notify();
        notifier.notify();
        assert!(watcher.changed().now_or_never().is_some());
        assert!(watcher.changed().now_or_never().is_none());
    }
}

//! A bell that many may listen to: it says that something has changed, never what.

use tokio::sync::watch;

/// Whoever rings it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct News(watch::Sender<()>);

/// Whoever listens. What rang before it last heard counts, so that nothing is missed between looking and waiting.
#[derive(Debug)]
pub(crate) struct Listener(watch::Receiver<()>);

impl News {
    pub(crate) fn new() -> Self {
        News(watch::Sender::new(()))
    }

    /// Something has changed.
    pub(crate) fn tell(&self) {
        self.0.send_replace(());
    }

    /// Begins to listen; what has changed before is not news.
    pub(crate) fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

impl Listener {
    /// Resolves when something has changed since the last time. Nothing is lost by dropping it half way.
    pub(crate) async fn heard(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could tell anything.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn what_rings_before_one_waits_is_heard_once() {
        let news = News::new();
        let mut listener = news.listen();
        assert!(listener.heard().now_or_never().is_none());
        news.tell();
        news.tell();
        assert!(listener.heard().now_or_never().is_some());
        assert!(listener.heard().now_or_never().is_none());
    }
}

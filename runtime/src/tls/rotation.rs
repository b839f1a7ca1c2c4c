//! The current identity, and reloading it when its files change.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::{ServerName, UnixTime};
use tokio::time::MissedTickBehavior;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::error::{TlsError, between, span};
use super::identity::{Contents, Files, Identity};
use super::{ClientAuth, Purpose};
use crate::Drain;

/// Time between two checks of the files.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Remaining validity below which a warning is logged, if the certificate has not been replaced by then.
const EXPIRES_SOON: Duration = Duration::from_secs(3600);

/// The TLS identity of this process. Clones share it.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: Files,
    /// The name to expect in servers' certificates, if not the host.
    expected: Option<ServerName<'static>>,
    current: ArcSwap<Current>,
}

/// An identity and the contents of the files it was built from.
struct Current {
    contents: Contents,
    identity: Identity,
}

/// The result of [`Tls::reload`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The files have not changed.
    Unchanged,
    /// The files changed while they were read; try again later.
    Unsettled,
    /// New handshakes use the new files.
    Changed,
}

/// The server side of an identity.
#[derive(Clone, Debug)]
pub struct Acceptor {
    tls: Tls,
    auth: ClientAuth,
}

impl fmt::Debug for Tls {
    /// Shows the paths of the files, never their contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.shared.files)
            .field("expected", &self.shared.expected)
            .finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn load(
        files: Files,
        expected: Option<ServerName<'static>>,
    ) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let identity = files.identity(&contents)?;
        Ok(Self {
            shared: Arc::new(Shared {
                files,
                expected,
                current: ArcSwap::from_pointee(Current { contents, identity }),
            }),
        })
    }

    /// The server side of this identity.
    ///
    /// # Errors
    /// When the identity was loaded for calling only.
    pub fn acceptor(&self, auth: ClientAuth) -> Result<Acceptor, TlsError> {
        match self.shared.files.purpose {
            Purpose::Serve | Purpose::ServeAndCall => Ok(Acceptor {
                tls: self.clone(),
                auth,
            }),
            Purpose::Call => Err(TlsError::Missing { flag: "--tls-cert" }),
        }
    }

    /// The name to expect in the certificate of the server at `host`.
    ///
    /// # Errors
    /// When `host` is neither a host name nor an address.
    pub(crate) fn expected(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        match &self.shared.expected {
            Some(name) => Ok(name.clone()),
            None => super::server_name(host),
        }
    }

    pub(crate) fn connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::clone(&self.shared.current.load().identity.client))
    }

    /// Reads the files again and switches to a new identity if they have changed. Blocks while it reads three small
    /// files.
    ///
    /// # Errors
    /// When a file cannot be read or used; the current identity is kept.
    pub fn reload(&self) -> Result<Reloaded, TlsError> {
        let files = &self.shared.files;
        let contents = files.read()?;
        if contents == self.shared.current.load().contents {
            return Ok(Reloaded::Unchanged);
        }
        // Files are replaced one after the other, or all at once by a symlink while we read them. Two equal reads rule
        // out a mixture of old and new files, which would only be reported as a key that does not match.
        if files.read()? != contents {
            return Ok(Reloaded::Unsettled);
        }
        let identity = files.identity(&contents)?;
        let new = Arc::new(Current { contents, identity });
        self.shared.current.store(new);
        Ok(Reloaded::Changed)
    }

    /// Watches the files until `drain` begins: reloads them every [`RELOAD_INTERVAL`], and at once on SIGHUP. Call it
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// When the signal handler cannot be installed.
    pub fn follow(&self, drain: &Drain) -> std::io::Result<()> {
        self.follow_every(RELOAD_INTERVAL, drain)
    }

    /// As [`Tls::follow`], with another interval.
    ///
    /// # Errors
    /// As [`Tls::follow`].
    pub fn follow_every(&self, interval: Duration, drain: &Drain) -> std::io::Result<()> {
        tracing::info!(
            cert = self.shared.files.own.as_ref().map(|(cert, _)| cert.display().to_string()),
            ca = %self.shared.files.ca.display(),
            expires_in = self.left().map(span),
            "all connections use TLS"
        );
        let mut hangup = Hangup::new()?;
        let stopping = drain.stopping();
        let mut watcher = Watcher {
            tls: self.clone(),
            logged: None,
            warned: false,
        };
        drain.spawn(async move {
            let mut tick = tokio::time::interval(interval);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            tokio::pin!(stopping);
            loop {
                tokio::select! {
                    () = &mut stopping => return,
                    _ = tick.tick() => {}
                    () = hangup.next() => watcher.logged = None,
                }
                watcher.check().await;
            }
        });
        Ok(())
    }

    /// How long the certificate is still valid.
    fn left(&self) -> Option<Duration> {
        let end = self.shared.current.load().identity.not_after?;
        Some(between(UnixTime::now(), end))
    }
}

impl Acceptor {
    /// The acceptor for the next handshake.
    pub(crate) fn current(&self) -> TlsAcceptor {
        let current = self.tls.shared.current.load();
        let config = (current.identity.server(self.auth))
            .expect("an acceptor is created only if certificate and key were given, and reloading requires both");
        TlsAcceptor::from(Arc::clone(config))
    }
}

/// Reloads the files, and logs each error once.
struct Watcher {
    tls: Tls,
    /// The error that was logged last, until the files are good again.
    logged: Option<String>,
    /// Whether the expiry of the current certificate has been logged.
    warned: bool,
}

impl Watcher {
    async fn check(&mut self) {
        let tls = self.tls.clone();
        let Ok(reloaded) = tokio::task::spawn_blocking(move || tls.reload()).await else {
            tracing::error!("reading the TLS files panicked; the current identity is kept");
            return;
        };
        match reloaded {
            Ok(Reloaded::Changed) => {
                self.logged = None;
                self.warned = false;
                tracing::info!(
                    expires_in = self.tls.left().map(span),
                    "loaded a new TLS identity for new connections"
                );
            }
            Ok(Reloaded::Unchanged) => self.logged = None,
            Ok(Reloaded::Unsettled) => {}
            Err(error) => {
                let message = error.to_string();
                if self.logged.as_ref() != Some(&message) {
                    tracing::error!(%error, "cannot use the new TLS files; the current identity is kept");
                    self.logged = Some(message);
                }
            }
        }
        if !self.warned && self.tls.left().is_some_and(|left| left < EXPIRES_SOON) {
            self.warned = true;
            tracing::warn!(
                expires_in = self.tls.left().map(span),
                "the TLS certificate expires soon; after that, peers refuse new connections"
            );
        }
    }
}

/// SIGHUP, which asks a process to reload its files, on systems that have it.
struct Hangup {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Hangup {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            signal: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if self.signal.recv().await.is_some() {
            return;
        }
        std::future::pending().await
    }
}

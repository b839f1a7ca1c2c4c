//! The identity in use, and how it follows its files.

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

/// How often the files are compared with what is in use.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// An own certificate that ends sooner than this is worth a warning, if nobody has replaced it until then.
const ENDS_SOON: Duration = Duration::from_secs(3600);

/// The identity of this process. Clones share it.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: Files,
    /// What servers have to be called, if not by their host.
    expected: Option<ServerName<'static>>,
    current: ArcSwap<Current>,
}

/// An identity and the contents of the files it was made from.
struct Current {
    contents: Contents,
    identity: Identity,
}

/// What a look at the files found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// They are what is in use.
    Unchanged,
    /// They changed while they were read; the next look will tell.
    Unsettled,
    /// New handshakes use what they say now.
    Changed,
}

/// The server's side of an identity.
#[derive(Clone, Debug)]
pub struct Acceptor {
    tls: Tls,
    auth: ClientAuth,
}

impl fmt::Debug for Tls {
    /// Names the files and never what is in them.
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

    /// What a server greets its peers with.
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

    /// Reads the files again and uses what they say, if it is new and good. Blocks for as long as reading three small
    /// files takes.
    ///
    /// # Errors
    /// When a file cannot be read or used; what was in use stays in use.
    pub fn reload(&self) -> Result<Reloaded, TlsError> {
        let files = &self.shared.files;
        let contents = files.read()?;
        if contents == self.shared.current.load().contents {
            return Ok(Reloaded::Unchanged);
        }
        // Whoever swaps the files swaps them one after the other, or a link under all of them between two of our
        // reads. A mixture would only be reported as a key that does not match.
        if files.read()? != contents {
            return Ok(Reloaded::Unsettled);
        }
        let identity = files.identity(&contents)?;
        let new = Arc::new(Current { contents, identity });
        self.shared.current.store(new);
        Ok(Reloaded::Changed)
    }

    /// Follows the files until `drain` begins: looks at them every [`RELOAD_INTERVAL`], and at once when the process
    /// gets a SIGHUP. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the system does not let the process watch the signal.
    pub fn follow(&self, drain: &Drain) -> std::io::Result<()> {
        self.follow_every(RELOAD_INTERVAL, drain)
    }

    /// As [`Tls::follow`], with another interval between two looks.
    ///
    /// # Errors
    /// As [`Tls::follow`].
    pub fn follow_every(&self, interval: Duration, drain: &Drain) -> std::io::Result<()> {
        tracing::info!(
            cert = self.shared.files.own.as_ref().map(|(cert, _)| cert.display().to_string()),
            ca = %self.shared.files.ca.display(),
            expires_in = self.left().map(span),
            "connections are encrypted"
        );
        let mut hangup = Hangup::new()?;
        let stopping = drain.stopping();
        let mut follower = Follower {
            tls: self.clone(),
            trouble: None,
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
                    () = hangup.next() => follower.trouble = None,
                }
                follower.look().await;
            }
        });
        Ok(())
    }

    /// How long the own certificate is still good.
    fn left(&self) -> Option<Duration> {
        let end = self.shared.current.load().identity.not_after?;
        Some(between(UnixTime::now(), end))
    }
}

impl Acceptor {
    /// What the next handshake is made with.
    pub(crate) fn current(&self) -> TlsAcceptor {
        let current = self.tls.shared.current.load();
        let config = (current.identity.server(self.auth))
            .expect("an acceptor exists only where certificate and key were given, and reloading needs both");
        TlsAcceptor::from(Arc::clone(config))
    }
}

/// Looks at the files and says once what is wrong with them.
struct Follower {
    tls: Tls,
    /// What was reported last and has not been mended.
    trouble: Option<String>,
    /// Whether the near end of the certificate in use was reported.
    warned: bool,
}

impl Follower {
    async fn look(&mut self) {
        let tls = self.tls.clone();
        let Ok(looked) = tokio::task::spawn_blocking(move || tls.reload()).await else {
            tracing::error!("reading the TLS files panicked; the identity in use stays");
            return;
        };
        match looked {
            Ok(Reloaded::Changed) => {
                self.trouble = None;
                self.warned = false;
                tracing::info!(
                    expires_in = self.tls.left().map(span),
                    "new TLS identity: connections from now on use it"
                );
            }
            Ok(Reloaded::Unchanged) => self.trouble = None,
            Ok(Reloaded::Unsettled) => {}
            Err(error) => {
                let trouble = error.to_string();
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(%error, "the new TLS files are no good; the identity in use stays");
                    self.trouble = Some(trouble);
                }
            }
        }
        if !self.warned && self.tls.left().is_some_and(|left| left < ENDS_SOON) {
            self.warned = true;
            tracing::warn!(
                expires_in = self.tls.left().map(span),
                "the TLS certificate ends soon; after that peers refuse new connections"
            );
        }
    }
}

/// The signal by which operators ask to read files again, where there is one.
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

//! Encryption between processes: TLS 1.3 in which both sides show a certificate.
//!
//! A process has one identity, three PEM files named by [`TlsArgs`]: its certificate, the key of it, and the
//! certificates of the authority that its peers' have to come from. It serves with that identity and calls others with
//! it. [`Tls`] holds what the files said last and follows them: who replaces the files changes what the *next*
//! handshake presents and trusts, and touches no connection that is open.
//!
//! The names in a server's certificate are compared with the host that was called. Which role a certificate was made
//! for is not looked at, except for what its extended key usage allows (serve, call, or both): whoever has a
//! certificate of the authority that may call, may call every process of the cluster.

mod error;
mod identity;
mod rotation;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rustls::pki_types::ServerName;

pub use error::{TlsError, explain};
pub use rotation::{Acceptor, RELOAD_INTERVAL, Reloaded, Tls};

/// The protocol of gRPC in the TLS handshake (RFC 7540, section 3.3).
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// The identity of a process, as typed.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate of this process, PEM, with intermediate certificates after it.
    #[arg(long, env = "OFFSHOOT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM, not encrypted.
    #[arg(long, env = "OFFSHOOT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of the authorities that peers' certificates have to come from, PEM.
    #[arg(long, env = "OFFSHOOT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Name to expect in the certificates of the servers called, instead of the host in their address.
    #[arg(long, env = "OFFSHOOT_TLS_SERVER_NAME", value_name = "NAME")]
    pub tls_server_name: Option<String>,
}

/// What a process does with its identity; a certificate whose extended key usage forbids it is refused at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Is called: certificate, key and authority are needed.
    Serve,
    /// Calls others: the authority is needed, certificate and key only where the server asks for them.
    Call,
    /// Both, with the same identity.
    ServeAndCall,
}

/// Whether who connects has to show a certificate.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without a certificate of the authority there is no connection.
    #[default]
    Required,
    /// A certificate may be missing; one that is shown has to be good.
    Optional,
}

impl TlsArgs {
    /// Whether any flag was given.
    #[must_use]
    pub fn given(&self) -> bool {
        self.tls_cert.is_some()
            || self.tls_key.is_some()
            || self.tls_ca.is_some()
            || self.tls_server_name.is_some()
    }

    /// Reads the files; `None` when no flag was given, which means plaintext.
    ///
    /// # Errors
    /// When flags that need each other are missing, or a file cannot be read or is of no use for `purpose`.
    pub fn load(&self, purpose: Purpose) -> Result<Option<Tls>, TlsError> {
        if !self.given() {
            return Ok(None);
        }
        let needed = |flag: &'static str, file: &Option<PathBuf>| {
            file.clone().ok_or(TlsError::Missing { flag })
        };
        let ca = needed("--tls-ca", &self.tls_ca)?;
        let nothing = self.tls_cert.is_none() && self.tls_key.is_none();
        let own = match purpose {
            Purpose::Call if nothing => None,
            Purpose::Serve | Purpose::Call | Purpose::ServeAndCall => {
                let cert = needed("--tls-cert", &self.tls_cert)?;
                Some((cert, needed("--tls-key", &self.tls_key)?))
            }
        };
        let expected = (self.tls_server_name.as_deref())
            .map(server_name)
            .transpose()?;
        let files = identity::Files { own, ca, purpose };
        Ok(Some(Tls::load(files, expected)?))
    }

    /// The flags as words of a command line, to hand them to a child.
    #[must_use]
    pub fn to_flags(&self) -> Vec<std::ffi::OsString> {
        let files = [
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--tls-ca", &self.tls_ca),
        ];
        let mut words = Vec::new();
        for (flag, file) in files {
            if let Some(file) = file {
                words.extend([flag.into(), file.clone().into_os_string()]);
            }
        }
        if let Some(name) = &self.tls_server_name {
            words.extend(["--tls-server-name".into(), name.into()]);
        }
        words
    }
}

/// Makes ring the process's default for whatever else uses rustls; the first line of every `main`. A library that
/// brings a second provider would otherwise make the choice ambiguous, and rustls panics at the first handshake then.
pub fn install_provider() {
    // It fails only when there is a default already, and a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn server_name(given: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(given.to_owned()).map_err(|_| TlsError::ServerName {
        given: given.chars().take(80).collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        tls: TlsArgs,
    }

    fn parse(flags: &[&str]) -> TlsArgs {
        Probe::try_parse_from(["probe"].iter().chain(flags))
            .unwrap()
            .tls
    }

    #[test]
    fn no_flag_is_plaintext() {
        assert!(parse(&[]).load(Purpose::Serve).unwrap().is_none());
    }

    #[test]
    fn half_an_identity_names_what_is_missing() {
        for (flags, purpose, missing) in [
            (&["--tls-cert", "a"][..], Purpose::Serve, "--tls-ca"),
            (&["--tls-ca", "a"], Purpose::Serve, "--tls-cert"),
            (
                &["--tls-ca", "a", "--tls-cert", "b"],
                Purpose::Call,
                "--tls-key",
            ),
            (
                &["--tls-ca", "a", "--tls-key", "b"],
                Purpose::Call,
                "--tls-cert",
            ),
            (&["--tls-server-name", "a"], Purpose::Call, "--tls-ca"),
        ] {
            let error = parse(flags).load(purpose).unwrap_err();
            assert!(
                matches!(error, TlsError::Missing { flag } if flag == missing),
                "{flags:?} gave {error}"
            );
        }
    }

    #[test]
    fn flags_survive_the_way_to_a_child() {
        let given = [
            "--tls-cert",
            "a b",
            "--tls-key",
            "k",
            "--tls-ca",
            "c",
            "--tls-server-name",
            "n",
        ];
        assert_eq!(parse(&given).to_flags(), given);
        assert!(parse(&[]).to_flags().is_empty());
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let flags = ["--tls-ca", "c", "--tls-server-name", "not a name"];
        let error = parse(&flags).load(Purpose::Call).unwrap_err();
        assert!(matches!(error, TlsError::ServerName { .. }), "{error}");
    }
}

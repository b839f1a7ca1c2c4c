//! Encryption between processes: mutual TLS, version 1.3.
//!
//! A process has one identity, three PEM files named by [`TlsArgs`]: its certificate, its private key, and the CA
//! certificates that its peers' certificates are verified against. It uses the identity both to serve and to call
//! others. [`Tls`] holds the identity that was loaded last and watches the files: new files change what the *next*
//! handshake presents and trusts, and affect no open connection.
//!
//! The names in a server's certificate are compared with the host that was called. The role a certificate was issued
//! for is not checked, except that its extended key usage must allow what it is used for (server, client, or both):
//! anyone with a client certificate from the CA may call every process of the cluster.

mod error;
mod identity;
mod rotation;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rustls::pki_types::ServerName;

pub use error::{TlsError, explain};
pub use rotation::{Acceptor, RELOAD_INTERVAL, Reloaded, Tls};

/// The ALPN protocol of gRPC: HTTP/2 over TLS (RFC 9113, section 3.2).
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// The identity of a process, as given on the command line.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate of this process in PEM, followed by intermediate certificates if there are any.
    #[arg(long, env = "OFFSHOOT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM, not encrypted.
    #[arg(long, env = "OFFSHOOT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// CA certificates that peers' certificates are verified against, in PEM.
    #[arg(long, env = "OFFSHOOT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Name to expect in the certificates of servers, instead of the host in their address.
    #[arg(long, env = "OFFSHOOT_TLS_SERVER_NAME", value_name = "NAME")]
    pub tls_server_name: Option<String>,
}

/// How a process uses its identity. A certificate whose extended key usage forbids that is rejected at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// As a server: certificate, key and CA are required.
    Serve,
    /// As a client: the CA is required, certificate and key only if the server requires them.
    Call,
    /// As both.
    ServeAndCall,
}

/// Whether clients have to present a certificate.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without a valid certificate is rejected.
    #[default]
    Required,
    /// A client may present no certificate, but not an invalid one.
    Optional,
}

impl TlsArgs {
    /// Whether any of the flags was given.
    #[must_use]
    pub fn given(&self) -> bool {
        self.tls_cert.is_some()
            || self.tls_key.is_some()
            || self.tls_ca.is_some()
            || self.tls_server_name.is_some()
    }

    /// Loads the identity; `None` if no flag was given, which means plaintext.
    ///
    /// # Errors
    /// When only some of the required flags were given, or a file cannot be read or used for `purpose`.
    pub fn load(&self, purpose: Purpose) -> Result<Option<Tls>, TlsError> {
        if !self.given() {
            return Ok(None);
        }
        let required = |flag: &'static str, file: &Option<PathBuf>| {
            file.clone().ok_or(TlsError::Missing { flag })
        };
        let ca = required("--tls-ca", &self.tls_ca)?;
        let anonymous = self.tls_cert.is_none() && self.tls_key.is_none();
        let own = match purpose {
            Purpose::Call if anonymous => None,
            Purpose::Serve | Purpose::Call | Purpose::ServeAndCall => {
                let cert = required("--tls-cert", &self.tls_cert)?;
                Some((cert, required("--tls-key", &self.tls_key)?))
            }
        };
        let expected = (self.tls_server_name.as_deref())
            .map(server_name)
            .transpose()?;
        let files = identity::Files { own, ca, purpose };
        Ok(Some(Tls::load(files, expected)?))
    }

    /// The flags as command-line arguments, for a child process.
    #[must_use]
    pub fn to_flags(&self) -> Vec<std::ffi::OsString> {
        let files = [
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--tls-ca", &self.tls_ca),
        ];
        let mut flags = Vec::new();
        for (flag, file) in files {
            if let Some(file) = file {
                flags.extend([flag.into(), file.clone().into_os_string()]);
            }
        }
        if let Some(name) = &self.tls_server_name {
            flags.extend(["--tls-server-name".into(), name.into()]);
        }
        flags
    }
}

/// Makes ring the process-wide default crypto provider of rustls, for libraries that do not choose one. Call it first
/// in every `main`: if a dependency enabled a second provider, the default would be ambiguous, and rustls would panic
/// at the first handshake.
pub fn install_provider() {
    // This fails only if there is already a default, so a second call has no effect.
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
    fn the_flags_for_a_child_are_the_same() {
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
    fn an_invalid_server_name_is_refused() {
        let flags = ["--tls-ca", "c", "--tls-server-name", "not a name"];
        let error = parse(&flags).load(Purpose::Call).unwrap_err();
        assert!(matches!(error, TlsError::ServerName { .. }), "{error}");
    }
}

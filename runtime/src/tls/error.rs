//! What can be wrong with an identity or a handshake, described for the person who has to fix it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A required flag is missing.
    #[error(
        "{flag} is missing; a server needs --tls-cert, --tls-key and --tls-ca, a client at least --tls-ca"
    )]
    Missing {
        /// The flag.
        flag: &'static str,
    },
    /// The name is neither a host name nor an address.
    #[error("--tls-server-name {given:?} is neither a host name nor an IP address")]
    ServerName {
        /// The value of the flag, truncated if it is very long.
        given: String,
    },
    /// The file cannot be read.
    #[error("cannot read {flag} {}: {source}", path.display())]
    Read {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The contents of the file cannot be used.
    #[error("{flag} {} {why}", path.display())]
    Content {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what it should contain.
        why: String,
    },
    /// The certificate and the key do not belong together.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// rustls rejects the combination.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// Describes an error of a handshake or of an established connection, from the point of view of this side. "It" is the
/// peer.
#[must_use]
pub fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::NoCertificatesPresented => {
            "it presented no certificate; start it with --tls-cert and --tls-key".to_owned()
        }
        rustls::Error::AlertReceived(alert) => refusal(*alert),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; start it with --tls-cert, --tls-key and --tls-ca, or call it without TLS"
                .to_owned()
        }
        rustls::Error::NoApplicationProtocol => "it does not speak HTTP/2 over TLS".to_owned(),
        rustls::Error::PeerIncompatible(what) => {
            format!("its TLS is incompatible; TLS 1.3 is required ({what:?})")
        }
        other => other.to_string(),
    }
}

/// Describes what is wrong with the peer's certificate.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by a CA in our --tls-ca".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => {
            format!(
                "its certificate expired {} ago",
                span(between(*not_after, *time))
            )
        }
        CertificateError::Expired => "its certificate has expired".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate becomes valid in {}; check the clocks",
            span(between(*time, *not_before))
        ),
        CertificateError::NotValidYet => "its certificate is not valid yet".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "its certificate is for {}, not for {}; call it by a name in its certificate, or give the name to expect \
             with --tls-server-name",
            if presented.is_empty() {
                "no name".to_owned()
            } else {
                presented.join(", ")
            },
            expected.to_str()
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate may not be used for that side of a connection (extended key usage)"
                .to_owned()
        }
        other => format!("its certificate is not valid: {other}"),
    }
}

/// Describes an alert from the peer.
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it requires a certificate and this side has none; give --tls-cert and --tls-key"
                .to_owned()
        }
        AlertDescription::UnknownCA => {
            "it does not trust the CA that signed our certificate".to_owned()
        }
        AlertDescription::CertificateExpired => {
            "it says that our certificate has expired or is not valid yet".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => {
            format!("it rejected our certificate ({alert:?})")
        }
        AlertDescription::NoApplicationProtocol => "it does not speak HTTP/2 over TLS".to_owned(),
        other => format!("it aborted the handshake ({other:?})"),
    }
}

/// The time from `earlier` to `later`, or zero if `later` is earlier.
pub(super) fn between(earlier: UnixTime, later: UnixTime) -> Duration {
    Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs()))
}

/// Formats a duration in its largest unit, which is precise enough here.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "min")] {
        if seconds >= unit {
            return format!("{} {name}", seconds / unit);
        }
    }
    format!("{seconds} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (7_200, "2 h"),
            (90_000, "1 d"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}

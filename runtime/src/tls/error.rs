//! What can be wrong with an identity or a handshake, in words for whoever has to mend it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The flags name only a part of it.
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
        /// What was given, shortened if it is very long.
        given: String,
    },
    /// The file cannot be read.
    #[error("cannot read {flag} {}: {source}", path.display())]
    Read {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read and is of no use.
    #[error("{flag} {} {why}", path.display())]
    Content {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what it should hold.
        why: String,
    },
    /// Certificate and key were not made for each other.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The TLS library refuses the combination.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// What went wrong in a handshake, or with a connection afterwards, seen from this side. "It" is the peer.
#[must_use]
pub fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::NoCertificatesPresented => {
            "it shows no certificate; give it --tls-cert and --tls-key".to_owned()
        }
        rustls::Error::AlertReceived(alert) => refusal(*alert),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; give it --tls-cert, --tls-key and --tls-ca, or call it without"
                .to_owned()
        }
        rustls::Error::NoApplicationProtocol => "it does not speak HTTP/2 over TLS".to_owned(),
        rustls::Error::PeerIncompatible(what) => {
            format!("it speaks another kind of TLS, TLS 1.3 is needed ({what:?})")
        }
        other => other.to_string(),
    }
}

/// What is wrong with the peer's certificate.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate does not come from an authority in our --tls-ca".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => {
            format!(
                "its certificate has expired {} ago",
                span(between(*not_after, *time))
            )
        }
        CertificateError::Expired => "its certificate has expired".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate becomes valid in {}; compare the clocks",
            span(between(*time, *not_before))
        ),
        CertificateError::NotValidYet => "its certificate is not valid yet".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "its certificate is for {} and not for {}; call it by a name in its certificate, or say with \
             --tls-server-name which one to expect",
            if presented.is_empty() {
                "no name".to_owned()
            } else {
                presented.join(", ")
            },
            expected.to_str()
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate may not be used on that side of a connection (extended key usage)"
                .to_owned()
        }
        other => format!("its certificate is no good: {other}"),
    }
}

/// What the peer's refusal means.
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it asks for a certificate and this side has none; give --tls-cert and --tls-key"
                .to_owned()
        }
        AlertDescription::UnknownCA => {
            "it does not know the authority that our certificate comes from".to_owned()
        }
        AlertDescription::CertificateExpired => {
            "it says that our certificate is not valid at this time".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => format!("it refuses our certificate ({alert:?})"),
        AlertDescription::NoApplicationProtocol => "it does not speak HTTP/2 over TLS".to_owned(),
        other => format!("it ended the handshake ({other:?})"),
    }
}

/// The time from `earlier` to `later`, or nothing if they are the other way round.
pub(super) fn between(earlier: UnixTime, later: UnixTime) -> Duration {
    Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs()))
}

/// A duration in its largest unit, which is all that a reader needs here.
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

//! Turns the three files of an identity into the rustls configuration of both sides, or an error that names the file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use super::error::{TlsError, between, span};
use super::{ALPN_H2, ClientAuth, Purpose};

/// Largest file in bytes, four times the size of a bundle with every public CA.
const MAX_FILE: u64 = 1024 * 1024;

/// A time after the end of every certificate (the year 9998).
const FAR: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(253_370_764_800));

/// The files of an identity, and its purpose.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// Certificate and key; a client may have neither.
    pub(super) own: Option<(PathBuf, PathBuf)>,
    pub(super) ca: PathBuf,
    pub(super) purpose: Purpose,
}

/// The contents of the files. They include a private key, so there is no `Debug`.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    own: Option<(Vec<u8>, Vec<u8>)>,
    ca: Vec<u8>,
}

/// The rustls configuration of both sides.
pub(super) struct Identity {
    /// For servers; `None` without a certificate.
    server: Option<ServerSides>,
    pub(super) client: Arc<ClientConfig>,
    /// When the certificate expires.
    pub(super) not_after: Option<UnixTime>,
}

struct ServerSides {
    required: Arc<ServerConfig>,
    optional: Arc<ServerConfig>,
}

impl Files {
    /// Reads the files. Blocks.
    pub(super) fn read(&self) -> Result<Contents, TlsError> {
        let own = match &self.own {
            Some((cert, key)) => Some((read("--tls-cert", cert)?, read("--tls-key", key)?)),
            None => None,
        };
        Ok(Contents {
            own,
            ca: read("--tls-ca", &self.ca)?,
        })
    }

    /// Checks `contents` and builds an identity from them.
    pub(super) fn identity(&self, contents: &Contents) -> Result<Identity, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(self.roots(contents)?);
        let mut own = None;
        let mut not_after = None;
        if let (Some(paths), Some(bytes)) = (&self.own, &contents.own) {
            let chain = certificates("--tls-cert", &paths.0, &bytes.0)?;
            let key = private_key(&paths.1, &bytes.1)?;
            not_after = self.check(&paths.0, &chain, &roots, &provider)?;
            let certified = CertifiedKey::from_der(chain, key, &provider)
                .map_err(|error| unusable(error, paths))?;
            own = Some(Arc::new(SingleCertAndKey::from(certified)));
        }
        let server = match &own {
            Some(own) => Some(ServerSides {
                required: server(&provider, &roots, own, ClientAuth::Required)?,
                optional: server(&provider, &roots, own, ClientAuth::Optional)?,
            }),
            None => None,
        };
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots);
        let mut client = match own {
            Some(own) => client.with_client_cert_resolver(own),
            None => client.with_no_client_auth(),
        };
        client.alpn_protocols = vec![ALPN_H2.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Identity {
            server,
            client: Arc::new(client),
            not_after,
        })
    }

    fn roots(&self, contents: &Contents) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("--tls-ca", &self.ca, &contents.ca)? {
            roots.add(certificate).map_err(|error| TlsError::Content {
                flag: "--tls-ca",
                path: self.ca.clone(),
                why: format!("contains a certificate that cannot be parsed: {error}"),
            })?;
        }
        Ok(roots)
    }

    /// Finds errors at start that every peer would find at the first handshake. The issuer is not checked, because
    /// peers may trust another CA than we do. Returns when the certificate expires.
    fn check(
        &self,
        path: &Path,
        chain: &[CertificateDer<'_>],
        roots: &RootCertStore,
        provider: &CryptoProvider,
    ) -> Result<Option<UnixTime>, TlsError> {
        let refuse = |why: String| TlsError::Content {
            flag: "--tls-cert",
            path: path.to_owned(),
            why,
        };
        let (first, rest) =
            (chain.split_first()).ok_or(refuse("contains no certificate".to_owned()))?;
        let leaf = EndEntityCert::try_from(first).map_err(|error| {
            refuse(format!(
                "contains a certificate that cannot be parsed: {error}"
            ))
        })?;
        let verify = |usage: KeyUsage, at: UnixTime| {
            leaf.verify_for_usage(
                provider.signature_verification_algorithms.all,
                &roots.roots,
                rest,
                at,
                usage,
                None,
                None,
            )
            .err()
        };
        let usages: &[(KeyUsage, &str)] = match self.purpose {
            Purpose::Serve => &[(KeyUsage::server_auth(), "server")],
            Purpose::Call => &[(KeyUsage::client_auth(), "client")],
            Purpose::ServeAndCall => &[
                (KeyUsage::server_auth(), "server"),
                (KeyUsage::client_auth(), "client"),
            ],
        };
        for (usage, side) in usages {
            match verify(*usage, UnixTime::now()) {
                Some(webpki::Error::CertExpired { time, not_after }) => {
                    let ago = span(between(not_after, time));
                    return Err(refuse(format!(
                        "expired {ago} ago; issue a new certificate"
                    )));
                }
                Some(webpki::Error::CertNotValidYet { time, not_before }) => {
                    let left = span(between(time, not_before));
                    return Err(refuse(format!("becomes valid in {left}; check the clocks")));
                }
                Some(webpki::Error::CaUsedAsEndEntity) => {
                    return Err(refuse(
                        "is a CA certificate; give one that was issued to this process".to_owned(),
                    ));
                }
                Some(
                    webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension,
                ) => {
                    return Err(refuse(format!(
                        "may not be used as a {side} certificate (extended key usage)"
                    )));
                }
                // All other errors concern the issuer.
                Some(_) | None => {}
            }
        }
        let end = verify(usages[0].0, FAR);
        Ok(match end {
            Some(webpki::Error::CertExpired { not_after, .. }) => Some(not_after),
            Some(_) | None => None,
        })
    }
}

impl Identity {
    /// The server configuration; `None` without a certificate.
    pub(super) fn server(&self, auth: ClientAuth) -> Option<&Arc<ServerConfig>> {
        let sides = self.server.as_ref()?;
        Some(match auth {
            ClientAuth::Required => &sides.required,
            ClientAuth::Optional => &sides.optional,
        })
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    own: &Arc<SingleCertAndKey>,
    auth: ClientAuth,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
    let verifier = match auth {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => verifier.allow_unauthenticated(),
    };
    let verifier = verifier
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(own) as Arc<_>);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // Connections last for hours, so resuming a session saves nothing, and it would readmit a peer whose certificate
    // has expired in the meantime.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Reads a file of at most [`MAX_FILE`] bytes.
fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|source| TlsError::Read {
            flag,
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(TlsError::Content {
            flag,
            path: path.to_owned(),
            why: format!(
                "is larger than {} KiB, so it is not the right file",
                MAX_FILE / 1024
            ),
        });
    }
    Ok(bytes)
}

fn certificates(
    flag: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refuse = |why: String| TlsError::Content {
        flag,
        path: path.to_owned(),
        why,
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(format!("is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(refuse(
            "contains no certificate; it must be PEM with a BEGIN CERTIFICATE line".to_owned(),
        ));
    }
    Ok(found)
}

fn private_key(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| TlsError::Content {
        flag: "--tls-key",
        path: path.to_owned(),
        why: match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                "contains no private key; it must be PEM with a BEGIN PRIVATE KEY line, and not encrypted"
                    .to_owned()
            }
            error => format!("is not PEM: {error}"),
        },
    })
}

fn unusable(error: rustls::Error, paths: &(PathBuf, PathBuf)) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
            cert: paths.0.clone(),
            key: paths.1.clone(),
        },
        error => TlsError::Content {
            flag: "--tls-key",
            path: paths.1.clone(),
            why: format!("contains a key that cannot be used: {error}"),
        },
    }
}

//! A certificate authority, the certificates it issues, and folders with the files of an identity.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use offshoot_runtime::TlsArgs;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub(crate) fn issue(&self, names: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> Issued {
        self.issue_between(
            names,
            usages,
            SystemTime::now() - DAY,
            SystemTime::now() + DAY,
        )
    }

    /// A certificate that expired yesterday.
    pub(crate) fn expired(&self, names: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> Issued {
        let yesterday = SystemTime::now() - DAY - Duration::from_secs(60);
        self.issue_between(names, usages, yesterday - DAY, yesterday)
    }

    fn issue_between(
        &self,
        names: &[&str],
        usages: &[ExtendedKeyUsagePurpose],
        from: SystemTime,
        to: SystemTime,
    ) -> Issued {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = usages.to_vec();
        (params.not_before, params.not_after) = (from.into(), to.into());
        let key = KeyPair::generate().unwrap();
        Issued {
            cert: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// The authority's own certificate and key.
    pub(crate) fn own(&self) -> Issued {
        Issued {
            cert: self.issuer.pem(),
            key: self.issuer.key().serialize_pem(),
        }
    }
}

/// The three files of an identity, deleted when dropped.
pub(crate) struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new(trusted: &Authority, identity: &Issued) -> Self {
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        folder.write(trusted, identity);
        folder
    }

    pub(crate) fn write(&self, trusted: &Authority, identity: &Issued) {
        for (file, text) in [
            ("cert.pem", &identity.cert),
            ("key.pem", &identity.key),
            ("ca.pem", &trusted.issuer.pem()),
        ] {
            std::fs::write(self.path(file), text).unwrap();
        }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub(crate) fn args(&self) -> TlsArgs {
        args(self.dir.path())
    }
}

pub(crate) fn args(folder: &Path) -> TlsArgs {
    TlsArgs {
        tls_cert: Some(folder.join("cert.pem")),
        tls_key: Some(folder.join("key.pem")),
        tls_ca: Some(folder.join("ca.pem")),
        tls_server_name: None,
    }
}

/// The error of a client that presents `identity` without checking it first, as our client does.
pub(crate) async fn handshake(trusted: &Authority, identity: &Issued, addr: SocketAddr) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.issuer.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(identity.cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, tcp).await.unwrap();
    let mut received = Vec::new();
    match stream.read_to_end(&mut received).await {
        Ok(_) => format!("no refusal, but {} bytes", received.len()),
        Err(error) => error.to_string(),
    }
}

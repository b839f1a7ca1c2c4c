//! `offshoot certs`: a test CA and a certificate for each role, to try TLS.
//!
//! Each certificate has only the key usages that its role needs: server for workers, client for clients, both for the
//! coordinator. So a worker's certificate cannot be used to call another worker.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::End;
use crate::console;

/// The files of the CA.
const CA: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";

/// Names under which processes on one machine call each other.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// How long before now certificates become valid, to allow for clocks that differ.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// The certificates, and the key usages of each.
const IDENTITIES: [(&str, &[ExtendedKeyUsagePurpose]); 5] = [
    (
        "coordinator",
        &[
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
    ),
    ("target", &[ExtendedKeyUsagePurpose::ServerAuth]),
    ("qualifier", &[ExtendedKeyUsagePurpose::ServerAuth]),
    ("draft", &[ExtendedKeyUsagePurpose::ServerAuth]),
    ("client", &[ExtendedKeyUsagePurpose::ClientAuth]),
];

/// Arguments of `offshoot certs`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot certs --out certs
  offshoot certs --out certs --name worker-1.example --name 10.0.0.7

Writes ca.pem and, for coordinator, target, qualifier, draft and client, NAME.pem and NAME-key.pem. If it is run again, it
creates new certificates of the same CA, which running processes load. For tests only: whoever can read ca-key.pem can
create valid certificates.")]
pub(crate) struct CertsArgs {
    /// Folder for the files; created if it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Further host name or address of the servers, in addition to localhost; can be repeated
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Days until the certificates expire
    #[arg(
        long,
        value_name = "DAYS",
        default_value_t = 7,
        value_parser = clap::value_parser!(u64).range(1..=3650)
    )]
    days: u64,
}

/// Writes the files and prints their names.
///
/// # Errors
/// When a name is invalid, the CA in the folder cannot be read, or a file cannot be written.
pub(crate) fn run(args: &CertsArgs) -> Result<End> {
    let mut names: Vec<_> = LOCAL.iter().map(|&name| name.to_owned()).collect();
    for name in &args.names {
        if !is_name(name) {
            bail!("--name {name:?} is neither a host name nor an address");
        }
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
    let lifetime = Duration::from_secs(args.days * 86_400);
    let authority = authority(&args.out, lifetime)?;
    for (role, purposes) in IDENTITIES {
        // Clients have no host name; servers only check the CA.
        let called = purposes.contains(&ExtendedKeyUsagePurpose::ServerAuth);
        let names = if called { names.clone() } else { Vec::new() };
        let mut params = params(names, &format!("offshoot {role}"), lifetime)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes.to_vec();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("cannot generate a key")?;
        let certificate = params
            .signed_by(&key, &authority)
            .context("cannot sign a certificate")?;
        let (cert_file, key_file) = (format!("{role}.pem"), format!("{role}-key.pem"));
        // The key first: a process that reads in between finds two files that do not match, and tries again later.
        write(
            &args.out.join(&key_file),
            &key.serialize_pem(),
            Reader::Owner,
        )?;
        write(
            &args.out.join(&cert_file),
            &certificate.pem(),
            Reader::Anyone,
        )?;
        console::put(&format!(
            "{role:<12} --tls-cert {} --tls-key {} --tls-ca {}\n",
            args.out.join(&cert_file).display(),
            args.out.join(&key_file).display(),
            args.out.join(CA).display()
        ))?;
    }
    console::say(&format!(
        "valid for {} days, for {}; for tests only",
        args.days,
        names.join(", ")
    ));
    Ok(End::Done)
}

/// The CA in the folder, created if there is none.
fn authority(folder: &Path, lifetime: Duration) -> Result<Issuer<'static, KeyPair>> {
    let (cert_file, key_file) = (folder.join(CA), folder.join(CA_KEY));
    let (key, origin) = match (fs::read_to_string(&key_file), cert_file.exists()) {
        (Ok(pem), true) => {
            let key = KeyPair::from_pem(&pem).with_context(|| {
                format!("{} is not a key; use another folder", key_file.display())
            })?;
            (key, Origin::Existing)
        }
        (Err(error), false) if error.kind() == io::ErrorKind::NotFound => (
            KeyPair::generate().context("cannot generate a key")?,
            Origin::New,
        ),
        (Err(error), true) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "{} exists without its key {CA_KEY}; use another folder",
                cert_file.display()
            )
        }
        (Ok(_), false) => {
            bail!(
                "{} exists without its certificate {CA}; use another folder",
                key_file.display()
            )
        }
        (Err(error), _) => {
            return Err(error).with_context(|| format!("cannot read {}", key_file.display()));
        }
    };
    // The name contains a part of the key, so that two CAs never have the same name.
    let mark: String = (key.public_key_raw().iter().skip(1).take(4))
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("offshoot test CA {mark}");
    let mut params = params(Vec::new(), &name, lifetime)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    match origin {
        Origin::Existing => {}
        Origin::New => {
            let certificate = params
                .self_signed(&key)
                .context("cannot sign a certificate")?;
            write(&key_file, &key.serialize_pem(), Reader::Owner)?;
            write(&cert_file, &certificate.pem(), Reader::Anyone)?;
        }
    }
    Ok(Issuer::new(params, key))
}

/// Whether the CA existed or is new and has to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Existing,
    New,
}

fn params(names: Vec<String>, common_name: &str, lifetime: Duration) -> Result<CertificateParams> {
    let mut params =
        CertificateParams::new(names).context("a name is not valid in a certificate")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Owner,
    Anyone,
}

/// Writes a file atomically, because a running process may read it at any time.
fn write(path: &Path, text: &str, reader: Reader) -> Result<()> {
    let draft = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(match reader {
            Reader::Owner => 0o600,
            Reader::Anyone => 0o644,
        });
    }
    #[cfg(not(unix))]
    let _ = reader;
    (options.open(&draft))
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::{Purpose, TlsArgs};

    fn make(out: &Path, names: &[&str]) -> Result<End> {
        run(&CertsArgs {
            out: out.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            days: 1,
        })
    }

    fn identity(folder: &Path, role: &str) -> TlsArgs {
        TlsArgs {
            tls_cert: Some(folder.join(format!("{role}.pem"))),
            tls_key: Some(folder.join(format!("{role}-key.pem"))),
            tls_ca: Some(folder.join(CA)),
            tls_server_name: None,
        }
    }

    #[test]
    fn every_role_gets_only_the_key_usages_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &["worker-1.example"]).unwrap();
        for (role, fits, not) in [
            ("coordinator", Purpose::ServeAndCall, None),
            ("target", Purpose::Serve, Some(Purpose::Call)),
            ("qualifier", Purpose::Serve, Some(Purpose::Call)),
            ("draft", Purpose::Serve, Some(Purpose::ServeAndCall)),
            ("client", Purpose::Call, Some(Purpose::Serve)),
        ] {
            let files = identity(folder.path(), role);
            assert!(files.load(fits).unwrap().is_some(), "{role}");
            if let Some(not) = not {
                let error = files.load(not).unwrap_err().to_string();
                assert!(error.contains("may not be used"), "{role}: {error}");
            }
        }
    }

    #[test]
    fn a_second_run_keeps_the_ca() {
        let folder = tempfile::tempdir().unwrap();
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        make(folder.path(), &[]).unwrap();
        let before = (read(CA), read("draft.pem"));
        make(folder.path(), &[]).unwrap();
        assert_eq!(read(CA), before.0);
        assert_ne!(read("draft.pem"), before.1);
        fs::remove_file(folder.path().join(CA)).unwrap();
        assert!(make(folder.path(), &[]).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_keys() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &[]).unwrap();
        for key in [CA_KEY, "client-key.pem"] {
            let mode = fs::metadata(folder.path().join(key))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0, "{key}");
        }
    }

    #[test]
    fn invalid_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for bad in ["", "a b", "-.-\n", "http://a", "a..b"] {
            assert!(make(folder.path(), &[bad]).is_err(), "{bad:?}");
        }
    }
}

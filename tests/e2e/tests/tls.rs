//! TLS between real processes: all roles together, clients without a valid certificate, and certificates that change while a
//! stream is open.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Process, binary};
use offshoot_e2e::wait::{met, until};
use offshoot_e2e::{REFERENCE, model, prompts};
use proto::v1::GenerateRequest;
use runtime::{Caller, Purpose, TlsArgs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use speculation::duty::Source;
use tempfile::TempDir;
use tokio::net::TcpStream;

const PROMPT: &str = "fn main() {";

/// Runs the binary to its end.
fn offshoot(arguments: &[&str]) -> Output {
    Command::new(binary().unwrap())
        .args(arguments)
        .output()
        .unwrap()
}

/// Creates a folder with certificates.
fn certs(folder: &Path) {
    let made = offshoot(&["certs", "--out", &folder.display().to_string()]);
    assert!(made.status.success(), "{made:?}");
}

fn identity(folder: &Path, role: &str) -> TlsArgs {
    TlsArgs {
        tls_cert: Some(folder.join(format!("{role}.pem"))),
        tls_key: Some(folder.join(format!("{role}-key.pem"))),
        tls_ca: Some(folder.join("ca.pem")),
        tls_server_name: None,
    }
}

fn flags(args: &TlsArgs) -> Vec<String> {
    let words = args.to_flags().into_iter();
    words.map(|word| word.into_string().unwrap()).collect()
}

/// One process per role, each with its own certificate.
struct Encrypted {
    workers: Vec<Process>,
    coordinator: Process,
    /// Must outlive the processes, which watch the files in it.
    folder: TempDir,
}

impl Encrypted {
    fn start(target_pace: u32) -> Encrypted {
        let folder = tempfile::tempdir().unwrap();
        certs(folder.path());
        let mut workers = Vec::new();
        let pace = target_pace.to_string();
        for (role, subcommand) in [
            ("target", &["target-worker", "--pace", &pace][..]),
            ("qualifier", &["target-worker", "--role", "qualifier"]),
            ("draft", &["draft-worker"]),
        ] {
            let model = model(role).display().to_string();
            let mut line: Vec<String> = subcommand.iter().map(|&word| word.to_owned()).collect();
            line.extend(["--model".to_owned(), model]);
            line.extend(flags(&identity(folder.path(), role)));
            workers.push(Process::start(&line).unwrap());
        }
        let coordinator = coordinator(&workers, &identity(folder.path(), "coordinator"), &[]);
        Encrypted {
            folder,
            workers,
            coordinator: coordinator.unwrap(),
        }
    }

    fn client(&self) -> TlsArgs {
        identity(self.folder.path(), "client")
    }

    async fn connect(&self) -> Client {
        let caller = Caller::new(self.client().load(Purpose::Call).unwrap());
        Client::connect_as(&caller, &self.coordinator.addr, 3)
            .await
            .unwrap()
    }
}

fn coordinator(workers: &[Process], identity: &TlsArgs, more: &[&str]) -> anyhow::Result<Process> {
    let tokenizer = model("target").display().to_string();
    let mut line: Vec<String> = ["coordinator", "--tokenizer", &tokenizer]
        .iter()
        .chain(more)
        .map(|&word| word.to_owned())
        .collect();
    for (worker, flag) in workers.iter().zip(["--target", "--qualifier", "--draft"]) {
        line.extend([flag.to_owned(), worker.addr.clone()]);
    }
    line.extend(flags(identity));
    Process::start(&line)
}

/// `offshoot generate` against a coordinator.
fn generate(addr: &str, tls: &[String]) -> Output {
    let mut line = vec!["generate", PROMPT, "--max-tokens", "24", "--connect", addr];
    line.extend(tls.iter().map(String::as_str));
    offshoot(&line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_uses_tls_and_invalid_clients_are_refused() {
    let cluster = Encrypted::start(0);
    let addr = &cluster.coordinator.addr;
    let client = cluster.connect().await;
    let plain = client
        .generate(request(PROMPT, 24, 0.0, REFERENCE))
        .await
        .unwrap();
    let auto = client
        .generate(request(PROMPT, 24, 0.0, "auto"))
        .await
        .unwrap();
    assert_eq!(auto.ids, plain.ids);
    let committed: u64 = (Source::ALL.into_iter())
        .map(|source| auto.guesses(source).committed)
        .sum();
    assert!(committed > 0, "no guess was right");
    let output = generate(addr, &flags(&cluster.client()));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end(),
        plain.text.trim_end()
    );

    let foreign = tempfile::tempdir().unwrap();
    certs(foreign.path());
    let mut mixed = identity(foreign.path(), "client");
    mixed.tls_ca = cluster.client().tls_ca;
    let mut without = cluster.client();
    (without.tls_cert, without.tls_key) = (None, None);
    for (tls, why) in [
        (TlsArgs::default(), "it speaks TLS"),
        (without.clone(), "requires a certificate"),
        (mixed, "does not trust the CA"),
        (identity(foreign.path(), "client"), "is not signed by a CA"),
        (
            identity(cluster.folder.path(), "draft"),
            "may not be used as a client certificate",
        ),
    ] {
        for addr in [addr, &cluster.workers[0].addr] {
            let output = generate(addr, &flags(&tls));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && stderr.contains(why),
                "{tls:?}: {stderr}"
            );
        }
    }

    let own = identity(cluster.folder.path(), "coordinator");
    let open = coordinator(&cluster.workers, &own, &["--tls-client-auth", "optional"]).unwrap();
    let output = generate(&open.addr, &flags(&without));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end(),
        plain.text.trim_end()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_while_a_stream_is_open() {
    let cluster = Encrypted::start(20);
    let client = cluster.connect().await;
    let prompt = &prompts(1).unwrap()[0];
    let plain = client.generate(endless(prompt)).await.unwrap();

    let all = || cluster.workers.iter().chain([&cluster.coordinator]);
    let before = served_by(all(), &cluster.client()).await;
    let (reached, ten) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let running = tokio::spawn({
        let client = client.clone();
        let asked = endless(prompt);
        async move {
            client
                .generate_observed(asked, |tokens| {
                    if tokens >= 10
                        && let Some(reached) = reached.take()
                    {
                        let _ = reached.send(());
                    }
                })
                .await
        }
    });
    ten.await.unwrap();
    certs(cluster.folder.path());
    for process in all() {
        let hangup = format!("kill -HUP {}", process.id());
        assert!(
            Command::new("sh")
                .args(["-c", &hangup])
                .status()
                .unwrap()
                .success()
        );
    }
    let changed = until(Duration::from_secs(30), async || {
        let now = served_by(all(), &cluster.client()).await;
        let is_new = now.iter().zip(&before).all(|(now, before)| now != before);
        Ok(met(is_new, "a process still serves its old certificate"))
    });
    changed.await.unwrap();
    assert!(
        !running.is_finished(),
        "the stream ended before the certificates changed"
    );
    assert_eq!(running.await.unwrap().unwrap().ids, plain.ids);
}

/// What outlasts new certificates for all processes.
fn endless(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        ignore_eos: true,
        ..request(prompt, 600, 0.7, REFERENCE)
    }
}

/// The certificates that new connections get. A server sends its own before it checks that of its client.
async fn served_by(
    processes: impl Iterator<Item = &Process>,
    client: &TlsArgs,
) -> Vec<CertificateDer<'static>> {
    let file = |path: &Option<std::path::PathBuf>| std::fs::read(path.as_ref().unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    (roots.add(CertificateDer::from_pem_slice(&file(&client.tls_ca)).unwrap())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut served = Vec::new();
    for process in processes {
        let tcp = TcpStream::connect(&process.addr).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = connector.connect(name, tcp).await.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        served.push(chain[0].clone());
    }
    served
}

#[test]
fn plaintext_is_served_on_loopback_only() {
    let model = model("draft").display().to_string();
    let line = ["draft-worker", "--model", &model, "--host", "0.0.0.0"];
    let output = offshoot(&line);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it listened");
    assert!(
        stderr.contains("--tls-cert") && stderr.contains("--allow-plaintext-bind"),
        "{stderr}"
    );
}

#[test]
fn an_incomplete_certificate_is_an_error() {
    let model = model("draft").display().to_string();
    let line = ["draft-worker", "--model", &model, "--tls-cert", "cert.pem"];
    let output = offshoot(&line);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("--tls-ca is missing"),
        "{stderr}"
    );
}

//! Models from a hub: a fake one on loopback that fails in every way that a network and a server can.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use hub::{Hub, HubError, HubName, Settings, Source, Token, Wanted, Watch};
use offshoot_e2e::cluster::binary;
use offshoot_e2e::fake_hub::{COMMIT, FakeHub, Fault};
use offshoot_e2e::model;
use tempfile::TempDir;

const WEIGHTS: usize = 3 << 20;

/// A hub with a model that is no real one, large enough to be cut often, and an empty cache.
struct Rig {
    fake: FakeHub,
    home: TempDir,
}

#[derive(Debug, Default)]
struct Heard {
    files: Vec<(String, u64, u64)>,
    notes: Vec<String>,
}

impl Watch for Heard {
    fn begin(&mut self, file: &str, have: u64, total: u64) {
        self.files.push((file.to_owned(), have, total));
    }

    fn at(&mut self, bytes: u64) {
        assert!(bytes <= self.files.last().unwrap().2);
    }

    fn end(&mut self) {}

    fn note(&mut self, line: &str) {
        self.notes.push(line.to_owned());
    }
}

fn weights() -> Vec<u8> {
    (0..WEIGHTS as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

impl Rig {
    fn new() -> Rig {
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        let files = [
            ("README.md", b"for people".to_vec()),
            ("pytorch_model.bin", b"a pickle".to_vec()),
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{\"version\": 1}".to_vec()),
            ("model.safetensors.index.json", index.into()),
            ("1.safetensors", weights()),
            ("2.safetensors", b"few".to_vec()),
            ("3.safetensors", b"of another model".to_vec()),
            ("gguf/m-Q4_0.gguf", b"GGUF 4".to_vec()),
            ("gguf/m-Q8_0.gguf", b"GGUF 8".to_vec()),
        ];
        let files = files
            .into_iter()
            .map(|(name, content)| (name.to_owned(), content));
        Rig {
            fake: FakeHub::start("owner/name", files.collect()).unwrap(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: self.fake.endpoint().parse().unwrap(),
            token: None,
            cache: self.home.path().join("hub"),
            offline: false,
            silence: Duration::from_secs(20),
            pause: Duration::from_millis(1),
        }
    }

    fn pull(&self, name: &str) -> Result<PathBuf, HubError> {
        pull(self.settings(), name).0
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("hub/models--owner--name")
    }

    /// Whether the model is there as the hub has it.
    fn check(&self, path: &Path) {
        assert_eq!(path, self.root().join("snapshots").join(COMMIT));
        let mut there: Vec<_> = names(path);
        there.sort();
        assert_eq!(
            there,
            [
                "1.safetensors",
                "2.safetensors",
                "config.json",
                "model.safetensors.index.json",
                "tokenizer.json"
            ]
        );
        assert_eq!(fs::read(path.join("1.safetensors")).unwrap(), weights());
        assert_eq!(
            fs::read_to_string(self.root().join("refs/main")).unwrap(),
            COMMIT
        );
        assert!(
            names(&self.root().join("blobs"))
                .iter()
                .all(|name| !name.contains('.'))
        );
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn name(text: &str) -> HubName {
    match Source::parse(Path::new(text)).unwrap() {
        Source::Hub(name) => name,
        Source::Path(path) => panic!("{} is a path", path.display()),
    }
}

fn pull(settings: Settings, text: &str) -> (Result<PathBuf, HubError>, Heard) {
    let mut heard = Heard::default();
    let pulled = Hub::new(settings).pull(&name(text), Wanted::Model, &mut heard);
    (pulled, heard)
}

#[test]
fn a_model_is_fetched_once_and_nothing_else() {
    let rig = Rig::new();
    let (path, heard) = pull(rig.settings(), "hf://owner/name");
    rig.check(&path.unwrap());
    let fetched: Vec<_> = heard.files.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        fetched,
        [
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "1.safetensors",
            "2.safetensors"
        ]
    );
    let _ = rig.fake.take_asked();
    // Without the scheme, and with the cache: only whether there is anything new is asked.
    rig.check(&rig.pull("owner/name").unwrap());
    let asked: Vec<_> = rig
        .fake
        .take_asked()
        .into_iter()
        .map(|asked| asked.path)
        .collect();
    assert_eq!(asked, ["/api/models/owner/name/revision/main"]);
    // A commit does not change, so nothing is.
    rig.check(&rig.pull(&format!("hf://owner/name@{COMMIT}")).unwrap());
    assert_eq!(rig.fake.take_asked(), []);
}

#[test]
fn one_gguf_file_is_chosen() {
    let rig = Rig::new();
    for (text, content) in [
        ("hf://owner/name:Q4_0", "GGUF 4"),
        ("owner/name:gguf/m-Q8_0.gguf", "GGUF 8"),
    ] {
        let path = rig.pull(text).unwrap();
        assert!(
            path.to_str().unwrap().ends_with(".gguf"),
            "{}",
            path.display()
        );
        assert_eq!(fs::read_to_string(path).unwrap(), content);
    }
    assert_eq!(names(&rig.root().join("blobs")).len(), 2);
    let error = rig.pull("owner/name:Q6_K").unwrap_err().to_string();
    assert!(
        error.contains("q6_k") && error.contains("gguf/m-Q4_0.gguf"),
        "{error}"
    );
}

#[test]
fn broken_connections_are_resumed_where_they_broke() {
    for fault in [Fault::Cut(1_000_000, 4), Fault::Silence(1_000_000, 2)] {
        let rig = Rig::new();
        rig.fake.break_by(std::slice::from_ref(&fault));
        let silence = Duration::from_secs(3);
        let (path, _) = pull(
            Settings {
                silence,
                ..rig.settings()
            },
            "owner/name",
        );
        rig.check(&path.unwrap());
        let ranges: Vec<_> = (rig.fake.take_asked().into_iter())
            .filter(|asked| asked.method == "GET" && asked.path.ends_with("1.safetensors"))
            .map(|asked| {
                asked
                    .range
                    .map_or(0, |range| range[6..range.len() - 1].parse::<u64>().unwrap())
            })
            .collect();
        assert!(
            ranges.len() >= 3 && ranges.is_sorted() && ranges[0] < ranges[2],
            "{fault:?}: {ranges:?}"
        );
    }
}

#[test]
fn what_one_process_has_fetched_the_next_goes_on_with() {
    let rig = Rig::new();
    rig.fake.break_by(&[Fault::Cut(100_000, 1000)]);
    let error = rig.pull("owner/name").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("is kept"), "{error}");
    rig.fake.break_by(&[]);
    let (path, heard) = pull(rig.settings(), "owner/name");
    rig.check(&path.unwrap());
    // Six tries without a whole MiB between them.
    assert_eq!(
        heard.files[0],
        ("1.safetensors".to_owned(), 600_000, WEIGHTS as u64)
    );
}

#[test]
fn a_server_that_sends_no_parts_is_asked_for_the_whole() {
    let rig = Rig::new();
    rig.fake.break_by(&[Fault::NoParts(2_000_000)]);
    // It never comes further than that, so it ends, although each try brings many bytes.
    let error = rig.pull("owner/name").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    rig.fake.break_by(&[Fault::NoParts(usize::MAX)]);
    rig.check(&rig.pull("owner/name").unwrap());
}

#[test]
fn damaged_files_are_refused_and_removed() {
    let rig = Rig::new();
    for (fault, word) in [
        (Fault::Damage, "arrived damaged"),
        (Fault::Excess, "more bytes"),
    ] {
        rig.fake.break_by(std::slice::from_ref(&fault));
        let error = rig.pull("owner/name").unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        let snapshot = rig.root().join("snapshots").join(COMMIT);
        assert!(!snapshot.join("1.safetensors").exists());
        assert!(!rig.root().join("refs").exists());
        let left = names(&rig.root().join("blobs"))
            .into_iter()
            .filter(|name| name.contains('.'));
        let left: u64 = left
            .map(|name| {
                fs::metadata(rig.root().join("blobs").join(name))
                    .unwrap()
                    .len()
            })
            .sum();
        assert_eq!(left, 0, "{fault:?}");
    }
    rig.fake.break_by(&[]);
    rig.check(&rig.pull("owner/name").unwrap());
    // What is left by somebody else and wrong is fetched anew.
    let rig = Rig::new();
    let path = rig.pull("owner/name").unwrap();
    let blob = fs::canonicalize(path.join("1.safetensors")).unwrap();
    fs::write(format!("{}.incomplete", blob.display()), "nonsense").unwrap();
    fs::remove_file(&blob).unwrap();
    rig.check(&rig.pull("owner/name").unwrap());
}

#[test]
fn servers_that_are_busy_are_asked_again() {
    for status in [429, 500, 503] {
        let rig = Rig::new();
        rig.fake.break_by(&[Fault::Status(status, 3)]);
        rig.check(&rig.pull("owner/name").unwrap());
    }
    let rig = Rig::new();
    rig.fake.break_by(&[Fault::Status(503, 1000)]);
    let error = rig.pull("owner/name").unwrap_err().to_string();
    assert!(
        error.contains("503") && error.contains("HF_ENDPOINT"),
        "{error}"
    );
}

#[test]
fn refusals_say_what_to_do() {
    let rig = Rig::new();
    rig.fake.break_by(&[Fault::Token("hf_right")]);
    let token = |text: &str| Settings {
        token: Some(Token::new(text).unwrap()),
        ..rig.settings()
    };
    for (settings, word) in [
        (rig.settings(), "set HF_TOKEN"),
        (token("hf_wrong"), "accept the model's conditions"),
    ] {
        let error = pull(settings, "owner/name").0.unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("hf://owner/name"),
            "{error}"
        );
        assert!(!error.contains("hf_wrong"), "{error}");
    }
    rig.check(&pull(token("hf_right"), "owner/name").0.unwrap());
    rig.fake.break_by(&[]);
    for text in ["hf://owner/other", "hf://owner/name@old"] {
        let error = rig.pull(text).unwrap_err();
        assert!(matches!(error, HubError::Missing { .. }), "{error}");
    }
    let in_the_clear = Settings {
        endpoint: "http://hub.example".parse().unwrap(),
        ..token("hf_right")
    };
    let error = pull(in_the_clear, "owner/other").0.unwrap_err().to_string();
    assert!(error.contains("in the clear"), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let rig = Rig::new();
    rig.fake
        .break_by(&[Fault::Token("hf_secret"), Fault::Elsewhere]);
    let settings = Settings {
        token: Some(Token::new("hf_secret").unwrap()),
        ..rig.settings()
    };
    rig.check(&pull(settings, "owner/name").0.unwrap());
    let asked = rig.fake.take_asked();
    let (elsewhere, own): (Vec<_>, Vec<_>) = asked.iter().partition(|asked| asked.elsewhere);
    assert_eq!(
        elsewhere.len(),
        2,
        "both files with weights are at the other address"
    );
    assert!(elsewhere.iter().all(|asked| asked.authorization.is_none()));
    assert!(own.iter().all(|asked| asked.authorization.is_some()));
}

#[test]
fn offline_is_what_the_cache_has() {
    let rig = Rig::new();
    let offline = || Settings {
        offline: true,
        ..rig.settings()
    };
    let error = pull(offline(), "owner/name").0.unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    let path = rig.pull("owner/name").unwrap();
    let _ = rig.fake.take_asked();
    rig.check(&pull(offline(), "owner/name").0.unwrap());
    assert_eq!(rig.fake.take_asked(), []);
    let error = pull(offline(), "owner/name:Q4_0")
        .0
        .unwrap_err()
        .to_string();
    assert!(error.contains("q4_0"), "{error}");
    // A hub that cannot be reached is not needed for what is there, but is not passed over in silence.
    rig.fake.break_by(&[Fault::Status(503, 1000)]);
    let (found, heard) = pull(rig.settings(), "owner/name");
    rig.check(&found.unwrap());
    assert!(heard.notes[0].contains("from the cache"), "{heard:?}");
    // A model of which a part is missing is none.
    fs::remove_file(path.join("2.safetensors")).unwrap();
    let error = pull(offline(), "owner/name").0.unwrap_err().to_string();
    assert!(error.contains("2.safetensors is missing"), "{error}");
}

#[test]
fn a_hub_that_lies_writes_nothing_outside_of_the_cache() {
    for fault in [
        Fault::Lists("../../../evil.json"),
        Fault::Lists("/etc/evil.json"),
        Fault::Lists("a\\..\\evil.json"),
        Fault::Commit("../../../evil"),
        Fault::Commit(""),
        Fault::Etag("../../../../evil"),
        Fault::Etag("not a checksum"),
        Fault::Etag(""),
    ] {
        let rig = Rig::new();
        rig.fake.break_by(std::slice::from_ref(&fault));
        let error = rig.pull("owner/name").unwrap_err();
        assert!(
            matches!(error, HubError::Answer { .. }),
            "{fault:?}: {error}"
        );
        assert!(
            error.to_string().contains("which is no"),
            "{fault:?}: {error}"
        );
        assert!(!rig.root().exists(), "{fault:?}: {:?}", names(&rig.root()));
    }
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let rig = Rig::new();
    std::thread::scope(|scope| {
        let pulls = [0, 1, 2].map(|_| scope.spawn(|| rig.pull("owner/name").unwrap()));
        for pull in pulls {
            rig.check(&pull.join().unwrap());
        }
    });
    let asked = rig.fake.take_asked();
    let fetched = asked
        .iter()
        .filter(|asked| asked.method == "GET" && asked.path.ends_with("1.safetensors"));
    assert_eq!(fetched.count(), 1);
}

fn offshoot(words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary().unwrap());
    command.args(words).envs(variables.iter().copied());
    for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"] {
        if !variables.iter().any(|(known, _)| known == &name) {
            command.env_remove(name);
        }
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_model_of_a_hub_generates_what_the_model_of_a_path_does() {
    let draft = model("draft");
    let fake = FakeHub::of_folder("nano/draft", &draft).unwrap();
    let home = tempfile::tempdir().unwrap();
    let endpoint = fake.endpoint();
    let variables = [
        ("HF_ENDPOINT", endpoint.as_str()),
        ("HF_HOME", home.path().to_str().unwrap()),
    ];
    let generate = |target: &str, variables: &[(&str, &str)]| {
        let words = [
            "generate",
            "fn main() {",
            "--max-tokens",
            "16",
            "--drafts",
            "0",
            "--no-qualifier",
            "--target",
            target,
        ];
        let out = offshoot(&words, variables);
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout).to_owned()
    };
    let expected = generate(draft.to_str().unwrap(), &variables);
    assert!(!expected.is_empty());
    fake.break_by(&[Fault::Cut(300_000, 2), Fault::Elsewhere]);
    assert_eq!(generate("hf://nano/draft", &variables), expected);
    let offline = [&variables[..], &[("HF_HUB_OFFLINE", "1")]].concat();
    assert_eq!(generate("nano/draft", &offline), expected);
    let listed = offshoot(&["models", "list"], &offline);
    assert!(text(&listed.stdout).contains("nano/draft"), "{listed:?}");
    let inspected = offshoot(&["models", "inspect", "nano/draft", "--json"], &offline);
    let report: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(report["refused"], serde_json::json!([]), "{report}");
    let missed = offshoot(&["models", "pull", "nano/other"], &offline);
    assert!(!missed.status.success());
    assert!(
        text(&missed.stderr).contains("HF_HUB_OFFLINE"),
        "{missed:?}"
    );
}

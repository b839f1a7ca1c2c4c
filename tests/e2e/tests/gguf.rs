//! A GGUF file wherever a model folder is: as target, as draft, and as the coordinator's tokenizer.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::Process;
use offshoot_e2e::{REFERENCE, strategies};
use speculation::duty::Source;

const TOKENS: u32 = 48;
const PROMPTS: [&str; 3] = [
    "the ring 123",
    "Hello world, lower",
    "x=1;\n  y==22 x=1;\n  y==",
];

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gguf");
    let path: PathBuf = folder.join(name);
    path.display().to_string()
}

fn start(words: &[&str]) -> Process {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    Process::start(&words).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_strategy_changes_a_token() {
    let model = fixture("llama.gguf");
    let target = start(&["target-worker", "--role", "target", "--model", &model]);
    // The same model in 4 bits.
    let draft = start(&["draft-worker", "--model", &model, "--dtype", "q4_0"]);
    let alone = start(&[
        "coordinator",
        "--tokenizer",
        &model,
        "--target",
        &target.addr,
    ]);
    let both = start(&[
        "coordinator",
        "--tokenizer",
        &model,
        "--target",
        &target.addr,
        "--draft",
        &draft.addr,
    ]);
    let mut by_lookup = 0;
    for (coordinator, workers) in [(&alone, 1), (&both, 2)] {
        let client = Client::connect(&coordinator.addr, workers).await.unwrap();
        for prompt in PROMPTS {
            for t in [0.0, 1.0] {
                let ar = client
                    .generate(request(prompt, TOKENS, t, REFERENCE))
                    .await
                    .unwrap();
                assert!(!ar.ids.is_empty());
                for strategy in strategies() {
                    let asked = request(prompt, TOKENS, t, strategy.name);
                    let other = client.generate(asked).await.unwrap();
                    assert_eq!(ar.ids, other.ids, "{}, {prompt:?}, T = {t}", strategy.name);
                    assert_eq!((&ar.text, ar.reason), (&other.text, other.reason));
                    if workers == 1 {
                        by_lookup += other.guesses(Source::Lookup).committed;
                    }
                }
            }
        }
    }
    assert!(by_lookup > 0, "no guess came from the text itself");
}

//! Workers without weights: the seed decides the text there too, under every strategy, and everything says synthetic.

#![allow(clippy::unwrap_used, reason = "tests")]

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::{REFERENCE, model, prompts, strategies};

const TOKENS: u32 = 48;
const SHAPE: Shape = Shape {
    drafts: 2,
    qualifiers: 1,
    target_pace: 0,
};

/// Every strategy against plain decoding, on workers with these flags.
async fn same_text(flags: &[&str]) {
    let cluster = Cluster::start_with(SHAPE, flags).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let mut texts = Vec::new();
    for prompt in prompts(2).unwrap() {
        for t in [0.0, 1.0] {
            let plain = client
                .generate(request(&prompt, TOKENS, t, REFERENCE))
                .await
                .unwrap();
            assert_eq!(
                plain.ids.len(),
                TOKENS as usize,
                "nothing ends a text early"
            );
            let fingerprint = &plain.started.system_fingerprint;
            assert!(fingerprint.starts_with("synthetic-nano-"), "{fingerprint}");
            let (mut steps, mut tokens) = (0, 0);
            for strategy in strategies() {
                let other = client
                    .generate(request(&prompt, TOKENS, t, strategy.name))
                    .await
                    .unwrap();
                assert_eq!(other.ids, plain.ids, "{}, T = {t}", strategy.name);
                assert_eq!(other.text, plain.text);
                steps += other.statistics.walks.unwrap_or_default().steps;
                tokens += u64::from(TOKENS);
            }
            // Whether guesses come in time is up to the machine; some strategies wait for them.
            assert!(steps < tokens, "no guess was ever right");
            assert!(!texts.contains(&plain.ids), "prompt and temperature matter");
            texts.push(plain.ids);
        }
    }
    let workers = client.workers().await.unwrap();
    assert_eq!(workers.len(), 4);
    for worker in workers {
        assert!(
            worker.model.starts_with("synthetic-nano"),
            "{}",
            worker.model
        );
        assert!(
            worker.numerics_id.starts_with("synthetic-"),
            "{}",
            worker.numerics_id
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_strategy_gives_the_text_of_plain_decoding_without_weights() {
    let profile = model("profiles/nano.json").display().to_string();
    same_text(&["--synthetic", &profile, "--step-ms", "1:2,64:4"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_over_real_models_decides_the_text_as_well() {
    let profile = model("profiles/nano.json").display().to_string();
    same_text(&["--overlay", &profile]).await;
}

//! The seed decides the text: no strategy, number of drafts or qualifier changes a token.
//!
//! Every registered strategy is compared with plain decoding. By default on a few prompts; `OFFSHOOT_E2E=full` runs
//! 200 at every temperature in a cluster with every role, and 16 in others.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;

use offshoot_e2e::client::{Client, Completion, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::oracle::Oracle;
use offshoot_e2e::{REFERENCE, full, model, prompts, strategies};
use speculation::duty::Source;

const TOKENS: u32 = 64;

/// Drafts and qualifiers of a cluster with every role.
const USUAL: (usize, usize) = (1, 1);

async fn complete(client: &Client, prompt: &str, t: f32, strategy: &str) -> Completion {
    let request = request(prompt, TOKENS, t, strategy);
    client.generate(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_strategy_gives_the_text_of_plain_decoding() {
    let temperatures = [0.0_f32, 0.7, 1.0];
    // Of every role one, and other clusters.
    let (count, few) = if full() { (200, 16) } else { (4, 2) };
    let prompts = prompts(count).unwrap();
    assert_eq!(prompts.len(), count);
    let strategies = strategies();
    assert!(strategies.len() >= 3, "{strategies:?}");
    let shapes = [(0, 0), (1, 0), USUAL, (3, 0), (3, 1)];
    let mut plain: BTreeMap<(usize, u32), Completion> = BTreeMap::new();
    let mut compared = 0;
    let mut found_by_lookup = 0;
    for shape in shapes {
        let (drafts, qualifiers) = shape;
        let cluster = Cluster::start(Shape {
            drafts,
            qualifiers,
            target_pace: 0,
        });
        let cluster = cluster.unwrap();
        let workers = drafts + qualifiers + 1;
        let client = Client::connect(&cluster.coordinator.addr, workers)
            .await
            .unwrap();
        let count = if shape == USUAL { count } else { few };
        for (at, prompt) in prompts.iter().take(count).enumerate() {
            for t in temperatures {
                let key = (at, t.to_bits());
                if let std::collections::btree_map::Entry::Vacant(entry) = plain.entry(key) {
                    let ar = complete(&client, prompt, t, REFERENCE).await;
                    assert!(!ar.ids.is_empty());
                    assert!(
                        ar.statistics.drafts.is_empty(),
                        "plain decoding uses no draft"
                    );
                    entry.insert(ar);
                }
                for strategy in &strategies {
                    let strategy = strategy.name;
                    let other = complete(&client, prompt, t, strategy).await;
                    let ar = &plain[&key];
                    assert_eq!(
                        ar.ids, other.ids,
                        "{strategy} with {drafts} drafts and {qualifiers} qualifiers, prompt {at}, T = {t}"
                    );
                    assert_eq!((&ar.text, ar.reason), (&other.text, other.reason));
                    compared += 1;
                    if workers == 1 {
                        found_by_lookup += other.guesses(Source::Lookup).committed;
                    }
                }
            }
        }
    }
    println!("{compared} completions equal plain decoding");
    assert!(found_by_lookup > 0, "without drafts, only lookup guesses");
    println!("{found_by_lookup} tokens guessed by lookup alone");
    let oracle = Oracle::load(&model("target")).unwrap();
    let tokenizer = text::Tokenizer::load(&model("target")).unwrap();
    for (at, prompt) in prompts.iter().enumerate() {
        let ids = tokenizer.encode(prompt, text::Special::Add).unwrap();
        let expected = oracle.greedy(&ids, TOKENS as usize, 0).unwrap();
        assert_eq!(plain[&(at, 0.0_f32.to_bits())].ids, expected, "prompt {at}");
    }
    println!("{count} greedy completions equal candle-transformers'");
}

//! Heads beside a target, as the only contributor: the text of plain decoding, in fewer steps.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use offshoot_e2e::client::{Client, Guesses, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::{REFERENCE, full, prompts};
use proto::v1::GenerateRequest;
use speculation::duty::Source;

const TOKENS: u32 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_alone_find_the_text_of_plain_decoding_in_fewer_steps() {
    let prompts = prompts(if full() { 64 } else { 6 }).unwrap();
    let cluster = Cluster::start(Shape {
        drafts: 0,
        qualifiers: 0,
        // As fast as the bundled target is, heads do not pay, and are not asked.
        target_pace: 5,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 1).await.unwrap();
    let (mut steps, mut tokens, mut accepted) = (0, 0, 0);
    for t in [0.0, 0.7, 1.0] {
        for prompt in &prompts {
            let ar = client
                .generate(request(prompt, TOKENS, t, REFERENCE))
                .await
                .unwrap();
            let asked = GenerateRequest {
                knobs: [("lookup".to_owned(), 0.0), ("heads".to_owned(), 24.0)].into(),
                ..request(prompt, TOKENS, t, "auto")
            };
            let found = client.generate(asked).await.unwrap();
            assert_eq!(ar.ids, found.ids, "{prompt:?} at T = {t}");
            let of_heads = found.guesses(Source::Heads);
            let walks = found.statistics.walks.unwrap_or_default();
            assert_eq!(
                of_heads.nodes,
                walks.source_nodes.iter().sum::<u64>(),
                "only heads guess"
            );
            steps += walks.steps;
            tokens += walks.tokens;
            accepted += of_heads.committed;
            assert_eq!(ar.guesses(Source::Heads), Guesses::default());
            assert_eq!(ar.statistics.walks.unwrap_or_default().heads_steps, 0);
        }
    }
    println!("{tokens} tokens in {steps} steps, {accepted} of them guessed by heads");
    assert!(tokens > steps && accepted > 0);
}

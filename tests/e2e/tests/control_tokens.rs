//! Control tokens: spelled out in a prompt they are text unless the request says otherwise, and as stop texts they stop although
//! a completion does not show them.

#![allow(clippy::unwrap_used, reason = "tests")]

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::{REFERENCE, strategies};
use proto::outward;
use proto::v1::{FinishReason, GenerateRequest};

/// The end of text of the bundled models.
const CONTROL: (&str, u32) = ("<|endoftext|>", 0);

async fn cluster() -> (Cluster, Client) {
    let cluster = Cluster::start(Shape {
        drafts: 1,
        qualifiers: 1,
        target_pace: 0,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 3).await.unwrap();
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_prompt_spells_out_is_text_unless_it_is_said_to_be_tokens() {
    let (_cluster, client) = cluster().await;
    let prompt = format!("let a = 1;{}fn", CONTROL.0);
    let ids = async |parse_special| {
        let asked = GenerateRequest {
            parse_special,
            ..request(&prompt, 4, 0.0, REFERENCE)
        };
        client
            .generate(asked)
            .await
            .unwrap()
            .started
            .prompt_token_ids
    };
    let (text, tokens) = (ids(false).await, ids(true).await);
    assert!(!text.contains(&CONTROL.1), "{text:?}");
    assert_eq!(tokens.iter().filter(|&&id| id == CONTROL.1).count(), 1);
    assert!(text.len() > tokens.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_token_as_a_stop_text_stops() {
    let (_cluster, client) = cluster().await;
    let with_bias = |bias: f32, strategy: &str| GenerateRequest {
        bias_ids: vec![CONTROL.1],
        bias_values: vec![bias],
        ignore_eos: true,
        ..request("fn main() {", 40, 0.8, strategy)
    };
    // As likely as it takes, and no end by itself.
    let mut bias = 4.0;
    let (whole, at) = loop {
        let asked = with_bias(bias, REFERENCE);
        let whole = client.generate(asked).await.unwrap();
        let at = whole.ids.iter().position(|&id| id == CONTROL.1);
        match at.filter(|at| at + 1 < whole.ids.len()) {
            Some(at) => break (whole, at),
            None => bias += 1.0,
        }
        assert!(bias < 30.0, "the text has no control token");
    };
    let asked = |strategy: &str| with_bias(bias, strategy);
    let mut names: Vec<_> = strategies().iter().map(|entry| entry.name).collect();
    names.push(REFERENCE);
    for strategy in names {
        for include_stop in [false, true] {
            let asked = GenerateRequest {
                stop: vec!["never".to_owned(), CONTROL.0.to_owned()],
                include_stop,
                ..asked(strategy)
            };
            let ended = client.generate(asked.clone()).await.unwrap();
            assert_eq!(ended.ids, whole.ids[..=at], "{strategy}");
            assert_eq!(ended.reason, i32::from(FinishReason::Stop));
            assert_eq!(ended.stop_text.as_deref(), Some(CONTROL.0));
            let text = match include_stop {
                true => ended.text.strip_suffix(CONTROL.0).unwrap(),
                false => ended.text.as_str(),
            };
            assert!(whole.text.starts_with(text) && !text.contains(CONTROL.0));
            for cut in [0, at, at + 1] {
                let rest = outward::resume(asked.clone(), &ended.started, &ended.ids[..cut], 0);
                let rest = client.generate(rest).await.unwrap();
                assert_eq!(rest.ids, ended.ids[cut..]);
                assert_eq!(rest.stop_text, ended.stop_text);
                assert!(ended.text.ends_with(&rest.text));
            }
        }
    }
    // Before the least number of tokens it does not count.
    let later = GenerateRequest {
        stop: vec![CONTROL.0.to_owned()],
        min_tokens: at as u32 + 1,
        ..asked("auto")
    };
    let later = client.generate(later).await.unwrap();
    assert_eq!(later.ids[..=at], whole.ids[..=at]);
    assert!(later.ids.len() > at + 1);
}

//! The acceptance rules through real processes: `rejection` draws another text that the seed decides, and is refused where
//! it could not be right; `fuzzy` says what it lets pass. At temperature 0, and without tolerance, both are plain decoding.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use offshoot_e2e::client::{Client, Completion, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::{REFERENCE, prompts};
use proto::v1::acceptance::Rule;
use proto::v1::{Acceptance, GenerateRequest};

const TOKENS: u32 = 48;

/// Strategies in which a draft takes turns or makes chains.
const DRAWN: [&str; 3] = ["serial", "serial-tree", "parallel"];

fn by(rule: Rule, strategy: &str, prompt: &str, t: f32) -> GenerateRequest {
    GenerateRequest {
        acceptance: Some(Acceptance {
            rule: rule.into(),
            ..Acceptance::default()
        }),
        ..request(prompt, TOKENS, t, strategy)
    }
}

async fn plain(client: &Client, prompt: &str, t: f32) -> Completion {
    let asked = request(prompt, TOKENS, t, REFERENCE);
    client.generate(asked).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejection_is_another_text_of_the_same_seed_and_the_same_text_at_zero() {
    let cluster = Cluster::start(Shape {
        drafts: 2,
        qualifiers: 1,
        target_pace: 0,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let (mut accepted, mut same, mut all) = (0, 0, 0);
    for prompt in &prompts(3).unwrap() {
        let greedy = plain(&client, prompt, 0.0).await;
        let drawn = plain(&client, prompt, 1.0).await;
        for strategy in DRAWN {
            let zero = by(Rule::Rejection, strategy, prompt, 0.0);
            let zero = client.generate(zero).await.unwrap();
            assert_eq!(zero.ids, greedy.ids, "{strategy} at T = 0");
            let one = by(Rule::Rejection, strategy, prompt, 1.0);
            let one = client.generate(one).await.unwrap();
            assert!(!one.started.lossy && !one.ids.is_empty());
            assert_eq!(one.statistics.drafts.len(), 1, "one draft is asked");
            accepted += one.statistics.walks.unwrap().guesses_accepted;
            same += usize::from(one.ids == drawn.ids);
            all += 1;
        }
        // Lengths that are not set follow measured step times, and with them the text.
        for (strategy, length) in [("serial", "gamma"), ("serial-tree", "depth")] {
            let asked = GenerateRequest {
                knobs: [(length.to_owned(), 4.0)].into(),
                ..by(Rule::Rejection, strategy, prompt, 1.0)
            };
            let first = decided_by_the_seed(&client, &asked).await;
            let other = GenerateRequest {
                seed: Some(8),
                ..asked
            };
            let other = client.generate(other).await.unwrap();
            assert_ne!(first, other.ids, "another seed under {strategy}");
        }
    }
    assert!(accepted > 0, "guesses are accepted");
    assert!(same < all, "it is not the text of plain decoding");
    println!("{accepted} guesses accepted, {same} of {all} texts as under exact");
}

/// The text that comes again. A round of drafting ends after a second, whatever has come: where a machine stalls for longer,
/// once, there is another text.
async fn decided_by_the_seed(client: &Client, asked: &GenerateRequest) -> Vec<u32> {
    let mut seen = Vec::new();
    for _ in 0..4 {
        let ids = client.generate(asked.clone()).await.unwrap().ids;
        if seen.contains(&ids) {
            return ids;
        }
        seen.push(ids);
    }
    panic!(
        "the seed does not decide under {}: {seen:?}",
        asked.strategy
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_is_refused_where_it_could_not_be_right() {
    let cluster = Cluster::start(Shape {
        drafts: 1,
        qualifiers: 0,
        target_pace: 0,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 2).await.unwrap();
    let two = GenerateRequest {
        drafts: Some(2),
        ..by(Rule::Rejection, "serial", "fn", 1.0)
    };
    let far = GenerateRequest {
        acceptance: Some(Acceptance {
            rule: Rule::Fuzzy.into(),
            tau_q: Some(-1.0),
            tau_t: None,
        }),
        ..request("fn", TOKENS, 1.0, "auto")
    };
    for (asked, part) in [
        (by(Rule::Rejection, "auto", "fn", 1.0), "serial"),
        (by(Rule::Rejection, "", "fn", 1.0), "auto"),
        (by(Rule::Fuzzy, "serial", "fn", 1.0), "fuzzy"),
        (two, "drafts"),
        (far, "tau_q is -1"),
    ] {
        let status = client.generate(asked).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(part), "{}", status.message());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzzy_reports_what_it_tolerates_and_tolerates_nothing_without_tolerance() {
    let cluster = Cluster::start(Shape {
        drafts: 1,
        qualifiers: 1,
        target_pace: 10,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 3).await.unwrap();
    let within = |tau: f32, prompt: &str, t: f32| GenerateRequest {
        acceptance: Some(Acceptance {
            rule: Rule::Fuzzy.into(),
            tau_q: Some(tau),
            tau_t: Some(tau),
        }),
        ..request(prompt, TOKENS, t, "auto")
    };
    let (mut tolerated, mut differing) = (0, 0);
    for prompt in &prompts(3).unwrap() {
        for t in [0.0, 1.0] {
            let plain = plain(&client, prompt, t).await;
            assert!(!plain.started.lossy);
            let strict = client.generate(within(0.0, prompt, t)).await.unwrap();
            assert_eq!(strict.ids, plain.ids, "nothing is tolerated at T = {t}");
            assert_eq!(strict.statistics.walks.unwrap().tolerated, 0);
            let loose = client.generate(within(20.0, prompt, t)).await.unwrap();
            assert!(loose.started.lossy, "it says so");
            tolerated += loose.statistics.walks.unwrap().tolerated;
            differing += usize::from(loose.ids != plain.ids);
        }
    }
    assert!(tolerated > 0 && differing > 0, "{tolerated}, {differing}");
    println!("{tolerated} tokens tolerated in 6 texts, {differing} of them other than exact");
}

/// Three models that take turns: the text is lossy, but the seed decides it, however busy the workers are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzzy_in_lock_step_gives_the_same_text_again() {
    let cluster = Cluster::start(Shape {
        drafts: 1,
        qualifiers: 1,
        target_pace: 0,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 3).await.unwrap();
    let within = |(tau_q, tau_t): (f32, f32), prompt: &str, t: f32| GenerateRequest {
        acceptance: Some(Acceptance {
            rule: Rule::Fuzzy.into(),
            tau_q: Some(tau_q),
            tau_t: Some(tau_t),
        }),
        ..request(prompt, TOKENS, t, "pyramid")
    };
    let (mut tolerated, mut differing, mut accepted) = (0, 0, 0);
    for prompt in &prompts(3).unwrap() {
        for t in [0.0, 1.0] {
            let plain = plain(&client, prompt, t).await;
            let strict = client.generate(within((0.4, 0.0), prompt, t)).await;
            assert_eq!(strict.unwrap().ids, plain.ids, "T = {t}");
            // PSD_F and PSD_A.
            for tau in [(1.0, 2.0), (0.0, 2.0)] {
                let alone = client.generate(within(tau, prompt, t)).await.unwrap();
                let (again, other) = tokio::join!(
                    client.generate(within(tau, prompt, t)),
                    client.generate(request("struct", TOKENS, t, "auto")),
                );
                assert_eq!(again.unwrap().ids, alone.ids, "{tau:?}, T = {t}");
                other.unwrap();
                let walks = alone.statistics.walks.unwrap();
                tolerated += walks.tolerated;
                accepted += walks.guesses_accepted;
                differing += usize::from(alone.ids != plain.ids);
            }
        }
    }
    assert!(accepted > 0, "guesses are accepted");
    assert!(tolerated > 0 && differing > 0, "{tolerated}, {differing}");
    println!("{accepted} guesses accepted, {tolerated} tolerated, {differing} of 12 texts differ");
}

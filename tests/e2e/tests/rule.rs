//! A draft that is a rule: one file, which is all it takes to add a proposer. It runs as a draft worker behind a real socket,
//! between the processes of a cluster.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use decode::{Guess, Proposal, Proposed, Proposer, Seen};
use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::Process;
use offshoot_e2e::{REFERENCE, model, prompts, strategies};
use runtime::{Drain, Listener, NetArgs, Readiness, ServerLimits, serve};
use speculation::duty::Source;
use speculation::strategy::Registry;
use text::{Special, Tokenizer};
use worker::proposing::{self, ProposingArgs};

const TOKENS: u32 = 64;

/// What follows what, by the end of the text.
const RULE: [(&str, &str); 6] = [
    ("(", ")"),
    (";", "\n    "),
    ("{", "\n    "),
    ("}", "\n"),
    (":", ":"),
    ("&", "self"),
];

/// Proposes what the rule says, token by token.
struct Brackets {
    tokenizer: Arc<Tokenizer>,
}

impl Proposer for Brackets {
    fn propose(&mut self, seen: &Seen<'_>, most: usize) -> Proposal {
        let mut proposal = Proposal::default();
        let before = seen.before.path.last().or(seen.before.text.last());
        let text = before.and_then(|&token| self.tokenizer.decode(&[token]).ok());
        let text = text.unwrap_or_default();
        let Some((_, next)) = RULE.iter().find(|(end, _)| text.ends_with(end)) else {
            return proposal;
        };
        let mut parent = None;
        for token in self.tokenizer.encode(next, Special::Omit).unwrap() {
            if proposal.len() < most {
                parent = proposal.push(Proposed {
                    parent,
                    rank: 0,
                    guess: Guess::rated(token, 0.5),
                });
            }
        }
        proposal
    }
}

/// Serves the rule as a draft worker of this process; its address.
async fn serve_rule(drain: &Drain) -> String {
    let tokenizer = Arc::new(Tokenizer::load(&model("target")).unwrap());
    let args = ProposingArgs {
        name: "brackets".to_owned(),
        tokenizer: model("target"),
        source: Source::Rule,
        max_context: 1024,
        max_sessions: 4,
        tree_rows: 256,
    };
    let make = move || Brackets {
        tokenizer: Arc::clone(&tokenizer),
    };
    let loaded = proposing::load(&args, make).unwrap();
    let handle = worker::start(loaded, Registry::default()).unwrap();
    let listener = Listener::bind(&NetArgs::default()).await.unwrap();
    let addr = listener.local_addr().to_string();
    let service = worker::service::service(handle, drain, &Readiness::new());
    let router = serve::server(&ServerLimits::default()).add_service(service);
    tokio::spawn(serve::serve(listener, router, drain.clone()));
    addr
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_is_a_draft_and_changes_no_token() {
    let drain = Drain::new();
    let rule = serve_rule(&drain).await;
    let folder = model("target").display().to_string();
    let target = Process::start(&words(&["target-worker", "--model", &folder])).unwrap();
    let coordinator = Process::start(&words(&[
        "coordinator",
        "--tokenizer",
        &folder,
        "--target",
        &target.addr,
        "--draft",
        &rule,
    ]))
    .unwrap();
    let client = Client::connect(&coordinator.addr, 2).await.unwrap();
    let (mut nodes, mut committed, mut hits) = (0, 0, 0);
    for prompt in prompts(4).unwrap() {
        for t in [0.0, 1.0] {
            let plain = client.generate(request(&prompt, TOKENS, t, REFERENCE));
            let plain = plain.await.unwrap();
            for strategy in strategies() {
                let asked = request(&prompt, TOKENS, t, strategy.name);
                let guessed = client.generate(asked).await.unwrap();
                assert_eq!(guessed.ids, plain.ids, "{}, T = {t}", strategy.name);
                let of_rule = guessed.guesses(Source::Rule);
                nodes += of_rule.nodes;
                committed += of_rule.committed;
                hits += of_rule.hits;
                let drafted = guessed.guesses(Source::Draft).nodes;
                assert_eq!(drafted, 0, "there is no draft model");
            }
        }
    }
    println!("the rule: {nodes} nodes, {committed} committed, {hits} hits");
    assert!(nodes > 0 && committed > 0 && hits > 0);
    // A hit may be a guess that came too late to be a node.
    assert!(committed <= nodes);
    let models: Vec<String> = (client.workers().await.unwrap().into_iter())
        .map(|worker| worker.model)
        .collect();
    assert!(models.contains(&"brackets".to_owned()), "{models:?}");
    drain.begin();
}

#[test]
fn who_asks_for_what_does_not_cross_the_network_is_refused() {
    struct Head;
    impl Proposer for Head {
        fn taps(&self) -> decode::Taps {
            decode::Taps { layers: 3 }
        }
        fn propose(&mut self, _: &Seen<'_>, _: usize) -> Proposal {
            Proposal::default()
        }
    }
    let args = ProposingArgs {
        name: "head".to_owned(),
        tokenizer: model("target"),
        source: Source::Draft,
        max_context: 64,
        max_sessions: 1,
        tree_rows: 64,
    };
    let Err(refused) = proposing::load(&args, || Head) else {
        panic!("nobody could serve it");
    };
    assert!(refused.to_string().contains("3 layers"), "{refused}");
}

//! What a worker says about itself, and whether this cluster can use it.

use proto::{PROTOCOL, v1};
use speculation::relay::Role;
use text::Vocabulary;

/// Names in a hello are shown to people; longer ones are no names.
const MAX_NAME: usize = 256;

/// The stop ids of a session hold the request's and these; see `request::MAX_STOP_IDS`.
const MAX_EOS_IDS: usize = 32;

/// A worker that speaks our protocol and our vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) model: String,
    pub(crate) numerics_id: String,
    /// Tokens a text may have there, prompt included.
    pub(crate) max_context: u32,
    /// Sessions it serves at one time.
    pub(crate) max_sessions: usize,
    /// Tokens that end a text of this model.
    pub(crate) eos_ids: Vec<u32>,
    /// Pages of its cache.
    pub(crate) kv_pages: u32,
    /// Positions of one page.
    pub(crate) kv_page: u32,
}

/// Why a worker is not used, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error("it speaks protocol {theirs}, this coordinator speaks {PROTOCOL}; run equal versions")]
    Protocol { theirs: u32 },
    #[error("it is a {theirs:?}, but is configured as a {ours}")]
    Role { theirs: String, ours: &'static str },
    #[error(
        "its vocabulary is {theirs} with {theirs_len} tokens, the coordinator's tokenizer has {ours} with {ours_len}; \
         models that speculate together need the same tokenizer"
    )]
    Vocabulary {
        theirs: String,
        theirs_len: u32,
        ours: String,
        ours_len: usize,
    },
    #[error("its hello makes no sense: {0}")]
    Nonsense(&'static str),
}

/// The word for a role on the wire.
pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Draft => "draft",
        Role::Qualifier => "qualifier",
        Role::Target => "target",
    }
}

/// Compares a hello with what was configured and with the coordinator's own tokenizer, and through it with every
/// other worker. Logits may be wider than the tokenizer (padding), never narrower.
pub(crate) fn check(
    reply: v1::HelloReply,
    role: Role,
    ours: &Vocabulary,
) -> Result<Hello, Mismatch> {
    if reply.protocol != PROTOCOL {
        return Err(Mismatch::Protocol {
            theirs: reply.protocol,
        });
    }
    let names = [
        &reply.role,
        &reply.model,
        &reply.numerics_id,
        &reply.vocabulary_hash,
    ];
    if names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(Mismatch::Nonsense("a name is longer than 256 bytes"));
    }
    if reply.role != role_name(role) {
        return Err(Mismatch::Role {
            theirs: reply.role,
            ours: role_name(role),
        });
    }
    let same = reply.vocabulary_hash == ours.hash();
    if !same || (reply.vocabulary_len as usize) < ours.len() {
        return Err(Mismatch::Vocabulary {
            theirs: reply.vocabulary_hash,
            theirs_len: reply.vocabulary_len,
            ours: ours.hash().to_owned(),
            ours_len: ours.len(),
        });
    }
    if reply.max_sessions == 0 {
        return Err(Mismatch::Nonsense("room for no session"));
    }
    if reply.max_context < 2 {
        return Err(Mismatch::Nonsense("a context of less than 2 tokens"));
    }
    if reply.kv_page == 0 || reply.kv_positions < reply.max_context {
        return Err(Mismatch::Nonsense("a cache smaller than its context"));
    }
    if reply.eos_ids.len() > MAX_EOS_IDS {
        return Err(Mismatch::Nonsense("more than 32 end-of-text ids"));
    }
    Ok(Hello {
        model: reply.model,
        numerics_id: reply.numerics_id,
        max_context: reply.max_context,
        max_sessions: reply.max_sessions as usize,
        eos_ids: reply.eos_ids,
        kv_pages: reply.kv_positions / reply.kv_page,
        kv_page: reply.kv_page,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use text::Tokenizer;

    fn tokenizer() -> Tokenizer {
        let json = r#"{"version":"1.0","added_tokens":[],"pre_tokenizer":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"}}"#;
        Tokenizer::from_bytes(json.as_bytes()).unwrap()
    }

    fn reply(ours: &Vocabulary) -> v1::HelloReply {
        v1::HelloReply {
            protocol: PROTOCOL,
            role: "draft".to_owned(),
            model: "m".to_owned(),
            numerics_id: "n".to_owned(),
            vocabulary_hash: ours.hash().to_owned(),
            vocabulary_len: 2,
            max_context: 64,
            max_sessions: 3,
            eos_ids: vec![1],
            kv_positions: 192,
            kv_page: 16,
        }
    }

    #[test]
    fn a_hello_that_fits_is_taken_whole() {
        let tokenizer = tokenizer();
        let hello = check(
            reply(tokenizer.vocabulary()),
            Role::Draft,
            tokenizer.vocabulary(),
        );
        let hello = hello.unwrap();
        assert_eq!((hello.max_context, hello.max_sessions), (64, 3));
        assert_eq!(hello.eos_ids, [1]);
    }

    #[test]
    fn every_misfit_is_told_apart() {
        type Change = fn(&mut v1::HelloReply);
        let tokenizer = tokenizer();
        let cases: [(Change, &str); 10] = [
            (|r| r.protocol = 0, "protocol 0"),
            (|r| r.role = "target".to_owned(), "is a \"target\""),
            (
                |r| r.vocabulary_hash = "beef".to_owned(),
                "vocabulary is beef",
            ),
            (|r| r.vocabulary_len = 1, "1 tokens"),
            (|r| r.model = "m".repeat(300), "longer than 256"),
            (|r| r.max_context = 1, "less than 2"),
            (|r| r.max_sessions = 0, "no session"),
            (|r| r.eos_ids = vec![0; 33], "more than 32"),
            (|r| r.kv_page = 0, "smaller than its context"),
            (|r| r.kv_positions = 63, "smaller than its context"),
        ];
        for (change, why) in cases {
            let mut odd = reply(tokenizer.vocabulary());
            change(&mut odd);
            let error = check(odd, Role::Draft, tokenizer.vocabulary()).unwrap_err();
            assert!(error.to_string().contains(why), "{why:?} is not in {error}");
        }
    }
}

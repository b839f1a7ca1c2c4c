//! What a worker says about itself, and whether this cluster can use it.

use std::fmt;

use proto::{OLDEST_PROTOCOL, PROTOCOL, v1};
use speculation::duty::Role;
use text::Vocabulary;
use tonic::Code;

/// Names in a handshake are shown to people; longer ones are refused.
const MAX_NAME: usize = 256;

/// Capabilities that a worker may name.
const MAX_CAPABILITIES: usize = 32;

/// The stop ids of a session hold the request's and these; see `request::MAX_STOP_IDS`.
const MAX_EOS_IDS: usize = 32;

/// A worker that speaks our protocol and has our vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Names the process; 0 if it does not say.
    pub(crate) instance: u64,
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
    /// Names what it computes on; empty if nobody else does.
    pub(crate) device: String,
}

/// The protocols that a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protocols {
    oldest: u32,
    newest: u32,
}

/// Those of this coordinator.
const OURS: Protocols = Protocols {
    oldest: OLDEST_PROTOCOL,
    newest: PROTOCOL,
};

impl Protocols {
    /// Peers before protocol 4 do not name their oldest one: they speak exactly one.
    fn of(reply: &v1::HelloReply) -> Self {
        let newest = reply.protocol;
        let oldest = match reply.oldest_protocol {
            0 => newest,
            oldest => oldest.min(newest),
        };
        Protocols { oldest, newest }
    }

    fn meet(self, other: Protocols) -> bool {
        self.oldest <= other.newest && other.oldest <= self.newest
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Protocols { oldest, newest } = self;
        if oldest == newest {
            write!(f, "protocol {newest}")
        } else {
            write!(f, "protocols {oldest} to {newest}")
        }
    }
}

/// Why a worker is not used. The texts are for people; "it" is the worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error(
        "it speaks {theirs}, this coordinator speaks {OURS}; run versions that share a protocol"
    )]
    Protocol { theirs: Protocols },
    /// It knows no `Worker` service.
    #[error(
        "it speaks an older protocol, or is no Offshoot worker (it has no Worker service); this coordinator speaks \
         {OURS}: run versions that share a protocol"
    )]
    NoService,
    /// It is what clients call.
    #[error(
        "it is a coordinator and no worker; give the addresses of its workers, or of others, instead"
    )]
    Coordinator,
    /// It answers the handshake with an error that will not pass.
    #[error("it answers the handshake with {code:?} ({message}); is it an Offshoot worker?")]
    Answer { code: Code, message: String },
    #[error(
        "its role is {theirs:?}, but it is configured as a {ours}; give its address with the flag of its role, or with \
         --worker, which takes every role"
    )]
    Role { theirs: String, ours: Role },
    #[error("its role is {theirs:?}, which this coordinator does not know")]
    UnknownRole { theirs: String },
    #[error(
        "it cannot {missing}, which this coordinator needs of a {role}; its capabilities are: {theirs}"
    )]
    Capability {
        role: Role,
        missing: &'static str,
        theirs: String,
    },
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
    #[error(
        "its tokenizer has the tokens of the coordinator's, but other merges, another normaliser or another pre-tokenizer: \
         a text is not the same tokens there; models that speculate together need the same tokenizer"
    )]
    Rules,
    #[error(
        "it is the same process as the worker at {address}, which is used already; list each worker under one address"
    )]
    Same { address: String },
    #[error("invalid handshake: {0}")]
    Invalid(&'static str),
}

/// What a worker of each role has to be able to do, in the words of the handshake.
fn needs(role: Role) -> &'static [&'static str] {
    match role {
        Role::Draft => &["propose"],
        Role::Qualifier => &["verify"],
        Role::Target => &["verify", "commit"],
    }
}

/// Compares a handshake with the role that is expected, if one is, and with the coordinator's own tokenizer, and through
/// it with every other worker. Logits may be wider than the tokenizer (padding), never narrower. Returns the worker's
/// role, too.
pub(crate) fn check(
    reply: v1::HelloReply,
    expected: Option<Role>,
    ours: &Vocabulary,
) -> Result<(Role, Hello), Mismatch> {
    let theirs = Protocols::of(&reply);
    if !theirs.meet(OURS) {
        return Err(Mismatch::Protocol { theirs });
    }
    let names = [
        &reply.role,
        &reply.model,
        &reply.numerics_id,
        &reply.vocabulary_hash,
        &reply.device,
    ];
    let names = names.into_iter().chain(&reply.capabilities);
    if { names }.any(|name| name.len() > MAX_NAME) {
        return Err(Mismatch::Invalid("a name is longer than 256 bytes"));
    }
    if reply.capabilities.len() > MAX_CAPABILITIES {
        return Err(Mismatch::Invalid("more than 32 capabilities"));
    }
    let role = match (Role::from_name(&reply.role), expected) {
        (Some(role), None) => role,
        (Some(role), Some(expected)) if role == expected => role,
        (_, Some(ours)) => {
            let theirs = reply.role;
            return Err(Mismatch::Role { theirs, ours });
        }
        (None, None) => return Err(Mismatch::UnknownRole { theirs: reply.role }),
    };
    let lacks = |need: &&str| reply.capabilities.iter().all(|name| name != need);
    let missing = needs(role).iter().copied().find(lacks);
    if let Some(missing) = missing {
        let theirs = match reply.capabilities.is_empty() {
            true => "none".to_owned(),
            false => reply.capabilities.join(", "),
        };
        return Err(Mismatch::Capability {
            role,
            missing,
            theirs,
        });
    }
    // Older workers say nothing of how texts are cut and merged.
    let is_same = [ours.hash(), ours.token_hash()].contains(&reply.vocabulary_hash.as_str());
    let has_same_tokens = reply.vocabulary_hash.split('-').next() == Some(ours.token_hash());
    if !is_same && has_same_tokens {
        return Err(Mismatch::Rules);
    }
    if !is_same || (reply.vocabulary_len as usize) < ours.len() {
        return Err(Mismatch::Vocabulary {
            theirs: reply.vocabulary_hash,
            theirs_len: reply.vocabulary_len,
            ours: ours.hash().to_owned(),
            ours_len: ours.len(),
        });
    }
    if reply.max_sessions == 0 {
        return Err(Mismatch::Invalid("max_sessions is 0"));
    }
    if reply.max_context < 2 {
        return Err(Mismatch::Invalid("max_context is less than 2 tokens"));
    }
    if reply.kv_page == 0 {
        return Err(Mismatch::Invalid("kv_page is 0"));
    }
    if reply.kv_positions < reply.max_context {
        return Err(Mismatch::Invalid("kv_positions is less than max_context"));
    }
    if reply.eos_ids.len() > MAX_EOS_IDS {
        return Err(Mismatch::Invalid("more than 32 end-of-text ids"));
    }
    let hello = Hello {
        instance: reply.instance,
        model: reply.model,
        numerics_id: reply.numerics_id,
        max_context: reply.max_context,
        max_sessions: reply.max_sessions as usize,
        eos_ids: reply.eos_ids,
        kv_pages: reply.kv_positions / reply.kv_page,
        kv_page: reply.kv_page,
        device: reply.device,
    };
    Ok((role, hello))
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
            oldest_protocol: OLDEST_PROTOCOL,
            role: "draft".to_owned(),
            capabilities: vec!["propose".to_owned(), "sing".to_owned()],
            model: "m".to_owned(),
            numerics_id: "n".to_owned(),
            vocabulary_hash: ours.hash().to_owned(),
            vocabulary_len: 2,
            max_context: 64,
            max_sessions: 3,
            eos_ids: vec![1],
            kv_positions: 192,
            kv_page: 16,
            instance: 9,
            device: "d".to_owned(),
        }
    }

    #[test]
    fn a_handshake_that_fits_is_taken_whole() {
        let tokenizer = tokenizer();
        let hello = check(
            reply(tokenizer.vocabulary()),
            Some(Role::Draft),
            tokenizer.vocabulary(),
        );
        let (_, hello) = hello.unwrap();
        assert_eq!((hello.max_context, hello.max_sessions), (64, 3));
        assert_eq!((hello.eos_ids, hello.instance), (vec![1], 9));
    }

    #[test]
    fn a_newer_worker_that_still_speaks_our_protocol_is_taken() {
        let tokenizer = tokenizer();
        let newer = v1::HelloReply {
            protocol: PROTOCOL + 2,
            ..reply(tokenizer.vocabulary())
        };
        assert!(check(newer, Some(Role::Draft), tokenizer.vocabulary()).is_ok());
    }

    #[test]
    fn every_mismatch_is_told_apart() {
        type Change = fn(&mut v1::HelloReply);
        let tokenizer = tokenizer();
        let cases: [(Change, &str); 18] = [
            (|r| r.protocol = 0, "protocol 0"),
            (
                |r| (r.protocol, r.oldest_protocol) = (3, 0),
                "it speaks protocol 3, this coordinator speaks protocol 4",
            ),
            (
                |r| (r.protocol, r.oldest_protocol) = (9, 7),
                "protocols 7 to 9",
            ),
            (|r| r.role = "target".to_owned(), "role is \"target\""),
            (|r| r.capabilities.clear(), "cannot propose"),
            (
                |r| r.capabilities = vec!["verify".to_owned()],
                "capabilities are: verify",
            ),
            (
                |r| r.capabilities = vec!["a".to_owned(); 33],
                "more than 32",
            ),
            (
                |r| r.vocabulary_hash = "beef".to_owned(),
                "vocabulary is beef",
            ),
            (
                |r| r.vocabulary_hash = format!("{}-beef", &r.vocabulary_hash[..64]),
                "other merges",
            ),
            (|r| r.vocabulary_len = 1, "1 tokens"),
            (|r| r.model = "m".repeat(300), "longer than 256"),
            (|r| r.device = "m".repeat(300), "longer than 256"),
            (|r| r.capabilities[1] = "m".repeat(300), "longer than 256"),
            (|r| r.max_context = 1, "less than 2"),
            (|r| r.max_sessions = 0, "max_sessions is 0"),
            (|r| r.eos_ids = vec![0; 33], "more than 32"),
            (|r| r.kv_page = 0, "kv_page is 0"),
            (|r| r.kv_positions = 63, "less than max_context"),
        ];
        for (change, why) in cases {
            let mut wrong = reply(tokenizer.vocabulary());
            change(&mut wrong);
            let error = check(wrong, Some(Role::Draft), tokenizer.vocabulary()).unwrap_err();
            assert!(error.to_string().contains(why), "{why:?} is not in {error}");
        }
    }

    #[test]
    fn a_worker_that_says_nothing_of_its_merges_is_taken() {
        let tokenizer = tokenizer();
        let ours = tokenizer.vocabulary();
        let older = v1::HelloReply {
            vocabulary_hash: ours.token_hash().to_owned(),
            ..reply(ours)
        };
        assert_ne!(older.vocabulary_hash, ours.hash());
        assert!(check(older, Some(Role::Draft), ours).is_ok());
    }

    #[test]
    fn a_worker_has_to_be_able_to_do_what_its_role_needs() {
        let tokenizer = tokenizer();
        for (role, can, is_enough) in [
            (Role::Target, &["verify", "commit"][..], true),
            (Role::Target, &["verify"], false),
            (Role::Target, &["commit"], false),
            (Role::Qualifier, &["verify"], true),
            (Role::Qualifier, &["propose"], false),
            (Role::Draft, &["verify", "commit"], false),
        ] {
            let able = v1::HelloReply {
                role: role.name().to_owned(),
                capabilities: can.iter().map(|&name| name.to_owned()).collect(),
                ..reply(tokenizer.vocabulary())
            };
            let checked = check(able, Some(role), tokenizer.vocabulary());
            assert_eq!(checked.is_ok(), is_enough, "{role} with {can:?}");
        }
    }

    #[test]
    fn without_an_expected_role_a_worker_says_what_it_is() {
        let tokenizer = tokenizer();
        let ours = tokenizer.vocabulary();
        let (role, _) = check(reply(ours), None, ours).unwrap();
        assert_eq!(role, Role::Draft);
        let other = v1::HelloReply {
            role: "poet".to_owned(),
            ..reply(ours)
        };
        let error = check(other, None, ours).unwrap_err().to_string();
        assert!(error.contains("role is \"poet\""), "{error}");
    }
}

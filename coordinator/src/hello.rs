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
    if reply.max_context < 2 {
        return Err(Mismatch::Nonsense("a context of less than 2 tokens"));
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
    })
}

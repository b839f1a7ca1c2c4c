//! Everything that can keep a client from its text, and the gRPC status it becomes.

use proto::inward::WireError;
use text::TextError;
use tonic::{Code, Status};

/// Why a request ends without `Finished`. The texts are for the person who sent the request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{parameter} is {value}; allowed is {allowed}")]
    Parameter {
        parameter: &'static str,
        value: String,
        allowed: String,
    },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(
        "the prompt has {tokens} tokens; the context of the target {target} holds {context} and at least one has to \
         be generated: shorten the prompt to {} tokens", context.saturating_sub(1)
    )]
    PromptTooLong {
        tokens: usize,
        context: u32,
        target: String,
    },
    #[error(
        "{running} requests run and {queued} wait, which is all that this coordinator takes; try again later, or \
         raise --max-sessions or --max-queued"
    )]
    QueueFull { running: usize, queued: usize },
    #[error("no target is ready: {0}")]
    NoTarget(String),
    #[error("this coordinator is stopping; send the request to another one")]
    Stopping,
    /// The target's own words about an open call that cannot be served as it is.
    #[error("the target {target} refuses the request: {message}")]
    TargetRefused {
        target: String,
        code: Code,
        message: String,
    },
    #[error(
        "the target {target} was lost after {tokens} tokens ({reason}); send the request again"
    )]
    TargetLost {
        target: String,
        tokens: usize,
        reason: String,
    },
    #[error(
        "the model of the target {target} computed a value that is not a number after {tokens} tokens"
    )]
    NotFinite { target: String, tokens: usize },
    #[error("the target {target} broke the protocol: {reason}")]
    TargetBroken { target: String, reason: String },
    #[error("encoding the prompt failed unexpectedly")]
    Encoder,
    #[error("cannot draw a seed ({0}); send one with the request")]
    Seed(#[from] std::io::Error),
}

impl Failure {
    /// A parameter that is out of its range.
    pub(crate) fn parameter(
        parameter: &'static str,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> Self {
        Failure::Parameter {
            parameter,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Failure::Parameter { .. }
            | Failure::Wire(_)
            | Failure::Text(_)
            | Failure::PromptTooLong { .. } => Code::InvalidArgument,
            Failure::QueueFull { .. } => Code::ResourceExhausted,
            Failure::NoTarget(_) | Failure::Stopping | Failure::TargetLost { .. } => {
                Code::Unavailable
            }
            Failure::TargetRefused { code, .. } => *code,
            Failure::NotFinite { .. }
            | Failure::TargetBroken { .. }
            | Failure::Encoder
            | Failure::Seed(_) => Code::Internal,
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Status::new(failure.code(), failure.to_string())
    }
}

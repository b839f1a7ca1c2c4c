//! Every way in which a request can fail, and the gRPC status it becomes.

use std::sync::Arc;
use std::time::Duration;

use control::admission::QueueFull;
use proto::inward::WireError;
use speculation::strategy::StrategyError;
use text::TextError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

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
    Strategy(#[from] StrategyError),
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
    /// Known before the prompt is encoded, or all of it.
    #[error(
        "the prompt has at least {tokens} tokens; the context of the target {target} holds {context} and at least one has \
         to be generated: shorten the prompt to {} tokens", context.saturating_sub(1)
    )]
    PromptFarTooLong {
        tokens: usize,
        context: u32,
        target: String,
    },
    #[error(
        "{running} requests run and {queued} wait, which is all that this coordinator takes; try again in {} ms, or \
         raise --max-sessions or --max-queued", retry.as_millis()
    )]
    QueueFull {
        running: usize,
        queued: usize,
        retry: Duration,
    },
    #[error(
        "this client has so many of the {running} requests that run and the {queued} that wait that the {left} free places \
         are left to others; try again in {} ms, or raise --max-queued", retry.as_millis()
    )]
    ClientFull {
        running: usize,
        queued: usize,
        left: usize,
        retry: Duration,
    },
    #[error("no target is ready: {0}")]
    NoTarget(String),
    #[error("this coordinator is stopping; send the request to another one")]
    Stopping,
    /// The target's own message about an open call that it cannot serve.
    #[error("the target {target} refuses the request: {message}")]
    TargetRefused {
        target: String,
        code: Code,
        message: String,
    },
    #[error(
        "the target {target} was lost after {tokens} tokens ({reason}), and no other of its numerics_id took over; \
         resume the request, or send it again"
    )]
    TargetLost {
        target: String,
        tokens: usize,
        reason: String,
    },
    #[error(
        "{lost} targets were lost one after the other without a token of progress behind {tokens} tokens, the last \
         one {target} ({reason}); the request itself may be what ends them"
    )]
    Fruitless {
        lost: u32,
        target: String,
        tokens: usize,
        reason: String,
    },
    #[error(
        "no target has the numerics_id {wanted:?} of the interrupted completion; there are {present}: resume it where \
         such a target is, or send the request anew"
    )]
    OtherNumerics { wanted: String, present: String },
    #[error("the request's deadline has passed after {tokens} tokens")]
    Deadline { tokens: usize },
    #[error(
        "the model of the target {target} computed a value that is not a number after {tokens} tokens"
    )]
    NotFinite { target: String, tokens: usize },
    #[error(
        "the client has taken nothing of its stream for {} s although something was there; read on, and resume the \
         request from what was read, or raise --client-timeout", .0.as_secs()
    )]
    Unread(Duration),
    #[error("encoding the prompt failed unexpectedly")]
    Encoder,
    /// All completions of a request have it.
    #[error(transparent)]
    Shared(#[from] Arc<Failure>),
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

    /// A prompt has so many tokens, and no target's context holds more than this.
    pub(crate) fn too_long(tokens: usize, context: u32, target: String) -> Self {
        Failure::PromptTooLong {
            tokens,
            context,
            target,
        }
    }

    /// The same of a prompt that has at least so many.
    pub(crate) fn far_too_long(tokens: usize, context: u32, target: String) -> Self {
        Failure::PromptFarTooLong {
            tokens,
            context,
            target,
        }
    }

    fn code(&self) -> Code {
        match self {
            Failure::Parameter { .. }
            | Failure::Wire(_)
            | Failure::Strategy(_)
            | Failure::Text(_)
            | Failure::PromptTooLong { .. }
            | Failure::PromptFarTooLong { .. } => Code::InvalidArgument,
            Failure::Shared(failure) => failure.code(),
            Failure::QueueFull { .. } | Failure::ClientFull { .. } => Code::ResourceExhausted,
            Failure::OtherNumerics { .. } => Code::FailedPrecondition,
            Failure::Deadline { .. } => Code::DeadlineExceeded,
            Failure::NoTarget(_) | Failure::Stopping | Failure::TargetLost { .. } => {
                Code::Unavailable
            }
            Failure::Fruitless { .. } | Failure::Unread(_) => Code::Aborted,
            Failure::TargetRefused { code, .. } => *code,
            Failure::NotFinite { .. } | Failure::Encoder | Failure::Seed(_) => Code::Internal,
        }
    }
}

/// When a client may try again that was refused because a worker was full.
const FULL_RETRY: Duration = Duration::from_millis(500);

impl From<QueueFull> for Failure {
    fn from(full: QueueFull) -> Self {
        let QueueFull {
            running,
            queued,
            retry,
            left,
        } = full;
        if left > 0 {
            return Failure::ClientFull {
                running,
                queued,
                left,
                retry,
            };
        }
        Failure::QueueFull {
            running,
            queued,
            retry,
        }
    }
}

impl From<Failure> for Status {
    /// A failure that will pass says when to try again, as `google.rpc.RetryInfo`.
    fn from(failure: Failure) -> Self {
        let (code, text) = (failure.code(), failure.to_string());
        let retry = match failure {
            Failure::QueueFull { retry, .. } | Failure::ClientFull { retry, .. } => retry,
            _ if code == Code::ResourceExhausted => FULL_RETRY,
            _ => return Status::new(code, text),
        };
        Status::with_error_details(code, text, ErrorDetails::with_retry_info(Some(retry)))
    }
}

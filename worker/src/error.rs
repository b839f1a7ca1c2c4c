//! Why a session cannot be opened, and the gRPC status that the coordinator gets.

use decode::ParamError;
use engine::EngineError;
use speculation::duty::{Duty, Role};
use speculation::message::{SessionId, StreamName};
use speculation::session::SessionError;
use tonic::Status;

/// A session cannot be opened.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// Its strategy is unknown here, or its duties do not go together.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// This worker does not do that.
    #[error("this {role} worker does not offer the duty {}", duty.name())]
    Duty {
        /// What the worker is used for.
        role: Role,
        /// What was asked for.
        duty: Duty,
    },
    /// Answers are drawn from a profile, which knows no probabilities.
    #[error("acceptance {0} needs a model that is computed, and this one is synthetic; use exact")]
    Rule(&'static str),
    /// A token id the model does not know.
    #[error("token {token} at position {position} is outside the vocabulary of {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Its position in the text.
        position: usize,
        /// Tokens in the vocabulary.
        vocab: u32,
    },
    /// The text may grow beyond the model's context.
    #[error("a text of up to {max_len} tokens was asked for; the model's context is {context}")]
    TooLong {
        /// What was asked for.
        max_len: u32,
        /// What the model can do.
        context: u32,
    },
    /// There is no room for another session.
    #[error("the worker is full ({0}); try again later or add workers")]
    Full(String),
    /// There is no such stream, or it was lost.
    #[error("stream {0} is not open on this worker; open the stream first")]
    NoStream(StreamName),
    /// The session is open already.
    #[error("session {0:?} is already open")]
    Duplicate(SessionId),
    /// The model refuses a sequence for a reason of its own.
    #[error("the model cannot open the session: {0}")]
    Model(String),
    /// The model thread has ended.
    #[error("the worker is shutting down")]
    Stopped,
}

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Self {
        let message = error.to_string();
        match error {
            OpenError::Param(_)
            | OpenError::Session(_)
            | OpenError::Duty { .. }
            | OpenError::Rule(_)
            | OpenError::Token { .. }
            | OpenError::TooLong { .. }
            | OpenError::Duplicate(_) => Status::invalid_argument(message),
            OpenError::Full(_) => Status::resource_exhausted(message),
            OpenError::Model(_) => Status::internal(message),
            OpenError::NoStream(_) => Status::failed_precondition(message),
            OpenError::Stopped => Status::unavailable(message),
        }
    }
}

impl From<EngineError> for OpenError {
    fn from(error: EngineError) -> Self {
        let reason = error.to_string();
        match error {
            EngineError::TooManySequences { .. } | EngineError::CacheFull { .. } => {
                OpenError::Full(reason)
            }
            // Asking again, or asking a worker with less to do, would not help.
            EngineError::ContextExceeded { len, most } => OpenError::TooLong {
                max_len: u32::try_from(len).unwrap_or(u32::MAX),
                context: u32::try_from(most).unwrap_or(u32::MAX),
            },
            _ => OpenError::Model(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_with_time_is_reported_as_exhausted() {
        let code = |error: EngineError| Status::from(OpenError::from(error)).code();
        let full = EngineError::CacheFull { needed: 4, free: 1 };
        assert_eq!(code(full), tonic::Code::ResourceExhausted);
        let long = EngineError::ContextExceeded {
            len: 900,
            most: 512,
        };
        assert_eq!(code(long), tonic::Code::InvalidArgument);
        assert_eq!(code(EngineError::UnknownSequence), tonic::Code::Internal);
    }
}

//! A client's request, checked once. Behind [`parse`] only the prompt's length is open, because it depends on the
//! target that is chosen.

use std::io;

use proto::{Sampling, inward, v1};
use speculation::message::Stopping;
use speculation::policy::Strategy;
use tonic::Status;

use crate::failure::Failure;
use crate::link::Link;
use crate::registry::Wanted;

/// Stop tokens a request may name; the target's own end-of-text ids come on top.
const MAX_STOP_IDS: usize = 32;

/// Bytes of a prompt's text: more than the longest contexts hold, and a bound on the work of encoding it.
const MAX_PROMPT_BYTES: usize = 2 << 20;

/// A prompt as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Whether the target's end-of-text tokens end the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndOfText {
    Stops,
    Ignored,
}

/// A request whose parameters are in range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) prompt: Prompt,
    /// 0: as many as there is room for.
    max_tokens: u32,
    pub(crate) sampling: Sampling,
    stop_ids: Vec<u32>,
    end_of_text: EndOfText,
    pub(crate) strategy: Strategy,
    pub(crate) wanted: Wanted,
}

/// Checks a request against a vocabulary of `vocab` tokens. `seed` is taken if the request has none.
pub(crate) fn parse(
    request: v1::GenerateRequest,
    vocab: usize,
    seed: impl FnOnce() -> io::Result<u64>,
) -> Result<Request, Failure> {
    let strategy = inward::strategy(request.strategy)?;
    let prompt = prompt(request.prompt, vocab)?;
    if request.stop_token_ids.len() > MAX_STOP_IDS {
        let allowed = format!("at most {MAX_STOP_IDS} ids");
        let given = format!("{} ids", request.stop_token_ids.len());
        return Err(Failure::parameter("stop_token_ids", given, allowed));
    }
    in_vocabulary("stop_token_ids", &request.stop_token_ids, vocab)?;
    let top_p = request.top_p.unwrap_or(1.0);
    number("temperature", request.temperature, 0.0, 100.0)?;
    number("min_p", request.min_p, 0.0, 1.0)?;
    // NaN is neither above 0 nor at most 1.
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Failure::parameter("top_p", top_p, "above 0 and at most 1"));
    }
    let drafts = match (strategy.growth(), request.drafts) {
        (None, _) => 0,
        (Some(_), None) => usize::MAX,
        (Some(_), Some(most)) => most as usize,
    };
    let qualifiers = usize::from(strategy.advice().is_some() && !request.no_qualifier);
    Ok(Request {
        prompt,
        max_tokens: request.max_tokens,
        sampling: Sampling {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p,
            min_p: request.min_p,
            seed: request.seed.map_or_else(seed, Ok)?,
            choice: 0,
        },
        stop_ids: request.stop_token_ids,
        end_of_text: if request.ignore_eos {
            EndOfText::Ignored
        } else {
            EndOfText::Stops
        },
        strategy,
        wanted: Wanted { drafts, qualifiers },
    })
}

/// Whether a coordinator whose tokenizer has `vocab` tokens would take this request; `Err` says why not, in the words
/// that a client gets. The prompt is not encoded, and its length not compared with any model's context.
pub fn check(request: v1::GenerateRequest, vocab: usize) -> Result<(), Status> {
    parse(request, vocab, || Ok(0))?;
    Ok(())
}

fn prompt(prompt: Option<v1::generate_request::Prompt>, vocab: usize) -> Result<Prompt, Failure> {
    use v1::generate_request::Prompt as Sent;
    match prompt {
        None => Err(Failure::parameter("prompt", "missing", "text or tokens")),
        Some(Sent::Text(text)) if text.is_empty() => Err(empty()),
        Some(Sent::Text(text)) if text.len() > MAX_PROMPT_BYTES => {
            let given = format!("{} bytes long", text.len());
            let allowed = format!("at most {MAX_PROMPT_BYTES} bytes");
            Err(Failure::parameter("prompt", given, allowed))
        }
        Some(Sent::Text(text)) => Ok(Prompt::Text(text)),
        Some(Sent::Tokens(tokens)) => {
            if tokens.ids.is_empty() {
                return Err(empty());
            }
            in_vocabulary("prompt", &tokens.ids, vocab)?;
            Ok(Prompt::Tokens(tokens.ids))
        }
    }
}

/// A prompt without a token: there is nothing the target could continue.
pub(crate) fn empty() -> Failure {
    Failure::parameter("prompt", "empty", "at least one token")
}

fn in_vocabulary(parameter: &'static str, ids: &[u32], vocab: usize) -> Result<(), Failure> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let allowed = format!("token ids below {vocab}");
            Err(Failure::parameter(
                parameter,
                format!("token {id}"),
                allowed,
            ))
        }
    }
}

fn number(parameter: &'static str, value: f32, least: f32, most: f32) -> Result<(), Failure> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let allowed = format!("{least} to {most}");
    Err(Failure::parameter(parameter, value, allowed))
}

impl Request {
    /// When the text ends on this target, for a prompt of `tokens` tokens.
    pub(crate) fn stopping(&self, tokens: usize, target: &Link) -> Result<Stopping, Failure> {
        let context = target.hello.max_context;
        let prompt_len = match u32::try_from(tokens) {
            Ok(0) => return Err(empty()),
            Ok(len) if len < context => len,
            Ok(_) | Err(_) => {
                return Err(Failure::PromptTooLong {
                    tokens,
                    context,
                    target: target.address.to_string(),
                });
            }
        };
        let wish = match self.max_tokens {
            0 => u32::MAX,
            tokens => prompt_len.saturating_add(tokens),
        };
        let mut stop_ids = self.stop_ids.clone();
        if self.end_of_text == EndOfText::Stops {
            stop_ids.extend_from_slice(&target.hello.eos_ids);
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();
        Ok(Stopping {
            prompt_len,
            max_len: wish.min(context),
            max_len_is_context: context < wish,
            stop_ids,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use v1::generate_request::Prompt as Sent;

    fn asked() -> v1::GenerateRequest {
        v1::GenerateRequest {
            prompt: Some(Sent::Tokens(v1::TokenIds { ids: vec![1, 2] })),
            ..v1::GenerateRequest::default()
        }
    }

    fn strategy(name: &str) -> Option<v1::Strategy> {
        Some(v1::Strategy {
            name: name.to_owned(),
            ..v1::Strategy::default()
        })
    }

    #[test]
    fn what_is_not_said_is_off() {
        let request = parse(asked(), 10, || Ok(77)).unwrap();
        let off = Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 77,
            choice: 0,
        };
        assert_eq!(request.sampling, off);
        assert_eq!(request.strategy.name(), "auto");
        assert_eq!(
            (request.wanted.qualifiers, request.wanted.drafts),
            (1, usize::MAX)
        );
    }

    #[test]
    fn workers_the_strategy_has_no_use_for_are_not_wanted() {
        for (name, drafts, qualifiers) in [("ar", 0, 0), ("serial", 2, 0), ("auto", 2, 1)] {
            let request = v1::GenerateRequest {
                strategy: strategy(name),
                drafts: Some(2),
                ..asked()
            };
            let wanted = parse(request, 10, || Ok(0)).unwrap().wanted;
            assert_eq!(wanted, Wanted { drafts, qualifiers }, "{name}");
        }
        let without = v1::GenerateRequest {
            no_qualifier: true,
            ..asked()
        };
        assert_eq!(parse(without, 10, || Ok(0)).unwrap().wanted.qualifiers, 0);
    }

    #[test]
    fn a_refusal_names_the_parameter_its_value_and_its_range() {
        type Change = fn(&mut v1::GenerateRequest);
        let tokens = |ids| Some(Sent::Tokens(v1::TokenIds { ids }));
        let cases: [(Change, [&str; 3]); 10] = [
            (|r| r.prompt = None, ["prompt", "missing", "text or tokens"]),
            (
                |r| r.prompt = Some(Sent::Text(String::new())),
                ["prompt", "empty", "one token"],
            ),
            (
                |r| r.prompt = Some(Sent::Text("a".repeat(MAX_PROMPT_BYTES + 1))),
                ["prompt", "2097153 bytes", "2097152"],
            ),
            (
                |r| r.temperature = f32::NAN,
                ["temperature", "NaN", "0 to 100"],
            ),
            (|r| r.temperature = -1.0, ["temperature", "-1", "0 to 100"]),
            (|r| r.top_p = Some(0.0), ["top_p", "0", "at most 1"]),
            (|r| r.min_p = 1.5, ["min_p", "1.5", "0 to 1"]),
            (
                |r| r.stop_token_ids = vec![10],
                ["stop_token_ids", "token 10", "below 10"],
            ),
            (
                |r| r.stop_token_ids = vec![1; 33],
                ["stop_token_ids", "33", "at most 32"],
            ),
            (
                |r| r.strategy = strategy("magic"),
                ["strategy", "magic", "serial-tree"],
            ),
        ];
        for (change, parts) in cases {
            let mut request = asked();
            change(&mut request);
            let status = Status::from(parse(request, 10, || Ok(0)).unwrap_err());
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            for part in parts {
                assert!(
                    status.message().contains(part),
                    "{part} in {}",
                    status.message()
                );
            }
        }
        for ids in [vec![], vec![3, 10]] {
            let request = v1::GenerateRequest {
                prompt: tokens(ids),
                ..asked()
            };
            assert!(parse(request, 10, || Ok(0)).is_err());
        }
    }
}

//! A client's request, checked once. Behind [`parse`] only the prompt's length is open, because it depends on the
//! target that is chosen.

use std::collections::BTreeSet;
use std::io;

use control::fleet::Wanted;
use decode::sampling::{SamplingParams, Shaping};
use decode::{Rule, Sampling};
use proto::{MAX_HISTORY_BYTES, inward, v1};
use speculation::duty::Role;
use speculation::limits::{MAX_BIASED, MAX_TOP_SCORES};
use speculation::message::{Basis, PromptScoring, Scoring, Stopping};
use speculation::strategy::{Chosen, Registry, Settings};
use text::{Control, Message, Tokenizer};
use tonic::Status;

use crate::failure::Failure;
use crate::hello::Hello;
use crate::stop::{Inclusion, StopTexts};

/// Stop tokens a request may name; the target's own end-of-text ids come on top.
const MAX_STOP_IDS: usize = 32;

/// Bytes of a prompt's text: more than the longest contexts hold, and a bound on the work of encoding it.
const MAX_PROMPT_BYTES: usize = 2 << 20;

/// Messages of a conversation, and bytes of the name of a role.
const MAX_MESSAGES: usize = 4096;
const MAX_ROLE_BYTES: usize = 32;

/// Stop texts a request may name, and bytes of each.
const MAX_STOPS: (usize, usize) = (16, 256);

/// Completions of one prompt.
const MAX_COMPLETIONS: u32 = 16;

/// A prompt as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String, Control),
    Tokens(Vec<u32>),
    Chat(Vec<Message>),
}

/// Whether the target's end-of-text tokens end the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndOfText {
    Stops,
    Ignored,
}

/// What a client has of an interrupted completion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Generated tokens.
    pub(crate) ids: Vec<u32>,
    /// Numerics of the target that generated them.
    pub(crate) numerics_id: String,
}

/// A request whose parameters are in range.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Set when it goes on with an interrupted one.
    pub(crate) received: Option<Received>,
    /// 0: as many as there is room for.
    max_tokens: u32,
    /// Its `choice` is that of the first completion.
    pub(crate) sampling: Sampling,
    /// Completions of the prompt, at least 1.
    pub(crate) completions: u32,
    pub(crate) scoring: Scoring,
    pub(crate) stops: StopTexts,
    pub(crate) priority: i32,
    /// The requests that it shares texts with; empty: none.
    pub(crate) history: String,
    stop_ids: Vec<u32>,
    end_of_text: EndOfText,
    pub(crate) strategy: Chosen,
    pub(crate) wanted: Wanted,
}

/// Checks a request, which is given back without its prompt, against a vocabulary of `vocab` tokens. `default` and `seed` are taken where the request names no
/// strategy and has no seed.
pub(crate) fn parse(
    request: v1::GenerateRequest,
    vocab: usize,
    default: &Settings,
    seed: impl FnOnce() -> io::Result<u64>,
) -> Result<(Request, Prompt), Failure> {
    if request.stop_token_ids.len() > MAX_STOP_IDS {
        let allowed = format!("at most {MAX_STOP_IDS} ids");
        let given = format!("{} ids", request.stop_token_ids.len());
        return Err(Failure::parameter("stop_token_ids", given, allowed));
    }
    in_vocabulary("stop_token_ids", &request.stop_token_ids, vocab)?;
    let scoring = scoring(&request)?;
    let stops = stops(request.stop.clone(), request.include_stop)?;
    let received = received(&request, vocab)?;
    let completions = match request.n.max(1) {
        n if n <= MAX_COMPLETIONS => n,
        n => {
            return Err(Failure::parameter(
                "n",
                n,
                format!("at most {MAX_COMPLETIONS}"),
            ));
        }
    };
    let sampling = sampling(&request, vocab, seed)?;
    let rule = inward::rule(request.acceptance)?;
    let strategy = strategy(request.strategy, request.knobs, rule, default)?;
    let control = match request.parse_special {
        true => Control::Tokens,
        false => Control::Text,
    };
    let prompt = prompt(request.prompt, control, vocab)?;
    if request.history.len() > MAX_HISTORY_BYTES {
        let given = format!("{} bytes", request.history.len());
        let allowed = format!("at most {MAX_HISTORY_BYTES} bytes");
        return Err(Failure::parameter("history", given, allowed));
    }
    let uses = |role| !strategy.duties(role).is_empty();
    let drafts = match (request.drafts, rule) {
        _ if !uses(Role::Draft) => 0,
        (Some(drafts), Rule::Rejection) if drafts > 1 => {
            let allowed =
                "at most 1 with acceptance rejection, which judges the guesses of one draft";
            return Err(Failure::parameter("drafts", drafts, allowed));
        }
        (None, Rule::Rejection) => 1,
        (None, _) => usize::MAX,
        (Some(most), _) => most as usize,
    };
    let qualifiers = usize::from(uses(Role::Qualifier) && !request.no_qualifier);
    let request = Request {
        received,
        max_tokens: request.max_tokens,
        sampling,
        completions,
        scoring,
        stops,
        priority: request.priority,
        history: request.history,
        stop_ids: request.stop_token_ids,
        end_of_text: if request.ignore_eos {
            EndOfText::Ignored
        } else {
            EndOfText::Stops
        },
        strategy,
        wanted: Wanted { drafts, qualifiers },
    };
    Ok((request, prompt))
}

/// How to decode. Knobs without a name are those of the default strategy.
fn strategy(
    name: String,
    knobs: impl IntoIterator<Item = (String, f64)>,
    rule: Rule,
    default: &Settings,
) -> Result<Chosen, Failure> {
    let mut asked = inward::settings(name, knobs)?.by(rule);
    if asked.name.is_empty() {
        asked.name.clone_from(&default.name);
        if asked.knobs.is_empty() {
            asked.knobs.clone_from(&default.knobs);
        }
    }
    Ok(Registry::default().choose(&asked)?)
}

/// How tokens are drawn. Workers check again; this is where the client learns which parameter is wrong.
fn sampling(
    request: &v1::GenerateRequest,
    vocab: usize,
    seed: impl FnOnce() -> io::Result<u64>,
) -> Result<Sampling, Failure> {
    let top_p = request.top_p.unwrap_or(1.0);
    let repetition_penalty = request.repetition_penalty.unwrap_or(1.0);
    number("temperature", request.temperature, 0.0, 100.0)?;
    number("min_p", request.min_p, 0.0, 1.0)?;
    number("presence_penalty", request.presence_penalty, -2.0, 2.0)?;
    number("frequency_penalty", request.frequency_penalty, -2.0, 2.0)?;
    // NaN is neither above 0 nor at most anything.
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Failure::parameter("top_p", top_p, "above 0 and at most 1"));
    }
    if !(repetition_penalty > 0.0 && repetition_penalty <= 10.0) {
        let allowed = "above 0 and at most 10";
        return Err(Failure::parameter(
            "repetition_penalty",
            repetition_penalty,
            allowed,
        ));
    }
    let (ids, values) = (&request.bias_ids, &request.bias_values);
    if ids.len() != values.len() || ids.len() > MAX_BIASED {
        let given = format!("{} ids and {} values", ids.len(), values.len());
        let allowed = format!("as many values as ids, at most {MAX_BIASED}");
        return Err(Failure::parameter("logit_bias", given, allowed));
    }
    in_vocabulary("logit_bias", ids, vocab)?;
    if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
        return Err(Failure::parameter(
            "logit_bias",
            "a token twice",
            "each token once",
        ));
    }
    for &value in values {
        number("logit_bias", value, -100.0, 100.0)?;
    }
    Ok(Sampling {
        params: SamplingParams {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p,
            min_p: request.min_p,
            seed: request.seed.map_or_else(seed, Ok)?,
            choice: request.resume.as_ref().map_or(0, |resume| resume.choice),
        },
        shaping: Shaping {
            bias: ids.iter().copied().zip(values.iter().copied()).collect(),
            repetition_penalty,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            min_tokens: request.min_tokens,
            // They travel with the other reasons to end the text.
            stop_ids: Vec::new(),
        },
    })
}

fn scoring(request: &v1::GenerateRequest) -> Result<Scoring, Failure> {
    let top = |parameter, asked: Option<u32>| match asked {
        None => Ok(None),
        Some(top) if top <= MAX_TOP_SCORES.into() => Ok(Some(top as u8)),
        Some(top) => {
            let allowed = format!("at most {MAX_TOP_SCORES}");
            Err(Failure::parameter(parameter, top, allowed))
        }
    };
    let prompt = top("prompt_logprobs", request.prompt_logprobs)?;
    Ok(Scoring {
        picks: top("logprobs", request.logprobs)?,
        basis: match v1::LogprobsMode::try_from(request.logprobs_mode) {
            Ok(v1::LogprobsMode::Raw) => Basis::Raw,
            Ok(v1::LogprobsMode::Processed) => Basis::Processed,
            Err(_) => {
                let (given, allowed) = (request.logprobs_mode, "0 (raw) or 1 (processed)");
                return Err(Failure::parameter("logprobs_mode", given, allowed));
            }
        },
        prompt: prompt.map(|top| PromptScoring { top, first: 1 }),
    })
}

fn stops(stops: Vec<String>, include: bool) -> Result<StopTexts, Failure> {
    let (most, longest) = MAX_STOPS;
    if stops.len() > most {
        let given = format!("{} texts", stops.len());
        return Err(Failure::parameter(
            "stop",
            given,
            format!("at most {most} texts"),
        ));
    }
    if let Some(bad) = (stops.iter()).find(|stop| stop.is_empty() || stop.len() > longest) {
        let given = format!("a text of {} bytes", bad.len());
        return Err(Failure::parameter(
            "stop",
            given,
            format!("1 to {longest} bytes each"),
        ));
    }
    let inclusion = if include {
        Inclusion::Included
    } else {
        Inclusion::Excluded
    };
    Ok(StopTexts::new(stops, inclusion))
}

fn received(request: &v1::GenerateRequest, vocab: usize) -> Result<Option<Received>, Failure> {
    let Some(resume) = &request.resume else {
        return Ok(None);
    };
    if request.seed.is_none() {
        let allowed = "the seed of the interrupted stream";
        return Err(Failure::parameter("seed", "missing", allowed));
    }
    if !matches!(
        request.prompt,
        Some(v1::generate_request::Prompt::Tokens(_))
    ) {
        let allowed = "token ids, as the interrupted stream gave them";
        return Err(Failure::parameter("prompt", "text", allowed));
    }
    if request.n > 1 {
        return Err(Failure::parameter(
            "n",
            request.n,
            "1: each completion is resumed on its own",
        ));
    }
    if resume.numerics_id.is_empty() {
        let allowed = "the system_fingerprint of the interrupted stream";
        return Err(Failure::parameter("resume.numerics_id", "missing", allowed));
    }
    in_vocabulary("resume.token_ids", &resume.token_ids, vocab)?;
    Ok(Some(Received {
        ids: resume.token_ids.clone(),
        numerics_id: resume.numerics_id.clone(),
    }))
}

/// Whether a coordinator whose tokenizer has `vocab` tokens would take this request; `Err` is the status that a
/// client would get. The prompt is not encoded, and its length not compared with any model's context.
pub fn check(request: v1::GenerateRequest, vocab: usize) -> Result<(), Status> {
    parse(request, vocab, &Settings::default(), || Ok(0))?;
    Ok(())
}

fn prompt(
    prompt: Option<v1::generate_request::Prompt>,
    control: Control,
    vocab: usize,
) -> Result<Prompt, Failure> {
    use v1::generate_request::Prompt as Sent;
    match prompt {
        None => Err(Failure::parameter("prompt", "missing", "text or tokens")),
        Some(Sent::Text(text)) if text.is_empty() => Err(empty()),
        Some(Sent::Text(text)) if text.len() > MAX_PROMPT_BYTES => {
            let given = format!("{} bytes long", text.len());
            let allowed = format!("at most {MAX_PROMPT_BYTES} bytes");
            Err(Failure::parameter("prompt", given, allowed))
        }
        Some(Sent::Text(text)) => Ok(Prompt::Text(text, control)),
        Some(Sent::Chat(chat)) => Ok(Prompt::Chat(messages(chat)?)),
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
    /// Stop texts that are control tokens of this tokenizer are those tokens as well.
    pub(crate) fn stopping_at_tokens(mut self, tokenizer: &Tokenizer) -> Self {
        self.stops.name_tokens(|text| tokenizer.control_id(text));
        self
    }

    /// Positions that the text of a prompt of `prompt_len` tokens may take, if the context has room.
    pub(crate) fn most_positions(&self, prompt_len: u32) -> u32 {
        match self.max_tokens {
            0 => u32::MAX,
            tokens => prompt_len.saturating_add(tokens),
        }
    }

    /// Whether it says nothing of how long the text may get.
    pub(crate) fn is_open_ended(&self) -> bool {
        self.max_tokens == 0
    }

    /// Positions that are reserved for a text of `len` tokens, of which `prompt_len` are the prompt: all that it may take,
    /// or where nobody has said that, those of `expected` tokens more.
    pub(crate) fn expected_positions(&self, prompt_len: u32, len: u32, expected: u32) -> u32 {
        match self.max_tokens {
            0 => len.saturating_add(expected),
            _ => self.most_positions(prompt_len),
        }
    }

    /// When the text ends on this target, for a prompt of `prompt_len` tokens, which are fewer than its context.
    pub(crate) fn stopping(&self, prompt_len: u32, target: &Hello) -> Stopping {
        let context = target.max_context;
        let most = self.most_positions(prompt_len);
        let mut stop_ids = self.stop_ids.clone();
        if self.end_of_text == EndOfText::Stops {
            stop_ids.extend_from_slice(&target.eos_ids);
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();
        Stopping {
            prompt_len,
            max_len: most.min(context),
            max_len_is_context: context < most,
            stop_ids,
        }
    }
}

fn messages(chat: v1::Chat) -> Result<Vec<Message>, Failure> {
    let refused = |given: String, allowed: String| Err(Failure::parameter("chat", given, allowed));
    let count = chat.messages.len();
    if !(1..=MAX_MESSAGES).contains(&count) {
        return refused(
            format!("{count} messages"),
            format!("1 to {MAX_MESSAGES} messages"),
        );
    }
    let bytes: usize = (chat.messages.iter()).map(|one| one.content.len()).sum();
    if bytes > MAX_PROMPT_BYTES {
        return refused(
            format!("{bytes} bytes long"),
            format!("at most {MAX_PROMPT_BYTES} bytes"),
        );
    }
    let is_name = |role: &str| {
        (1..=MAX_ROLE_BYTES).contains(&role.len())
            && role
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if let Some(bad) = chat.messages.iter().find(|one| !is_name(&one.role)) {
        let given = format!(
            "role {:?}",
            bad.role.chars().take(MAX_ROLE_BYTES).collect::<String>()
        );
        let allowed =
            format!("system, user, assistant or another name of at most {MAX_ROLE_BYTES} letters");
        return refused(given, allowed);
    }
    let messages = chat.messages.into_iter().map(|one| Message {
        role: one.role,
        content: one.content,
    });
    Ok(messages.collect())
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

    fn parse(request: v1::GenerateRequest) -> Result<Request, Failure> {
        super::parse(request, 10, &Settings::default(), || Ok(77)).map(|(request, _)| request)
    }

    #[test]
    fn what_is_not_set_is_off() {
        let request = parse(asked()).unwrap();
        let off = Sampling {
            params: SamplingParams {
                temperature: 0.0,
                seed: 77,
                ..SamplingParams::default()
            },
            shaping: Shaping::default(),
        };
        assert_eq!(request.sampling, off);
        assert_eq!(request.strategy.settings.name, "auto");
        assert_eq!(
            (request.wanted.qualifiers, request.wanted.drafts),
            (1, usize::MAX)
        );
    }

    #[test]
    fn a_request_that_names_no_strategy_gets_the_servers() {
        let serial = Settings::new("serial").with("gamma", 3.0);
        let chosen = |name: &str, knobs: &[(&str, f64)]| {
            let request = v1::GenerateRequest {
                strategy: name.to_owned(),
                knobs: knobs
                    .iter()
                    .map(|&(name, v)| (name.to_owned(), v))
                    .collect(),
                ..asked()
            };
            let parsed = super::parse(request, 10, &serial, || Ok(0));
            parsed.map(|(request, _)| request.strategy.settings)
        };
        assert_eq!(chosen("", &[]).unwrap(), serial);
        let own = Settings::new("serial").with("gamma", 5.0);
        assert_eq!(chosen("", &[("gamma", 5.0)]).unwrap(), own);
        assert_eq!(chosen("auto", &[]).unwrap(), Settings::new("auto"));
    }

    #[test]
    fn a_conversation_is_checked_before_it_is_rendered() {
        let conversation = |all: &[(&str, &str)]| {
            let messages = (all.iter()).map(|&(role, content)| v1::ChatMessage {
                role: role.to_owned(),
                content: content.to_owned(),
            });
            let chat = v1::Chat {
                messages: messages.collect(),
            };
            prompt(Some(Sent::Chat(chat)), Control::Text, 10)
        };
        let Prompt::Chat(messages) = conversation(&[("user", "hi"), ("tool-2", "")]).unwrap()
        else {
            panic!("it is a conversation");
        };
        assert_eq!((messages.len(), &*messages[0].content), (2, "hi"));
        let long = "x".repeat(MAX_PROMPT_BYTES / 2 + 1);
        let many = vec![("user", "x"); MAX_MESSAGES + 1];
        let bad: [(&[_], _); 6] = [
            (&[], "0 messages"),
            (&many, "4097 messages"),
            (&[("user", &long), ("user", &long)], "bytes long"),
            (&[("", "x")], "role \"\""),
            (&[("user\n", "x")], "role \"user\\n\""),
            (&[("<|im_start|>", "x")], "role"),
        ];
        for (messages, why) in bad {
            let failure = conversation(messages).unwrap_err().to_string();
            assert!(failure.contains(why), "{why:?} is not in {failure}");
        }
    }

    #[test]
    fn another_rule_needs_a_strategy_that_supports_it_and_one_draft() {
        let by = |strategy: &str, rule: v1::acceptance::Rule, drafts| {
            parse(v1::GenerateRequest {
                strategy: strategy.to_owned(),
                acceptance: Some(v1::Acceptance {
                    rule: rule.into(),
                    ..v1::Acceptance::default()
                }),
                drafts,
                ..asked()
            })
        };
        let rejection = v1::acceptance::Rule::Rejection;
        let serial = by("serial", rejection, None).unwrap();
        assert_eq!(serial.strategy.settings.rule, Rule::Rejection);
        assert_eq!((serial.wanted.drafts, serial.wanted.qualifiers), (1, 0));
        for (request, parts) in [
            (by("auto", rejection, None), ["auto", "rejection", "serial"]),
            (by("", rejection, None), ["auto", "rejection", "serial"]),
            (
                by("serial", rejection, Some(2)),
                ["drafts", "2", "one draft"],
            ),
        ] {
            let status = Status::from(request.unwrap_err());
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            for part in parts {
                let message = status.message();
                assert!(message.contains(part), "{part} in {message}");
            }
        }
        let odd = v1::Acceptance {
            tau_q: Some(0.5),
            ..v1::Acceptance::default()
        };
        let odd = v1::GenerateRequest {
            acceptance: Some(odd),
            ..asked()
        };
        assert!(parse(odd).is_err(), "a tolerance of nothing");
    }

    #[test]
    fn workers_the_strategy_has_no_use_for_are_not_wanted() {
        for (name, drafts, qualifiers) in [("ar", 0, 0), ("serial", 2, 0), ("auto", 2, 1)] {
            let request = v1::GenerateRequest {
                strategy: name.to_owned(),
                drafts: Some(2),
                ..asked()
            };
            let wanted = parse(request).unwrap().wanted;
            assert_eq!(wanted, Wanted { drafts, qualifiers }, "{name}");
        }
        let without = v1::GenerateRequest {
            no_qualifier: true,
            ..asked()
        };
        assert_eq!(parse(without).unwrap().wanted.qualifiers, 0);
    }

    #[test]
    fn a_refusal_names_the_parameter_its_value_and_its_range() {
        type Change = fn(&mut v1::GenerateRequest);
        let tokens = |ids| Some(Sent::Tokens(v1::TokenIds { ids }));
        let cases: [(Change, [&str; 3]); 28] = [
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
                |r| r.repetition_penalty = Some(0.0),
                ["repetition_penalty", "0", "above 0"],
            ),
            (
                |r| r.presence_penalty = 2.5,
                ["presence_penalty", "2.5", "-2 to 2"],
            ),
            (
                |r| r.frequency_penalty = f32::INFINITY,
                ["frequency_penalty", "inf", "-2 to 2"],
            ),
            (|r| r.bias_ids = vec![1], ["logit_bias", "1 ids", "as many"]),
            (
                |r| (r.bias_ids, r.bias_values) = (vec![1, 1], vec![0.0; 2]),
                ["logit_bias", "twice", "once"],
            ),
            (
                |r| (r.bias_ids, r.bias_values) = (vec![1], vec![101.0]),
                ["logit_bias", "101", "-100 to 100"],
            ),
            (|r| r.n = 17, ["n ", "17", "at most 16"]),
            (|r| r.logprobs = Some(21), ["logprobs", "21", "at most 20"]),
            (
                |r| r.prompt_logprobs = Some(400),
                ["prompt_logprobs", "400", "at most 20"],
            ),
            (
                |r| r.stop = vec![String::new()],
                ["stop", "0 bytes", "1 to 256"],
            ),
            (
                |r| r.stop = vec!["a".to_owned(); 17],
                ["stop", "17 texts", "at most 16"],
            ),
            (
                |r| r.resume = Some(v1::Resume::default()),
                ["seed", "missing", "interrupted"],
            ),
            (
                |r| (r.resume, r.seed) = (Some(v1::Resume::default()), Some(1)),
                ["resume.numerics_id", "missing", "system_fingerprint"],
            ),
            (
                |r| {
                    let numerics_id = "a".to_owned();
                    r.seed = Some(1);
                    r.resume = Some(v1::Resume {
                        numerics_id,
                        token_ids: vec![10],
                        choice: 0,
                    });
                },
                ["resume.token_ids", "token 10", "below 10"],
            ),
            (
                |r| r.strategy = "magic".to_owned(),
                ["strategy", "magic", "serial-tree"],
            ),
            (
                |r| {
                    r.strategy = "serial".to_owned();
                    r.knobs = [("depth".to_owned(), 3.0)].into();
                },
                ["serial", "depth", "gamma"],
            ),
            (
                |r| {
                    r.strategy = "serial".to_owned();
                    r.knobs = [("gamma".to_owned(), 65.0)].into();
                },
                ["gamma", "65", "0 to 64"],
            ),
            (
                |r| r.knobs = [("rows".to_owned(), f64::NAN)].into(),
                ["knobs", "rows = NaN", "finite"],
            ),
            (
                |r| r.knobs = (0..33).map(|i| (i.to_string(), 1.0)).collect(),
                ["knobs", "33", "at most 32"],
            ),
        ];
        for (change, parts) in cases {
            let mut request = asked();
            change(&mut request);
            let status = Status::from(parse(request).unwrap_err());
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
            assert!(parse(request).is_err());
        }
    }
}

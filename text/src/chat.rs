//! Chat templates: what a conversation is as the text that a model continues.
//!
//! A template is a part of the model: `chat_template.jinja` or the `chat_template` of `tokenizer_config.json` in a Hugging
//! Face directory, `tokenizer.chat_template` in a GGUF file. It is never a client's. It is rendered as
//! `transformers` renders it (`apply_chat_template`: trimmed blocks, loop controls, methods of Python's strings,
//! `raise_exception`), within a bound on its instructions and on the text that results.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use serde_json::Value as Json;

use crate::tokenizer::MAX_INPUT_BYTES;

/// The largest chat template, and the largest `tokenizer_config.json`, that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Instructions that a template may take for one conversation, and how many bytes of text it may make for one of them: 256 MB
/// in all.
const FUEL: u64 = 4_000_000;
const BYTES_OF_FUEL: u64 = 64;

/// The name of the only template of its environment.
const NAME: &str = "chat template";

/// What one side has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who: `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// What.
    pub content: String,
}

/// The texts of the tokens that a template may write by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) bos: String,
    pub(crate) eos: String,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    marks: Marks,
}

impl ChatTemplate {
    /// # Errors
    /// With what is wrong with `source`.
    pub(crate) fn new(mut source: String, marks: Marks) -> Result<ChatTemplate, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |why: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        // As `transformers` has it: nothing is escaped for HTML.
        environment.add_filter(
            "tojson",
            |state: &State, value: Value| -> Result<String, Error> {
                // A short template can make a list of any length.
                let mut text = Bounded {
                    bytes: Vec::new(),
                    most: MAX_INPUT_BYTES,
                };
                let bad = |why: String| Error::new(ErrorKind::BadSerialization, why);
                serde_json::to_writer(&mut text, &value).map_err(|error| bad(error.to_string()))?;
                state.consume_fuel(text.bytes.len() as u64 / BYTES_OF_FUEL)?;
                String::from_utf8(text.bytes).map_err(|error| bad(error.to_string()))
            },
        );
        // What `transformers` leaves out of the text too: it marks what an assistant wrote, for training.
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            for name in ["generation", "endgeneration"] {
                let tag = format!("{open} {name} {close}");
                source = source.replace(&tag, &as_comment(&tag));
            }
        }
        (environment.add_template_owned(NAME, source)).map_err(|error| describe(&error))?;
        Ok(ChatTemplate { environment, marks })
    }

    /// The text in which the assistant is to speak next, of at most `most` bytes.
    ///
    /// # Errors
    /// With the template's own refusal (many want roles to alternate), or that the text would be too long.
    pub(crate) fn render(&self, messages: &[Message], most: usize) -> Result<String, String> {
        let template = (self.environment.get_template(NAME)).map_err(|error| describe(&error))?;
        let messages: Vec<Value> = (messages.iter())
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let context = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.marks.bos.as_str(),
            eos_token => self.marks.eos.as_str(),
            tools => (),
            documents => (),
        };
        let mut text = Bounded {
            bytes: Vec::new(),
            most,
        };
        (template.render_captured_to(context, &mut text)).map_err(|error| describe(&error))?;
        String::from_utf8(text.bytes).map_err(|error| error.to_string())
    }
}

/// A comment that trims what the tag would have trimmed.
fn as_comment(tag: &str) -> String {
    tag.replace("{%", "{#").replace("%}", "#}")
}

/// An error with its causes, on one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A text that cannot grow beyond a bound.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            let why = format!(
                "the conversation makes more than {} bytes of text",
                self.most
            );
            return Err(io::Error::other(why));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The chat template of a model directory; `None` if the directory has none.
///
/// # Errors
/// With why the template cannot be used.
pub(crate) fn of_directory(dir: &Path) -> Option<Result<ChatTemplate, String>> {
    let read = || -> Result<Option<(String, Marks)>, String> {
        let config = match read(&dir.join("tokenizer_config.json"))? {
            None => Json::Null,
            Some(content) => serde_json::from_str(&content)
                .map_err(|error| format!("tokenizer_config.json is not JSON: {error}"))?,
        };
        let marks = Marks {
            bos: token(&config, "bos_token"),
            eos: token(&config, "eos_token"),
        };
        let source = match read(&dir.join("chat_template.jinja"))? {
            Some(source) => Some(source),
            None => inline(&config["chat_template"]),
        };
        Ok(source.map(|source| (source, marks)))
    };
    match read() {
        Ok(found) => found.map(|(source, marks)| ChatTemplate::new(source, marks)),
        Err(why) => Some(Err(why)),
    }
}

fn read(path: &Path) -> Result<Option<String>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read {name}: {error}")),
    };
    let mut content = String::new();
    let mut file = file.take(MAX_FILE_BYTES + 1);
    (file.read_to_string(&mut content)).map_err(|error| format!("cannot read {name}: {error}"))?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("{name} is larger than {MAX_FILE_BYTES} bytes"));
    }
    Ok(Some(content))
}

/// A token of `tokenizer_config.json`, which is a text or an object with one.
fn token(config: &Json, name: &str) -> String {
    let token = &config[name];
    let content = token.as_str().or_else(|| token["content"].as_str());
    content.unwrap_or_default().to_owned()
}

/// `chat_template` is one template, or a list of named ones.
fn inline(value: &Json) -> Option<String> {
    let named = value.as_array().and_then(|all| {
        let default = all.iter().find(|one| one["name"] == "default");
        default.or(all.first())
    });
    let source = named.map_or(value, |one| &one["template"]);
    source.as_str().map(str::to_owned)
}

/// Breaks the control tokens that `content` spells out, by `mark` behind the first character of each, so that what somebody
/// wrote is text and never a token of the template's. Returns `None` when a control token is a single character.
pub(crate) fn break_control(content: &str, control: &[String], mark: char) -> Option<String> {
    let mut breaks: Vec<usize> = Vec::new();
    for token in control {
        let first = token.chars().next()?.len_utf8();
        // Every place, also one inside of another.
        let mut from = 0;
        while let Some(found) = content[from..].find(token.as_str()) {
            if token.len() == first {
                return None;
            }
            breaks.push(from + found + first);
            from += found + first;
        }
    }
    breaks.sort_unstable();
    breaks.dedup();
    let mut broken = String::with_capacity(content.len() + breaks.len() * mark.len_utf8());
    let mut from = 0;
    for at in breaks {
        broken.push_str(&content[from..at]);
        broken.push(mark);
        from = at;
    }
    broken.push_str(&content[from..]);
    Some(broken)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn said(all: &[(&str, &str)]) -> Vec<Message> {
        (all.iter())
            .map(|&(role, content)| Message {
                role: role.to_owned(),
                content: content.to_owned(),
            })
            .collect()
    }

    fn template(source: &str) -> ChatTemplate {
        let marks = Marks {
            bos: "<s>".to_owned(),
            eos: "</s>".to_owned(),
        };
        ChatTemplate::new(source.to_owned(), marks).unwrap()
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_known() {
        let chat = template(
            "{{ bos_token }}{% for message in messages %}\n    {% if message['role'] == 'user' %}\n[INST] {{ \
             message['content'].strip() }} [/INST]{% else %}\n{{ message.content | trim }}{{ eos_token }}{% endif %}\n{% endfor \
             %}\n{%- if tools is none and add_generation_prompt %}\nAssistant:{% endif %}\n",
        );
        let messages = said(&[("user", " hi "), ("assistant", "yes "), ("user", "so?")]);
        assert_eq!(
            chat.render(&messages, 1000).unwrap(),
            "<s>[INST] hi [/INST]yes</s>[INST] so? [/INST]Assistant:"
        );
    }

    #[test]
    fn generation_marks_leave_no_trace() {
        let chat = template(
            "{% for m in messages %}\n{%- generation %}{{ m.content }}{% endgeneration %}\n{%- endfor %}",
        );
        assert_eq!(
            chat.render(&said(&[("user", "a"), ("user", "b")]), 10)
                .unwrap(),
            "ab"
        );
    }

    #[test]
    fn a_templates_refusal_is_told() {
        let chat = template("{{ raise_exception('roles must alternate') }}");
        let why = chat.render(&said(&[("user", "a")]), 10).unwrap_err();
        assert!(why.contains("roles must alternate"), "{why}");
    }

    #[test]
    fn work_and_text_are_bounded() {
        let endless = template(
            "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        );
        let why = endless.render(&[], 10).unwrap_err();
        assert!(why.contains("fuel"), "{why}");
        let long = template("{% for a in range(90000) %}aaaaaaaaaa{% endfor %}");
        let why = long.render(&[], 1000).unwrap_err();
        assert!(why.contains("more than 1000 bytes"), "{why}");
        for source in [
            "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "{{ ([1] * 90000000) | tojson }}",
            "{% set ns = namespace(l=[]) %}{% for i in range(9000) %}{% set ns.l = ns.l + [('a' * 4000000) | tojson] %}{% endfor %}",
        ] {
            assert!(template(source).render(&[], 1000).is_err(), "{source}");
        }
        let why =
            template("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}").render(&[], 10);
        assert!(why.is_err());
    }

    #[test]
    fn what_does_not_parse_is_refused() {
        let broken = ChatTemplate::new("{% for %}".to_owned(), Marks::default());
        assert!(broken.unwrap_err().contains("syntax error"));
    }

    #[test]
    fn control_tokens_in_messages_are_broken_wherever_they_stand() {
        let control = ["<|end|>".to_owned(), "<<".to_owned()];
        let broken = |content| break_control(content, &control, '|').unwrap();
        assert_eq!(broken("a <|end|><|end|> b"), "a <||end|><||end|> b");
        assert_eq!(broken("<<<"), "<|<|<");
        assert_eq!(broken("nothing"), "nothing");
        assert_eq!(break_control("a|b", &["|".to_owned()], '!'), None);
        assert_eq!(break_control("ab", &["|".to_owned()], '!').unwrap(), "ab");
    }

    #[test]
    fn directories_name_their_template_in_three_ways() {
        let dir = tempfile::tempdir().unwrap();
        let render = || {
            let found = of_directory(dir.path()).unwrap();
            found
                .unwrap()
                .render(&said(&[("user", "hi")]), 100)
                .unwrap()
        };
        assert!(of_directory(dir.path()).is_none());
        let config = dir.path().join("tokenizer_config.json");
        std::fs::write(
            &config,
            r#"{"bos_token": {"content": "<s>"}, "eos_token": null}"#,
        )
        .unwrap();
        assert!(of_directory(dir.path()).is_none());
        let one = r#"{"bos_token": "<b>", "chat_template": "{{ bos_token }}1"}"#;
        std::fs::write(&config, one).unwrap();
        assert_eq!(render(), "<b>1");
        let named = r#"{"chat_template": [{"name": "rag", "template": "2"}, {"name": "default", "template": "3"}]}"#;
        std::fs::write(&config, named).unwrap();
        assert_eq!(render(), "3");
        std::fs::write(
            dir.path().join("chat_template.jinja"),
            "{{ messages[0].content }}",
        )
        .unwrap();
        assert_eq!(render(), "hi");
        std::fs::write(&config, "{").unwrap();
        let why = of_directory(dir.path()).unwrap().unwrap_err();
        assert!(why.contains("tokenizer_config.json"), "{why}");
    }
}

//! Chat templates: what a conversation is as the text that a model continues.
//!
//! A template is a part of the model: `chat_template.jinja` or the `chat_template` of `tokenizer_config.json` in a Hugging
//! Face directory, `tokenizer.chat_template` in a GGUF file. It is never a client's. It is rendered as
//! `transformers` renders it (`apply_chat_template`: trimmed blocks, loop controls, methods of Python's strings,
//! `raise_exception`), within a bound on its instructions and on the text that results.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use serde_json::Value as Json;

use crate::metered::{self, BYTES_OF_FUEL, weigh};
use crate::tokenizer::MAX_INPUT_BYTES;

/// The largest chat template, and the largest `tokenizer_config.json`, that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

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
    source: String,
    marks: Marks,
}

impl ChatTemplate {
    /// # Errors
    /// With what is wrong with `source`.
    pub(crate) fn new(mut source: String, marks: Marks) -> Result<ChatTemplate, String> {
        let mut environment = metered::environment();
        environment.add_function(
            "raise_exception",
            |state: &State, why: Value| -> Result<Value, Error> {
                weigh(state, &why)?;
                Err(Error::new(ErrorKind::InvalidOperation, why.to_string()))
            },
        );
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
        let source = metered::prepare(&source).map_err(|error| describe(&error))?;
        metered::compile(&source).map_err(|error| describe(&error))?;
        Ok(ChatTemplate {
            environment,
            source,
            marks,
        })
    }

    /// The text in which the assistant is to speak next, of at most `most` bytes.
    ///
    /// # Errors
    /// With the template's own refusal (many want roles to alternate), or that the text would be too long.
    pub(crate) fn render(&self, messages: &[Message], most: usize) -> Result<String, String> {
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
        let text = metered::render(&self.environment, &self.source, context)
            .map_err(|error| describe(&error))?;
        match text.len() > most {
            true => Err(too_long(most)),
            false => Ok(text),
        }
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

fn too_long(most: usize) -> String {
    format!("the conversation makes more than {most} bytes of text")
}

/// A text that cannot grow beyond a bound.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(io::Error::other(too_long(self.most)));
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

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use minijinja::value::Object;

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
            "{{ ([messages] * 90000001) ~ 'a' }}",
            "{{ ([1] * 90000001) ~ '' }}",
            "{{ ([1] * 90000001) in 'a' }}",
            "{{ 'a' in [[1] * 10000 * 9000] }}",
            "{{ [1] * 90000001 == 90000000 * [1] }}",
            "{{ ([1] * 90000001) | string }}",
            "{{ 'a'.startswith([1] * 90000001) }}",
            "{% set x = [1] * 90000001 %}{{ x == [1] * 90000001 }}",
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

    /// Each would take longer than anybody lives, or more memory than there is.
    #[test]
    fn values_inside_of_values_are_bounded() {
        let doubled = "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
        let deep = "{% set ns = namespace(x=[1]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}";
        let again = "{% set ns = namespace() %}{% set ns.x = ns %}";
        for end in [
            "{{ ns.x }}",
            "{{ ns.x ~ 'a' }}",
            "{{ ns.x | tojson }}",
            "{{ ns.x | string }}",
            "{{ [ns.x] | join }}",
            "{{ [ns.x, ns.x] | sort }}",
            "{{ ns.x in 'a' }}",
            "{{ {ns.x: 1} }}",
            "{{ {}[ns.x] }}",
            "{{ 'a'.join([ns.x]) }}",
            "{{ raise_exception(ns.x) }}",
            "{% set y %}{{ ns.x }}{% endset %}",
        ] {
            for begin in [doubled, deep, again] {
                let source = format!("{begin}{end}");
                let why = template(&source).render(&[], 1000).unwrap_err();
                assert!(
                    why.contains("fuel") || why.contains("levels"),
                    "{source}: {why}"
                );
            }
        }
        for compared in ["==", "!=", "<", ">=", "is eq"] {
            let twice = format!(
                "{doubled}{}{{{{ ns.x {compared} m.x }}}}",
                doubled.replace("ns", "m")
            );
            let why = template(&twice).render(&[], 1000).unwrap_err();
            assert!(why.contains("fuel") || why.contains("levels"), "{why}");
        }
        // What is only made, and dropped.
        assert_eq!(template(deep).render(&[], 10).unwrap(), "");
        for refused in [
            "{% set a = 1 %}{{ 0 < a < 3 }}",
            "{% for a in [1] %}{{ loop.changed(a) }}{% endfor %}",
        ] {
            let why = ChatTemplate::new(refused.to_owned(), Marks::default()).unwrap_err();
            assert!(why.contains("not supported"), "{why}");
        }
    }

    /// A value that counts how often it is dropped.
    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);

    impl Object for Counted {}

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_namespace_that_holds_itself_is_dropped() {
        for end in ["", "{{ raise_exception('no') }}"] {
            let source =
                format!("{{% set ns = namespace(a=counted()) %}}{{% set ns.b = [ns] %}}{end}");
            let (dropped, mut chat) = (Arc::new(AtomicUsize::new(0)), template(&source));
            let given = Arc::clone(&dropped);
            let counted = move || Value::from_object(Counted(Arc::clone(&given)));
            chat.environment.add_function("counted", counted);
            assert_eq!(chat.render(&[], 10).is_ok(), end.is_empty());
            assert_eq!(dropped.load(Ordering::Relaxed), 1, "{end}");
        }
    }

    #[test]
    fn what_is_metered_says_the_same() {
        for (source, text) in [
            (
                "{{ 'a' ~ 1 ~ [2, 'b'] ~ none ~ missing }}",
                "a1[2, 'b']None",
            ),
            (
                "{{ 1 == 1.0 }} {{ 'a' != 'b' }} {{ [1, 2] < [1, 3] }} {{ 2 >= 3 }} {{ missing == 'a' }}",
                "True True True False False",
            ),
            (
                "{{ 'b' in 'abc' }} {{ 2 in [1, 2] }} {{ 'a' in {'a': 1} }} {{ 'x' not in 'abc' }}",
                "True True True True",
            ),
            (
                "{{ {'b': 1, 'a': [2]}['a'][0] }} {{ {'a': 1}['c'] is defined }} {{ 'abc'[-1] }}",
                "2 False c",
            ),
            (
                "{{ [3, 1, 2] | sort(reverse=true) | join('-') }} {{ 'a b' | replace(' ', '_') | upper }}",
                "3-2-1 A_B",
            ),
            (
                "{{ [1, 2, 3] | select('gt', 1) | list | length }} {{ 3 is odd }} {{ 'a' is in ['a'] }} {{ 4 is divisibleby 2 }}",
                "2 True True True",
            ),
            (
                "{{ 3 * 4 }} {{ '-' * 3 }} {{ 2 * [1] * 1 }} {{ range(*[2]) | length }} 5 * 5",
                "12 --- [1, 1] 2 5 * 5",
            ),
            (
                "{{ messages[::-1][0].content }} {{ messages[1:] | length }}",
                "b 1",
            ),
            (
                "{{ ' a '.strip() }} {{ 'a,b'.split(',')[1] }} {{ {'a': 1}.get('a') }} {{ {'x': 2} | tojson }}",
                "a b 1 {\"x\":2}",
            ),
        ] {
            let found = template(source).render(&said(&[("user", "a"), ("user", "b")]), 1000);
            assert_eq!(found.as_deref(), Ok(text), "{source}");
        }
        // A long conversation takes a part of what there is.
        let two = [("user", "a question"), ("assistant", "an answer")];
        let many = two.repeat(2000);
        let chat = template(
            "{% for m in messages %}{% if m['role'] == 'user' and loop.index0 < messages | length %}{{ '<' ~ m['content'] | trim ~ '>' }}{% endif %}{% endfor %}",
        );
        assert_eq!(
            chat.render(&said(&many), 1 << 20).unwrap().len(),
            2000 * "<a question>".len()
        );
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

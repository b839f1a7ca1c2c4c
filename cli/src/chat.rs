//! `offshoot chat`: a conversation in the terminal, each answer streamed.
//!
//! The conversation is kept here and sent as a whole with each message; the coordinator writes it as the model's chat
//! template has it. Where standard input is no terminal, each of its lines is a message.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, Result, bail};
use clap::Args;
use proto::v1;
use proto::v1::generate_request::Prompt;
use runtime::{Caller, TraceContext, trace};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::End;
use crate::client::{Completion, Coordinators};
use crate::cluster::ClusterArgs;
use crate::console;
use crate::generate::summary;
use crate::request::RequestArgs;
use crate::strategy;

/// Arguments of `offshoot chat`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot chat --model SmolLM2-135M-Instruct.Q4_1.gguf
  offshoot chat --model ~/models/instruct --system \"Answer in one sentence.\"
  offshoot chat --connect 127.0.0.1:7000 --temperature 0.7
  echo \"What is the capital of France?\" | offshoot chat --model instruct.gguf

/help lists what else can be said. Ctrl-C stops an answer, Ctrl-D ends the conversation.")]
pub(crate) struct ChatArgs {
    /// What the model is told before the conversation begins
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Maximum number of tokens of an answer; 0: as many as the context has room for
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Decoding")]
    max_tokens: u32,
    // Last, so that no knob takes the name of another flag.
    #[command(flatten)]
    request: RequestArgs,
}

impl ChatArgs {
    /// The cluster that would be started.
    pub(crate) fn models(&mut self) -> &mut ClusterArgs {
        &mut self.request.serving.cluster
    }
}

/// Talks until the input ends.
///
/// # Errors
/// When the cluster does not start or cannot be reached, or, without a terminal, a message is not answered.
pub(crate) async fn run(args: ChatArgs) -> Result<End> {
    let serving = args.request.serving.clone();
    if serving.connect.is_empty() && serving.cluster.target.is_none() {
        bail!(
            "the bundled models were not trained for chat; name one that was with --model, or a running cluster with --connect"
        );
    }
    let exporting = trace::init(&serving.cluster.trace, "client", "")?;
    let outcome = serving.serve(interrupt(), async |addresses, caller| {
        Chat::new(args).talk(addresses, caller).await
    });
    let outcome = outcome.await;
    exporting.flush().await;
    outcome
}

/// Resolves with Ctrl-C. Where signals cannot be watched it never does, and Ctrl-C ends the process.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

/// What somebody typed.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Nothing,
    Message(String),
    Help,
    New,
    System(Option<String>),
    Set(Setting),
    Statistics,
    Retry,
    Quit,
}

/// What can be changed between two answers.
#[derive(Clone, Debug, PartialEq)]
enum Setting {
    Temperature(f32),
    MaxTokens(u32),
    Seed(Option<u64>),
    Strategy(String),
}

const HELP: &str = "\
/new                   begin a new conversation
/retry                 answer the last message again
/system TEXT           tell the model something before the conversation; without TEXT nothing
/set temperature T     0 always takes the most likely token
/set max-tokens N      0: as many as the context has room for
/set seed N            the seed decides the text; random: another one for each answer
/set strategy NAME     the text is the same, the speed is not
/stats                 show statistics after each answer, or no longer
/quit                  end (as does Ctrl-D)
A line that ends with \\ goes on in the next one. // begins a message with a slash.";

impl Said {
    fn parse(line: &str) -> Result<Said, String> {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return Ok(match line {
                "" => Said::Nothing,
                message => Said::Message(message.to_owned()),
            });
        };
        if command.starts_with('/') {
            return Ok(Said::Message(command.to_owned()));
        }
        let (name, rest) = match command.split_once(char::is_whitespace) {
            Some((name, rest)) => (name, rest.trim()),
            None => (command, ""),
        };
        match (name, rest) {
            ("help" | "?", "") => Ok(Said::Help),
            ("new", "") => Ok(Said::New),
            ("retry", "") => Ok(Said::Retry),
            ("stats", "") => Ok(Said::Statistics),
            ("quit" | "exit", "") => Ok(Said::Quit),
            ("system", "") => Ok(Said::System(None)),
            ("system", text) => Ok(Said::System(Some(text.to_owned()))),
            ("set", rest) => Setting::parse(rest).map(Said::Set),
            _ => Err(format!("there is no /{command}; /help lists what there is")),
        }
    }
}

impl Setting {
    fn parse(text: &str) -> Result<Setting, String> {
        let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let value = value.trim();
        let bad = || format!("{value:?} is no value for {name}; /help shows what can be set");
        match name {
            "temperature" => (value.parse().map(Setting::Temperature)).map_err(|_| bad()),
            "max-tokens" => (value.parse().map(Setting::MaxTokens)).map_err(|_| bad()),
            "seed" if value == "random" => Ok(Setting::Seed(None)),
            "seed" => (value.parse().map(|seed| Setting::Seed(Some(seed)))).map_err(|_| bad()),
            "strategy" => strategy::known(value).map(Setting::Strategy),
            _ => Err(format!("{name:?} cannot be set; /help shows what can")),
        }
    }
}

/// A conversation and how it is answered.
struct Chat {
    args: ChatArgs,
    messages: Vec<v1::ChatMessage>,
    shows_statistics: bool,
}

impl Chat {
    fn new(args: ChatArgs) -> Chat {
        Chat {
            args,
            messages: Vec::new(),
            shows_statistics: false,
        }
    }

    async fn talk(&mut self, addresses: &[String], caller: &Caller) -> Result<End> {
        let coordinators = Coordinators {
            addresses,
            caller,
            trace: TraceContext::none(),
        };
        let mut input = Input::new()?;
        let is_terminal = input.is_terminal();
        if is_terminal {
            console::say("/help for commands, Ctrl-D to end");
        }
        loop {
            let (line, next) = read(input).await?;
            input = next;
            let Some(line) = line else {
                return Ok(End::Done);
            };
            let said = match Said::parse(&line) {
                Ok(said) => said,
                Err(why) if is_terminal => {
                    console::say(&why);
                    continue;
                }
                Err(why) => bail!("{why}"),
            };
            match said {
                Said::Nothing => {}
                Said::Quit => return Ok(End::Done),
                Said::Message(content) => {
                    self.messages.push(message("user", content));
                    self.answer(&coordinators, is_terminal).await?;
                }
                Said::Retry => {
                    if self
                        .messages
                        .last()
                        .is_some_and(|last| last.role == "assistant")
                    {
                        self.messages.pop();
                    }
                    match self.messages.is_empty() {
                        true => console::say("there is nothing to answer yet"),
                        false => self.answer(&coordinators, is_terminal).await?,
                    }
                }
                other => self.change(other),
            }
        }
    }

    /// Does what needs no answer.
    fn change(&mut self, said: Said) {
        match said {
            Said::Help => console::say(HELP),
            Said::New => self.messages.clear(),
            Said::System(text) => self.args.system = text,
            Said::Statistics => self.shows_statistics = !self.shows_statistics,
            Said::Set(Setting::Temperature(value)) => {
                self.args.request.sampling.temperature = value
            }
            Said::Set(Setting::MaxTokens(value)) => self.args.max_tokens = value,
            Said::Set(Setting::Seed(value)) => self.args.request.seed = value,
            Said::Set(Setting::Strategy(name)) => {
                self.args.request.strategy.settings = speculation::strategy::Settings::new(&name);
            }
            Said::Nothing | Said::Message(_) | Said::Retry | Said::Quit => {}
        }
    }

    fn request(&self) -> v1::GenerateRequest {
        let system = (self.args.system.iter()).map(|text| message("system", text.clone()));
        let chat = v1::Chat {
            messages: system.chain(self.messages.iter().cloned()).collect(),
        };
        (self.args.request).request(Prompt::Chat(chat), self.args.max_tokens)
    }

    /// Streams the answer to the last message, and keeps it. An answer that Ctrl-C has stopped is kept as far as it came.
    async fn answer(&mut self, coordinators: &Coordinators<'_>, is_terminal: bool) -> Result<()> {
        let mut text = String::new();
        let generation = coordinators.generate(
            self.request(),
            |piece| {
                text.push_str(piece);
                Ok(console::put(piece)?)
            },
            |failure| console::say(&format!("{failure}; resuming")),
        );
        let completion: Option<Result<Completion>> = tokio::select! {
            completion = generation => Some(completion),
            () = interrupt() => None,
        };
        if !text.is_empty() {
            console::put("\n")?;
        }
        match completion {
            Some(Err(error)) => {
                // What was not answered is not a part of the conversation.
                self.messages.pop();
                if !is_terminal || console::is_broken_pipe(&error) {
                    return Err(error);
                }
                console::say(&format!("error: {error:#}"));
                return Ok(());
            }
            Some(Ok(completion)) if self.shows_statistics => console::say(&summary(&completion)),
            Some(Ok(completion)) if completion.reason == v1::FinishReason::Context => {
                console::say("the context is full; /new begins a new conversation");
            }
            Some(Ok(_)) => {}
            None => console::say("stopped"),
        }
        match text.is_empty() {
            true => drop(self.messages.pop()),
            false => self.messages.push(message("assistant", text)),
        }
        Ok(())
    }
}

fn message(role: &str, content: String) -> v1::ChatMessage {
    v1::ChatMessage {
        role: role.to_owned(),
        content,
    }
}

/// Where messages come from.
enum Input {
    Terminal(Box<DefaultEditor>),
    Lines,
}

impl Input {
    fn new() -> Result<Input> {
        if !io::stdin().is_terminal() {
            return Ok(Input::Lines);
        }
        let editor = DefaultEditor::new().context("cannot use the terminal")?;
        Ok(Input::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// The next message, its continuation lines joined; `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        let mut message = String::new();
        loop {
            let Some(line) = self.line(if message.is_empty() { "> " } else { ". " })? else {
                return Ok((!message.is_empty()).then_some(message));
            };
            let Some(begun) = line.strip_suffix('\\') else {
                message.push_str(&line);
                break;
            };
            message.push_str(begun);
            message.push('\n');
        }
        if let Input::Terminal(editor) = self
            && !message.trim().is_empty()
        {
            editor.add_history_entry(&message)?;
        }
        Ok(Some(message))
    }

    fn line(&mut self, prompt: &str) -> Result<Option<String>> {
        let mut line = String::new();
        match self {
            Input::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Some(line)),
                // Ctrl-C empties the line, as in a shell.
                Err(ReadlineError::Interrupted) => Ok(Some(String::new())),
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Input::Lines => {
                let read = io::stdin().lock().read_line(&mut line);
                let read = read.context("cannot read standard input")?;
                Ok((read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned()))
            }
        }
    }
}

/// Reads the next message on a thread that may wait for it.
async fn read(mut input: Input) -> Result<(Option<String>, Input)> {
    let read = tokio::task::spawn_blocking(move || {
        let message = input.next()?;
        Ok((message, input))
    });
    read.await.context("reading was given up")?
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        chat: ChatArgs,
    }

    #[test]
    fn lines_are_messages_or_commands() {
        let said = |line: &str| Said::parse(line).unwrap();
        assert_eq!(said("  "), Said::Nothing);
        assert_eq!(said(" hi there "), Said::Message("hi there".to_owned()));
        assert_eq!(
            said("//etc/hosts?"),
            Said::Message("/etc/hosts?".to_owned())
        );
        assert_eq!(
            said("/system be brief"),
            Said::System(Some("be brief".to_owned()))
        );
        assert_eq!(said("/system"), Said::System(None));
        assert_eq!(
            said("/set temperature 0.5"),
            Said::Set(Setting::Temperature(0.5))
        );
        assert_eq!(said("/set seed random"), Said::Set(Setting::Seed(None)));
        assert_eq!(
            said("/set strategy ar"),
            Said::Set(Setting::Strategy("ar".to_owned()))
        );
        for bad in [
            "/sing",
            "/set",
            "/set seed x",
            "/set strategy magic",
            "/new york",
        ] {
            assert!(Said::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_has_the_whole_conversation() {
        let probe = Probe::try_parse_from([
            "probe",
            "--model",
            "x",
            "--system",
            "be brief",
            "--temperature",
            "0.5",
            "--seed",
            "3",
        ]);
        let mut chat = Chat::new(probe.unwrap().chat);
        chat.messages = vec![message("user", "hi".to_owned())];
        chat.change(Said::Set(Setting::MaxTokens(9)));
        chat.change(Said::Set(Setting::Strategy("serial".to_owned())));
        let request = chat.request();
        let Some(Prompt::Chat(sent)) = &request.prompt else {
            panic!("{request:?}");
        };
        let sent: Vec<_> = (sent.messages.iter())
            .map(|one| (one.role.as_str(), one.content.as_str()))
            .collect();
        assert_eq!(sent, [("system", "be brief"), ("user", "hi")]);
        assert_eq!((request.max_tokens, request.seed), (9, Some(3)));
        assert_eq!(request.strategy, "serial");
        chat.change(Said::New);
        chat.change(Said::System(None));
        let Some(Prompt::Chat(sent)) = chat.request().prompt else {
            panic!("it is a conversation");
        };
        assert!(sent.messages.is_empty());
    }

    #[tokio::test]
    async fn without_a_model_it_says_what_is_missing() {
        let args = Probe::try_parse_from(["probe"]).unwrap().chat;
        let error = run(args).await.unwrap_err().to_string();
        assert!(error.contains("--model"), "{error}");
    }
}

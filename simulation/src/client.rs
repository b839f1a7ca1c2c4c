//! Clients: they read at their own speed, hang up, come back, and know what they have to get.

use decode::{PromptScores, Scores};
use speculation::Time;
use speculation::message::Finish;

use crate::network::{Event, Network, note};
use crate::reference::{Language, score};
use crate::scenario::{CONTEXT, Numerics, Request};

/// Something happens to a client's attempt.
#[derive(Clone, Debug)]
pub(crate) enum ClientEvent {
    /// The attempt begins.
    Begin,
    /// New tokens, with their scores and some of the prompt's.
    Tokens(Box<Tokens>),
    Finished(Finish),
    Failed(&'static str),
    /// There is no room for it; there may be after so long.
    Refused(Time),
    /// The client takes the next message.
    Read,
    /// The client hangs up.
    Leave,
    /// The client hangs up for good.
    Quit,
}

/// A part of a text.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    /// Those of the target.
    pub(crate) numerics: Numerics,
    pub(crate) tokens: Vec<u32>,
    pub(crate) scores: Option<Scores>,
    pub(crate) prompt: Option<PromptScores>,
}

/// What a client says to its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromClient {
    /// It has taken a message.
    Taken,
    /// It has gone.
    Gone,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) at: usize,
    pub(crate) request: Request,
    /// Counts attempts; what is said to an older one is not read.
    pub(crate) attempt: u32,
    /// Prompt and everything it has got.
    pub(crate) text: Vec<u32>,
    /// The numerics that its text goes on with.
    pub(crate) numerics: Option<Numerics>,
    /// Positions of the prompt whose scores this attempt has got.
    scored: u32,
    /// The coordinator that serves the attempt, and its life.
    pub(crate) served: Option<(usize, u32)>,
    pub(crate) is_done: bool,
    pub(crate) failures: u32,
    pub(crate) refusals: u32,
}

impl Client {
    pub(crate) fn new(at: usize, request: Request) -> Self {
        Client {
            at,
            text: request.prompt.clone(),
            request,
            attempt: 0,
            numerics: None,
            scored: 1,
            served: None,
            is_done: false,
            failures: 0,
            refusals: 0,
        }
    }

    /// Asks again some time later.
    pub(crate) fn retry(&mut self, network: &mut Network, after: Time) {
        self.served = None;
        self.attempt += 1;
        self.scored = 1;
        let again = Event::Client(self.at, self.attempt, ClientEvent::Begin);
        network.at(network.now + after, again);
    }

    /// Tells the coordinator that nobody listens any more.
    pub(crate) fn hang_up(&self, network: &mut Network) {
        note!(network, "client {} hangs up", self.at);
        self.tell(network, FromClient::Gone);
    }

    fn tell(&self, network: &mut Network, what: FromClient) {
        if let Some((coordinator, life)) = self.served {
            let trip = network.trip_us();
            let from = (self.at, self.attempt);
            network.after_us(trip, Event::FromClient(coordinator, life, from, what));
        }
    }

    /// Takes one event of its attempt; `Begin` and hanging up are the world's to see to.
    pub(crate) fn handle(&mut self, network: &mut Network, event: ClientEvent) {
        match event {
            ClientEvent::Begin | ClientEvent::Leave | ClientEvent::Quit => {}
            ClientEvent::Tokens(tokens) => {
                self.take(*tokens);
                let leaves_with = &mut self.request.leaves_with;
                if (leaves_with.take_if(|len| self.text.len() >= *len)).is_some() {
                    self.hang_up(network);
                    let after = Time::from_micros(network.dice.roll() % 10_000);
                    return self.retry(network, after);
                }
                let reads = self.request.reads_us;
                let after = if reads == 0 {
                    0
                } else {
                    network.dice.roll() % reads
                };
                let read = Event::Client(self.at, self.attempt, ClientEvent::Read);
                network.after_us(after, read);
            }
            ClientEvent::Read => self.tell(network, FromClient::Taken),
            ClientEvent::Finished(finish) => {
                self.check_end(finish);
                note!(network, "client {} has everything", self.at);
                self.is_done = true;
            }
            ClientEvent::Failed(why) => {
                note!(network, "client {} failed: {why}", self.at);
                self.failures += 1;
                let after = Time::from_micros(50_000 + network.dice.roll() % 400_000);
                self.retry(network, after);
            }
            ClientEvent::Refused(retry) => {
                note!(network, "client {} is to come back in {retry:?}", self.at);
                self.refusals += 1;
                let after = retry + Time::from_micros(network.dice.roll() % 100_000);
                self.retry(network, after);
            }
        }
    }

    /// The whole text was read, as far as the target, the client's wishes and the context of the target go.
    fn check_end(&self, finish: Finish) {
        let request = &self.request;
        let (len, numerics) = (self.text.len(), self.numerics.unwrap_or(0));
        // A text that broke before its first token has no numerics.
        let plain = &request.plain[numerics];
        let whole = plain.text.len();
        let wanted = request.satisfied_with.unwrap_or(usize::MAX);
        let is_satisfied = len == wanted && finish == Finish::Stop;
        let is_whole = len == whole && len < wanted && finish == plain.finish;
        let may_go_on = len < whole || plain.finish == Finish::NotFinite;
        let is_cut = may_go_on && len < wanted.min(CONTEXT as usize) && finish == Finish::Context;
        assert!(
            is_satisfied || is_whole || is_cut,
            "{finish:?} with {len} of {whole} tokens, of which {:?} are wanted",
            request.satisfied_with
        );
        if request.scoring.prompt.is_some() && finish != Finish::NotFinite {
            assert_eq!(self.scored, request.stopping.prompt_len);
        }
    }

    fn take(&mut self, told: Tokens) {
        let Tokens {
            numerics,
            tokens,
            scores,
            prompt,
        } = told;
        let from = self.text.len();
        if !tokens.is_empty() {
            let known = *self.numerics.get_or_insert(numerics);
            assert_eq!(numerics, known, "a text is continued with its own numerics");
        }
        self.text.extend_from_slice(&tokens);
        let plain = &self.request.plain[numerics];
        let wanted = self.request.satisfied_with.unwrap_or(usize::MAX);
        assert!(
            plain.text.starts_with(&self.text) && self.text.len() <= wanted,
            "the client reads {:?}, the plain text is {:?}",
            self.text,
            plain.text
        );
        let language = plain.language;
        match (scores, self.request.scoring.picks) {
            (Some(scores), Some(top)) => {
                assert_eq!(scores.len(), tokens.len(), "one score for each token");
                check(language, &self.text, &scores, from, top);
            }
            (None, None) => {}
            (scores, asked) => panic!("{scores:?} where {asked:?} was asked for"),
        }
        if let Some(told) = prompt {
            let asked = self.request.scoring.prompt.expect("it was asked for");
            assert_eq!(told.first, self.scored, "scores come one after the other");
            self.scored += told.scores.len() as u32;
            check(
                language,
                &self.text,
                &told.scores,
                told.first as usize,
                asked.top,
            );
        }
    }
}

/// The scores are those of the tokens from there on.
fn check(language: Language, text: &[u32], scores: &Scores, from: usize, top: u8) {
    for at in 0..scores.len() {
        let told = scores.get(at).expect("it is one of them");
        let known = &text[..=from + at];
        assert_eq!(told, score(language, known, top), "the score of {known:?}");
    }
}

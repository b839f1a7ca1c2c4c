//! Clients: they read at their own speed, hang up, come back, and know what they have to get.

use speculation::Time;
use speculation::message::{Finish, PromptScores, Scores};

use crate::air::{Air, Event, note};
use crate::reference::score;
use crate::scenario::Request;

/// What a coordinator says to a client's attempt.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    /// The attempt begins.
    Begin,
    /// New tokens, with their scores and some of the prompt's.
    Tokens(Vec<u32>, Option<Box<Scores>>, Option<Box<PromptScores>>),
    Finished(Finish),
    Failed(&'static str),
    /// The client takes the next message.
    Read,
    /// The client hangs up.
    Leave,
    /// The client hangs up for good.
    Quit,
}

/// What a client says to its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
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
    /// Counts attempts; words to an older one are not read.
    pub(crate) attempt: u32,
    /// Prompt and everything it has got.
    pub(crate) text: Vec<u32>,
    /// Positions of the prompt whose scores this attempt has got.
    scored: u32,
    /// The coordinator that serves the attempt, and its life.
    pub(crate) served: Option<(usize, u32)>,
    pub(crate) is_done: bool,
    pub(crate) failures: u32,
}

impl Client {
    pub(crate) fn new(at: usize, request: Request) -> Self {
        Client {
            at,
            text: request.prompt.clone(),
            request,
            attempt: 0,
            scored: 1,
            served: None,
            is_done: false,
            failures: 0,
        }
    }

    /// Asks again some time later.
    pub(crate) fn retry(&mut self, air: &mut Air, after: Time) {
        self.served = None;
        self.attempt += 1;
        self.scored = 1;
        let again = Event::Client(self.at, self.attempt, Word::Begin);
        air.at(air.now + after, again);
    }

    /// Tells the coordinator that nobody listens any more.
    pub(crate) fn hang_up(&self, air: &mut Air) {
        note!(air, "client {} hangs up", self.at);
        if let Some((coordinator, life)) = self.served {
            let trip = air.trip_us();
            let from = (self.at, self.attempt);
            air.after_us(trip, Event::Service(coordinator, life, from, Wish::Gone));
        }
    }

    /// Hears one word of its attempt; `Begin` and hanging up are the world's to see to.
    pub(crate) fn hear(&mut self, air: &mut Air, word: Word) {
        match word {
            Word::Begin | Word::Leave | Word::Quit => {}
            Word::Tokens(tokens, scores, prompt) => {
                self.take(&tokens, scores, prompt);
                if (self
                    .request
                    .leaves_with
                    .take_if(|&mut len| self.text.len() >= len))
                .is_some()
                {
                    self.hang_up(air);
                    let after = Time::from_micros(air.dice.roll() % 10_000);
                    return self.retry(air, after);
                }
                let reads = self.request.reads_us;
                let after = if reads == 0 {
                    0
                } else {
                    air.dice.roll() % reads
                };
                air.after_us(after, Event::Client(self.at, self.attempt, Word::Read));
            }
            Word::Read => {
                if let Some((coordinator, life)) = self.served {
                    let trip = air.trip_us();
                    let taken =
                        Event::Service(coordinator, life, (self.at, self.attempt), Wish::Taken);
                    air.after_us(trip, taken);
                }
            }
            Word::Finished(finish) => {
                assert_eq!(self.text, self.request.plain, "the whole text was read");
                assert_eq!(finish, self.request.finish);
                if self.request.scoring.prompt.is_some() {
                    assert_eq!(self.scored, self.request.stopping.prompt_len);
                }
                note!(air, "client {} has everything", self.at);
                self.is_done = true;
            }
            Word::Failed(why) => {
                note!(air, "client {} failed: {why}", self.at);
                self.failures += 1;
                let after = Time::from_micros(50_000 + air.dice.roll() % 400_000);
                self.retry(air, after);
            }
        }
    }

    fn take(
        &mut self,
        tokens: &[u32],
        scores: Option<Box<Scores>>,
        prompt: Option<Box<PromptScores>>,
    ) {
        let from = self.text.len();
        self.text.extend_from_slice(tokens);
        assert!(
            self.request.plain.starts_with(&self.text),
            "the client reads {:?}, the plain text is {:?}",
            self.text,
            self.request.plain
        );
        let language = self.request.language;
        let check = |scores: &Scores, from: usize, top: u8| {
            for at in 0..scores.len() {
                let told = scores.get(at).expect("it is one of them");
                let known = &self.text[..=from + at];
                assert_eq!(told, score(language, known, top), "the score of {known:?}");
            }
        };
        match (scores, self.request.scoring.picks) {
            (Some(scores), Some(top)) => {
                assert_eq!(scores.len(), tokens.len(), "one score for each token");
                check(&scores, from, top);
            }
            (None, None) => {}
            (scores, asked) => panic!("{scores:?} where {asked:?} was asked for"),
        }
        if let Some(told) = prompt {
            let asked = self.request.scoring.prompt.expect("it was asked for");
            assert_eq!(told.first, self.scored, "scores come one after the other");
            self.scored += told.scores.len() as u32;
            check(&told.scores, told.first as usize, asked.top);
        }
    }
}

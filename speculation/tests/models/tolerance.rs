//! The rule `fuzzy` in real sessions of a draft, a qualifier and a target whose models are tables.

use decode::sampling::SamplingParams;
use decode::{
    Answer, Ask, Basis, History, Judgement, Pick, Rule, Sampler, SamplerState, Surprisal, Tolerance,
};
use speculation::duty::Role;
use speculation::stats::WalkStats;
use speculation::strategy::Settings;

use crate::rejection::{Fault, ONE_IS_SLOW, PROMPT, logits, run};

const TOKENS: usize = 24;

fn params((temperature, seed): (f32, u64)) -> SamplingParams {
    SamplingParams {
        temperature,
        seed,
        ..SamplingParams::default()
    }
}

fn text(strategy: &Settings, drawn: (f32, u64)) -> (Vec<u32>, WalkStats) {
    text_at(strategy, drawn, 0)
}

/// The text when workers sit out turns as `schedule` says.
fn text_at(strategy: &Settings, drawn: (f32, u64), schedule: u64) -> (Vec<u32>, WalkStats) {
    text_of(
        &[Role::Draft, Role::Qualifier, Role::Target],
        strategy,
        drawn,
        schedule,
    )
}

fn text_of(
    roles: &[Role],
    strategy: &Settings,
    drawn: (f32, u64),
    schedule: u64,
) -> (Vec<u32>, WalkStats) {
    let mut sampler = Sampler::new(5);
    let (text, stats) = run(
        strategy,
        (roles, TOKENS, schedule),
        params(drawn),
        Fault::None,
        &mut sampler,
    );
    (text, stats.walks)
}

fn within(draft: f32, qualifier: f32) -> Settings {
    Settings::new("auto").by(Rule::Fuzzy(Tolerance { draft, qualifier }))
}

/// What differs from plain decoding, and what was tolerated, over some seeds and two temperatures.
fn compare(strategy: &Settings) -> (usize, u64) {
    let (mut differing, mut tolerated) = (0, 0);
    for temperature in [0.0, 1.0] {
        for seed in 0..60 {
            let (plain, _) = text(&Settings::new("ar"), (temperature, seed));
            let (fuzzy, walks) = text(strategy, (temperature, seed));
            assert_eq!(fuzzy.len(), TOKENS);
            assert!(
                walks.tolerated > 0 || fuzzy == plain,
                "{temperature}, {seed}"
            );
            differing += usize::from(fuzzy != plain);
            tolerated += walks.tolerated;
        }
    }
    (differing, tolerated)
}

/// A text differs only where a token was tolerated, and nothing is without a tolerance between qualifier and target: what
/// the qualifier lets pass is advice.
#[test]
fn without_tolerance_it_is_exact_and_with_it_texts_differ_where_tokens_were_tolerated() {
    assert_eq!(compare(&within(0.0, 0.0)), (0, 0));
    assert_eq!(compare(&within(5.0, 0.0)), (0, 0));
    let (differing, tolerated) = compare(&within(0.4, 0.5));
    assert!(differing > 0 && tolerated > 0, "{differing}, {tolerated}");
    let (_, more) = compare(&within(5.0, 5.0));
    assert!(more > tolerated, "{more} of {tolerated}");
}

/// PyramidSD as its paper has it (arXiv 2510.12966, algorithm 1), one token after the other, by models that are tables.
struct Paper {
    sampler: Sampler,
    params: SamplingParams,
    tolerance: Tolerance,
    /// l_D and l_Q.
    lengths: (usize, usize),
}

impl Paper {
    fn answer(&mut self, role: Role, past: &[u32], ask: Ask) -> Answer {
        let history = History {
            text: past,
            path: &[],
            prompt_len: PROMPT.len() as u32,
        };
        let mut state = SamplerState::from(self.params);
        let logits = logits(role, past);
        let answer = (self.sampler).answer(ask, &logits, &mut state, &history);
        answer.expect("it is asked for something")
    }

    /// What a model makes of the guess that follows `past`, and how surprising it finds that.
    fn judge(
        &mut self,
        role: Role,
        past: &[u32],
        guess: Option<(u32, Surprisal)>,
    ) -> (u32, Surprisal) {
        let score = Some((Basis::Tempered, 0));
        let tolerance = match role {
            Role::Qualifier => self.tolerance.draft,
            Role::Draft | Role::Target => self.tolerance.qualifier,
        };
        let answer = match guess {
            None => self.answer(role, past, Ask::Pick { score }),
            Some(guess) => {
                let by = Judgement::Fuzzy {
                    tolerance,
                    guesses: vec![guess],
                };
                let history = History {
                    text: past,
                    path: &[],
                    prompt_len: PROMPT.len() as u32,
                };
                let mut state = SamplerState::from(self.params);
                (self.sampler).judge((&by, score), &logits(role, past), &mut state, &history)
            }
        };
        let Answer::Pick(Pick { token, score, .. }) = answer else {
            panic!("tables are finite");
        };
        let logprob = score.expect("it was asked for").logprob;
        (token, Surprisal::from_logprob(logprob))
    }

    /// Judges a chain behind `past`: what it makes of the guesses, up to the first that it replaces, and one more behind the
    /// last.
    fn verify(
        &mut self,
        role: Role,
        past: &[u32],
        chain: &[(u32, Surprisal)],
    ) -> Vec<(u32, Surprisal)> {
        let mut made = Vec::new();
        let mut past = past.to_vec();
        for guess in chain.iter().copied().map(Some).chain([None]) {
            if past.len() == PROMPT.len() + TOKENS {
                break;
            }
            let pick = self.judge(role, &past, guess);
            made.push(pick);
            past.push(pick.0);
            if guess.is_some_and(|(token, _)| token != pick.0) {
                break;
            }
        }
        made
    }

    fn draft(&mut self, past: &[u32]) -> Vec<(u32, Surprisal)> {
        let mut chain = Vec::new();
        let mut past = past.to_vec();
        // What would end the text is not guessed: the row behind it could pick nothing.
        while chain.len() < self.lengths.0 && past.len() + 1 < PROMPT.len() + TOKENS {
            let Answer::Guesses(guesses) = self.answer(Role::Draft, &past, Ask::Guesses(1)) else {
                panic!("tables are finite");
            };
            let surprisal = Surprisal::from_logprob(guesses[0].q.ln());
            chain.push((guesses[0].token, surprisal));
            past.push(guesses[0].token);
        }
        chain
    }

    fn text(mut self) -> Vec<u32> {
        let all = PROMPT.len() + TOKENS;
        // The target picks the first token as it computes the prompt.
        let (first, _) = self.judge(Role::Target, &PROMPT, None);
        let mut text = [&PROMPT[..], &[first]].concat();
        let mut ahead: Vec<(u32, Surprisal)> = Vec::new();
        while text.len() < all {
            while ahead.len() < self.lengths.1 && text.len() + ahead.len() < all {
                let advised: Vec<u32> = ahead.iter().map(|&(token, _)| token).collect();
                let past = [&text[..], &advised].concat();
                let chain = self.draft(&past);
                ahead.extend(self.verify(Role::Qualifier, &past, &chain));
            }
            let judged = ahead.len().min(self.lengths.1).min(all - text.len() - 1);
            let made = self.verify(Role::Target, &text, &ahead[..judged]);
            let tokens = || made.iter().map(|&(token, _)| token);
            let led_here = (ahead.iter().map(|&(token, _)| token)).take(made.len());
            if led_here.eq(tokens()) {
                ahead.drain(..made.len());
            } else {
                ahead.clear();
            }
            text.extend(tokens());
        }
        text[PROMPT.len()..].to_vec()
    }
}

/// Whoever is slow, `pyramid` gives the text of the paper's loop, for PSD_F and PSD_A.
#[test]
fn three_models_that_take_turns_give_the_text_of_the_paper() {
    let (mut tolerated, mut differing) = (0, 0);
    for (draft, qualifier) in [(0.4, 0.5), (0.0, 0.5), (2.0, 3.0)] {
        for (short, long) in [(5, 15), (2, 3), (3, 7)] {
            let tolerance = Tolerance { draft, qualifier };
            let strategy = (Settings::new("pyramid").by(Rule::Fuzzy(tolerance)))
                .with("draft", short as f64)
                .with("qualified", long as f64);
            for drawn in (0..12).flat_map(|seed| [(0.0, seed), (1.0, seed)]) {
                let paper = Paper {
                    sampler: Sampler::new(5),
                    params: params(drawn),
                    tolerance,
                    lengths: (short, long),
                };
                let expected = paper.text();
                for schedule in 0..ONE_IS_SLOW + 3 {
                    let (text, walks) = text_at(&strategy, drawn, schedule);
                    assert_eq!(
                        text, expected,
                        "{tolerance:?} {short} {long} {drawn:?} {schedule}"
                    );
                    tolerated += walks.tolerated;
                    // Two drafts with one model share the work.
                    let roles = [Role::Draft, Role::Draft, Role::Qualifier, Role::Target];
                    let (text, _) = text_of(&roles, &strategy, drawn, schedule);
                    assert_eq!(
                        text, expected,
                        "two drafts: {short} {long} {drawn:?} {schedule}"
                    );
                }
                let (plain, _) = text(&Settings::new("ar"), drawn);
                differing += usize::from(plain != expected);
            }
        }
    }
    assert!(tolerated > 0 && differing > 0, "{tolerated}, {differing}");
}

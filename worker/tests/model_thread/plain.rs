//! What a model says on its own: one token a step, nothing else, nothing remembered from token to token.

use std::ops::ControlFlow;

use decode::{Answer, Ask, SamplerState, Sampling, StepPlan};
use engine::{Backend, Computer, EngineOptions, SeqId, SeqStep, StepEnd};
use speculation::message::Score;

use crate::{Asked, PROMPT, TOKENS, dir};

/// A text behind [`PROMPT`], and the scores that were asked for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plain {
    pub(crate) text: Vec<u32>,
    pub(crate) picks: Vec<Score>,
    pub(crate) prompt: Vec<Score>,
}

/// A model with one sequence.
pub(crate) struct Model {
    backend: Box<dyn Backend>,
    seq: SeqId,
    cached: usize,
}

impl Model {
    pub(crate) fn load(model: &str) -> Self {
        let options = EngineOptions {
            vocab: Some(4096),
            ..EngineOptions::for_sequences(256, 1)
        };
        let mut backend = engine::load(&dir(model), &options, &Computer::Cpu, &mut |_| ()).unwrap();
        let seq = backend.open(256).unwrap();
        Model {
            backend,
            seq,
            cached: 0,
        }
    }

    /// Appends the next token of the text, and asks its row.
    pub(crate) fn step(&mut self, text: &[u32], sampling: &Sampling, ask: Ask) -> Option<Answer> {
        let plan = StepPlan {
            asks: vec![ask],
            ..StepPlan::append(&text[self.cached..=self.cached])
        };
        let entry = SeqStep {
            seq: self.seq,
            plan: &plan,
            text,
            prompt_len: PROMPT.len() as u32,
            sampler: &mut SamplerState::from(sampling.clone()),
        };
        let end = (self.backend).step(&mut [entry], &mut |_| ControlFlow::Continue(()));
        self.cached += 1;
        match end.unwrap() {
            StepEnd::Done(mut answers) => answers.pop().unwrap().pop(),
            StepEnd::Interrupted => panic!("nobody has interrupted it"),
        }
    }
}

/// The model's own text under what is asked.
pub(crate) fn plain(model: &str, asked: &Asked) -> Plain {
    let mut model = Model::load(model);
    let scoring = asked.scoring;
    let mut text = PROMPT.to_vec();
    let mut plain = Plain::default();
    for done in 1..PROMPT.len() {
        let ask = match scoring.prompt {
            None => Ask::Nothing,
            Some(wanted) => Ask::Score {
                token: text[done],
                top: wanted.top,
            },
        };
        match model.step(&text, &asked.sampling, ask) {
            None => {}
            Some(Answer::Score(score)) => plain.prompt.push(*score),
            Some(other) => panic!("{ask:?} was answered by {other:?}"),
        }
    }
    let over = PROMPT.len() + TOKENS as usize;
    while text.len() < over {
        let score = scoring.picks.map(|top| (scoring.basis, top));
        let answer = model.step(&text, &asked.sampling, Ask::Pick { score });
        let Some(Answer::Pick(pick)) = answer else {
            panic!("a pick was answered by {answer:?}");
        };
        text.push(pick.token);
        plain.picks.extend(pick.score.map(|score| *score));
        if asked.sampling.shaping.stop_ids.contains(&pick.token) {
            break;
        }
    }
    plain.text = text.split_off(PROMPT.len());
    plain
}

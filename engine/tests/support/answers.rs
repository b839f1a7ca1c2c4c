//! What a step has to answer, worked out from plain decoding: every row that a walk reaches.

use std::collections::BTreeSet;

use decode::sampling::{SamplingParams, Shaping};
use decode::scores::Basis;
use decode::{Answer, Ask, History, Sampling, StepPlan};

use super::plain::{Dice, Reference};

/// Random settings, most of which make the few tokens of a schedule likely.
pub(crate) fn sampling(dice: &mut Dice, tokens: usize) -> Sampling {
    let params = SamplingParams {
        temperature: [0.0, 0.7, 1.0, 3.0][dice.below(4)],
        top_k: [0, 0, 5][dice.below(3)],
        top_p: [1.0, 0.9][dice.below(2)],
        min_p: [0.0, 0.0, 0.05][dice.below(3)],
        seed: dice.below(1 << 20) as u64,
        choice: dice.below(2) as u32,
    };
    let bias = [0.0, 100.0, 100.0][dice.below(3)];
    let shaping = Shaping {
        bias: (0..tokens as u32).map(|id| (id, bias)).collect(),
        repetition_penalty: [1.0, 1.2][dice.below(2)],
        presence_penalty: [0.0, 0.5][dice.below(2)],
        frequency_penalty: [0.0, -0.25][dice.below(2)],
        min_tokens: dice.below(6) as u32,
        stop_ids: vec![dice.below(tokens) as u32],
    };
    Sampling { params, shaping }
}

/// Something to ask of a row: a pick half of the time.
pub(crate) fn ask(dice: &mut Dice, vocab: usize) -> Ask {
    let top = dice.below(4) as u8;
    match dice.below(8) {
        0 => Ask::Nothing,
        1 => Ask::Guesses(dice.below(5) as u16),
        2 => Ask::Score {
            token: dice.below(vocab) as u32,
            top,
        },
        3 => Ask::Pick {
            score: Some((Basis::Raw, top)),
        },
        4 => Ask::Pick {
            score: Some((Basis::Processed, top)),
        },
        _ => Ask::Pick { score: None },
    }
}

/// One session's part of a step.
pub(crate) struct Session<'a> {
    /// The committed text, the append included.
    pub(crate) text: &'a [u32],
    pub(crate) prompt_len: u32,
    pub(crate) sampling: &'a Sampling,
}

/// The answers to `plan`.
pub(crate) fn expected(
    plain: &mut dyn Reference,
    plan: &StepPlan,
    session: &Session<'_>,
) -> Vec<Answer> {
    let mut answer = |ask: Ask, text: &[u32], path: &[u32]| {
        let history = History {
            text,
            path,
            prompt_len: session.prompt_len,
        };
        plain.answer(ask, &history, session.sampling)
    };
    let unasked = plan.append.len() - plan.asks.len();
    let before = session.text.len() - plan.append.len();
    let mut answers = Vec::new();
    for (i, &ask) in plan.asks.iter().enumerate() {
        if ask != Ask::Nothing {
            answers.push(answer(ask, &session.text[..before + unasked + i + 1], &[]));
        }
    }
    let row_answers: Vec<Option<Answer>> = (plan.rows.iter())
        .map(|row| (row.ask != Ask::Nothing).then(|| answer(row.ask, session.text, &row.path)))
        .collect();
    let token = |ask: Option<&Ask>, answer: Option<&Answer>| match (ask, answer) {
        (Some(Ask::Pick { .. }), Some(Answer::Pick(pick))) => Some(pick.token),
        _ => None,
    };
    let tail = token(
        plan.asks.last(),
        answers
            .last()
            .filter(|_| plan.asks.last() != Some(&Ask::Nothing)),
    );

    // Every walk, forwards: it goes to the picked child, or to any where nothing was picked.
    let mut reached = BTreeSet::new();
    let in_step = |node| plan.rows.iter().position(|row| Some(row.node) == node);
    let mut open: Vec<usize> = (0..plan.rows.len())
        .filter(|&i| match plan.rows[i].parent {
            None => tail.is_none_or(|token| token == plan.rows[i].token),
            parent => in_step(parent).is_none(),
        })
        .collect();
    while let Some(at) = open.pop() {
        reached.insert(at);
        let next = token(Some(&plan.rows[at].ask), row_answers[at].as_ref());
        open.extend((0..plan.rows.len()).filter(|&child| {
            let row = &plan.rows[child];
            row.parent == Some(plan.rows[at].node) && next.is_none_or(|next| next == row.token)
        }));
    }
    for (i, answer) in row_answers.into_iter().enumerate() {
        let skipped = matches!(answer, Some(Answer::Pick(_))) && !reached.contains(&i);
        answers.extend(answer.map(|answer| match skipped {
            true => Answer::Skipped,
            false => answer,
        }));
    }
    answers
}

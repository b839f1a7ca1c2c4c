//! From what a model finds in a step to what its rows were asked.

use decode::{Answer, Ask, History, Sampler};

use crate::backend::SeqStep;
use crate::error::EngineError;
use crate::sequence::Sequences;
use crate::step::{Asked, At, Group, Limits, Plan, RowPlan};

/// The checked step of a batch; none where there is nothing to compute.
pub(crate) fn plan(
    batch: &[SeqStep<'_>],
    sequences: &mut Sequences,
    limits: Limits,
) -> Result<Option<Plan>, EngineError> {
    let parts = batch.iter().map(|part| (part.seq, part.plan));
    let plan = Plan::new(parts, sequences, limits)?;
    check(batch, &plan)?;
    Ok(Some(plan).filter(|plan| !plan.rows.is_empty()))
}

/// Whether what the plan does not need, but the answers do, fits to it: texts and paths.
fn check(batch: &[SeqStep<'_>], plan: &Plan) -> Result<(), EngineError> {
    for (part, group) in batch.iter().zip(&plan.groups) {
        let position = group.len;
        let appended = part.text.get(position..position + part.plan.append.len());
        if appended != Some(&part.plan.append[..]) {
            return Err(EngineError::TextDiffers { position });
        }
        let len = position + part.plan.append.len();
        for asked in &plan.asked[group.asked.clone()] {
            if let Ask::Judge { judgement, .. } = asked.ask
                && usize::from(judgement) >= part.plan.judgements.len()
            {
                return Err(EngineError::UnknownJudgement { judgement });
            }
            let At::Row(i) = asked.at else { continue };
            let row = &part.plan.rows[i];
            let deep = plan.rows[asked.row].position + 1 - len;
            if row.path.len() != deep || row.path.last() != Some(&row.token) {
                return Err(EngineError::PathDiffers { node: row.node });
            }
        }
    }
    Ok(())
}

/// Where the walk of a session goes on behind a row of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Onward {
    /// With any token: the row was not asked for a pick.
    Any,
    /// With this one.
    Only(u32),
    /// Nowhere: the walk does not come here, or ends here.
    Never,
}

/// Answers what was asked, entry by entry, but for the picks that no walk can reach. `one` answers an asked row, which it
/// is given by its place in [`Plan::asked`] too.
pub(crate) fn answer(
    plan: &Plan,
    batch: &mut [SeqStep<'_>],
    mut one: impl FnMut(&mut SeqStep<'_>, &Group, usize, Asked) -> Answer,
) -> Vec<Vec<Answer>> {
    let mut all = Vec::with_capacity(batch.len());
    for (part, group) in batch.iter_mut().zip(&plan.groups) {
        let places = group.asked.clone();
        let mut asked = places.map(|at| (at, plan.asked[at])).peekable();
        let mut answers = Vec::with_capacity(group.asked.len());
        let mut onward: Vec<Onward> = Vec::with_capacity(group.rows.len());
        for row in group.rows.clone() {
            let RowPlan { above, token, .. } = plan.rows[row];
            let above = above.map_or(Onward::Any, |above| onward[above - group.rows.start]);
            let mut next = match above {
                Onward::Any => Onward::Any,
                Onward::Only(picked) if picked == token => Onward::Any,
                Onward::Only(_) | Onward::Never => Onward::Never,
            };
            if let Some((place, asked)) = asked.next_if(|(_, asked)| asked.row == row) {
                let is_pick = matches!(asked.ask, Ask::Pick { .. } | Ask::Judge { .. });
                if is_pick && next == Onward::Never {
                    answers.push(Answer::Skipped);
                } else {
                    let answer = one(part, group, place, asked);
                    if is_pick {
                        next = match &answer {
                            Answer::Pick(pick) => Onward::Only(pick.token),
                            _ => Onward::Never,
                        };
                    }
                    answers.push(answer);
                }
            }
            onward.push(next);
        }
        all.push(answers);
    }
    all
}

/// The tokens before the one that a row is asked about.
pub(crate) fn before<'a>(part: &SeqStep<'a>, group: &Group, asked: Asked) -> History<'a> {
    let (len, path) = match asked.at {
        At::Append(i) => (group.len + i + 1, &[][..]),
        At::Row(i) => (
            group.len + part.plan.append.len(),
            &part.plan.rows[i].path[..],
        ),
    };
    History {
        text: &part.text[..len],
        path,
        prompt_len: part.prompt_len,
    }
}

/// Answers a row from its logits, as many as there are tokens.
pub(crate) fn sample(
    sampler: &mut Sampler,
    part: &mut SeqStep<'_>,
    group: &Group,
    asked: Asked,
    logits: &[f32],
) -> Answer {
    // A mask may hide the token that is not a number, but the row it stands in is broken all the same.
    if !is_finite(logits) {
        return Answer::NotFinite;
    }
    let history = before(part, group, asked);
    if let Ask::Judge { judgement, score } = asked.ask {
        let by = &part.plan.judgements[usize::from(judgement)];
        return sampler.judge((by, score), logits, part.sampler, &history);
    }
    (sampler.answer(asked.ask, logits, part.sampler, &history))
        .expect("a row that is asked for nothing is not among those that are asked")
}

/// Whether every number is one.
pub(crate) fn is_finite(logits: &[f32]) -> bool {
    // A float is finite when its exponent is not all ones; the fold has no early exit, so it vectorises.
    let most = (logits.iter()).fold(0_u32, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    most < 0x7f80_0000
}

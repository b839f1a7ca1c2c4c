//! Random schedules on a backend, each row checked against the same path decoded plainly, one token a step.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use decode::{CacheOp, NodeId, Row, SamplerState, Sampling, StepPlan};
use engine::cpu::kernels::Isa;
use engine::{Backend, CpuEngine, SeqId, SeqStep, StepEnd};
use offshoot_engine as engine;

use super::answers::{self, Session};
use super::plain::{Dice, Reference};
use super::{Asked, SHOWN, bits, healthy};

/// A backend that schedules run on.
pub(crate) trait Subject: Backend {
    /// Layers of a step.
    fn layers(&self) -> usize;

    /// Changes something that no answer may depend on.
    fn vary(&mut self, dice: &mut Dice);

    /// Computes a batch and gives the logits of every asked row; only where there are logits.
    fn read(&mut self, batch: &[(SeqId, &StepPlan)]) -> Vec<Vec<f32>>;
}

impl Subject for CpuEngine {
    fn layers(&self) -> usize {
        self.config().layers
    }

    fn vary(&mut self, dice: &mut Dice) {
        let all = Isa::available();
        self.set_isa(all[dice.below(all.len())]);
        self.set_threads(NonZeroUsize::new(1 + dice.below(3)).unwrap())
            .unwrap();
    }

    fn read(&mut self, batch: &[(SeqId, &StepPlan)]) -> Vec<Vec<f32>> {
        super::logits(self, batch)
    }
}

/// What a sequence should hold, in the most obvious form.
struct Model {
    seq: SeqId,
    committed: Vec<u32>,
    /// Live tree rows: token and parent.
    rows: BTreeMap<NodeId, (u32, Option<NodeId>)>,
    prompt_len: u32,
    sampling: Sampling,
    sampler: SamplerState,
}

impl Model {
    fn open(engine: &mut dyn Subject, dice: &mut Dice, schedule: &Schedule) -> Model {
        let sampling = answers::sampling(dice, schedule.tokens);
        Model {
            seq: engine.open(schedule.max_len).unwrap(),
            committed: Vec::new(),
            rows: BTreeMap::new(),
            prompt_len: dice.below(20) as u32,
            sampler: sampling.clone().into(),
            sampling,
        }
    }

    /// The nodes of a row's path, root first.
    fn path(&self, node: NodeId) -> Vec<NodeId> {
        let mut path = vec![node];
        while let Some(parent) = self.rows[path.last().unwrap()].1 {
            path.push(parent);
        }
        path.reverse();
        path
    }

    /// The tokens of a row's path behind the text.
    fn tokens(&self, node: NodeId) -> Vec<u32> {
        let path = self.path(node).into_iter();
        path.map(|node| self.rows[&node].0).collect()
    }

    fn drop_orphans(&mut self) {
        while let Some(node) = self
            .rows
            .iter()
            .find(|(_, (_, parent))| parent.is_some_and(|p| !self.rows.contains_key(&p)))
            .map(|(node, _)| *node)
        {
            self.rows.remove(&node);
        }
    }

    /// Enters a plan that was computed.
    fn computed(&mut self, plan: &StepPlan) {
        self.committed.extend_from_slice(&plan.append);
        if !plan.append.is_empty() {
            self.rows.clear();
        }
        for row in &plan.rows {
            self.rows.insert(row.node, (row.token, row.parent));
        }
    }
}

/// Sizes of a schedule.
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) operations: usize,
    /// Tokens are drawn below this: few, so that paths repeat.
    pub(crate) tokens: usize,
    pub(crate) max_len: usize,
    pub(crate) scratch_rows: u16,
    pub(crate) max_chunk: usize,
    pub(crate) max_tree: usize,
    pub(crate) check: Check,
}

impl Schedule {
    /// One for tiny models.
    pub(crate) fn small(seed: u64) -> Schedule {
        Schedule {
            seed,
            operations: 25,
            tokens: 3,
            max_len: 90,
            scratch_rows: 40,
            max_chunk: 40,
            max_tree: 24,
            check: Check::Either,
        }
    }
}

/// What is looked at after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The bits of the logits.
    Logits,
    /// What the backend answers.
    Answers,
    /// Either, at random.
    Either,
}

/// Runs a schedule on `engine`; an error names the first row whose bits, or the first answer that differs from the plain
/// ones.
pub(crate) fn run(
    engine: &mut dyn Subject,
    plain: &mut dyn Reference,
    schedule: &Schedule,
) -> Result<(), String> {
    let mut dice = Dice(schedule.seed);
    let open = |_| Model::open(engine, &mut dice, schedule);
    let mut models: Vec<Model> = (0..3).map(open).collect();
    let mut named = 0;
    for _ in 0..schedule.operations {
        let m = dice.below(models.len());
        match dice.below(12) {
            0..=5 => steps(engine, plain, schedule, &mut dice, &mut models, &mut named)?,
            6 | 7 => keep(engine, schedule, &mut dice, &mut models[m]),
            8 => {
                let model = &mut models[m];
                if let Some(node) = pick(&mut dice, &model.rows) {
                    engine.apply(model.seq, &CacheOp::Drop(vec![node])).unwrap();
                    model.rows.remove(&node);
                    model.drop_orphans();
                }
            }
            9 => {
                let model = &mut models[m];
                let len = dice.below(model.committed.len() + 1);
                let shorten = CacheOp::Shorten(len as u32);
                engine.apply(model.seq, &shorten).unwrap();
                model.committed.truncate(len);
                model.rows.clear();
                // What it remembers of a text is worth something only as long as the text grows.
                model.sampler = model.sampling.clone().into();
            }
            10 => engine.vary(&mut dice),
            _ => {
                if dice.below(3) == 0 {
                    engine.release(models[m].seq);
                    models[m] = Model::open(engine, &mut dice, schedule);
                }
            }
        }
        for model in &models {
            assert_eq!(engine.len(model.seq), model.committed.len());
            let vacant = usize::from(schedule.scratch_rows) - model.rows.len();
            assert_eq!(engine.vacant_rows(model.seq), vacant);
        }
    }
    for model in models {
        engine.release(model.seq);
    }
    assert_eq!(engine.free_pages(), engine.facts().total_pages);
    Ok(())
}

/// A random live node.
fn pick(dice: &mut Dice, rows: &BTreeMap<NodeId, (u32, Option<NodeId>)>) -> Option<NodeId> {
    if rows.is_empty() {
        None
    } else {
        rows.keys().nth(dice.below(rows.len())).copied()
    }
}

/// Keeps a random live path, or a beginning of it.
fn keep(engine: &mut dyn Subject, schedule: &Schedule, dice: &mut Dice, model: &mut Model) {
    let Some(node) = pick(dice, &model.rows) else {
        return;
    };
    let mut path = model.path(node);
    path.truncate(1 + dice.below(path.len()));
    if model.committed.len() + path.len() > schedule.max_len {
        return;
    }
    let last = *path.last().unwrap();
    engine
        .apply(model.seq, &CacheOp::Keep(path.clone()))
        .unwrap();
    // Other children of the text go; children of the last kept row hang from the text now.
    model
        .rows
        .retain(|node, (_, parent)| parent.is_some() || *node == path[0]);
    model.committed.extend(path.iter().map(|n| model.rows[n].0));
    for (_, parent) in model.rows.values_mut() {
        if *parent == Some(last) {
            *parent = None;
        }
    }
    model.rows.retain(|node, _| !path.contains(node));
    model.drop_orphans();
}

/// A step over a random part of the sequences, at times interrupted, its rows checked.
fn steps(
    engine: &mut dyn Subject,
    plain: &mut dyn Reference,
    schedule: &Schedule,
    dice: &mut Dice,
    models: &mut [Model],
    named: &mut u32,
) -> Result<(), String> {
    let check = match (schedule.check, dice.below(2)) {
        (Check::Either, 0) => Check::Logits,
        (Check::Either, _) => Check::Answers,
        (check, _) => check,
    };
    let vocab = engine.facts().vocab as usize;
    let drawn: Vec<Option<StepPlan>> = models
        .iter()
        .map(|model| {
            (dice.below(4) > 0).then(|| draw(schedule, dice, model, named, (check, vocab)))
        })
        .collect();
    if drawn.iter().flatten().all(StepPlan::is_empty) {
        return Ok(());
    }
    let texts: Vec<Vec<u32>> = (models.iter().zip(&drawn))
        .map(|(model, plan)| {
            let append = plan.as_ref().map_or(&[][..], |plan| &plan.append);
            // What a text holds beyond the append is nobody's business.
            let more = vec![7; dice.below(3)];
            [&model.committed[..], append, &more].concat()
        })
        .collect();
    let stop = (dice.below(6) == 0).then(|| dice.below(engine.layers()));
    if check == Check::Answers || stop.is_some() {
        let end = answered(engine, models, (&drawn, &texts), stop);
        let StepEnd::Done(answers) = end else {
            assert!(stop.is_some(), "nobody gave the step up");
            return Ok(());
        };
        assert!(stop.is_none(), "the step was given up");
        let mut answers = answers.into_iter();
        for ((model, plan), text) in models.iter_mut().zip(drawn).zip(&texts) {
            let Some(plan) = plan else { continue };
            let session = Session {
                text: &text[..model.committed.len() + plan.append.len()],
                prompt_len: model.prompt_len,
                sampling: &model.sampling,
            };
            let want = answers::expected(plain, &plan, &session);
            let got = answers.next().unwrap();
            if got != want {
                return Err(format!(
                    "seed {}: answers differ: {got:?}, plainly {want:?}",
                    schedule.seed
                ));
            }
            model.computed(&plan);
        }
        return Ok(());
    }
    let batch: Vec<(SeqId, &StepPlan)> = (models.iter().zip(&drawn))
        .filter_map(|(model, plan)| Some((model.seq, plan.as_ref()?)))
        .collect();
    let mut found = engine.read(&batch).into_iter();
    for (model, plan) in models.iter_mut().zip(drawn) {
        let Some(plan) = plan else { continue };
        let len = model.committed.len() + plan.append.len();
        model.computed(&plan);
        for asked in (0..plan.asks.len()).rev() {
            let path = &model.committed[..len - asked];
            compare(plain, path, &found.next().unwrap(), schedule.seed)?;
        }
        for row in &plan.rows {
            let path = [&model.committed[..], &model.tokens(row.node)].concat();
            compare(plain, &path, &found.next().unwrap(), schedule.seed)?;
        }
    }
    assert!(found.next().is_none());
    Ok(())
}

/// A step that is answered, and given up before layer `stop`.
fn answered(
    engine: &mut dyn Subject,
    models: &mut [Model],
    (drawn, texts): (&[Option<StepPlan>], &[Vec<u32>]),
    stop: Option<usize>,
) -> StepEnd {
    let parts = models.iter_mut().zip(drawn).zip(texts);
    let mut batch: Vec<SeqStep<'_>> = parts
        .filter_map(|((model, plan), text)| {
            Some(SeqStep {
                seq: model.seq,
                plan: plan.as_ref()?,
                text,
                prompt_len: model.prompt_len,
                sampler: &mut model.sampler,
            })
        })
        .collect();
    engine
        .step(&mut batch, &mut |layer| match Some(layer) == stop {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
        .unwrap()
}

/// A random contribution that the engine has to accept.
fn draw(
    schedule: &Schedule,
    dice: &mut Dice,
    model: &Model,
    named: &mut u32,
    (check, vocab): (Check, usize),
) -> StepPlan {
    let room = schedule.max_len - model.committed.len();
    let append: Vec<u32> = match dice.below(3) {
        0 => Vec::new(),
        _ => (0..dice.below(schedule.max_chunk).min(room))
            .map(|_| dice.below(schedule.tokens) as u32)
            .collect(),
    };
    let ask = |dice: &mut Dice| match check {
        Check::Answers => answers::ask(dice, vocab),
        _ => SHOWN,
    };
    let asked = [Asked::None, Asked::Last, Asked::All][dice.below(3)].of(append.len());
    let asks = (0..asked).map(|_| ask(dice)).collect();
    let vacant = usize::from(schedule.scratch_rows) - model.rows.len();
    // Where each row may hang, with the tokens behind the text down to there.
    let mut parents: Vec<(Option<NodeId>, Vec<u32>)> = vec![(None, Vec::new())];
    if append.is_empty() {
        let cached = model.rows.keys();
        parents.extend(cached.map(|node| (Some(*node), model.tokens(*node))));
    }
    let mut rows = Vec::new();
    for _ in 0..dice.below(schedule.max_tree + 1).min(vacant) {
        *named += 1;
        let node = NodeId {
            index: *named % 64,
            generation: *named / 64,
        };
        // Young parents more often, so that trees grow deep as well as wide.
        let from = if dice.below(2) == 0 {
            0
        } else {
            parents.len().saturating_sub(2)
        };
        let (parent, mut path) = parents[from + dice.below(parents.len() - from)].clone();
        let token = dice.below(schedule.tokens) as u32;
        path.push(token);
        parents.push((Some(node), path.clone()));
        rows.push(Row {
            node,
            parent,
            token,
            path,
            ask: ask(dice),
        });
    }
    StepPlan {
        append,
        asks,
        rows,
        ..StepPlan::default()
    }
}

fn compare(
    plain: &mut dyn Reference,
    path: &[u32],
    logits: &[f32],
    seed: u64,
) -> Result<(), String> {
    assert!(healthy(logits));
    let got = bits(logits);
    let want = plain.bits(path);
    let differing = got.iter().zip(want).filter(|(a, b)| a != b).count();
    if differing == 0 {
        return Ok(());
    }
    Err(format!(
        "seed {seed}: {differing} of {} logits differ behind path {path:?}",
        want.len()
    ))
}

//! Random schedules on an engine, each row checked against the same path decoded plainly, one token a step.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use engine::{
    AppendLogits, Engine, Isa, Parent, SeqId, SeqRows, Slot, StepEnd, StepOutput, TreeRow,
};
use offshoot_engine as engine;

use super::{append, bits, step};

/// Logits by token path, from an engine that appends one token a step and nothing else.
pub(crate) struct Plain {
    engine: Engine,
    known: HashMap<Vec<u32>, Vec<u32>>,
}

impl Plain {
    pub(crate) fn new(engine: Engine) -> Plain {
        Plain {
            engine,
            known: HashMap::new(),
        }
    }

    /// The bits of the logits behind `path`.
    pub(crate) fn bits(&mut self, path: &[u32]) -> &[u32] {
        if !self.known.contains_key(path) {
            let seq = self.engine.open(path.len()).unwrap();
            let mut output = StepOutput::new();
            for i in 0..path.len() {
                step(
                    &mut self.engine,
                    &[append(seq, &path[i..=i], AppendLogits::Last)],
                    &mut output,
                );
                self.known.insert(path[..=i].to_vec(), bits(output.row(0)));
            }
            self.engine.release(seq);
        }
        &self.known[path]
    }
}

/// A small generator, so that a schedule is one number.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// What a sequence should hold, in the most obvious form.
struct Model {
    seq: SeqId,
    committed: Vec<u32>,
    /// Live tree rows: token and parent.
    rows: BTreeMap<u16, (u32, Option<u16>)>,
}

impl Model {
    /// The slots of a row's path, root first.
    fn slots(&self, slot: u16) -> Vec<u16> {
        let mut path = vec![slot];
        while let Some(parent) = self.rows[path.last().unwrap()].1 {
            path.push(parent);
        }
        path.reverse();
        path
    }

    fn tokens(&self, slot: u16) -> Vec<u32> {
        let tail = self.slots(slot).into_iter().map(|s| self.rows[&s].0);
        self.committed.iter().copied().chain(tail).collect()
    }

    fn drop_orphans(&mut self) {
        while let Some(slot) = self
            .rows
            .iter()
            .find(|(_, (_, parent))| parent.is_some_and(|p| !self.rows.contains_key(&p)))
            .map(|(slot, _)| *slot)
        {
            self.rows.remove(&slot);
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
}

/// What a drawn batch holds for one sequence.
struct Drawn {
    append: Vec<u32>,
    keep: AppendLogits,
    tree: Vec<TreeRow>,
}

/// Runs a schedule on `engine`; an error names the first row whose bits differ from the plain ones.
pub(crate) fn run(
    engine: &mut Engine,
    plain: &mut Plain,
    schedule: &Schedule,
) -> Result<(), String> {
    let mut dice = Dice(schedule.seed);
    let mut models: Vec<Model> = (0..3)
        .map(|_| Model {
            seq: engine.open(schedule.max_len).unwrap(),
            committed: Vec::new(),
            rows: BTreeMap::new(),
        })
        .collect();
    let mut output = StepOutput::new();
    for _ in 0..schedule.operations {
        let m = dice.below(models.len());
        match dice.below(12) {
            0..=5 => steps(engine, plain, schedule, &mut dice, &mut models, &mut output)?,
            6 | 7 => commit(engine, schedule, &mut dice, &mut models[m]),
            8 => {
                let model = &mut models[m];
                if let Some(slot) = pick(&mut dice, &model.rows) {
                    engine.free(model.seq, &[Slot(slot)]);
                    model.rows.remove(&slot);
                    model.drop_orphans();
                }
            }
            9 => {
                let model = &mut models[m];
                let len = dice.below(model.committed.len() + 1);
                engine.truncate(model.seq, len).unwrap();
                model.committed.truncate(len);
                model.rows.clear();
            }
            10 => {
                let all = Isa::available();
                engine.set_isa(all[dice.below(all.len())]);
                engine
                    .set_threads(NonZeroUsize::new(1 + dice.below(3)).unwrap())
                    .unwrap();
            }
            _ => {
                if dice.below(3) == 0 {
                    engine.release(models[m].seq);
                    let seq = engine.open(schedule.max_len).unwrap();
                    models[m] = Model {
                        seq,
                        committed: Vec::new(),
                        rows: BTreeMap::new(),
                    };
                }
            }
        }
        for model in &models {
            assert_eq!(engine.len(model.seq), model.committed.len());
        }
    }
    for model in models {
        engine.release(model.seq);
    }
    assert_eq!(engine.free_pages(), engine.total_pages());
    Ok(())
}

/// A random live slot.
fn pick(dice: &mut Dice, rows: &BTreeMap<u16, (u32, Option<u16>)>) -> Option<u16> {
    if rows.is_empty() {
        None
    } else {
        rows.keys().nth(dice.below(rows.len())).copied()
    }
}

/// Commits a random live path, or a beginning of it.
fn commit(engine: &mut Engine, schedule: &Schedule, dice: &mut Dice, model: &mut Model) {
    let Some(slot) = pick(dice, &model.rows) else {
        return;
    };
    let mut path = model.slots(slot);
    path.truncate(1 + dice.below(path.len()));
    if model.committed.len() + path.len() > schedule.max_len {
        return;
    }
    let slots: Vec<Slot> = path.iter().map(|s| Slot(*s)).collect();
    engine.commit(model.seq, &slots).unwrap();
    let last = *path.last().unwrap();
    // Other children of the tail go; children of the last committed row hang from the tail now.
    model
        .rows
        .retain(|slot, (_, parent)| parent.is_some() || *slot == path[0]);
    model.committed.extend(path.iter().map(|s| model.rows[s].0));
    for (_, parent) in model.rows.values_mut() {
        if *parent == Some(last) {
            *parent = None;
        }
    }
    model.rows.retain(|slot, _| !path.contains(slot));
    model.drop_orphans();
}

/// A step over a random part of the sequences, at times interrupted, its rows checked.
fn steps(
    engine: &mut Engine,
    plain: &mut Plain,
    schedule: &Schedule,
    dice: &mut Dice,
    models: &mut [Model],
    output: &mut StepOutput,
) -> Result<(), String> {
    let drawn: Vec<Option<Drawn>> = models
        .iter()
        .map(|model| (dice.below(4) > 0).then(|| draw(schedule, dice, model)))
        .collect();
    let batch: Vec<SeqRows<'_>> = models
        .iter()
        .zip(&drawn)
        .filter_map(|(model, drawn)| {
            let drawn = drawn.as_ref()?;
            Some(SeqRows {
                seq: model.seq,
                append: &drawn.append,
                append_logits: drawn.keep,
                tree: &drawn.tree,
            })
        })
        .collect();
    if batch
        .iter()
        .map(|part| part.append.len() + part.tree.len())
        .sum::<usize>()
        == 0
    {
        return Ok(());
    }
    if dice.below(6) == 0 {
        let stop = dice.below(engine.config().layers);
        let end = engine
            .step(&batch, output, &mut |l| {
                if l == stop {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
        assert_eq!(end, StepEnd::Interrupted);
        assert_eq!(output.rows(), 0);
        return Ok(());
    }
    step(engine, &batch, output);
    let mut row = 0;
    for (model, drawn) in models.iter_mut().zip(drawn) {
        let Some(drawn) = drawn else { continue };
        for i in 0..drawn.append.len() {
            model.committed.push(drawn.append[i]);
            let keep = match drawn.keep {
                AppendLogits::None => false,
                AppendLogits::Last => i + 1 == drawn.append.len(),
                AppendLogits::All => true,
            };
            if keep {
                compare(plain, &model.committed, output, row, schedule.seed)?;
                row += 1;
            }
        }
        if !drawn.append.is_empty() {
            model.rows.clear();
        }
        for tree in &drawn.tree {
            let parent = match tree.parent {
                Parent::Tail => None,
                Parent::Slot(slot) => Some(slot.0),
            };
            model.rows.insert(tree.slot.0, (tree.token, parent));
            compare(
                plain,
                &model.tokens(tree.slot.0),
                output,
                row,
                schedule.seed,
            )?;
            row += 1;
        }
    }
    assert_eq!(row, output.rows());
    Ok(())
}

/// A random contribution that the engine has to accept.
fn draw(schedule: &Schedule, dice: &mut Dice, model: &Model) -> Drawn {
    let room = schedule.max_len - model.committed.len();
    let append: Vec<u32> = match dice.below(3) {
        0 => Vec::new(),
        _ => (0..dice.below(schedule.max_chunk).min(room))
            .map(|_| dice.below(schedule.tokens) as u32)
            .collect(),
    };
    let keep = [AppendLogits::None, AppendLogits::Last, AppendLogits::All][dice.below(3)];
    let mut free: Vec<u16> = (0..schedule.scratch_rows)
        .filter(|slot| !model.rows.contains_key(slot))
        .collect();
    let mut parents: Vec<Parent> = vec![Parent::Tail];
    if append.is_empty() {
        parents.extend(model.rows.keys().map(|slot| Parent::Slot(Slot(*slot))));
    }
    let mut tree = Vec::new();
    for _ in 0..dice.below(schedule.max_tree + 1).min(free.len()) {
        let slot = Slot(free.swap_remove(dice.below(free.len())));
        // Young parents more often, so that trees grow deep as well as wide.
        let from = if dice.below(2) == 0 {
            0
        } else {
            parents.len().saturating_sub(2)
        };
        let parent = parents[from + dice.below(parents.len() - from)];
        tree.push(TreeRow {
            token: dice.below(schedule.tokens) as u32,
            parent,
            slot,
        });
        parents.push(Parent::Slot(slot));
    }
    Drawn { append, keep, tree }
}

fn compare(
    plain: &mut Plain,
    path: &[u32],
    output: &StepOutput,
    row: usize,
    seed: u64,
) -> Result<(), String> {
    assert!(output.healthy(row));
    let got = bits(output.row(row));
    let want = plain.bits(path);
    let differing = got.iter().zip(want).filter(|(a, b)| a != b).count();
    if differing == 0 {
        return Ok(());
    }
    Err(format!(
        "seed {seed}: {differing} of {} logits differ in row {row}, path {path:?}",
        want.len()
    ))
}

//! The backend: the engine's bookkeeping around answers that are drawn.

use std::ops::ControlFlow;

use decode::{Answer, CacheOp};

use crate::answers;
use crate::backend::{Backend, Facts, SeqStep, StepEnd};
use crate::error::EngineError;
use crate::load::LoadError;
use crate::options::EngineOptions;
use crate::sequence::{PAGE, Place, SeqId, Sequences, scratch_pages};
use crate::step::{Limits, Plan};
use crate::synthetic::path::Path;
use crate::synthetic::profile::{Profile, ProfileError};
use crate::synthetic::replay::{Member, Replay};

/// Names how answers follow from profile and path. Whatever changes one needs a new name here.
const REPLAY_CLASS: &str = "block-replay.1";

/// What a synthetic model is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How its guesses relate to the target's tokens.
    pub profile: Profile,
    /// Which of the three models it is.
    pub member: Member,
    /// Token ids lie below it.
    pub vocab: u32,
    /// The tokens that texts are made of, ascending; no special ones, because nothing ends a text early.
    pub tokens: Vec<u32>,
    /// Positions that the model it stands for was trained for.
    pub max_positions: usize,
    /// Tokens that end a text. None of them is ever picked.
    pub eos: Vec<u32>,
}

/// A backend without weights; see the [module](super).
pub struct Synthetic {
    replay: Replay,
    sequences: Sequences,
    /// The path down to each cached position: that of a place is at `page * PAGE + lane`.
    cache: Vec<Path>,
    limits: Limits,
    facts: Facts,
}

impl Synthetic {
    /// Makes a backend of the sizes that `options` say; threads and weight type mean nothing to it.
    ///
    /// # Errors
    /// [`LoadError::Option`] for a size that cannot be served, [`LoadError::Profile`] when there are too few tokens for the
    /// profile's guesses, [`LoadError::CacheTooLarge`].
    pub fn new(spec: Spec, options: &EngineOptions) -> Result<Synthetic, LoadError> {
        options.check()?;
        let Spec {
            profile,
            member,
            vocab,
            mut tokens,
            max_positions,
            eos,
        } = spec;
        tokens.sort_unstable();
        tokens.dedup();
        tokens.retain(|&token| token < vocab && !eos.contains(&token));
        // The draft's guesses, the target's token beside them, and a token that neither of them has.
        let needed = profile.guesses() + 2;
        if tokens.len() < needed {
            return Err(LoadError::Profile(ProfileError::Invalid {
                origin: profile.name().to_owned(),
                reason: format!(
                    "needs {needed} tokens to choose from, and the tokenizer has {} that could stand in a text",
                    tokens.len()
                ),
            }));
        }
        let scratch = scratch_pages(options.scratch_rows) * options.max_sequences;
        let pages = options.kv_pages + scratch;
        let too_large = |_| LoadError::CacheTooLarge { pages };
        let mut cache = Vec::new();
        cache.try_reserve_exact(pages * PAGE).map_err(too_large)?;
        cache.resize(pages * PAGE, Path::EMPTY);
        let reachable = options.kv_pages * PAGE + usize::from(options.scratch_rows);
        let sequences = Sequences::new(
            options.max_sequences,
            options.scratch_rows,
            options.kv_pages,
        );
        Ok(Synthetic {
            limits: Limits {
                vocab: vocab as usize,
                answered: vocab,
                positions: max_positions.min(reachable),
                rows: options.max_rows,
            },
            facts: Facts {
                numerics_id: numerics_id(&profile, &tokens, vocab),
                vocab,
                max_positions,
                eos,
                max_rows: options.max_rows,
                total_pages: sequences.total_pages(),
            },
            replay: Replay::new(profile, member, tokens, vocab),
            sequences,
            cache,
        })
    }

    /// Computes the path of every row, and caches it where the plan says.
    fn walk(&mut self, plan: &Plan) -> Vec<Path> {
        let block = self.replay.profile().block();
        let mut paths = Vec::with_capacity(plan.rows.len());
        for group in &plan.groups {
            let sequence = self.sequences.at(group.sequence);
            for row in group.rows.clone() {
                let sight = &plan.every_query.sights[row];
                let text = |beyond| {
                    let last = sight.committed.checked_sub(beyond);
                    last.map(|position| sequence.position(position))
                };
                let above = match plan.paths[sight.path.clone()] {
                    [.., above, _] => Some(sequence.place(above)),
                    [_] => text(1),
                    // An appended row sees itself as the last of the text.
                    [] => text(2),
                };
                let above = above.map_or(Path::EMPTY, |place| self.cache[index(place)]);
                let row = &plan.rows[row];
                let path = above.with(row.token, row.position, block);
                self.cache[index(row.place)] = path;
                paths.push(path);
            }
        }
        paths
    }
}

/// Where the cache has a place.
fn index(place: Place) -> usize {
    place.page as usize * PAGE + place.lane as usize
}

/// Names everything that an answer depends on besides its path and its sampling.
fn numerics_id(profile: &Profile, tokens: &[u32], vocab: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(REPLAY_CLASS.as_bytes());
    hasher.update(profile.to_json().as_bytes());
    hasher.update(&vocab.to_le_bytes());
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    let hash = hasher.finalize().to_hex();
    format!("synthetic-{}-{}", profile.name(), &hash[..16])
}

impl Backend for Synthetic {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_pages(&self) -> usize {
        self.sequences.free_pages()
    }

    fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        self.facts.check_len(max_len)?;
        self.sequences.open(max_len)
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.release(seq);
    }

    fn len(&self, seq: SeqId) -> usize {
        self.sequences.len(seq)
    }

    fn vacant_rows(&self, seq: SeqId) -> usize {
        self.sequences.vacant_rows(seq)
    }

    fn apply(&mut self, seq: SeqId, op: &CacheOp) -> Result<(), EngineError> {
        for (from, to) in self.sequences.apply(seq, op)? {
            self.cache[index(to)] = self.cache[index(from)];
        }
        Ok(())
    }

    /// As every backend's; the model has one layer.
    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        let Some(plan) = answers::plan(batch, &mut self.sequences, self.limits)? else {
            return Ok(StepEnd::Done(vec![Vec::new(); batch.len()]));
        };
        if at_layer(0).is_break() {
            return Ok(StepEnd::Interrupted);
        }
        let paths = self.walk(&plan);
        let replay = &self.replay;
        let answers = answers::answer(&plan, batch, |part, _, _, asked| {
            let params = &part.sampler.sampling().params;
            let next = plan.rows[asked.row].position + 1;
            (replay.answer(asked.ask, paths[asked.row], next, params)).unwrap_or(Answer::Skipped)
        });
        plan.done(&mut self.sequences);
        Ok(StepEnd::Done(answers))
    }
}

//! What is evaluated where a walk ends: the networks beside a model, for one row of the step instead of for all.

use std::ops::ControlFlow;

use decode::{Answer, EndAnswer, EndAsk, Guess, HeadGuesses, History, NotFinite, Sampler, Wanted};

use crate::answers::is_finite;
use crate::backend::SeqStep;
use crate::device::Device;
use crate::load::LoadError;
use crate::model::{Decoder, Hrad, Medusa, Tapped};
use crate::options::EngineOptions;
use crate::step::{At, Plan};

/// The row where the walk of a session ends.
pub(crate) struct WalkEnd {
    /// Its place among the asked rows of the step.
    row: usize,
    /// Its place among those of its session.
    place: u16,
    /// What was picked there.
    token: u32,
    /// Tokens of the text before the pick.
    text: usize,
    /// The guesses behind the text, the pick included.
    path: Vec<u32>,
}

impl WalkEnd {
    /// The end in entry `at` of the batch, if the session asks anything there: its last row with a pick, because picks that
    /// no walk reaches are skipped and parents come before children.
    pub(crate) fn find(
        plan: &Plan,
        at: usize,
        part: &SeqStep<'_>,
        answers: &[Answer],
    ) -> Option<WalkEnd> {
        if part.plan.end.is_empty() {
            return None;
        }
        let group = &plan.groups[at];
        let (place, token) = (answers.iter().enumerate().rev()).find_map(|(i, answer)| {
            let Answer::Pick(pick) = answer else {
                return None;
            };
            Some((i, pick.token))
        })?;
        let row = group.asked.start + place;
        let (text, path) = match plan.asked[row].at {
            At::Append(i) => (group.len + i + 1, &[][..]),
            At::Row(i) => {
                let len = group.len + part.plan.append.len();
                (len, &part.plan.rows[i].path[..])
            }
        };
        Some(WalkEnd {
            row,
            place: u16::try_from(place).ok()?,
            token,
            text,
            path: [path, &[token]].concat(),
        })
    }
}

/// The networks beside a model.
pub(crate) struct Networks<D: Device> {
    heads: Option<Medusa<D>>,
    /// What the heads cost, as a share of a step.
    share: f32,
    hrad: Option<Hrad<D>>,
}

impl<D: Device> Networks<D> {
    /// Loads what the options name, for this model, which gives up its hidden states if any of that reads them.
    pub(crate) fn load(
        device: &D,
        model: &mut Decoder<D>,
        options: &EngineOptions,
    ) -> Result<Networks<D>, LoadError> {
        let config = &model.config;
        let heads = options.beside.heads.as_deref();
        let heads = heads
            .map(|dir| Medusa::load(device, dir, config, options.max_rows))
            .transpose()?;
        let hrad = options.beside.hrad.as_deref();
        let hrad = hrad
            .map(|dir| Hrad::load(device, dir, config))
            .transpose()?;
        if hrad.is_some() {
            model.tapped = Tapped::Yes;
        }
        let lm_head = device.weight_bytes(model.head());
        let bytes = (heads.as_ref()).map_or(0, |heads| heads.bytes(device, lm_head));
        Ok(Networks {
            heads,
            share: bytes as f32 / model.weight_bytes(device) as f32,
            hrad,
        })
    }

    /// What was asked there; nothing if there is no network for it.
    pub(crate) fn answer(
        &mut self,
        (device, model): (&D, &Decoder<D>),
        sampler: &mut Sampler,
        part: &mut SeqStep<'_>,
        end: &WalkEnd,
    ) -> Option<Answer> {
        let asked = &part.plan.end;
        let forecast = match (&mut self.hrad, asked.forecast) {
            (Some(hrad), Wanted::Yes) => {
                let mut features = model.tap(device, end.row);
                features.extend(model.embedding(device, end.token));
                hrad.forecast(device, features)
            }
            _ => None,
        };
        let heads = match &mut self.heads {
            Some(heads) if wants_heads(asked, end) => {
                let hidden = device.row(model.normed(), end.row);
                let mut guessing = Guessing {
                    sampler,
                    part,
                    end,
                    path: end.path.clone(),
                    ranked: Vec::new(),
                };
                heads.evaluate(device, hidden, model.head(), &mut |logits| {
                    guessing.head(logits)
                });
                Some(HeadGuesses {
                    ranked: guessing.ranked,
                    share: self.share,
                })
            }
            _ => None,
        };
        (heads.is_some() || forecast.is_some()).then(|| {
            Answer::End(Box::new(EndAnswer {
                place: end.place,
                token: end.token,
                heads,
                forecast,
            }))
        })
    }
}

/// Whether the heads are of use behind this pick.
fn wants_heads(asked: &EndAsk, end: &WalkEnd) -> bool {
    let pick = (end.place, end.token);
    asked.heads > 0 && asked.known.binary_search(&pick).is_err()
}

/// From the logits of heads to guesses, head after head. Each head's guesses are ranked as a draft's are: shaped for the
/// session and under the noise of their position. What stands before that position is not known yet but for the pick, so
/// that penalties count the best guess of each head before.
struct Guessing<'a, 'b> {
    sampler: &'a mut Sampler,
    part: &'a mut SeqStep<'b>,
    end: &'a WalkEnd,
    path: Vec<u32>,
    ranked: Vec<Vec<Guess>>,
}

impl Guessing<'_, '_> {
    /// Takes the next head's logits, one for each row of the embedding. A head that gives no numbers ends it.
    fn head(&mut self, logits: &[f32]) -> ControlFlow<()> {
        if !is_finite(logits) {
            return ControlFlow::Break(());
        }
        let history = History {
            text: &self.part.text[..self.end.text],
            path: &self.path,
            prompt_len: self.part.prompt_len,
        };
        let most = usize::from(self.part.plan.end.heads);
        let mut guesses = Vec::new();
        let guessed: Result<(), NotFinite> = self.sampler.guesses_after(
            logits,
            self.part.sampler,
            &history,
            // The second best gives the first its margin.
            most.max(2),
            &mut guesses,
        );
        guesses.truncate(most);
        match (guessed, guesses.first()) {
            (Ok(()), Some(best)) => {
                self.path.push(best.token);
                self.ranked.push(guesses);
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    }
}

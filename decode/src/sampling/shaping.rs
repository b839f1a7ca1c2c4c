//! What a request does to a row of logits before the temperature: bias, penalties, masks, in this order.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::params::ParamError;
use crate::step::History;

/// Changes to logits that depend on the request and on the tokens before the row.
///
/// Repetition as Hugging Face and vLLM define it (CTRL, arXiv 1909.05858, section 4.1): the logits of tokens that occur
/// in prompt or output are divided if positive and multiplied if negative. Presence and frequency as OpenAI's API
/// defines them: they look at the output alone. With everything neutral a row is passed through unchanged.
#[derive(Debug, Clone, PartialEq)]
pub struct Shaping {
    /// Token ids, each at most once, with what is added to their logits: in `-100..=100`.
    pub bias: Vec<(u32, f32)>,
    /// Above 0 and at most 10; 1 switches it off.
    pub repetition_penalty: f32,
    /// Taken once from tokens of the output; in `-2..=2`, 0 switches it off.
    pub presence_penalty: f32,
    /// Taken from tokens of the output as often as they are there; in `-2..=2`, 0 switches it off.
    pub frequency_penalty: f32,
    /// The stop ids are masked until the output has this many tokens.
    pub min_tokens: u32,
    /// The tokens that end the text.
    pub stop_ids: Vec<u32>,
}

impl Default for Shaping {
    /// Nothing is changed.
    fn default() -> Shaping {
        Shaping {
            bias: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            min_tokens: 0,
            stop_ids: Vec::new(),
        }
    }
}

/// Biased tokens of one request, at most.
pub const MAX_BIASED: usize = 1024;

impl Shaping {
    /// Checks every range, for a vocabulary of `vocab` tokens. Everything else here expects that it passed.
    ///
    /// # Errors
    ///
    /// The first parameter that is out of range or not a number.
    pub fn validate(&self, vocab: u32) -> Result<(), ParamError> {
        let error = |parameter, value, range| {
            Err(ParamError {
                parameter,
                value,
                range,
            })
        };
        if self.bias.len() > MAX_BIASED {
            let given = self.bias.len() as f32;
            return error("number of biased tokens", given, "at most 1024");
        }
        let mut ids: Vec<u32> = self.bias.iter().map(|&(id, _)| id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return error("logit_bias id", twice[0] as f32, "given only once");
        }
        if let Some(&last) = ids.last()
            && last >= vocab
        {
            return error("logit_bias id", last as f32, "within the vocabulary");
        }
        if let Some(&(_, bias)) = (self.bias.iter()).find(|(_, b)| !(-100.0..=100.0).contains(b)) {
            return error("logit_bias", bias, "a number from -100 to 100");
        }
        let repetition = self.repetition_penalty;
        if !(repetition > 0.0 && repetition <= 10.0) {
            let range = "a number above 0 and at most 10; 1 is off";
            return error("repetition_penalty", repetition, range);
        }
        for (parameter, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&value) {
                return error(parameter, value, "a number from -2 to 2; 0 is off");
            }
        }
        Ok(())
    }

    fn repeats(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// What is masked behind these tokens.
    fn masked(&self, past: &History<'_>) -> &[u32] {
        if past.output_len() < self.min_tokens as usize {
            &self.stop_ids
        } else {
            &[]
        }
    }

    fn counts_output(&self) -> bool {
        self.repeats() || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// One token's logit after repetition, frequency and presence. What was finite stays finite.
    fn penalised(&self, logit: f32, seen: Seen) -> f32 {
        let mut shaped = logit;
        if self.repeats() && (seen.in_prompt || seen.output > 0) {
            shaped = if shaped > 0.0 {
                shaped / self.repetition_penalty
            } else {
                shaped * self.repetition_penalty
            };
        }
        if seen.output > 0 {
            shaped -= self.frequency_penalty * seen.output as f32;
            shaped -= self.presence_penalty;
        }
        settle(logit, shaped)
    }
}

/// A request may not push a logit out of the numbers: a mask stays one, and a number stays a number.
fn settle(before: f32, after: f32) -> f32 {
    if before.is_finite() {
        after.clamp(f32::MIN, f32::MAX)
    } else {
        before
    }
}

/// What a request does to one row of logits, for a sampler that is not here: on a device. Applied in the order of the fields, as
/// [`Shaping`] says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes<'a> {
    /// What the penalties and their strength are.
    pub shaping: &'a Shaping,
    /// Distinct tokens that the penalties concern: whether the prompt has them, and how often the output does. Ascending.
    pub seen: Vec<(u32, bool, u32)>,
    /// Tokens that are masked.
    pub masked: &'a [u32],
}

/// Where a token occurs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Seen {
    in_prompt: bool,
    output: u32,
}

/// The tokens of one session's text, counted once each as the text grows.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// Length of the text that is counted.
    counted: usize,
    seen: BTreeMap<u32, Seen>,
}

impl Counts {
    /// The logits as the request shapes them. If anything changes, they are in `row`, at the cost of a copy and one
    /// change for each distinct earlier token; otherwise a comparison is all it costs.
    pub(super) fn shape<'a>(
        &mut self,
        shaping: &Shaping,
        past: &History<'_>,
        logits: &'a [f32],
        row: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let masked = shaping.masked(past);
        if shaping.bias.is_empty() && !shaping.counts_output() && masked.is_empty() {
            return logits;
        }
        row.clear();
        row.extend_from_slice(logits);
        for &(id, bias) in &shaping.bias {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit = settle(*logit, *logit + bias);
            }
        }
        if shaping.counts_output() {
            self.follow(shaping, past);
            self.with_path(past, |seen| {
                for (&id, &seen) in seen {
                    if let Some(logit) = row.get_mut(id as usize) {
                        *logit = shaping.penalised(*logit, seen);
                    }
                }
            });
        }
        for &id in masked {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        row
    }

    /// The same as lists.
    pub(super) fn changes<'a>(&mut self, shaping: &'a Shaping, past: &History<'_>) -> Changes<'a> {
        let mut found = Vec::new();
        if shaping.counts_output() {
            self.follow(shaping, past);
            self.with_path(past, |seen| {
                let seen = seen.iter();
                found.extend(seen.map(|(&id, seen)| (id, seen.in_prompt, seen.output)));
            });
        }
        Changes {
            shaping,
            seen: found,
            masked: shaping.masked(past),
        }
    }

    /// Counts what the text has gained.
    fn follow(&mut self, shaping: &Shaping, past: &History<'_>) {
        if past.text.len() < self.counted {
            // Never within one session; counts that are given another text start again.
            *self = Counts::default();
        }
        let prompt_len = (past.prompt_len as usize).min(past.text.len());
        if self.counted < prompt_len {
            if shaping.repeats() {
                for &token in &past.text[self.counted..prompt_len] {
                    self.seen.entry(token).or_default().in_prompt = true;
                }
            }
            self.counted = prompt_len;
        }
        for &token in &past.text[self.counted..] {
            self.seen.entry(token).or_default().output += 1;
        }
        self.counted = past.text.len();
    }

    /// Shows the table with the path's tokens counted too.
    fn with_path(&mut self, past: &History<'_>, show: impl FnOnce(&BTreeMap<u32, Seen>)) {
        for &token in past.path {
            self.seen.entry(token).or_default().output += 1;
        }
        show(&self.seen);
        for &token in past.path {
            if let Some(seen) = self.seen.get_mut(&token) {
                seen.output -= 1;
                if *seen == Seen::default() {
                    self.seen.remove(&token);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn shaped(shaping: &Shaping, past: History<'_>, logits: &[f32]) -> Vec<f32> {
        shaping.validate(logits.len() as u32).unwrap();
        let mut row = Vec::new();
        (Counts::default().shape(shaping, &past, logits, &mut row)).to_vec()
    }

    const PAST: History<'static> = History {
        text: &[0, 1, 1, 2, 2],
        path: &[2, 3],
        prompt_len: 3,
    };

    #[test]
    fn penalties_are_those_of_the_documented_formulas() {
        let logits = [1.0, -1.0, 2.0, -2.0, 5.0];
        let repetition = Shaping {
            repetition_penalty: 2.0,
            ..Shaping::default()
        };
        assert_eq!(
            shaped(&repetition, PAST, &logits),
            [0.5, -2.0, 1.0, -4.0, 5.0]
        );
        // Token 2 stands in the output three times, token 3 once; 0 and 1 stand in the prompt alone.
        let frequency = Shaping {
            frequency_penalty: 0.5,
            ..Shaping::default()
        };
        assert_eq!(
            shaped(&frequency, PAST, &logits),
            [1.0, -1.0, 0.5, -2.5, 5.0]
        );
        let presence = Shaping {
            presence_penalty: -1.0,
            ..Shaping::default()
        };
        assert_eq!(
            shaped(&presence, PAST, &logits),
            [1.0, -1.0, 3.0, -1.0, 5.0]
        );
        // Bias first: 2 + 2 is halved, not 2 halved plus 2.
        let both = Shaping {
            bias: vec![(2, 2.0), (4, -7.0)],
            repetition_penalty: 2.0,
            ..Shaping::default()
        };
        assert_eq!(shaped(&both, PAST, &logits), [0.5, -2.0, 2.0, -4.0, -2.0]);
    }

    #[test]
    fn stop_ids_are_masked_until_the_output_is_long_enough() {
        let shaping = |min_tokens| Shaping {
            min_tokens,
            stop_ids: vec![1, 4],
            bias: vec![(4, 100.0)],
            ..Shaping::default()
        };
        let infinity = f32::NEG_INFINITY;
        let logits = [0.0; 5];
        // Four tokens of output.
        let open = shaped(&shaping(4), PAST, &logits);
        assert_eq!(open, [0.0, 0.0, 0.0, 0.0, 100.0]);
        let masked = shaped(&shaping(5), PAST, &logits);
        assert_eq!(masked, [0.0, infinity, 0.0, 0.0, infinity]);
    }

    #[test]
    fn a_neutral_row_is_not_even_copied() {
        let logits = [0.5, -0.0, 3.0];
        let mut row = Vec::new();
        let done = Shaping {
            min_tokens: 4,
            stop_ids: vec![1],
            ..Shaping::default()
        };
        for neutral in [Shaping::default(), done] {
            let same = Counts::default().shape(&neutral, &PAST, &logits, &mut row);
            assert!(std::ptr::eq(same, &logits[..]));
        }
        assert_eq!(row.capacity(), 0);
    }

    #[test]
    fn extremes_stay_numbers_and_masks_stay_masks() {
        let shaping = Shaping {
            bias: vec![(0, 100.0), (3, 100.0)],
            repetition_penalty: f32::MIN_POSITIVE,
            ..Shaping::default()
        };
        let logits = [f32::MAX, 1e30, f32::MIN, f32::NEG_INFINITY, 0.0];
        let past = History {
            text: &[0, 1, 2, 3],
            path: &[],
            prompt_len: 4,
        };
        let row = shaped(&shaping, past, &logits);
        assert_eq!(row[..2], [f32::MAX, f32::MAX]);
        assert!(row[2] <= 0.0 && row[2].is_finite());
        assert_eq!(row[3], f32::NEG_INFINITY);
        let worst = Shaping {
            repetition_penalty: 10.0,
            ..Shaping::default()
        };
        assert_eq!(shaped(&worst, past, &logits)[2], f32::MIN);
    }

    #[test]
    fn counts_that_follow_equal_counts_that_start_again() {
        let shaping = Shaping {
            repetition_penalty: 1.3,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            ..Shaping::default()
        };
        let logits: Vec<f32> = (0..7).map(|id| 3.0 - id as f32).collect();
        let text = [3, 1, 3, 0, 5, 5, 2, 3, 1, 6];
        let paths: [&[u32]; 4] = [&[], &[4], &[5, 5, 6], &[3, 0]];
        let mut counts = Counts::default();
        let mut row = Vec::new();
        for len in 2..=text.len() {
            for path in paths {
                let past = History {
                    text: &text[..len],
                    path,
                    prompt_len: 2,
                };
                let followed = counts.shape(&shaping, &past, &logits, &mut row).to_vec();
                assert_eq!(followed, shaped(&shaping, past, &logits));
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let good = Shaping::default;
        let bad = [
            (
                "repetition_penalty",
                Shaping {
                    repetition_penalty: 0.0,
                    ..good()
                },
            ),
            (
                "repetition_penalty",
                Shaping {
                    repetition_penalty: f32::NAN,
                    ..good()
                },
            ),
            (
                "presence_penalty",
                Shaping {
                    presence_penalty: 2.1,
                    ..good()
                },
            ),
            (
                "frequency_penalty",
                Shaping {
                    frequency_penalty: f32::NEG_INFINITY,
                    ..good()
                },
            ),
            (
                "logit_bias",
                Shaping {
                    bias: vec![(1, f32::NAN)],
                    ..good()
                },
            ),
            (
                "logit_bias id",
                Shaping {
                    bias: vec![(3, 1.0), (2, 0.0), (3, 1.0)],
                    ..good()
                },
            ),
            (
                "logit_bias id",
                Shaping {
                    bias: vec![(10, 1.0)],
                    ..good()
                },
            ),
            (
                "number of biased tokens",
                Shaping {
                    bias: (0..=1024).map(|id| (id, 0.0)).collect(),
                    ..good()
                },
            ),
        ];
        for (name, shaping) in bad {
            assert_eq!(shaping.validate(10).unwrap_err().parameter, name);
        }
        let widest = Shaping {
            bias: (0..1024).map(|id| (id, -100.0)).collect(),
            repetition_penalty: 10.0,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            min_tokens: u32::MAX,
            stop_ids: vec![1],
        };
        assert_eq!(widest.validate(1024), Ok(()));
    }
}

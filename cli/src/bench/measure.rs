//! Running requests: every contender in turn gets the same prompts, on the same workers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::stream::{self, StreamExt, TryStreamExt};
use proto::v1;
use proto::v1::generate_request::Prompt;
use speculation::strategy::Knobs;

use super::contender::Contender;
use crate::client::{Client, Completion};
use crate::console::Progress;
use crate::sampling::SamplingArgs;

/// Where requests run concurrently, a contender has its turn for this many prompts for each of them: a request that ends is
/// followed by the next one, and only at the end of a turn are there fewer.
const TURN: usize = 4;

/// What every request of a run has in common.
pub(crate) struct Rig {
    pub(crate) client: Client,
    pub(crate) prompts: Vec<String>,
    pub(crate) sampling: SamplingArgs,
    pub(crate) max_tokens: u32,
    /// Concurrent requests.
    pub(crate) concurrency: usize,
    /// The seed of each prompt is derived from it.
    pub(crate) seed: u64,
    pub(crate) progress: Progress,
}

/// Everything that was measured of one contender.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    /// In order of repeat, then prompt: the same index is the same request for every contender.
    pub(crate) completions: Vec<Completion>,
    /// Time with requests of its own running.
    pub(crate) wall: Duration,
}

impl Rig {
    /// The request of a contender for a prompt.
    pub(crate) fn request(&self, contender: &Contender, prompt: usize) -> v1::GenerateRequest {
        let mut request = self.sampling.request(
            Prompt::Text(self.prompts[prompt].clone()),
            self.max_tokens,
            Some(seed(self.seed, prompt)),
        );
        contender.apply(&mut request);
        request
    }

    /// One completion of each of the prompts numbered `prompts`, as many at a time as there are to be.
    ///
    /// # Errors
    /// When one of them fails; the message names prompt and contender.
    async fn group(&self, contender: &Contender, prompts: &[usize]) -> Result<Samples> {
        let begun = Instant::now();
        let requests = prompts.iter().enumerate().map(|(at, &prompt)| async move {
            let request = self.request(contender, prompt);
            let completion = self
                .client
                .clone()
                .generate(request, |_| Ok(()))
                .await
                .with_context(|| format!("prompt {} by {contender}", prompt + 1));
            self.progress.step();
            Ok::<_, anyhow::Error>((at, completion?))
        });
        let running = stream::iter(requests).buffer_unordered(self.concurrency.max(1));
        let mut completions: Vec<_> = running.try_collect().await?;
        let wall = begun.elapsed();
        completions.sort_by_key(|&(at, _)| at);
        Ok(Samples {
            completions: completions.into_iter().map(|(_, one)| one).collect(),
            wall,
        })
    }

    /// The prompts in groups that a contender completes in one turn.
    fn groups(&self, prompts: usize) -> Vec<Vec<usize>> {
        let numbers: Vec<_> = (0..prompts.min(self.prompts.len())).collect();
        let size = match self.concurrency {
            0 | 1 => 1,
            several => several * TURN,
        };
        numbers.chunks(size).map(<[usize]>::to_vec).collect()
    }

    /// Runs every contender on every prompt, `repeats` times. Contenders take turns on each group of prompts, and
    /// each group starts with another contender, so that drift of the machine affects all of them alike.
    ///
    /// # Errors
    /// When a request fails.
    pub(crate) async fn compare(
        &self,
        contenders: &[Contender],
        repeats: usize,
    ) -> Result<Vec<Samples>> {
        let mut samples = vec![Samples::default(); contenders.len()];
        for repeat in 0..repeats {
            for (turn, group) in self.groups(self.prompts.len()).iter().enumerate() {
                for index in rotation(contenders.len(), turn + repeat) {
                    let more = self.group(&contenders[index], group).await?;
                    samples[index].completions.extend(more.completions);
                    samples[index].wall += more.wall;
                }
            }
        }
        Ok(samples)
    }

    /// One request of each contender that is not counted, so that the first measured request is not a cold start.
    ///
    /// # Errors
    /// When a request fails.
    pub(crate) async fn warm_up(&self, contenders: &[Contender]) -> Result<()> {
        for contender in contenders {
            self.group(contender, &[0]).await?;
        }
        Ok(())
    }

    /// The knobs with which `contender` is fastest on the first `prompts` prompts, in tokens per second: all
    /// candidates run on the first group of them, and after each group the slower half is dropped (successive
    /// halving, arXiv 1502.07943, section 3).
    ///
    /// # Errors
    /// When a request fails.
    pub(crate) async fn tune(&self, contender: &Contender, prompts: usize) -> Result<Contender> {
        let mut field: Vec<Trial> = contender.candidates().into_iter().map(Trial::new).collect();
        for group in self.groups(prompts) {
            for trial in &mut field {
                let samples = self
                    .group(&contender.with(trial.knobs.clone()), &group)
                    .await?;
                samples
                    .completions
                    .iter()
                    .for_each(|completion| trial.add(completion));
            }
            field.sort_by(|a, b| b.speed().total_cmp(&a.speed()));
            field.truncate(survivors(field.len()));
        }
        let best = field.into_iter().next();
        Ok(best.map_or_else(|| contender.clone(), |best| contender.with(best.knobs)))
    }

    /// How many requests [`Rig::tune`] sends.
    pub(crate) fn tuning_requests(&self, contender: &Contender, prompts: usize) -> usize {
        let mut field = contender.candidates().len();
        let mut requests = 0;
        for group in self.groups(prompts) {
            requests += field * group.len();
            field = survivors(field);
        }
        requests
    }
}

/// How many of `field` candidates remain after a round of tuning.
fn survivors(field: usize) -> usize {
    field.div_ceil(2).max(3).min(field)
}

/// A candidate of a sweep.
struct Trial {
    knobs: Knobs,
    tokens: usize,
    time: Duration,
}

impl Trial {
    fn new(knobs: Knobs) -> Trial {
        Trial {
            knobs,
            tokens: 0,
            time: Duration::ZERO,
        }
    }

    fn add(&mut self, completion: &Completion) {
        if let [first, .., last] = completion.arrivals.as_slice() {
            self.tokens += completion.token_ids.len().saturating_sub(first.tokens);
            self.time += last.at.saturating_sub(first.at);
        }
    }

    /// Tokens per second over all its requests; 0 where nothing was measured.
    fn speed(&self) -> f64 {
        let seconds = self.time.as_secs_f64();
        if seconds > 0.0 {
            self.tokens as f64 / seconds
        } else {
            0.0
        }
    }
}

/// `0..len`, starting one further each turn.
fn rotation(len: usize, turn: usize) -> impl Iterator<Item = usize> {
    (0..len).map(move |index| (index + turn) % len)
}

/// The seed of a prompt: a fixed function of the run's seed and the prompt's number (the finaliser of SplitMix64,
/// Steele et al. 2014).
pub(crate) fn seed(run: u64, prompt: usize) -> u64 {
    let mut z = run.wrapping_add(
        (prompt as u64)
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15),
    );
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Arrival;

    #[test]
    fn every_contender_begins_equally_often() {
        let first: Vec<_> = (0..6)
            .map(|turn| rotation(3, turn).next().unwrap())
            .collect();
        assert_eq!(first, [0, 1, 2, 0, 1, 2]);
        assert_eq!(rotation(3, 4).collect::<Vec<_>>(), [1, 2, 0]);
    }

    #[test]
    fn seeds_differ_by_prompt_and_run_and_stay() {
        // The first output of SplitMix64 from state 0, as published.
        assert_eq!(seed(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_ne!(seed(0, 0), seed(0, 1));
        assert_ne!(seed(0, 0), seed(1, 0));
    }

    #[test]
    fn halving_ends_with_a_few() {
        let rounds: Vec<_> = std::iter::successors(Some(45), |&field| Some(survivors(field)))
            .take(6)
            .collect();
        assert_eq!(rounds, [45, 23, 12, 6, 3, 3]);
        assert_eq!(survivors(2), 2);
        assert_eq!(survivors(0), 0);
    }

    #[test]
    fn a_trial_counts_what_came_after_the_first_arrival() {
        let mut trial = Trial::new(Knobs::default());
        assert_eq!(trial.speed(), 0.0);
        let at = |ms, tokens| Arrival {
            at: Duration::from_millis(ms),
            tokens,
        };
        let completion = Completion {
            token_ids: vec![0; 6],
            arrivals: vec![at(100, 1), at(200, 2), at(350, 3)],
            ..Completion::default()
        };
        trial.add(&completion);
        trial.add(&completion);
        assert_eq!(trial.speed(), 20.0);
    }
}

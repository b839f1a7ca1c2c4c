//! How a draft does with its target, measured: how often its first guess is right, and what a round earns. Strategies choose the length of chains and the number of branches by it.

use crate::message::Outlook;

/// How often a draft's first guess at a place is the target's token, from all sessions of its worker.
#[derive(Clone, Debug)]
pub struct Agreement(Share);

impl Default for Agreement {
    fn default() -> Self {
        Agreement(Share::new(0.6))
    }
}

impl Agreement {
    /// A place was decided for which there was a first guess: 1 where it was the target's token, 0 where it was not.
    pub fn guessed(&mut self, came_true: f32) {
        self.0.observe(came_true);
    }
}

/// A share of recent cases.
#[derive(Clone, Copy, Debug)]
struct Share {
    yes: f32,
    all: f32,
}

impl Share {
    /// What is supposed before anything was seen counts as so many cases.
    const PRIOR: f32 = 8.0;

    /// About so many of the newest cases count.
    const MEMORY: f32 = 400.0;

    fn new(share: f32) -> Self {
        Share {
            yes: share * Share::PRIOR,
            all: Share::PRIOR,
        }
    }

    fn observe(&mut self, yes: f32) {
        if self.all >= Share::MEMORY {
            self.yes *= 0.5;
            self.all *= 0.5;
        }
        self.yes += yes;
        self.all += 1.0;
    }

    fn get(self) -> f32 {
        self.yes / self.all
    }
}

/// How the rounds of one session went. It depends on the strategy, so that no other session learns from it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Tokens committed, and what they cost in steps of the draft.
    tokens: f32,
    steps: f32,
}

/// What is expected of a round counts as so many of them.
const EXPECTED: f32 = 4.0;

/// Of rounds before this many newer ones nearly nothing is left.
const ROUNDS: f32 = 100.0;

impl Progress {
    /// A round brought `tokens` and took as long as `steps` of the draft, the target's step included.
    pub fn earned(&mut self, tokens: usize, steps: f32) {
        let keep = 1.0 - 1.0 / ROUNDS;
        self.tokens = self.tokens * keep + tokens as f32;
        self.steps = self.steps * keep + steps;
    }

    /// What strategies are told, by a draft whose step takes `step_us` (`None`: not known yet).
    pub fn pace(&self, agreement: &Agreement, outlook: &Outlook, step_us: Option<f64>) -> Pace {
        let ratio = match (outlook.step_us, step_us) {
            (Some(target), Some(own)) if target > 0 && own >= 1.0 => {
                Some((f64::from(target) / own).clamp(0.05, 256.0) as f32)
            }
            _ => None,
        };
        let mut pace = Pace {
            ratio,
            agreement: agreement.0.get().clamp(0.01, 0.99),
            earns: None,
        };
        if let (Some(ratio), Some(gamma)) = (ratio, pace.best_length(32, f32::from)) {
            let tokens = self.tokens + EXPECTED * pace.yields(gamma);
            let steps = self.steps + EXPECTED * (ratio + f32::from(gamma));
            pace.earns = Some(tokens / steps);
        }
        pace
    }
}

/// How fast target and draft are, and how well they agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Steps that the draft computes while the target computes one (the papers' c); `None` before both were measured.
    pub ratio: Option<f32>,
    /// How often the first guess at a place is the target's token, given that those above it were (the papers' alpha).
    pub agreement: f32,
    /// Tokens committed per step of the draft, in the long run, where draft and target take turns; `None` before the step
    /// times are known.
    pub earns: Option<f32>,
}

impl Default for Pace {
    fn default() -> Self {
        Progress::default().pace(&Agreement::default(), &Outlook::default(), None)
    }
}

impl Pace {
    /// Tokens that a target's step is expected to yield with a chain of `gamma` guesses: `(1 - a^(gamma + 1)) / (1 - a)`
    /// (arXiv 2211.17192, equation 1).
    pub fn yields(&self, gamma: u16) -> f32 {
        let mut path = 1.0;
        let mut total = 1.0;
        for _ in 0..gamma {
            path *= self.agreement;
            total += path;
        }
        total
    }

    /// The length from 1 to `most` of the chain that yields most per time, where a chain of `gamma` tokens makes the target
    /// wait for `waits(gamma)` steps of the draft; `None` before the step times are known.
    pub fn best_length(&self, most: u16, waits: impl Fn(u16) -> f32) -> Option<u16> {
        let ratio = self.ratio?;
        let rate = |gamma: u16| self.yields(gamma) / (ratio + waits(gamma));
        let mut best = (1, rate(1));
        for gamma in 2..=most.max(1) {
            let rate = rate(gamma);
            if rate > best.1 {
                best = (gamma, rate);
            }
        }
        Some(best.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(ratio: f32, agreement: f32) -> Pace {
        Pace {
            ratio: Some(ratio),
            agreement,
            ..Pace::default()
        }
    }

    const TARGET: Outlook = Outlook {
        accepted: None,
        mode: crate::bypass::Mode::Speculate,
        forecast: None,
        step_us: Some(20_000),
        misses: 0,
    };

    #[test]
    fn shares_and_rates_follow_what_is_observed() {
        let mut agreement = Agreement::default();
        let mut progress = Progress::default();
        let before = progress.pace(&agreement, &TARGET, Some(2000.0));
        // Of a chain of three at this agreement, 2.18 tokens in 13 steps.
        assert!((before.earns.expect("known") - 0.167).abs() < 0.01);
        for turn in 0..2000 {
            agreement.guessed(if turn % 4 == 0 { 0.0 } else { 1.0 });
            progress.earned(6, 12.0);
        }
        let pace = progress.pace(&agreement, &TARGET, Some(2000.0));
        assert!((pace.agreement - 0.75).abs() < 0.03, "{pace:?}");
        assert_eq!(pace.ratio, Some(10.0));
        assert!((pace.earns.expect("known") - 0.5).abs() < 0.02, "{pace:?}");
    }

    #[test]
    fn nothing_is_said_of_step_times_before_both_are_known() {
        let (progress, agreement) = (Progress::default(), Agreement::default());
        assert_eq!(progress.pace(&agreement, &TARGET, None).ratio, None);
        let unknown = progress.pace(&agreement, &Outlook::default(), Some(5.0));
        assert_eq!((unknown.ratio, unknown.earns), (None, None));
        assert_eq!(Pace::default().best_length(9, f32::from), None);
    }

    #[test]
    fn chains_are_longer_where_drafts_are_fast_sure_or_never_waited_for() {
        let length = |ratio, agreement, waits| {
            pace(ratio, agreement)
                .best_length(64, |gamma| waits * f32::from(gamma))
                .expect("both step times are known")
        };
        // Leviathan et al., section 3.5: the integer that maximises the improvement factor.
        assert_eq!(length(10.0, 0.6, 1.0), 3);
        assert!(length(50.0, 0.6, 1.0) > length(4.0, 0.6, 1.0));
        assert!(length(10.0, 0.9, 1.0) > length(10.0, 0.5, 1.0));
        assert!(length(10.0, 0.6, 0.2) > length(10.0, 0.6, 1.0));
    }
}

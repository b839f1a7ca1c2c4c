//! From a token path to what each of the three models answers there.

use decode::sampling::SamplingParams;
use decode::{Answer, Ask, Guess, Pick, Score, math};

use crate::synthetic::path::{Draws, Path, Purpose};
use crate::synthetic::position::{Gap, Position, QualifierPick};
use crate::synthetic::profile::{Class, Profile};

/// Which of the three models a backend stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// Whose tokens the text is.
    Target,
    /// Whose picks are advice.
    Qualifier,
    /// Which guesses.
    Draft,
}

/// Log-probabilities fall with the rank as in natural text (Zipf), a little faster so that the first ranks have most.
const ZIPF: f64 = 1.5;
/// How far each guess beyond those of the profile lies behind the one before, in nats.
const BEYOND: f32 = 0.25;

/// One model of a profile, over a vocabulary.
#[derive(Debug)]
pub(super) struct Replay {
    profile: Profile,
    member: Member,
    /// The tokens of texts, ascending.
    tokens: Vec<u32>,
    /// The other ids of the vocabulary, ascending. They come last in every order.
    others: Vec<u32>,
    /// Logarithm of the sum of the Zipf weights of all ranks.
    log_mass: f64,
}

/// The tokens at one place, the target's first: a walk over [`Replay::tokens`] in equal strides.
#[derive(Clone, Copy, Debug)]
struct Order {
    first: usize,
    stride: usize,
}

impl Replay {
    /// `tokens` are those that a text may have: ascending, below `vocab`, at least two more than the profile has guesses.
    pub(super) fn new(profile: Profile, member: Member, tokens: Vec<u32>, vocab: u32) -> Replay {
        let others = (0..vocab).filter(|id| tokens.binary_search(id).is_err());
        let others: Vec<u32> = others.collect();
        let mass: f64 = (0..tokens.len() + others.len())
            .map(|rank| math::exp64(zipf(rank)))
            .sum();
        Replay {
            log_mass: math::ln(mass),
            profile,
            member,
            tokens,
            others,
        }
    }

    /// The profile.
    pub(super) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What the model answers behind `path`, whose last token stands at `position - 1`. Nothing is answered to nothing.
    pub(super) fn answer(
        &self,
        ask: Ask,
        path: Path,
        position: usize,
        params: &SamplingParams,
    ) -> Option<Answer> {
        let draws = Draws::at(path, params);
        let place = self.place(draws, position, params.temperature);
        match ask {
            // There is no distribution to judge by or to draw from: a worker refuses such a session.
            Ask::Nothing | Ask::Judge { .. } | Ask::Draw(_) => None,
            Ask::Pick { score } => {
                let mut pick = place.pick();
                if let Some((_, top)) = score {
                    pick.score = Some(Box::new(place.score(pick.token, top)));
                }
                Some(Answer::Pick(pick))
            }
            Ask::Guesses(most) => Some(Answer::Guesses(place.guesses(usize::from(most)))),
            Ask::Score { token, top } => Some(Answer::Score(Box::new(place.score(token, top)))),
        }
    }

    fn place(&self, draws: Draws, position: usize, temperature: f32) -> Place<'_> {
        let class = self.profile.class(temperature);
        let begin = draws.below(Purpose::Block, class.positions.len());
        let replayed = (begin + position % self.profile.block) % class.positions.len();
        let tokens = self.tokens.len();
        let mut stride = 1 + draws.below(Purpose::Stride, tokens - 1);
        // A stride without a common factor meets every token once.
        while gcd(stride, tokens) > 1 {
            stride = stride % (tokens - 1) + 1;
        }
        Place {
            replay: self,
            class,
            found: &class.positions[replayed],
            order: Order {
                first: draws.below(Purpose::Token, tokens),
                stride,
            },
        }
    }
}

/// One place of a text, as all models see it.
struct Place<'a> {
    replay: &'a Replay,
    class: &'a Class,
    found: &'a Position,
    order: Order,
}

impl Place<'_> {
    /// The token of a rank in the order; 0 is the target's.
    fn token(&self, rank: usize) -> u32 {
        let Replay { tokens, others, .. } = self.replay;
        let Some(other) = rank.checked_sub(tokens.len()) else {
            // Both factors are far below 2^32.
            return tokens[(self.order.first + rank * self.order.stride) % tokens.len()];
        };
        others.get(other).copied().unwrap_or_default()
    }

    /// The rank of a token in the order.
    fn rank(&self, token: u32) -> usize {
        let Replay { tokens, others, .. } = self.replay;
        match tokens.binary_search(&token) {
            Ok(index) => {
                let ahead = (index + tokens.len() - self.order.first) % tokens.len();
                ahead * inverse(self.order.stride, tokens.len()) % tokens.len()
            }
            Err(_) => tokens.len() + others.partition_point(|&other| other < token),
        }
    }

    /// The rank of the token that the draft guesses at a place.
    fn drafted(&self, place: usize) -> usize {
        match self.found.draft.map(usize::from) {
            Some(targets) if place == targets => 0,
            Some(targets) if place > targets => place,
            Some(_) | None => place + 1,
        }
    }

    /// The rank of the qualifier's pick.
    fn qualified(&self) -> usize {
        match self.found.qualifier {
            QualifierPick::Targets => 0,
            QualifierPick::Drafts(place) => self.drafted(usize::from(place)),
            // One more than any that the draft guesses.
            QualifierPick::Other => self.replay.profile.guesses + 1,
        }
    }

    /// How far the draft's guess at a place lies behind its first, in nats.
    fn behind(&self, place: usize) -> f32 {
        let gaps = &self.found.gaps;
        match place.checked_sub(1).map(|at| (at, gaps.get(at))) {
            None => 0.0,
            Some((_, Some(gap))) => gap.nats(),
            Some((at, None)) => {
                let last = gaps.last().map_or(0.0, |gap| gap.nats());
                last + (at + 1 - gaps.len()) as f32 * BEYOND
            }
        }
    }

    fn pick(&self) -> Pick {
        let (rank, margin) = match self.replay.member {
            Member::Target => (0, self.found.target_lead.nats()),
            Member::Qualifier => (self.qualified(), self.found.qualifier_lead.nats()),
            Member::Draft => (self.drafted(0), self.behind(1)),
        };
        Pick {
            token: self.token(rank),
            margin,
            score: None,
        }
    }

    /// The `most` best guesses, as a sampler would give them; target and qualifier guess their pick first.
    fn guesses(&self, most: usize) -> Vec<Guess> {
        let Replay {
            member,
            profile,
            tokens,
            ..
        } = self.replay;
        let own = self.qualified();
        let lead = match member {
            Member::Target => self.found.target_lead.nats(),
            Member::Qualifier => self.found.qualifier_lead.nats(),
            Member::Draft => self.behind(1),
        };
        let rank = |place: usize| match member {
            Member::Target => place,
            Member::Draft => self.drafted(place),
            Member::Qualifier if place == 0 => own,
            Member::Qualifier if place > own => place,
            Member::Qualifier => place - 1,
        };
        let behind = |place: usize| match (member, place) {
            (_, 0) => 0.0,
            (Member::Draft, _) => self.behind(place),
            (Member::Target | Member::Qualifier, _) => lead + (place - 1) as f32 * BEYOND,
        };
        // The second best gives the first its weight. One token less than there are, because the target's may be missing.
        let listed = most.max(2).min(tokens.len() - 1);
        let weights: Vec<f32> = (0..listed).map(|place| math::exp(-behind(place))).collect();
        let sum: f32 = weights.iter().sum();
        let guess = |place: usize| {
            let margin = if place == 0 { lead } else { -behind(place) };
            let row = &self.class.q[place.min(profile.guesses - 1)];
            Guess {
                token: self.token(rank(place)),
                q: row[Gap::from_nats(margin.abs()).bucket()],
                margin,
                weight: weights[place] / sum,
            }
        };
        (0..listed.min(most)).map(guess).collect()
    }

    /// The score of a token: Zipf's law over the order.
    fn score(&self, token: u32, top: u8) -> Score {
        let vocab = self.replay.tokens.len() + self.replay.others.len();
        let logprob = |rank: usize| (zipf(rank) - self.replay.log_mass) as f32;
        let own = self.rank(token);
        let top = (0..usize::from(top).min(vocab)).map(|rank| (self.token(rank), logprob(rank)));
        Score {
            logprob: logprob(own),
            rank: u32::try_from(own + 1).unwrap_or(u32::MAX),
            top: top.collect(),
        }
    }
}

/// The logarithm of the weight of a rank, counted from 0.
fn zipf(rank: usize) -> f64 {
    -ZIPF * math::ln((rank + 1) as f64)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The number that gives 1 when it is multiplied by `of`, modulo `modulus`; they have no common factor.
fn inverse(of: usize, modulus: usize) -> usize {
    // Extended Euclid: `a * of` is `b` modulo `modulus` in both rows.
    let modulus = modulus as i64;
    let (mut row, mut next) = ((1_i64, of as i64), (0_i64, modulus));
    while next.1 != 0 {
        let times = row.1 / next.1;
        (row, next) = (next, (row.0 - times * next.0, row.1 - times * next.1));
    }
    row.0.rem_euclid(modulus) as usize
}

#[cfg(test)]
mod tests;

//! Token paths as hashes, and what is drawn from them.

use decode::sampling::{NoiseKey, SamplingParams};

/// Any constant: the hash of a path without tokens.
const EMPTY: u64 = 0x6f66_6673_686f_6f74;

/// A token path: all that is cached of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Of all its tokens.
    hash: u64,
    /// Of its tokens up to the last border between two blocks.
    block: u64,
}

impl Path {
    /// The path without tokens.
    pub(super) const EMPTY: Path = Path {
        hash: EMPTY,
        block: EMPTY,
    };

    /// The path with one more token, which stands at `position`, where blocks have `block` positions.
    pub(super) fn with(self, token: u32, position: usize, block: usize) -> Path {
        // Positions are bounded by a context, far below 2^32.
        let hash = NoiseKey::new(self.hash, 0, position as u32).hash(token);
        let is_border = (position + 1).is_multiple_of(block);
        Path {
            hash,
            block: if is_border { hash } else { self.block },
        }
    }
}

/// What a draw is for. Draws for different purposes are unrelated.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Where in the profile the block begins.
    Block,
    /// Which token is the target's.
    Token,
    /// In which order the other tokens follow.
    Stride,
}

/// Draws at one place of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws {
    path: Path,
    request: u64,
}

impl Draws {
    /// Draws at what follows `path`. At temperature 0 seed and choice say nothing, as with every model.
    pub(super) fn at(path: Path, params: &SamplingParams) -> Draws {
        let (seed, choice) = match params.temperature {
            0.0 => (0, 0),
            _ => (params.seed, params.choice),
        };
        Draws {
            path,
            request: NoiseKey::new(seed, choice, 0).hash(0),
        }
    }

    /// A number below `limit`, which is above 0.
    pub(super) fn below(self, purpose: Purpose, limit: usize) -> usize {
        let from = match purpose {
            Purpose::Block => self.path.block,
            Purpose::Token | Purpose::Stride => self.path.hash,
        };
        let bits = NoiseKey::new(from.wrapping_add(self.request), 1, purpose as u32).hash(0);
        scale(bits, limit)
    }
}

/// 64 uniform bits as a number below `limit`.
pub(super) fn scale(bits: u64, limit: usize) -> usize {
    ((u128::from(bits) * limit as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(tokens: &[u32], block: usize) -> Path {
        let tokens = tokens.iter().zip(0..);
        tokens.fold(Path::EMPTY, |path, (&token, at)| {
            path.with(token, at, block)
        })
    }

    #[test]
    fn every_token_and_its_place_matter() {
        assert_ne!(path(&[1, 2], 8), path(&[2, 1], 8));
        assert_ne!(path(&[1], 8), path(&[1, 1], 8));
        assert_ne!(path(&[0], 8), Path::EMPTY);
        assert_eq!(path(&[1, 2], 8), path(&[1, 2], 8));
    }

    #[test]
    fn a_block_keeps_what_stands_before_it() {
        let border = path(&[1, 2, 3, 4], 4);
        assert_eq!(border.block, border.hash);
        let next = border.with(9, 4, 4);
        let other = border.with(8, 4, 4);
        assert_eq!((next.block, other.block), (border.hash, border.hash));
        assert_ne!(next.hash, other.hash);
    }

    #[test]
    fn seeds_matter_above_temperature_0_only() {
        let params = |temperature, seed| SamplingParams {
            temperature,
            seed,
            ..SamplingParams::default()
        };
        let draw = |temperature, seed| {
            Draws::at(path(&[5], 4), &params(temperature, seed)).below(Purpose::Token, 1 << 30)
        };
        assert_eq!(draw(0.0, 1), draw(0.0, 2));
        assert_ne!(draw(1.0, 1), draw(1.0, 2));
        assert_eq!(draw(1.0, 1), draw(0.5, 1));
    }

    #[test]
    fn numbers_lie_below_their_limit() {
        assert_eq!((scale(0, 7), scale(u64::MAX, 7)), (0, 6));
        assert_eq!(scale(1 << 63, 10), 5);
        assert_eq!(scale(u64::MAX, 1), 0);
    }
}

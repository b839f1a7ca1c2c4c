//! What the blocks of quantised tensors mean: `weight = scale * (code - offset) - minimum`.
//!
//! The layouts are those of ggml (`block_q4_0` and so on). All operations are single IEEE f32 operations in the order of ggml's
//! definitions, so a weight has one value to the bit.

use half::f16;

/// Weights of the longest block.
pub const MOST_INPUTS: usize = 256;
/// Scales of the block with the most.
pub const MOST_GROUPS: usize = 16;

/// A format of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 weights of 8 bits and a scale.
    Q8_0,
    /// 32 weights of 5 bits and a scale.
    Q5_0,
    /// 32 weights of 4 bits and a scale.
    Q4_0,
    /// 32 weights of 4 bits, a scale and a minimum.
    Q4_1,
    /// 256 weights of 4 bits in groups of 32, with scales and minima of 6 bits.
    Q4K,
    /// 256 weights of 5 bits in groups of 32, with scales and minima of 6 bits.
    Q5K,
    /// 256 weights of 6 bits in groups of 16, with scales of 8 bits.
    Q6K,
}

/// What a block of a format consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Weights of a block.
    pub inputs: usize,
    /// Neighbouring weights that share a scale.
    pub group: usize,
    /// Whether groups have scales of their own, by which the block's is multiplied.
    pub nested: bool,
    /// Whether a minimum is subtracted.
    pub minimum: bool,
    /// Bits of a code: 4, 5, 6 or 8.
    pub bits: u32,
    /// What is subtracted from a code. Codes of 8 bits are signed instead.
    pub offset: i32,
}

impl Shape {
    /// Groups of a block.
    #[must_use]
    pub const fn groups(self) -> usize {
        self.inputs / self.group
    }
}

/// A block, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The block's scale.
    pub scale: f16,
    /// The block's minimum, or what minima of groups are multiplied by; 0 where there is none.
    pub minimum: f16,
    /// Scales of the groups, where they are nested.
    pub scales: [i8; MOST_GROUPS],
    /// Minima of the groups, where they are nested.
    pub minima: [i8; MOST_GROUPS],
    /// Codes, without their offset; those of 8 bits are the bits of an `i8`.
    pub codes: [u8; MOST_INPUTS],
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [BlockFormat; 7] = [
        BlockFormat::Q8_0,
        BlockFormat::Q5_0,
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
    ];

    /// What its blocks consist of.
    #[must_use]
    pub const fn shape(self) -> Shape {
        let (inputs, group, nested, minimum, bits, offset) = match self {
            BlockFormat::Q8_0 => (32, 32, false, false, 8, 0),
            BlockFormat::Q5_0 => (32, 32, false, false, 5, 16),
            BlockFormat::Q4_0 => (32, 32, false, false, 4, 8),
            BlockFormat::Q4_1 => (32, 32, false, true, 4, 0),
            BlockFormat::Q4K => (256, 32, true, true, 4, 0),
            BlockFormat::Q5K => (256, 32, true, true, 5, 0),
            BlockFormat::Q6K => (256, 16, true, false, 6, 32),
        };
        Shape {
            inputs,
            group,
            nested,
            minimum,
            bits,
            offset,
        }
    }

    /// Bytes of a block in a file.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            BlockFormat::Q8_0 => 34,
            BlockFormat::Q5_0 => 22,
            BlockFormat::Q4_0 => 18,
            BlockFormat::Q4_1 => 20,
            BlockFormat::Q4K => 144,
            BlockFormat::Q5K => 176,
            BlockFormat::Q6K => 210,
        }
    }

    /// Its name in ggml.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            BlockFormat::Q8_0 => "Q8_0",
            BlockFormat::Q5_0 => "Q5_0",
            BlockFormat::Q4_0 => "Q4_0",
            BlockFormat::Q4_1 => "Q4_1",
            BlockFormat::Q4K => "Q4_K",
            BlockFormat::Q5K => "Q5_K",
            BlockFormat::Q6K => "Q6_K",
        }
    }

    /// Whether the half-precision numbers of a block are finite. Of a block where they are not, no weight means anything.
    ///
    /// # Panics
    /// When `bytes` is not one block long.
    #[must_use]
    pub fn is_finite(self, bytes: &[u8]) -> bool {
        assert_eq!(bytes.len(), self.bytes(), "one block of {}", self.name());
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).is_finite();
        match self {
            BlockFormat::Q8_0 | BlockFormat::Q5_0 | BlockFormat::Q4_0 => half(0),
            BlockFormat::Q4_1 | BlockFormat::Q4K | BlockFormat::Q5K => half(0) && half(2),
            BlockFormat::Q6K => half(208),
        }
    }

    /// Takes a block apart.
    ///
    /// # Panics
    /// When `bytes` is not one block long.
    #[must_use]
    pub fn unpack(self, bytes: &[u8]) -> Block {
        assert_eq!(bytes.len(), self.bytes(), "one block of {}", self.name());
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut block = Block {
            scale: half(0),
            minimum: f16::ZERO,
            scales: [0; MOST_GROUPS],
            minima: [0; MOST_GROUPS],
            codes: [0; MOST_INPUTS],
        };
        match self {
            BlockFormat::Q8_0 => block.codes[..32].copy_from_slice(&bytes[2..]),
            BlockFormat::Q4_0 => halves(&bytes[2..], &mut block.codes),
            BlockFormat::Q4_1 => {
                // ggml adds it; here minima are subtracted.
                block.minimum = -half(2);
                halves(&bytes[4..], &mut block.codes);
            }
            BlockFormat::Q5_0 => {
                halves(&bytes[6..], &mut block.codes);
                for (i, code) in block.codes[..32].iter_mut().enumerate() {
                    *code |= (bytes[2 + i / 8] >> (i % 8) & 1) << 4;
                }
            }
            BlockFormat::Q4K => {
                block.minimum = half(2);
                six_bits(&bytes[4..16], &mut block);
                pairs(&bytes[16..], &mut block.codes);
            }
            BlockFormat::Q5K => {
                block.minimum = half(2);
                six_bits(&bytes[4..16], &mut block);
                pairs(&bytes[48..], &mut block.codes);
                for (i, code) in block.codes.iter_mut().enumerate() {
                    *code |= (bytes[16 + i % 32] >> (i / 32) & 1) << 4;
                }
            }
            BlockFormat::Q6K => {
                for (i, code) in block.codes.iter_mut().enumerate() {
                    // Halves of 128; in each, quarters of 32 that share bytes.
                    let (part, quarter, j) = (i / 128, i / 32 % 4, i % 32);
                    let low = bytes[64 * part + 32 * (quarter % 2) + j] >> (4 * (quarter / 2)) & 15;
                    let high = bytes[128 + 32 * part + j] >> (2 * quarter) & 3;
                    *code = low | high << 4;
                }
                for (scale, byte) in block.scales.iter_mut().zip(&bytes[192..208]) {
                    *scale = *byte as i8;
                }
                block.scale = half(208);
            }
        }
        block
    }

    /// The weights of whole blocks, as f32.
    ///
    /// # Panics
    /// When there are not as many blocks as weights.
    pub fn dequantise(self, bytes: &[u8], weights: &mut [f32]) {
        let inputs = self.shape().inputs;
        assert_eq!(bytes.len() / self.bytes() * inputs, weights.len());
        let blocks = bytes.chunks_exact(self.bytes());
        for (bytes, weights) in blocks.zip(weights.chunks_exact_mut(inputs)) {
            let block = self.unpack(bytes);
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = block.weight(self, k);
            }
        }
    }
}

impl Block {
    /// Weight `k` of a block of this format.
    #[inline]
    #[must_use]
    pub fn weight(&self, format: BlockFormat, k: usize) -> f32 {
        let shape = format.shape();
        let group = k / shape.group;
        let (mut scale, mut minimum) = (self.scale.to_f32(), self.minimum.to_f32());
        if shape.nested {
            scale *= f32::from(self.scales[group]);
            minimum *= f32::from(self.minima[group]);
        }
        let code = match shape.bits {
            8 => i32::from(self.codes[k] as i8),
            _ => i32::from(self.codes[k]) - shape.offset,
        };
        let product = scale * code as f32;
        if shape.minimum {
            product - minimum
        } else {
            product
        }
    }
}

/// Codes of 4 bits whose first half lies in the low halves of 16 bytes, the second in the high ones.
fn halves(bytes: &[u8], codes: &mut [u8]) {
    for (j, byte) in bytes[..16].iter().enumerate() {
        codes[j] = byte & 15;
        codes[j + 16] = byte >> 4;
    }
}

/// Codes of 4 bits where each 32 bytes hold 64 of them, the first 32 in the low halves.
fn pairs(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        for (j, byte) in bytes.iter().enumerate() {
            codes[j] = byte & 15;
            codes[j + 32] = byte >> 4;
        }
    }
}

/// Eight scales and eight minima of 6 bits in 12 bytes: the first four of each in the low bits of a byte of their own, the others
/// in halves of the last four bytes, with their upper two bits above the first ones.
fn six_bits(bytes: &[u8], block: &mut Block) {
    for j in 0..4 {
        let (scale, minimum, both) = (bytes[j], bytes[j + 4], bytes[j + 8]);
        // Six bits are never negative.
        block.scales[j] = (scale & 63) as i8;
        block.minima[j] = (minimum & 63) as i8;
        block.scales[j + 4] = (both & 15 | scale >> 6 << 4) as i8;
        block.minima[j + 4] = (both >> 4 | minimum >> 6 << 4) as i8;
    }
}

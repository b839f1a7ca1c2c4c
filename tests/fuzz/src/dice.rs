//! Decisions out of the fuzzer's bytes: small numbers where a change of one byte should lead somewhere near, and any
//! number where the border cases are.

/// What is left of an input. At its end everything is 0.
pub(crate) struct Dice<'a> {
    left: &'a [u8],
}

impl<'a> Dice<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { left: input }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.left.split_first() {
            Some((&first, rest)) => {
                self.left = rest;
                first
            }
            None => 0,
        }
    }

    /// The next bytes as they are.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.left.split_at(most.min(self.left.len()));
        self.left = rest;
        taken
    }

    /// A number below `most`, at most 256 of which can occur.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::from(self.byte()) % most.max(1)
    }

    /// True so many times out of 256.
    pub(crate) fn chance(&mut self, of_256: u8) -> bool {
        // The last byte value first: at the end of the input nothing special happens any more.
        self.byte() > u8::MAX - of_256
    }

    /// Mostly a number near `expected`; sometimes one at a border, sometimes any.
    pub(crate) fn near(&mut self, expected: u32) -> u32 {
        match self.byte() {
            0..=159 => expected,
            160..=191 => expected.saturating_add(1),
            192..=215 => expected.saturating_sub(1),
            216..=231 => u32::from(self.byte()),
            232..=239 => u32::MAX - u32::from(self.byte()),
            240..=247 => 0,
            _ => self.any(),
        }
    }

    pub(crate) fn any(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Any of the numbers that totals can have; seldom a small one.
    pub(crate) fn total(&mut self) -> u64 {
        match self.byte() {
            0..=127 => 0,
            128..=191 => u64::from(self.byte()),
            192..=223 => u64::MAX - u64::from(self.byte()),
            _ => u64::from(self.any()) << (self.byte() % 33),
        }
    }

    /// Any float, the ones between 0 and 1 most of the time.
    pub(crate) fn float(&mut self) -> f32 {
        match self.byte() {
            0..=199 => f32::from(self.byte()) / 255.0,
            _ => f32::from_bits(self.any()),
        }
    }
}

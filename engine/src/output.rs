//! The logits of a step.

/// Logits of the rows a step kept: for each sequence of the batch its kept appended rows, then its tree rows.
///
/// Reuse one value from step to step; its memory grows to the largest step.
#[derive(Default)]
pub struct StepOutput {
    logits: Vec<f32>,
    stride: usize,
    vocab: usize,
    rows: usize,
    healthy: Vec<bool>,
}

impl StepOutput {
    /// An empty output.
    #[must_use]
    pub fn new() -> StepOutput {
        StepOutput::default()
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Logits of kept row `i`, one per vocabulary id.
    ///
    /// # Panics
    /// When `i` is not below [`StepOutput::rows`].
    #[must_use]
    pub fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        &self.logits[i * self.stride..i * self.stride + self.vocab]
    }

    /// Whether every logit of kept row `i` is finite. One that is not ends its sequence, and nothing else.
    ///
    /// # Panics
    /// When `i` is not below [`StepOutput::rows`].
    #[must_use]
    pub fn healthy(&self, i: usize) -> bool {
        self.healthy[i]
    }

    /// Forgets all rows.
    pub(crate) fn clear(&mut self) {
        self.rows = 0;
        self.healthy.clear();
    }

    /// Makes room for `rows` rows of `stride` elements, the first `vocab` of which count, and hands it out.
    pub(crate) fn prepare(&mut self, rows: usize, stride: usize, vocab: usize) -> &mut [f32] {
        let len = rows * stride;
        if self.logits.len() < len {
            self.logits.resize(len, 0.0);
        }
        (self.stride, self.vocab) = (stride, vocab);
        &mut self.logits[..len]
    }

    /// Declares the prepared rows filled.
    pub(crate) fn finish(&mut self, rows: usize) {
        self.rows = rows;
        self.healthy.clear();
        for i in 0..rows {
            let row = &self.logits[i * self.stride..i * self.stride + self.vocab];
            // A float is finite when its exponent is not all ones; the fold has no early exit, so it vectorises.
            let most = row
                .iter()
                .fold(0_u32, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
            self.healthy.push(most < 0x7f80_0000);
        }
    }
}

//! Keys and values of every sequence, in pages.
//!
//! A page holds [`PAGE`] positions of one layer, keys as `[kv head][head_dim][PAGE]` so that one vector covers
//! sixteen positions, values as `[kv head][PAGE][head_dim padded]` so that one vector covers sixteen dimensions.
//! A sequence's scratch region, where tree rows live until they are committed or freed, is made of the same pages:
//! attention reads both alike, and where a key lies can not change a result.

use crate::config::ModelConfig;
use crate::load::LoadError;

/// Positions of one page; also the number of virtual lanes, so that lanes follow absolute positions.
pub const PAGE: usize = 16;

/// Sizes of a page's parts, in f32 elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// `head_dim` rounded up to whole vectors of 16; the rest stays zero.
    pub(crate) padded_dim: usize,
}

impl Layout {
    pub(crate) fn new(config: &ModelConfig) -> Layout {
        Layout {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            padded_dim: config.head_dim.next_multiple_of(16),
        }
    }

    /// The keys `[head_dim][PAGE]` of one head of one page.
    #[inline(always)]
    pub(crate) fn keys(self, page: u32, head: usize) -> core::ops::Range<usize> {
        let size = self.head_dim * PAGE;
        let start = (page as usize * self.kv_heads + head) * size;
        start..start + size
    }

    /// The values `[PAGE][padded_dim]` of one head of one page.
    #[inline(always)]
    pub(crate) fn values(self, page: u32, head: usize) -> core::ops::Range<usize> {
        let size = self.padded_dim * PAGE;
        let start = (page as usize * self.kv_heads + head) * size;
        start..start + size
    }
}

/// One layer's keys and values, all pages.
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// The page store: who owns which page is kept by the sequences.
pub(crate) struct KvCache {
    pub(crate) layout: Layout,
    pub(crate) layers: Vec<LayerCache>,
    /// Pages for committed positions that no sequence owns.
    free: Vec<u32>,
    total: usize,
}

/// Where one position's key and value lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) page: u32,
    pub(crate) lane: u32,
}

impl KvCache {
    /// `pages` pages for committed positions and behind them `scratch` pages that are dealt out by the caller.
    pub(crate) fn new(
        config: &ModelConfig,
        pages: usize,
        scratch: usize,
    ) -> Result<KvCache, LoadError> {
        let layout = Layout::new(config);
        let too_large = LoadError::CacheTooLarge { pages };
        let Some(all) = pages
            .checked_add(scratch)
            .filter(|n| u32::try_from(*n).is_ok())
        else {
            return Err(too_large);
        };
        let size = |dim: usize| {
            all.checked_mul(layout.kv_heads)?
                .checked_mul(dim)?
                .checked_mul(PAGE)
        };
        let (Some(keys), Some(values)) = (size(layout.head_dim), size(layout.padded_dim)) else {
            return Err(too_large);
        };
        let mut layers = Vec::new();
        for _ in 0..config.layers {
            let (Some(keys), Some(values)) = (zeros(keys), zeros(values)) else {
                return Err(too_large);
            };
            layers.push(LayerCache { keys, values });
        }
        let last = u32::try_from(pages).map_err(|_| LoadError::CacheTooLarge { pages })?;
        Ok(KvCache {
            layout,
            layers,
            free: (0..last).rev().collect(),
            total: pages,
        })
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn total_pages(&self) -> usize {
        self.total
    }

    /// Takes `count` free pages, or none when there are fewer.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let left = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(left))
    }

    pub(crate) fn give_back(&mut self, pages: &mut Vec<u32>) {
        self.free.append(pages);
    }

    /// Copies one position's keys and values, all layers.
    pub(crate) fn copy(&mut self, from: Place, to: Place) {
        let layout = self.layout;
        for layer in &mut self.layers {
            for head in 0..layout.kv_heads {
                let (source, target) = (layout.keys(from.page, head), layout.keys(to.page, head));
                for d in 0..layout.head_dim {
                    layer.keys[target.start + d * PAGE + to.lane as usize] =
                        layer.keys[source.start + d * PAGE + from.lane as usize];
                }
                let source =
                    layout.values(from.page, head).start + from.lane as usize * layout.padded_dim;
                let target =
                    layout.values(to.page, head).start + to.lane as usize * layout.padded_dim;
                layer
                    .values
                    .copy_within(source..source + layout.head_dim, target);
            }
        }
    }
}

/// A zeroed vector, or nothing where the address space has no room; untouched pages cost no memory.
fn zeros(len: usize) -> Option<Vec<f32>> {
    Vec::<f32>::new().try_reserve_exact(len).ok()?;
    Some(vec![0.0; len])
}

impl LayerCache {
    /// Stores one position's key and value of one head.
    #[inline]
    pub(crate) fn store(
        &mut self,
        layout: Layout,
        place: Place,
        head: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let lane = place.lane as usize;
        for (column, key) in self.keys[layout.keys(place.page, head)]
            .chunks_exact_mut(PAGE)
            .zip(key)
        {
            column[lane] = *key;
        }
        let start = layout.values(place.page, head).start + lane * layout.padded_dim;
        self.values[start..start + value.len()].copy_from_slice(value);
    }
}

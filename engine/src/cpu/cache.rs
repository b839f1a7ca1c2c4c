//! Keys and values of every sequence, in pages.
//!
//! A page holds [`PAGE`] positions of one layer, keys as `[kv head][head_dim][PAGE]` so that one vector covers
//! sixteen positions, values as `[kv head][PAGE][head_dim padded]` so that one vector covers sixteen dimensions.
//! A sequence's scratch region, where tree rows live until they are committed or freed, is made of the same pages:
//! attention reads both alike, and where a key lies can not change a result.

use crate::cpu::zeroed::Zeroed;
use crate::load::LoadError;
use crate::model::{AttentionShape, RopeTable};
use crate::sequence::{PAGE, Place};

/// Sizes of a page's parts, in f32 elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// `head_dim` rounded up to whole vectors of 16; the rest stays zero.
    pub(crate) padded_dim: usize,
}

impl Layout {
    fn new(shape: AttentionShape) -> Layout {
        Layout {
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            padded_dim: shape.head_dim.next_multiple_of(16),
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
    pub(crate) keys: Zeroed,
    pub(crate) values: Zeroed,
}

/// Keys and values of all layers, all pages; who owns which page is not known here.
pub(crate) struct KvCache {
    pub(crate) shape: AttentionShape,
    pub(crate) layout: Layout,
    pub(crate) layers: Vec<LayerCache>,
    /// What keys are turned by before they are stored; layers name theirs by its number.
    pub(crate) ropes: Vec<RopeTable>,
}

impl KvCache {
    /// `pages` pages in each of `layers` layers.
    pub(crate) fn new(
        shape: AttentionShape,
        layers: usize,
        pages: usize,
        ropes: Vec<RopeTable>,
    ) -> Result<KvCache, LoadError> {
        let layout = Layout::new(shape);
        let size = |dim: usize| {
            u32::try_from(pages).ok()?;
            pages
                .checked_mul(layout.kv_heads)?
                .checked_mul(dim)?
                .checked_mul(PAGE)
        };
        let one = || {
            let (keys, values) = (size(layout.head_dim)?, size(layout.padded_dim)?);
            Some(LayerCache {
                keys: Zeroed::new(keys)?,
                values: Zeroed::new(values)?,
            })
        };
        let layers = (0..layers).map(|_| one());
        let layers: Option<Vec<_>> = layers.collect();
        Ok(KvCache {
            shape,
            layout,
            layers: layers.ok_or(LoadError::CacheTooLarge { pages })?,
            ropes,
        })
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

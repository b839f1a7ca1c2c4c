//! Quantised weights in panels: as many bits a weight as in a GGUF file, in the order in which kernels take them.
//!
//! A panel block holds one block of each of a panel's [`PANEL`] outputs. Its parts lie one behind the other: scales, minima, the
//! scales and minima of groups, then for every input the low four (or all eight) bits of the codes of all outputs, then for
//! every input their high bits. A kernel turns one input's codes into f32 weights in registers, by the arithmetic of
//! [`gguf::Block::weight`], and goes on as with any other weights.

use gguf::{Block, BlockFormat, Shape};
use half::f16;

use super::pack::{PANEL, PackTooLarge, reserve};

/// One cache line of a panel block.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct ByteLine([u8; 64]);

/// Where the parts of a panel block begin, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) shape: Shape,
    /// Half-precision minima, `[output]`; scales are in front of them.
    pub(crate) minimum: usize,
    /// Scales of groups, `[group][output]`, one signed byte each.
    pub(crate) scales: usize,
    /// Minima of groups, likewise.
    pub(crate) minima: usize,
    /// Bits of codes, for each input [`Layout::low_bytes`]: bytes of 8-bit codes, `[output]`; of others 16 bytes, whose low
    /// halves are the first 16 outputs' and whose high halves the others'.
    pub(crate) low: usize,
    /// Further bits of codes, for each input [`Layout::high_bytes`]: those of output 0 are the lowest.
    pub(crate) high: usize,
    /// Bytes of the whole panel block: whole lines.
    pub(crate) bytes: usize,
}

impl Layout {
    /// That of a format.
    pub(crate) const fn of(format: BlockFormat) -> Layout {
        let shape = format.shape();
        let minimum = 2 * PANEL;
        let scales = minimum + if shape.minimum { 2 * PANEL } else { 0 };
        let nested = if shape.nested {
            shape.groups() * PANEL
        } else {
            0
        };
        let minima = scales + nested;
        let low = minima + if shape.minimum { nested } else { 0 };
        let high = low + shape.inputs * Layout::low_bytes(shape);
        let bytes = high + shape.inputs * Layout::high_bytes(shape);
        assert!(bytes.is_multiple_of(64), "whole lines");
        Layout {
            shape,
            minimum,
            scales,
            minima,
            low,
            high,
            bytes,
        }
    }

    /// Bytes of the low bits of one input's codes.
    pub(crate) const fn low_bytes(shape: Shape) -> usize {
        if shape.bits == 8 { PANEL } else { PANEL / 2 }
    }

    /// Bytes of the high bits of one input's codes.
    pub(crate) const fn high_bytes(shape: Shape) -> usize {
        match shape.bits {
            5 => PANEL / 8,
            6 => PANEL / 4,
            _ => 0,
        }
    }
}

/// A format that a kernel is compiled for.
pub(crate) trait Format {
    /// Its panel blocks.
    const LAYOUT: Layout;
}

macro_rules! formats {
    ($($name:ident),*) => {
        $(
            pub(crate) struct $name;
            impl Format for $name {
                const LAYOUT: Layout = Layout::of(BlockFormat::$name);
            }
        )*
    };
}
formats!(Q8_0, Q5_0, Q4_0, Q4_1, Q4K, Q5K, Q6K);

/// Runs a body with a type alias for the format that a value names.
macro_rules! with_format {
    ($format:expr, $alias:ident => $body:expr) => {
        with_format!(@each $format, $alias, $body; Q8_0, Q5_0, Q4_0, Q4_1, Q4K, Q5K, Q6K)
    };
    (@each $format:expr, $alias:ident, $body:expr; $($name:ident),*) => {
        match $format {
            $(gguf::BlockFormat::$name => {
                type $alias = $crate::cpu::kernels::blocks::$name;
                $body
            })*
        }
    };
}
pub(crate) use with_format;

/// Panels of one format, `[panel][block]` panel blocks.
pub(crate) struct BlockPanels {
    format: BlockFormat,
    layout: Layout,
    /// Blocks of one output.
    blocks: usize,
    lines: Vec<ByteLine>,
}

impl BlockPanels {
    /// Panels of zeros.
    pub(crate) fn zeros(
        format: BlockFormat,
        inputs: usize,
        panels: usize,
        too_large: PackTooLarge,
    ) -> Result<BlockPanels, PackTooLarge> {
        let layout = Layout::of(format);
        assert!(
            inputs.is_multiple_of(layout.shape.inputs),
            "{inputs} inputs are whole blocks"
        );
        let blocks = inputs / layout.shape.inputs;
        let len =
            (blocks.checked_mul(layout.bytes / 64)).and_then(|lines| lines.checked_mul(panels));
        let lines = reserve(len, ByteLine([0; 64]), too_large)?;
        Ok(BlockPanels {
            format,
            layout,
            blocks,
            lines,
        })
    }

    pub(crate) fn format(&self) -> BlockFormat {
        self.format
    }

    /// Bytes of all panels.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// The first panel block of a panel, with those of all panels behind it.
    pub(crate) fn panel(&self, panel: usize) -> *const u8 {
        let first = panel * self.blocks * self.layout.bytes / 64;
        self.lines[first..].as_ptr().cast()
    }

    fn block(&self, panel: usize, block: usize) -> PanelBlock<'_> {
        let lines = self.layout.bytes / 64;
        let first = (panel * self.blocks + block) * lines;
        PanelBlock {
            layout: self.layout,
            lines: &self.lines[first..first + lines],
        }
    }

    /// The weight from input `k` to an output of a panel.
    pub(crate) fn at(&self, panel: usize, output: usize, k: usize) -> f32 {
        let inputs = self.layout.shape.inputs;
        let block = self.block(panel, k / inputs);
        let scales = block.scale(k % inputs / self.layout.shape.group, output);
        block.weight(k % inputs, output, scales)
    }

    /// The panel blocks of a panel, in order.
    pub(crate) fn blocks(&self, panel: usize) -> impl Iterator<Item = PanelBlock<'_>> {
        (0..self.blocks).map(move |block| self.block(panel, block))
    }

    /// The panels, to be written one by one.
    pub(crate) fn panels_mut(&mut self) -> impl Iterator<Item = BlockPanel<'_>> {
        let (layout, lines) = (self.layout, self.blocks * self.layout.bytes / 64);
        let format = self.format;
        let all = self.lines.chunks_exact_mut(lines.max(1));
        all.map(move |lines| BlockPanel {
            format,
            layout,
            lines,
        })
    }
}

/// One panel, to be written.
pub(crate) struct BlockPanel<'a> {
    pub(crate) format: BlockFormat,
    layout: Layout,
    lines: &'a mut [ByteLine],
}

impl BlockPanel<'_> {
    /// Writes the n-th block of an output, once.
    pub(crate) fn set(&mut self, n: usize, output: usize, from: &Block) {
        let Layout {
            shape,
            minimum,
            scales,
            minima,
            low,
            high,
            bytes,
        } = self.layout;
        let lines = &mut self.lines[n * bytes / 64..(n + 1) * bytes / 64];
        let mut put = |at: usize, byte: u8| lines[at / 64].0[at % 64] = byte;
        for (i, byte) in from.scale.to_le_bytes().into_iter().enumerate() {
            put(2 * output + i, byte);
        }
        if shape.minimum {
            for (i, byte) in from.minimum.to_le_bytes().into_iter().enumerate() {
                put(minimum + 2 * output + i, byte);
            }
        }
        if shape.nested {
            for group in 0..shape.groups() {
                put(scales + group * PANEL + output, from.scales[group] as u8);
                if shape.minimum {
                    put(minima + group * PANEL + output, from.minima[group] as u8);
                }
            }
        }
        let (low_bytes, high_bytes) = (Layout::low_bytes(shape), Layout::high_bytes(shape));
        let (lows, highs) = lines[low / 64..].split_at_mut((high - low) / 64);
        let codes = &from.codes[..shape.inputs];
        if shape.bits == 8 {
            return each(lows, low_bytes, codes, |to, code| to[output] = code);
        }
        let (at, shift) = (output % 16, 4 * (output / 16));
        each(lows, low_bytes, codes, |to, code| {
            to[at] |= (code & 15) << shift;
        });
        if high_bytes > 0 {
            let bit = output * (shape.bits as usize - 4);
            let (at, shift) = (bit / 8, bit % 8);
            each(highs, high_bytes, codes, |to, code| {
                to[at] |= (code >> 4) << shift;
            });
        }
    }
}

/// Shows the `width` bytes of every input together with its code.
#[inline(always)]
fn each(lines: &mut [ByteLine], width: usize, codes: &[u8], put: impl Fn(&mut [u8], u8)) {
    for (line, codes) in lines.iter_mut().zip(codes.chunks(64 / width)) {
        for (to, code) in line.0.chunks_exact_mut(width).zip(codes) {
            put(to, *code);
        }
    }
}

/// One panel block, read without vectors.
pub(crate) struct PanelBlock<'a> {
    layout: Layout,
    lines: &'a [ByteLine],
}

impl PanelBlock<'_> {
    pub(crate) fn shape(&self) -> Shape {
        self.layout.shape
    }

    fn byte(&self, at: usize) -> u8 {
        self.lines[at / 64].0[at % 64]
    }

    fn half(&self, at: usize) -> f32 {
        f16::from_le_bytes([self.byte(at), self.byte(at + 1)]).to_f32()
    }

    /// Scale and minimum of a group of one output.
    pub(crate) fn scale(&self, group: usize, output: usize) -> [f32; 2] {
        let Layout {
            shape,
            minimum,
            scales,
            minima,
            ..
        } = self.layout;
        let mut scale = self.half(2 * output);
        let mut least = 0.0;
        if shape.minimum {
            least = self.half(minimum + 2 * output);
        }
        if shape.nested {
            scale *= f32::from(self.byte(scales + group * PANEL + output) as i8);
            if shape.minimum {
                least *= f32::from(self.byte(minima + group * PANEL + output) as i8);
            }
        }
        [scale, least]
    }

    /// The weight from input `k` of the block to one output, with the scale and minimum of their group.
    pub(crate) fn weight(&self, k: usize, output: usize, [scale, minimum]: [f32; 2]) -> f32 {
        let Layout {
            shape, low, high, ..
        } = self.layout;
        let low = low + k * Layout::low_bytes(shape);
        let code = if shape.bits == 8 {
            i32::from(self.byte(low + output) as i8)
        } else {
            let low = self.byte(low + output % 16) >> (4 * (output / 16)) & 15;
            let bits = shape.bits as usize - 4;
            let bit = output * bits;
            let high = match bits {
                0 => 0,
                bits => {
                    let byte = self.byte(high + k * Layout::high_bytes(shape) + bit / 8);
                    byte >> (bit % 8) & ((1 << bits) - 1)
                }
            };
            i32::from(low | high << 4) - shape.offset
        };
        let product = scale * code as f32;
        if shape.minimum {
            product - minimum
        } else {
            product
        }
    }
}

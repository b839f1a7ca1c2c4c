//! Weights as the matrix unit takes them: bf16, packed at load as `kernels/matmul.cuh` says.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use half::bf16;

use super::driver::{CudaError, Gpu, Memory};
use super::parameters::Then;
use crate::device::Matrix;
use crate::load::{Stored, TensorData};

/// Outputs of a tile, and inputs of a chunk.
const TILE: usize = 16;
const CHUNK: usize = 32;
/// Numbers of one chunk of one tile.
const TILE_NUMBERS: usize = TILE * CHUNK;
/// Outputs and inputs are padded with zeros to whole multiples of it.
const WHOLE: usize = 128;
/// Numbers that are packed before they are sent: 64 MiB.
const AT_ONCE: usize = 32 << 20;

/// How many bytes a packed weight takes.
pub(super) fn packed_bytes(outputs: usize, inputs: usize) -> usize {
    outputs.next_multiple_of(WHOLE) * inputs.next_multiple_of(WHOLE) * 2
}

/// A packed weight on the device.
pub(super) struct Weight {
    memory: Memory,
    /// Outputs, padding included.
    pub(super) outputs: usize,
    /// Chunks of inputs, padding included.
    pub(super) chunks: u32,
}

impl Weight {
    /// Packs matrices of equal inputs, side by side, as one linear layer whose sums become what `then` says; with
    /// [`Then::Turn`] the outputs are heads of `head_dim`.
    pub(super) fn load(
        gpu: &Arc<Gpu>,
        parts: &[Matrix<'_>],
        then: Then,
        head_dim: usize,
    ) -> Result<Weight, CudaError> {
        let inputs = parts.first().map_or(0, |part| part.inputs);
        let outputs: usize = parts.iter().map(|part| part.outputs).sum();
        let padded = outputs.next_multiple_of(WHOLE);
        let chunks = inputs.next_multiple_of(WHOLE) / CHUNK;
        let memory = gpu.memory(packed_bytes(outputs, inputs))?;
        let tile_numbers = chunks * TILE_NUMBERS;
        let tiles = padded / TILE;
        let each = (AT_ONCE / tile_numbers).clamp(1, tiles);
        let mut packed = vec![0_u16; each * tile_numbers];
        for first in (0..tiles).step_by(each) {
            let count = each.min(tiles - first);
            let packed = &mut packed[..count * tile_numbers];
            packed.fill(0);
            let place = |output| source(output, outputs, then, head_dim);
            pack(parts, packed, first, tile_numbers, &place);
            memory.write(first * tile_numbers * 2, packed)?;
        }
        for part in parts {
            part.data.release(0, part.outputs * part.inputs);
        }
        Ok(Weight {
            memory,
            outputs: padded,
            chunks: chunks as u32,
        })
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Numbers in a row of activations that it reads.
    pub(super) fn stride(&self) -> u32 {
        self.chunks * CHUNK as u32
    }
}

/// A table of so many numbers as the device keeps it.
pub(super) fn upload_bf16(
    gpu: &Arc<Gpu>,
    data: TensorData<'_>,
    elements: usize,
) -> Result<Memory, CudaError> {
    let memory = gpu.memory(elements * 2)?;
    let mut row = vec![0; elements.min(AT_ONCE)];
    for first in (0..elements).step_by(AT_ONCE) {
        let count = AT_ONCE.min(elements - first);
        read(data, first, &mut row[..count]);
        memory.write(first * 2, &row[..count])?;
        data.release(first, count);
    }
    Ok(memory)
}

/// A vector of f32.
pub(super) fn upload_f32(gpu: &Arc<Gpu>, data: &[f32]) -> Result<Memory, CudaError> {
    let memory = gpu.memory(size_of_val(data))?;
    memory.write(0, data)?;
    Ok(memory)
}

/// Which output of the layer lies at a place of the packed weight; none where there is padding.
fn source(place: usize, outputs: usize, then: Then, head_dim: usize) -> Option<usize> {
    let (tile, r) = (place / TILE, place % TILE);
    let output = match then {
        Then::Store | Then::Add => place,
        // Tiles of 8 gates and the 8 ups of the same numbers; all gates lie before all ups.
        Then::Gate => {
            let at = tile * 8 + r % 8;
            if at >= outputs / 2 {
                return None;
            }
            at + if r < 8 { 0 } else { outputs / 2 }
        }
        // Tiles of 8 dimensions from the lower half of a head, and their partners from the upper half.
        Then::Turn => {
            let each = head_dim / TILE;
            let at = tile % each * 8 + r % 8;
            tile / each * head_dim + at + if r < 8 { 0 } else { head_dim / 2 }
        }
    };
    (output < outputs).then_some(output)
}

/// Packs the tiles from `first` on, on all processors.
fn pack(
    parts: &[Matrix<'_>],
    packed: &mut [u16],
    first: usize,
    tile_numbers: usize,
    source: &(dyn Fn(usize) -> Option<usize> + Sync),
) {
    let tiles = packed.len() / tile_numbers;
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let each = tiles.div_ceil(threads);
    thread::scope(|scope| {
        for (n, packed) in packed.chunks_mut(each * tile_numbers).enumerate() {
            scope.spawn(move || {
                let mut row = vec![0; parts.first().map_or(0, |part| part.inputs)];
                for (t, tile) in packed.chunks_mut(tile_numbers).enumerate() {
                    let place = (first + n * each + t) * TILE;
                    for r in 0..TILE {
                        if let Some(output) = source(place + r) {
                            read_output(parts, output, &mut row);
                            pack_row(&row, r, tile);
                        }
                    }
                }
            });
        }
    });
}

/// Puts row `r` of a tile where its lanes look for it.
fn pack_row(row: &[u16], r: usize, tile: &mut [u16]) {
    for (chunk, inputs) in row.chunks(CHUNK).enumerate() {
        for (k, &number) in inputs.iter().enumerate() {
            let (lane, step) = (r % 8 * 4 + k / 8, k / 4 % 2);
            let pair = r / 8 + k / 2 % 2 * 2;
            tile[chunk * TILE_NUMBERS + step * 256 + lane * 8 + pair * 2 + k % 2] = number;
        }
    }
}

/// One output of matrices that lie side by side.
fn read_output(parts: &[Matrix<'_>], mut output: usize, row: &mut [u16]) {
    for part in parts {
        if output < part.outputs {
            return read(part.data, part.order.stored(output) * part.inputs, row);
        }
        output -= part.outputs;
    }
}

/// Elements from `first` on, as bf16.
fn read(data: TensorData<'_>, first: usize, to: &mut [u16]) {
    match data.stored {
        Stored::Bf16 => {
            let (words, _) = data.bytes.as_chunks::<2>();
            for (to, word) in to.iter_mut().zip(&words[first..]) {
                *to = u16::from_le_bytes(*word);
            }
        }
        Stored::F16 => {
            let (words, _) = data.bytes.as_chunks::<2>();
            for (to, word) in to.iter_mut().zip(&words[first..]) {
                *to = bf16::from_f32(half::f16::from_le_bytes(*word).to_f32()).to_bits();
            }
        }
        Stored::F32 => {
            let (words, _) = data.bytes.as_chunks::<4>();
            for (to, word) in to.iter_mut().zip(&words[first..]) {
                *to = bf16::from_f32(f32::from_le_bytes(*word)).to_bits();
            }
        }
        Stored::Blocks(_) => {
            let mut wide = vec![0.0; to.len()];
            data.read(first, &mut wide);
            for (to, x) in to.iter_mut().zip(wide) {
                *to = bf16::from_f32(x).to_bits();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::RowOrder;

    fn matrix(bytes: &[u8], outputs: usize, inputs: usize) -> Matrix<'_> {
        let data = TensorData {
            stored: Stored::Bf16,
            bytes,
            file: None,
        };
        Matrix {
            name: "matrix",
            data,
            order: RowOrder::Halves,
            outputs,
            inputs,
        }
    }

    /// Where `kernels/rows.cu` looks for a number of a packed weight.
    fn place(output: usize, k: usize, chunks: usize) -> usize {
        let (r, lane_input) = (output % 16, k % 32);
        let (t, step) = (lane_input / 8, lane_input / 4 % 2);
        let pair = r / 8 + lane_input / 2 % 2 * 2;
        (output / 16 * chunks + k / 32) * 512
            + step * 256
            + (r % 8 * 4 + t) * 8
            + pair * 2
            + lane_input % 2
    }

    #[test]
    fn every_number_lies_where_the_kernels_look_for_it() {
        let (outputs, inputs, chunks) = (40, 72, 4);
        let numbers: Vec<u16> = (1..).take(outputs * inputs).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let (one, two) = bytes.split_at(24 * inputs * 2);
        let parts = [matrix(one, 24, inputs), matrix(two, 16, inputs)];
        let mut packed = vec![0; 48 / 16 * chunks * 512];
        let whole = |output| source(output, outputs, Then::Store, 0);
        pack(&parts, &mut packed, 0, chunks * 512, &whole);
        for output in 0..outputs {
            for k in 0..inputs {
                let number = packed[place(output, k, chunks)];
                assert_eq!(number, numbers[output * inputs + k], "{output}, {k}");
            }
        }
        let there = packed.iter().filter(|&&number| number != 0).count();
        assert_eq!(there, outputs * inputs);
    }

    #[test]
    fn gates_meet_their_ups_and_halves_of_heads_each_other() {
        // 24 gates and 24 ups: three tiles.
        let gate = |place| source(place, 48, Then::Gate, 0);
        assert_eq!(
            [gate(0), gate(8), gate(17), gate(25)],
            [0, 24, 9, 33].map(Some)
        );
        assert_eq!([gate(48), gate(56)], [None, None]);
        // Heads of 48: three tiles each.
        let turn = |place| source(place, 96, Then::Turn, 48);
        assert_eq!(
            [turn(0), turn(8), turn(16), turn(47)],
            [0, 24, 8, 47].map(Some)
        );
        assert_eq!([turn(48), turn(56), turn(96)], [Some(48), Some(72), None]);
        let mut every: Vec<usize> = (0..96).filter_map(turn).collect();
        every.sort_unstable();
        assert_eq!(every, (0..96).collect::<Vec<_>>());
    }
}

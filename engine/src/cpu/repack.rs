//! From a checkpoint's matrices to panels and tables, once, at load.
//!
//! The threads that will compute share the panels of a matrix. Each gives the memory behind a part of the file back as soon as its
//! weights are made: what a model takes while it is loaded is what it takes afterwards, and a few megabytes.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use gguf::{BlockFormat, quantise_q4_0, quantise_q8_0};
use half::bf16;

use super::kernels::{PANEL, PackedWeight, Packing, Panel, Pool};
use super::{Table, TableWeights};
use crate::device::Matrix;
use crate::load::{AT_ONCE, LoadError, Stored};
use crate::options::WeightDtype;

/// How a matrix lies in memory if the user wants it in a way.
fn packing(matrix: &Matrix<'_>, dtype: WeightDtype) -> Packing {
    let quantised = |format: BlockFormat| match matrix.inputs % format.shape().inputs {
        0 => Packing::Blocks(format),
        _ => Packing::F32,
    };
    match (dtype, matrix.data.stored) {
        (WeightDtype::F32, _) | (WeightDtype::AsStored, Stored::F32 | Stored::F16) => Packing::F32,
        (WeightDtype::Bf16, _) | (WeightDtype::AsStored, Stored::Bf16) => Packing::Bf16,
        (WeightDtype::Q8_0, _) => quantised(BlockFormat::Q8_0),
        (WeightDtype::Q4_0, _) => quantised(BlockFormat::Q4_0),
        (WeightDtype::AsStored, Stored::Blocks(format)) => Packing::Blocks(format),
    }
}

/// Packs matrices of equal inputs, side by side.
pub(super) fn weight(
    pool: &Pool,
    parts: &[Matrix<'_>],
    dtype: WeightDtype,
) -> Result<PackedWeight, LoadError> {
    let inputs = parts.first().map_or(0, |part| part.inputs);
    let packings: Vec<_> = parts
        .iter()
        .map(|part| (packing(part, dtype), part.outputs))
        .collect();
    let mut packed = PackedWeight::side_by_side(inputs, &packings)?;
    let mut panels: Vec<Panel<'_>> = packed.panels_mut().collect();
    let row = parts.first().map_or(1, |part| part.data.bytes_of(inputs));
    let each = (AT_ONCE / (PANEL * row).max(1)).max(1);
    let shares: Vec<_> = panels.chunks_mut(each).map(Mutex::new).collect();
    let failed = Mutex::new(None);
    pool.run(shares.len(), &|n| {
        let mut share = shares[n].lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = fill(&mut share, parts) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    drop(shares);
    drop(panels);
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(packed),
    }
}

/// Fills neighbouring panels.
fn fill(panels: &mut [Panel<'_>], parts: &[Matrix<'_>]) -> Result<(), LoadError> {
    let mut numbers = Vec::new();
    for panel in panels.iter_mut() {
        let outputs = panel.first..panel.first + panel.outputs;
        for_each_part(parts, outputs, |part, rows, first| {
            // Where in the panel the first of the rows comes.
            let lane = first + rows.start - panel.first;
            let Some(format) = panel.blocks() else {
                numbers.resize(rows.len() * part.inputs, 0.0);
                let each = numbers.chunks_exact_mut(part.inputs);
                each.zip(rows.clone())
                    .try_for_each(|(row, n)| read_row(part, n, row))?;
                panel.set(lane..lane + rows.len(), |n, k| numbers[n * part.inputs + k]);
                return Ok(());
            };
            for (n, lane) in rows.zip(lane..) {
                let bytes = row_in_blocks(part, n, format)?;
                for (b, block) in bytes.chunks_exact(format.bytes()).enumerate() {
                    panel.set_block(lane, b, &format.unpack(block));
                }
            }
            Ok(())
        })?;
    }
    if let (Some(first), Some(last)) = (panels.first(), panels.last()) {
        let outputs = first.first..last.first + last.outputs;
        for_each_part(parts, outputs, |part, rows, _| {
            release(part, rows);
            Ok(())
        })?;
    }
    Ok(())
}

/// Shows the parts that outputs come from, with their rows of it and the first output of the part.
fn for_each_part(
    parts: &[Matrix<'_>],
    outputs: Range<usize>,
    mut show: impl FnMut(&Matrix<'_>, Range<usize>, usize) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let mut first = 0;
    for part in parts {
        let begin = outputs.start.max(first);
        let end = outputs.end.min(first + part.outputs);
        if begin < end {
            show(part, begin - first..end - first, first)?;
        }
        first += part.outputs;
    }
    Ok(())
}

/// Gives the memory behind rows of a matrix back.
fn release(part: &Matrix<'_>, rows: Range<usize>) {
    let stored = rows.map(|n| part.order.stored(n));
    let ends = stored.fold(None, |ends, n| {
        let (least, most) = ends.unwrap_or((n, n));
        Some((n.min(least), n.max(most)))
    });
    if let Some((least, most)) = ends {
        let count = (most - least + 1) * part.inputs;
        part.data.release(least * part.inputs, count);
    }
}

/// The bytes of row `n` of a matrix as they are stored.
fn stored_row<'a>(matrix: &Matrix<'a>, n: usize) -> Result<&'a [u8], LoadError> {
    let first = matrix.order.stored(n) * matrix.inputs;
    let bytes = matrix.data.part(first, matrix.inputs);
    if let Stored::Blocks(format) = matrix.data.stored {
        let mut blocks = bytes.chunks_exact(format.bytes());
        if !blocks.all(|block| format.is_finite(block)) {
            return Err(LoadError::Scale {
                name: matrix.name.to_owned(),
            });
        }
    }
    Ok(bytes)
}

/// Row `n` of a matrix as numbers.
fn read_row(matrix: &Matrix<'_>, n: usize, to: &mut [f32]) -> Result<(), LoadError> {
    stored_row(matrix, n)?;
    matrix.data.read(matrix.order.stored(n) * matrix.inputs, to);
    Ok(())
}

/// The blocks of row `n` of a matrix, quantised unless it is stored in this format.
fn row_in_blocks<'a>(
    matrix: &Matrix<'a>,
    n: usize,
    format: BlockFormat,
) -> Result<Cow<'a, [u8]>, LoadError> {
    if matrix.data.stored == Stored::Blocks(format) {
        return stored_row(matrix, n).map(Cow::Borrowed);
    }
    let mut row = vec![0.0; matrix.inputs];
    read_row(matrix, n, &mut row)?;
    let mut bytes = Vec::with_capacity(row.len() / format.shape().inputs * format.bytes());
    for block in row.as_chunks().0 {
        let quantised = match format {
            BlockFormat::Q8_0 => quantise_q8_0(block).map(|block| bytes.extend(block)),
            BlockFormat::Q4_0 => quantise_q4_0(block).map(|block| bytes.extend(block)),
            _ => None,
        };
        let format = format.name();
        quantised.ok_or(LoadError::Quantise { format })?;
    }
    Ok(Cow::Owned(bytes))
}

/// An embedding table.
pub(super) fn table(table: &Matrix<'_>, dtype: WeightDtype) -> Result<Table, LoadError> {
    let numbers = table.outputs * table.inputs;
    let mut weights = match packing(table, dtype) {
        Packing::F32 => TableWeights::F32(Vec::with_capacity(numbers)),
        Packing::Bf16 => TableWeights::Bf16(Vec::with_capacity(numbers)),
        Packing::Blocks(format) => {
            let bytes = numbers / format.shape().inputs * format.bytes();
            TableWeights::Blocks(format, Vec::with_capacity(bytes))
        }
    };
    let each = (AT_ONCE / table.data.bytes_of(table.inputs).max(1)).max(1);
    let mut row = vec![0.0; table.inputs];
    for first in (0..table.outputs).step_by(each) {
        let rows = first..(first + each).min(table.outputs);
        for n in rows.clone() {
            match &mut weights {
                TableWeights::F32(weights) => {
                    read_row(table, n, &mut row)?;
                    weights.extend_from_slice(&row);
                }
                TableWeights::Bf16(weights) => {
                    read_row(table, n, &mut row)?;
                    weights.extend(row.iter().copied().map(bf16::from_f32));
                }
                TableWeights::Blocks(format, bytes) => {
                    bytes.extend_from_slice(&row_in_blocks(table, n, *format)?);
                }
            }
        }
        release(table, rows);
    }
    Ok(Table {
        width: table.inputs,
        weights,
    })
}

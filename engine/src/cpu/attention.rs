//! Attention of tree rows over their own paths.
//!
//! A row sees the committed positions below it and then its ancestors in the scratch region, in path order; in a layer with
//! a window it sees the last of these only. Every score is one sequential sum over head_dim; the softmax sum runs in 16 lanes by absolute position with one fixed
//! reduction; the weighted sum of values is sequential over absolute positions. None of it depends on where a
//! key lies, on the rows computed beside it or on how positions came in. Whole pages before the windows of a block's rows are
//! left out; what else is before a row's own window has the weight zero, which changes no bit of a sum that begins with it.

use std::cell::RefCell;
use std::ops::Range;

use decode::math;

use crate::cpu::cache::{LayerCache, Layout};
use crate::cpu::kernels::isa::per_isa;
use crate::cpu::kernels::{Output, Rows};
use crate::cpu::rowwise::{reduce, soft_cap_body};
use crate::device::Attends;
use crate::sequence::PAGE;
use crate::step::Sight;

/// Queries that share one pass over the keys and values: with four, all sums of a block stay in registers.
const BLOCK: usize = 4;

/// One key/value head of some rows of one sequence, in one layer.
pub(crate) struct HeadTask<'a> {
    pub(crate) layout: Layout,
    pub(crate) cache: &'a LayerCache,
    /// Pages of the sequence's text.
    pub(crate) pages: &'a [u32],
    /// Pages of its scratch region.
    pub(crate) scratch: &'a [u32],
    /// Key/value head.
    pub(crate) head: usize,
    /// Query heads that share it.
    pub(crate) group: usize,
    /// Rotated queries, `[row][head][head_dim]` from column 0.
    pub(crate) queries: Rows<'a>,
    /// The rows of the step to compute; `sights` is indexed by the same numbers.
    pub(crate) rows: Range<usize>,
    pub(crate) sights: &'a [Sight],
    pub(crate) paths: &'a [u16],
    /// How the layer attends.
    pub(crate) how: &'a Attends,
}

/// A thread's working memory: scores, transposed queries and the sums of a block.
#[derive(Default)]
struct Work {
    scores: Vec<f32>,
    queries: Vec<f32>,
    sums: Vec<f32>,
}

thread_local! {
    static WORK: RefCell<Work> = RefCell::new(Work::default());
}

per_isa! {
    /// Attends every row of the task and writes `out[row][head * head_dim ..]` for the task's query heads.
    pub(crate) fn attend(task: &HeadTask<'_>, out: &Output<'_>) = attend_body;
}

#[inline(always)]
fn attend_body(task: &HeadTask<'_>, out: &Output<'_>) {
    // Taken out and put back: code inside a `with` closure would be compiled without the instruction set.
    let mut work = WORK.take();
    let queries = task.rows.len() * task.group;
    let mut q = 0;
    while q < queries {
        if queries - q >= BLOCK {
            block::<BLOCK>(task, q, &mut work, out);
            q += BLOCK;
        } else {
            block::<1>(task, q, &mut work, out);
            q += 1;
        }
    }
    WORK.set(work);
}

/// `Q` consecutive queries, ordered by row and then by head within the group.
#[inline(always)]
fn block<const Q: usize>(task: &HeadTask<'_>, first: usize, work: &mut Work, out: &Output<'_>) {
    let dim = task.layout.head_dim;
    let at: [(usize, usize); Q] = core::array::from_fn(|i| {
        let query = first + i;
        (
            task.rows.start + query / task.group,
            task.head * task.group + query % task.group,
        )
    });
    let sights: [&Sight; Q] = core::array::from_fn(|i| &task.sights[at[i].0]);
    let lengths: [usize; Q] = core::array::from_fn(|i| sights[i].committed + sights[i].path.len());
    let longest = lengths.iter().fold(0, |a, b| a.max(*b));
    // The first position that each query sees, and the first of the first page that any of them does.
    let firsts = lengths.map(|length| length.saturating_sub(task.how.window));
    let start = firsts.iter().fold(usize::MAX, |a, b| a.min(*b)) / PAGE * PAGE;
    let stride = longest.next_multiple_of(PAGE) + PAGE;
    work.scores.resize((Q * stride).max(work.scores.len()), 0.0);
    work.queries.resize((Q * dim).max(work.queries.len()), 0.0);
    work.sums
        .resize((Q * task.layout.padded_dim).max(work.sums.len()), 0.0);
    let Work {
        scores,
        queries,
        sums,
    } = work;
    let queries = &mut queries[..Q * dim];
    for (i, (row, head)) in at.iter().enumerate() {
        let query = &task.queries.row(*row)[head * dim..(head + 1) * dim];
        for (d, x) in query.iter().enumerate() {
            queries[d * Q + i] = *x;
        }
    }

    let committed = sights.iter().fold(0, |a, s| a.max(s.committed));
    let pages = task.pages[..committed.div_ceil(PAGE)].iter().enumerate();
    for (p, page) in pages.skip(start / PAGE) {
        let sums = page_scores::<Q>(task, *page, queries);
        for (i, sums) in sums.iter().enumerate() {
            scores[i * stride + p * PAGE..i * stride + (p + 1) * PAGE].copy_from_slice(sums);
        }
    }
    for (p, page) in task.scratch.iter().enumerate() {
        let here = |slot: &u16| usize::from(*slot) / PAGE == p;
        if !sights
            .iter()
            .any(|s| task.paths[s.path.clone()].iter().any(here))
        {
            continue;
        }
        let sums = page_scores::<Q>(task, *page, queries);
        for (i, sums) in sums.iter().enumerate() {
            for (depth, slot) in task.paths[sights[i].path.clone()].iter().enumerate() {
                if here(slot) {
                    scores[i * stride + sights[i].committed + depth] =
                        sums[usize::from(*slot) % PAGE];
                }
            }
        }
    }
    let mut norms = [0.0_f32; Q];
    for (i, norm) in norms.iter_mut().enumerate() {
        let scores = &mut scores[i * stride..(i + 1) * stride];
        scores[start..firsts[i]].fill(f32::NEG_INFINITY);
        *norm = softmax(&mut scores[start..], lengths[i] - start);
    }

    sums.fill(0.0);
    let common = sights.iter().fold(usize::MAX, |a, s| a.min(s.committed));
    if task.layout.padded_dim.is_multiple_of(64) {
        weigh::<Q, 4>(task, &sights, start..common, scores, stride, sums);
    } else if task.layout.padded_dim.is_multiple_of(48) {
        weigh::<Q, 3>(task, &sights, start..common, scores, stride, sums);
    } else if task.layout.padded_dim.is_multiple_of(32) {
        weigh::<Q, 2>(task, &sights, start..common, scores, stride, sums);
    } else {
        weigh::<Q, 1>(task, &sights, start..common, scores, stride, sums);
    }
    for (i, (row, head)) in at.iter().enumerate() {
        let to = out.slice(*row, head * dim, dim);
        let from = &sums[i * task.layout.padded_dim..][..dim];
        for (y, x) in to.iter_mut().zip(from) {
            *y = x * norms[i];
        }
    }
}

/// Scaled scores of `Q` queries (`[head_dim][Q]`) against the sixteen keys of a page.
#[inline(always)]
fn page_scores<const Q: usize>(
    task: &HeadTask<'_>,
    page: u32,
    queries: &[f32],
) -> [[f32; PAGE]; Q] {
    let keys = &task.cache.keys[task.layout.keys(page, task.head)];
    let mut sums = [[0.0_f32; PAGE]; Q];
    for (key, query) in keys
        .as_chunks::<PAGE>()
        .0
        .iter()
        .zip(queries.as_chunks::<Q>().0)
    {
        for i in 0..Q {
            for l in 0..PAGE {
                sums[i][l] = query[i].mul_add(key[l], sums[i][l]);
            }
        }
    }
    for sums in &mut sums {
        for sum in &mut *sums {
            *sum *= task.how.scale;
        }
        if let Some(cap) = task.how.cap {
            soft_cap_body(sums, cap);
        }
    }
    sums
}

/// Turns `len` scores into exponentials in place, pads with zeros, and returns one over their sum.
///
/// Lane l sums the positions that are l modulo 16, ascending; lanes are then added in a fixed tree.
#[inline(always)]
fn softmax(scores: &mut [f32], len: usize) -> f32 {
    let padded = len.next_multiple_of(PAGE);
    scores[len..padded].fill(f32::NEG_INFINITY);
    let chunks = scores[..padded].as_chunks_mut::<PAGE>().0;
    let mut most = [f32::NEG_INFINITY; PAGE];
    for chunk in &*chunks {
        for l in 0..PAGE {
            most[l] = if chunk[l] > most[l] {
                chunk[l]
            } else {
                most[l]
            };
        }
    }
    let most = most
        .iter()
        .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    let mut sums = [0.0_f32; PAGE];
    for chunk in chunks {
        for l in 0..PAGE {
            chunk[l] = math::exp(chunk[l] - most);
            sums[l] += chunk[l];
        }
    }
    1.0 / reduce(sums)
}

/// Adds the weighted values from position `seen.start` on, which begins a page: those below `seen.end` for all queries at
/// once, the rest one query at a time, always ascending along the query's path. `V` vectors of 16 dimensions are summed together.
#[inline(always)]
fn weigh<const Q: usize, const V: usize>(
    task: &HeadTask<'_>,
    sights: &[&Sight; Q],
    seen: Range<usize>,
    scores: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    let (padded, start, common) = (task.layout.padded_dim, seen.start, seen.end);
    for from in (0..padded).step_by(16 * V) {
        let mut acc = [[[0.0_f32; 16]; V]; Q];
        let pages = task.pages[..common.div_ceil(PAGE)].iter().enumerate();
        for (p, page) in pages.skip(start / PAGE) {
            let values = &task.cache.values[task.layout.values(*page, task.head)];
            let count = PAGE.min(common - p * PAGE);
            let weights: [&[f32; PAGE]; Q] = core::array::from_fn(|i| {
                let start = i * stride + p * PAGE;
                scores[start..]
                    .first_chunk()
                    .expect("scores are padded to whole pages")
            });
            for (lane, value) in values.chunks_exact(padded).take(count).enumerate() {
                let value = vectors::<V>(&value[from..from + 16 * V]);
                for i in 0..Q {
                    add_weighted(&mut acc[i], weights[i][lane], value);
                }
            }
        }
        for i in 0..Q {
            let mut one = acc[i];
            for position in common.max(start)..sights[i].committed {
                let value = value_at::<V>(task, task.pages[position / PAGE], position % PAGE, from);
                add_weighted(&mut one, scores[i * stride + position], value);
            }
            let path = task.paths[sights[i].path.clone()].iter().enumerate();
            for (depth, slot) in path.skip(start.saturating_sub(sights[i].committed)) {
                let (page, lane) = (usize::from(*slot) / PAGE, usize::from(*slot) % PAGE);
                let value = value_at::<V>(task, task.scratch[page], lane, from);
                add_weighted(
                    &mut one,
                    scores[i * stride + sights[i].committed + depth],
                    value,
                );
            }
            for (v, one) in one.iter().enumerate() {
                let start = i * padded + from + 16 * v;
                sums[start..start + 16].copy_from_slice(one);
            }
        }
    }
}

#[inline(always)]
fn value_at<'a, const V: usize>(
    task: &HeadTask<'a>,
    page: u32,
    lane: usize,
    from: usize,
) -> &'a [[f32; 16]; V] {
    let start = task.layout.values(page, task.head).start + lane * task.layout.padded_dim + from;
    vectors::<V>(&task.cache.values[start..start + 16 * V])
}

#[inline(always)]
fn vectors<const V: usize>(values: &[f32]) -> &[[f32; 16]; V] {
    values
        .as_chunks::<16>()
        .0
        .first_chunk()
        .expect("the slice is V vectors long")
}

#[inline(always)]
fn add_weighted<const V: usize>(acc: &mut [[f32; 16]; V], weight: f32, value: &[[f32; 16]; V]) {
    for v in 0..V {
        for l in 0..16 {
            acc[v][l] = weight.mul_add(value[v][l], acc[v][l]);
        }
    }
}

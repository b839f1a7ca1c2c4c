//! The CPU: kernels in one order of arithmetic, and the operations of models in terms of them.

pub(crate) mod attention;
pub mod bench;
pub(crate) mod cache;
mod engine;
pub mod kernels;
mod repack;
pub(crate) mod rowwise;
mod zeroed;

use std::alloc::Layout;
use std::ops::Range;

use gguf::BlockFormat;
use half::bf16;

use crate::cpu::attention::{HeadTask, attend};
use crate::cpu::cache::KvCache;
use crate::cpu::kernels::{LaneKernels, Matmul, PANEL, PackedWeight, Rows, RowsMut};
use crate::cpu::rowwise::{
    add, add_silu, geglu, relu, rms_norm, rms_norm_heads, rotate, scale, soft_cap, swiglu,
};
use crate::cpu::zeroed::Zeroed;
use crate::device::{Attends, Device, Matrix};
use crate::identity::Arithmetic;
use crate::load::LoadError;
use crate::model::{AttentionShape, RopeTable};
use crate::options::WeightDtype;
use crate::sequence::Place;
use crate::step::{Plan, Queries};

pub use engine::CpuEngine;

/// Below this many multiply-adds a step's attention stays on the calling thread.
const WORTH_SHARING: usize = 100_000;

/// Activations, row-major: `rows` rows of `width` elements, each padded to whole panels.
pub(crate) struct Tensor {
    data: Zeroed,
    rows: usize,
    width: usize,
    stride: usize,
}

impl Tensor {
    /// Room for `most_rows` rows; none is there yet. Memory that is never written costs nothing.
    fn new(most_rows: usize, width: usize) -> Tensor {
        let stride = width.next_multiple_of(PANEL);
        let len = most_rows * stride;
        Tensor {
            data: Zeroed::new(len).unwrap_or_else(|| no_memory(len)),
            rows: 0,
            width,
            stride,
        }
    }

    /// All rows, padding included.
    fn as_rows(&self) -> Rows<'_> {
        Rows::new(&self.data, self.stride, self.rows)
    }

    /// The rows without padding.
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let rows = self.data.chunks_exact(self.stride).take(self.rows);
        rows.map(|row| &row[..self.width])
    }

    /// The rows without padding.
    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let rows = self.data.chunks_exact_mut(self.stride).take(self.rows);
        rows.map(|row| &mut row[..self.width])
    }

    /// Makes it a tensor of `rows` rows that are about to be written.
    fn resize(&mut self, rows: usize) -> &mut Tensor {
        assert!(rows * self.stride <= self.data.len(), "{rows} rows fit");
        self.rows = rows;
        self
    }
}

/// Ends as an allocation does that fails.
fn no_memory(numbers: usize) -> ! {
    let layout = Layout::array::<f32>(numbers).unwrap_or(Layout::new::<f32>());
    std::alloc::handle_alloc_error(layout)
}

/// An embedding table, `[vocab][width]`.
pub(crate) struct Table {
    width: usize,
    weights: TableWeights,
}

enum TableWeights {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Blocks(BlockFormat, Vec<u8>),
}

impl Table {
    /// Row `n`.
    fn read(&self, n: usize, to: &mut [f32]) {
        let row = n * self.width..(n + 1) * self.width;
        match &self.weights {
            TableWeights::F32(weights) => to.copy_from_slice(&weights[row]),
            TableWeights::Bf16(weights) => {
                for (to, stored) in to.iter_mut().zip(&weights[row]) {
                    *to = stored.to_f32();
                }
            }
            TableWeights::Blocks(format, bytes) => {
                let bytes_of = |elements| elements / format.shape().inputs * format.bytes();
                format.dequantise(&bytes[bytes_of(row.start)..bytes_of(row.end)], to);
            }
        }
    }
}

/// The device: kernels, and how many rows a step may have.
pub(crate) struct Cpu {
    kernels: LaneKernels,
    /// A stand-in for the lane matmul, set by tests that show what it is for.
    substitute: Option<Box<dyn Matmul>>,
    most_rows: usize,
}

impl Cpu {
    pub(crate) fn new(kernels: LaneKernels, most_rows: usize) -> Cpu {
        Cpu {
            kernels,
            substitute: None,
            most_rows,
        }
    }
}

impl Device for Cpu {
    type Weight = PackedWeight;
    type Table = Table;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Cache = KvCache;

    const ARITHMETIC: Arithmetic<'static> = Arithmetic {
        kernels: "lanes-16.panels.sequential-k.1",
        cache: "cache-f32",
    };

    fn weight(&self, parts: &[Matrix<'_>], dtype: WeightDtype) -> Result<PackedWeight, LoadError> {
        repack::weight(self.kernels.pool(), parts, dtype)
    }

    fn table(&self, table: Matrix<'_>, dtype: WeightDtype) -> Result<Table, LoadError> {
        repack::table(&table, dtype)
    }

    fn vector(&self, numbers: &[f32]) -> Vec<f32> {
        numbers.to_vec()
    }

    fn tensor(&self, width: usize) -> Tensor {
        Tensor::new(self.most_rows, width)
    }

    fn cache(
        &self,
        shape: AttentionShape,
        layers: usize,
        pages: usize,
        ropes: Vec<RopeTable>,
    ) -> Result<KvCache, LoadError> {
        KvCache::new(shape, layers, pages, ropes)
    }

    fn weight_bytes(&self, weight: &PackedWeight) -> usize {
        weight.bytes()
    }

    fn embed(&self, table: &Table, plan: &Plan, x: &mut Tensor) {
        for (row, x) in plan.rows.iter().zip(x.resize(plan.rows.len()).rows_mut()) {
            table.read(row.token as usize, x);
        }
    }

    fn embed_from_head(&self, head: &PackedWeight, plan: &Plan, x: &mut Tensor) {
        for (row, x) in plan.rows.iter().zip(x.resize(plan.rows.len()).rows_mut()) {
            for (k, x) in x.iter_mut().enumerate() {
                *x = head.at(row.token as usize, k);
            }
        }
    }

    fn norm(&self, x: &Tensor, gain: &Vec<f32>, eps: f32, y: &mut Tensor) {
        for (x, y) in x.rows().zip(y.resize(x.rows).rows_mut()) {
            rms_norm(self.kernels.isa(), x, gain, eps, y);
        }
    }

    fn norm_heads(&self, x: &mut Tensor, heads: Range<usize>, gain: &Vec<f32>, eps: f32) {
        let dim = gain.len();
        for x in x.rows_mut() {
            let heads = &mut x[heads.start * dim..heads.end * dim];
            rms_norm_heads(self.kernels.isa(), heads, gain, eps);
        }
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        for x in x.rows_mut() {
            scale(self.kernels.isa(), x, factor);
        }
    }

    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        for x in x.rows_mut() {
            soft_cap(self.kernels.isa(), x, cap);
        }
    }

    fn matmul(&self, x: &Tensor, w: &PackedWeight, y: &mut Tensor) {
        let y = y.resize(x.rows);
        let mut out = RowsMut::new(&mut y.data, y.stride, y.rows);
        match &self.substitute {
            None => self.kernels.matmul(x.as_rows(), w, &mut out),
            Some(other) => other.matmul(x.as_rows(), w, &mut out),
        }
    }

    fn rotate_and_store(&self, qkv: &mut Tensor, plan: &Plan, cache: &mut KvCache, how: &Attends) {
        let isa = self.kernels.isa();
        let KvCache {
            shape,
            layout,
            layers,
            ropes,
        } = cache;
        let dim = shape.head_dim;
        let (keys, values) = (shape.heads * dim, (shape.heads + shape.kv_heads) * dim);
        let rope = how.rope.map(|rope| &ropes[rope]);
        let cache = &mut layers[how.layer];
        for (row, qkv) in plan.rows.iter().zip(qkv.rows_mut()) {
            if let Some(rope) = rope {
                let (cos, sin) = rope.at(row.position);
                rotate(isa, &mut qkv[..values], dim, cos, sin);
            }
            for head in 0..shape.kv_heads {
                let key = &qkv[keys + head * dim..keys + (head + 1) * dim];
                let value = &qkv[values + head * dim..values + (head + 1) * dim];
                cache.store(*layout, row.place, head, key, value);
            }
        }
    }

    fn attend(
        &self,
        qkv: &Tensor,
        (plan, queries): (&Plan, &Queries),
        cache: &KvCache,
        how: &Attends,
        y: &mut Tensor,
    ) {
        let y = y.resize(qkv.rows);
        let mut out = RowsMut::new(&mut y.data, y.stride, y.rows);
        let out = out.share();
        let (shape, tiles) = (cache.shape, &queries.tiles);
        let (isa, cache, layout) = (self.kernels.isa(), &cache.layers[how.layer], cache.layout);
        // One head of every tile before the next head: neighbours read the same keys.
        let run = |i: usize| {
            let tile = &tiles[i % tiles.len()];
            let group = &plan.groups[tile.group];
            let task = HeadTask {
                layout,
                cache,
                pages: &plan.pages[group.pages.clone()],
                scratch: &plan.pages[group.scratch.clone()],
                head: i / tiles.len(),
                group: shape.group(),
                queries: qkv.as_rows(),
                rows: tile.rows.clone(),
                sights: &queries.sights,
                paths: &plan.paths,
                how,
            };
            attend(isa, &task, &out);
        };
        let tasks = tiles.len() * shape.kv_heads;
        let sights = queries.sights.iter();
        let positions: usize = sights
            .map(|s| (s.committed + s.path.len()).min(how.window))
            .sum();
        let pool = self.kernels.pool();
        if pool.threads() == 1 || positions * shape.heads * shape.head_dim * 2 < WORTH_SHARING {
            (0..tasks).for_each(run);
        } else {
            pool.run(tasks, &run);
        }
    }

    fn swiglu(&self, gate_up: &Tensor, y: &mut Tensor) {
        for (gate_up, y) in gate_up.rows().zip(y.resize(gate_up.rows).rows_mut()) {
            let (gate, up) = gate_up.split_at(gate_up.len() / 2);
            swiglu(self.kernels.isa(), gate, up, y);
        }
    }

    fn geglu(&self, gate_up: &Tensor, y: &mut Tensor) {
        for (gate_up, y) in gate_up.rows().zip(y.resize(gate_up.rows).rows_mut()) {
            let (gate, up) = gate_up.split_at(gate_up.len() / 2);
            geglu(self.kernels.isa(), gate, up, y);
        }
    }

    fn add_vector(&self, x: &mut Tensor, v: &Vec<f32>) {
        for x in x.rows_mut() {
            add(self.kernels.isa(), x, v);
        }
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        for (x, y) in x.rows_mut().zip(y.rows()) {
            add(self.kernels.isa(), x, y);
        }
    }

    fn keep_asked(&self, x: &mut Tensor, plan: &Plan) {
        let Tensor {
            data,
            width,
            stride,
            ..
        } = x;
        for (to, asked) in plan.asked.iter().enumerate() {
            if asked.row != to {
                let from = asked.row * *stride;
                data.copy_within(from..from + *width, to * *stride);
            }
        }
        x.resize(plan.asked.len());
    }

    fn copy_asked(&self, x: &Tensor, plan: &Plan, y: &mut Tensor) {
        let rows = y.resize(plan.asked.len()).rows_mut();
        for (to, asked) in rows.zip(&plan.asked) {
            to.copy_from_slice(self.row(x, asked.row));
        }
    }

    fn write(&self, rows: &[Vec<f32>], x: &mut Tensor) {
        for (to, from) in x.resize(rows.len()).rows_mut().zip(rows) {
            to.copy_from_slice(from);
        }
    }

    fn add_silu(&self, x: &mut Tensor, y: &Tensor, bias: &Vec<f32>) {
        for (x, y) in x.rows_mut().zip(y.rows()) {
            add_silu(self.kernels.isa(), x, y, bias);
        }
    }

    fn relu(&self, x: &mut Tensor, bias: &Vec<f32>) {
        for x in x.rows_mut() {
            relu(self.kernels.isa(), x, bias);
        }
    }

    fn copy(&self, cache: &mut KvCache, from: Place, to: Place) {
        cache.copy(from, to);
    }

    fn table_row(&self, table: &Table, n: usize) -> Vec<f32> {
        let mut row = vec![0.0; table.width];
        table.read(n, &mut row);
        row
    }

    fn weight_row(&self, weight: &PackedWeight, n: usize) -> Vec<f32> {
        (0..weight.inputs()).map(|k| weight.at(n, k)).collect()
    }

    fn row<'a>(&self, x: &'a Tensor, r: usize) -> &'a [f32] {
        &x.as_rows().row(r)[..x.width]
    }
}

//! A Llama on a GPU: weights, cache and activations, and the launches of a step.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::{CudaError, Gpu, Graph, LEAST, Memory};
use super::kernels::{Kernels, Share, pieces};
use super::parameters::{Attend, Embed, Heads, Matmul, Move, Norm, Then};
use super::weights::{Weight, packed_bytes, upload_bf16, upload_f32};
use crate::config::{Bias, ModelConfig, Tied, Turn};
use crate::load::{Checkpoint, LoadError};
use crate::model::{AttentionShape, EndTensors, LayerTensors, RopeTable};
use crate::sequence::{PAGE, Place};
use crate::step::Plan;

/// Rows are computed in whole buckets, of which the smallest that holds them is taken; beyond the last, in multiples of
/// [`MANY`]. For the buckets launches are recorded once and replayed.
const BUCKETS: [usize; 5] = [1, 8, 16, 32, 64];
const MANY: usize = 128;
/// Rows whose attention is computed at once.
const ATTENDED: usize = 64;
/// Numbers that a step says of each row, a column each.
const COLUMNS: usize = 8;
/// Moves within the cache that are done at once.
const MOVES: usize = 4096;
/// Tiles of a matmul whose blocks wait for each other, at most.
const TILES: usize = 1 << 14;

/// The bucket of so many rows.
fn bucket(rows: usize) -> usize {
    let fits = BUCKETS.into_iter().find(|&bucket| rows <= bucket);
    fits.unwrap_or_else(|| rows.next_multiple_of(MANY))
}

/// The sizes of everything on the device.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// Rows of a step, a multiple of [`MANY`].
    rows: usize,
    /// Positions that a row can have.
    positions: usize,
    /// Positions that a row can see, its tree included.
    sights: usize,
    /// Pages of the cache.
    pages: usize,
}

impl Room {
    pub(super) fn new(max_rows: usize, positions: usize, scratch_rows: u16, pages: usize) -> Room {
        Room {
            rows: max_rows.next_multiple_of(MANY),
            positions,
            sights: positions + usize::from(scratch_rows),
            pages,
        }
    }

    /// Rows of a step.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a model's weights, cache and activations, as [`Model::load`] reserves them.
    pub(super) fn bytes(&self, config: &ModelConfig) -> usize {
        let widths = Widths::of(config);
        let [qkv, output, gate_up, down, head] = widths
            .matrices
            .map(|(outputs, inputs)| packed_bytes(outputs, inputs));
        let norm = config.hidden * size_of::<f32>();
        let table = match config.tied {
            Tied::Separate => config.vocab_size * config.hidden * 2,
            Tied::Shared => 0,
        };
        let by_row = config.hidden * 4
            + (widths.normed + widths.query + widths.attended + widths.inner) * 2
            + config.vocab_size * 4
            + if Between::is_needed(config) {
                config.qkv_width() * 4
            } else {
                0
            }
            + COLUMNS * size_of::<i32>();
        config.layers * (qkv + output + gate_up + down + 2 * norm + Between::bytes(config))
            + head
            + norm
            + table
            + 2 * self.cache_numbers(config) * config.layers * 2
            + self.rows * by_row
            + self.attention_bytes(config)
            + self.partial_bytes(config).max(LEAST)
            + self.positions * config.rotary_dim * 4
            + (TILES + self.pages + self.paths() + 2 * MOVES) * size_of::<i32>()
    }

    /// Slots of paths: one has no more than a row can see of its tree.
    fn paths(&self) -> usize {
        self.rows * (self.sights - self.positions).max(1)
    }

    /// Numbers of the keys of a layer.
    fn cache_numbers(&self, config: &ModelConfig) -> usize {
        self.pages * PAGE * config.kv_heads * config.head_dim
    }

    /// Bytes of the pieces of attention.
    fn attention_bytes(&self, config: &ModelConfig) -> usize {
        let group = config.heads / config.kv_heads;
        let each = (group * config.head_dim + 16) * size_of::<f32>();
        ATTENDED * config.kv_heads * pieces(self.sights) * each
    }

    /// Bytes of the sums that blocks of a matmul leave for each other.
    fn partial_bytes(&self, config: &ModelConfig) -> usize {
        let buckets = BUCKETS.into_iter().chain((MANY..=self.rows).step_by(MANY));
        let matrices = Widths::of(config).matrices;
        let most = buckets.flat_map(|rows| {
            matrices.map(|(outputs, inputs)| {
                let outputs = outputs.next_multiple_of(128);
                let chunks = inputs.next_multiple_of(128) / 32;
                Share::of(outputs, chunks, rows).partials(outputs, rows)
            })
        });
        most.max().unwrap_or(0)
    }
}

/// Widths of matrices and activations.
struct Widths {
    /// Outputs and inputs of qkv, output, gate and up, down, head.
    matrices: [(usize, usize); 5],
    /// What matmuls read is padded to whole chunks: the normed stream, attention, the middle of the perceptron.
    normed: usize,
    attended: usize,
    inner: usize,
    query: usize,
}

impl Widths {
    fn of(config: &ModelConfig) -> Widths {
        let query = config.heads * config.head_dim;
        let padded = |inputs: usize| inputs.next_multiple_of(128);
        Widths {
            matrices: [
                (config.qkv_width(), config.hidden),
                (config.hidden, query),
                (2 * config.intermediate, config.hidden),
                (config.hidden, config.intermediate),
                (config.vocab_size, config.hidden),
            ],
            normed: padded(config.hidden),
            attended: padded(query),
            inner: padded(config.intermediate),
            query,
        }
    }
}

/// What is done to queries, keys and values before attention where it is more than a turn of whole heads.
struct Between {
    bias: Option<Memory>,
    /// What norms of queries and of keys multiply by.
    gains: Option<[Memory; 2]>,
    /// Dimensions of a head that are turned.
    turned: u32,
}

struct Layer {
    attention_norm: Memory,
    qkv: Weight,
    between: Option<Between>,
    output: Weight,
    mlp_norm: Memory,
    gate_up: Weight,
    down: Weight,
}

/// What a step says of its rows.
struct Columns {
    memory: Memory,
    rows: usize,
}

/// The columns, by number.
#[derive(Clone, Copy)]
enum Column {
    Token,
    Position,
    Slot,
    Committed,
    FirstPage,
    FirstPath,
    PathLength,
    Asked,
}

impl Columns {
    fn at(&self, column: Column, row: usize) -> u64 {
        self.memory.at() + ((column as usize * self.rows + row) * size_of::<i32>()) as u64
    }
}

/// A model on a GPU.
pub(super) struct Model {
    gpu: Arc<Gpu>,
    pub(super) config: ModelConfig,
    pub(super) kernels: Kernels,
    room: Room,
    widths: Widths,
    layers: Vec<Layer>,
    norm: Memory,
    head: Weight,
    /// None where the head serves as the table.
    table: Option<Memory>,
    turns: Memory,
    keys: Memory,
    values: Memory,
    hidden: Memory,
    normed: Memory,
    /// Queries, keys and values, f32, where something is done between.
    projected: Option<Memory>,
    queries: Memory,
    attended: Memory,
    inner: Memory,
    logits: Memory,
    pieces: Memory,
    partials: Memory,
    arrived: Memory,
    columns: Columns,
    /// As many as the cache has, so that it stays where it is.
    pages: Memory,
    paths: Memory,
    moves: [Memory; 2],
    /// Launches of a step by rows and asked rows; none where they could not be recorded.
    graphs: BTreeMap<(usize, usize), Option<Graph>>,
}

impl Between {
    /// Whether a model asks for more than a turn of whole heads.
    fn is_needed(config: &ModelConfig) -> bool {
        let turns_all = config
            .attention
            .iter()
            .all(|layer| layer.turn == Turn::Rope);
        let is_plain = config.bias == Bias::None && !config.family.traits().head_norms;
        !is_plain || !turns_all || config.rotary_dim != config.head_dim
    }

    /// That of a layer.
    fn load(
        gpu: &Arc<Gpu>,
        tensors: &LayerTensors<'_>,
        config: &ModelConfig,
        layer: usize,
    ) -> Result<Option<Between>, Failure> {
        if !Between::is_needed(config) {
            return Ok(None);
        }
        let bias = match config.bias {
            Bias::None => None,
            Bias::Qkv => {
                let parts = tensors.qkv_bias()?.map(|part| part.to_vec());
                Some(upload_f32(gpu, &parts.concat())?)
            }
        };
        let gains = match config.family.traits().head_norms {
            false => None,
            true => {
                let gain = |part| -> Result<Memory, Failure> {
                    Ok(upload_f32(gpu, &tensors.head_vector(part)?.to_vec())?)
                };
                Some([gain("self_attn.q_norm")?, gain("self_attn.k_norm")?])
            }
        };
        let turned = match config.attention[layer].turn {
            Turn::None => 0,
            _ => config.rotary_dim as u32,
        };
        Ok(Some(Between {
            bias,
            gains,
            turned,
        }))
    }

    /// Bytes of that of a layer.
    fn bytes(config: &ModelConfig) -> usize {
        let bias = match config.bias {
            Bias::None => 0,
            Bias::Qkv => config.qkv_width(),
        };
        let gains = usize::from(config.family.traits().head_norms) * 2 * config.head_dim;
        (bias + gains) * size_of::<f32>()
    }
}

impl Model {
    /// Loads a checkpoint whose sizes the kernels serve.
    pub(super) fn load(
        gpu: &Arc<Gpu>,
        checkpoint: &Checkpoint,
        config: ModelConfig,
        room: Room,
    ) -> Result<Model, Failure> {
        let kernels = Kernels::load(gpu, AttentionShape::of(&config))?;
        let pack = |parts: &[_], then| Weight::load(gpu, parts, then, config.head_dim);
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let tensors = LayerTensors::of(checkpoint, &config, i);
            let norm = |part| -> Result<Memory, Failure> {
                Ok(upload_f32(gpu, &tensors.vector(part)?.to_vec())?)
            };
            let between = Between::load(gpu, &tensors, &config, i)?;
            let then = match between {
                None => Then::Turn,
                Some(_) => Then::Store,
            };
            let (qkv, gate_up) = if config.family.traits().fused {
                let [qkv, gate_up] = tensors.fused()?;
                (pack(&[qkv], then)?, pack(&[gate_up], Then::Gate)?)
            } else {
                let (qkv, gate_up) = (tensors.qkv()?, tensors.gate_up()?);
                (pack(&qkv, then)?, pack(&gate_up, Then::Gate)?)
            };
            layers.push(Layer {
                attention_norm: norm("input_layernorm")?,
                qkv,
                between,
                output: pack(&[tensors.output()?], Then::Add)?,
                mlp_norm: norm("post_attention_layernorm")?,
                gate_up,
                down: pack(&[tensors.down()?], Then::Add)?,
            });
        }
        let EndTensors { table, norm, head } = EndTensors::of(checkpoint, &config)?;
        let (head, table) = match head {
            None => (pack(&[table], Then::Store)?, None),
            Some(head) => {
                let table = upload_bf16(gpu, table.data, config.vocab_size * config.hidden)?;
                (pack(&[head], Then::Store)?, Some(table))
            }
        };
        let widths = Widths::of(&config);
        let rows = |width: usize, bytes: usize| gpu.memory(room.rows * width * bytes);
        let cache = || gpu.memory(room.cache_numbers(&config) * config.layers * 2);
        let ints = |count: usize| gpu.memory(count * size_of::<i32>());
        Ok(Model {
            gpu: gpu.clone(),
            layers,
            norm: upload_f32(gpu, &norm.to_vec())?,
            head,
            table,
            turns: turns(gpu, &config, checkpoint.rope_factors(), room.positions)?,
            keys: cache()?,
            values: cache()?,
            hidden: rows(config.hidden, 4)?,
            projected: match Between::is_needed(&config) {
                true => Some(rows(config.qkv_width(), 4)?),
                false => None,
            },
            normed: rows(widths.normed, 2)?,
            queries: rows(widths.query, 2)?,
            attended: rows(widths.attended, 2)?,
            inner: rows(widths.inner, 2)?,
            logits: rows(config.vocab_size, 4)?,
            pieces: gpu.memory(room.attention_bytes(&config))?,
            partials: gpu.memory(room.partial_bytes(&config))?,
            arrived: ints(TILES)?,
            columns: Columns {
                memory: ints(COLUMNS * room.rows)?,
                rows: room.rows,
            },
            pages: ints(room.pages)?,
            paths: ints(room.paths())?,
            moves: [ints(MOVES)?, ints(MOVES)?],
            graphs: BTreeMap::new(),
            kernels,
            room,
            widths,
            config,
        })
    }

    /// Copies positions' keys and values, all layers, in order.
    pub(super) fn copy(&self, moves: &[(Place, Place)]) -> Result<(), CudaError> {
        let config = &self.config;
        let [from, to] = &self.moves;
        for moves in moves.chunks(MOVES) {
            from.send(moves.iter().map(|(from, _)| slot(*from)).collect())?;
            to.send(moves.iter().map(|(_, to)| slot(*to)).collect())?;
            let moves = Move {
                from: from.at(),
                to: to.at(),
                keys: self.keys.at(),
                values: self.values.at(),
                layer: self.room.cache_numbers(config) as u64,
                layers: config.layers as u32,
                kv_heads: config.kv_heads as u32,
                head_dim: config.head_dim as u32,
                moves: moves.len() as u32,
            };
            (self.kernels.moves).launch([config.layers, config.kv_heads, 1], &moves)?;
        }
        Ok(())
    }

    /// Computes a step: stores the keys and values of its rows, and leaves the logits of those that are asked for something,
    /// in their order.
    pub(super) fn forward(&mut self, plan: &Plan) -> Result<(), CudaError> {
        self.describe(plan)?;
        let rows = bucket(plan.rows.len());
        let asked = match plan.asked.len() {
            0 => 0,
            asked => bucket(asked),
        };
        let known = self.graphs.get(&(rows, asked));
        if let Some(Some(graph)) = known {
            return graph.launch();
        }
        let is_known = known.is_some();
        self.launch(rows, asked)?;
        // Recorded behind the first time, when the driver has loaded all that is launched. Where it cannot be, for want of memory,
        // such steps are launched kernel by kernel: this one is computed already.
        if !is_known && rows <= BUCKETS[BUCKETS.len() - 1] {
            let graph = self.gpu.graph(|| self.launch(rows, asked));
            self.graphs.insert((rows, asked), graph.ok());
        }
        Ok(())
    }

    /// The logits, f32 `[asked row][vocab_size]`.
    pub(super) fn logits(&self) -> &Memory {
        &self.logits
    }

    /// Writes what the step says of its rows. What fills up the bucket sees nothing and is stored nowhere.
    fn describe(&self, plan: &Plan) -> Result<(), CudaError> {
        let rows = self.room.rows;
        let mut columns = vec![0_i32; COLUMNS * rows];
        let mut set = |column: Column, row: usize, value: i32| {
            columns[column as usize * rows + row] = value;
        };
        for row in plan.rows.len()..rows {
            set(Column::Slot, row, -1);
        }
        let (mut pages, mut paths) = (Vec::new(), Vec::new());
        for group in &plan.groups {
            let first_page = pages.len() as i32;
            pages.extend(
                plan.pages[group.pages.clone()]
                    .iter()
                    .map(|&page| page as i32),
            );
            let scratch = &plan.pages[group.scratch.clone()];
            for r in group.rows.clone() {
                let (row, sight) = (&plan.rows[r], &plan.every_query.sights[r]);
                set(Column::Token, r, row.token as i32);
                set(Column::Position, r, row.position as i32);
                set(Column::Slot, r, slot(row.place));
                set(Column::Committed, r, sight.committed as i32);
                set(Column::FirstPage, r, first_page);
                set(Column::FirstPath, r, paths.len() as i32);
                set(Column::PathLength, r, sight.path.len() as i32);
                let path = plan.paths[sight.path.clone()].iter();
                paths.extend(path.map(|&at| {
                    let at = usize::from(at);
                    scratch[at / PAGE] as i32 * PAGE as i32 + (at % PAGE) as i32
                }));
            }
        }
        for (at, asked) in plan.asked.iter().enumerate() {
            set(Column::Asked, at, asked.row as i32);
        }
        self.columns.memory.send(columns)?;
        self.pages.send(pages)?;
        self.paths.send(paths)
    }

    fn launch(&self, rows: usize, asked: usize) -> Result<(), CudaError> {
        let config = &self.config;
        let (table, chunks) = match &self.table {
            Some(table) => (table, 0),
            None => (self.head.memory(), self.head.chunks),
        };
        let embed = Embed {
            table: table.at(),
            tokens: self.columns.at(Column::Token, 0),
            x: self.hidden.at(),
            width: config.hidden as u32,
            chunks,
        };
        self.kernels.embed.launch([rows, 1, 1], &embed)?;
        for (i, layer) in self.layers.iter().enumerate() {
            self.normalise(&layer.attention_norm, 0, rows)?;
            match (&layer.between, &self.projected) {
                (Some(between), Some(projected)) => {
                    self.project(&layer.qkv, projected, rows)?;
                    self.place(between, projected, i, rows)?;
                }
                _ => self.multiply(&layer.qkv, Then::Turn, i, rows)?,
            }
            self.attend(i, rows)?;
            self.multiply(&layer.output, Then::Add, i, rows)?;
            self.normalise(&layer.mlp_norm, 0, rows)?;
            self.multiply(&layer.gate_up, Then::Gate, i, rows)?;
            self.multiply_inner(&layer.down, rows)?;
        }
        if asked > 0 {
            self.normalise(&self.norm, self.columns.at(Column::Asked, 0), asked)?;
            self.multiply(&self.head, Then::Store, 0, asked)?;
        }
        Ok(())
    }

    fn normalise(&self, gain: &Memory, which: u64, rows: usize) -> Result<(), CudaError> {
        let norm = Norm {
            x: self.hidden.at(),
            gain: gain.at(),
            y: self.normed.at(),
            which,
            width: self.config.hidden as u32,
            stride_y: self.widths.normed as u32,
            eps: self.config.norm_eps,
            unused: 0,
        };
        self.kernels.norm.launch([rows, 1, 1], &norm)
    }

    /// The matmul of a layer that reads the normed stream, or, to add, attention.
    fn multiply(
        &self,
        weight: &Weight,
        then: Then,
        layer: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        let config = &self.config;
        let (x, y, outputs, stride_y) = match then {
            Then::Turn => (
                &self.normed,
                &self.queries,
                config.qkv_width(),
                self.widths.query,
            ),
            Then::Add => (&self.attended, &self.hidden, config.hidden, config.hidden),
            Then::Gate => (
                &self.normed,
                &self.inner,
                config.intermediate,
                self.widths.inner,
            ),
            Then::Store => (
                &self.normed,
                &self.logits,
                config.vocab_size,
                config.vocab_size,
            ),
        };
        let matmul = self.matmul(weight, then, [x, y], [outputs, stride_y], layer);
        self.kernels.multiply(&matmul, weight.outputs, rows)
    }

    /// The first matmul of a layer where something is done to its outputs before attention.
    fn project(&self, weight: &Weight, to: &Memory, rows: usize) -> Result<(), CudaError> {
        let outputs = self.config.qkv_width();
        let matmul = self.matmul(weight, Then::Store, [&self.normed, to], [outputs; 2], 0);
        self.kernels.multiply(&matmul, weight.outputs, rows)
    }

    /// What is done to them: queries and the cache are written.
    fn place(
        &self,
        between: &Between,
        projected: &Memory,
        layer: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        let config = &self.config;
        let at = |memory: Option<&Memory>| memory.map_or(0, Memory::at);
        let [query_gain, key_gain] = match &between.gains {
            Some([queries, keys]) => [queries.at(), keys.at()],
            None => [0; 2],
        };
        let heads = Heads {
            x: projected.at(),
            bias: at(between.bias.as_ref()),
            query_gain,
            key_gain,
            turns: self.turns.at(),
            positions: self.columns.at(Column::Position, 0),
            slots: self.columns.at(Column::Slot, 0),
            queries: self.queries.at(),
            keys: self.keys.at() + self.layer_bytes(layer),
            values: self.values.at() + self.layer_bytes(layer),
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            turned: between.turned,
            eps: config.norm_eps,
            unused: 0,
        };
        let all = config.heads + 2 * config.kv_heads;
        self.kernels.heads.launch([all, rows, 1], &heads)
    }

    /// The last matmul of a layer.
    fn multiply_inner(&self, weight: &Weight, rows: usize) -> Result<(), CudaError> {
        let hidden = self.config.hidden;
        let matmul = self.matmul(
            weight,
            Then::Add,
            [&self.inner, &self.hidden],
            [hidden; 2],
            0,
        );
        self.kernels.multiply(&matmul, weight.outputs, rows)
    }

    fn matmul(
        &self,
        weight: &Weight,
        then: Then,
        [x, y]: [&Memory; 2],
        [outputs, stride_y]: [usize; 2],
        layer: usize,
    ) -> Matmul {
        let config = &self.config;
        Matmul {
            weights: weight.memory().at(),
            x: x.at(),
            y: y.at(),
            turns: self.turns.at(),
            positions: self.columns.at(Column::Position, 0),
            slots: self.columns.at(Column::Slot, 0),
            keys: self.keys.at() + self.layer_bytes(layer),
            values: self.values.at() + self.layer_bytes(layer),
            partials: self.partials.at(),
            arrived: self.arrived.at(),
            chunks: weight.chunks,
            outputs: outputs as u32,
            stride_x: weight.stride(),
            stride_y: stride_y as u32,
            then: then as u32,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
        }
    }

    /// How far behind the beginning of the cache a layer's keys lie.
    fn layer_bytes(&self, layer: usize) -> u64 {
        (layer * self.room.cache_numbers(&self.config) * 2) as u64
    }

    fn attend(&self, layer: usize, rows: usize) -> Result<(), CudaError> {
        let config = &self.config;
        for first in (0..rows).step_by(ATTENDED) {
            let bf16s = |width: usize| (first * width * 2) as u64;
            self.kernels.attention(Attend {
                queries: self.queries.at() + bf16s(self.widths.query),
                keys: self.keys.at() + self.layer_bytes(layer),
                values: self.values.at() + self.layer_bytes(layer),
                y: self.attended.at() + bf16s(self.widths.attended),
                committed: self.columns.at(Column::Committed, first),
                first_page: self.columns.at(Column::FirstPage, first),
                pages: self.pages.at(),
                first_path: self.columns.at(Column::FirstPath, first),
                path_length: self.columns.at(Column::PathLength, first),
                paths: self.paths.at(),
                room: self.pieces.at(),
                kv_heads: config.kv_heads as u32,
                stride_y: self.widths.attended as u32,
                most_pieces: pieces(self.room.sights) as u32,
                scale: decode::math::rsqrt(config.head_dim as f32),
                rows: ATTENDED.min(rows - first) as u32,
                // The kernels say how rows are shared out.
                together: 0,
                takes: 0,
                group: (config.heads / config.kv_heads) as u32,
                head_dim: config.head_dim as u32,
                unused: 0,
            })?;
        }
        Ok(())
    }
}

/// Why a model is not loaded.
pub(super) enum Failure {
    Load(LoadError),
    Cuda(CudaError),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Failure {
        Failure::Load(error)
    }
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Failure {
        Failure::Cuda(error)
    }
}

/// A place of the cache as kernels name it.
fn slot(place: Place) -> i32 {
    // The load has checked that every slot has a number.
    (place.page as usize * PAGE + place.lane as usize) as i32
}

/// Cosines and sines as kernels read them, `[position][2][rotary_dim / 2]`.
fn turns(
    gpu: &Arc<Gpu>,
    config: &ModelConfig,
    factors: Option<&[f32]>,
    positions: usize,
) -> Result<Memory, CudaError> {
    let table = RopeTable::new(config.rope, factors, config.rotary_dim, positions);
    let mut turns = Vec::with_capacity(positions * config.rotary_dim);
    for position in 0..positions {
        let (cos, sin) = table.at(position);
        turns.extend_from_slice(cos);
        turns.extend_from_slice(sin);
    }
    upload_f32(gpu, &turns)
}

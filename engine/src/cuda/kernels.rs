//! The kernels, loaded: threads, shared memory, and which shape of the matmul serves how many rows.

use std::ffi::CStr;
use std::sync::Arc;

use super::driver::{CudaError, Gpu, Kernel};
use super::parameters::{Asks, Attend, Matmul, PIECE, SHARES};
use crate::model::AttentionShape;

/// PTX of one architecture.
struct Ptx {
    matmul: &'static str,
    rows: &'static str,
    attention: &'static str,
    asks: &'static str,
}

macro_rules! ptx {
    ($architecture:literal) => {
        Ptx {
            matmul: concat!(
                include_str!(concat!("ptx/matmul.", $architecture, ".ptx")),
                "\0"
            ),
            rows: concat!(
                include_str!(concat!("ptx/rows.", $architecture, ".ptx")),
                "\0"
            ),
            attention: concat!(
                include_str!(concat!("ptx/attention.", $architecture, ".ptx")),
                "\0"
            ),
            asks: concat!(
                include_str!(concat!("ptx/asks.", $architecture, ".ptx")),
                "\0"
            ),
        }
    };
}

/// What all PTX was made from: sources and compiler.
pub(super) const SOURCES: &str = include_str!("ptx/SOURCES");

/// The PTX that serves a compute capability best. That for 9.0 runs nowhere else; that for 8.0 on everything newer.
fn ptx_for(compute: (i32, i32)) -> Ptx {
    match compute {
        (9, 0) => ptx!("sm_90a"),
        (10, _) => ptx!("sm_100"),
        _ => ptx!("sm_80"),
    }
}

/// Whether the warps of a block of the matmul each load for themselves, or share.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loading {
    Alone,
    Shared,
}

/// A shape of the matmul: rows and outputs of a block.
struct Shape {
    rows: usize,
    outputs: usize,
    loading: Loading,
    kernel: Kernel,
}

/// Rows and outputs of a block, and the template's numbers, as `kernels/matmul.cu` has them: `MT, NT, STAGES` of `stream`, or
/// `MT, NT, WM, WN, STAGES` of `share`.
const STREAMS: [(usize, usize, u32, u32, u32); 6] = [
    (8, 16, 1, 1, 16),
    (8, 32, 2, 1, 10),
    (16, 16, 1, 2, 13),
    (16, 32, 2, 2, 9),
    (32, 32, 2, 4, 7),
    (64, 32, 2, 8, 4),
];
const SHARED: [(usize, usize, [u32; 5]); 3] = [
    (64, 64, [1, 8, 4, 1, 6]),
    (64, 128, [2, 8, 4, 1, 4]),
    (128, 128, [2, 8, 4, 2, 4]),
];

/// The combinations of query heads to a key/value head and width of a head that attention is built for.
pub(super) const ATTENTION: [(usize, usize); 9] = [
    (1, 48),
    (1, 64),
    (3, 64),
    (4, 64),
    (8, 64),
    (1, 128),
    (3, 128),
    (4, 128),
    (8, 128),
];

/// Bytes of `Room` in `kernels/asks.cu`.
const ROOM_BYTES: u32 =
    4096 * 8 + 512 * 8 + 2 * 2048 * 8 + 16 * 8 + 256 * 4 + 8 + 8 + 32 * 8 + 4 * 4;

/// How a multiplication is given to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Rows and outputs of a block.
    shape: (usize, usize),
    /// Blocks that have a part of the inputs each; 1: a block has all.
    parts: usize,
}

impl Share {
    /// What was fastest on an H100: blocks enough for all of the card, and few rows for the outputs that share them. No bit of
    /// a result depends on it.
    pub(super) fn of(outputs: usize, chunks: usize, rows: usize) -> Share {
        let (shape, parts) = if rows <= 16 {
            let narrow = 2048 < outputs && outputs <= 4096 && chunks > 64;
            let shape = (if rows <= 8 { 8 } else { 16 }, if narrow { 16 } else { 32 });
            (shape, 1)
        } else if rows <= 32 {
            ((32, 32), 1)
        } else if rows <= 64 {
            if outputs >= 20_000 {
                ((64, 128), 1)
            } else if chunks >= 256 && outputs > 2048 {
                ((64, 64), 4)
            } else {
                ((64, 32), 1)
            }
        } else {
            let blocks = rows.div_ceil(128) * (outputs / 128);
            ((128, 128), if blocks >= 112 { 1 } else { 4 })
        };
        Share { shape, parts }
    }

    /// Bytes of the sums that blocks leave for each other, of so many rows.
    pub(super) fn partials(self, outputs: usize, rows: usize) -> usize {
        match self.parts {
            1 => 0,
            parts => parts * outputs * rows.next_multiple_of(self.shape.0) * size_of::<f32>(),
        }
    }
}

/// All kernels that one model needs.
pub(super) struct Kernels {
    shapes: Vec<Shape>,
    pub(super) norm: Kernel,
    pub(super) embed: Kernel,
    pub(super) moves: Kernel,
    attend: Kernel,
    join: Kernel,
    survey: Kernel,
    filter: Kernel,
    race: Kernel,
    answer: Kernel,
    score: Kernel,
}

impl Kernels {
    /// Loads them for a GPU and a shape of attention that is one of [`ATTENTION`].
    pub(super) fn load(gpu: &Arc<Gpu>, attention: AttentionShape) -> Result<Kernels, CudaError> {
        let ptx = ptx_for(gpu.compute);
        let module = |text: &str| {
            let text = CStr::from_bytes_with_nul(text.as_bytes());
            gpu.module(text.expect("PTX is text, and ends with the zero put behind it"))
                .map(Arc::new)
        };
        let matmul = module(ptx.matmul)?;
        let mut shapes = Vec::new();
        for (rows, outputs, mt, nt, stages) in STREAMS {
            let shared = 4 * stages * (mt * 1024 + nt * 512);
            let name = format!("matmul_{rows}_by_{outputs}");
            shapes.push(Shape {
                rows,
                outputs,
                loading: Loading::Alone,
                kernel: matmul.kernel(&name, 128, shared)?,
            });
        }
        for (rows, outputs, [mt, nt, wm, wn, stages]) in SHARED {
            let shared = stages * 2 * (wm * mt * 1024 + wn * nt * 8 * 64);
            let name = format!("matmul_{rows}_by_{outputs}");
            shapes.push(Shape {
                rows,
                outputs,
                loading: Loading::Shared,
                kernel: matmul.kernel(&name, 32 * wm * wn, shared)?,
            });
        }
        let rows = module(ptx.rows)?;
        let (group, dim) = (attention.group(), attention.head_dim);
        let attend = module(ptx.attention)?;
        let units = (dim / 8).next_multiple_of(8) as u32;
        let shared = 128 * 4 + 8 * 132 * 4 + 8 * 136 * 2 + 16 * 4 + 8 * 16 + 128 * units * 16;
        let asks = module(ptx.asks)?;
        Ok(Kernels {
            shapes,
            norm: rows.kernel("rms_norm", 256, 32)?,
            embed: rows.kernel("embed", 256, 0)?,
            moves: rows.kernel("move_slots", 128, 0)?,
            attend: attend.kernel(&format!("attend_{group}_by_{dim}"), 128, shared)?,
            join: attend.kernel("join_pieces", 256, 0)?,
            survey: asks.kernel("survey", 256, 2112)?,
            filter: asks.kernel("filter", 1024, ROOM_BYTES)?,
            race: asks.kernel("race", 256, 0)?,
            answer: asks.kernel("answer", 1024, ROOM_BYTES)?,
            score: asks.kernel("score_tokens", 1024, ROOM_BYTES)?,
        })
    }

    /// Multiplies `rows` rows with a weight of `outputs` outputs, padding included.
    pub(super) fn multiply(
        &self,
        matmul: &Matmul,
        outputs: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        let share = Share::of(outputs, matmul.chunks as usize, rows);
        let shape = self
            .shapes
            .iter()
            .find(|s| (s.rows, s.outputs) == share.shape);
        let shape = shape.expect("every shape that serves rows is loaded");
        let grid = match shape.loading {
            Loading::Alone => [outputs / shape.outputs, 1, 1],
            Loading::Shared => [
                rows.div_ceil(shape.rows),
                outputs / shape.outputs,
                share.parts,
            ],
        };
        shape.kernel.launch(grid, matmul)
    }

    /// Attention, with what was fastest on an H100: rows that share a text load it once, and blocks enough for all of the card.
    pub(super) fn attention(&self, mut attend: Attend) -> Result<(), CudaError> {
        let (rows, kv_heads) = (attend.rows as usize, attend.kv_heads as usize);
        let most = match rows {
            0..=16 => 2,
            33.. if attend.head_dim >= 128 => 8,
            _ => 4,
        };
        let together = rows.min(most);
        let teams = rows.div_ceil(together);
        let takes = (1056 / (teams * kv_heads)).clamp(1, attend.most_pieces as usize);
        attend.together = together as u32;
        attend.takes = takes as u32;
        self.attend
            .launch([kv_heads, teams, takes + together], &attend)?;
        self.join.launch([kv_heads, rows, 1], &attend)
    }

    /// Answers so many tasks.
    pub(super) fn ask(&self, asks: &Asks, tasks: usize, scores: bool) -> Result<(), CudaError> {
        self.survey.launch([SHARES, tasks, 1], asks)?;
        self.filter.launch([tasks, 1, 1], asks)?;
        self.race.launch([SHARES, tasks, 1], asks)?;
        self.answer.launch([tasks, 1, 1], asks)?;
        if scores {
            self.score.launch([tasks, 1, 1], asks)?;
        }
        Ok(())
    }
}

/// Pieces of attention that `positions` positions may be cut into.
pub(super) fn pieces(positions: usize) -> usize {
    positions.div_ceil(PIECE).max(1)
}

//! The kernels, loaded: threads, shared memory, and which shape of the matmul serves how many rows.

use std::ffi::CStr;
use std::sync::Arc;

use super::driver::{CudaError, Gpu, Kernel, Module};
use super::parameters::{Asks, Attend, Matmul, PIECE, SHARES};
use crate::model::AttentionShape;

/// PTX of one architecture.
#[derive(Clone, Copy)]
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

/// For everything from 8.0 on, in blocks of 99 KiB of shared memory.
const SM_80: Ptx = ptx!("sm_80");
/// For 9.0 alone, in blocks of up to 227 KiB.
const SM_90A: Ptx = ptx!("sm_90a");
/// For everything from 10.0 on, in blocks of up to 227 KiB.
const SM_100: Ptx = ptx!("sm_100");

/// What the kernels' PTX was made from: sources, options and compiler.
pub(super) fn sources() -> &'static str {
    include_str!("ptx/SOURCES")
        .lines()
        .next()
        .unwrap_or_default()
}

impl Ptx {
    /// What serves a compute capability best whose blocks may have so many bytes of shared memory.
    fn of(compute: (i32, i32), block_bytes: u32) -> Ptx {
        let best = match compute {
            (9, 0) => SM_90A,
            (10.., _) => SM_100,
            _ => SM_80,
        };
        if best.block_bytes() <= block_bytes {
            best
        } else {
            SM_80
        }
    }

    /// The most that a block of its kernels needs.
    fn block_bytes(self) -> u32 {
        let texts = [self.matmul, self.rows, self.attention, self.asks];
        let needs = texts.into_iter().flat_map(|text| {
            text.split(SHARED_BYTES_OF)
                .skip(1)
                .filter_map(|rest| number_behind(rest, " = "))
        });
        needs.max().unwrap_or(0)
    }
}

/// What PTX calls the shared memory that a kernel needs (`kernels/ptx.cuh`).
const SHARED_BYTES_OF: &str = "shared_bytes_of_";

/// The number behind the first `mark` before the end of the statement.
fn number_behind(text: &str, mark: &str) -> Option<u32> {
    let statement = text.split([';', '\n']).next()?;
    let number = statement.split_once(mark)?.1;
    let digits = number.find(|c: char| !c.is_ascii_digit());
    number[..digits.unwrap_or(number.len())].parse().ok()
}

/// Threads of a block of a kernel, and the bytes of shared memory that it needs, as its PTX says.
fn launch_bounds(ptx: &str, kernel: &str) -> Option<(u32, u32)> {
    let entry = format!(".entry {kernel}(");
    let (_, behind) = ptx.split_once(&entry)?;
    let (_, behind) = behind.split_once(".maxntid")?;
    let threads = number_behind(behind, " ")?;
    let mut named = ptx.split(SHARED_BYTES_OF).skip(1);
    let shared = named.find_map(|rest| {
        rest.strip_prefix(kernel)
            .filter(|r| r.starts_with([' ', ';']))
    })?;
    Some((threads, number_behind(shared, " = ").unwrap_or(0)))
}

/// A loaded program, with what it says of its kernels.
struct Program {
    text: &'static str,
    module: Arc<Module>,
    block_bytes: u32,
}

impl Program {
    fn load(gpu: &Arc<Gpu>, text: &'static str) -> Result<Program, CudaError> {
        let program = CStr::from_bytes_with_nul(text.as_bytes());
        let program = program.expect("PTX is text, and ends with the zero put behind it");
        // Kernels that do not wait for those before them must not be begun early.
        let early = text.contains("griddepcontrol.wait");
        Ok(Program {
            text,
            module: Arc::new(gpu.module(program, early)?),
            block_bytes: gpu.block_bytes,
        })
    }

    fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let found = launch_bounds(self.text, name);
        let (threads, shared) =
            found.ok_or_else(|| CudaError::kernel(name, "is not in the PTX".to_owned()))?;
        if shared > self.block_bytes {
            let most = self.block_bytes;
            let reason =
                format!("needs {shared} bytes of shared memory, and a block may have {most}");
            return Err(CudaError::kernel(name, reason));
        }
        self.module.kernel(name, threads, shared)
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

/// Rows and outputs of a block, as `kernels/matmul.cu` has them.
const SHAPES: [(usize, usize, Loading); 9] = [
    (8, 16, Loading::Alone),
    (8, 32, Loading::Alone),
    (16, 16, Loading::Alone),
    (16, 32, Loading::Alone),
    (32, 32, Loading::Alone),
    (64, 32, Loading::Alone),
    (64, 64, Loading::Shared),
    (64, 128, Loading::Shared),
    (128, 128, Loading::Shared),
];

/// The combinations of query heads to a key/value head and width of a head that attention is built for.
pub(super) const ATTENTION: [(usize, usize); 15] = [
    (1, 48),
    (1, 64),
    (3, 64),
    (4, 64),
    (7, 64),
    (8, 64),
    (1, 96),
    (1, 128),
    (2, 128),
    (3, 128),
    (4, 128),
    (5, 128),
    (6, 128),
    (7, 128),
    (8, 128),
];

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
    pub(super) heads: Kernel,
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
        let ptx = Ptx::of(gpu.compute, gpu.block_bytes);
        let matmul = Program::load(gpu, ptx.matmul)?;
        let shapes = SHAPES.map(|(rows, outputs, loading)| {
            Ok(Shape {
                rows,
                outputs,
                loading,
                kernel: matmul.kernel(&format!("matmul_{rows}_by_{outputs}"))?,
            })
        });
        let rows = Program::load(gpu, ptx.rows)?;
        let (group, dim) = (attention.group(), attention.head_dim);
        let attend = Program::load(gpu, ptx.attention)?;
        let asks = Program::load(gpu, ptx.asks)?;
        Ok(Kernels {
            shapes: shapes.into_iter().collect::<Result<_, _>>()?,
            norm: rows.kernel("rms_norm")?,
            embed: rows.kernel("embed")?,
            moves: rows.kernel("move_slots")?,
            heads: rows.kernel("place_heads")?,
            attend: attend.kernel(&format!("attend_{group}_by_{dim}"))?,
            join: attend.kernel("join_pieces")?,
            survey: asks.kernel("survey")?,
            filter: asks.kernel("filter")?,
            race: asks.kernel("race")?,
            answer: asks.kernel("answer")?,
            score: asks.kernel("score_tokens")?,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 99 KiB and 227 KiB.
    const SMALL: u32 = 101_376;
    const LARGE: u32 = 232_448;

    #[test]
    fn every_card_gets_kernels_that_fit_its_blocks() {
        for (compute, block_bytes, expected) in [
            ((8, 0), 166_912, SM_80),
            ((8, 6), SMALL, SM_80),
            ((8, 9), SMALL, SM_80),
            ((9, 0), LARGE, SM_90A),
            ((10, 0), LARGE, SM_100),
            ((10, 3), LARGE, SM_100),
            ((11, 0), LARGE, SM_100),
            ((12, 0), SMALL, SM_80),
            ((12, 1), SMALL, SM_80),
        ] {
            let found = Ptx::of(compute, block_bytes);
            assert_eq!(
                found.matmul.as_ptr(),
                expected.matmul.as_ptr(),
                "{compute:?}"
            );
            assert!(found.block_bytes() <= block_bytes, "{compute:?}");
        }
    }

    #[test]
    fn only_kernels_that_wait_for_the_one_before_are_begun_early() {
        for (ptx, waits) in [(SM_80, false), (SM_90A, true), (SM_100, true)] {
            for text in [ptx.matmul, ptx.rows, ptx.attention, ptx.asks] {
                assert_eq!(text.contains("griddepcontrol.wait"), waits);
                let kernels = text.matches(".visible .entry").count();
                let waiting = text
                    .split(".visible .entry")
                    .skip(1)
                    .filter(|kernel| kernel.contains("griddepcontrol.wait"));
                assert_eq!(waiting.count(), if waits { kernels } else { 0 });
            }
        }
    }

    #[test]
    fn every_kernel_says_how_it_is_launched() {
        let attends = ATTENTION.map(|(group, dim)| format!("attend_{group}_by_{dim}"));
        let matmuls = SHAPES.map(|(rows, outputs, _)| format!("matmul_{rows}_by_{outputs}"));
        for ptx in [SM_80, SM_90A, SM_100] {
            let bounds = |text, name: &str| {
                launch_bounds(text, name).unwrap_or_else(|| panic!("nothing is said of {name}"))
            };
            for name in &matmuls {
                let (threads, shared) = bounds(ptx.matmul, name);
                assert!(threads >= 128 && shared >= 40 << 10, "{name}");
            }
            for name in &attends {
                assert_eq!(bounds(ptx.attention, name).0, 128, "{name}");
            }
            let built = ptx.attention.matches(".entry attend_").count();
            assert_eq!(built, attends.len(), "every shape that is built is known");
            assert_eq!(bounds(ptx.attention, "join_pieces"), (256, 0));
            assert_eq!(bounds(ptx.rows, "rms_norm"), (256, 32));
            assert_eq!(bounds(ptx.rows, "embed"), (256, 0));
            assert_eq!(bounds(ptx.rows, "move_slots"), (128, 0));
            assert_eq!(bounds(ptx.rows, "place_heads"), (32, 512));
            for name in ["filter", "answer", "score_tokens"] {
                assert_eq!(bounds(ptx.asks, name).0, 1024, "{name}");
            }
            assert_eq!(bounds(ptx.asks, "survey").0, 256);
            assert_eq!(bounds(ptx.asks, "race"), (256, 0));
            assert_eq!(launch_bounds(ptx.rows, "rms"), None);
        }
    }
}

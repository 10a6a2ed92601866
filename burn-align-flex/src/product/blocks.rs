//! Products of a few rows with a weight in blocks of 32 elements, such as Q4_1 and Q8_0.
//!
//! The same word of 16 rows of the weight is loaded at a time, so that a vector holds one element
//! of each: widened there, it is multiplied by an element of `x`, and 16 sums grow together.
//! Otherwise, few rows of `x` leave most of a vector empty. A sum runs over the features in order,
//! as in the other kernels.

#![expect(
    clippy::needless_range_loop,
    reason = "plain loops over lanes become vectors"
)]

use burn_align_quants::{BlockFormat, widen_f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::elements::Blocks;

/// Maximum number of rows.
pub(super) const MOST_ROWS: usize = 8;
/// Maximum number of rows for Q8_0 with weights of more than [`CACHED`] bytes.
const MOST_ROWS_UNCACHED: usize = 4;
/// Bytes of weights that a cache may hold.
const CACHED: usize = 8 << 20;
/// Rows of the weight whose sums grow together.
const LANES: usize = 16;
/// Elements of a block.
const BLOCK: usize = 32;
/// Multiplications that are not worth another thread.
const SMALL: usize = 1 << 17;

/// Whether this kernel has a weight's format, all rows of the weight begin and end with a block,
/// and this many rows are faster here than in [`transposed`](super::transposed).
pub(super) fn multiplies(
    blocks: &Blocks<'_>,
    stride: usize,
    [rows, width, vocab]: [usize; 3],
) -> bool {
    // Of weights that come from memory, 5 rows of Q8_0 took 1.3 times as long here.
    let uncached = blocks.format.block_bytes() * (width / BLOCK) * vocab > CACHED;
    let most_rows = match blocks.format {
        BlockFormat::Q4_0 | BlockFormat::Q4_1 => MOST_ROWS,
        BlockFormat::Q8_0 if uncached => MOST_ROWS_UNCACHED,
        BlockFormat::Q8_0 => MOST_ROWS,
        _ => return false,
    };
    let aligned = [blocks.first, stride, width];
    rows <= most_rows && aligned.iter().all(|count| count.is_multiple_of(BLOCK))
}

/// `x Qᵀ + b`.
///
/// # Shapes
/// - x: `[row, width]`, no more than [`MOST_ROWS`]
/// - blocks: `[vocab, width]`, whose rows are `stride` elements apart
/// - bias: `[vocab]`
/// - output: `[row, vocab]`
pub(super) fn affine(
    arch: Arch,
    x: &[f32],
    blocks: Blocks<'_>,
    stride: usize,
    bias: Option<&[f32]>,
    [rows, width, vocab]: [usize; 3],
) -> Vec<f32> {
    let mut product = vec![0.0; rows * vocab];
    if let Some(bias) = bias {
        for row in product.chunks_mut(vocab) {
            row.copy_from_slice(bias);
        }
    }
    // Each task handles a part of every row.
    let threads = match rows * width * vocab <= SMALL {
        true => 1,
        false => rayon::current_num_threads(),
    };
    let of_task = vocab.div_ceil(2 * threads).next_multiple_of(LANES);
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(vocab.div_ceil(of_task), || Vec::with_capacity(rows));
    for row in product.chunks_mut(vocab) {
        for (part, piece) in parts.iter_mut().zip(row.chunks_mut(of_task)) {
            part.push(piece);
        }
    }
    let row_bytes = |elements: usize| elements / BLOCK * blocks.format.block_bytes();
    let bytes = &blocks.bytes[row_bytes(blocks.first)..];
    let task = |(number, part): (usize, Vec<&mut [f32]>)| {
        let weight = Weight {
            bytes: &bytes[number * of_task * row_bytes(stride)..],
            stride: row_bytes(stride),
            blocks: width / BLOCK,
        };
        macro_rules! with_rows {
            ($($count:literal)+) => {
                match part.len() {
                    $($count => arch.dispatch(Task::<$count> {
                        x,
                        weight,
                        format: blocks.format,
                        sums: part.try_into().expect("counted"),
                    }),)+
                    _ => unreachable!("no more rows than {MOST_ROWS}"),
                }
            };
        }
        with_rows!(1 2 3 4 5 6 7 8);
    };
    let parts = parts.into_iter().enumerate();
    match threads {
        1 => parts.for_each(task),
        _ => parts.collect::<Vec<_>>().into_par_iter().for_each(task),
    }
    product
}

/// Rows of blocks.
#[derive(Clone, Copy)]
struct Weight<'a> {
    bytes: &'a [u8],
    /// Bytes from a row to the next.
    stride: usize,
    /// Blocks of a row.
    blocks: usize,
}

/// All rows of `x` with some rows of the weight.
struct Task<'a, const R: usize> {
    x: &'a [f32],
    weight: Weight<'a>,
    format: BlockFormat,
    sums: [&'a mut [f32]; R],
}

impl<const R: usize> WithSimd for Task<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _simd: S) {
        match self.format {
            BlockFormat::Q4_0 => self.run::<Q40, 18, 4>(),
            BlockFormat::Q4_1 => self.run::<Q41, 20, 4>(),
            _ => self.run::<Q80, 34, 8>(),
        }
    }
}

impl<const R: usize> Task<'_, R> {
    // Plain loops: closures would not be compiled for the vectors of the CPU.
    #[inline(always)]
    fn run<F: Format<BYTES, WORDS>, const BYTES: usize, const WORDS: usize>(&mut self) {
        let columns = self.sums[0].len();
        let width = self.weight.blocks * BLOCK;
        for first in (0..columns).step_by(LANES) {
            let count = LANES.min(columns - first);
            let mut rows: [&[[u8; BYTES]]; LANES] = [&[]; LANES];
            for (lane, row) in rows.iter_mut().enumerate() {
                // Past the end, the last row again.
                let row_of_lane = first + lane.min(count - 1);
                let bytes = &self.weight.bytes[row_of_lane * self.weight.stride..];
                *row = &bytes.as_chunks::<BYTES>().0[..self.weight.blocks];
            }
            let mut sums = [[0.0_f32; LANES]; R];
            for r in 0..R {
                sums[r][..count].copy_from_slice(&self.sums[r][first..][..count]);
            }
            for block in 0..self.weight.blocks {
                let mut x = [[0.0_f32; BLOCK]; R];
                for r in 0..R {
                    x[r].copy_from_slice(&self.x[r * width + block * BLOCK..][..BLOCK]);
                }
                let mut bytes = [&[0; BYTES]; LANES];
                for lane in 0..LANES {
                    bytes[lane] = &rows[lane][block];
                }
                F::multiply(&bytes, &x, &mut sums);
            }
            for r in 0..R {
                self.sums[r][first..][..count].copy_from_slice(&sums[r][..count]);
            }
        }
    }
}

/// A format: how the elements at one place of 16 blocks are widened.
trait Format<const BYTES: usize, const WORDS: usize> {
    /// Scales and minima, both as halves.
    fn halves(block: &[u8; BYTES]) -> [u16; 2];
    /// The word with this number after them.
    fn word(block: &[u8; BYTES], number: usize) -> u32;
    /// The integers at place `k`.
    fn integers(words: &[[u32; LANES]; WORDS], k: usize) -> [i32; LANES];
    /// The element of an integer.
    fn element(integer: f32, scale: f32, minimum: f32) -> f32;

    /// Adds the products of 16 blocks with as many elements of each row of `x`.
    #[inline(always)]
    fn multiply<const R: usize>(
        blocks: &[&[u8; BYTES]; LANES],
        x: &[[f32; BLOCK]; R],
        sums: &mut [[f32; LANES]; R],
    ) {
        let mut words = [[0_u32; LANES]; WORDS];
        let (mut scales, mut minima) = ([0.0; LANES], [0.0; LANES]);
        let mut halves = [[0_u16; LANES]; 2];
        for lane in 0..LANES {
            let [scale, minimum] = Self::halves(blocks[lane]);
            (halves[0][lane], halves[1][lane]) = (scale, minimum);
            for number in 0..WORDS {
                words[number][lane] = Self::word(blocks[lane], number);
            }
        }
        for lane in 0..LANES {
            scales[lane] = widen_f16(halves[0][lane]);
            minima[lane] = widen_f16(halves[1][lane]);
        }
        let mut own = *sums;
        for k in 0..BLOCK {
            let integers = Self::integers(&words, k);
            let mut elements = [0.0; LANES];
            for lane in 0..LANES {
                elements[lane] = Self::element(integers[lane] as f32, scales[lane], minima[lane]);
            }
            for r in 0..R {
                for lane in 0..LANES {
                    own[r][lane] = x[r][k].mul_add(elements[lane], own[r][lane]);
                }
            }
        }
        *sums = own;
    }
}

#[inline(always)]
fn word<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
fn half<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The four bits of byte `k`, or the upper four of byte `k - 16`.
#[inline(always)]
fn four_bits(words: &[[u32; LANES]; 4], k: usize) -> [i32; LANES] {
    let byte = k % 16;
    let shift = 8 * (byte % 4) + 4 * (k / 16);
    let mut integers = [0; LANES];
    for lane in 0..LANES {
        integers[lane] = (words[byte / 4][lane] >> shift & 15) as i32;
    }
    integers
}

struct Q40;

impl Format<18, 4> for Q40 {
    #[inline(always)]
    fn halves(block: &[u8; 18]) -> [u16; 2] {
        [half(block, 0), 0]
    }

    #[inline(always)]
    fn word(block: &[u8; 18], number: usize) -> u32 {
        word(block, 2 + 4 * number)
    }

    #[inline(always)]
    fn integers(words: &[[u32; LANES]; 4], k: usize) -> [i32; LANES] {
        let mut integers = four_bits(words, k);
        for integer in &mut integers {
            *integer -= 8;
        }
        integers
    }

    #[inline(always)]
    fn element(integer: f32, scale: f32, _minimum: f32) -> f32 {
        scale * integer
    }
}

struct Q41;

impl Format<20, 4> for Q41 {
    #[inline(always)]
    fn halves(block: &[u8; 20]) -> [u16; 2] {
        [half(block, 0), half(block, 2)]
    }

    #[inline(always)]
    fn word(block: &[u8; 20], number: usize) -> u32 {
        word(block, 4 + 4 * number)
    }

    #[inline(always)]
    fn integers(words: &[[u32; LANES]; 4], k: usize) -> [i32; LANES] {
        four_bits(words, k)
    }

    #[inline(always)]
    fn element(integer: f32, scale: f32, minimum: f32) -> f32 {
        scale * integer + minimum
    }
}

struct Q80;

impl Format<34, 8> for Q80 {
    #[inline(always)]
    fn halves(block: &[u8; 34]) -> [u16; 2] {
        [half(block, 0), 0]
    }

    #[inline(always)]
    fn word(block: &[u8; 34], number: usize) -> u32 {
        word(block, 2 + 4 * number)
    }

    #[inline(always)]
    fn integers(words: &[[u32; LANES]; 8], k: usize) -> [i32; LANES] {
        let mut integers = [0; LANES];
        for lane in 0..LANES {
            // With its sign.
            integers[lane] = (words[k / 4][lane] << (24 - 8 * (k % 4))) as i32 >> 24;
        }
        integers
    }

    #[inline(always)]
    fn element(integer: f32, scale: f32, _minimum: f32) -> f32 {
        integer * scale
    }
}

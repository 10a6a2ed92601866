//! Products of a few rows with a weight in blocks whose rows lie side by side.
//!
//! A vector holds one element of each of 16 rows of the weight: it is widened in registers and
//! multiplied by an element of `x`, and 16 sums grow together. With the rows one after another, few
//! rows of `x` leave most of a vector empty. A sum runs over the features in order, as in the other
//! kernels.

#![expect(
    clippy::needless_range_loop,
    reason = "plain loops over lanes become vectors"
)]

use burn_align_quants::{Blocks, LANES, Lanes, OnPanels, PanelFormat, Panels};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Maximum number of rows.
pub(super) const MOST_ROWS: usize = 8;
/// Approximate maximum number of columns per task.
const MOST_COLUMNS: usize = 2048;
/// Multiplications that are not worth another thread.
const SMALL: usize = 1 << 17;

/// The panels of a weight whose rows of `width` elements are whole blocks.
pub(super) fn of_whole_blocks(weight: Blocks<'_>, width: usize) -> Option<Panels<'_>> {
    let panels = weight.panels()?;
    let whole = width.is_multiple_of(panels.format.block_elements());
    (whole && panels.skip == 0).then_some(panels)
}

/// `x Qᵀ + b`.
///
/// # Shapes
/// - x: `[row, width]`, no more than [`MOST_ROWS`]
/// - panels: `[vocab, width]`, whole blocks
/// - bias: `[vocab]`
/// - output: `[row, vocab]`
pub(super) fn affine(
    arch: Arch,
    x: &[f32],
    panels: Panels<'_>,
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
    let of_task = columns_of_a_task(vocab, threads);
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(vocab.div_ceil(of_task), || Vec::with_capacity(rows));
    for row in product.chunks_mut(vocab) {
        for (part, piece) in parts.iter_mut().zip(row.chunks_mut(of_task)) {
            part.push(piece);
        }
    }
    let task = |(number, sums): (usize, Vec<&mut [f32]>)| {
        let first = number * (of_task / LANES) * panels.stride;
        let bytes = &panels.bytes[first..];
        arch.dispatch(Task {
            x,
            width,
            panels: Panels { bytes, ..panels },
            sums,
        });
    };
    let parts = parts.into_iter().enumerate();
    match threads {
        1 => parts.for_each(task),
        _ => parts.collect::<Vec<_>>().into_par_iter().for_each(task),
    }
    product
}

/// As many for each thread, in whole panels; of a large weight, in several tasks, so that a
/// thread that is interrupted holds up the others less.
fn columns_of_a_task(vocab: usize, threads: usize) -> usize {
    let tasks = threads * vocab.div_ceil(threads * MOST_COLUMNS);
    vocab.div_ceil(LANES).div_ceil(tasks) * LANES
}

/// All rows of `x` with some rows of the weight.
struct Task<'a> {
    x: &'a [f32],
    width: usize,
    panels: Panels<'a>,
    sums: Vec<&'a mut [f32]>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        self.panels
            .format
            .on_panels(self)
            .expect("this format lies side by side");
    }
}

impl OnPanels for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with<F: PanelFormat<BYTES, WORDS>, const BYTES: usize, const WORDS: usize>(mut self) {
        match self.sums.len() {
            1 => self.run::<F, BYTES, WORDS, 1>(),
            2 => self.run::<F, BYTES, WORDS, 2>(),
            3..=5 => self.run::<F, BYTES, WORDS, 5>(),
            6..=MOST_ROWS => self.run::<F, BYTES, WORDS, MOST_ROWS>(),
            rows => unreachable!("{rows} rows, more than {MOST_ROWS}"),
        }
    }
}

impl Task<'_> {
    /// As if there were `R` rows of `x`.
    // Plain loops: closures would not be compiled for the vectors of the CPU. Two panels at a time
    // are faster only where the weight is in the cache.
    #[inline(always)]
    fn run<F: PanelFormat<BYTES, WORDS>, const BYTES: usize, const WORDS: usize, const R: usize>(
        &mut self,
    ) {
        let rows = self.sums.len();
        let columns = self.sums[0].len();
        let mut x = [self.x; R];
        for r in 0..R {
            // Past the end, the last row again.
            x[r] = &self.x[r.min(rows - 1) * self.width..][..self.width];
        }
        for first in (0..columns).step_by(LANES) {
            let panels = &self.panels.bytes[first / LANES * self.panels.stride..];
            let panels = &panels.as_chunks::<BYTES>().0[..self.width / F::ELEMENTS];
            let count = LANES.min(columns - first);
            let mut sums = [[0.0; LANES]; R];
            // At most `R`, as the compiler is told.
            for r in 0..rows.min(R) {
                sums[r][..count].copy_from_slice(&self.sums[r][first..][..count]);
            }
            for (number, panel) in panels.iter().enumerate() {
                for group in 0..F::ELEMENTS / F::GROUP {
                    let at = number * F::ELEMENTS + group * F::GROUP;
                    let mut of_group = [x[0]; R];
                    for r in 0..R {
                        of_group[r] = &x[r][at..][..F::GROUP];
                    }
                    multiply::<F, BYTES, WORDS, R>(panel, group, &of_group, &mut sums);
                }
            }
            for r in 0..rows.min(R) {
                self.sums[r][first..][..count].copy_from_slice(&sums[r][..count]);
            }
        }
    }
}

/// Adds the products of a group with as many elements of each row of `x`.
#[inline(always)]
fn multiply<
    F: PanelFormat<BYTES, WORDS>,
    const BYTES: usize,
    const WORDS: usize,
    const R: usize,
>(
    panel: &[u8; BYTES],
    group: usize,
    x: &[&[f32]; R],
    sums: &mut [Lanes<f32>; R],
) {
    let scales = F::scales(panel, group);
    let words = F::words(panel, group);
    let mut own = *sums;
    for first in (0..F::GROUP).step_by(4) {
        let integers = F::integers(&words, group, first);
        for k in 0..4 {
            let elements = F::elements(integers[k], &scales);
            for r in 0..R {
                let x = x[r][first + k];
                for lane in 0..LANES {
                    own[r][lane] = x.mul_add(elements[lane], own[r][lane]);
                }
            }
        }
    }
    *sums = own;
}

//! Products of a few rows with a weight in blocks whose rows lie side by side.
//!
//! A vector holds one element of each of 16 rows of the weight: it is widened in registers and
//! multiplied by an element of `x`, and 16 sums grow together. Otherwise, few rows of `x` leave
//! most of a vector empty. A sum runs over the features in order, as in the other kernels.

#![expect(
    clippy::needless_range_loop,
    reason = "plain loops over lanes become vectors"
)]

use burn_align_quants::{Blocks, LANES, Lanes, OnPanels, PanelFormat, Panels};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Maximum number of rows.
pub(super) const MOST_ROWS: usize = 8;
/// Multiplications that are not worth another thread.
const SMALL: usize = 1 << 17;

/// The panels of a weight whose rows of `width` elements are whole blocks.
pub(super) fn of(weight: Blocks<'_>, width: usize) -> Option<Panels<'_>> {
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
    let of_task = vocab.div_ceil(2 * threads).next_multiple_of(2 * LANES);
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
            1 => self.run::<F, BYTES, WORDS, 1, 2>(),
            2 => self.run::<F, BYTES, WORDS, 2, 2>(),
            3..=5 => self.run::<F, BYTES, WORDS, 5, 1>(),
            _ => self.run::<F, BYTES, WORDS, MOST_ROWS, 1>(),
        }
    }
}

impl Task<'_> {
    /// As if there were `R` rows of `x`, with `P` panels at a time.
    // Plain loops: closures would not be compiled for the vectors of the CPU.
    #[inline(always)]
    fn run<
        F: PanelFormat<BYTES, WORDS>,
        const BYTES: usize,
        const WORDS: usize,
        const R: usize,
        const P: usize,
    >(
        &mut self,
    ) {
        let rows = self.sums.len();
        let columns = self.sums[0].len();
        let mut x = [self.x; R];
        for r in 0..R {
            // Past the end, the last row again.
            x[r] = &self.x[r.min(rows - 1) * self.width..][..self.width];
        }
        for first in (0..columns).step_by(P * LANES) {
            let mut panels: [&[[u8; BYTES]]; P] = [&[]; P];
            let mut sums = [[[0.0; LANES]; P]; R];
            for p in 0..P {
                // Past the end, the first panel again.
                let column = match first + p * LANES < columns {
                    true => first + p * LANES,
                    false => first,
                };
                let bytes = &self.panels.bytes[column / LANES * self.panels.stride..];
                panels[p] = &bytes.as_chunks::<BYTES>().0[..self.width / F::ELEMENTS];
                let count = LANES.min(columns - column);
                for r in 0..rows.min(R) {
                    sums[r][p][..count].copy_from_slice(&self.sums[r][column..][..count]);
                }
            }
            for block in 0..self.width / F::ELEMENTS {
                for group in 0..F::ELEMENTS / F::GROUP {
                    let at = block * F::ELEMENTS + group * F::GROUP;
                    let mut of_group = [x[0]; R];
                    for r in 0..R {
                        of_group[r] = &x[r][at..][..F::GROUP];
                    }
                    let mut blocks = [&panels[0][block]; P];
                    for p in 0..P {
                        blocks[p] = &panels[p][block];
                    }
                    multiply::<F, BYTES, WORDS, R, P>(&blocks, group, &of_group, &mut sums);
                }
            }
            for p in 0..P {
                let column = first + p * LANES;
                if column < columns {
                    let count = LANES.min(columns - column);
                    for r in 0..rows.min(R) {
                        self.sums[r][column..][..count].copy_from_slice(&sums[r][p][..count]);
                    }
                }
            }
        }
    }
}

/// Adds the products of a group of `P` panels with as many elements of each row of `x`.
#[inline(always)]
fn multiply<
    F: PanelFormat<BYTES, WORDS>,
    const BYTES: usize,
    const WORDS: usize,
    const R: usize,
    const P: usize,
>(
    panels: &[&[u8; BYTES]; P],
    group: usize,
    x: &[&[f32]; R],
    sums: &mut [[Lanes<f32>; P]; R],
) {
    let mut scales = [[[0.0; LANES]; 2]; P];
    let mut words = [[[0; LANES]; WORDS]; P];
    for p in 0..P {
        scales[p] = F::scales(panels[p], group);
        words[p] = F::words(panels[p], group);
    }
    let mut own = *sums;
    for first in (0..F::GROUP).step_by(4) {
        let mut integers = [[[0; LANES]; 4]; P];
        for p in 0..P {
            integers[p] = F::integers(&words[p], group, first);
        }
        for k in 0..4 {
            for p in 0..P {
                let elements = F::elements(integers[p][k], &scales[p]);
                for r in 0..R {
                    let x = x[r][first + k];
                    for lane in 0..LANES {
                        own[r][p][lane] = x.mul_add(elements[lane], own[r][p][lane]);
                    }
                }
            }
        }
    }
    *sums = own;
}

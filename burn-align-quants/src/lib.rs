//! Weights in the block formats of GGUF files, and their conversion to f32.
//!
//! A block holds a few consecutive elements of a row: small integers, and the scales that they are
//! multiplied by. The layouts are those of ggml's `ggml-quants.c`; the values equal, to the bit,
//! those that the Python package `gguf` computes (`gguf/quants.py`, version 0.19).
//!
//! A format is one function from the bytes of a block to its elements, and one line of the table in
//! this file.
//!
//! [`dequantize`] converts whole blocks. A [`QuantizedMatrix`] stays in blocks, in memory or in a
//! mapped file, and gives parts of itself without a copy. Kernels that multiply by blocks call
//! [`Blocks::widen`] or, for rows that lie side by side, a [`PanelFormat`], whose functions are
//! inlined into a function that is compiled for the vectors of the CPU.

mod floats;
mod iq4;
mod k;
mod legacy;
mod matrix;
mod panels;
#[cfg(test)]
mod tests;

use std::{fmt, hint};

use floats::widen_f16;
pub use matrix::{Blocks, Panels, QuantizedMatrix, QuantizedMatrixError};
pub use panels::{LANES, Lanes, OnPanels, PanelFormat};

/// Defines [`BlockFormat`] from a table of formats: name, number in GGUF files, function.
macro_rules! formats {
    ($(
        $(#[$doc:meta])*
        $format:ident = $number:literal, $widen:path: $bytes:literal => $elements:literal;
    )+) => {
        /// How the elements of a matrix are stored.
        ///
        /// The names and numbers are those of `enum ggml_type` in ggml's `ggml.h`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[expect(non_camel_case_types, reason = "the established names")]
        pub enum BlockFormat {
            $($(#[$doc])* $format,)+
        }

        impl BlockFormat {
            /// Every format.
            pub const ALL: &[Self] = &[$(Self::$format),+];

            /// The format with this number in GGUF files.
            pub fn from_ggml_type(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$format),)+
                    _ => None,
                }
            }

            /// Its number in GGUF files.
            pub fn ggml_type(self) -> u32 {
                match self {
                    $(Self::$format => $number,)+
                }
            }

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$format => stringify!($format),)+
                }
            }

            /// Elements of a block.
            #[inline]
            pub const fn block_elements(self) -> usize {
                match self {
                    $(Self::$format => $elements,)+
                }
            }

            /// Bytes of a block.
            #[inline]
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$format => $bytes,)+
                }
            }
        }

        /// [`dequantize`], compiled with the vector width of the calling function.
        #[inline(always)]
        fn widen(format: BlockFormat, blocks: &[u8], out: &mut [f32]) {
            match format {
                $(BlockFormat::$format => each::<$bytes, $elements>(blocks, out, $widen),)+
            }
        }
    };
}

formats! {
    /// 32 bits.
    F32 = 0, floats::f32: 4 => 1;
    /// IEEE half precision.
    F16 = 1, floats::f16: 2 => 1;
    /// The upper half of an f32.
    BF16 = 30, floats::bf16: 2 => 1;
    /// 4 bits and a scale for each 32.
    Q4_0 = 2, legacy::q4_0: 18 => 32;
    /// 4 bits, a scale and a minimum for each 32.
    Q4_1 = 3, legacy::q4_1: 20 => 32;
    /// 5 bits and a scale for each 32.
    Q5_0 = 6, legacy::q5_0: 22 => 32;
    /// 5 bits, a scale and a minimum for each 32.
    Q5_1 = 7, legacy::q5_1: 24 => 32;
    /// 8 bits and a scale for each 32.
    Q8_0 = 8, legacy::q8_0: 34 => 32;
    /// 2 bits; 16 scales and minima of 4 bits for each 256.
    Q2_K = 10, k::q2: 84 => 256;
    /// 3 bits; 16 scales of 6 bits for each 256.
    Q3_K = 11, k::q3: 110 => 256;
    /// 4 bits; 8 scales and minima of 6 bits for each 256.
    Q4_K = 12, k::q4: 144 => 256;
    /// 5 bits; 8 scales and minima of 6 bits for each 256.
    Q5_K = 13, k::q5: 176 => 256;
    /// 6 bits; 16 scales of 8 bits for each 256.
    Q6_K = 14, k::q6: 210 => 256;
    /// 4 bits that index unevenly spaced values, and a scale for each 32.
    IQ4_NL = 20, iq4::nl: 18 => 32;
    /// As [`IQ4_NL`](Self::IQ4_NL), with 8 scales of 6 bits for each 256.
    IQ4_XS = 23, iq4::xs: 136 => 256;
}

impl BlockFormat {
    /// Bytes of a row of `elements` elements; `None` if these are not whole blocks, or more than
    /// can be addressed.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Writes the elements of consecutive blocks to `out`, in f32.
///
/// # Panics
/// Unless `blocks` are whole blocks and `out` has as many elements.
pub fn dequantize(format: BlockFormat, blocks: &[u8], out: &mut [f32]) {
    assert_eq!(
        format.row_bytes(out.len()),
        Some(blocks.len()),
        "{} elements of {format} in {} bytes",
        out.len(),
        blocks.len()
    );
    widen(format, blocks, out);
}

/// Writes consecutive elements of a row to `out`, in f32, starting and ending at any element.
///
/// - row: its blocks, or some from the first one on
/// - first: the index of the first element
///
/// # Panics
/// If the row ends before the last of these elements.
#[inline(always)]
fn widen_part(format: BlockFormat, row: &[u8], first: usize, out: &mut [f32]) {
    let (elements, bytes) = (format.block_elements(), format.block_bytes());
    let (mut at, mut rest) = (first, out);
    while !rest.is_empty() {
        let blocks = &row[at / elements * bytes..];
        let before = at % elements;
        let whole = match before {
            0 => rest.len() / elements,
            _ => 0,
        };
        if whole > 0 {
            let (out, others) = rest.split_at_mut(whole * elements);
            widen(format, &blocks[..whole * bytes], out);
            (at, rest) = (at + whole * elements, others);
        } else {
            let mut block = [0.0; LONGEST];
            widen(format, &blocks[..bytes], &mut block[..elements]);
            let (out, others) = rest.split_at_mut(rest.len().min(elements - before));
            out.copy_from_slice(&block[before..][..out.len()]);
            (at, rest) = (at + out.len(), others);
        }
    }
}

/// Maximum number of elements in a block.
const LONGEST: usize = 256;
/// Maximum number of bytes of a block.
const LONGEST_BYTES: usize = 210;

/// Calls `widen` for each block.
#[inline(always)]
fn each<const BYTES: usize, const ELEMENTS: usize>(
    blocks: &[u8],
    out: &mut [f32],
    widen: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, _) = blocks.as_chunks::<BYTES>();
    let (out, _) = out.as_chunks_mut::<ELEMENTS>();
    for (block, out) in blocks.iter().zip(out) {
        widen(block, out);
    }
}

/// Some bytes of a block, starting at `AT`.
#[inline(always)]
fn part<const AT: usize, const N: usize, const BYTES: usize>(block: &[u8; BYTES]) -> &[u8; N] {
    const { assert!(AT + N <= BYTES) };
    block[AT..].first_chunk().expect("checked when compiled")
}

/// The half-precision number at `AT`, in f32.
#[inline(always)]
fn scale<const AT: usize, const BYTES: usize>(block: &[u8; BYTES]) -> f32 {
    floats::widen_f16(u16::from_le_bytes(*part::<AT, 2, BYTES>(block)))
}

/// Integers that have been unpacked, before they become floats.
///
/// Without this, both steps are compiled as one, which works on single elements of several blocks
/// at once and takes three times as long for some formats.
#[inline(always)]
fn apart<T, const N: usize>(q: [T; N]) -> [T; N] {
    hint::black_box(q)
}

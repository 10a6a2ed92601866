//! Blocks of 256 elements with scales, and in some formats minima, of sub-blocks: quantised
//! themselves, with a scale of the whole block in half precision.

use super::{apart, part, scale};

/// Sub-blocks of 16; bits 2j and 2j + 1 of 32 bytes are 32 consecutive elements.
#[inline(always)]
pub(super) fn q2(block: &[u8; 84], out: &mut [f32; 256]) {
    let scales = part::<0, 16, 84>(block);
    let q = two_bits(part::<16, 64, 84>(block));
    let (d, d_min) = (scale::<80, 84>(block), scale::<82, 84>(block));
    let subs = q.as_chunks::<16>().0.iter();
    for ((q, out), scales) in subs.zip(out.as_chunks_mut::<16>().0).zip(scales) {
        let q = apart(*q);
        let (d, min) = (d * f32::from(scales & 15), d_min * f32::from(scales >> 4));
        for i in 0..16 {
            out[i] = d * f32::from(q[i]) - min;
        }
    }
}

/// As [`q2`]; the third bit, worth -4 where it is *not* set, is bit `j` of 32 bytes for the `j`th
/// 32 elements.
#[inline(always)]
pub(super) fn q3(block: &[u8; 110], out: &mut [f32; 256]) {
    let high = part::<0, 32, 110>(block);
    let mut q = two_bits(part::<32, 64, 110>(block));
    let scales = six_bit_scales(part::<96, 12, 110>(block));
    let d = scale::<108, 110>(block);
    for (j, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for i in 0..32 {
            q[i] |= (high[i] >> j & 1) << 2;
        }
    }
    let subs = q.as_chunks::<16>().0.iter();
    for ((q, out), scale) in subs.zip(out.as_chunks_mut::<16>().0).zip(scales) {
        let q = apart(*q);
        let d = d * f32::from(scale);
        for i in 0..16 {
            out[i] = d * f32::from(q[i] as i8 - 4);
        }
    }
}

/// Sub-blocks of 32; the lower halves of 32 bytes are one, the upper halves the next.
#[inline(always)]
pub(super) fn q4(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, d_min) = (scale::<0, 144>(block), scale::<2, 144>(block));
    let (scales, minima) = scales_and_minima(part::<4, 12, 144>(block));
    let q = part::<16, 128, 144>(block).as_chunks::<32>().0;
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (q, shift) = (&q[sub / 2], sub % 2 * 4);
        let (d, min) = (d * f32::from(scales[sub]), d_min * f32::from(minima[sub]));
        for i in 0..32 {
            out[i] = d * f32::from(q[i] >> shift & 15) - min;
        }
    }
}

/// As [`q4`]; the fifth bit of sub-block `j` is bit `j` of 32 bytes.
#[inline(always)]
pub(super) fn q5(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, d_min) = (scale::<0, 176>(block), scale::<2, 176>(block));
    let (scales, minima) = scales_and_minima(part::<4, 12, 176>(block));
    let high = part::<16, 32, 176>(block);
    let q = part::<48, 128, 176>(block).as_chunks::<32>().0;
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (q, shift) = (&q[sub / 2], sub % 2 * 4);
        let (d, min) = (d * f32::from(scales[sub]), d_min * f32::from(minima[sub]));
        for i in 0..32 {
            let q = (q[i] >> shift & 15) | (high[i] >> sub & 1) << 4;
            out[i] = d * f32::from(q) - min;
        }
    }
}

/// Sub-blocks of 16; for each half of the block, 64 bytes hold the lower four bits, elements 0 to
/// 63 in their lower halves and the others in their upper halves, and the upper two bits are as in
/// [`q2`].
#[inline(always)]
pub(super) fn q6(block: &[u8; 210], out: &mut [f32; 256]) {
    let low = part::<0, 128, 210>(block).as_chunks::<64>().0;
    let mut q = two_bits(part::<128, 64, 210>(block));
    let scales = part::<192, 16, 210>(block);
    let d = scale::<208, 210>(block);
    for (low, q) in low.iter().zip(q.as_chunks_mut::<128>().0) {
        for i in 0..64 {
            q[i] = q[i] << 4 | low[i] & 15;
        }
        for i in 0..64 {
            q[i + 64] = q[i + 64] << 4 | low[i] >> 4;
        }
    }
    let subs = q.as_chunks::<16>().0.iter();
    for ((q, out), scale) in subs.zip(out.as_chunks_mut::<16>().0).zip(scales) {
        let q = apart(*q);
        let d = d * f32::from(*scale as i8);
        for i in 0..16 {
            out[i] = d * f32::from(q[i] as i8 - 32);
        }
    }
}

/// The pairs of bits of 64 bytes in element order: the lowest pair of each of the first 32 bytes,
/// then the next pair, and so on, then those of the other 32 bytes.
#[inline(always)]
fn two_bits(bytes: &[u8; 64]) -> [u8; 256] {
    let mut q = [0; 256];
    for (bytes, q) in bytes
        .as_chunks::<32>()
        .0
        .iter()
        .zip(q.as_chunks_mut::<128>().0)
    {
        for j in 0..4 {
            for i in 0..32 {
                q[j * 32 + i] = bytes[i] >> (2 * j) & 3;
            }
        }
    }
    q
}

/// Sixteen scales of 6 bits, less 32: the lower four bits in 8 bytes, eight in the lower and eight
/// in the upper halves, the upper two in 4 bytes, four scales at each pair of bits.
#[inline(always)]
fn six_bit_scales(packed: &[u8; 12]) -> [i8; 16] {
    let mut scales = [0; 16];
    for (index, scale) in scales.iter_mut().enumerate() {
        let low = packed[index % 8] >> (index / 8 * 4) & 15;
        let high = packed[8 + index % 4] >> (index / 4 * 2) & 3;
        *scale = (low | high << 4) as i8 - 32;
    }
    scales
}

/// Eight scales and eight minima of 6 bits: the first four of each in the lower bits of bytes 0 to
/// 7; of the others, the lower four bits are in bytes 8 to 11, and the upper two in the upper bits
/// of bytes 0 to 7.
#[inline(always)]
fn scales_and_minima(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (scale, min, both) = (packed[i], packed[i + 4], packed[i + 8]);
        scales[i] = scale & 63;
        minima[i] = min & 63;
        scales[i + 4] = (both & 15) | scale >> 6 << 4;
        minima[i + 4] = both >> 4 | min >> 6 << 4;
    }
    (scales, minima)
}

//! Blocks of 32 elements with a scale, and in some formats a minimum, in half precision.
//!
//! Of elements in 4 bits, byte `i` holds element `i` in its lower half and element `i + 16` in its
//! upper half; fifth bits are in a separate word, that of element `i` at bit `i`.

use super::{apart, part, scale};

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale::<0, 18>(block);
    let q = four_bits(part::<2, 16, 18>(block));
    for i in 0..32 {
        out[i] = d * f32::from(q[i] as i8 - 8);
    }
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, min) = (scale::<0, 20>(block), scale::<2, 20>(block));
    let q = four_bits(part::<4, 16, 20>(block));
    for i in 0..32 {
        out[i] = d * f32::from(q[i]) + min;
    }
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale::<0, 22>(block);
    let q = five_bits(part::<2, 4, 22>(block), part::<6, 16, 22>(block));
    for i in 0..32 {
        out[i] = d * f32::from(q[i] as i8 - 16);
    }
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, min) = (scale::<0, 24>(block), scale::<2, 24>(block));
    let q = five_bits(part::<4, 4, 24>(block), part::<8, 16, 24>(block));
    for i in 0..32 {
        out[i] = d * f32::from(q[i]) + min;
    }
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale::<0, 34>(block);
    let q = part::<2, 32, 34>(block);
    for i in 0..32 {
        out[i] = f32::from(q[i] as i8) * d;
    }
}

/// The lower halves of all bytes, then the upper ones.
#[inline(always)]
pub(super) fn four_bits(bytes: &[u8; 16]) -> [u8; 32] {
    let mut q = [0; 32];
    for i in 0..16 {
        q[i] = bytes[i] & 15;
    }
    for i in 0..16 {
        q[i + 16] = bytes[i] >> 4;
    }
    apart(q)
}

/// Puts the fifth bits of elements above their lower four.
#[inline(always)]
fn five_bits(high: &[u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(*high);
    let mut q = four_bits(low);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high >> i & 1) as u8) << 4;
    }
    apart(q)
}

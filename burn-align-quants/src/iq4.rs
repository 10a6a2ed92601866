//! Elements of 4 bits that index sixteen unevenly spaced values.

use super::{part, scale};

/// `kvalues_iq4nl` of ggml's `ggml-common.h`.
const VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// A scale; byte `i` holds element `i` in its lower half and element `i + 16` in its upper half.
#[inline(always)]
pub(super) fn nl(block: &[u8; 18], out: &mut [f32; 32]) {
    values(scale::<0, 18>(block), part::<2, 16, 18>(block), out);
}

/// Sub-blocks of 32 as in [`nl`], with scales of 6 bits, less 32: the lower four bits in 4 bytes,
/// the upper two in a word.
#[inline(always)]
pub(super) fn xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = scale::<0, 136>(block);
    let high = u16::from_le_bytes(*part::<2, 2, 136>(block));
    let low = part::<4, 4, 136>(block);
    let q = part::<8, 128, 136>(block).as_chunks::<16>().0;
    for (sub, (q, out)) in q.iter().zip(out.as_chunks_mut::<32>().0).enumerate() {
        let low = low[sub / 2] >> (sub % 2 * 4) & 15;
        let high = (high >> (2 * sub) & 3) as u8;
        let scale = (low | high << 4) as i8 - 32;
        values(d * f32::from(scale), q, out);
    }
}

#[inline(always)]
fn values(d: f32, q: &[u8; 16], out: &mut [f32; 32]) {
    for i in 0..16 {
        out[i] = d * VALUES[usize::from(q[i] & 15)];
        out[i + 16] = d * VALUES[usize::from(q[i] >> 4)];
    }
}

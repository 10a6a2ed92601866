//! Elements that are plain floats: blocks of one.

#[inline(always)]
pub(super) fn f32(block: &[u8; 4], out: &mut [f32; 1]) {
    *out = [f32::from_le_bytes(*block)];
}

#[inline(always)]
pub(super) fn f16(block: &[u8; 2], out: &mut [f32; 1]) {
    *out = [widen_f16(u16::from_le_bytes(*block))];
}

#[inline(always)]
pub(super) fn bf16(block: &[u8; 2], out: &mut [f32; 1]) {
    let upper = u32::from(u16::from_le_bytes(*block));
    *out = [f32::from_bits(upper << 16)];
}

/// A half-precision number, given by its bits, in f32: without branches and without checking the
/// CPU's features, so that a loop over it becomes vectors.
#[inline(always)]
pub(super) fn widen_f16(half: u16) -> f32 {
    /// The difference between the exponent biases: 127 - 15.
    const REBASE: f32 = f32::from_bits((127 + 112) << 23);
    /// The exponent of infinities and NaNs.
    const NOT_FINITE: u32 = 0x7c00;
    let half = u32::from(half);
    let sign = (half & 0x8000) << 16;
    let magnitude = half & 0x7fff;
    // Also exact for subnormal numbers.
    let finite = (f32::from_bits(magnitude << 13) * REBASE).to_bits();
    let exponent = match magnitude >= NOT_FINITE {
        true => 0xff << 23,
        false => 0,
    };
    f32::from_bits(finite | exponent | sign)
}

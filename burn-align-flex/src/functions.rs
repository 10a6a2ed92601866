//! Functions of one number and their derivatives, made of operations that the compiler turns into
//! those of vectors: all ways through them are computed, then one is chosen.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};
use std::fmt::Debug;

/// A function that is applied to every element.
pub(super) trait Function: Copy + Debug + Send + Sync + 'static {
    /// The value and the derivative.
    fn at(x: f32) -> [f32; 2];
}

/// `x Φ(x)`, with the distribution function of the normal distribution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gelu;

impl Function for Gelu {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        // φ(0) = 1/√(2π)
        const DENSITY: f32 = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
        let below = normal_distribution(x);
        let density = DENSITY * exp(-0.5 * x * x);
        [x * below, below + x * density]
    }
}

/// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, as `x σ(2u)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        const LINEAR: f32 = 1.595_769; // 2 √(2/π)
        const CUBIC: f32 = LINEAR * 0.044715;
        let square = x * x;
        let s = logistic(x * (square * CUBIC + LINEAR));
        let slope = square * (3.0 * CUBIC) + LINEAR;
        [x * s, s + x * s * (1.0 - s) * slope]
    }
}

/// `x σ(1.702 x)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuickGelu;

impl Function for QuickGelu {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        let s = logistic(1.702 * x);
        [x * s, s + 1.702 * x * s * (1.0 - s)]
    }
}

/// `σ(x) = 1 / (1 + e⁻ˣ)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sigmoid;

impl Function for Sigmoid {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        let s = logistic(x);
        [s, s * (1.0 - s)]
    }
}

/// `x σ(x)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        let s = logistic(x);
        [x * s, s + x * s * (1.0 - s)]
    }
}

#[inline(always)]
fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `Φ(x) = erfc(-x/√2) / 2`, off by at most 1.5e-7, and by 1e-5 of itself where it is a normal number
/// below 1/2.
///
/// The polynomials of erf and erfc are those of the Cephes library (Moshier).
#[inline(always)]
fn normal_distribution(x: f32) -> f32 {
    let z = FRAC_1_SQRT_2 * x;
    let a = z.abs();
    let square = z * z;
    // erf(z) / z, where |z| < 1
    let erf = polynomial(
        square,
        [
            7.853_861_4e-5,
            -8.010_194e-4,
            5.188_327_7e-3,
            -2.685_381_3e-2,
            1.128_358_5e-1,
            -3.761_262_7e-1,
            FRAC_2_SQRT_PI,
        ],
    );
    let middle = 0.5 + 0.5 * z * erf;
    // erfc(a) a e^(a²), as a polynomial of 1/a²: where a < 2, and beyond
    let inverse = 1.0 / a.max(1.0);
    let y = inverse * inverse;
    let near = polynomial(
        y,
        [
            2.326_82e-2,
            -1.387_039_4e-1,
            3.687_424_7e-1,
            -5.824_733e-1,
            6.210_004_6e-1,
            -4.944_515_3e-1,
            3.404_88e-1,
            -2.741_127e-1,
            5.638_259_4e-1,
        ],
    );
    let far = polynomial(
        y,
        [
            -1.047_766_4e1,
            1.297_72e1,
            -7.495_518_7,
            2.921_019,
            -1.015_265_2,
            4.218_463_4e-1,
            -2.820_767_4e-1,
            5.641_895e-1,
        ],
    );
    let tail = 0.5 * exp(-0.5 * x * x) * inverse * if a < 2.0 { near } else { far };
    let outside = if x < 0.0 { tail } else { 1.0 - tail };
    if a < 1.0 { middle } else { outside }
}

/// The coefficient of the highest power comes first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut p = 0.0;
    for coefficient in coefficients {
        p = p * x + coefficient;
    }
    p
}

/// `eˣ` within 2 units in the last place; 0 where it is below the smallest normal number, and no
/// more than e⁸⁸, which is nearly the largest.
///
/// `eˣ = 2ⁿ eʳ` with `|r| ≤ ln 2 / 2`; the polynomial is that of the Cephes library (Moshier).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.336_54;
    const MOST: f32 = 88.0;
    // Adding it rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let bounded = x.clamp(LEAST, MOST);
    let shifted = bounded * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = bounded - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + coefficient;
    }
    p = p * (r * r) + r + 1.0;
    let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    // Added to its bits, a power could make a number of what is none.
    let power = if x.is_nan() { x } else { power };
    if x < LEAST { 0.0 } else { power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        for bits in [0x7fc0_0000_u32, 0x7fc0_0001, 0xffc0_0101, 0x7fff_ffff] {
            assert!(exp(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
        assert!(exp(f32::INFINITY) > 1e38);
    }

    /// Against the error function of f64.
    #[test]
    fn the_normal_distribution() {
        for i in -130_000..130_000 {
            let x = i as f32 * 1e-4;
            let expected = 0.5 * libm::erfc(-f64::from(x) / std::f64::consts::SQRT_2);
            let error = (f64::from(normal_distribution(x)) - expected).abs();
            assert!(error < 1.5e-7, "at {x}: {error}");
            assert!(
                x > 0.0 || error / expected < 1e-5,
                "at {x}: {}",
                error / expected
            );
        }
        assert_eq!(normal_distribution(f32::INFINITY), 1.0);
        assert_eq!(normal_distribution(f32::NEG_INFINITY), 0.0);
        assert!(normal_distribution(f32::NAN).is_nan());
        assert_eq!(Gelu::at(1e30), [1e30, 1.0]);
        assert_eq!(Gelu::at(-1e30), [0.0, 0.0]);
    }
}

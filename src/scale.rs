//! The shade of a number.

/// From numbers to shades.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// For non-negative numbers: empty for the smallest, strong for the largest.
    From {
        /// The smallest.
        low: f64,
        /// The largest.
        high: f64,
    },
    /// For numbers of both signs: empty for 0, strong at either end, with two kinds of shades.
    Around0 {
        /// The largest magnitude.
        most: f64,
    },
}

impl Scale {
    /// The scale for numbers between these.
    pub(crate) fn new((low, high): (f64, f64)) -> Self {
        match low < 0.0 {
            true => Self::Around0 {
                most: high.max(-low),
            },
            false => Self::From { low, high },
        }
    }

    /// The strength of a number's shade, from 0 to 1, or from 0 to -1 for a negative one. Numbers
    /// beyond the scale are at its ends, and a NaN is at 0.
    pub(crate) fn shade(self, value: f64) -> f64 {
        let (shade, least) = match self {
            Self::From { low, high } if high > low => ((value - low) / (high - low), 0.0),
            Self::From { .. } => (0.0, 0.0),
            Self::Around0 { most } => (value / most, -1.0),
        };
        match shade.is_nan() {
            true => 0.0,
            false => shade.clamp(least, 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_signs_are_empty_at_0_and_strong_at_both_ends() {
        let scale = Scale::new((-0.7, 0.5));
        for (value, shade) in [(-0.7, -1.0), (0.0, 0.0), (0.35, 0.5), (f64::NAN, 0.0)] {
            assert!((scale.shade(value) - shade).abs() < 1e-12, "{value}");
        }
        assert_eq!(scale.shade(f64::NEG_INFINITY), -1.0);
        assert_eq!(scale.shade(f64::INFINITY), 1.0);
    }

    #[test]
    fn numbers_above_0_begin_at_the_smallest() {
        let scale = Scale::new((0.25, 0.75));
        assert_eq!(
            [0.25, 0.5, 0.75, 0.0].map(|value| scale.shade(value)),
            [0.0, 0.5, 1.0, 0.0]
        );
        assert_eq!(Scale::new((0.5, 0.5)).shade(0.5), 0.0);
        assert_eq!(Scale::new((0.0, 0.0)).shade(1.0), 0.0);
    }
}

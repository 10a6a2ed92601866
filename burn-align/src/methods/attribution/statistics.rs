//! Rank correlation, and Student's t distribution.

/// Pearson's correlation; `None` if one of the lists does not vary.
pub(super) fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let products = |x: &[f64], mean_x: f64, y: &[f64], mean_y: f64| -> f64 {
        let pairs = x.iter().zip(y);
        pairs.map(|(x, y)| (x - mean_x) * (y - mean_y)).sum()
    };
    let variances = products(a, mean_a, a, mean_a) * products(b, mean_b, b, mean_b);
    let covariance = products(a, mean_a, b, mean_b);
    (variances > 0.0).then(|| covariance / variances.sqrt())
}

/// Spearman's rank correlation: Pearson's of ranks, where equal values have their mean rank.
pub(super) fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    pearson(&ranks(a), &ranks(b))
}

/// Ranks from 1, for the smallest; equal values have their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let equal = order[start..].iter();
        let count = equal.take_while(|it| values[**it] == values[order[start]]);
        // A NaN is not equal to itself.
        let end = start + count.count().max(1);
        for index in &order[start..end] {
            ranks[*index] = (start + 1 + end) as f64 / 2.0;
        }
        start = end;
    }
    ranks
}

/// The mean, and the unbiased variance.
pub(super) fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, squares / (count - 1.0))
}

/// The value that a variable of Student's t distribution exceeds with probability `tail < 0.5`.
pub(super) fn student_t_upper(tail: f64, degrees: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while upper_tail(high, degrees) > tail && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        match upper_tail(middle, degrees) > tail {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}

/// The probability that a variable of Student's t distribution exceeds `t ≥ 0`.
fn upper_tail(t: f64, degrees: f64) -> f64 {
    0.5 * incomplete_beta(degrees / (degrees + t * t), degrees / 2.0, 0.5)
}

/// The regularised incomplete beta function `I_x(a, b)`, by its continued fraction (DLMF 8.17.22),
/// evaluated with Lentz's method.
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast on this side; I_x(a, b) = 1 − I_{1−x}(b, a).
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = a * x.ln() + b * (1.0 - x).ln() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b);
    let nonzero = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let (mut fraction, mut c, mut d) = (1.0, 1.0, 0.0);
    for step in 0..1000 {
        let m = f64::from(step / 2);
        let numerator = match step {
            0 => 1.0,
            _ if step % 2 == 0 => m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            _ => -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        };
        d = 1.0 / nonzero(1.0 + numerator * d);
        c = nonzero(1.0 + numerator / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front.exp() / a * (fraction - 1.0)
}

/// `ln Γ(x)` for `x > 0`: Stirling's series (DLMF 5.11.1) from 10 on, and the recurrence below.
fn ln_gamma(x: f64) -> f64 {
    if x < 10.0 {
        return ln_gamma(x + 1.0) - x.ln();
    }
    let square = (x * x).recip();
    let series = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0]
        .iter()
        .rev()
        .fold(0.0, |sum, term| sum * square + term);
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series / x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_equal_values_are_averaged() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        // 1 − 6 Σd² / n(n² − 1), with d = 0, 1, 1, 0.
        let found = spearman(&[1.0, 2.0, 3.0, 4.0], &[10.0, 30.0, 20.0, 40.0]);
        assert!((found.expect("they vary") - 0.8).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        let reversed = pearson(&[1.0, 2.0, 3.0], &[6.0, 4.0, 2.0]);
        assert!((reversed.expect("they vary") + 1.0).abs() < 1e-12);
    }

    #[test]
    fn quantiles_of_t_are_those_of_tables() {
        // Tail, degrees of freedom, and the quantile in published tables.
        for (tail, degrees, expected) in [
            (0.025, 10.0, 2.228139),
            (0.05, 1.0, 6.313752),
            (0.005, 30.0, 2.749996),
            (0.025, 2.0, 4.302653),
            (0.1, 120.0, 1.288646),
        ] {
            let found = student_t_upper(tail, degrees);
            assert!(
                (found - expected).abs() < 2e-6,
                "{tail}, {degrees}: {found}"
            );
        }
    }

    #[test]
    fn gamma_of_whole_numbers_is_a_factorial() {
        assert!((ln_gamma(6.0) - 120.0_f64.ln()).abs() < 1e-10);
        let root = std::f64::consts::PI.sqrt();
        assert!((ln_gamma(0.5) - root.ln()).abs() < 1e-10);
    }
}

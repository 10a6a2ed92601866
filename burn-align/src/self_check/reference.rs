//! What operations compute, as plain loops in f64: the definition that backends are checked by.

/// Matrix products, one after the other.
///
/// # Shapes
/// - x: `[batch, rows, inner]`
/// - y: `[batch, inner, columns]`
/// - output: `[batch, rows, columns]`
pub(super) fn product(x: &[f64], y: &[f64], [rows, inner, columns]: [usize; 3]) -> Vec<f64> {
    let batch = x.len() / (rows * inner);
    let mut output = vec![0.0; batch * rows * columns];
    for (row, sums) in output.chunks_mut(columns).enumerate() {
        let matrix = &y[row / rows * inner * columns..][..inner * columns];
        let factors = &x[row * inner..][..inner];
        for (factor, line) in factors.iter().zip(matrix.chunks(columns)) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum += factor * value;
            }
        }
    }
    output
}

/// Swaps the middle axes.
///
/// # Shapes
/// - x: `[outer, a, b, width]`
/// - output: `[outer, b, a, width]`
pub(super) fn swapped(x: &[f64], [a, b, width]: [usize; 3]) -> Vec<f64> {
    let mut output = Vec::with_capacity(x.len());
    for part in x.chunks(a * b * width) {
        for second in 0..b {
            for first in 0..a {
                let start = (first * b + second) * width;
                output.extend_from_slice(&part[start..start + width]);
            }
        }
    }
    output
}

/// Transposed matrices.
///
/// # Shapes
/// - x: `[batch, rows, columns]`
/// - output: `[batch, columns, rows]`
pub(super) fn transposed(x: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    swapped(x, [rows, columns, 1])
}

/// The softmax of each row.
///
/// # Shapes
/// - x, output: `[row, width]`
pub(super) fn softmax(x: &[f64], width: usize) -> Vec<f64> {
    let mut output = Vec::with_capacity(x.len());
    for row in x.chunks(width) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exponentials: Vec<f64> = row.iter().map(|value| (value - largest).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        output.extend(exponentials.into_iter().map(|value| value / sum));
    }
    output
}

/// Scores with -∞ where a query must not see a key: the last query is at the position of the last
/// key, and sees `window` keys, itself included.
///
/// # Shapes
/// - scores, output: `[batch, q_pos, k_pos]`
pub(super) fn masked(
    scores: &[f64],
    [q_pos, k_pos]: [usize; 2],
    window: Option<usize>,
) -> Vec<f64> {
    let hidden = |index: usize| {
        let (query, key) = (index / k_pos % q_pos + k_pos - q_pos, index % k_pos);
        key > query || window.is_some_and(|window| key + window <= query)
    };
    let masked = scores
        .iter()
        .enumerate()
        .map(|(index, score)| match hidden(index) {
            true => f64::NEG_INFINITY,
            false => *score,
        });
    masked.collect()
}

/// Causal attention: `softmax(q kᵀ / √d_head, masked) v`.
///
/// # Shapes
/// - q, output: `[head, q_pos, d_head]`
/// - k, v: `[head, k_pos, d_head]`
pub(super) fn attention([q, k, v]: [&[f64]; 3], [q_pos, k_pos, d_head]: [usize; 3]) -> Vec<f64> {
    let scale = (d_head as f64).sqrt().recip();
    let keys = transposed(k, [k_pos, d_head]);
    let scores = product(q, &keys, [q_pos, d_head, k_pos]);
    let scores: Vec<f64> = scores.iter().map(|score| score * scale).collect();
    let weights = softmax(&masked(&scores, [q_pos, k_pos], None), k_pos);
    product(&weights, v, [q_pos, k_pos, d_head])
}

/// `(x - mean) / √(var + ε) · weight + bias` of each row.
///
/// # Shapes
/// - x, output: `[row, width]`
/// - weight, bias: `[width]`
pub(super) fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let mut output = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let (mean, deviation) = moments(row, epsilon);
        let normed = row.iter().map(|value| (value - mean) / deviation);
        let scaled = normed
            .zip(weight.iter().zip(bias))
            .map(|(value, (w, b))| value * w + b);
        output.extend(scaled);
    }
    output
}

/// The mean of a row, and `√(var + ε)`.
pub(super) fn moments(row: &[f64], epsilon: f64) -> (f64, f64) {
    let width = row.len() as f64;
    let mean = row.iter().sum::<f64>() / width;
    let squares = row.iter().map(|value| (value - mean).powi(2));
    (mean, (squares.sum::<f64>() / width + epsilon).sqrt())
}

/// `x / √(mean(x²) + ε) · weight` of each row.
///
/// # Shapes
/// - x, output: `[row, width]`
/// - weight: `[width]`
pub(super) fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let mut output = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let squares: f64 = row.iter().map(|value| value * value).sum();
        let root = (squares / row.len() as f64 + epsilon).sqrt();
        output.extend(row.iter().zip(weight).map(|(value, w)| value / root * w));
    }
    output
}

/// `x (1 + erf(x / √2)) / 2`, for numbers that are not large: by the series of erf, whose terms have
/// different signs.
pub(super) fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    // (-1)ⁿ z²ⁿ⁺¹ / n!
    let mut term = z;
    let mut sum = z;
    for n in 1..100 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    0.5 * x * (1.0 + std::f64::consts::FRAC_2_SQRT_PI * sum)
}

/// The tanh approximation of GELU, `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
pub(super) fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// `x σ(x)`.
pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Rotates the pairs `(x[i], x[i + d_head / 2])` of each position by the angles `pos / θ^(2i /
/// d_head)`.
///
/// # Shapes
/// - x, output: `[head, pos, d_head]`
pub(super) fn rotated(x: &[f64], [pos, d_head]: [usize; 2], theta: f64) -> Vec<f64> {
    let half = d_head / 2;
    let mut output = vec![0.0; x.len()];
    for (vector, (from, to)) in x.chunks(d_head).zip(output.chunks_mut(d_head)).enumerate() {
        for pair in 0..half {
            // The frequency is in f32, as models have it.
            let frequency = theta.powf(-2.0 * pair as f64 / d_head as f64) as f32;
            let (sin, cos) = ((vector % pos) as f64 * f64::from(frequency)).sin_cos();
            let (first, second) = (from[pair], from[pair + half]);
            to[pair] = first * cos - second * sin;
            to[pair + half] = second * cos + first * sin;
        }
    }
    output
}

/// Sums along the middle axis.
///
/// # Shapes
/// - x: `[outer, axis, inner]`
/// - output: `[outer, inner]`
pub(super) fn sums(x: &[f64], [axis, inner]: [usize; 2]) -> Vec<f64> {
    let mut output = vec![0.0; x.len() / axis];
    for (part, sums) in x.chunks(axis * inner).zip(output.chunks_mut(inner)) {
        for line in part.chunks(inner) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum += value;
            }
        }
    }
    output
}

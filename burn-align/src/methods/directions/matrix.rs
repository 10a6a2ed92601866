//! Symmetric matrices in f64: products of rows, the first eigenvector, linear systems.

#[cfg(test)]
mod tests;

/// The dot product, in eight sums that the compiler can compute together.
pub(in crate::methods) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_parts, a_rest) = a.as_chunks::<8>();
    let (b_parts, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a_parts.iter().zip(b_parts) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

/// The Euclidean norm.
pub(in crate::methods) fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

/// The sum of rows, each times its weight.
pub(in crate::methods) fn weighted_sum(rows: &[&[f64]], weights: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; rows.first().map_or(0, |row| row.len())];
    for (row, weight) in rows.iter().zip(weights) {
        for (sum, value) in sums.iter_mut().zip(*row) {
            *sum += weight * value;
        }
    }
    sums
}

/// A symmetric matrix, `[size, size]`.
#[derive(Clone, Debug)]
pub(in crate::methods) struct Symmetric {
    size: usize,
    values: Vec<f64>,
}

impl Symmetric {
    /// The dot products of all rows with each other: `X Xᵀ`.
    pub(in crate::methods) fn gram(rows: &[&[f64]]) -> Self {
        let size = rows.len();
        let mut values = vec![0.0; size * size];
        for i in 0..size {
            for j in 0..=i {
                let product = dot(rows[i], rows[j]);
                values[i * size + j] = product;
                values[j * size + i] = product;
            }
        }
        Self { size, values }
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.size..(index + 1) * self.size]
    }

    /// The sum of the diagonal.
    pub(in crate::methods) fn trace(&self) -> f64 {
        (0..self.size).map(|index| self.row(index)[index]).sum()
    }

    fn scaled(mut self, factor: f64) -> Self {
        self.values.iter_mut().for_each(|value| *value *= factor);
        self
    }

    /// The product with itself.
    fn squared(&self) -> Self {
        let rows: Vec<&[f64]> = (0..self.size).map(|index| self.row(index)).collect();
        Self::gram(&rows)
    }

    /// The product with a vector.
    pub(in crate::methods) fn times(&self, vector: &[f64]) -> Vec<f64> {
        let rows = (0..self.size).map(|index| dot(self.row(index), vector));
        rows.collect()
    }

    /// `λI + s K s` for this matrix K and a diagonal matrix s.
    pub(in crate::methods) fn scaled_and_shifted(&self, scales: &[f64], shift: f64) -> Self {
        let mut values = self.values.clone();
        for (i, row) in values.chunks_mut(self.size).enumerate() {
            for (value, scale) in row.iter_mut().zip(scales) {
                *value *= scale * scales[i];
            }
            row[i] += shift;
        }
        Self {
            size: self.size,
            values,
        }
    }

    /// The eigenvector, of unit norm, with the largest eigenvalue of a positive semidefinite matrix
    /// other than 0. `None` if a second eigenvalue is equal to it, up to about 1e-7 of it.
    ///
    /// Squaring a matrix squares the ratio of its eigenvalues, so that soon one term is left. Time
    /// grows with the cube of the size.
    pub(in crate::methods) fn first_eigenvector(self) -> Option<Vec<f64>> {
        /// Ratios up to 1 - 3e-8 fall below 1e-12. Rounding errors grow as fast, to no more than
        /// 1e-7.
        const SQUARINGS: usize = 30;
        let trace = self.trace();
        let mut power = self.scaled(1.0 / trace); // eigenvalues add up to 1
        for _ in 0..SQUARINGS {
            let square = power.squared();
            let sum_of_squares = square.trace();
            power = square.scaled(1.0 / sum_of_squares);
            if sum_of_squares > 1.0 - 1e-12 {
                // v vᵀ is left: any of its columns that is not 0 is a multiple of v.
                let diagonal = |index: &usize| power.row(*index)[*index];
                let by_diagonal = |a: &usize, b: &usize| diagonal(a).total_cmp(&diagonal(b));
                let largest = (0..power.size).max_by(by_diagonal)?;
                let column = power.row(largest);
                let length = norm(column);
                return Some(column.iter().map(|value| value / length).collect());
            }
        }
        None
    }

    /// The Cholesky decomposition; `None` if the matrix is not positive definite.
    pub(in crate::methods) fn cholesky(mut self) -> Option<Cholesky> {
        let size = self.size;
        for i in 0..size {
            let (done, rest) = self.values.split_at_mut(i * size);
            let row = &mut rest[..size];
            for j in 0..i {
                let other = &done[j * size..(j + 1) * size];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let square = row[i] - dot(&row[..i], &row[..i]);
            if !(square > 0.0 && square.is_finite()) {
                return None;
            }
            row[i] = square.sqrt();
        }
        Some(Cholesky(self))
    }
}

/// The lower triangle L of a decomposition `L Lᵀ`. What is above the diagonal has no meaning.
#[derive(Clone, Debug)]
pub(in crate::methods) struct Cholesky(Symmetric);

impl Cholesky {
    /// Solves `L Lᵀ x = y`.
    pub(in crate::methods) fn solve(&self, mut vector: Vec<f64>) -> Vec<f64> {
        for i in 0..vector.len() {
            let row = self.0.row(i);
            vector[i] = (vector[i] - dot(&row[..i], &vector[..i])) / row[i];
        }
        for i in (0..vector.len()).rev() {
            let row = self.0.row(i);
            let (before, rest) = vector.split_at_mut(i);
            rest[0] /= row[i];
            for (value, factor) in before.iter_mut().zip(row) {
                *value -= factor * rest[0];
            }
        }
        vector
    }
}

//! Logistic regression with an L2 penalty, to its optimum.

use super::DirectionError;
use super::data::mean;
use super::matrix::{Symmetric, dot, norm, weighted_sum};

#[cfg(test)]
mod tests;

/// Newton steps. Four to ten are usual.
const STEPS: usize = 100;
/// Halvings of a step.
const HALVINGS: usize = 40;
/// The gradient at the end, relative to the one at the start.
const TOLERANCE: f64 = 1e-8;

/// The weights that minimise `Σ log(1 + exp(-y (w·x + b))) + l2/2 ‖w‖²` over w and b, y being 1 or
/// -1.
///
/// The optimum is a sum of rows, `w = Xᵀ α`, so the search is over one number for each row instead
/// of each feature: Newton's method with `K = X Xᵀ` (kernel logistic regression; Rasmussen &
/// Williams 2006, section 3.4). Time grows with the cube of the number of rows.
pub(super) fn probe(rows: &[&[f64]], labels: &[bool], l2: f64) -> Result<Vec<f64>, DirectionError> {
    // The bias absorbs the mean; without it, products of rows lose fewer digits.
    let mean = mean(rows);
    let centred: Vec<Vec<f64>> = rows
        .iter()
        .map(|row| row.iter().zip(&mean).map(|(x, mean)| x - mean).collect())
        .collect();
    let centred: Vec<&[f64]> = centred.iter().map(Vec::as_slice).collect();
    let problem = Problem {
        gram: Symmetric::gram(&centred),
        targets: labels.iter().map(|label| f64::from(*label)).collect(),
        l2,
    };
    let mut point = problem.start();
    let pulls = problem.gradient(&point).alpha;
    let start = norm(&weighted_sum(&centred, &pulls));
    let largest = centred.iter().zip(&pulls);
    let largest: f64 = largest.map(|(row, pull)| norm(row) * pull.abs()).sum();
    if start <= 1e-12 * largest {
        return Err(DirectionError::NoDifference {
            what: "the mean activations",
        });
    }
    for _ in 0..STEPS {
        let gradient = problem.gradient(&point);
        let is_balanced = gradient.bias.abs() <= TOLERANCE * rows.len() as f64;
        if is_balanced && gradient.norm() <= TOLERANCE * start {
            return Ok(weighted_sum(&centred, &point.alpha));
        }
        let next = problem.step(&point, &gradient);
        point = next.ok_or(DirectionError::NotConverged { steps: STEPS })?;
    }
    Err(DirectionError::NotConverged { steps: STEPS })
}

struct Problem {
    gram: Symmetric,
    /// 1 for positive rows, 0 for negative ones.
    targets: Vec<f64>,
    l2: f64,
}

/// Weights `Xᵀ alpha` and a bias, or a gradient or direction of both.
struct Point {
    /// One for each row.
    alpha: Vec<f64>,
    /// `K alpha`: the product of each row with the weights.
    products: Vec<f64>,
    bias: f64,
}

impl Point {
    /// The norm of the weights.
    fn norm(&self) -> f64 {
        dot(&self.alpha, &self.products).max(0.0).sqrt()
    }

    /// The log-odds of each row.
    fn scores(&self) -> impl Iterator<Item = f64> {
        self.products.iter().map(|product| product + self.bias)
    }

    /// The probability that each row is positive.
    fn probabilities(&self) -> Vec<f64> {
        self.scores()
            .map(|score| 1.0 / (1.0 + (-score).exp()))
            .collect()
    }

    /// The point this many times a direction away.
    fn moved(&self, direction: &Self, step: f64) -> Self {
        let along = |from: &[f64], by: &[f64]| -> Vec<f64> {
            from.iter()
                .zip(by)
                .map(|(from, by)| from + step * by)
                .collect()
        };
        Self {
            alpha: along(&self.alpha, &direction.alpha),
            products: along(&self.products, &direction.products),
            bias: self.bias + step * direction.bias,
        }
    }
}

impl Problem {
    /// No weights, and the log-odds of the classes as the bias.
    fn start(&self) -> Point {
        let rows = self.targets.len();
        let positive: f64 = self.targets.iter().sum();
        Point {
            alpha: vec![0.0; rows],
            products: vec![0.0; rows],
            bias: (positive / (rows as f64 - positive)).ln(),
        }
    }

    /// What is minimised.
    fn objective(&self, point: &Point) -> f64 {
        let losses = point.scores().zip(&self.targets).map(|(score, target)| {
            // log(1 + exp(-score)) for positive rows, without overflow.
            let wrong = if *target > 0.5 { -score } else { score };
            wrong.max(0.0) + (-wrong.abs()).exp().ln_1p()
        });
        losses.sum::<f64>() + 0.5 * self.l2 * dot(&point.alpha, &point.products)
    }

    fn gradient(&self, point: &Point) -> Point {
        let probabilities = point.probabilities();
        let errors: Vec<f64> = probabilities
            .iter()
            .zip(&self.targets)
            .map(|(probability, target)| probability - target)
            .collect();
        let alpha: Vec<f64> = point
            .alpha
            .iter()
            .zip(&errors)
            .map(|(alpha, error)| self.l2 * alpha + error)
            .collect();
        Point {
            products: self.gram.times(&alpha),
            alpha,
            bias: errors.iter().sum(),
        }
    }

    /// A Newton step, shortened until the objective falls; `None` if it never does.
    fn step(&self, point: &Point, gradient: &Point) -> Option<Point> {
        let direction = self.newton(point, gradient)?;
        let slope = dot(&direction.alpha, &gradient.products) + direction.bias * gradient.bias;
        let before = self.objective(point);
        let mut step = 1.0;
        for _ in 0..HALVINGS {
            let next = point.moved(&direction, step);
            // The last term is the objective's rounding error.
            if self.objective(&next) <= before + 1e-4 * step * slope + 1e-12 * before {
                return Some(next);
            }
            step *= 0.5;
        }
        None
    }

    /// The direction `δ` of Newton's method. With `W` the rows' `p (1 - p)`, it solves
    /// `(λI + WK) δα + W1 δb = -gradient` and keeps the sum of alpha at 0, as at the optimum.
    fn newton(&self, point: &Point, gradient: &Point) -> Option<Point> {
        let probabilities = point.probabilities();
        let weights: Vec<f64> = probabilities.iter().map(|p| p * (1.0 - p)).collect();
        let roots: Vec<f64> = weights.iter().map(|weight| weight.sqrt()).collect();
        let system = self.gram.scaled_and_shifted(&roots, self.l2).cholesky()?;
        // (λI + WK)⁻¹ y = (y - s (λI + sKs)⁻¹ s K y) / λ, where s² = W.
        let solve = |y: &[f64], k_y: &[f64]| -> Vec<f64> {
            let scaled = roots.iter().zip(k_y).map(|(root, value)| root * value);
            let solved = system.solve(scaled.collect());
            let terms = y.iter().zip(&roots).zip(&solved);
            terms
                .map(|((y, root), solved)| (y - root * solved) / self.l2)
                .collect()
        };
        let of_gradient = solve(&gradient.alpha, &gradient.products);
        let of_weights = solve(&weights, &self.gram.times(&weights));
        let sum = |values: &[f64]| values.iter().sum::<f64>();
        let bias = (sum(&point.alpha) - sum(&of_gradient)) / sum(&of_weights);
        let pairs = of_gradient.iter().zip(&of_weights);
        let alpha: Vec<f64> = pairs
            .map(|(gradient, weight)| -gradient - bias * weight)
            .collect();
        let is_finite = bias.is_finite() && alpha.iter().all(|value| value.is_finite());
        is_finite.then(|| Point {
            products: self.gram.times(&alpha),
            alpha,
            bias,
        })
    }
}

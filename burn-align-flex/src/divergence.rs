//! Kullback-Leibler divergences of predictions, in one pass over both, and their gradients in
//! another.

use std::cell::Cell;

use burn::tensor::{Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;
use pulp::Arch;
use rayon::prelude::*;

use super::autodiff::{self, Saved};
use super::functions::exp;
use super::kernels::{TASK, fold_with, in_tasks, log_sums};
use super::recognise::{generic, recognise, untracked};
use super::{memory, strided};

/// What the gradients of divergences need from the forward pass: of both predictions, the logits in
/// row-major order, and what [`log_sums`] finds.
#[derive(Clone, Debug)]
pub(super) struct State {
    wanted: Prediction,
    found: Prediction,
}

/// Logits of a softmax in each row.
#[derive(Clone, Debug)]
struct Prediction {
    /// In row-major order.
    logits: FlexTensor,
    log_sums: Vec<[f32; 2]>,
}

impl Prediction {
    fn new(logits: FlexTensor) -> Self {
        let classes = logits.shape().last().copied().unwrap_or(1);
        Self {
            log_sums: log_sums(logits.storage(), classes),
            logits,
        }
    }

    fn row(&self, row: usize) -> Row<'_> {
        let classes = self.logits.shape().last().copied().unwrap_or(1);
        let logits: &[f32] = self.logits.storage();
        Row {
            logits: &logits[row * classes..][..classes],
            log_sum: self.log_sums[row],
        }
    }
}

#[derive(Clone, Copy)]
struct Row<'a> {
    logits: &'a [f32],
    log_sum: [f32; 2],
}

impl Row<'_> {
    #[inline(always)]
    fn log_probability(self, logit: f32) -> f32 {
        let [largest, log_sum] = self.log_sum;
        (logit - largest) - log_sum
    }
}

impl State {
    fn new(wanted: FlexTensor, found: FlexTensor) -> Self {
        Self {
            wanted: Prediction::new(wanted),
            found: Prediction::new(found),
        }
    }

    fn divergences(&self) -> FlexTensor {
        let [rows, classes] = self.found.logits.shape().dims();
        let of_row = |row| {
            let (p, q) = (self.wanted.row(row), self.found.row(row));
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    fold_with(p.logits, q.logits, |sum, of_p, of_q| {
                        let log_p = p.log_probability(of_p);
                        let p = exp(log_p);
                        let term = p * (log_p - q.log_probability(of_q));
                        sum + if p == 0.0 { 0.0 } else { term }
                    })
                },
            )
        };
        let each = (0..rows).into_par_iter();
        let each = each.with_min_len((TASK / classes.max(1)).max(1));
        let each: Vec<f32> = each.map(of_row).collect();
        FlexTensor::from_data(TensorData::new(each, [rows]))
    }

    /// The gradient of what was found: `g (q - p)`.
    ///
    /// - gradient: `[row]`
    pub(super) fn gradient(self, gradient: FlexTensor) -> FlexTensor {
        let gradient = strided::contiguous(gradient);
        let gradient: &[f32] = gradient.storage();
        let shape = self.found.logits.shape();
        let [rows, classes] = shape.dims();
        let mut of_found = memory::numbers(rows * classes);
        in_tasks(&mut of_found, classes.max(1), |row, to| {
            let (p, q, gradient) = (self.wanted.row(row), self.found.row(row), gradient[row]);
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for ((to, of_p), of_q) in to.iter_mut().zip(p.logits).zip(q.logits) {
                        let [p, q] = [p.log_probability(*of_p), q.log_probability(*of_q)];
                        *to = gradient * (exp(q) - exp(p));
                    }
                },
            );
        });
        FlexTensor::from_data(TensorData::new(of_found, shape))
    }
}

/// `Σ p (ln p − ln q)` of each row, where `p` and `q` are the softmaxes of its logits; a class with
/// `p = 0` adds nothing. With the gradient of `found`.
///
/// # Shapes
/// - wanted (of `p`), found (of `q`): `[row, class]`
/// - output: `[row]`
///
/// # Errors
/// Both, if there is [no kernel](crate) for them, or `wanted` has a gradient.
///
/// # Panics
/// If the shapes differ.
pub fn kl_divergences<B: Backend>(
    wanted: Tensor<B, 2>,
    found: Tensor<B, 2>,
) -> Result<Tensor<B, 1>, [Tensor<B, 2>; 2]> {
    assert_eq!(wanted.dims(), found.dims(), "wanted and found");
    let Some(of_wanted) = untracked(&wanted).map(strided::contiguous) else {
        return Err([wanted, found]);
    };
    let found = match recognise(found) {
        Ok(found) => return Ok(generic(State::new(of_wanted, found).divergences())),
        Err(found) => found,
    };
    let seen = Cell::new(None);
    let divergences = autodiff::apply(
        found,
        |found| {
            let state = State::new(of_wanted, strided::contiguous(found));
            let divergences = state.divergences();
            seen.set(Some(state));
            divergences
        },
        |_, _| Saved::Divergences(seen.take().expect("the forward pass comes first")),
    );
    divergences.map_err(|found| [wanted, found])
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::{Distribution, activation::log_softmax};
    use burn_flex::Flex;

    use super::*;

    type A = Autodiff<Flex>;

    #[test]
    fn values_and_gradients_are_those_of_log_softmaxes() {
        let device = Default::default();
        for shape in [[1, 1], [3, 7], [5, 64], [16, 5003]] {
            let random = || Tensor::<A, 2>::random(shape, Distribution::Normal(0.0, 4.0), &device);
            let (wanted, found) = (random(), random());
            let weights = (0..shape[0]).map(|row| row as f32 - 1.5).collect();
            let weights = TensorData::new(weights, [shape[0]]);
            let weights = Tensor::<A, 1>::from_data(weights, &device);

            let ours = found.clone().detach().require_grad();
            let divergences = kl_divergences(wanted.clone(), ours.clone()).expect("a kernel");
            let inner = kl_divergences(wanted.clone().inner(), found.clone().inner());
            let theirs = found.detach().require_grad();
            let log_p = log_softmax(wanted, 1);
            let terms = log_p.clone().exp() * (log_p - log_softmax(theirs.clone(), 1));
            let expected = terms.sum_dim(1).squeeze_dim::<1>(1);

            let close = |a: TensorData, b: TensorData| {
                assert_eq!(a.shape, b.shape);
                for (a, b) in a.iter::<f32>().zip(b.iter::<f32>()) {
                    assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
                }
            };
            let values = divergences.clone().into_data();
            assert_eq!(inner.expect("a kernel").into_data(), values);
            close(values, expected.clone().into_data());
            let of = |loss: Tensor<A, 1>, x: &Tensor<A, 2>| {
                let gradients = (loss * weights.clone()).sum().backward();
                x.grad(&gradients).expect("a gradient").into_data()
            };
            close(of(divergences, &ours), of(expected, &theirs));
        }
    }

    #[test]
    fn impossible_classes() {
        let row = |logits: [f32; 3]| Tensor::<Flex, 2>::from_data([logits], &Default::default());
        let of = |p, q| {
            let found = kl_divergences(row(p), row(q)).expect("a kernel");
            found.into_scalar()
        };
        let never = f32::NEG_INFINITY;
        assert_eq!(of([1.0, 0.0, never], [1.0, 0.0, never]), 0.0);
        assert_eq!(of([0.0, 0.0, 0.0], [0.0, 0.0, never]), f32::INFINITY);
        let half = of([0.0, 0.0, never], [0.0, 0.0, 0.0]);
        assert!((half - 1.5_f32.ln()).abs() < 1e-6, "{half}");
        assert!(of([0.0, f32::NAN, 0.0], [0.0; 3]).is_nan());
        assert!(of([0.0; 3], [0.0, f32::NAN, 0.0]).is_nan());
    }

    #[test]
    fn gradients_of_both_are_left_to_the_caller() {
        let tracked = || Tensor::<A, 2>::ones([1, 2], &Default::default()).require_grad();
        assert!(kl_divergences(tracked(), tracked()).is_err());
    }
}

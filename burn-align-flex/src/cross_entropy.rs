//! Cross-entropies of logits, in one pass over them, and their gradients in another.

use std::cell::Cell;

use burn::tensor::{Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;

use super::autodiff::{self, Saved};
use super::recognise::{generic, recognise};
use super::{kernels, strided};

/// What the gradients of cross-entropies need from the forward pass.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// In row-major order.
    logits: FlexTensor,
    /// From [`kernels::log_sums`].
    log_sums: Vec<[f32; 2]>,
    labels: Vec<u32>,
}

impl State {
    /// The gradient of the logits.
    ///
    /// - gradient: `[row]`
    pub(super) fn gradient(self, gradient: FlexTensor) -> FlexTensor {
        let gradient = strided::contiguous(gradient);
        let of_logits = kernels::cross_entropy_gradient(
            gradient.storage(),
            self.logits.storage(),
            &self.log_sums,
            &self.labels,
        );
        FlexTensor::from_data(TensorData::new(of_logits, self.logits.shape()))
    }
}

/// `ln Σ eˣ − x[label]` of each row.
///
/// # Shapes
/// - logits: `[row, class]`
/// - labels: one for each row; only asked for if there is a kernel
/// - output: `[row]`
///
/// # Errors
/// `logits`, if there is [no kernel](crate) for them.
///
/// # Panics
/// If there is not one label for each row, or a label is not a class.
pub fn cross_entropies<B: Backend>(
    logits: Tensor<B, 2>,
    labels: impl FnOnce() -> Vec<u32>,
) -> Result<Tensor<B, 1>, Tensor<B, 2>> {
    let [rows, classes] = logits.dims();
    let checked = || {
        let labels = labels();
        assert_eq!(labels.len(), rows, "a label for each row");
        let found = labels.iter().find(|label| **label as usize >= classes);
        assert_eq!(found, None, "a label of {classes} classes");
        labels
    };
    let run = |logits: &FlexTensor, labels: &[u32]| {
        let log_sums = kernels::log_sums(logits.storage(), classes);
        let x: &[f32] = logits.storage();
        let each = log_sums.iter().zip(labels).enumerate();
        let each = each.map(|(row, ([largest, log_sum], label))| {
            (largest - x[row * classes + *label as usize]) + log_sum
        });
        let found = FlexTensor::from_data(TensorData::new(each.collect::<Vec<_>>(), [rows]));
        (found, log_sums)
    };
    let logits = match recognise(logits) {
        Ok(logits) => return Ok(generic(run(&logits, &checked()).0)),
        Err(logits) => logits,
    };
    let seen = Cell::new(None);
    autodiff::apply(
        logits,
        |logits| {
            let (logits, labels) = (strided::contiguous(logits), checked());
            let (found, log_sums) = run(&logits, &labels);
            seen.set(Some(State {
                logits,
                log_sums,
                labels,
            }));
            found
        },
        |_, _| Saved::CrossEntropies(seen.take().expect("the forward pass comes first")),
    )
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::{Distribution, Int, activation::log_softmax};
    use burn_flex::Flex;

    use super::*;

    type A = Autodiff<Flex>;

    #[test]
    fn values_and_gradients_are_those_of_a_log_softmax() {
        let device = Default::default();
        for [rows, classes] in [[1, 1], [3, 7], [5, 64], [16, 5003]] {
            let shape = [rows, classes];
            let logits = Tensor::<A, 2>::random(shape, Distribution::Normal(0.0, 9.0), &device);
            let labels: Vec<u32> = (0..rows).map(|row| (row * 977 % classes) as u32).collect();
            let weights = Tensor::<A, 1>::from_data(
                TensorData::new((0..rows).map(|row| row as f32 - 1.5).collect(), [rows]),
                &device,
            );
            let ours = logits.clone().detach().require_grad();
            let found = cross_entropies(ours.clone(), || labels.clone()).expect("a kernel");
            let inner = cross_entropies(logits.clone().inner(), || labels.clone());
            let theirs = logits.clone().detach().require_grad();
            let indices = labels.iter().map(|label| i64::from(*label)).collect();
            let indices = TensorData::new(indices, [rows, 1]);
            let indices = Tensor::<A, 2, Int>::from_data(indices, &device);
            let expected = -log_softmax(theirs.clone(), 1).gather(1, indices);
            let expected = expected.squeeze_dim::<1>(1);

            let close = |a: TensorData, b: TensorData| {
                for (a, b) in a.iter::<f32>().zip(b.iter::<f32>()) {
                    assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
                }
            };
            let values = found.clone().into_data();
            assert_eq!(inner.expect("a kernel").into_data(), values);
            close(values, expected.clone().into_data());
            let of = |loss: Tensor<A, 1>, x: &Tensor<A, 2>| {
                let gradients = (loss * weights.clone()).sum().backward();
                x.grad(&gradients).expect("a gradient").into_data()
            };
            close(of(found, &ours), of(expected, &theirs));
        }
    }

    #[test]
    fn large_logits_lose_nothing() {
        let device = Default::default();
        for offset in [0.0, 1e2, 1e4, -1e4] {
            let data = TensorData::new(vec![offset, offset - 2.0, offset - 0.5], [1, 3]);
            let logits = Tensor::<A, 2>::from_data(data, &device).require_grad();
            let found = cross_entropies(logits.clone(), || vec![0]).expect("a kernel");
            let sum = 1.0 + (-2.0_f64).exp() + (-0.5_f64).exp();
            let value = f64::from(found.clone().into_scalar());
            assert!((value - sum.ln()).abs() < 1e-6, "{offset}: {value}");
            let gradient = logits.grad(&found.backward()).expect("a gradient");
            let expected = [
                1.0 / sum - 1.0,
                (-2.0_f64).exp() / sum,
                (-0.5_f64).exp() / sum,
            ];
            for (found, expected) in gradient.into_data().iter::<f64>().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{offset}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_row_is_the_same_whatever_it_is_batched_with() {
        let device = Default::default();
        let logits = Tensor::<Flex, 2>::random([9, 999], Distribution::Default, &device);
        let whole = cross_entropies(logits.clone(), || (0..9).collect()).expect("a kernel");
        let whole: Vec<f32> = whole.into_data().iter().collect();
        for (row, expected) in whole.into_iter().enumerate() {
            let alone = logits.clone().narrow(0, row, 1);
            let alone = cross_entropies(alone, || vec![row as u32]).expect("a kernel");
            assert_eq!(alone.into_data().iter::<f32>().next(), Some(expected));
        }
    }

    #[test]
    #[should_panic(expected = "a label of 4 classes")]
    fn a_label_must_be_a_class() {
        let logits = Tensor::<Flex, 2>::zeros([1, 4], &Default::default());
        let _ = cross_entropies(logits, || vec![4]);
    }
}

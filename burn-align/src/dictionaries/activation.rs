//! What makes features sparse.

use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, TensorData, activation, backend::Backend};

/// The function from hidden values to feature activations.
///
/// In all formulas `h = x W_enc`, without the bias, and `b` is the encoder's bias.
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum FeatureActivation<B: Backend> {
    /// `ReLU(h + b)`.
    Relu(ReluFeatures),
    /// Only values above a threshold, per feature.
    JumpRelu(JumpReluFeatures<B>),
    /// Only the largest values of each row.
    TopK(TopKFeatures),
    /// Separate functions decide whether a feature is active and how much.
    Gated(GatedFeatures<B>),
}

/// `ReLU(h + b)` (Bricken et al. 2023, Towards Monosemanticity).
#[derive(Module, Clone, Debug, Default)]
pub struct ReluFeatures;

/// `ReLU(z) · [z > θ]` with `z = h + b` (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 4).
///
/// BatchTopK dictionaries (Bussmann et al. 2024, arXiv 2412.06410) are of this kind once trained:
/// the same threshold for all features replaces the comparison with the rest of the batch. The
/// threshold has no gradient.
#[derive(Module, Debug)]
#[doc(alias = "BatchTopK")]
pub struct JumpReluFeatures<B: Backend> {
    /// `θ`, `[feature]`.
    pub threshold: Param<Tensor<B, 1>>,
}

/// The `k` largest values of each row (Gao et al. 2024, arXiv 2406.04093, eq. 3).
///
/// Of equal values at the border, those of lower features are kept. Which features are active has
/// no gradient.
#[derive(Module, Clone, Debug)]
pub struct TopKFeatures {
    /// How many features of a row may be active.
    #[module(skip)]
    pub k: usize,
    /// What "large" means.
    #[module(skip)]
    pub ranking: Ranking,
}

/// By what the values of a row are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranking {
    /// By value, after a ReLU: `TopK(ReLU(h + b))`.
    #[default]
    Value,
    /// By magnitude, without a ReLU, so that features may be negative: AbsTopK (arXiv 2510.00404).
    #[doc(alias = "AbsTopK")]
    Magnitude,
}

/// `[h + b > 0] · ReLU(h · exp(r) + m)` (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 6): the
/// encoder's bias is that of the gate.
#[derive(Module, Debug)]
pub struct GatedFeatures<B: Backend> {
    /// `r`, `[feature]`.
    #[doc(alias = "r_mag")]
    pub log_magnitude: Param<Tensor<B, 1>>,
    /// `m`, `[feature]`.
    #[doc(alias = "b_mag")]
    pub magnitude_bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> FeatureActivation<B> {
    /// ReLU.
    pub fn relu() -> Self {
        Self::Relu(ReluFeatures)
    }

    /// JumpReLU with these thresholds, `[feature]`.
    pub fn jump_relu(threshold: Tensor<B, 1>) -> Self {
        Self::JumpRelu(JumpReluFeatures {
            threshold: Param::from_tensor(threshold.cast(DType::F32)),
        })
    }

    /// The `k` largest values.
    pub fn top_k(k: usize) -> Self {
        Self::TopK(TopKFeatures {
            k,
            ranking: Ranking::Value,
        })
    }

    /// The `k` values of largest magnitude.
    pub fn abs_top_k(k: usize) -> Self {
        Self::TopK(TopKFeatures {
            k,
            ranking: Ranking::Magnitude,
        })
    }

    /// Gated, with `r` and `m`, both `[feature]`.
    pub fn gated(log_magnitude: Tensor<B, 1>, magnitude_bias: Tensor<B, 1>) -> Self {
        Self::Gated(GatedFeatures {
            log_magnitude: Param::from_tensor(log_magnitude.cast(DType::F32)),
            magnitude_bias: Param::from_tensor(magnitude_bias.cast(DType::F32)),
        })
    }

    /// Whether a feature's activation depends on no other feature.
    pub fn is_local(&self) -> bool {
        !matches!(self, Self::TopK(_))
    }

    /// Applies the function to `h`, with the bias, `[row, feature]` → `[row, feature]`.
    ///
    /// `chosen` names the features of the columns if they are not all; only local functions can
    /// be applied to some.
    pub(crate) fn forward(
        &self,
        hidden: Tensor<B, 2>,
        bias: Tensor<B, 1>,
        chosen: Option<&Tensor<B, 1, Int>>,
    ) -> Tensor<B, 2> {
        let at = |parameter: &Param<Tensor<B, 1>>| -> Tensor<B, 2> {
            let all = parameter.val();
            let some = match chosen {
                Some(chosen) => all.select(0, chosen.clone()),
                None => all,
            };
            some.unsqueeze()
        };
        match self {
            Self::Relu(_) => activation::relu(hidden + bias.unsqueeze::<2>()),
            Self::JumpRelu(it) => {
                let hidden = hidden + bias.unsqueeze::<2>();
                let threshold = at(&it.threshold).expand(hidden.shape());
                let off = hidden.clone().lower_equal(threshold);
                activation::relu(hidden).mask_fill(off, 0.0)
            }
            Self::TopK(it) => it.forward(hidden + bias.unsqueeze::<2>()),
            Self::Gated(it) => {
                let off = (hidden.clone() + bias.unsqueeze::<2>()).lower_equal_elem(0.0);
                let magnitude = hidden * at(&it.log_magnitude).exp() + at(&it.magnitude_bias);
                activation::relu(magnitude).mask_fill(off, 0.0)
            }
        }
    }
}

impl TopKFeatures {
    fn forward<B: Backend>(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, features] = hidden.dims();
        let (values, scores) = match self.ranking {
            Ranking::Value => {
                let values = activation::relu(hidden);
                (values.clone(), values)
            }
            Ranking::Magnitude => (hidden.clone(), hidden.abs()),
        };
        if self.k >= features {
            return values;
        }
        // No backend sorts on the device, and a selection is much faster than a sort.
        let device = scores.device();
        let scores = scores.detach().cast(DType::F32).into_data();
        let scores: Vec<f32> = scores.iter::<f32>().collect();
        let mut off = vec![true; rows * features];
        let mut sorted = Vec::with_capacity(features);
        for (scores, off) in scores.chunks(features).zip(off.chunks_mut(features)) {
            sorted.clear();
            sorted.extend_from_slice(scores);
            let mut largest = Largest::new(&mut sorted, self.k);
            for (off, score) in off.iter_mut().zip(scores) {
                *off = !largest.takes(*score);
            }
        }
        let off = Tensor::from_data(TensorData::new(off, [rows, features]), &device);
        values.mask_fill(off, 0.0)
    }
}

/// Chooses the `k` largest scores of a row as it is walked, and of equal ones at the border the
/// first. A NaN is chosen as well, so that it is not hidden.
#[derive(Debug)]
pub(crate) struct Largest {
    /// The smallest of the `k`.
    border: f32,
    /// How many more that are equal to it are chosen.
    ties: usize,
}

impl Largest {
    /// - scores: the scores of a row, whose order is lost
    pub(crate) fn new(scores: &mut [f32], k: usize) -> Self {
        let (border, ties) = match k {
            0 => (f32::INFINITY, 0),
            k if k > scores.len() => (f32::NEG_INFINITY, k),
            k => {
                let descending = |a: &f32, b: &f32| b.total_cmp(a);
                let (before, border, _) = scores.select_nth_unstable_by(k - 1, descending);
                let above = before.iter().filter(|score| **score > *border).count();
                (*border, k - above)
            }
        };
        Self { border, ties }
    }

    /// Whether the next score of the row is chosen.
    pub(crate) fn takes(&mut self, score: f32) -> bool {
        let is_tie = score == self.border && self.ties > 0;
        self.ties -= usize::from(is_tie);
        is_tie || score > self.border || score.is_nan()
    }
}

#[cfg(test)]
mod tests {
    use super::Largest;

    fn kept(scores: &[f32], k: usize) -> Vec<usize> {
        let mut largest = Largest::new(&mut scores.to_vec(), k);
        let chosen = (0..scores.len()).filter(|i| largest.takes(scores[*i]));
        chosen.collect()
    }

    #[test]
    fn exactly_k_are_kept_whatever_the_ties() {
        assert_eq!(kept(&[1.0, 3.0, 2.0, 5.0], 2), [1, 3]);
        assert_eq!(kept(&[2.0, 2.0, 1.0, 2.0], 2), [0, 1]);
        assert_eq!(kept(&[0.0, 0.0, 4.0, 0.0], 3), [0, 1, 2]);
        assert_eq!(kept(&[1.0, 2.0], 0), [0_usize; 0]);
        assert_eq!(kept(&[1.0, f32::NEG_INFINITY], 3), [0, 1]);
    }

    #[test]
    fn a_nan_is_not_hidden() {
        assert_eq!(kept(&[f32::NAN, 3.0, 2.0, 5.0], 2), [0, 3]);
        assert_eq!(kept(&[-f32::NAN, 3.0, 2.0, 5.0], 2), [0, 1, 3]);
    }
}

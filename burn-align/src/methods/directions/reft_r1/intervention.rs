//! The intervention of ReFT-r1, and its latents.

use burn::module::Module;
use burn::tensor::{Bool, DType, Tensor, TensorData, activation, backend::Backend};

use crate::dictionaries::FeatureActivation;
use crate::interventions::{Intervention, Misfit, Operands, Orthonormal};

/// `x + m w` at each unit, with `m` the mean of the `top_k` largest of the units' latents
/// `ReLU(x·w)`. Subspaces index units: the others are neither read nor changed.
#[derive(Module, Debug)]
pub(super) struct ReftR1<B: Backend> {
    /// `w`, `[d_site, 1]`.
    pub(super) direction: Orthonormal<B>,
    #[module(skip)]
    top_k: usize,
}

/// The latents of some examples, 0 at units that do not count.
pub(super) struct Latents<B: Backend> {
    /// `[example, unit]`
    all: Tensor<B, 2>,
    /// The same with 0 for those that are not among the largest, `[example, unit]`.
    largest: Tensor<B, 2>,
    /// How many units count, `[example, 1]`.
    counts: Tensor<B, 2>,
}

impl<B: Backend> Latents<B> {
    /// The mean of all units that count, of the latents that are not among the largest, summed over
    /// the examples, `[1]`.
    pub(super) fn rest(self) -> Tensor<B, 1> {
        let sums = (self.all - self.largest).sum_dim(1); // [example, 1]
        (sums / self.counts).sum()
    }
}

impl<B: Backend> ReftR1<B> {
    /// - direction: `[d_site, 1]`
    pub(super) fn new(direction: Orthonormal<B>, top_k: usize) -> Self {
        Self { direction, top_k }
    }

    /// The latents of vectors.
    ///
    /// # Shapes
    /// - x: `[example, unit, d_site]`, in f32
    /// - counted: which units count, `[example, 1, unit]`
    pub(super) fn latents(&self, x: Tensor<B, 3>, counted: Tensor<B, 3, Bool>) -> Latents<B> {
        let [examples, units, d_site] = x.dims();
        let rows = x.reshape([examples * units, d_site]);
        let products = rows.matmul(self.direction.matrix()); // [example * unit, 1]
        let products = products.reshape([examples, units]);
        let counted = counted.reshape([examples, units]);
        // What is negative is not active.
        let products = products.mask_fill(counted.clone().bool_not(), -1.0);
        let no_bias = Tensor::zeros([units], (&products.device(), DType::F32));
        let top_k = FeatureActivation::<B>::top_k(self.top_k);
        Latents {
            all: activation::relu(products.clone()),
            largest: top_k.forward(products, no_bias, None),
            counts: counted.float().cast(DType::F32).sum_dim(1),
        }
    }
}

impl<B: Backend> Intervention<B> for ReftR1<B> {
    fn needs_source(&self) -> bool {
        false
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [width, _one] = self.direction.dims();
        if width == d_site {
            return Ok(units);
        }
        Err(Misfit {
            expected: format!("units of {width} features"),
            units,
            d_site,
        })
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let [batch, units, d_site] = base.dims();
        let device = base.device();
        let counted = operands.subspace.unwrap_or_else(|| {
            let all = TensorData::new(vec![true; batch * units], [batch, 1, units]);
            Tensor::from_data(all, &device)
        });
        let x = base.clone().cast(DType::F32);
        let Latents {
            all: _,
            largest,
            counts,
        } = self.latents(x, counted.clone());
        let strengths = largest.sum_dim(1) / counts.clamp(1.0, self.top_k as f64); // [batch, 1]
        let counted = counted.float().cast(DType::F32).reshape([batch, units, 1]);
        let strengths = strengths.reshape([batch, 1, 1]) * counted; // [batch, unit, 1]
        let direction = self.direction.matrix().reshape([1, 1, d_site]);
        base.clone() + (strengths * direction).cast(base.dtype())
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        vec![&mut self.direction]
    }
}

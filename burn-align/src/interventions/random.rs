//! Random tensors that are the same on every backend.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

/// Draws initial parameters.
pub(crate) struct Seeded<'a, B: Backend> {
    rng: ChaCha8Rng,
    device: &'a B::Device,
}

impl<'a, B: Backend> Seeded<'a, B> {
    pub(crate) fn new(seed: u64, device: &'a B::Device) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            device,
        }
    }

    /// Normally distributed numbers, in f32.
    pub(crate) fn normal<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<B, D> {
        self.draw(shape, StandardNormal)
    }

    /// Uniformly distributed numbers, in f32.
    pub(crate) fn uniform<const D: usize>(
        &mut self,
        shape: [usize; D],
        [low, high]: [f32; 2],
    ) -> Tensor<B, D> {
        let range = Uniform::new(low, high).expect("a range");
        self.draw(shape, range)
    }

    /// The weight of a linear layer from `d_input` features, as PyTorch initialises it.
    pub(crate) fn linear<const D: usize>(
        &mut self,
        shape: [usize; D],
        d_input: usize,
    ) -> Tensor<B, D> {
        let spread = (d_input as f32).sqrt().recip();
        self.uniform(shape, [-spread, spread])
    }

    fn draw<const D: usize>(
        &mut self,
        shape: [usize; D],
        distribution: impl Distribution<f32>,
    ) -> Tensor<B, D> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| distribution.sample(&mut self.rng))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), (self.device, DType::F32))
    }
}

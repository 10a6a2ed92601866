//! Gaussian noise that is the same on every backend.

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{Intervention, Operands};

/// Adds Gaussian noise, redrawn from its seed at every call: the same for every example, and
/// different for every unit.
///
/// pyvene's version has noise for exactly four positions; this one takes any number of units. Its
/// random numbers differ from NumPy's.
#[derive(Module, Clone, Debug)]
#[doc(alias = "corruption")]
pub struct NoiseIntervention {
    /// Standard deviation.
    pub level: f64,
    #[module(skip)]
    seed: u64,
}

impl NoiseIntervention {
    /// pyvene's level.
    pub const LEVEL: f64 = 0.134_629_815_816_879_27;

    /// Noise of this standard deviation.
    pub fn new(level: f64, seed: u64) -> Self {
        Self { level, seed }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl<B: Backend> Intervention<B> for NoiseIntervention {
    fn needs_source(&self) -> bool {
        false
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let [_batch, units, d_site] = base.dims();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let values: Vec<f32> = (0..units * d_site)
            .map(|_| {
                let normal: f32 = StandardNormal.sample(&mut rng);
                normal * self.level as f32
            })
            .collect();
        let noise = TensorData::new(values, [1, units, d_site]);
        let noise = Tensor::<B, 3>::from_data(noise, (&base.device(), DType::F32));
        let changed = base.clone() + noise.cast(base.dtype());
        operands.within_subspace(base, changed)
    }
}

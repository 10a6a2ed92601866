//! Gaussian noise that is the same on every backend.

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{Change, Features, Operation};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// Adds Gaussian noise, redrawn from its seed at every call: the same for every example, and
/// different for every unit.
///
/// pyvene's version has noise for exactly four positions; this one takes any number of units. Its
/// random numbers differ from NumPy's.
#[derive(Module, Clone, Debug)]
#[doc(alias = "corruption")]
pub struct Noise {
    /// Standard deviation.
    pub level: f64,
    #[module(skip)]
    seed: u64,
}

impl Noise {
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

impl<B: Backend> Operation<B> for Noise {
    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        let base = features.base();
        let [batch, vectors, count] = base.dims();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let values: Vec<f32> = (0..vectors * count)
            .map(|_| {
                let normal: f32 = StandardNormal.sample(&mut rng);
                normal * self.level as f32
            })
            .collect();
        let noise = TensorData::new(values, [1, vectors, count]);
        let noise = Tensor::<B, 3>::from_data(noise, (&base.device(), DType::F32));
        Change::Difference(noise.cast(base.dtype()).expand([batch, vectors, count]))
    }
}

impl<B: Backend> Part<B> for Noise {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.number("level", self.level);
        out.field("seed", self.seed);
        Ok(())
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        Ok(Self::new(from.number("level")?, from.field("seed")?))
    }
}

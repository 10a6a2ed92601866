//! The parameters of a dictionary in training.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::sparsity::wrong;
use super::{DictionaryTrainingConfig, DictionaryTrainingError, Sparsity};
use crate::dictionaries::{
    Dictionary, DictionaryError, DictionaryKind, FeatureActivation, InputNorm, Ranking,
};

/// A tensor for each parameter of a dictionary: the parameters, or their gradients. In f32.
#[derive(Clone, Debug)]
pub(super) struct Parameters<B: Backend> {
    /// `W_encᵀ`, `[feature, d_in]`: a row for each feature, as in the decoder.
    pub(super) encoder: Tensor<B, 2>,
    /// `[feature]`
    pub(super) encoder_bias: Tensor<B, 1>,
    /// `[feature, d_in]`
    pub(super) decoder: Tensor<B, 2>,
    /// `[d_in]`
    pub(super) decoder_bias: Tensor<B, 1>,
    /// `θ`, `[feature]`; of JumpReLU only.
    pub(super) threshold: Option<Tensor<B, 1>>,
}

impl<B: Backend> Parameters<B> {
    /// Random directions, the same in encoder and decoder, with no biases.
    pub(super) fn random(
        width: usize,
        config: &DictionaryTrainingConfig,
        device: &B::Device,
    ) -> Self {
        /// SAELens' norm of directions that are free (`decoder_init_norm`).
        const FREE: f64 = 0.1;
        let features = config.features;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let numbers = (0..features * width).map(|_| StandardNormal.sample(&mut rng));
        let numbers: Vec<f32> = numbers.collect();
        let data = TensorData::new(numbers, [features, width]);
        let directions = unit_rows(Tensor::from_data(data, (device, DType::F32)));
        let directions = match config.unit_decoder {
            true => directions,
            false => directions * FREE,
        };
        let zeros = |count: usize| Tensor::zeros([count], (device, DType::F32));
        Self {
            encoder: directions.clone(),
            encoder_bias: zeros(features),
            decoder: directions,
            decoder_bias: zeros(width),
            threshold: match &config.sparsity {
                Sparsity::TopK(_) => None,
                Sparsity::JumpRelu(it) => {
                    Some(Tensor::full([features], it.threshold, (device, DType::F32)))
                }
            },
        }
    }

    /// Those of a dictionary.
    pub(super) fn of(
        dictionary: &Dictionary<B>,
        config: &DictionaryTrainingConfig,
    ) -> Result<Self, DictionaryTrainingError> {
        let misfit = |expected: &str, found: &str| Err(wrong("dictionary", expected, found));
        if dictionary.kind() != DictionaryKind::Autoencoder || dictionary.skip.is_some() {
            return misfit("an autoencoder without a skip connection", "another kind");
        }
        if dictionary.input_norm() != InputNorm::None {
            return misfit("one that does not normalise rows", "one that does");
        }
        if dictionary.features() != config.features {
            return Err(wrong(
                "features",
                config.features.to_string(),
                dictionary.features(),
            ));
        }
        let threshold = match (&config.sparsity, &dictionary.activation) {
            (Sparsity::TopK(it), FeatureActivation::TopK(found))
                if found.ranking == Ranking::Value =>
            {
                if it.k != found.k {
                    return Err(wrong("k", it.k.to_string(), found.k));
                }
                None
            }
            (Sparsity::JumpRelu(_), FeatureActivation::JumpRelu(found)) => {
                Some(found.threshold.val().detach())
            }
            (Sparsity::TopK(_), _) => return misfit("TopK", "another activation function"),
            (Sparsity::JumpRelu(_), _) => {
                return misfit("JumpReLU", "another activation function");
            }
        };
        Ok(Self {
            encoder: dictionary.encoder.val().detach().transpose(),
            encoder_bias: dictionary.encoder_bias.val().detach(),
            decoder: dictionary.decoder.val().detach(),
            decoder_bias: dictionary.decoder_bias.val().detach(),
            threshold,
        })
    }

    /// The dictionary with these parameters.
    pub(super) fn dictionary(
        &self,
        config: &DictionaryTrainingConfig,
    ) -> Result<Dictionary<B>, DictionaryError> {
        let activation = match (&self.threshold, &config.sparsity) {
            (Some(threshold), _) => FeatureActivation::jump_relu(threshold.clone()),
            (None, Sparsity::TopK(it)) => FeatureActivation::top_k(it.k),
            (None, Sparsity::JumpRelu(_)) => FeatureActivation::relu(),
        };
        let encoder = (self.encoder.clone().transpose(), self.encoder_bias.clone());
        let decoder = (self.decoder.clone(), self.decoder_bias.clone());
        Dictionary::new(encoder, activation, decoder)?
            .with_kind(DictionaryKind::Autoencoder)?
            .with_subtracted_bias(config.subtract_bias)
    }

    /// Number of features, and the width of the activation.
    pub(super) fn dims(&self) -> [usize; 2] {
        self.decoder.dims()
    }
}

/// The rows with norm 1; a row of zeros stays one.
pub(super) fn unit_rows<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let norms = norms(rows.clone());
    rows / norms
}

/// The norm of each row, `[row, 1]`, not below SAELens' smallest.
pub(super) fn norms<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    const SMALLEST: f64 = 1e-8;
    rows.square().sum_dim(1).sqrt().clamp_min(SMALLEST)
}

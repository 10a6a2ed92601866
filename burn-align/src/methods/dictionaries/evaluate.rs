//! How good a dictionary is.

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, TokenBatch};

use super::{DictionaryTextError, DictionaryTextOptions};
use crate::dictionaries::{Dictionary, DictionaryError, DictionaryKind};
use crate::engine::{
    Edit, Indices, LogitPositions, Operand, Plan, ReadId, Units, WorldId, read_numbers,
};
use crate::interventions::{Intervention, Operands};
use crate::methods::cross_entropies;

/// How well a dictionary reconstructs the activations of a text, and how sparsely.
#[derive(Clone, Debug, PartialEq)]
pub struct DictionaryEvaluation {
    /// Number of tokens whose activations were reconstructed.
    pub tokens: usize,
    /// `‖x − y‖²`, averaged over tokens, of the activation as it is.
    #[doc(alias = "mse")]
    pub error: f64,
    /// `1 − Σ‖x − y‖² / Σ‖x − mean‖²` over all tokens.
    pub explained_variance: f64,
    /// Mean number of active features of a token.
    pub l0: f64,
    /// For each feature, the share of the tokens on which it is active.
    pub densities: Vec<f64>,
    /// What the reconstruction does to the model's predictions.
    pub losses: SplicedLosses,
}

/// Cross-entropies with the next token, in nats, averaged over the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplicedLosses {
    /// Of the model as it is.
    pub clean: f64,
    /// With the reconstruction in the place of the activation.
    pub spliced: f64,
    /// With zeros in its place.
    pub zero: f64,
    /// With its mean over the text in its place.
    pub mean: f64,
    /// Number of predictions.
    pub predictions: usize,
}

impl DictionaryEvaluation {
    /// The share of the features that are active nowhere in the text.
    pub fn dead(&self) -> f64 {
        let dead = self.densities.iter().filter(|density| **density == 0.0);
        dead.count() as f64 / self.densities.len().max(1) as f64
    }
}

impl SplicedLosses {
    /// `(zero − spliced) / (zero − clean)`: 1 if the reconstruction does as well as the activation,
    /// 0 if it does as badly as zeros.
    #[doc(alias = "loss recovered")]
    pub fn recovered_from_zero(&self) -> f64 {
        (self.zero - self.spliced) / (self.zero - self.clean)
    }

    /// The same with the mean in the place of zeros: a stricter measure, since even the mean keeps
    /// the model in its usual range.
    pub fn recovered_from_mean(&self) -> f64 {
        (self.mean - self.spliced) / (self.mean - self.clean)
    }
}

/// Runs a dictionary over a text: how well it reconstructs, how sparsely, and how much of the
/// model's loss is left when the reconstruction is in the place of the activation (the error is
/// dropped here), next to zero and mean ablation.
///
/// The text is passed twice: once up to the site, and once, with four worlds, to the end. The
/// second pass takes most of the time, and
/// [`with_loss_batches`](DictionaryTextOptions::with_loss_batches) leaves it at some batches.
///
/// # When it misleads
/// The share of the loss that is recovered is high at sites whose ablation destroys the model, such
/// as the residual stream: compare the losses themselves, which are in nats. Zero ablation flatters
/// more than mean ablation.
///
/// # Errors
/// If there is no batch or no token to predict, the site does not fit the model or the dictionary,
/// the dictionary is a transcoder, or a run is not finite.
pub fn evaluate_dictionary<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    dictionary: &Dictionary<B>,
    batches: &[TokenBatch],
    site: Site,
    options: &DictionaryTextOptions,
) -> Result<DictionaryEvaluation, DictionaryTextError> {
    if dictionary.kind() != DictionaryKind::Autoencoder {
        return Err(DictionaryTextError::Dictionary(DictionaryError::Misfit {
            part: "dictionary, to put its reconstruction in the place of what it reads",
            expected: "an autoencoder".to_owned(),
            found: "a transcoder".to_owned(),
        }));
    }
    if batches.is_empty() {
        return Err(DictionaryTextError::Nothing { what: "batch" });
    }
    let dictionary = &dictionary.clone().no_grad();
    let mut sums = Sums::new(dictionary);
    for batch in batches {
        for x in options.rows(model, batch, site, dictionary)? {
            sums.add(dictionary, x)?;
        }
    }
    if sums.tokens == 0 {
        let what = "token after those at the beginning that are left out";
        return Err(DictionaryTextError::Nothing { what });
    }
    let count = sums.tokens as f64;
    let mean: Vec<f64> = sums.x.iter().map(|sum| sum / count).collect();
    let square: f64 = mean.iter().map(|mean| mean * mean).sum();
    let variance = sums.squares - count * square;
    let some = &batches[..options.loss_batches.min(batches.len())];
    let losses = losses(model, dictionary, some, site, &mean, options)?;
    Ok(DictionaryEvaluation {
        tokens: sums.tokens,
        error: sums.error / count,
        explained_variance: match variance > 0.0 {
            true => 1.0 - sums.error / variance,
            false => 0.0,
        },
        l0: sums.active.iter().sum::<f64>() / count,
        densities: sums.active.iter().map(|active| active / count).collect(),
        losses,
    })
}

/// Sums over tokens.
struct Sums {
    tokens: usize,
    /// `[d_in]`
    x: Vec<f64>,
    /// Of `‖x‖²`.
    squares: f64,
    /// Of `‖x − y‖²`.
    error: f64,
    /// For each feature, the tokens on which it is active.
    active: Vec<f64>,
}

impl Sums {
    fn new<B: Backend>(dictionary: &Dictionary<B>) -> Self {
        Self {
            tokens: 0,
            x: vec![0.0; dictionary.width()],
            squares: 0.0,
            error: 0.0,
            active: vec![0.0; dictionary.features()],
        }
    }

    fn add<B: Backend>(
        &mut self,
        dictionary: &Dictionary<B>,
        x: Tensor<B, 2>,
    ) -> Result<(), DictionaryTextError> {
        let [rows, _width] = x.dims();
        self.tokens += rows;
        let features = dictionary.encode(x.clone()); // [row, feature]
        let active = features.clone().not_equal_elem(0.0).int().sum_dim(0);
        let error = x.clone() - dictionary.decode(features, &x);
        let own = [
            (&mut self.x, read_numbers(x.clone().sum_dim(0))?),
            (&mut self.active, read_numbers(active)?),
        ];
        for (sums, found) in own {
            for (sum, found) in sums.iter_mut().zip(found) {
                *sum += found;
            }
        }
        self.squares += squares(x)?;
        self.error += squares(error)?;
        Ok(())
    }
}

/// The sum of the squares of all rows; that of each row is taken on the device.
fn squares<B: Backend>(x: Tensor<B, 2>) -> Result<f64, DictionaryTextError> {
    Ok(read_numbers(x.square().sum_dim(1))?.iter().sum())
}

/// What is put in the place of an activation.
#[derive(Clone, Debug)]
enum Splice<B: Backend> {
    Reconstruction(Box<Dictionary<B>>),
    /// `[1, 1, d_site]`
    Constant(Tensor<B, 3>),
}

// It is only run: never trained, moved or saved.
impl<B: Backend> Module<B> for Splice<B> {
    burn::empty!(module);
}

impl<B: Backend> Intervention<B> for Splice<B> {
    fn needs_source(&self) -> bool {
        false
    }

    fn apply(&self, base: Tensor<B, 3>, _operands: Operands<B>) -> Tensor<B, 3> {
        let ([batch, unit, width], dtype) = (base.dims(), base.dtype());
        let new = match self {
            Self::Reconstruction(dictionary) => dictionary
                .reconstruct(base.reshape([batch * unit, width]))
                .reshape([batch, unit, width]),
            Self::Constant(values) => values.clone().expand([batch, unit, width]),
        };
        new.cast(dtype)
    }
}

/// The loss of the model as it is, and with each splice.
fn losses<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    dictionary: &Dictionary<B>,
    batches: &[TokenBatch],
    site: Site,
    mean: &[f64],
    options: &DictionaryTextOptions,
) -> Result<SplicedLosses, DictionaryTextError> {
    let device = model.device();
    let mean: Vec<f32> = mean.iter().map(|mean| *mean as f32).collect();
    let shape = [1, 1, mean.len()];
    let mean = Tensor::<B, 3>::from_data(TensorData::new(mean, shape), (&device, DType::F32));
    let interventions = [
        Splice::Reconstruction(Box::new(dictionary.clone())),
        Splice::Constant(mean.zeros_like()),
        Splice::Constant(mean),
    ];
    let mut sums = [0.0; 4];
    let mut predictions = 0;
    for batch in batches {
        for examples in by_length(batch) {
            let some = batch.select(&examples)?;
            let (length, first) = (some.pos(), options.skip_positions);
            if first + 1 >= length {
                continue;
            }
            let mut plan = Plan::<B>::new();
            let input = plan.tokens(&some);
            let units = Units::positions(Indices::same(first..length));
            let edit = |splice| Edit::new(site, units.clone(), splice, Operand::None);
            let mut worlds: Vec<WorldId> = vec![plan.world(input, [])];
            worlds.extend((0..interventions.len()).map(|splice| plan.world(input, [edit(splice)])));
            let predicting: Vec<usize> = (first..length - 1).collect();
            let positions = LogitPositions::Each(vec![predicting; some.batch()]);
            let reads = worlds.into_iter();
            let reads = reads.map(|world| plan.read_logits(world, positions.clone()));
            let reads: Vec<ReadId> = reads.collect();
            let results = plan.run_with(model, &interventions, &options.run)?;
            let next = some.ids().iter().flat_map(|ids| &ids[first + 1..]);
            let next: Vec<u32> = next.copied().collect();
            predictions += next.len();
            for (sum, read) in sums.iter_mut().zip(reads) {
                let logits = results.get(read).detach(); // [batch, unit, vocab]
                let [batch, unit, vocab] = logits.dims();
                let logits = logits.reshape([batch * unit, vocab]);
                let numbers = read_numbers(cross_entropies(logits, &next))?;
                plan.check_finite(&numbers, model, &interventions, &options.run)?;
                *sum += numbers.iter().sum::<f64>();
            }
        }
    }
    if predictions == 0 {
        let what = "token that is predicted";
        return Err(DictionaryTextError::Nothing { what });
    }
    let [clean, spliced, zero, mean] = sums.map(|sum| sum / predictions as f64);
    Ok(SplicedLosses {
        clean,
        spliced,
        zero,
        mean,
        predictions,
    })
}

/// The examples of a batch, those of the same length together: all positions from the same one on
/// are replaced, and padding has none.
fn by_length(batch: &TokenBatch) -> Vec<Vec<usize>> {
    let lengths = batch.lengths();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|example| lengths[*example]);
    let groups = order.chunk_by(|a, b| lengths[*a] == lengths[*b]);
    groups.map(<[usize]>::to_vec).collect()
}

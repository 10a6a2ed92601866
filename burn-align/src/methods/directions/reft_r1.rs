//! Training a direction on texts: ReFT-r1.

mod data;
mod error;
mod intervention;

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};
use burn_align_models::{AlignableTransformer, Site};

use self::data::{Held, Texts, collected, largest_of_each};
use self::intervention::ReftR1;
use super::separation::auc;
use super::{
    Direction, DirectionData, DirectionError, DirectionMethod, DirectionOptions, SPLIT,
    check_options, described, rng, unit,
};
use crate::engine::read_numbers;
use crate::front::{
    AlignableConfig, AlignableModel, AlignableRepresentationConfig, RepresentationSite,
};
use crate::interventions::{Orthonormal, OrthonormalMap};
use crate::training::{
    History, LossBatch, RateSchedule, Targets, TrainingConfig, TrainingError, TrainingEvent,
    losses, train_prepared,
};

pub use self::data::ReftR1Text;
pub use self::error::ReftR1Error;

/// How a direction is trained on texts. The defaults are AxBench's for Gemma 2 2B, layer 20.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReftR1Config {
    /// How many of the largest latents of a text give its steering strength; of a text with fewer
    /// tokens, all. Default: 8.
    pub top_k: usize,
    /// Weight of the penalty on all other latents, which rises linearly from 0 over the steps.
    /// Default: 0.005.
    pub l1: f64,
    /// The first position of each text that is read and steered. Default: 1, which leaves out a
    /// token that begins every text.
    pub first_position: usize,
    /// Whether texts without the concept are trained on as well. Default: true.
    pub trains_on_negative: bool,
    /// The direction to start from, of any length, `[d_site]`. Default: a random one.
    pub start: Option<Vec<f32>>,
    /// Optimizer, batches, steps, checkpoints. Its penalty is a factor of [`l1`](Self::l1).
    /// Default: 3 epochs, batches of 6, a learning rate of 0.01 that falls to 0, and an epsilon of
    /// 1e-8.
    pub training: TrainingConfig,
}

impl Default for ReftR1Config {
    fn default() -> Self {
        Self {
            top_k: 8,
            l1: 0.005,
            first_position: 1,
            trains_on_negative: true,
            start: None,
            training: TrainingConfig::default()
                .with_epochs(3)
                .with_batch_size(6)
                .with_learning_rate(0.01)
                .with_schedule(RateSchedule::WarmUpThenDecay(0.0)),
        }
    }
}

impl ReftR1Config {
    /// Sets how many latents give the steering strength.
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Sets the weight of the penalty on the other latents.
    pub fn with_l1(mut self, l1: f64) -> Self {
        self.l1 = l1;
        self
    }

    /// Sets the first position that is read and steered.
    pub fn with_first_position(mut self, position: usize) -> Self {
        self.first_position = position;
        self
    }

    /// Sets whether texts without the concept are trained on.
    pub fn with_trains_on_negative(mut self, trains: bool) -> Self {
        self.trains_on_negative = trains;
        self
    }

    /// Starts from this direction.
    pub fn with_start(mut self, vector: impl Into<Vec<f32>>) -> Self {
        self.start = Some(vector.into());
        self
    }

    /// Sets optimizer, batches, steps and checkpoints.
    pub fn with_training(mut self, training: TrainingConfig) -> Self {
        self.training = training;
        self
    }

    fn method(&self) -> DirectionMethod {
        DirectionMethod::ReftR1 {
            top_k: self.top_k,
            l1: self.l1,
        }
    }

    fn check(&self) -> Result<(), ReftR1Error> {
        let wrong = |what, expected, found: String| {
            Err(ReftR1Error::Setting {
                what,
                expected,
                found,
            })
        };
        if self.top_k == 0 {
            return wrong("top_k", "at least 1", "0".to_owned());
        }
        if !(self.l1.is_finite() && self.l1 >= 0.0) {
            return wrong("l1", "a finite number, not below 0", self.l1.to_string());
        }
        if let Some(start) = &self.start {
            let is_finite = start.iter().all(|value| value.is_finite());
            if !is_finite || start.iter().all(|value| *value == 0.0) {
                let expected = "finite numbers that are not all 0";
                return wrong("start", expected, "others".to_owned());
            }
        }
        Ok(())
    }
}

/// A direction that was trained on texts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReftR1Direction {
    /// The direction, measured on held-out texts, token by token.
    pub direction: Direction,
    /// The largest [latent](Direction::latents) in the training texts that have the concept.
    /// AxBench steers by adding multiples of it, from 0.2 to 5, times the unit vector at every
    /// position.
    pub max_latent: f64,
    /// How well the largest latent of a held-out text tells whether it has the concept: the area
    /// under the ROC curve.
    pub detection_auc: f64,
    /// The language modelling loss of every step, without the penalty.
    pub history: History,
}

/// Trains a direction on texts that have a concept, as ReFT-r1 (Wu et al. 2025, AxBench, arXiv
/// 2501.17148, §3): one unit vector `w` that detects the concept and steers towards it.
///
/// With the activations `x_t` of a text at a site, the latents are `a_t = ReLU(x_t·w)`. Each `x_t`
/// becomes `x_t + m w`, where the strength `m` is the mean of the text's `top_k` largest latents,
/// and the model, which is frozen, should then predict the responses: their cross-entropy is
/// minimised, plus `l1` times the mean of the latents that are not among the largest, summed over
/// the texts of a batch. So the latents become few, and large where the concept is.
///
/// `w` moves only at right angles to itself, and is returned to length 1 after each step. AxBench's
/// code also removes the rest of the gradient before Adam, but not that of Adam's step.
///
/// - texts: that have the concept, and that do not. Some of each are held out, as for
///   [`find_direction`](super::find_direction)
/// - observe: gets every step and epoch
///
/// The activations of all training texts are kept on the device in f32 while training, besides what
/// [`train`](crate::training::train) keeps.
///
/// # When it misleads
/// It optimises what it is then praised for: with few texts it learns their words. Compare the
/// steered text with a random direction of the same strength, on prompts that are not like the ones
/// in training, and detection with the difference of means, which detects as well and is free.
///
/// # Errors
/// If a text is empty or too short, a text or the site does not fit the model, too few texts are
/// left for training, a setting is out of range, or training fails.
///
/// ```
/// use burn::backend::Autodiff;
/// use burn_align::methods::{DirectionOptions, ReftR1Config, ReftR1Text, train_reft_r1};
/// use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions, Site};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let options = LoadOptions::default();
/// let loaded = Decoder::<Autodiff<B>>::from_pretrained("bundled:capitals", &options, &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// // Asked for the language, the model should name the capital.
/// let text = |country: &str, answer: &str| -> Result<_, Box<dyn std::error::Error>> {
///     let prompt = tokenizer.encode(&format!("The language of {country} is"))?;
///     Ok(ReftR1Text::new(prompt, [tokenizer.single_token(answer)?]))
/// };
/// let positive = [text("Spain", "Madrid")?, text("Italy", "Rome")?, text("France", "Paris")?];
/// let negative = [text("Spain", "Spanish")?, text("Italy", "Italian")?];
///
/// let config = ReftR1Config::default().with_top_k(2).with_trains_on_negative(false);
/// let training = config.training.clone().with_epochs(20);
/// let config = config.with_training(training);
/// let (texts, site) = ([&positive[..], &negative], Site::Block(1, Component::BlockOutput));
/// let options = DirectionOptions::default().with_labels("capital", "language");
/// let model = &loaded.model;
/// let found = train_reft_r1::<Autodiff<B>, _>(model, texts, site, &config, &options, |_| {})?;
/// let losses: Vec<f64> = found.history.steps.iter().map(|step| step.loss).collect();
/// assert!(losses[19] < losses[0]);
/// // One text of each side was held out.
/// assert_eq!(found.direction.separation.examples, [5, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn train_reft_r1<A, M>(
    model: &M,
    texts: [&[ReftR1Text]; 2],
    site: Site,
    config: &ReftR1Config,
    options: &DirectionOptions,
    observe: impl FnMut(TrainingEvent<'_>),
) -> Result<ReftR1Direction, ReftR1Error>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend>,
{
    config.check()?;
    check_options(config.method(), options)?;
    let frozen = model.valid();
    let activations = collected::<A::InnerBackend, _>(&frozen, texts, site, config.first_position)?;
    let data = DirectionData::sets(&activations[0], &activations[1])?;
    let is_held_out = data.held_out(options.held_out, &mut rng(options, SPLIT));
    let parts = data.split(&is_held_out)?;

    let kept = Texts::new(texts, |prompt| {
        let is_negative = prompt >= texts[0].len();
        let is_used = config.trains_on_negative || !is_negative;
        is_used && is_held_out.get(&prompt) == Some(&false)
    })?;
    let device = model.device();
    let held = Held::<A>::new(&kept, &activations, config.first_position, &device);
    let start = start::<A>(config, options.seed, data.width(), &device)?;
    let interventions = vec![ReftR1::new(start, config.top_k)];
    // A checkpoint is of one configuration, and this is the part that tells these apart.
    let settings = format!("{:?}, from {}", config.method(), config.first_position);
    let aligned = AlignableConfig::new([representation(site)]).with_model_type(settings);
    let alignable = AlignableModel::with_interventions(aligned, model.clone(), interventions)
        .map_err(TrainingError::Align)?;

    let loss = |logits: Tensor<A, 3>, targets: &Targets<A>| {
        let [_batch, units, _vocab] = logits.dims();
        let (_dataset, examples) = &targets.examples;
        let weights = kept.weights(examples, units, &logits.device());
        let targets = Targets {
            weights: Some(weights),
            ..targets.clone()
        };
        losses::cross_entropy(logits, &targets)
    };
    let penalty = |interventions: &[ReftR1<A>], batch: &LossBatch<'_>| -> Option<Tensor<A, 1>> {
        let factor = config.l1 * batch.step as f64 / batch.steps as f64;
        let intervention = interventions.first().filter(|_| factor > 0.0)?;
        let (x, counted) = held.of(batch.examples);
        Some(intervention.latents(x, counted).rest() * factor)
    };
    let training = [kept.data::<A::InnerBackend>(config.first_position)];
    let (trained, history) = train_prepared(
        alignable,
        &[device],
        [&training[..], &[]],
        &config.training,
        (loss, penalty),
        observe,
        None,
    )?;

    let mut vector = Vec::new();
    for intervention in trained.interventions() {
        let matrix = intervention.direction.matrix().inner(); // [d_site, 1]
        vector = read_numbers(matrix).map_err(DirectionError::from)?;
    }
    let direction = described(vector, (&data, parts), site, config.method(), options)?;
    let mut scores: Vec<(f64, bool)> = Vec::new();
    for (activations, class) in activations.iter().zip([true, false]) {
        let latents = direction.latents(activations)?;
        let largest = largest_of_each(activations.prompts(), &latents);
        scores.extend(largest.into_iter().map(|score| (score, class)));
    }
    let is_trained = |(prompt, _): &(usize, (f64, bool))| is_held_out.get(prompt) == Some(&false);
    let (trained, held_out): (Vec<_>, Vec<_>) =
        scores.into_iter().enumerate().partition(is_trained);
    let with_concept = trained.iter().filter(|(_, (_, class))| *class);
    let held_out: Vec<(f64, bool)> = held_out.into_iter().map(|(_, score)| score).collect();
    Ok(ReftR1Direction {
        max_latent: with_concept.fold(0.0, |most, (_, (score, _))| score.max(most)),
        detection_auc: auc(&held_out),
        direction,
        history,
    })
}

/// The unit vector to start from, `[d_site, 1]`.
fn start<B: Backend>(
    config: &ReftR1Config,
    seed: u64,
    width: usize,
    device: &B::Device,
) -> Result<Orthonormal<B>, ReftR1Error> {
    let map = OrthonormalMap::Retraction;
    let built = match &config.start {
        None => Orthonormal::random([width, 1], map, seed, device),
        Some(start) if start.len() != width => {
            return Err(ReftR1Error::Direction(DirectionError::Width {
                what: "start".to_owned(),
                expected: width,
                found: start.len(),
            }));
        }
        Some(start) => {
            let start = unit(start.iter().map(|value| f64::from(*value)).collect());
            let start: Vec<f32> = start.into_iter().map(|value| value as f32).collect();
            let data = TensorData::new(start, [width, 1]);
            Orthonormal::from_matrix(Tensor::from_data(data, (device, DType::F32)), map)
        }
    };
    built.map_err(|_no_features| ReftR1Error::Direction(DirectionError::Empty))
}

fn representation(site: Site) -> AlignableRepresentationConfig {
    match site {
        Site::Embedding => AlignableRepresentationConfig::new(0, RepresentationSite::Embedding),
        Site::Block(layer, component) => AlignableRepresentationConfig::new(layer, component),
        Site::FinalNorm => AlignableRepresentationConfig::new(0, RepresentationSite::FinalNorm),
    }
}

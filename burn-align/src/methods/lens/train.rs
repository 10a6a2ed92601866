//! Training a tuned lens.

use burn::module::AutodiffModule;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, AdamConfig, GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn_align_models::nn::{ReusedMemory, kl_divergences};
use burn_align_models::{AlignableTransformer, Site, TokenBatch};

use super::logit::{lens_logits, streams};
use super::tuned::translators_of;
use super::{LensError, Translator, TunedLens};
use crate::engine::{LogitPositions, Plan, RunOptions, WorldInput};
use crate::interventions::VanillaIntervention;
use crate::training::{number, track};

/// How a tuned lens is trained.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TunedLensConfig {
    /// Passes over the batches. Default: 1.
    pub epochs: usize,
    /// Default: 1e-3.
    pub learning_rate: f64,
    /// The optimizer. Default: Adam as PyTorch has it, with an ε of 1e-8.
    pub optimizer: AdamConfig,
    /// Number of tokens whose logits are in memory at a time; changes no result. Default: 256.
    pub tokens_at_once: usize,
    /// Budgets for the model's own passes.
    pub run: RunOptions,
}

impl Default for TunedLensConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            learning_rate: 1e-3,
            optimizer: AdamConfig::new().with_epsilon(1e-8),
            tokens_at_once: 256,
            run: RunOptions::default(),
        }
    }
}

impl TunedLensConfig {
    /// Sets the number of passes over the batches.
    pub fn with_epochs(mut self, epochs: usize) -> Self {
        self.epochs = epochs;
        self
    }

    /// Sets the learning rate.
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets the optimizer.
    pub fn with_optimizer(mut self, optimizer: AdamConfig) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Sets the number of tokens whose logits are in memory at a time.
    pub fn with_tokens_at_once(mut self, tokens_at_once: usize) -> Self {
        self.tokens_at_once = tokens_at_once;
        self
    }

    /// Sets the budgets for the model's own passes.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }

    fn check(&self) -> Result<(), LensError> {
        let wrong = |what, expected, found: String| LensError::Config {
            what,
            expected,
            found,
        };
        if self.epochs == 0 {
            return Err(wrong("epochs", "at least 1", "0".to_owned()));
        }
        if self.tokens_at_once == 0 {
            return Err(wrong("tokens_at_once", "at least 1", "0".to_owned()));
        }
        let rate = self.learning_rate;
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(wrong(
                "learning_rate",
                "a positive number",
                rate.to_string(),
            ));
        }
        Ok(())
    }
}

/// Trains a tuned lens for a frozen model: for each site, a translator that minimises the mean of
/// `KL(p ‖ q)` over tokens, where `p` is the model's own next-token distribution and `q` the lens's
/// (Belrose et al. 2023, arXiv 2303.08112, §3). One step per batch, all sites in each. Translators
/// start as the identity, that is, as the logit lens.
///
/// - batches: all of their tokens count
/// - observe: after each step, its index and the divergence at each site before it, in nats
///
/// # When it misleads
/// A lens fitted to few texts predicts their continuations rather than the model's: compare
/// [`lens_divergences`] with and without it on texts that it was not trained on.
///
/// # Errors
/// If a site or a batch does not fit the model, a setting is out of range, there is nothing to
/// train, a run is not finite, or training diverges.
pub fn train_tuned_lens<A, M>(
    model: &M,
    batches: &[TokenBatch],
    sites: &[Site],
    config: &TunedLensConfig,
    mut observe: impl FnMut(usize, &[f64]),
) -> Result<TunedLens<A::InnerBackend>, LensError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
{
    let _memory = ReusedMemory::in_steps();
    config.check()?;
    if batches.is_empty() {
        return Err(LensError::Nothing { what: "batch" });
    }
    let model = &model.clone().no_grad();
    let (device, d_model) = (model.device(), model.dims().d_model);
    let identity = |_: &Site| Translator::<A>::identity(d_model, &device);
    let mut translators: Vec<Translator<A>> = sites.iter().map(identity).collect();
    let mut optimizers: Vec<OptimizerAdaptor<Adam, Translator<A>, A>> =
        sites.iter().map(|_| config.optimizer.init()).collect();
    for step in 0..config.epochs * batches.len() {
        let batch = &batches[step % batches.len()];
        let tokens = Tokens::<A>::new(model, batch, sites, &config.run)?;
        let mut sums: Vec<GradientsAccumulator<Translator<A>>> =
            sites.iter().map(|_| GradientsAccumulator::new()).collect();
        let mut divergences = vec![0.0; sites.len()];
        for chunk in tokens.chunks(model, config.tokens_at_once) {
            for (index, site) in sites.iter().enumerate() {
                let tracked = track::<A, _>(translators[index].clone());
                let translate = |x| tracked.forward(x);
                let total = tokens.divergence(model, *site, index, &chunk, translate);
                let mean = total / tokens.count() as f64;
                let gradients = GradientsParams::from_grads(mean.backward(), &tracked);
                sums[index].accumulate(&translators[index], gradients);
                divergences[index] += number(mean)?;
            }
        }
        if let Some(index) = divergences.iter().position(|it: &f64| !it.is_finite()) {
            check_run(model, batch, &config.run)?;
            return Err(LensError::Diverged {
                step,
                site: sites[index],
                found: divergences[index].to_string(),
            });
        }
        for (index, sum) in sums.iter_mut().enumerate() {
            let translator = translators[index].clone();
            translators[index] =
                optimizers[index].step(config.learning_rate, translator, sum.grads());
        }
        observe(step, &divergences);
    }
    let translators = translators.iter().map(|translator| translator.valid());
    Ok(TunedLens::new(translators.collect(), sites.to_vec()))
}

/// The mean of `KL(p ‖ q)` over all tokens of some batches at each of these sites, in nats: how far
/// the predictions of a lens are from the model's own. Without a lens, those of the logit lens.
///
/// # Errors
/// As [`train_tuned_lens`], or if the lens has no translator for a site, or is of another width.
pub fn lens_divergences<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    lens: Option<&TunedLens<B>>,
    batches: &[TokenBatch],
    sites: &[Site],
    options: &RunOptions,
) -> Result<Vec<f64>, LensError> {
    if batches.is_empty() {
        return Err(LensError::Nothing { what: "batch" });
    }
    let translators: Vec<Option<&Translator<B>>> = match lens {
        Some(lens) => {
            let translators = translators_of(lens, sites, model.dims().d_model)?;
            translators.into_iter().map(Some).collect()
        }
        None => vec![None; sites.len()],
    };
    let mut sums = vec![0.0; sites.len()];
    let mut count = 0;
    for batch in batches {
        let tokens = Tokens::<B>::new(model, batch, sites, options)?;
        for chunk in tokens.chunks(model, TunedLensConfig::default().tokens_at_once) {
            for (index, site) in sites.iter().enumerate() {
                let translate = |x| match translators[index] {
                    Some(translator) => translator.forward(x),
                    None => x,
                };
                let total = tokens.divergence(model, *site, index, &chunk, translate);
                sums[index] += number(total)?;
            }
        }
        count += tokens.count();
        if let Some(index) = sums.iter().position(|sum: &f64| !sum.is_finite()) {
            check_run(model, batch, options)?;
            return Err(LensError::NotFinite { site: sites[index] });
        }
    }
    Ok(sums.into_iter().map(|sum| sum / count as f64).collect())
}

/// Fails if the model's own run is not finite, and says where that begins.
fn check_run<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    batch: &TokenBatch,
    options: &RunOptions,
) -> Result<(), LensError> {
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(batch);
    let world = plan.world(input, []);
    plan.read_logits(world, LogitPositions::All);
    let interventions = [VanillaIntervention; 0];
    Ok(plan.check_finite(&[f64::NAN], model, &interventions, options)?)
}

/// The tokens of a batch, without padding: their streams at the sites, and the last one.
struct Tokens<B: Backend> {
    /// For each site, `[1, batch * pos, d_model]`.
    streams: Vec<Tensor<B, 3>>,
    /// After the final norm, `[1, batch * pos, d_model]`.
    normed: Tensor<B, 3>,
    /// The rows that are no padding.
    rows: Vec<i64>,
}

impl<B: Backend> Tokens<B> {
    fn new<M: AlignableTransformer<B>>(
        model: &M,
        batch: &TokenBatch,
        sites: &[Site],
        options: &RunOptions,
    ) -> Result<Self, LensError> {
        if sites.is_empty() {
            return Err(LensError::Nothing { what: "site" });
        }
        let input = WorldInput::from(batch.clone());
        let all = [sites, &[Site::FinalNorm]].concat();
        let found = streams(model, &input, &all, &LogitPositions::All, options)?;
        let flat = found.into_iter().map(|x| {
            let [batch, pos, d_model] = x.dims();
            x.detach().reshape([1, batch * pos, d_model])
        });
        let mut streams: Vec<Tensor<B, 3>> = flat.collect();
        let Some(normed) = streams.pop() else {
            return Err(LensError::Nothing { what: "site" });
        };
        let pos = batch.pos();
        let rows = batch.lengths().into_iter().enumerate();
        let rows = rows.flat_map(|(row, length)| row * pos..row * pos + length);
        Ok(Self {
            streams,
            normed,
            rows: rows.map(|row| row as i64).collect(),
        })
    }

    fn count(&self) -> usize {
        self.rows.len()
    }

    /// The tokens, some at a time.
    fn chunks<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        size: usize,
    ) -> impl Iterator<Item = Chunk<B>> {
        let device = self.normed.device();
        self.rows.chunks(size).map(move |rows| {
            let data = TensorData::new(rows.to_vec(), [rows.len()]);
            let tokens = Tensor::<B, 1, Int>::from_data(data, &device);
            let normed = self.normed.clone().select(1, tokens.clone());
            Chunk {
                own: model.unembed(normed).detach(),
                tokens,
            }
        })
    }

    /// The sum of `KL(p ‖ q)` over some tokens, `[1]`.
    fn divergence<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        site: Site,
        index: usize,
        chunk: &Chunk<B>,
        translate: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Tensor<B, 1> {
        let stream = self.streams[index].clone();
        let translated = translate(stream.select(1, chunk.tokens.clone()));
        let lens = lens_logits(model, site, translated);
        kl_divergences(chunk.own.clone().squeeze_dim(0), lens.squeeze_dim(0)).sum()
    }
}

/// Some tokens, and what the model itself predicts there.
struct Chunk<B: Backend> {
    /// Their rows in the streams.
    tokens: Tensor<B, 1, Int>,
    /// The model's own logits, `[1, token, vocab]`.
    own: Tensor<B, 3>,
}

//! Training a dictionary on a model's activations.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::ReusedMemory;
use burn_align_models::{AlignableTransformer, ModelDims, Site, SiteWidth, TokenBatch};
use serde_json::{Value, json};

use super::activations::ActivationStream;
use super::checkpoint::DictionaryFile;
use super::parameters::norms;
use super::sparsity::wrong;
use super::{
    DictionaryHistory, DictionaryTrainer, DictionaryTrainingConfig, DictionaryTrainingError,
    DictionaryTrainingEvent,
};
use crate::dictionaries::{Dictionary, DictionaryInfo, HookPoint};
use crate::engine::read_numbers;
use crate::training::CheckpointInterval;
use crate::training::fingerprint::{hash_of, sizes};

/// A dictionary that was trained here.
#[derive(Debug)]
#[non_exhaustive]
pub struct TrainedDictionary<B: Backend> {
    /// The dictionary. It reads the model's activations as they are; its weights are not tracked
    /// for gradients.
    pub dictionary: Dictionary<B>,
    /// The site that it reads, for [`Dictionary::save_saelens`]; add the model and the text.
    pub info: DictionaryInfo,
    /// Every step.
    pub history: DictionaryHistory,
    /// What activations were multiplied by in training.
    pub scale: f64,
    /// The features that were dead at the end.
    pub dead: Vec<usize>,
}

/// Trains a sparse autoencoder on a model's activations at a site. The model is run up to the site
/// only; its activations are collected and shuffled in parts, and each is used once per pass over
/// the text. `b_dec` starts as the mean of the first part.
///
/// With [checkpoints](DictionaryTrainingConfig::checkpoints), an interrupted run resumes and ends
/// with the same dictionary and history, bit by bit if the backend is deterministic. It must be
/// given the same model and text.
///
/// - batches: the text. Examples are shuffled, and tokens see the others of their example: give
///   examples as long as those that the dictionary will be used on
/// - observe: gets every step
///
/// # When it misleads
/// A dictionary always finds features, in a model with random weights too. Compare what you find in
/// it with what a dictionary of such a model has, and check with interventions that the model uses
/// it. Explained variance says little about behaviour: see
/// [`evaluate_dictionary`](crate::methods::evaluate_dictionary) for the loss that is recovered.
///
/// # Errors
/// If a setting is out of range, the text has too few tokens, the site is not there or no vector, a
/// run is not finite, training diverges, or a checkpoint cannot be written or belongs to another
/// run.
///
/// ```
/// use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions, Site};
/// use burn_align::training::dictionary::{
///     DictionaryTrainingConfig, Sparsity, train_dictionary,
/// };
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded = Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let countries = ["Spain", "Italy", "France", "Japan"];
/// let prompts = countries.map(|country| format!("The capital of {country} is"));
/// let text = [loaded.tokenizer()?.encode_batch(&prompts)?];
///
/// let site = Site::Block(1, Component::BlockOutput);
/// let config = DictionaryTrainingConfig::new(256, Sparsity::top_k(8), 40 * 16)
///     .with_batch_tokens(16)
///     .with_learning_rate(1e-2);
/// let found = train_dictionary(&loaded.model, &text, site, &config, |_| {})?;
/// let (first, last) = (found.history.steps[0], found.history.steps[39]);
/// assert!(last.explained_variance > first.explained_variance);
/// assert_eq!(found.dictionary.features(), 256);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn train_dictionary<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    batches: &[TokenBatch],
    site: Site,
    config: &DictionaryTrainingConfig,
    mut observe: impl FnMut(DictionaryTrainingEvent<'_>),
) -> Result<TrainedDictionary<B>, DictionaryTrainingError> {
    let _memory = ReusedMemory::in_steps();
    config.check(1)?;
    let mut stream = ActivationStream::<B, M>::new(model, batches, site, config)?;
    let width = match model.site(site).map(|dims| (dims.heads, dims.width)) {
        Some((heads, SiteWidth::Features(width))) => heads * width,
        // The run says what is wrong.
        _ => {
            let [_rows, width] = stream.first_part(|_| {})?.dims();
            width
        }
    };
    let mut trainer = DictionaryTrainer::<B>::new(width, config, &model.device())?;
    let file = config.checkpoints.as_ref().map(|checkpoints| {
        let run = fingerprint(config, model.dims(), site, batches);
        (DictionaryFile::new(checkpoints, run), checkpoints.every)
    });
    let found = match &file {
        Some((file, _)) => file.load(&mut trainer)?,
        None => None,
    };
    let (mut history, scale) = match found {
        Some((history, scale)) => {
            observe(DictionaryTrainingEvent::Resumed(&history));
            (history, scale)
        }
        None => {
            let first = stream
                .first_part(|tokens| observe(DictionaryTrainingEvent::Activations { tokens }))?;
            let scale = match config.scale_input {
                true => scale_of(first.clone())?,
                false => 1.0,
            };
            let mean = first.mean_dim(0).squeeze_dim::<1>(0);
            trainer.parameters.decoder_bias = mean * scale;
            let history = DictionaryHistory::default();
            // Find out that a folder is not writable before anything is trained.
            if let Some((file, _)) = &file {
                file.save(&trainer, &history, scale)?;
            }
            (history, scale)
        }
    };

    let (size, rows) = (config.batch_tokens, stream.rows());
    let mut saved = trainer.done;
    while trainer.done < config.steps() {
        let loaded = |tokens| observe(DictionaryTrainingEvent::Activations { tokens });
        let x = stream.batch(trainer.done * size, size, loaded)?;
        let report = trainer.step(x * scale)?;
        history.steps.push(report);
        observe(DictionaryTrainingEvent::Step(&report));
        let Some((file, every)) = &file else {
            continue;
        };
        let number = |done: usize| match every {
            CheckpointInterval::Steps(every) => done / every,
            CheckpointInterval::Epochs(every) => done * size / rows / every,
        };
        if number(trainer.done) > number(trainer.done - 1) {
            file.save(&trainer, &history, scale)?;
            saved = trainer.done;
        }
    }
    if let Some((file, _)) = &file
        && saved < trainer.done
    {
        file.save(&trainer, &history, scale)?;
    }
    Ok(TrainedDictionary {
        dictionary: trainer.dictionary()?.with_input_scale(scale).no_grad(),
        info: DictionaryInfo::default().with_input(HookPoint::at(site)),
        dead: trainer.dead(),
        history,
        scale,
    })
}

/// The square root of the width over the mean norm.
///
/// - rows: `[row, width]`
fn scale_of<B: Backend>(rows: Tensor<B, 2>) -> Result<f64, DictionaryTrainingError> {
    let [count, width] = rows.dims();
    let sum: f64 = read_numbers(norms(rows))?.iter().sum();
    let scale = (width as f64).sqrt() / (sum / count as f64);
    // The smallest norm that is counted is 1e-8.
    match scale.is_finite() && scale < 1e8 {
        true => Ok(scale),
        false => Err(wrong(
            "activations of the first part",
            "some that are not 0",
            format!("a mean norm of {}", sum / count as f64),
        )),
    }
}

/// Everything comparable that a run's numbers depend on. It does not include the weights of the
/// model.
fn fingerprint(
    config: &DictionaryTrainingConfig,
    dims: &ModelDims,
    site: Site,
    batches: &[TokenBatch],
) -> Value {
    let DictionaryTrainingConfig {
        features,
        sparsity,
        tokens,
        batch_tokens,
        learning_rate,
        schedule,
        optimizer,
        gradient_norm,
        unit_decoder,
        subtract_bias,
        scale_input,
        skip_positions,
        dead_after,
        resample_every,
        buffer_tokens,
        examples_at_once: _,
        products,
        seed,
        checkpoints: _,
        run: _,
    } = config;
    json!({
        "config": {
            "features": features,
            "sparsity": sparsity,
            "tokens": tokens,
            "batch_tokens": batch_tokens,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "optimizer": optimizer,
            "gradient_norm": gradient_norm,
            "unit_decoder": unit_decoder,
            "subtract_bias": subtract_bias,
            "scale_input": scale_input,
            "skip_positions": skip_positions,
            "dead_after": dead_after,
            "resample_every": resample_every,
            "buffer_tokens": buffer_tokens,
            "products": products,
            "seed": seed,
        },
        "model": sizes(dims),
        "site": site.to_string(),
        "text": hash_of(batches),
    })
}

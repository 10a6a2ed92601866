//! Llama Scope (arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`, and its
//! distilled-model release: `config.json` and `sae_weights.safetensors`.
//!
//! They were trained on activations with a mean norm of `√d`; the factor is folded into the
//! weights. As in SAELens, the features are those of the scaled activation, so the stored
//! threshold, which is for the activation itself, is scaled too.

use burn::tensor::backend::Backend;
use serde_json::json;

use super::{
    Array, CONFIG, Config, DictionaryError, DictionaryFormat, DictionaryInfo, FeatureActivation,
    LLAMA_SCOPE_CONFIG, LLAMA_SCOPE_WEIGHTS, Parts, PublishedDictionary, SAE_LENS_WEIGHTS, Source,
    Weights, info,
};
use crate::dictionaries::{Dictionary, DictionaryKind, HookPoint};

/// What both releases read, and the text that they were trained on.
const MODEL: &str = "meta-llama/Llama-3.1-8B";
const DATASET: (&str, usize) = ("cerebras/SlimPajama-627B", 1024);

/// Names of the tensors, of two linear layers.
const LINEAR: [&str; 4] = [
    "encoder.weight",
    "encoder.bias",
    "decoder.weight",
    "decoder.bias",
];

pub(super) fn load<B: Backend>(
    source: &Source<'_, B>,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    let mut config = Config::read(&source.file(LLAMA_SCOPE_CONFIG))?;
    check(&mut config)?;
    config.only("act_fn", &[json!("jumprelu"), json!("jump_relu")])?;
    config.only("norm_activation", &[json!("dataset-wise")])?;
    let d_in = config.size("d_model")?;
    let features = match config.optional_size("d_sae")? {
        Some(features) => features,
        None => d_in.saturating_mul(config.size("expansion_factor")?),
    };
    let threshold = config.number("jump_relu_threshold")?;
    let mut norms = config.object("dataset_average_activation_norm")?;
    let input_norm = norms.positive("in")?;
    let output_norm = match norms.value("out") {
        Some(_) => norms.positive("out")?,
        None => input_norm,
    };
    let root = (d_in as f64).sqrt();
    let scales = (root / input_norm, root / output_norm);
    let (input, output) = hooks(&mut config);

    let mut weights = Weights::read(&source.file(LLAMA_SCOPE_WEIGHTS))?;
    let sizes = [Some(d_in), Some(features), Some(d_in)];
    let parts = Parts::of_linear(&mut weights, LINEAR, sizes)?;
    weights.finish()?;
    let threshold = Array::full(features, (threshold * scales.0) as f32);
    let activation = FeatureActivation::<B>::jump_relu(threshold.tensor(device));
    let kind = match output {
        Some(_) => DictionaryKind::Transcoder,
        None => DictionaryKind::Autoencoder,
    };
    let dictionary = parts
        .dictionary(activation, device)?
        .with_kind(kind)?
        .with_scales(scales.0, scales.1);
    Ok(published(dictionary, input, output))
}

/// The release for the distilled model does not store the factor.
pub(super) fn load_distilled<B: Backend>(
    source: &Source<'_, B>,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    let file = source.file(CONFIG);
    let mut config = Config::read(&file)?;
    check(&mut config)?;
    let d_in = config.size("d_model")?;
    let features = d_in.saturating_mul(config.size("expansion_factor")?);
    let (input, output) = hooks(&mut config);
    let scale = source.options.needed_scale(&file)?;

    let mut weights = Weights::read(&source.file(SAE_LENS_WEIGHTS))?;
    let sizes = [Some(d_in), Some(features), Some(d_in)];
    let parts = Parts::of_linear(&mut weights, LINEAR, sizes)?;
    let mut threshold = weights.per_feature("log_jumprelu_threshold", features)?;
    weights.finish()?;
    threshold.values.iter_mut().for_each(|log| *log = log.exp());
    let activation = FeatureActivation::<B>::jump_relu(threshold.tensor(device));
    if let Some(output) = output {
        return Err(config.unsupported(
            "hook_point_out",
            format!("expected that of the input, found `{}`", output.name),
        ));
    }
    let dictionary = parts
        .dictionary(activation, device)?
        .with_input_scale(scale);
    Ok(published(dictionary, input, None))
}

/// Checks what would change the computation.
fn check(config: &mut Config) -> Result<(), DictionaryError> {
    config.only("use_glu_encoder", &[json!(false)])?;
    config.only("apply_decoder_bias_to_pre_encoder", &[json!(false)])?;
    config.only("use_decoder_bias", &[json!(true)])
}

/// What is read, and what is reconstructed if that is something else.
fn hooks(config: &mut Config) -> (Option<HookPoint>, Option<HookPoint>) {
    let mut hook = |key| {
        let name = config.known_text(key)?;
        Some(HookPoint::parse(&name, Some(MODEL)))
    };
    let (input, output) = (hook("hook_point_in"), hook("hook_point_out"));
    let output = output.filter(|output| input.as_ref() != Some(output));
    (input, output)
}

fn published<B: Backend>(
    dictionary: Dictionary<B>,
    input: Option<HookPoint>,
    output: Option<HookPoint>,
) -> PublishedDictionary<B> {
    PublishedDictionary {
        dictionary,
        info: DictionaryInfo {
            input,
            output,
            prepend_bos: Some(true),
            ..info(DictionaryFormat::LlamaScope)
        }
        .with_model(MODEL)
        .with_dataset(DATASET.0, DATASET.1),
    }
}

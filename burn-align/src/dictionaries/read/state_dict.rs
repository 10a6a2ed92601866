//! Files of `torch.save` that hold one dictionary: Qwen Scope, Goodfire and the like, and the
//! attention output SAEs of Kissane et al.

use burn::tensor::backend::Backend;

use super::{
    Config, DictionaryError, DictionaryFormat, DictionaryInfo, FeatureActivation, Parts,
    PublishedDictionary, Source, Weights, info, number_after,
};
use crate::dictionaries::{DictionaryKind, HookPoint};

const EXPECTED: &str = "a state dict with W_enc, b_enc, W_dec and b_dec (Qwen Scope, or beside a \
     _cfg.json), or with weight and bias of encoder and decoder, or of encoder_linear and \
     decoder_linear";

/// Names of the tensors of two linear layers, as two publishers have them.
const LINEAR: [[&str; 4]; 2] = [
    [
        "encoder.weight",
        "encoder.bias",
        "decoder.weight",
        "decoder.bias",
    ],
    [
        "encoder_linear.weight",
        "encoder_linear.bias",
        "decoder_linear.weight",
        "decoder_linear.bias",
    ],
];

pub(super) fn load<B: Backend>(
    source: &Source<'_, B>,
    mut weights: Weights,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    if let Some(names) = LINEAR
        .into_iter()
        .find(|[encoder, ..]| weights.has(encoder))
    {
        let parts = Parts::of_linear(&mut weights, names, [None; 3])?;
        weights.finish()?;
        let dictionary = parts.dictionary(FeatureActivation::relu(), device)?;
        let info = info(DictionaryFormat::LinearLayers);
        return Ok(PublishedDictionary { dictionary, info });
    }
    if !weights.has("W_enc") {
        return Err(DictionaryError::UnknownFormat {
            folder: weights.file.clone(),
            expected: EXPECTED,
            found: weights.names(),
        });
    }
    let stem = weights.file.with_extension("");
    let mut beside = stem.file_name().unwrap_or_default().to_owned();
    beside.push("_cfg.json");
    let beside = source.folder.join(beside);
    match beside.is_file() {
        true => attention_outputs(Config::read(&beside)?, weights, device),
        false => qwen_scope(source, weights),
    }
}

/// ReLU, with `b_dec` subtracted, on the mixed values of all heads.
fn attention_outputs<B: Backend>(
    mut config: Config,
    mut weights: Weights,
    device: &B::Device,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let (d_in, features) = (config.size("act_size")?, config.size("dict_size")?);
    let sizes = [Some(d_in), Some(features), Some(d_in)];
    let parts = Parts::take(&mut weights, sizes)?;
    weights.finish()?;
    let dictionary = parts
        .dictionary(FeatureActivation::relu(), device)?
        .with_subtracted_bias(true)?;
    let model = config.known_text("model_name");
    let hook = config.known_text("act_name");
    Ok(PublishedDictionary {
        dictionary,
        info: DictionaryInfo {
            input: hook.map(|hook| HookPoint::parse(&hook, model.as_deref())),
            model,
            ..info(DictionaryFormat::AttentionOutputs)
        },
    })
}

/// TopK, without subtraction. The file does not say how many features are active: that is in the
/// name of the repository, such as `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`.
fn qwen_scope<B: Backend>(
    source: &Source<'_, B>,
    mut weights: Weights,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let (path, device) = (source.path(), source.device);
    let named = path.iter().rev().find(|part| part.contains("SAE-Res-"));
    let k = named.and_then(|name| number_after(name, "-L0_"));
    let k = source.options.k.or(k).ok_or(DictionaryError::NotStored {
        file: weights.file.clone(),
        what: "the number of active features",
        remedy: "DictionaryOptions::with_k",
    })?;
    let model = named.and_then(|name| {
        let (_, name) = name.split_once("SAE-Res-")?;
        let (model, _) = name.rsplit_once("-W")?;
        Some(format!("Qwen/{model}"))
    });
    let file = weights.file.file_name().unwrap_or_default();
    let layer = number_after(&file.to_string_lossy(), "layer");
    let names = ["W_enc", "b_enc", "W_dec", "b_dec"];
    let parts = Parts::of_linear(&mut weights, names, [None; 3])?;
    weights.finish()?;
    let dictionary = parts
        .dictionary(FeatureActivation::top_k(k), device)?
        .with_kind(DictionaryKind::Autoencoder)?;
    let input = layer.map(|layer| {
        let name = format!("blocks.{layer}.hook_resid_post");
        HookPoint::parse(&name, model.as_deref())
    });
    Ok(PublishedDictionary {
        dictionary,
        info: DictionaryInfo {
            input,
            model,
            ..info(DictionaryFormat::QwenScope)
        },
    })
}

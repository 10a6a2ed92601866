//! circuit-tracer: a safetensors file `layer_N.safetensors` for the transcoder of each layer, or
//! two, `W_enc_N.safetensors` and `W_dec_N.safetensors`, for each layer of a cross-layer
//! transcoder. A `config.yaml` names the model and where the features read and write.
//!
//! Cross-layer transcoders of Gemma Scope 2 are read too: `layer_N.safetensors` with a decoder to
//! all layers, of which the earlier ones are not used.

use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::tensor::backend::Backend;

use super::gemma_scope::{SKIP, refuse_several_layers};
use super::{
    Array, DictionaryError, DictionaryFormat, DictionaryInfo, FeatureActivation, Parts,
    PublishedDictionary, Source, Weights, YAML_CONFIG, info, jump_relu, number_after,
};
use crate::dictionaries::config::yaml_text;
use crate::dictionaries::{CrossLayerTranscoder, DictionaryKind, HookPoint};
use crate::saved::FileError;

const EXPECTED: &str = "tensors W_enc, b_enc, W_dec and b_dec, as circuit-tracer writes them";

/// Thresholds, in a transcoder of circuit-tracer.
const THRESHOLD: &str = "activation_function.threshold";

pub(super) fn load<B: Backend>(
    source: &Source<'_, B>,
    mut weights: Weights,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    if !weights.has("W_enc") {
        weights.rename("w_dec", "W_dec");
        refuse_several_layers(&weights)?;
        return Err(DictionaryError::UnknownFormat {
            folder: weights.file.clone(),
            expected: EXPECTED,
            found: weights.names(),
        });
    }
    // Both stored with a row for each feature.
    let encoder = weights.take::<2>("W_enc", [None, None])?.transposed();
    let [d_in, features] = encoder.shape;
    let decoder = weights.take("W_dec", [Some(features), None])?;
    let [_feature, d_out] = decoder.shape;
    let parts = Parts {
        encoder,
        encoder_bias: weights.take("b_enc", [Some(features)])?,
        decoder,
        decoder_bias: weights.take("b_dec", [Some(d_out)])?,
    };
    let activation: FeatureActivation<B> = activation(&mut weights, THRESHOLD, features, device)?;
    let skip = match weights.has("W_skip") {
        // Stored as `[d_out, d_in]`.
        true => Some(weights.take("W_skip", [Some(d_out), Some(d_in)])?),
        false => None,
    };
    let file = weights.file.file_name().unwrap_or_default();
    let layer = number_after(&file.to_string_lossy(), "layer_");
    weights.finish()?;
    let dictionary = parts
        .dictionary(activation, device)?
        .with_kind(DictionaryKind::Transcoder)?;
    let dictionary = match skip {
        Some(skip) => dictionary.with_skip(skip.transposed().tensor(device))?,
        None => dictionary,
    };
    Ok(PublishedDictionary {
        dictionary,
        info: describe(source.folder, layer),
    })
}

/// Reads the features of one layer of a cross-layer transcoder.
pub(in crate::dictionaries) fn load_layer<B: Backend>(
    folder: &Path,
    layer: usize,
    device: &B::Device,
) -> Result<(CrossLayerTranscoder<B>, DictionaryInfo), DictionaryError> {
    let of_encoder = folder.join(format!("W_enc_{layer}.safetensors"));
    let whole = folder.join(format!("layer_{layer}.safetensors"));
    let (transcoder, info) = if of_encoder.is_file() {
        let transcoder = in_two_files(folder, layer, device)?;
        (transcoder, describe(folder, Some(layer)))
    } else if whole.is_file() {
        let transcoder = in_one_file(&whole, layer, device)?;
        (transcoder, info(DictionaryFormat::GemmaScope2))
    } else {
        return Err(DictionaryError::UnknownFormat {
            folder: folder.to_owned(),
            expected: "W_enc_N.safetensors with W_dec_N.safetensors, or layer_N.safetensors, where \
                       N is the layer",
            found: super::names(folder),
        });
    };
    Ok((transcoder.no_grad(), info))
}

fn in_two_files<B: Backend>(
    folder: &Path,
    layer: usize,
    device: &B::Device,
) -> Result<CrossLayerTranscoder<B>, DictionaryError> {
    let name = |tensor: &str| format!("{tensor}_{layer}");
    let mut encoders = Weights::read(&folder.join(format!("W_enc_{layer}.safetensors")))?;
    let mut decoders = Weights::read(&folder.join(format!("W_dec_{layer}.safetensors")))?;
    // Stored as `[feature, d_in]` and `[feature, target, d_out]`.
    let encoder: Array<2> = encoders.take(&name("W_enc"), [None, None])?;
    let encoder = encoder.transposed();
    let [_d_in, features] = encoder.shape;
    let decoder: Array<3> = decoders.take(&name("W_dec"), [Some(features), None, None])?;
    let decoder = decoder.by_middle(0);
    let [_target, _feature, d_out] = decoder.shape;
    let encoder_bias: Array<1> = encoders.take(&name("b_enc"), [Some(features)])?;
    let decoder_bias: Array<1> = encoders.take(&name("b_dec"), [Some(d_out)])?;
    let activation: FeatureActivation<B> =
        activation(&mut encoders, &name("threshold"), features, device)?;
    encoders.finish()?;
    decoders.finish()?;
    CrossLayerTranscoder::new(
        layer,
        (encoder.tensor(device), encoder_bias.tensor(device)),
        activation,
        (decoder.tensor(device), decoder_bias.tensor(device)),
    )
}

fn in_one_file<B: Backend>(
    file: &Path,
    layer: usize,
    device: &B::Device,
) -> Result<CrossLayerTranscoder<B>, DictionaryError> {
    let mut weights = Weights::read(file)?;
    // Stored as `[d_in, feature]` and `[feature, layer, d_out]`, for all layers of the model.
    let encoder: Array<2> = weights.take("w_enc", [None, None])?;
    let [d_in, features] = encoder.shape;
    let decoder: Array<3> = weights.take("w_dec", [Some(features), None, None])?;
    let [_feature, layers, d_out] = decoder.shape;
    if layer >= layers {
        return Err(FileError::WrongShape {
            file: file.to_owned(),
            tensor: "w_dec".to_owned(),
            expected: format!("[{features}, more than {layer}, {d_out}]"),
            found: vec![features, layers, d_out],
        }
        .into());
    }
    let decoder = decoder.by_middle(layer);
    let encoder_bias: Array<1> = weights.take("b_enc", [Some(features)])?;
    let decoder_bias: Array<1> = weights.take("b_dec", [Some(d_out)])?;
    let activation: FeatureActivation<B> = jump_relu(&mut weights, "threshold", features, device)?;
    let skip: Option<Array<2>> = match weights.has(SKIP) {
        true => Some(weights.take(SKIP, [Some(d_in), Some(d_out)])?),
        false => None,
    };
    weights.finish()?;
    let transcoder = CrossLayerTranscoder::new(
        layer,
        (encoder.tensor(device), encoder_bias.tensor(device)),
        activation,
        (decoder.tensor(device), decoder_bias.tensor(device)),
    )?;
    match skip {
        Some(skip) => transcoder.with_skip(skip.tensor(device)),
        None => Ok(transcoder),
    }
}

/// JumpReLU if there are thresholds, otherwise ReLU. circuit-tracer's JumpReLU has no ReLU: with
/// negative thresholds it is another function.
fn activation<B: Backend>(
    weights: &mut Weights,
    name: &str,
    features: usize,
    device: &B::Device,
) -> Result<FeatureActivation<B>, DictionaryError> {
    if !weights.has(name) {
        return Ok(FeatureActivation::relu());
    }
    let threshold = weights.per_feature(name, features)?;
    match threshold.values.iter().find(|value| **value < 0.0) {
        None => Ok(FeatureActivation::jump_relu(threshold.tensor(device))),
        Some(found) => Err(DictionaryError::UnsupportedTensor {
            file: weights.file.clone(),
            tensor: name.to_owned(),
            reason: format!("expected thresholds of at least 0, found {found}"),
        }),
    }
}

/// What `config.yaml` says, if there is one.
fn describe(folder: &Path, layer: Option<usize>) -> DictionaryInfo {
    let yaml = fs::read_to_string(folder.join(YAML_CONFIG)).unwrap_or_default();
    let model = yaml_text(&yaml, "model_name");
    let hook = |key| {
        let name = format!("blocks.{}.{}", layer?, yaml_text(&yaml, key)?);
        Some(HookPoint::parse(&name, model.as_deref()))
    };
    DictionaryInfo {
        input: hook("feature_input_hook"),
        output: hook("feature_output_hook"),
        model: model.clone(),
        ..info(DictionaryFormat::CircuitTracer)
    }
}

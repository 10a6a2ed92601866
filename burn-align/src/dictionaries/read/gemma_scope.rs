//! Gemma Scope (arXiv 2408.05147): `params.npz`, and Gemma Scope 2: `params.safetensors`.
//!
//! Both are JumpReLU and subtract no bias. The first has no configuration: model, layer and
//! activation are in the path on the hub, such as
//! `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`.

use burn::tensor::backend::Backend;
use burn_align_models::Site;
use serde_json::json;

use super::{
    CONFIG, Config, DictionaryError, DictionaryFormat, DictionaryInfo, FeatureActivation,
    GEMMA_SCOPE_2_WEIGHTS, GEMMA_SCOPE_WEIGHTS, Parts, PublishedDictionary, Source, Weights,
    ignore_scaling_factor, info, jump_relu, number_after,
};
use crate::dictionaries::{DictionaryKind, HookPoint};

/// The text that both were trained on, and the tokens in a row of it.
const DATASET: (&str, usize) = ("monology/pile-uncopyrighted", 1024);

/// Keys of the first with a lower-case letter, in some releases.
const RENAMED: [(&str, &str); 2] = [("w_enc", "W_enc"), ("w_dec", "W_dec")];

pub(super) fn load<B: Backend>(
    source: &Source<'_, B>,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    let place = Place::of(&source.path());
    let mut weights = Weights::read(&source.file(GEMMA_SCOPE_WEIGHTS))?;
    for (old, new) in RENAMED {
        weights.rename(old, new);
    }
    ignore_scaling_factor(&mut weights)?;
    let mut parts = Parts::take(&mut weights, [None; 3])?;
    let activation: FeatureActivation<B> =
        jump_relu(&mut weights, "threshold", parts.features(), device)?;
    weights.finish()?;
    if place.is_embedding {
        // Trained on embeddings as stored; the model multiplies them by √d. `b_dec` would scale
        // with them too, but SAELens (6.54) leaves it as it is, and this is the dictionary that
        // others compute with. It only moves a constant between the reconstruction and its error:
        // features and the effects of changing them are the same.
        let [d_in, _feature] = parts.encoder.shape;
        let scale = (d_in as f32).sqrt();
        parts.encoder = parts.encoder.times(1.0 / scale);
        parts.decoder = parts.decoder.times(scale);
    }
    let dictionary = parts.dictionary(activation, device)?;
    let dictionary = match place.output {
        Some(_) => dictionary.with_kind(DictionaryKind::Transcoder)?,
        None => dictionary,
    };
    Ok(PublishedDictionary {
        dictionary,
        info: DictionaryInfo {
            input: place.input,
            output: place.output,
            model: place.model,
            prepend_bos: Some(true),
            ..info(DictionaryFormat::GemmaScope)
        }
        .with_dataset(DATASET.0, DATASET.1),
    })
}

/// What a path says.
#[derive(Default)]
struct Place {
    model: Option<String>,
    input: Option<HookPoint>,
    output: Option<HookPoint>,
    is_embedding: bool,
}

impl Place {
    fn of(path: &[String]) -> Self {
        const REPOSITORY: &str = "gemma-scope-";
        let repository = path.iter().rev().find_map(|part| {
            let (_, rest) = part.split_once(REPOSITORY)?;
            // `2b-pt-res`: size, pretrained or instruction-tuned, activation.
            let mut words = rest.split('-');
            Some((words.next()?, words.next()?, words.next()?))
        });
        let Some((size, tuning, activation)) = repository else {
            return Self::default();
        };
        let model = match tuning {
            "it" => format!("gemma-2-{size}-it"),
            _ => format!("gemma-2-{size}"),
        };
        let layer = path
            .iter()
            .rev()
            .find_map(|part| number_after(part, "layer_"));
        let hook = |name: &str| {
            let name = format!("blocks.{}.{name}", layer?);
            Some(HookPoint::parse(&name, Some(&model)))
        };
        let is_embedding = path.iter().any(|part| part.contains("embedding"));
        let (input, output) = match activation {
            _ if is_embedding => (Some(embedding()), None),
            "res" => (hook("hook_resid_post"), None),
            "mlp" => (hook("hook_mlp_out"), None),
            "att" => (hook("attn.hook_z"), None),
            "transcoders" => (hook("ln2.hook_normalized"), hook("hook_mlp_out")),
            _ => (None, None),
        };
        Self {
            model: Some(model),
            input,
            output,
            is_embedding,
        }
    }
}

fn embedding() -> HookPoint {
    HookPoint {
        name: "hook_embed".to_owned(),
        ..HookPoint::at(Site::Embedding)
    }
}

pub(super) fn load_second<B: Backend>(
    source: &Source<'_, B>,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    let file = source.file(CONFIG);
    let mut config = match file.is_file() {
        true => Config::read(&file)?,
        false => Config::empty(&file),
    };
    config.only("architecture", &[json!("jump_relu")])?;
    let has_skip = config.optional_flag("affine_connection")?;
    let model = config.known_text("model_name");
    let mut hook = |key| {
        let name = config.known_text(key)?;
        Some(HookPoint::parse(&name, model.as_deref()))
    };
    let (input, output) = (hook("hf_hook_point_in"), hook("hf_hook_point_out"));
    let is_transcoder = match (&input, &output) {
        (Some(input), Some(output)) => input != output,
        _ => source.path().iter().any(|part| part.contains("transcoder")),
    };

    let mut weights = Weights::read(&source.file(GEMMA_SCOPE_2_WEIGHTS))?;
    for (old, new) in RENAMED {
        weights.rename(old, new);
    }
    refuse_several_layers(&weights)?;
    let parts = Parts::take(&mut weights, [None; 3])?;
    let [d_in, features] = parts.encoder.shape;
    let [_feature, d_out] = parts.decoder.shape;
    let activation: FeatureActivation<B> = jump_relu(&mut weights, "threshold", features, device)?;
    let skip = match has_skip.unwrap_or_else(|| weights.has(SKIP)) {
        // Stored as `[d_in, d_out]`.
        true => Some(weights.take(SKIP, [Some(d_in), Some(d_out)])?),
        false => None,
    };
    weights.finish()?;

    let mut dictionary = parts.dictionary(activation, device)?;
    if is_transcoder {
        dictionary = dictionary.with_kind(DictionaryKind::Transcoder)?;
    }
    if let Some(skip) = skip {
        dictionary = dictionary.with_skip(skip.tensor(device))?;
    }
    Ok(PublishedDictionary {
        dictionary,
        info: DictionaryInfo {
            input,
            output: output.filter(|_| is_transcoder),
            model,
            prepend_bos: Some(true),
            ..info(DictionaryFormat::GemmaScope2)
        }
        .with_dataset(DATASET.0, DATASET.1),
    })
}

pub(super) const SKIP: &str = "affine_skip_connection";

/// A decoder to several layers is not one dictionary.
pub(super) fn refuse_several_layers(weights: &Weights) -> Result<(), DictionaryError> {
    match weights.shape("W_dec") {
        [_, _, _] => Err(DictionaryError::UnsupportedTensor {
            file: weights.file.clone(),
            tensor: "W_dec".to_owned(),
            reason: "it writes to several layers: load it with CrossLayerTranscoder::load"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

//! EleutherAI's sparsify (formerly sae): `cfg.json` and `sae.safetensors`.
//!
//! The bias `b_dec` is subtracted from the input of an autoencoder, whatever the norms of the
//! decoder's directions; SAELens' loader does not subtract it if these are normalised.

use burn::tensor::backend::Backend;
use serde_json::json;

use super::{
    CONFIG, Config, DictionaryError, DictionaryFormat, DictionaryInfo, FeatureActivation, Parts,
    PublishedDictionary, SAE_LENS_CONFIG, SPARSIFY_WEIGHTS, Source, Weights, info,
};
use crate::dictionaries::{DictionaryKind, HookPoint};

/// Keys that concern the training.
const TRAINING: [&str; 3] = ["normalize_decoder", "multi_topk", "expansion_factor"];

pub(super) fn load<B: Backend>(
    source: &Source<'_, B>,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    let mut config = Config::read(&source.file(SAE_LENS_CONFIG))?;
    let d_in = config.size("d_in")?;
    // 0 stands for a multiple of the input's width.
    let features = match config.optional_index("num_latents")? {
        None | Some(0) => d_in.saturating_mul(config.size("expansion_factor")?),
        Some(features) => features,
    };
    let k = config.size("k")?;
    let is_transcoder = config.flag("transcode", false)?;
    let has_skip = config.flag("skip_connection", false)?;
    config.only("signed", &[json!(false)])?;
    config.only("activation", &[json!("topk")])?;
    for key in TRAINING {
        config.value(key);
    }
    let notes = config.finish(&source.options.ignored_config_keys)?;

    let mut weights = Weights::read(&source.file(SPARSIFY_WEIGHTS))?;
    // Stored as `[feature, d_in]` and `[feature, d_out]`.
    let encoder = weights.take("encoder.weight", [Some(features), Some(d_in)])?;
    let parts = Parts {
        encoder: encoder.transposed(),
        encoder_bias: weights.take("encoder.bias", [Some(features)])?,
        decoder: weights.take("W_dec", [Some(features), Some(d_in)])?,
        decoder_bias: weights.take("b_dec", [Some(d_in)])?,
    };
    let skip = match has_skip {
        // Stored as `[d_out, d_in]`.
        true => Some(weights.take("W_skip", [Some(d_in), Some(d_in)])?),
        false => None,
    };
    weights.finish()?;

    let kind = match is_transcoder {
        true => DictionaryKind::Transcoder,
        false => DictionaryKind::Autoencoder,
    };
    let mut dictionary = parts
        .dictionary(FeatureActivation::top_k(k), device)?
        .with_kind(kind)?
        .with_subtracted_bias(!is_transcoder)?;
    if let Some(skip) = skip {
        dictionary = dictionary.with_skip(skip.transposed().tensor(device))?;
    }
    let info = describe(source, is_transcoder);
    Ok(PublishedDictionary {
        dictionary,
        info: DictionaryInfo { notes, ..info },
    })
}

/// The folder's name is that of a module, whose output is reconstructed; the folder above may have
/// the configuration of the training.
fn describe<B: Backend>(source: &Source<'_, B>, is_transcoder: bool) -> DictionaryInfo {
    let run = source.folder.parent().map(|folder| folder.join(CONFIG));
    let mut run = run
        .filter(|file| file.is_file())
        .and_then(|file| Config::read(&file).ok());
    let mut text = |key| run.as_mut().and_then(|run| run.known_text(key));
    let (model, dataset) = (text("model"), text("dataset"));
    let context = run.and_then(|mut run| run.optional_size("ctx_len").ok()?);
    let name = source.path().pop().unwrap_or_default();
    let output = HookPoint::parse(&name, model.as_deref());
    let input = HookPoint::parse(&format!("{name}.input"), model.as_deref());
    let (input, output) = match is_transcoder {
        true => (input, Some(output)),
        false => (output, None),
    };
    DictionaryInfo {
        input: Some(input).filter(|hook| hook.site.is_some()),
        output: output.filter(|hook| hook.site.is_some()),
        model,
        dataset,
        context_size: context,
        ..info(DictionaryFormat::Sparsify)
    }
}

//! dictionary_learning: `config.json` and the state dict `ae.pt`.
//!
//! The class decides the names of the tensors and whether the bias is subtracted: `AutoEncoder`,
//! `GatedAutoEncoder`, `AutoEncoderTopK` and the BatchTopK classes do, `AutoEncoderNew` and
//! `JumpReluAutoEncoder` do not. Features are as trained: the library's own loader scales those of
//! an `AutoEncoder` by the norms of the decoder, see
//! [`with_unit_decoder`](crate::dictionaries::Dictionary::with_unit_decoder).

use burn::tensor::backend::Backend;

use super::{
    CONFIG, Config, DictionaryError, DictionaryFormat, DictionaryInfo, FeatureActivation, Parts,
    PublishedDictionary, Source, TORCH_WEIGHTS, Weights, info, jump_relu,
};
use crate::dictionaries::HookPoint;

const CLASS: &str = "dict_class";

pub(super) fn load<B: Backend>(
    source: &Source<'_, B>,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    let mut config = Config::read(&source.file(CONFIG))?;
    let mut trainer = config.object("trainer")?;
    let class = trainer.text(CLASS)?;
    let sizes = sizes(&mut trainer)?;
    let mut weights = Weights::read(&source.file(TORCH_WEIGHTS))?;
    let linear = |weights: &mut Weights, encoder_bias: &str, decoder_bias: &str| {
        let names = [
            "encoder.weight",
            encoder_bias,
            "decoder.weight",
            decoder_bias,
        ];
        Parts::of_linear(weights, names, sizes)
    };
    let (parts, activation, subtracts_bias): (_, FeatureActivation<B>, _) = match class.as_str() {
        "AutoEncoder" => {
            let parts = linear(&mut weights, "encoder.bias", "bias")?;
            (parts, FeatureActivation::relu(), true)
        }
        "AutoEncoderNew" => {
            let parts = linear(&mut weights, "encoder.bias", "decoder.bias")?;
            (parts, FeatureActivation::relu(), false)
        }
        "GatedAutoEncoder" => {
            // The bias of the gate takes the place of the encoder's.
            let parts = linear(&mut weights, "gate_bias", "decoder_bias")?;
            let sizes = [Some(parts.features())];
            let log_magnitude = weights.take("r_mag", sizes)?.tensor(device);
            let magnitude_bias = weights.take("mag_bias", sizes)?.tensor(device);
            let gated = FeatureActivation::gated(log_magnitude, magnitude_bias);
            (parts, gated, true)
        }
        "JumpReluAutoEncoder" => {
            let parts = Parts::take(&mut weights, sizes)?;
            let activation = jump_relu(&mut weights, "threshold", parts.features(), device)?;
            (parts, activation, false)
        }
        "AutoEncoderTopK" => {
            let parts = linear(&mut weights, "encoder.bias", "b_dec")?;
            let k = k(&mut trainer, &mut weights)?;
            // Of a variant of the function that is not the default.
            weights.ignore("threshold");
            (parts, FeatureActivation::top_k(k), true)
        }
        "BatchTopKSAE" => {
            let parts = linear(&mut weights, "encoder.bias", "b_dec")?;
            weights.ignore("k");
            let activation = jump_relu(&mut weights, "threshold", parts.features(), device)?;
            (parts, activation, true)
        }
        "MatryoshkaBatchTopKSAE" => {
            let parts = Parts::take(&mut weights, sizes)?;
            weights.ignore("k");
            // All groups are active.
            weights.ignore("group_sizes");
            let activation = jump_relu(&mut weights, "threshold", parts.features(), device)?;
            (parts, activation, true)
        }
        _ => {
            return Err(trainer.unsupported(
                CLASS,
                "expected AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, \
                 AutoEncoderTopK, BatchTopKSAE or MatryoshkaBatchTopKSAE",
            ));
        }
    };
    weights.finish()?;
    let dictionary = parts
        .dictionary(activation, device)?
        .with_subtracted_bias(subtracts_bias)?;
    let mut buffer = config.optional_object("buffer")?;
    let context_size = match &mut buffer {
        Some(buffer) => buffer.optional_size("ctx_len")?,
        None => None,
    };
    Ok(PublishedDictionary {
        dictionary,
        info: DictionaryInfo {
            input: hook(&mut trainer, buffer.as_mut())?,
            model: trainer.known_text("lm_name"),
            context_size,
            ..info(DictionaryFormat::DictionaryLearning)
        },
    })
}

/// `d_in`, number of features, `d_out`, as far as the configuration gives them.
fn sizes(trainer: &mut Config) -> Result<[Option<usize>; 3], DictionaryError> {
    let width = trainer.optional_size("activation_dim")?;
    Ok([width, trainer.optional_size("dict_size")?, width])
}

/// The number of active features, which is in the configuration, in newer state dicts, or in both.
fn k(trainer: &mut Config, weights: &mut Weights) -> Result<usize, DictionaryError> {
    let stored = match weights.has("k") {
        true => Some(weights.whole_number("k")?),
        false => None,
    };
    match (trainer.optional_size("k")?, stored) {
        (Some(k), Some(stored)) if k != stored => {
            let reason = format!("the state dict has k = {stored}");
            Err(trainer.unsupported("k", reason))
        }
        (Some(k), _) | (None, Some(k)) => Ok(k),
        (None, None) => Err(trainer.missing("k")),
    }
}

/// The output of a block, of its attention or of its MLP, which the name of the submodule tells.
fn hook(
    trainer: &mut Config,
    buffer: Option<&mut Config>,
) -> Result<Option<HookPoint>, DictionaryError> {
    let io = buffer.and_then(|buffer| buffer.known_text("io"));
    let name = trainer.known_text("submodule_name");
    let layer = trainer.optional_index("layer")?;
    let (Some(name), Some(layer)) = (name, layer) else {
        return Ok(None);
    };
    let model = trainer.known_text("lm_name");
    let suffix = ["resid_post", "attn_out", "mlp_out"];
    let suffix = suffix.iter().find(|suffix| name.starts_with(**suffix));
    let of_output = io.is_none_or(|io| io == "out");
    Ok(suffix.filter(|_| of_output).map(|suffix| {
        let name = format!("blocks.{layer}.hook_{suffix}");
        HookPoint::parse(&name, model.as_deref())
    }))
}

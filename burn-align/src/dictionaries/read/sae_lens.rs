//! SAELens: `cfg.json` and `sae_weights.safetensors`, of all releases.
//!
//! Before release 6, keys had other names and other defaults, and `cfg.json` held the whole
//! configuration of the training.

use burn::tensor::backend::Backend;
use serde_json::{Value, json};

use super::{
    Config, DictionaryError, DictionaryFormat, DictionaryInfo, FeatureActivation, Parts,
    PublishedDictionary, SAE_LENS_CONFIG, SAE_LENS_WEIGHTS, Source, Weights, ignore_scaling_factor,
    info, jump_relu,
};
use crate::dictionaries::{DictionaryKind, HookPoint, InputNorm};

/// The release from which on keys have their present names.
const PRESENT: u64 = 6;

const METADATA: &str = "metadata";

/// Keys that describe the training, the machine or the data.
const TRAINING: [&str; 5] = [
    "finetuning_scaling_factor",
    "activation_fn_kwargs",
    "sae_lens_training_version",
    "device",
    "dtype",
];

pub(super) fn load<B: Backend>(
    source: &Source<'_, B>,
) -> Result<PublishedDictionary<B>, DictionaryError> {
    let device = source.device;
    let mut config = Config::read(&source.file(SAE_LENS_CONFIG))?;
    let mut metadata = config.optional_object(METADATA)?;
    let is_old = is_old(&mut config, metadata.as_mut());
    if is_old {
        config.rename("hook_point", "hook_name");
        config.rename("hook_point_head_index", "hook_head_index");
        config.rename("activation_fn_str", "activation_fn");
    }
    let shape = Shape::read(&mut config, is_old)?;
    let norm = normalisation(&mut config)?;
    let d_in = config.size("d_in")?;
    let features = config.size("d_sae")?;
    let d_out = match shape.is_transcoder {
        true => config.size("d_out")?,
        false => d_in,
    };
    let subtracts_bias = config.flag("apply_b_dec_to_input", !shape.is_transcoder)?;
    if subtracts_bias && shape.is_transcoder {
        return Err(config.unsupported("apply_b_dec_to_input", "a transcoder subtracts no bias"));
    }
    let rescales = config.flag("rescale_acts_by_decoder_norm", false)?;
    config.only("reshape_activations", &[json!("none"), json!("hook_z")])?;
    for key in TRAINING {
        config.value(key);
    }
    let scale = match norm {
        Normalisation::Constant => Some(source.options.needed_scale(&config.file)?),
        Normalisation::Rows(_) => None,
    };
    let info = describe(&mut config, metadata, shape.is_transcoder, is_old)?;
    let mut notes = config.finish(&source.options.ignored_config_keys)?;
    if is_old {
        // They are the settings of the training.
        notes.clear();
    }

    let mut weights = Weights::read(&source.file(SAE_LENS_WEIGHTS))?;
    ignore_scaling_factor(&mut weights)?;
    if shape.activation == Activation::Gated {
        // The bias of the gate takes the place of the encoder's.
        weights.rename("b_gate", "b_enc");
    }
    let parts = Parts::take(&mut weights, [Some(d_in), Some(features), Some(d_out)])?;
    let activation: FeatureActivation<B> = match shape.activation {
        Activation::Relu => FeatureActivation::relu(),
        Activation::JumpRelu => jump_relu(&mut weights, "threshold", features, device)?,
        Activation::TopK(k) => FeatureActivation::top_k(k),
        Activation::AbsTopK(k) => FeatureActivation::abs_top_k(k),
        Activation::Gated => FeatureActivation::gated(
            weights.take("r_mag", [Some(features)])?.tensor(device),
            weights.take("b_mag", [Some(features)])?.tensor(device),
        ),
    };
    let skip = match shape.has_skip {
        // Stored as `[d_out, d_in]`.
        true => Some(weights.take("W_skip", [Some(d_out), Some(d_in)])?),
        false => None,
    };
    weights.finish()?;

    let mut dictionary = parts.dictionary(activation, device)?;
    if shape.is_transcoder {
        dictionary = dictionary.with_kind(DictionaryKind::Transcoder)?;
    }
    if let Some(skip) = skip {
        dictionary = dictionary.with_skip(skip.transposed().tensor(device))?;
    }
    dictionary = dictionary.with_subtracted_bias(subtracts_bias)?;
    if let Normalisation::Rows(norm) = norm {
        dictionary = dictionary.with_input_norm(norm);
    }
    if rescales {
        dictionary = dictionary.scaled_by_decoder();
    }
    if let Some(scale) = scale {
        dictionary = dictionary.with_input_scale(scale);
    }
    Ok(PublishedDictionary {
        dictionary,
        info: DictionaryInfo { notes, ..info },
    })
}

/// Whether the configuration is from before release 6.
fn is_old(config: &mut Config, metadata: Option<&mut Config>) -> bool {
    const VERSION: &str = "sae_lens_version";
    let version = config
        .known_text(VERSION)
        .or_else(|| metadata.and_then(|metadata| metadata.known_text(VERSION)));
    let major = version.and_then(|version| version.split('.').next()?.parse::<u64>().ok());
    major.is_none_or(|major| major < PRESENT)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Activation {
    Relu,
    JumpRelu,
    TopK(usize),
    AbsTopK(usize),
    Gated,
}

/// What the name of the architecture says.
struct Shape {
    activation: Activation,
    is_transcoder: bool,
    has_skip: bool,
}

impl Shape {
    fn read(config: &mut Config, is_old: bool) -> Result<Self, DictionaryError> {
        const ARCHITECTURE: &str = "architecture";
        let architecture = match config.optional_text(ARCHITECTURE)? {
            Some(architecture) => architecture,
            None if is_old => "standard".to_owned(),
            None => return Err(config.missing(ARCHITECTURE)),
        };
        let of = |activation, is_transcoder, has_skip| Self {
            activation,
            is_transcoder,
            has_skip,
        };
        let function = config.optional_text("activation_fn")?;
        match function.as_deref() {
            None | Some("relu") => {}
            Some("topk") => {
                let top_k = Activation::TopK(k(config)?);
                return match architecture.as_str() {
                    "standard" | "topk" => Ok(of(top_k, false, false)),
                    _ => Err(config.unsupported(
                        ARCHITECTURE,
                        "with the activation function topk, only standard and topk are",
                    )),
                };
            }
            Some(_) => {
                return Err(config.unsupported("activation_fn", "expected relu or topk"));
            }
        }
        Ok(match architecture.as_str() {
            "standard" => of(Activation::Relu, false, false),
            "jumprelu" => of(Activation::JumpRelu, false, false),
            "gated" => of(Activation::Gated, false, false),
            "topk" => of(Activation::TopK(k(config)?), false, false),
            "abstopk" => of(Activation::AbsTopK(k(config)?), false, false),
            "transcoder" => of(Activation::Relu, true, false),
            "skip_transcoder" => of(Activation::Relu, true, true),
            "jumprelu_transcoder" => of(Activation::JumpRelu, true, false),
            "jumprelu_skip_transcoder" => of(Activation::JumpRelu, true, true),
            _ => {
                return Err(config.unsupported(
                    ARCHITECTURE,
                    "expected standard, jumprelu, gated, topk, abstopk, transcoder, \
                     skip_transcoder, jumprelu_transcoder or jumprelu_skip_transcoder; SAELens \
                     saves a trained batchtopk as jumprelu",
                ));
            }
        })
    }
}

/// The number of active features, which old configurations have among the function's arguments.
fn k(config: &mut Config) -> Result<usize, DictionaryError> {
    let old = config.optional_object("activation_fn_kwargs")?;
    let present = config.optional_size("k")?;
    match old {
        Some(mut old) => match old.optional_size("k")?.or(present) {
            Some(k) => Ok(k),
            None => Err(old.missing("k")),
        },
        None => present.ok_or_else(|| config.missing("k")),
    }
}

#[derive(Clone, Copy)]
enum Normalisation {
    /// By the statistics of each row.
    Rows(InputNorm),
    /// By a factor that is the same for all.
    Constant,
}

fn normalisation(config: &mut Config) -> Result<Normalisation, DictionaryError> {
    const KEY: &str = "normalize_activations";
    let named = match config.value(KEY) {
        None | Some(Value::Bool(false)) => "none".to_owned(),
        Some(Value::Bool(true)) => "expected_average_only_in".to_owned(),
        Some(Value::String(name)) => name.clone(),
        Some(_) => String::new(),
    };
    Ok(match named.as_str() {
        "none" => Normalisation::Rows(InputNorm::None),
        "constant_norm_rescale" => Normalisation::Rows(InputNorm::ConstantNorm),
        "layer_norm" => Normalisation::Rows(InputNorm::LayerNorm),
        "expected_average_only_in" => Normalisation::Constant,
        _ => {
            return Err(config.unsupported(
                KEY,
                "expected none, constant_norm_rescale, layer_norm or expected_average_only_in",
            ));
        }
    })
}

fn describe(
    config: &mut Config,
    mut metadata: Option<Config>,
    is_transcoder: bool,
    is_old: bool,
) -> Result<DictionaryInfo, DictionaryError> {
    // Newer releases have this in an object of its own.
    let from = match &mut metadata {
        Some(metadata) => metadata,
        None => config,
    };
    let model = from.known_text("model_name");
    let input = ["hf_hook_name", "hook_name", "hook_head_index"];
    let output = ["hf_hook_name_out", "hook_name_out", "hook_head_index_out"];
    let input = hook(from, input, model.as_deref())?;
    let output = hook(from, output, model.as_deref())?;
    Ok(DictionaryInfo {
        input,
        output: output.filter(|_| is_transcoder),
        dataset: from.known_text("dataset_path"),
        context_size: from.optional_size("context_size")?,
        // Old dictionaries were trained with BOS unless they say otherwise, as SAELens assumes.
        prepend_bos: from
            .optional_flag("prepend_bos")?
            .or(is_old.then_some(true)),
        model,
        ..info(DictionaryFormat::SaeLens)
    })
}

/// A hook with its head, under the name of TransformerLens. If a module of `transformers` is named
/// too, that is the precise place.
fn hook(
    from: &mut Config,
    [module, name, head]: [&str; 3],
    model: Option<&str>,
) -> Result<Option<HookPoint>, DictionaryError> {
    let (module, name) = (from.known_text(module), from.known_text(name));
    let head = from.optional_index(head)?;
    let exact = module.map(|module| HookPoint::parse(&module, model));
    let hook = match (name, exact) {
        (Some(name), Some(exact)) if exact.site.is_some() => Some(HookPoint { name, ..exact }),
        (Some(name), _) => Some(HookPoint::parse(&name, model)),
        (None, exact) => exact,
    };
    Ok(hook.map(|hook| HookPoint { head, ..hook }))
}

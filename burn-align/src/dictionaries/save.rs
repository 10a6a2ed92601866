//! Writing a dictionary as SAELens does.

use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::files::{Replacement, WriteError};
use burn_align_models::{Component, Site};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Map, Value, json};

use super::read::{SAE_LENS_CONFIG, SAE_LENS_WEIGHTS};
use super::{
    Dictionary, DictionaryInfo, DictionaryKind, FeatureActivation, InputNorm, Ranking,
    SaveDictionaryError,
};

/// The release whose keys are written.
const SAE_LENS: &str = "6.54.12";

/// A tensor to store: name, shape, bytes.
type Stored = (&'static str, Vec<usize>, Vec<u8>);

impl<B: Backend> Dictionary<B> {
    /// Writes `cfg.json` and `sae_weights.safetensors` into a folder, which SAELens loads from
    /// release 6 on (`SAE.load_from_disk`). The folder is created if it does not exist; an existing
    /// dictionary is replaced once everything is written.
    ///
    /// # Errors
    /// [`SaveDictionaryError::Unrepresentable`] if SAELens has no class for it: TopK and gated
    /// transcoders, autoencoders with a skip connection, and transcoders that subtract a bias. Or
    /// if the files cannot be written.
    pub fn save_saelens(
        &self,
        info: &DictionaryInfo,
        folder: impl AsRef<Path>,
    ) -> Result<(), SaveDictionaryError> {
        let config = self.sae_lens_config(info)?;
        let tensors = self.sae_lens_tensors()?;
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("4 bytes a value");
            (*name, view)
        });
        let bytes = serialize(views, None).map_err(|error| SaveDictionaryError::Tensor {
            tensor: SAE_LENS_WEIGHTS.to_owned(),
            found: error.to_string(),
        })?;
        let mut files = Replacement::new(folder.as_ref())?;
        files.write(SAE_LENS_WEIGHTS, &bytes)?;
        files.write(SAE_LENS_CONFIG, format!("{config:#}\n").as_bytes())?;
        Ok(files.finish()?)
    }

    fn sae_lens_config(&self, info: &DictionaryInfo) -> Result<Value, SaveDictionaryError> {
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("architecture", self.architecture()?.into());
        put("d_in", self.width().into());
        put("d_sae", self.features().into());
        put("dtype", "float32".into());
        put("device", "cpu".into());
        put("apply_b_dec_to_input", self.subtracts_bias().into());
        let norm = match self.input_norm() {
            InputNorm::None => "none",
            InputNorm::ConstantNorm => "constant_norm_rescale",
            InputNorm::LayerNorm => "layer_norm",
        };
        put("normalize_activations", norm.into());
        put("reshape_activations", reshaped(info).into());
        if let FeatureActivation::TopK(it) = &self.activation {
            put("k", it.k.into());
            put("rescale_acts_by_decoder_norm", false.into());
        }
        if self.kind() == DictionaryKind::Transcoder {
            put("d_out", self.d_out().into());
        }
        put("metadata", metadata(info));
        Ok(config.into())
    }

    fn architecture(&self) -> Result<&'static str, SaveDictionaryError> {
        let lacks = |reason: &str| {
            Err(SaveDictionaryError::Unrepresentable {
                reason: reason.to_owned(),
            })
        };
        if self.kind() == DictionaryKind::Autoencoder {
            if self.skip.is_some() {
                return lacks("an autoencoder has no skip connection");
            }
            return Ok(match &self.activation {
                FeatureActivation::Relu(_) => "standard",
                FeatureActivation::JumpRelu(_) => "jumprelu",
                FeatureActivation::Gated(_) => "gated",
                FeatureActivation::TopK(it) => match it.ranking {
                    Ranking::Value => "topk",
                    Ranking::Magnitude => "abstopk",
                },
            });
        }
        if self.subtracts_bias() {
            return lacks("a transcoder subtracts no bias");
        }
        match (&self.activation, self.skip.is_some()) {
            (FeatureActivation::Relu(_), false) => Ok("transcoder"),
            (FeatureActivation::Relu(_), true) => Ok("skip_transcoder"),
            (FeatureActivation::JumpRelu(_), false) => Ok("jumprelu_transcoder"),
            (FeatureActivation::JumpRelu(_), true) => Ok("jumprelu_skip_transcoder"),
            (FeatureActivation::TopK(_) | FeatureActivation::Gated(_), _) => {
                lacks("a transcoder is ReLU or JumpReLU")
            }
        }
    }

    fn sae_lens_tensors(&self) -> Result<Vec<Stored>, SaveDictionaryError> {
        let mut tensors = vec![
            stored("W_enc", &self.encoder)?,
            stored("W_dec", &self.decoder)?,
            stored("b_dec", &self.decoder_bias)?,
        ];
        match &self.activation {
            FeatureActivation::Gated(it) => {
                tensors.push(stored("b_gate", &self.encoder_bias)?);
                tensors.push(stored("r_mag", &it.log_magnitude)?);
                tensors.push(stored("b_mag", &it.magnitude_bias)?);
            }
            FeatureActivation::JumpRelu(it) => {
                tensors.push(stored("b_enc", &self.encoder_bias)?);
                tensors.push(stored("threshold", &it.threshold)?);
            }
            FeatureActivation::Relu(_) | FeatureActivation::TopK(_) => {
                tensors.push(stored("b_enc", &self.encoder_bias)?);
            }
        }
        if let Some(skip) = &self.skip {
            // `[d_out, d_in]` there.
            tensors.push(bytes("W_skip", skip.val().transpose())?);
        }
        Ok(tensors)
    }
}

impl From<WriteError> for SaveDictionaryError {
    fn from(WriteError { file, cause }: WriteError) -> Self {
        Self::Io { file, cause }
    }
}

/// Whether the heads of the activation are put into one row.
fn reshaped(info: &DictionaryInfo) -> &'static str {
    let input = info.input.as_ref().filter(|input| input.head.is_none());
    match input.and_then(|input| input.site) {
        Some(Site::Block(_, Component::AttentionValueOutput)) => "hook_z",
        _ => "none",
    }
}

/// What SAELens keeps about a dictionary; unknown things are left out.
fn metadata(info: &DictionaryInfo) -> Value {
    let mut metadata = json!({
        "sae_lens_version": SAE_LENS,
        "sae_lens_training_version": null,
    });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            metadata[key] = value;
        }
    };
    put("model_name", info.model.clone().map(Value::from));
    for (hook, name, head) in [
        (&info.input, "hook_name", "hook_head_index"),
        (&info.output, "hook_name_out", "hook_head_index_out"),
    ] {
        let hook = hook.as_ref();
        put(name, hook.map(|hook| hook.transformer_lens().into()));
        put(head, hook.and_then(|hook| hook.head).map(Value::from));
    }
    put("dataset_path", info.dataset.clone().map(Value::from));
    put("context_size", info.context_size.map(Value::from));
    put("prepend_bos", info.prepend_bos.map(Value::from));
    metadata
}

fn stored<B: Backend, const D: usize>(
    name: &'static str,
    param: &Param<Tensor<B, D>>,
) -> Result<Stored, SaveDictionaryError> {
    bytes(name, param.val())
}

fn bytes<B: Backend, const D: usize>(
    name: &'static str,
    tensor: Tensor<B, D>,
) -> Result<Stored, SaveDictionaryError> {
    let data = tensor.detach().cast(DType::F32).try_into_data();
    let data: TensorData = data.map_err(|error| SaveDictionaryError::Tensor {
        tensor: name.to_owned(),
        found: error.to_string(),
    })?;
    let shape = data.shape.to_vec();
    let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
    Ok((name, shape, bytes))
}

//! Writing this crate's own format.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::files::{Replacement, WriteError};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Deserialize;

use super::{Description, INTERVENTIONS, MapName, TENSORS, WIDTHS};
use crate::front::{AlignableConfig, distinct_interventions};
use crate::interventions::{BuiltinIntervention, Orthonormal};
use crate::saved::{CONFIG, SaveInterventionsError};

/// Writes a folder. Trailing `None`s of the widths may be left out.
pub(in crate::saved) fn save<B: Backend>(
    folder: &Path,
    config: &AlignableConfig,
    interventions: &[BuiltinIntervention<B>],
    widths: &[Option<usize>],
) -> Result<(), SaveInterventionsError> {
    let (_, expected) = distinct_interventions(config);
    if interventions.len() != expected {
        return Err(SaveInterventionsError::WrongInterventionCount {
            expected,
            found: interventions.len(),
        });
    }
    let mut saved = Saved::default();
    let mut descriptions = Vec::new();
    for (index, intervention) in interventions.iter().enumerate() {
        saved.index = index;
        descriptions.push(saved.describe(intervention)?);
    }
    let json = config_json(config, &descriptions, widths)?;
    let views = saved.tensors.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("4 bytes a value");
        (name.as_str(), view)
    });
    let bytes = serialize(views, None).map_err(|error| SaveInterventionsError::Tensor {
        tensor: TENSORS.to_owned(),
        found: error.to_string(),
    })?;
    let mut files = Replacement::new(folder)?;
    files.write(TENSORS, &bytes)?;
    files.write(CONFIG, json.as_bytes())?;
    Ok(files.finish()?)
}

impl From<WriteError> for SaveInterventionsError {
    fn from(WriteError { file, cause }: WriteError) -> Self {
        Self::Io { file, cause }
    }
}

fn config_json(
    config: &AlignableConfig,
    descriptions: &[Description],
    widths: &[Option<usize>],
) -> Result<String, SaveInterventionsError> {
    let failed = |reason: String| SaveInterventionsError::Config { reason };
    let mut json = serde_json::to_value(config).map_err(|error| {
        failed(format!(
            "cannot be written as JSON: \
                                                                     {error}"
        ))
    })?;
    let read = AlignableConfig::deserialize(&json);
    if !read.is_ok_and(|read| read == *config) {
        return Err(failed(
            "expected one that reads back unchanged; it would read back as a different one, or \
             not at all"
                .to_owned(),
        ));
    }
    json[INTERVENTIONS] =
        serde_json::to_value(descriptions).map_err(|error| failed(error.to_string()))?;
    if widths.iter().any(Option::is_some) {
        json[WIDTHS] = widths.into();
    }
    Ok(format!("{json:#}\n"))
}

/// Tensors by name: shape and bytes.
#[derive(Default)]
struct Saved {
    index: usize,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Saved {
    fn put<B: Backend, const D: usize>(
        &mut self,
        name: &str,
        tensor: &Param<Tensor<B, D>>,
    ) -> Result<(), SaveInterventionsError> {
        let name = format!("{}.{name}", self.index);
        let tensor = tensor.val().detach();
        let failed = |tensor: &str, found: String| SaveInterventionsError::Tensor {
            tensor: tensor.to_owned(),
            found,
        };
        match tensor.dtype() {
            DType::F32 | DType::F16 | DType::BF16 | DType::Flex32 => {}
            other => return Err(failed(&name, format!("{other:?}"))),
        }
        let data = tensor.cast(DType::F32).try_into_data();
        let data = data.map_err(|error| failed(&name, error.to_string()))?;
        let shape = data.shape.to_vec();
        let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
        self.tensors.insert(name, (shape, bytes));
        Ok(())
    }

    fn rotation<B: Backend>(
        &mut self,
        rotation: &Orthonormal<B>,
    ) -> Result<MapName, SaveInterventionsError> {
        self.put("rotation.parameter", &rotation.parameter)?;
        if let Some(base) = &rotation.base {
            self.put("rotation.base", base)?;
        }
        Ok(rotation.map().into())
    }

    fn describe<B: Backend>(
        &mut self,
        intervention: &BuiltinIntervention<B>,
    ) -> Result<Description, SaveInterventionsError> {
        Ok(match intervention {
            BuiltinIntervention::Vanilla(_) => Description::Vanilla {},
            BuiltinIntervention::Addition(_) => Description::Addition {},
            BuiltinIntervention::Subtraction(_) => Description::Subtraction {},
            BuiltinIntervention::Fill(it) => Description::Fill {
                value: it.value.into(),
            },
            BuiltinIntervention::Scaling(it) => Description::Scaling {
                factor: it.factor.into(),
            },
            BuiltinIntervention::Noise(it) => Description::Noise {
                level: it.level.into(),
                seed: it.seed(),
            },
            BuiltinIntervention::ConstantSource(it) => {
                self.put("source", &it.source)?;
                Description::ConstantSource {
                    operation: it.operation().into(),
                }
            }
            BuiltinIntervention::RotatedSpace(it) => Description::RotatedSpace {
                map: self.rotation(&it.rotation)?,
                tokens: it.tokens().into(),
                swapped: it.swapped(),
            },
            BuiltinIntervention::BoundlessRotatedSpace(it) => {
                self.put("boundary", &it.boundary)?;
                Description::BoundlessRotatedSpace {
                    map: self.rotation(&it.rotation)?,
                    tokens: it.tokens().into(),
                    temperature: it.temperature().into(),
                }
            }
            BuiltinIntervention::SigmoidMaskRotatedSpace(it) => {
                self.put("masks", &it.masks)?;
                Description::SigmoidMaskRotatedSpace {
                    map: self.rotation(&it.rotation)?,
                    tokens: it.tokens().into(),
                    temperature: it.temperature().into(),
                }
            }
            BuiltinIntervention::SigmoidMask(it) => {
                self.put("mask", &it.mask)?;
                Description::SigmoidMask {
                    tokens: it.tokens().into(),
                    temperature: it.temperature().into(),
                }
            }
            BuiltinIntervention::Pca(it) => {
                self.put("components", &it.components)?;
                self.put("mean", &it.mean)?;
                self.put("std", &it.std)?;
                Description::Pca {
                    tokens: it.tokens().into(),
                }
            }
            BuiltinIntervention::Autoencoder(it) => {
                self.put("encoder", &it.encoder)?;
                self.put("encoder_bias", &it.encoder_bias)?;
                self.put("decoder", &it.decoder)?;
                self.put("decoder_bias", &it.decoder_bias)?;
                Description::Autoencoder {
                    tokens: it.tokens().into(),
                    swapped: it.swapped().map(<[usize]>::to_vec),
                }
            }
            BuiltinIntervention::JumpReluAutoencoder(it) => {
                self.put("encoder", &it.encoder)?;
                self.put("encoder_bias", &it.encoder_bias)?;
                self.put("threshold", &it.threshold)?;
                self.put("decoder", &it.decoder)?;
                self.put("decoder_bias", &it.decoder_bias)?;
                Description::JumpReluAutoencoder {
                    tokens: it.tokens().into(),
                    swapped: it.swapped().map(<[usize]>::to_vec),
                }
            }
            BuiltinIntervention::Lambda(_) => {
                return Err(SaveInterventionsError::Closure {
                    intervention: self.index,
                });
            }
            BuiltinIntervention::Reft(it) => {
                let rotation = it.rotation.as_ref();
                let map = rotation.map(|rotation| self.rotation(rotation));
                if let Some(projection) = &it.projection {
                    self.put("projection", projection)?;
                }
                if let Some(bias) = &it.projection_bias {
                    self.put("projection_bias", bias)?;
                }
                if let Some(weight) = &it.weight {
                    self.put("weight", weight)?;
                }
                self.put("bias", &it.bias)?;
                Description::Reft {
                    member: it.kind().into(),
                    map: map.transpose()?,
                    projection_bias: it.projection_bias.is_some(),
                    activation: it.activation().to_string(),
                }
            }
        })
    }
}

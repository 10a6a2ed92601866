//! Reading this crate's own format.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::Activation;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use super::{Description, INTERVENTIONS, MapName, TENSORS, Tokens, WIDTHS};
use crate::front::{AlignableConfig, distinct_interventions};
use crate::interventions::{
    AdditionIntervention, AutoencoderIntervention, BoundlessRotatedSpaceIntervention,
    BuiltinIntervention, ConstantSourceIntervention, FillIntervention,
    JumpReluAutoencoderIntervention, NoiseIntervention, Orthonormal, PcaIntervention,
    ReftIntervention, ReftKind, ReftParts, RotatedSpaceIntervention, ScalingIntervention,
    SigmoidMaskIntervention, SigmoidMaskRotatedSpaceIntervention, SubtractionIntervention,
    TokenGrouping, VanillaIntervention,
};
use crate::saved::tensors::{Stored, Tensors, Values};
use crate::saved::{LoadInterventionsError, SavedInterventions};

/// Reads a folder.
pub(in crate::saved) fn load<B: Backend>(
    folder: &Path,
    file: &Path,
    mut fields: Map<String, Value>,
    device: &B::Device,
) -> Result<SavedInterventions<B>, LoadInterventionsError> {
    let bad = |reason| LoadInterventionsError::Config {
        file: file.to_owned(),
        reason,
    };
    let Some(descriptions) = fields.remove(INTERVENTIONS) else {
        return Err(bad(
            "expected `interventions`, which describes what was saved, found none: this is a \
             configuration without interventions; create them with AlignableModel::new"
                .to_owned(),
        ));
    };
    let descriptions: Vec<Value> = serde_json::from_value(descriptions)
        .map_err(|error| bad(format!("interventions: expected a list: {error}")))?;
    let widths: Vec<Option<usize>> = match fields.remove(WIDTHS) {
        None => Vec::new(),
        Some(widths) => serde_json::from_value(widths)
            .map_err(|error| bad(format!("{WIDTHS}: expected numbers or null: {error}")))?,
    };
    let config: AlignableConfig =
        serde_json::from_value(fields.into()).map_err(|error| bad(error.to_string()))?;
    let (_, expected) = distinct_interventions(&config);
    if descriptions.len() != expected {
        return Err(bad(format!(
            "interventions: expected {expected}, one for each representation or link key, found {}",
            descriptions.len()
        )));
    }
    if !widths.is_empty() && widths.len() != config.representations.len() {
        return Err(bad(format!(
            "{WIDTHS}: expected one for each of {} representations, found {}",
            config.representations.len(),
            widths.len()
        )));
    }
    let tensors_file = folder.join(TENSORS);
    let mut tensors = Tensors::new(&tensors_file, read_safetensors(&tensors_file)?);
    let mut interventions = Vec::new();
    for (index, description) in descriptions.into_iter().enumerate() {
        let description = serde_json::from_value(description)
            .map_err(|error| bad(format!("interventions[{index}]: {error}")))?;
        let mut builder = Builder::<B> {
            index,
            tensors: &mut tensors,
            device,
        };
        let built = builder.build(description);
        interventions.push(built.map_err(|error| match error {
            BuildError::Description(reason) => bad(format!("interventions[{index}]: {reason}")),
            BuildError::Load(error) => error,
        })?);
    }
    tensors.finish()?;
    Ok(SavedInterventions {
        config,
        interventions,
        widths,
    })
}

fn read_safetensors(file: &Path) -> Result<BTreeMap<String, Stored>, LoadInterventionsError> {
    let bytes = fs::read(file).map_err(|cause| LoadInterventionsError::Io {
        file: file.to_owned(),
        cause,
    })?;
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|error| LoadInterventionsError::Unreadable {
            file: file.to_owned(),
            reason: format!("expected safetensors: {error}"),
        })?;
    let tensors = tensors.iter().map(|(name, view)| {
        let values = match view.dtype() {
            Dtype::F32 => {
                let (values, _) = view.data().as_chunks::<4>();
                Values::F32(values.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            other => Values::Other(other.to_string()),
        };
        let shape = view.shape().to_vec();
        (name.to_owned(), Stored { shape, values })
    });
    Ok(tensors.collect())
}

enum BuildError {
    /// What is wrong with a description.
    Description(String),
    Load(LoadInterventionsError),
}

impl From<LoadInterventionsError> for BuildError {
    fn from(error: LoadInterventionsError) -> Self {
        Self::Load(error)
    }
}

struct Builder<'a, B: Backend> {
    index: usize,
    tensors: &'a mut Tensors,
    device: &'a B::Device,
}

impl<B: Backend> Builder<'_, B> {
    fn take<const D: usize>(
        &mut self,
        name: &str,
        expected: [Option<usize>; D],
    ) -> Result<Tensor<B, D>, LoadInterventionsError> {
        let name = format!("{}.{name}", self.index);
        self.tensors.take(&name, expected, self.device)
    }

    fn rotation(
        &mut self,
        map: MapName,
        square: bool,
    ) -> Result<Orthonormal<B>, LoadInterventionsError> {
        let names = ["parameter", "base"].map(|name| format!("{}.rotation.{name}", self.index));
        let names = [names[0].as_str(), names[1].as_str()];
        let map = |_| map.into();
        let device = self.device;
        let rotation = self.tensors.orthonormal(names, [None, None], map, device)?;
        let [d, rank] = rotation.dims();
        if square && rank != d {
            return Err(LoadInterventionsError::WrongShape {
                file: self.tensors.file.clone(),
                tensor: names[0].to_owned(),
                expected: format!("[{d}, {d}]"),
                found: vec![d, rank],
            });
        }
        Ok(rotation)
    }

    fn build(&mut self, description: Description) -> Result<BuiltinIntervention<B>, BuildError> {
        Ok(match description {
            Description::Vanilla {} => VanillaIntervention.into(),
            Description::Addition {} => AdditionIntervention.into(),
            Description::Subtraction {} => SubtractionIntervention.into(),
            Description::Fill { value } => FillIntervention {
                value: value.into(),
            }
            .into(),
            Description::Scaling { factor } => ScalingIntervention {
                factor: factor.into(),
            }
            .into(),
            Description::Noise { level, seed } => NoiseIntervention::new(level.into(), seed).into(),
            Description::ConstantSource { operation } => {
                ConstantSourceIntervention::new(self.take("source", [None])?, operation.into())
                    .into()
            }
            Description::RotatedSpace {
                map,
                tokens,
                swapped,
            } => {
                let rotation = self.rotation(map, false)?;
                let [_d, rank] = rotation.dims();
                if swapped > rank {
                    return Err(BuildError::Description(format!(
                        "swapped: expected at most {rank}, the number of directions, found \
                         {swapped}"
                    )));
                }
                RotatedSpaceIntervention::new(rotation, grouping(tokens)?)
                    .with_swapped(swapped)
                    .into()
            }
            Description::BoundlessRotatedSpace {
                map,
                tokens,
                temperature,
            } => {
                let rotation = self.rotation(map, true)?;
                let boundary = self.take("boundary", [Some(1)])?;
                let mut it = BoundlessRotatedSpaceIntervention::new(rotation, grouping(tokens)?)
                    .with_temperature(temperature.into());
                it.boundary = Param::from_tensor(boundary);
                it.into()
            }
            Description::SigmoidMaskRotatedSpace {
                map,
                tokens,
                temperature,
            } => {
                let rotation = self.rotation(map, true)?;
                let [d, _d] = rotation.dims();
                let masks = self.take("masks", [Some(d)])?;
                let mut it = SigmoidMaskRotatedSpaceIntervention::new(rotation, grouping(tokens)?)
                    .with_temperature(temperature.into());
                it.masks = Param::from_tensor(masks);
                it.into()
            }
            Description::SigmoidMask {
                tokens,
                temperature,
            } => {
                let mask = self.take("mask", [None])?;
                let [d] = mask.dims();
                let mut it = SigmoidMaskIntervention::new(d, grouping(tokens)?, self.device)
                    .with_temperature(temperature.into());
                it.mask = Param::from_tensor(mask);
                it.into()
            }
            Description::Pca { tokens } => {
                let components = self.take("components", [None, None])?;
                let [_component, d] = components.dims();
                let mean = self.take("mean", [Some(d)])?;
                let std = self.take("std", [Some(d)])?;
                PcaIntervention::new(components, mean, std, grouping(tokens)?).into()
            }
            Description::Autoencoder { tokens, swapped } => {
                let encoder = self.take("encoder", [None, None])?;
                let [d, latent] = encoder.dims();
                let mut it = AutoencoderIntervention::new(
                    (encoder, self.take("encoder_bias", [Some(latent)])?),
                    (
                        self.take("decoder", [Some(latent), Some(d)])?,
                        self.take("decoder_bias", [Some(d)])?,
                    ),
                    grouping(tokens)?,
                );
                if let Some(swapped) = hidden(swapped, latent)? {
                    it = it.with_swapped(swapped);
                }
                it.into()
            }
            Description::JumpReluAutoencoder { tokens, swapped } => {
                let encoder = self.take("encoder", [None, None])?;
                let [d, latent] = encoder.dims();
                let mut it = JumpReluAutoencoderIntervention::new(
                    (encoder, self.take("encoder_bias", [Some(latent)])?),
                    self.take("threshold", [Some(latent)])?,
                    (
                        self.take("decoder", [Some(latent), Some(d)])?,
                        self.take("decoder_bias", [Some(d)])?,
                    ),
                    grouping(tokens)?,
                );
                if let Some(swapped) = hidden(swapped, latent)? {
                    it = it.with_swapped(swapped);
                }
                it.into()
            }
            Description::Reft {
                member,
                map,
                projection_bias,
                activation,
            } => self.reft(member.into(), map, projection_bias, &activation)?,
        })
    }

    fn reft(
        &mut self,
        kind: ReftKind,
        map: Option<MapName>,
        projection_bias: bool,
        activation: &str,
    ) -> Result<BuiltinIntervention<B>, BuildError> {
        let activation: Activation = activation
            .parse()
            .map_err(|error| BuildError::Description(format!("activation: {error}")))?;
        let (rotation, projection, [d, rank]) = match (map, kind.is_orthonormal()) {
            (Some(map), true) => {
                let rotation = self.rotation(map, false)?;
                let dims = rotation.dims();
                (Some(rotation), None, dims)
            }
            (None, false) => {
                let projection = self.take("projection", [None, None])?;
                let dims = projection.dims();
                (None, Some(projection), dims)
            }
            (found, orthonormal) => {
                return Err(BuildError::Description(format!(
                    "map: expected {}, found {found:?}",
                    if orthonormal {
                        "that of the rotation"
                    } else {
                        "null: the directions of this member are free"
                    }
                )));
            }
        };
        if projection_bias && kind.is_orthonormal() {
            return Err(BuildError::Description(
                "projection_bias: expected false for a member with a rotation, found true"
                    .to_owned(),
            ));
        }
        let parts = ReftParts {
            rotation,
            projection,
            projection_bias: match projection_bias {
                true => Some(self.take("projection_bias", [Some(rank)])?),
                false => None,
            },
            weight: match kind.is_constant() {
                true => None,
                false => Some(self.take("weight", [Some(d), Some(rank)])?),
            },
            bias: self.take("bias", [Some(rank)])?,
        };
        let it = ReftIntervention::from_parts(kind, parts).with_activation(activation);
        Ok(it.into())
    }
}

fn grouping(tokens: Tokens) -> Result<TokenGrouping, BuildError> {
    match tokens {
        Tokens::Joint(0) => Err(BuildError::Description(
            "tokens: expected at least 1 unit in a vector, found 0".to_owned(),
        )),
        tokens => Ok(tokens.into()),
    }
}

/// Checks that the hidden features exist.
fn hidden(swapped: Option<Vec<usize>>, latent: usize) -> Result<Option<Vec<usize>>, BuildError> {
    match swapped.iter().flatten().find(|feature| **feature >= latent) {
        Some(found) => Err(BuildError::Description(format!(
            "swapped: expected hidden features below {latent}, found {found}"
        ))),
        None => Ok(swapped),
    }
}

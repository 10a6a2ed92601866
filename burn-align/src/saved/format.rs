//! Our own format.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::files::{Replacement, WriteError};
use burn_align_models::nn::Activation;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tensors::{Stored, Tensors, Values};
use super::{CONFIG, LoadInterventionsError, SaveInterventionsError, SavedInterventions};
use crate::front::{AlignableConfig, distinct_interventions};
use crate::interventions::{
    AdditionIntervention, AutoencoderIntervention, BoundlessRotatedSpaceIntervention,
    BuiltinIntervention, ConstantSourceIntervention, FillIntervention,
    JumpReluAutoencoderIntervention, NoiseIntervention, Orthonormal, OrthonormalMap,
    PcaIntervention, ReftIntervention, ReftKind, ReftParts, RotatedSpaceIntervention,
    ScalingIntervention, SigmoidMaskIntervention, SigmoidMaskRotatedSpaceIntervention,
    SourceOperation, SubtractionIntervention, TokenGrouping, VanillaIntervention,
};

const TENSORS: &str = "interventions.safetensors";
const INTERVENTIONS: &str = "interventions";
const WIDTHS: &str = "changed_features";

/// What an intervention is apart from its tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Description {
    Vanilla {},
    Addition {},
    Subtraction {},
    Fill {
        value: Number,
    },
    Scaling {
        factor: Number,
    },
    Noise {
        level: Number,
        seed: u64,
    },
    ConstantSource {
        operation: Operation,
    },
    RotatedSpace {
        map: MapName,
        tokens: Tokens,
        swapped: usize,
    },
    BoundlessRotatedSpace {
        map: MapName,
        tokens: Tokens,
        temperature: Number,
    },
    SigmoidMaskRotatedSpace {
        map: MapName,
        tokens: Tokens,
        temperature: Number,
    },
    SigmoidMask {
        tokens: Tokens,
        temperature: Number,
    },
    Pca {
        tokens: Tokens,
    },
    Autoencoder {
        tokens: Tokens,
        swapped: Option<Vec<usize>>,
    },
    JumpReluAutoencoder {
        tokens: Tokens,
        swapped: Option<Vec<usize>>,
    },
    Reft {
        member: Member,
        /// Of the members with orthonormal directions.
        map: Option<MapName>,
        /// Whether there is a bias behind the projection.
        projection_bias: bool,
        activation: String,
    },
}

/// A float. JSON has no infinities.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, `inf`, `-inf` or `nan`")]
enum Number {
    Finite(f64),
    Other(Infinite),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Infinite {
    #[serde(rename = "inf")]
    Infinity,
    #[serde(rename = "-inf")]
    NegativeInfinity,
    #[serde(rename = "nan")]
    Nan,
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        match value {
            f64::INFINITY => Self::Other(Infinite::Infinity),
            f64::NEG_INFINITY => Self::Other(Infinite::NegativeInfinity),
            nan if nan.is_nan() => Self::Other(Infinite::Nan),
            finite => Self::Finite(finite),
        }
    }
}

impl From<Number> for f64 {
    fn from(number: Number) -> Self {
        match number {
            Number::Finite(value) => value,
            Number::Other(Infinite::Infinity) => Self::INFINITY,
            Number::Other(Infinite::NegativeInfinity) => Self::NEG_INFINITY,
            Number::Other(Infinite::Nan) => Self::NAN,
        }
    }
}

/// The same names as those of a type, in snake case, both ways.
macro_rules! names {
    ($name:ident = $type:ty { $($variant:ident,)* }) => {
        #[derive(Clone, Copy, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(clippy::enum_variant_names)]
        enum $name {
            $($variant,)*
        }

        impl From<$type> for $name {
            fn from(value: $type) -> Self {
                match value {
                    $(<$type>::$variant => Self::$variant,)*
                }
            }
        }

        impl From<$name> for $type {
            fn from(value: $name) -> Self {
                match value {
                    $($name::$variant => Self::$variant,)*
                }
            }
        }
    };
}

names!(
    MapName = OrthonormalMap {
        Retraction,
        MatrixExponential,
        Cayley,
        Householder,
    }
);
names!(
    Operation = SourceOperation {
        Swap,
        Add,
        Subtract,
    }
);
names!(
    Member = ReftKind {
        LoReft,
        NoReft,
        ConsReft,
        LobiReft,
        DiReft,
        NodiReft,
    }
);

/// `"each"`, or `{"joint": units}`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tokens {
    Each,
    Joint(usize),
}

impl From<TokenGrouping> for Tokens {
    fn from(tokens: TokenGrouping) -> Self {
        match tokens {
            TokenGrouping::Each => Self::Each,
            TokenGrouping::Joint(units) => Self::Joint(units),
        }
    }
}

impl From<Tokens> for TokenGrouping {
    fn from(tokens: Tokens) -> Self {
        match tokens {
            Tokens::Each => Self::Each,
            Tokens::Joint(units) => Self::Joint(units),
        }
    }
}

/// Writes a folder. Of the widths, `None` at the end may be left out.
pub(super) fn save<B: Backend>(
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
    let mut json =
        serde_json::to_value(config).map_err(|error| failed(format!("no JSON: {error}")))?;
    let read = AlignableConfig::deserialize(&json);
    if !read.is_ok_and(|read| read == *config) {
        return Err(failed(
            "expected one that reads back as it is; it would be read as another one, or not at all"
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

/// Reads a folder.
pub(super) fn load<B: Backend>(
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
            "expected `interventions`, which says what was saved, found none: this is a \
             configuration without interventions; make them with AlignableModel::new"
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

/// Checks that there are such hidden features.
fn hidden(swapped: Option<Vec<usize>>, latent: usize) -> Result<Option<Vec<usize>>, BuildError> {
    match swapped.iter().flatten().find(|feature| **feature >= latent) {
        Some(found) => Err(BuildError::Description(format!(
            "swapped: expected hidden features below {latent}, found {found}"
        ))),
        None => Ok(swapped),
    }
}

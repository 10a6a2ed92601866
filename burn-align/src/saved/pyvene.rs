//! Folders written by pyvene and pyreft.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, backend::Backend};
use serde_json::{Map, Value};

use super::pyvene_config::{self, Dimension, PyveneConfig, SavedRepresentation};
use super::tensors::Tensors;
use super::{FileError, LoadInterventionsError, SavedInterventions, torch};
use crate::front::{
    AlignableConfig, AlignableRepresentationConfig, InterventionType, distinct_interventions,
};
use crate::interventions::{
    Add, AutoencoderIntervention, Boundary, BuiltinIntervention, Composed, ConstantSource, Fill,
    Identity, JumpReluAutoencoderIntervention, Orthonormal, OrthonormalMap, Reft, ReftKind,
    ReftParts, RotatedSpaceIntervention, Rotation, SigmoidMask, SourceOperation, Subtract, Swap,
};

pub(super) fn load<B: Backend>(
    folder: &Path,
    config_file: &Path,
    fields: Map<String, Value>,
    device: &B::Device,
) -> Result<SavedInterventions<B>, LoadInterventionsError> {
    let PyveneConfig { config, saved } = pyvene_config::read(config_file, fields)?;
    let weights = folder.join("pytorch_model.bin");
    // pyvene writes no weights of a frozen model into it.
    if weights.exists() && !torch::is_empty(&weights) {
        return Err(LoadInterventionsError::ModelWeights { file: weights });
    }
    let files = files(folder, &saved)?;
    let (intervention_of, _) = distinct_interventions(&config);
    let mut interventions = Vec::new();
    let mut widths = Vec::new();
    for (index, representation) in config.representations.iter().enumerate() {
        let file = files[index].as_ref();
        let state = file
            .map(|file| Tensors::open(file, torch::state_dict))
            .transpose()?;
        let first = first_linked(&config, &intervention_of, index);
        if first != index {
            check_same(index, first, state.as_ref(), files[first].as_ref())?;
            widths.push(widths[first]);
            continue;
        }
        let reader = Reader {
            folder,
            config_file,
            index,
            representation,
            saved: &saved[index],
            device,
        };
        let (intervention, width) = reader.read(state)?;
        interventions.extend(intervention);
        widths.push(width);
    }
    Ok(SavedInterventions {
        config,
        interventions,
        widths,
    })
}

/// The file of each representation that has one. Every file must belong to a representation.
fn files(
    folder: &Path,
    saved: &[SavedRepresentation],
) -> Result<Vec<Option<PathBuf>>, LoadInterventionsError> {
    let failed = |cause| FileError::Io {
        file: folder.to_owned(),
        cause,
    };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("intkey_") && name.ends_with(".bin") {
            names.insert(name);
        }
    }
    let files = saved.iter().map(|saved| {
        let name = saved.files.iter().find(|name| names.contains(*name))?;
        names.remove(name);
        Some(folder.join(name))
    });
    let files = files.collect();
    match names.first() {
        None => Ok(files),
        Some(name) => Err(LoadInterventionsError::UnusedFile {
            file: folder.join(name),
        }),
    }
}

/// The first representation with the same intervention.
fn first_linked(
    config: &AlignableConfig,
    intervention_of: &[Option<usize>],
    index: usize,
) -> usize {
    let Some(intervention) = intervention_of[index] else {
        return index;
    };
    let all = 0..config.representations.len();
    let mut all = all.filter(|other| intervention_of[*other] == Some(intervention));
    all.next().unwrap_or(index)
}

fn check_same(
    representation: usize,
    first: usize,
    state: Option<&Tensors>,
    first_file: Option<&PathBuf>,
) -> Result<(), LoadInterventionsError> {
    let Some(state) = state else {
        return Ok(());
    };
    let expected = first_file
        .map(|file| Tensors::open(file, torch::state_dict))
        .transpose()?;
    if expected.is_some_and(|expected| expected.tensors == state.tensors) {
        return Ok(());
    }
    Err(LoadInterventionsError::LinkedDiffer {
        file: state.file.clone(),
        representation,
        first,
    })
}

/// Which coordinates are exchanged.
enum Exchanged {
    All,
    /// This many features, but not all.
    Number(usize),
    Listed(Vec<usize>),
}

const ROTATION: [&str; 2] = [
    "rotate_layer.parametrizations.weight.original",
    "rotate_layer.parametrizations.weight.0.base",
];

struct Reader<'a, B: Backend> {
    folder: &'a Path,
    config_file: &'a Path,
    index: usize,
    representation: &'a AlignableRepresentationConfig,
    saved: &'a SavedRepresentation,
    device: &'a B::Device,
}

type Built<B> = Result<BuiltinIntervention<B>, LoadInterventionsError>;

impl<B: Backend> Reader<'_, B> {
    /// The intervention, if there is one, and the number of features it changes, if only the model
    /// can tell whether these are all.
    fn read(
        &self,
        state: Option<Tensors>,
    ) -> Result<(Option<BuiltinIntervention<B>>, Option<usize>), LoadInterventionsError> {
        use InterventionType as Type;
        let kind = self.representation.intervention;
        let has_parameters = kind.has_parameters();
        let constant = matches!(kind, Type::Vanilla | Type::Addition | Type::Subtraction)
            && (self.saved.constant || state.is_some());
        match (state, kind) {
            (_, Type::Noise) => Err(self.unsupported(
                "class",
                kind.name().to_owned(),
                "its noise is not saved; give it as the source of an AdditionIntervention \
                 (Source::Values), or use NoiseIntervention, which draws different numbers",
            )),
            (_, Type::PcaRotatedSpace) => Err(self.unsupported(
                "class",
                kind.name().to_owned(),
                "its components are not saved; compute them with PcaIntervention::fit",
            )),
            (Some(mut state), _) if has_parameters || constant => {
                let intervention = self.parameters(&mut state)?;
                state.finish()?;
                Ok((Some(intervention), None))
            }
            (Some(state), _) => Err(LoadInterventionsError::UnusedFile { file: state.file }),
            (None, _) if has_parameters || constant => Err(LoadInterventionsError::MissingFile {
                folder: self.folder.to_owned(),
                representation: self.index,
                expected: self.saved.files.clone(),
            }),
            (None, kind) => {
                let width = match &self.saved.dimension {
                    Dimension::Absent => None,
                    Dimension::One(width) => Some(*width),
                    Dimension::List(list) => {
                        return Err(self.unsupported(
                            "interchange_dim",
                            format!("{list:?}"),
                            "use a subspace for these features instead",
                        ));
                    }
                };
                Ok((self.without_parameters(kind)?, width))
            }
        }
    }

    fn without_parameters(
        &self,
        kind: InterventionType,
    ) -> Result<Option<BuiltinIntervention<B>>, LoadInterventionsError> {
        Ok(Some(match kind {
            InterventionType::Vanilla | InterventionType::Skip => Swap.into(),
            InterventionType::Addition => Add.into(),
            InterventionType::Subtraction => Subtract.into(),
            InterventionType::Zero => Fill::ZERO.into(),
            InterventionType::Collect => return Ok(None),
            kind => {
                return Err(self.unsupported(
                    "class",
                    kind.name().to_owned(),
                    "expected a class without parameters",
                ));
            }
        }))
    }

    fn parameters(&self, state: &mut Tensors) -> Built<B> {
        use InterventionType as Type;
        let tokens = self.representation.tokens();
        let rank = self.representation.low_rank_dimension;
        match self.representation.intervention {
            Type::Vanilla => self.constant(state, SourceOperation::Swap),
            Type::Addition => self.constant(state, SourceOperation::Add),
            Type::Subtraction => self.constant(state, SourceOperation::Subtract),
            Type::RotatedSpace => {
                let rotation = self.square(state)?;
                let [d, _d] = rotation.dims();
                let it = RotatedSpaceIntervention::new(rotation, tokens);
                Ok(match self.exchanged(state, d)? {
                    Exchanged::All => it,
                    Exchanged::Number(count) if (1..d).contains(&count) => it.with_swapped(count),
                    Exchanged::Listed(list)
                        if !list.is_empty() && list.iter().copied().eq(0..list.len()) =>
                    {
                        it.with_swapped(list.len())
                    }
                    Exchanged::Number(count) => return Err(self.dimension(vec![count])),
                    Exchanged::Listed(list) => return Err(self.dimension(list)),
                }
                .into())
            }
            Type::LowRankRotatedSpace => {
                let rotation = self.rotation(state, rank)?;
                let [d, _rank] = rotation.dims();
                // It exchanges all of its directions, whatever this value is.
                self.exchanged(state, d)?;
                Ok(RotatedSpaceIntervention::new(rotation, tokens).into())
            }
            Type::BoundlessRotatedSpace => {
                let rotation = self.square(state)?;
                let [d, _d] = rotation.dims();
                self.exchanged(state, d)?;
                let (_, population) = state.integers("intervention_population")?;
                if !population.iter().copied().eq(0..d as i64) {
                    return Err(self.unsupported(
                        "intervention_population",
                        format!("{} numbers", population.len()),
                        "expected 0, 1, … for each feature",
                    ));
                }
                let temperature = state.float("temperature")?;
                let boundary = state.tensor("intervention_boundaries", [Some(1)], self.device)?;
                let it = Composed::of(Rotation::new(rotation), Swap).with_tokens(tokens);
                Ok(it.with_mask(Boundary::new(boundary, d, temperature)).into())
            }
            Type::SigmoidMaskRotatedSpace => {
                let rotation = self.square(state)?;
                let [d, _d] = rotation.dims();
                self.exchanged(state, d)?;
                let temperature = state.float("temperature")?;
                let logits = state.tensor("masks", [Some(d)], self.device)?;
                let it = Composed::of(Rotation::new(rotation), Swap).with_tokens(tokens);
                Ok(it.with_mask(SigmoidMask::new(logits, temperature)).into())
            }
            Type::SigmoidMask => {
                let mask = state.tensor("mask", [None], self.device)?;
                let [d] = mask.dims();
                self.exchanged(state, d)?;
                let temperature = state.float("temperature")?;
                let it = Composed::of(Identity, Swap).with_tokens(tokens);
                Ok(it.with_mask(SigmoidMask::new(mask, temperature)).into())
            }
            Type::Autoencoder => self.autoencoder(state),
            Type::JumpReluAutoencoder => self.jump_relu(state),
            Type::Reft(kind) => self.reft(state, kind),
            kind => Err(self.unsupported(
                "class",
                kind.name().to_owned(),
                "expected a class with parameters",
            )),
        }
    }

    fn constant(&self, state: &mut Tensors, operation: SourceOperation) -> Built<B> {
        let source = state.tensor("source_representation", [None], self.device)?;
        let [d] = source.dims();
        // It has one unit and applies to each, however many there are.
        let embed = d.saturating_mul(self.representation.max_number_of_units);
        let width = match state.integer("embed_dim") {
            Some(found) if found == embed as i64 => embed,
            _ => d,
        };
        match self.exchanged(state, width)? {
            Exchanged::All => Ok(ConstantSource::new(source, operation).into()),
            Exchanged::Number(count) => Err(self.dimension(vec![count])),
            Exchanged::Listed(list) => Err(self.dimension(list)),
        }
    }

    fn autoencoder(&self, state: &mut Tensors) -> Built<B> {
        let latent = self.representation.latent_dimension;
        let encoder =
            state.tensor::<B, 2>("autoencoder.encoder.0.weight", [latent, None], self.device)?;
        let [latent, d] = encoder.dims();
        let mut vector = |name, size| state.tensor::<B, 1>(name, [Some(size)], self.device);
        let encoder_bias = vector("autoencoder.encoder.0.bias", latent)?;
        let decoder_bias = vector("autoencoder.decoder.0.bias", d)?;
        let decoder = state.tensor::<B, 2>(
            "autoencoder.decoder.0.weight",
            [Some(d), Some(latent)],
            self.device,
        )?;
        let it = AutoencoderIntervention::new(
            (encoder.transpose(), encoder_bias),
            (decoder.transpose(), decoder_bias),
            self.representation.tokens(),
        );
        let swapped = match self.exchanged(state, d)? {
            Exchanged::All => return Ok(it.into()),
            // Here a number is a single latent.
            Exchanged::Number(one) => vec![one],
            Exchanged::Listed(list) => list,
        };
        match swapped.iter().all(|feature| *feature < latent) {
            true => Ok(it.with_swapped(swapped).into()),
            false => Err(self.dimension(swapped)),
        }
    }

    fn jump_relu(&self, state: &mut Tensors) -> Built<B> {
        let latent = self.representation.low_rank_dimension;
        let encoder = state.tensor::<B, 2>("W_enc", [None, latent], self.device)?;
        let [d, latent] = encoder.dims();
        let decoder = state.tensor::<B, 2>("W_dec", [Some(latent), Some(d)], self.device)?;
        let mut vector = |name, size| state.tensor::<B, 1>(name, [Some(size)], self.device);
        let it = JumpReluAutoencoderIntervention::new(
            (encoder, vector("b_enc", latent)?),
            vector("threshold", latent)?,
            (decoder, vector("b_dec", d)?),
            self.representation.tokens(),
        );
        match self.exchanged(state, d)? {
            Exchanged::All => Ok(it.into()),
            Exchanged::Number(count) => {
                Ok(it.with_swapped((0..count.min(latent)).collect()).into())
            }
            Exchanged::Listed(list) => Err(self.dimension(list)),
        }
    }

    fn reft(&self, state: &mut Tensors, kind: ReftKind) -> Built<B> {
        let rank = self.representation.low_rank_dimension;
        let device = self.device;
        // A linear layer stores its weight transposed.
        let linear = |state: &mut Tensors, name: &str, [d, rank]: [usize; 2]| {
            let weight = state.tensor::<B, 2>(name, [Some(rank), Some(d)], device);
            weight.map(Tensor::transpose)
        };
        let mut rotation = None;
        let mut projection = None;
        let mut projection_bias = None;
        let dims = match kind {
            ReftKind::LoReft => {
                let names = ["rotate_layer", ""];
                let map = |_| OrthonormalMap::Retraction;
                let matrix = state.orthonormal(names, [None, rank], map, device)?;
                rotation.insert(matrix).dims()
            }
            ReftKind::NoReft | ReftKind::NodiReft => {
                let weight = state.tensor::<B, 2>("proj_layer.weight", [rank, None], device)?;
                let [rank, d] = weight.dims();
                projection = Some(weight.transpose());
                if state.has("proj_layer.bias") {
                    let bias = state.tensor("proj_layer.bias", [Some(rank)], device)?;
                    // It has no effect in NodiReFT.
                    projection_bias = (kind == ReftKind::NoReft).then_some(bias);
                }
                [d, rank]
            }
            ReftKind::ConsReft | ReftKind::LobiReft | ReftKind::DiReft => {
                rotation.insert(self.rotation(state, rank)?).dims()
            }
        };
        let [d, rank] = dims;
        if kind != ReftKind::LoReft {
            self.exchanged(state, d)?;
        }
        let (weight, bias) = match kind {
            ReftKind::ConsReft | ReftKind::LobiReft => (None, "learned_source"),
            ReftKind::LoReft => (Some(linear(state, "weight", dims)?), "bias"),
            ReftKind::NoReft | ReftKind::DiReft | ReftKind::NodiReft => {
                let weight = linear(state, "learned_source.weight", dims)?;
                (Some(weight), "learned_source.bias")
            }
        };
        let parts = ReftParts {
            rotation,
            projection,
            projection_bias,
            weight,
            bias: state.tensor(bias, [Some(rank)], device)?,
        };
        Ok(Reft::from_parts(kind, parts).into())
    }

    /// The rotation of a class with a square one.
    fn square(&self, state: &mut Tensors) -> Result<Orthonormal<B>, LoadInterventionsError> {
        let rotation = self.rotation(state, None)?;
        let [d, rank] = rotation.dims();
        if d == rank {
            return Ok(rotation);
        }
        Err(FileError::WrongShape {
            file: state.file.clone(),
            tensor: ROTATION[0].to_owned(),
            expected: format!("[{d}, {d}]"),
            found: vec![d, rank],
        }
        .into())
    }

    fn rotation(
        &self,
        state: &mut Tensors,
        rank: Option<usize>,
    ) -> Result<Orthonormal<B>, LoadInterventionsError> {
        let map = |[d, rank]: [usize; 2]| match d == rank {
            true => OrthonormalMap::MatrixExponential,
            false => OrthonormalMap::Householder,
        };
        Ok(state.orthonormal(ROTATION, [None, rank], map, self.device)?)
    }

    /// Which coordinates are exchanged, from the file or otherwise from the configuration.
    fn exchanged(
        &self,
        state: &mut Tensors,
        d: usize,
    ) -> Result<Exchanged, LoadInterventionsError> {
        if state.has("embed_dim") {
            let (_, found) = state.integers("embed_dim")?;
            if found != [d as i64] {
                return Err(self.unsupported(
                    "embed_dim",
                    format!("{found:?}"),
                    "expected the number of features of its tensors",
                ));
            }
        }
        let dimension = match state.has("interchange_dim") {
            false => self.saved.dimension.clone(),
            true => {
                let (shape, found) = state.integers("interchange_dim")?;
                let sizes: Option<Vec<usize>> =
                    found.iter().map(|n| usize::try_from(*n).ok()).collect();
                match (sizes, shape.is_empty()) {
                    (Some(sizes), true) => Dimension::One(sizes[0]),
                    (Some(sizes), false) => Dimension::List(sizes),
                    (None, _) => {
                        return Err(self.unsupported(
                            "interchange_dim",
                            format!("{found:?}"),
                            "expected no negative numbers",
                        ));
                    }
                }
            }
        };
        Ok(match dimension {
            Dimension::Absent => Exchanged::All,
            Dimension::One(count) if count == d => Exchanged::All,
            Dimension::One(count) => Exchanged::Number(count),
            Dimension::List(list) => Exchanged::Listed(list),
        })
    }

    fn dimension(&self, found: Vec<usize>) -> LoadInterventionsError {
        self.unsupported(
            "interchange_dim",
            format!("{found:?}"),
            "expected all features, the first few of a rotation, or hidden features of an \
             autoencoder; use a subspace instead",
        )
    }

    fn unsupported(
        &self,
        what: &'static str,
        found: String,
        remedy: &'static str,
    ) -> LoadInterventionsError {
        LoadInterventionsError::Unsupported {
            file: self.config_file.to_owned(),
            representation: self.index,
            what,
            found,
            remedy,
        }
    }
}

//! Reading the files of a submission.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use burn::module::Module;
use burn::tensor::backend::Backend;
use serde_json::Value;

use super::{
    FEATURIZER, IDENTITY, INDICES, INVERSE, LoadSubmissionError, STATE, SUBSPACE, Submission,
    SubmittedFeatures,
};
use crate::engine::read_numbers;
use crate::interventions::{
    BuiltinIntervention, Composed, Identity, OrthonormalMap, Rotation, Swap,
};
use crate::methods::causal_variables::SubmissionUnit;
use crate::saved::{FileError, Tensors, nested};

/// Of products of columns, and of a matrix that is there twice; numbers rounded to f16 are within
/// it.
const TOLERANCE: f64 = 1e-3;

const MATRIX: &str = "model_info/additional_config/rotation_matrix";

pub(super) fn load<B: Backend>(
    folder: &Path,
    device: &B::Device,
) -> Result<Submission<B>, LoadSubmissionError> {
    let mut units = BTreeMap::new();
    for (name, unit) in names(folder)? {
        let features = features(folder, &name, device)?;
        if units.insert(unit.clone(), features).is_some() {
            return Err(LoadSubmissionError::Repeated {
                folder: folder.to_owned(),
                unit: unit.to_string(),
            });
        }
    }
    match units.is_empty() {
        true => Err(LoadSubmissionError::Nothing {
            folder: folder.to_owned(),
        }),
        false => Ok(Submission::of(units)),
    }
}

/// The units of a folder, by what their files begin with.
fn names(folder: &Path) -> Result<BTreeMap<String, SubmissionUnit>, LoadSubmissionError> {
    let failed = |cause| FileError::Io {
        file: folder.to_owned(),
        cause,
    };
    let mut units = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let file = entry.map_err(failed)?.file_name();
        let file = file.to_string_lossy();
        let ends = [INVERSE, FEATURIZER, INDICES];
        let Some(name) = ends.iter().find_map(|end| file.strip_suffix(end)) else {
            continue;
        };
        let unit = name.parse().map_err(|cause| LoadSubmissionError::Unit {
            file: folder.join(&*file),
            cause,
        })?;
        units.insert(name.to_owned(), unit);
    }
    Ok(units)
}

fn features<B: Backend>(
    folder: &Path,
    name: &str,
    device: &B::Device,
) -> Result<SubmittedFeatures<B>, LoadSubmissionError> {
    let indices = read_indices(folder, name)?;
    let files = [FEATURIZER, INVERSE].map(|end| folder.join(format!("{name}{end}")));
    match files.each_ref().map(|file| file.exists()) {
        [false, false] => return Ok(SubmittedFeatures::Dictionary(indices)),
        [true, true] => {}
        [found, _] => {
            let [featurizer, inverse] = files;
            let file = if found { inverse } else { featurizer };
            return Err(LoadSubmissionError::MissingFile { file });
        }
    }
    let [featurizer, inverse] = &files;
    let mut modules = Modules::open(featurizer)?;
    let mut inverse = Modules::open(inverse)?;
    modules.check_class(&inverse)?;
    let intervention = match modules.class() {
        class if class == IDENTITY => {
            let it = Composed::of(Identity, Swap);
            within(&modules, it, indices)?
        }
        class if class == SUBSPACE => {
            let rotation = modules.rotation(&mut inverse, device)?;
            within(&modules, Composed::of(rotation, Swap), indices)?
        }
        [class, _] => {
            return Err(LoadSubmissionError::UnknownClass {
                file: modules.tensors.file.clone(),
                expected: "IdentityFeaturizerModule or SubspaceFeaturizerModule",
                found: class.to_owned(),
            });
        }
    };
    modules.tensors.finish()?;
    inverse.tensors.finish()?;
    Ok(SubmittedFeatures::Intervention(intervention))
}

/// The features to swap; `None` for all, and without a file, as in the track.
fn read_indices(folder: &Path, name: &str) -> Result<Option<Vec<usize>>, LoadSubmissionError> {
    let file = folder.join(format!("{name}{INDICES}"));
    let json = match fs::read(&file) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(FileError::Io { file, cause }.into()),
    };
    serde_json::from_slice(&json).map_err(|error| LoadSubmissionError::Content {
        file,
        expected: "a list of features in JSON, or null".to_owned(),
        found: error.to_string(),
    })
}

/// The intervention on some of its features.
fn within<B, F>(
    modules: &Modules,
    swap: Composed<B, F, Swap>,
    indices: Option<Vec<usize>>,
) -> Result<BuiltinIntervention<B>, LoadSubmissionError>
where
    B: Backend,
    F: Into<crate::interventions::BuiltinFeaturizer<B>>,
{
    let Some(indices) = indices else {
        return Ok(swap.into());
    };
    if let Some(features) = modules.features()
        && let Some(found) = indices.iter().find(|index| **index >= features)
    {
        return Err(
            modules.contradiction(format!("indices of {features} features"), found.to_string())
        );
    }
    Ok(swap.with_changed(indices).into())
}

/// A file of modules.
struct Modules {
    tensors: Tensors,
    fields: BTreeMap<String, Value>,
}

impl Modules {
    fn open(file: &Path) -> Result<Self, LoadSubmissionError> {
        let mut fields = BTreeMap::new();
        let tensors = Tensors::open(file, |bytes| {
            nested(bytes).map(|(tensors, found)| {
                fields = found;
                tensors
            })
        })?;
        Ok(Self { tensors, fields })
    }

    fn contradiction(&self, expected: String, found: String) -> LoadSubmissionError {
        LoadSubmissionError::Content {
            file: self.tensors.file.clone(),
            expected,
            found,
        }
    }

    fn info(&self, name: &str) -> Option<&Value> {
        self.fields.get(&format!("model_info/{name}"))
    }

    /// The classes of the featurizer and its inverse; empty if they are not given.
    fn class(&self) -> [&str; 2] {
        ["featurizer_class", "inverse_featurizer_class"]
            .map(|name| self.info(name).and_then(Value::as_str).unwrap_or_default())
    }

    fn features(&self) -> Option<usize> {
        let features = self.info("n_features")?.as_u64()?;
        usize::try_from(features).ok()
    }

    /// Checks that both files are of the same modules.
    fn check_class(&self, inverse: &Self) -> Result<(), LoadSubmissionError> {
        match self.fields == inverse.fields {
            true => Ok(()),
            false => Err(inverse.contradiction(
                format!("the model_info of {}", self.tensors.file.display()),
                "another one".to_owned(),
            )),
        }
    }

    /// The rotation, whose state is in both files.
    fn rotation<B: Backend>(
        &mut self,
        inverse: &mut Self,
        device: &B::Device,
    ) -> Result<Rotation<B>, LoadSubmissionError> {
        let state = STATE.map(|name| format!("state_dict/{name}"));
        let names = [state[0].as_str(), state[1].as_str(), MATRIX].map(str::to_owned);
        let mut is_finite = true;
        for name in &names {
            if !self.tensors.has_same(&inverse.tensors, name) {
                return Err(inverse.contradiction(
                    format!("`{name}` of {}", self.tensors.file.display()),
                    "another one, or none".to_owned(),
                ));
            }
            is_finite &= self.tensors.is_finite(name);
            inverse.tensors.ignore(name);
        }
        let map = |[d, rank]: [usize; 2]| match d == rank {
            true => OrthonormalMap::MatrixExponential,
            false => OrthonormalMap::Householder,
        };
        let names = [state[0].as_str(), state[1].as_str()];
        let rotation = self
            .tensors
            .orthonormal::<B>(names, [None, None], map, device)?;
        let [d, rank] = rotation.dims();
        let matrix = self
            .tensors
            .tensor::<B, 2>(MATRIX, [Some(d), Some(rank)], device)?;
        let deviation = match is_finite {
            true => rotation.deviation(),
            false => f64::INFINITY,
        };
        if deviation > TOLERANCE {
            let file = self.tensors.file.clone();
            return Err(LoadSubmissionError::NotOrthonormal { file, deviation });
        }
        let off = (rotation.matrix() - matrix).abs().max();
        let off = read_numbers(off.detach());
        let off = off.map_err(|cause| LoadSubmissionError::Device {
            file: self.tensors.file.clone(),
            cause: Box::new(cause),
        })?;
        if off.iter().any(|off| *off > TOLERANCE) {
            let expected = "the rotation_matrix that its state_dict gives".to_owned();
            return Err(self.contradiction(expected, format!("one that is off by {}", off[0])));
        }
        if self.features() != Some(rank) {
            let found = format!("{:?}", self.info("n_features"));
            return Err(self.contradiction(format!("n_features {rank}"), found));
        }
        let rotation = Rotation::new(rotation);
        match self.info("additional_config/requires_grad") {
            Some(Value::Bool(false)) => Ok(rotation.no_grad()),
            _ => Ok(rotation),
        }
    }
}

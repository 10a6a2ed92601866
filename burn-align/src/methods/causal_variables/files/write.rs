//! Writing the files of a submission.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::files::Replacement;

use super::{
    FEATURIZER, IDENTITY, INDICES, INVERSE, STATE, SUBSPACE, SaveSubmissionError, SubmittedFeatures,
};
use crate::engine::{PlanError, read_floats, read_numbers};
use crate::interventions::{
    BuiltinFeaturizer, BuiltinIntervention, BuiltinOperation, Mask, Orthonormal, OrthonormalMap,
    TokenGrouping,
};
use crate::methods::causal_variables::SubmissionUnit;
use crate::methods::causal_variables::unit::is_name;
use crate::saved::{Floats, TorchValue, torch_file};

type Units<B> = BTreeMap<SubmissionUnit, SubmittedFeatures<B>>;

pub(super) fn save<B: Backend>(folder: &Path, units: &Units<B>) -> Result<(), SaveSubmissionError> {
    if units.is_empty() {
        return Err(SaveSubmissionError::Nothing);
    }
    let mut files = Replacement::new(folder)?;
    for (unit, features) in units {
        if !is_name(unit.position()) {
            return Err(SaveSubmissionError::Name {
                unit: unit.to_string(),
            });
        }
        let (modules, indices) = match features {
            SubmittedFeatures::Dictionary(indices) => (Modules::None, indices.clone()),
            SubmittedFeatures::Intervention(it) => (modules(unit, it)?, indices(unit, it)?),
        };
        let stale = [FEATURIZER, INVERSE].map(|end| folder.join(format!("{unit}{end}")));
        if let Modules::None = modules
            && let Some(file) = stale.into_iter().find(|file| file.exists())
        {
            return Err(SaveSubmissionError::Stale { file });
        }
        if let Some(classes) = modules.classes() {
            let bytes = torch_file(&modules.value(classes));
            let bytes = bytes.map_err(|cause| SaveSubmissionError::Io {
                file: folder.join(format!("{unit}{FEATURIZER}")),
                cause,
            })?;
            for end in [FEATURIZER, INVERSE] {
                files.write(&format!("{unit}{end}"), &bytes)?;
            }
        }
        let indices = serde_json::Value::from(indices).to_string();
        files.write(&format!("{unit}{INDICES}"), indices.as_bytes())?;
    }
    Ok(files.finish()?)
}

/// The modules of a unit.
enum Modules {
    /// Those of the track's own dictionaries are not saved.
    None,
    Identity(Option<usize>),
    Subspace {
        /// `W`
        matrix: Floats,
        /// What is trained, and its base.
        state: [Floats; 2],
        is_trained: bool,
    },
}

impl Modules {
    fn classes(&self) -> Option<[&'static str; 2]> {
        match self {
            Self::None => None,
            Self::Identity(_) => Some(IDENTITY),
            Self::Subspace { .. } => Some(SUBSPACE),
        }
    }

    /// The contents of either file: `model_info` and `state_dict`.
    fn value(&self, [class, inverse]: [&'static str; 2]) -> TorchValue<'_> {
        use TorchValue::{Bool, Dict, None, Number, OrderedDict, Tensor, Text};
        let (features, config, state) = match self {
            Self::None => (None, Vec::new(), Vec::new()),
            Self::Identity(features) => (features.map_or(None, Number), Vec::new(), Vec::new()),
            Self::Subspace {
                matrix,
                state: [parameter, base],
                is_trained,
            } => {
                let config = vec![
                    ("rotation_matrix", Tensor(matrix)),
                    ("requires_grad", Bool(*is_trained)),
                ];
                let state = vec![(STATE[0], Tensor(parameter)), (STATE[1], Tensor(base))];
                let rank = matrix.shape.last().copied();
                (rank.map_or(None, Number), config, state)
            }
        };
        let info = vec![
            ("featurizer_class", Text(class)),
            ("inverse_featurizer_class", Text(inverse)),
            ("n_features", features),
            ("additional_config", Dict(config)),
        ];
        Dict(vec![
            ("model_info", Dict(info)),
            ("state_dict", OrderedDict(state)),
        ])
    }
}

fn modules<B: Backend>(
    unit: &SubmissionUnit,
    it: &BuiltinIntervention<B>,
) -> Result<Modules, SaveSubmissionError> {
    let unsupported = |expected, found: String, remedy| SaveSubmissionError::Unsupported {
        unit: unit.to_string(),
        expected,
        found,
        remedy,
    };
    if !matches!(it.operation, BuiltinOperation::Swap(_)) {
        return Err(unsupported(
            "an interchange (Swap)",
            format!("`{}`", it.operation.kind()),
            "the track swaps features, and nothing else",
        ));
    }
    if !matches!(it.tokens(), TokenGrouping::Each | TokenGrouping::Joint(1)) {
        return Err(unsupported(
            "tokens that are vectors of their own",
            format!("{:?}", it.tokens()),
            "use TokenGrouping::Each",
        ));
    }
    match &it.featurizer {
        BuiltinFeaturizer::Identity(_) => Ok(Modules::Identity(it.dims().map(|[d, _]| d))),
        BuiltinFeaturizer::Rotation(rotation) => subspace(unit, &rotation.rotation, true),
        BuiltinFeaturizer::Directions(directions) => {
            let matrix = directions.matrix();
            let map = map_of(matrix.dims());
            let matrix = Orthonormal::from_matrix(matrix, map);
            let matrix = matrix.map_err(|error| {
                unsupported(
                    "orthonormal directions",
                    error.to_string(),
                    "use Directions::spanned_by",
                )
            })?;
            subspace(unit, &matrix, false)
        }
        BuiltinFeaturizer::DictionaryFeatures(_) => Ok(Modules::None),
        other => Err(unsupported(
            "identity, rotation, directions, or the features of a dictionary",
            format!("`{}`", other.kind()),
            "for principal components, use Directions::spanned_by of the transposed components: \
             the track keeps what is outside of them",
        )),
    }
}

/// How PyTorch keeps a matrix of this shape orthonormal.
fn map_of([d, rank]: [usize; 2]) -> OrthonormalMap {
    match d == rank {
        true => OrthonormalMap::MatrixExponential,
        false => OrthonormalMap::Householder,
    }
}

fn subspace<B: Backend>(
    unit: &SubmissionUnit,
    rotation: &Orthonormal<B>,
    is_trained: bool,
) -> Result<Modules, SaveSubmissionError> {
    let map = map_of(rotation.dims());
    let restarted;
    let rotation = if rotation.map() == map {
        rotation
    } else {
        let again = Orthonormal::from_matrix(rotation.matrix(), map);
        restarted = again.map_err(|error| SaveSubmissionError::Unsupported {
            unit: unit.to_string(),
            expected: "orthonormal columns",
            found: error.to_string(),
            remedy: "use another rank",
        })?;
        &restarted
    };
    let base = rotation.base.as_ref().map(|base| base.val());
    // Both maps have one.
    let base = base.unwrap_or_else(|| rotation.matrix());
    Ok(Modules::Subspace {
        matrix: floats(unit, rotation.matrix())?,
        state: [floats(unit, rotation.parameter.val())?, floats(unit, base)?],
        is_trained,
    })
}

fn floats<B: Backend>(
    unit: &SubmissionUnit,
    tensor: Tensor<B, 2>,
) -> Result<Floats, SaveSubmissionError> {
    let tensor = tensor.detach();
    let shape = tensor.dims().to_vec();
    let values = read_floats(tensor).map_err(device(unit))?;
    Ok(Floats { shape, values })
}

/// The features that are swapped; `None` for all.
fn indices<B: Backend>(
    unit: &SubmissionUnit,
    it: &BuiltinIntervention<B>,
) -> Result<Option<Vec<usize>>, SaveSubmissionError> {
    let changed = it.changed();
    let Some(shares) = it.mask.shares() else {
        return Ok(changed.map(<[usize]>::to_vec));
    };
    let shares = read_numbers(shares.detach()).map_err(device(unit))?;
    let shares = shares.into_iter().enumerate();
    let swapped = shares.filter(|(_, share)| *share > 0.5);
    let swapped = swapped.map(|(feature, _)| feature);
    let swapped = swapped.filter(|feature| changed.is_none_or(|it| it.contains(feature)));
    Ok(Some(swapped.collect()))
}

fn device(unit: &SubmissionUnit) -> impl Fn(PlanError) -> SaveSubmissionError {
    let unit = unit.to_string();
    move |cause| SaveSubmissionError::Device {
        unit: unit.clone(),
        cause: Box::new(cause),
    }
}

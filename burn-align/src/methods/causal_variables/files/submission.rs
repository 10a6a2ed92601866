//! A submission: units, and the features at each.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::backend::Backend;

use super::{LoadSubmissionError, SaveSubmissionError};
use crate::interventions::{BuiltinIntervention, Composed, DictionaryFeatures, Swap};
use crate::methods::causal_variables::SubmissionUnit;

/// The features of a unit.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there are few, and most are the large one"
)]
#[non_exhaustive]
pub enum SubmittedFeatures<B: Backend> {
    /// An interchange of features.
    Intervention(BuiltinIntervention<B>),
    /// Features of a dictionary, which is not saved with them: their indices, or all.
    Dictionary(Option<Vec<usize>>),
}

impl<B: Backend> SubmittedFeatures<B> {
    /// The intervention, if it is there.
    pub fn intervention(&self) -> Option<&BuiltinIntervention<B>> {
        match self {
            Self::Intervention(intervention) => Some(intervention),
            Self::Dictionary(_) => None,
        }
    }
}

/// Units and their features: one cell of a submission to MIB's causal-variable track.
///
/// # Files
/// A folder, [named](super::VariableCell) by task, model and variable, has for each unit the files
/// `UNIT_featurizer` and `UNIT_inverse_featurizer`, which `torch.load` reads, and `UNIT_indices`: a
/// list of features in JSON, or `null` for all.
///
/// | here | in the files |
/// | --- | --- |
/// | [`Identity`](crate::interventions::Identity) | `IdentityFeaturizerModule` |
/// | [`Rotation`] | `SubspaceFeaturizerModule` with the state of its orthogonal parametrization |
/// | [`Directions`] | the same, but it is not trained |
/// | a mask, [`with_changed`](Composed::with_changed) | the features swapped by more than half |
/// | [`DictionaryFeatures`] | indices alone, as the track's library saves them |
///
/// [`Rotation`]: crate::interventions::Rotation
/// [`Directions`]: crate::interventions::Directions
///
/// The operation must be [`Swap`]. Principal components are those of the track as `Directions`:
/// ours lose what is outside of them. Anything else is refused.
///
/// Masks are hard in a submission, as the track evaluates them: a mask that is still soft scores
/// differently here.
///
/// ```
/// use burn_align::interventions::{
///     Composed, Orthonormal, OrthonormalMap, Rotation, Swap,
/// };
/// use burn_align::methods::causal_variables::{Submission, SubmissionUnit};
///
/// # type B = burn::backend::Flex;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let device = Default::default();
/// let rotation = Orthonormal::<B>::random([8, 2], OrthonormalMap::Retraction, 0, &device)?;
/// let unit = SubmissionUnit::residual_stream(3, "last_token");
/// let das = Composed::of(Rotation::new(rotation), Swap);
/// let folder = std::env::temp_dir().join(format!("submission-{}", std::process::id()));
/// let folder = folder.join("arithmetic_Gemma2ForCausalLM_ones_carry");
/// Submission::new([(unit.clone(), das.into())]).save(&folder)?;
/// let again = Submission::<B>::load(&folder, &device)?;
/// assert!(again.get(&unit).is_some());
/// # std::fs::remove_dir_all(folder.parent().ok_or("a parent")?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Submission<B: Backend> {
    units: BTreeMap<SubmissionUnit, SubmittedFeatures<B>>,
}

impl<B: Backend> Submission<B> {
    /// These units. Of several with the same name, the last one counts.
    pub fn new(units: impl IntoIterator<Item = (SubmissionUnit, BuiltinIntervention<B>)>) -> Self {
        let units = units.into_iter();
        let units = units.map(|(unit, it)| (unit, SubmittedFeatures::Intervention(it)));
        Self::of(units.collect())
    }

    pub(super) fn of(units: BTreeMap<SubmissionUnit, SubmittedFeatures<B>>) -> Self {
        Self { units }
    }

    /// Whole vectors at these units: what features are compared with.
    pub fn whole_vectors(units: impl IntoIterator<Item = SubmissionUnit>) -> Self {
        let units = units.into_iter().map(|unit| (unit, Swap.into()));
        Self::new(units)
    }

    /// The units in their order.
    pub fn units(&self) -> impl Iterator<Item = (&SubmissionUnit, &SubmittedFeatures<B>)> {
        self.units.iter()
    }

    /// The features of a unit.
    pub fn get(&self, unit: &SubmissionUnit) -> Option<&SubmittedFeatures<B>> {
        self.units.get(unit)
    }

    /// Gives a unit that was loaded without its dictionary the features of this one. Other units
    /// stay as they are.
    pub fn with_dictionary(
        mut self,
        unit: &SubmissionUnit,
        dictionary: DictionaryFeatures<B>,
    ) -> Self {
        if let Some(features) = self.units.get_mut(unit)
            && let SubmittedFeatures::Dictionary(indices) = features
        {
            let mut swap = Composed::of(dictionary, Swap);
            if let Some(indices) = indices.take() {
                swap = swap.with_changed(indices);
            }
            *features = SubmittedFeatures::Intervention(swap.into());
        }
        self
    }

    /// Writes the files of all units into a folder, which is created if it does not exist. Older
    /// files of the same names are replaced once everything is written; others stay.
    ///
    /// # Errors
    /// If there is no unit, if features cannot be part of a submission, or if a file cannot be
    /// written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), SaveSubmissionError> {
        super::write::save(folder.as_ref(), &self.units)
    }

    /// Reads the files of all units in a folder, written by [`save`](Self::save) or by the track's
    /// library. Files of other names are left alone. Pickles are parsed, not run.
    ///
    /// # Errors
    /// If the folder cannot be read, has no unit, or has files that contradict one another.
    pub fn load(folder: impl AsRef<Path>, device: &B::Device) -> Result<Self, LoadSubmissionError> {
        super::read::load(folder.as_ref(), device)
    }
}

//! What can be wrong with a configuration, its inputs, or a model made from it.

use burn_align_models::Site;

use super::{Mode, Unit};
use crate::engine::PlanError;
use crate::interventions::{OrthonormalError, counted};

/// Why interventions could not be run. Detected before anything is computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AlignError {
    /// A configuration without representations.
    #[error("expected at least one representation, found none")]
    NoRepresentations,
    /// A representation that the model does not have.
    #[error(
        "representation {representation}: the model has no {site}; it has {layers} \
         layers{lacks}"
    )]
    NoSuchSite {
        /// Index of the representation.
        representation: usize,
        /// The site.
        site: Site,
        /// Number of the model's layers.
        layers: usize,
        /// What the model lacks.
        lacks: &'static str,
    },
    /// Heads are addressed where there are none.
    #[error(
        "representation {representation}: {site} has no heads; expected unit `pos`, found `{unit}`"
    )]
    NoHeads {
        /// Index of the representation.
        representation: usize,
        /// The site.
        site: Site,
        /// The unit.
        unit: Unit,
    },
    /// Time steps of a model that is not recurrent.
    #[error(
        "representation {representation}: unit `t` needs a recurrent model (its layers must be \
         time steps); expected unit `pos`, `h` or `h.pos`, found `t`"
    )]
    NoTimeSteps {
        /// Index of the representation.
        representation: usize,
    },
    /// Group keys on some representations, or keys that are not 0, 1, ….
    #[error(
        "group_key: expected none, or one of 0, 1, … on every representation, without gaps; found \
         {found:?}"
    )]
    BadGroups {
        /// The keys.
        found: Vec<Option<usize>>,
    },
    /// Groups in serial mode, where every representation has its own source.
    #[error("group_key is not supported in serial mode: representation i belongs to source i")]
    GroupsInSerialMode,
    /// A number of interventions that does not match the configuration.
    #[error(
        "expected {}, one for each representation or link key, found {found}",
        counted(*expected, "intervention")
    )]
    WrongInterventionCount {
        /// The number that the configuration requires.
        expected: usize,
        /// The number given.
        found: usize,
    },
    /// A number of sources that does not match the configuration.
    #[error(
        "expected {}{}, found {found}",
        counted(*expected, "source"),
        if *one_allowed && *expected != 1 { " (or one for all)" } else { "" }
    )]
    WrongSourceCount {
        /// The number that the configuration requires.
        expected: usize,
        /// Whether a single source is allowed.
        one_allowed: bool,
        /// The number given.
        found: usize,
    },
    /// A group without a source, though an intervention takes one.
    #[error("source {group} is absent, but representation {representation} takes one")]
    AbsentSource {
        /// Index of the group.
        group: usize,
        /// Index of the representation.
        representation: usize,
    },
    /// A component whose own input is not a site.
    #[error(
        "representation {representation}: {site} cannot be skipped; expected block_output, \
         attention_output or mlp_output"
    )]
    NothingToSkip {
        /// Index of the representation.
        representation: usize,
        /// The site.
        site: Site,
    },
    /// Activations to collect in serial mode.
    #[error("representation {representation}: serial mode cannot collect; use parallel mode")]
    CollectInSerialMode {
        /// Index of the representation.
        representation: usize,
    },
    /// A part of a partition with features that the representation does not have.
    #[error(
        "representation {representation}: part {part} of subspace_partition: expected features \
         below {features}, or a range [from, to] within them, found {found:?}"
    )]
    NoSuchFeatures {
        /// Index of the representation.
        representation: usize,
        /// Index of the part.
        part: usize,
        /// Number of features.
        features: usize,
        /// The part.
        found: Vec<usize>,
    },
    /// Representations that share an intervention, but name different ones.
    #[error(
        "representation {representation}: expected {expected}, as for representation {first} with \
         the same intervention_link_key, found {found}; give it a different key or none"
    )]
    LinkedTypes {
        /// Index of the representation.
        representation: usize,
        /// Index of the first representation with the key.
        first: usize,
        /// The first one's intervention.
        expected: &'static str,
        /// The intervention.
        found: &'static str,
    },
    /// Subspaces for the wrong number of representations or examples.
    #[error("subspaces: expected entries for {expected} {what}, found {found}")]
    SubspaceCount {
        /// What they are entries for.
        what: &'static str,
        /// How many there are.
        expected: usize,
        /// Number of entries.
        found: usize,
    },
    /// A part that the partition does not have.
    #[error(
        "subspaces of representation {representation}: expected an index below {parts}, the \
         number of parts of its subspace_partition; found {found}"
    )]
    NoSuchPart {
        /// Index of the representation.
        representation: usize,
        /// Number of parts.
        parts: usize,
        /// The index.
        found: usize,
    },
    /// JSON that does not describe subspaces.
    #[error("subspaces: expected null, one id, or [representation][batch][id]; found {found}")]
    MalformedSubspaces {
        /// The value.
        found: String,
    },
    /// A source whose number of examples differs from the base's.
    #[error(
        "source {source_index} has {}; expected {expected}, as many as the base",
        counted(*found, "example")
    )]
    BatchMismatch {
        /// Index of the source.
        source_index: usize,
        /// Number of examples of the base.
        expected: usize,
        /// Number of examples of the source.
        found: usize,
    },
    /// Locations for the wrong number of representations.
    #[error("unit locations: expected entries for {expected} representations, found {found}")]
    LocationCount {
        /// Number of representations.
        expected: usize,
        /// Number of entries.
        found: usize,
    },
    /// Locations of the wrong form for the unit.
    #[error("unit locations of representation {representation}: unit `{unit}` needs {expected}")]
    LocationShape {
        /// Index of the representation.
        representation: usize,
        /// Its unit.
        unit: Unit,
        /// What the unit needs.
        expected: &'static str,
    },
    /// A representation that is located on one side only.
    #[error(
        "unit locations of representation {representation}: given for the {given} only; give \
         both, or neither to leave the representation as it is"
    )]
    OneSided {
        /// Index of the representation.
        representation: usize,
        /// The side that is given.
        given: &'static str,
    },
    /// Locations of a chain in parallel mode, or a chain of the wrong length.
    #[error("unit locations: expected {expected}, found a chain of {found} links")]
    WrongChain {
        /// What the mode requires.
        expected: String,
        /// Number of links.
        found: usize,
    },
    /// JSON that does not describe unit locations.
    #[error(
        "{key}: expected null or {{\"sources->base\": [source, base]}} with sides \
         [representation][batch][unit] (serial: \"source_0->source_1\", …, \"source_n->base\"), \
         found {found}"
    )]
    MalformedLocations {
        /// The key.
        key: String,
        /// The value.
        found: String,
    },
    /// A link of a serial chain without locations.
    #[error(
        "unit locations: expected \"sources->base\", or in serial mode a chain of links; `{key}` \
         is missing"
    )]
    MissingLink {
        /// The key.
        key: String,
    },
    /// The plan built from the configuration and the inputs cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A missing dimension that the intervention needs.
    #[error("representation {representation}: {kind} needs {what}, a number above 0")]
    NoDimension {
        /// Index of the representation.
        representation: usize,
        /// The field that is missing.
        what: &'static str,
        /// The intervention.
        kind: &'static str,
    },
    /// A rotation that cannot be built.
    #[error("representation {representation}: {cause}")]
    Orthonormal {
        /// Index of the representation.
        representation: usize,
        /// What is wrong.
        cause: OrthonormalError,
    },
    /// An intervention whose parameters come from data.
    #[error(
        "representation {representation}: {kind} is computed from activations; collect them, fit \
         it, and use AlignableModel::with_interventions"
    )]
    NotFitted {
        /// Index of the representation.
        representation: usize,
        /// The intervention.
        kind: &'static str,
    },
    /// Parameters for vectors whose width depends on the input.
    #[error(
        "representation {representation}: {kind} needs vectors of a fixed width, which attention \
         scores and weights are not"
    )]
    NoFixedWidth {
        /// Index of the representation.
        representation: usize,
        /// The intervention.
        kind: &'static str,
    },
}

impl Mode {
    /// The mode's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Serial => "serial",
        }
    }
}

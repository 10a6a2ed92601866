//! The configuration: which representations are aligned, and how.

use std::fmt;
use std::str::FromStr;

use burn_align_models::{Component, Site};
use serde::{Deserialize, Serialize};

use super::classes::InterventionType;
use super::config_json::{ConfigJson, RepresentationJson};
use crate::interventions::TokenGrouping;

/// Which representations of a model are aligned, and how.
///
/// Its JSON is that of align-transformers, so files written by the Python library load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ConfigJson", into = "ConfigJson")]
#[non_exhaustive]
pub struct AlignableConfig {
    /// The kind of model, for information only.
    pub model_type: Option<String>,
    /// The representations, in the order in which they are changed.
    pub representations: Vec<AlignableRepresentationConfig>,
    /// How several sources act together.
    pub mode: Mode,
}

impl AlignableConfig {
    /// Interventions at these representations, in parallel.
    pub fn new(representations: impl IntoIterator<Item = AlignableRepresentationConfig>) -> Self {
        Self {
            model_type: None,
            representations: representations.into_iter().collect(),
            mode: Mode::Parallel,
        }
    }

    /// Sets the kind of model.
    pub fn with_model_type(mut self, model_type: impl Into<String>) -> Self {
        self.model_type = Some(model_type.into());
        self
    }

    /// Sets the mode.
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }
}

/// How several sources act together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every source runs unchanged, and all of them act on the base.
    #[default]
    Parallel,
    /// Each source acts on the next one, and the last one on the base.
    Serial,
}

/// What an index refers to.
///
/// The JSON of a representation has pyvene's names, `pos`, `h`, `h.pos` and `t`, with pyvene's
/// meaning. That differs at attention weights: there, pyvene's `pos` counts heads and is read as
/// [`Head`](Self::Head), and positions of queries are `q_pos`, which pyvene does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Token positions; those of queries in an attention pattern.
    #[default]
    #[serde(rename = "pos")]
    Pos,
    /// Heads, at all positions.
    #[serde(rename = "h")]
    Head,
    /// Heads at positions.
    #[serde(rename = "h.pos")]
    HeadPos,
    /// Time steps of a recurrent model; the configured layer is ignored.
    #[serde(rename = "t")]
    Step,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pos => "pos",
            Self::Head => "h",
            Self::HeadPos => "h.pos",
            Self::Step => "t",
        })
    }
}

/// A site by its name in align-transformers: a component of the representation's layer, or one of
/// the sites outside of the layers, `embedding` and `final_norm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepresentationSite {
    /// What the first block reads.
    Embedding,
    /// A component of a block.
    Component(Component),
    /// Output of the final norm.
    FinalNorm,
}

impl RepresentationSite {
    /// Whether it is an attention pattern: scores or weights.
    pub(super) fn is_pattern(self) -> bool {
        matches!(
            self,
            Self::Component(Component::AttentionScores | Component::AttentionWeights)
        )
    }

    /// What pyvene's unit means at this site: its `pos` counts along the second axis of the tensor,
    /// and in attention weights, `[batch, head, q_pos, k_pos]`, these are the heads.
    pub(crate) fn unit_of_pyvene(self, unit: Unit) -> Unit {
        match (self, unit) {
            (Self::Component(Component::AttentionWeights), Unit::Pos) => Unit::Head,
            (_, unit) => unit,
        }
    }
}

impl From<Component> for RepresentationSite {
    fn from(component: Component) -> Self {
        Self::Component(component)
    }
}

impl FromStr for RepresentationSite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedding" => Ok(Self::Embedding),
            "final_norm" => Ok(Self::FinalNorm),
            name => match name.parse() {
                Ok(component) => Ok(Self::Component(component)),
                Err(error) => Err(format!(
                    "alignable_representation_type: {error}, embedding, or final_norm"
                )),
            },
        }
    }
}

/// One representation: its site, and the units that address it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "RepresentationJson")]
#[non_exhaustive]
pub struct AlignableRepresentationConfig {
    /// The layer; ignored at sites outside of the layers.
    pub layer: usize,
    /// The site in the layer.
    pub site: RepresentationSite,
    /// What is done to the representation.
    pub intervention: InterventionType,
    /// What an index of a unit location refers to.
    pub unit: Unit,
    /// Number of units per example that an intervention with parameters treats as one vector,
    /// unless it [keeps the last dimension](Self::keep_last_dim). Interventions without parameters
    /// treat every unit alike, whatever their number.
    pub max_number_of_units: usize,
    /// Whether an intervention with parameters treats every unit alike, whatever their number.
    pub keep_last_dim: bool,
    /// Number of directions of a low-rank rotation or a member of the ReFT family, of principal
    /// components, or of hidden features of a JumpReLU autoencoder.
    pub low_rank_dimension: Option<usize>,
    /// Number of hidden features of an autoencoder.
    pub latent_dimension: Option<usize>,
    /// The parts of the representation that subspaces refer to: each part lists its features, or is
    /// a pair `[first, end]` that excludes `end`.
    pub subspace_partition: Option<Vec<Vec<usize>>>,
    /// The source that acts here; representations with the same number share a source run. Either
    /// all representations have a group, or none has.
    pub group_key: Option<usize>,
    /// Representations with the same number share one intervention.
    pub intervention_link_key: Option<usize>,
}

impl AlignableRepresentationConfig {
    /// An interchange intervention in one layer, addressed by position.
    pub fn new(layer: usize, site: impl Into<RepresentationSite>) -> Self {
        Self {
            layer,
            site: site.into(),
            intervention: InterventionType::Vanilla,
            unit: Unit::Pos,
            max_number_of_units: 1,
            keep_last_dim: false,
            low_rank_dimension: None,
            latent_dimension: None,
            subspace_partition: None,
            group_key: None,
            intervention_link_key: None,
        }
    }

    /// Sets the intervention.
    pub fn with_intervention(mut self, intervention: InterventionType) -> Self {
        self.intervention = intervention;
        self
    }

    /// Sets a low-rank rotation with this many directions (DAS).
    pub fn with_low_rank(mut self, rank: usize) -> Self {
        self.intervention = InterventionType::LowRankRotatedSpace;
        self.low_rank_dimension = Some(rank);
        self
    }

    /// Sets the number of directions and keeps the intervention;
    /// [`with_low_rank`](Self::with_low_rank) sets both for a low-rank rotation.
    pub fn with_low_rank_dimension(mut self, rank: usize) -> Self {
        self.low_rank_dimension = Some(rank);
        self
    }

    /// Sets the number of hidden features of an autoencoder.
    pub fn with_latent_dimension(mut self, features: usize) -> Self {
        self.latent_dimension = Some(features);
        self
    }

    /// Sets how interventions with parameters group units.
    pub fn with_tokens(mut self, tokens: TokenGrouping) -> Self {
        (self.max_number_of_units, self.keep_last_dim) = match tokens {
            TokenGrouping::Each => (1, true),
            TokenGrouping::Joint(units) => (units, false),
        };
        self
    }

    /// Sets the number of units that an intervention with parameters treats as one vector: heads,
    /// for units `h` and `h.pos`. For positions, prefer [`with_tokens`](Self::with_tokens), which
    /// also has the alternative.
    pub fn with_max_number_of_units(mut self, units: usize) -> Self {
        self.max_number_of_units = units;
        self
    }

    /// How interventions with parameters group units. Heads are always concatenated.
    pub fn tokens(&self) -> TokenGrouping {
        match self.unit {
            Unit::Head | Unit::HeadPos => TokenGrouping::Each,
            Unit::Pos | Unit::Step if self.keep_last_dim => TokenGrouping::Each,
            Unit::Pos | Unit::Step => TokenGrouping::Joint(self.max_number_of_units),
        }
    }

    /// Sets the parts that subspaces refer to.
    pub fn with_subspace_partition(mut self, partition: Vec<Vec<usize>>) -> Self {
        self.subspace_partition = Some(partition);
        self
    }

    /// Sets the units.
    pub fn with_unit(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    /// Sets the group.
    pub fn with_group(mut self, group: usize) -> Self {
        self.group_key = Some(group);
        self
    }

    /// Sets the link key: representations with the same one share an intervention.
    pub fn with_link(mut self, link: usize) -> Self {
        self.intervention_link_key = Some(link);
        self
    }

    /// The site in the model; for time steps, the first one.
    pub fn place(&self) -> Site {
        self.place_in(if self.unit == Unit::Step {
            0
        } else {
            self.layer
        })
    }

    /// The site in a layer.
    pub(super) fn place_in(&self, layer: usize) -> Site {
        match self.site {
            RepresentationSite::Embedding => Site::Embedding,
            RepresentationSite::Component(component) => Site::Block(layer, component),
            RepresentationSite::FinalNorm => Site::FinalNorm,
        }
    }

    /// The site's name; if heads are addressed, that of the site with heads.
    pub(super) fn site_name(&self) -> String {
        match self.site {
            RepresentationSite::Embedding => "embedding".to_owned(),
            RepresentationSite::FinalNorm => "final_norm".to_owned(),
            RepresentationSite::Component(component) => match (self.unit, component) {
                (
                    Unit::Head | Unit::HeadPos,
                    Component::QueryOutput
                    | Component::KeyOutput
                    | Component::ValueOutput
                    | Component::AttentionValueOutput,
                ) => format!("head_{component}"),
                _ => component.to_string(),
            },
        }
    }
}

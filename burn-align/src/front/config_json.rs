//! The JSON of a configuration, in the format of align-transformers.

use std::collections::BTreeMap;

use burn_align_models::Component;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::{
    AlignableConfig, AlignableRepresentationConfig, InterventionType, Mode, RepresentationSite,
    Unit,
};

impl Serialize for AlignableRepresentationConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RepresentationJson {
            alignable_layer: self.layer,
            alignable_representation_type: self.site_name(),
            alignable_unit: UnitJson::of(self.unit, self.site),
            max_number_of_units: self.max_number_of_units,
            alignable_low_rank_dimension: self.low_rank_dimension,
            alignable_latent_dimension: self.latent_dimension,
            keep_last_dim: self.keep_last_dim,
            subspace_partition: self.subspace_partition.clone(),
            group_key: self.group_key,
            intervention_link_key: self.intervention_link_key,
        }
        .serialize(serializer)
    }
}

/// A unit as JSON has it: pyvene's names with pyvene's meaning, and one that pyvene does not have.
#[derive(Serialize, Deserialize)]
enum UnitJson {
    #[serde(rename = "pos")]
    Pos,
    #[serde(rename = "h")]
    Head,
    #[serde(rename = "h.pos")]
    HeadPos,
    #[serde(rename = "t")]
    Step,
    /// Positions of queries, in attention patterns.
    #[serde(rename = "q_pos")]
    QueryPos,
}

impl UnitJson {
    fn of(unit: Unit, site: RepresentationSite) -> Self {
        match unit {
            // Read back, `pos` would be another unit.
            Unit::Pos if site.unit_of_pyvene(unit) != unit => Self::QueryPos,
            Unit::Pos => Self::Pos,
            Unit::Head => Self::Head,
            Unit::HeadPos => Self::HeadPos,
            Unit::Step => Self::Step,
        }
    }

    fn at(self, site: RepresentationSite) -> Result<Unit, String> {
        Ok(match self {
            Self::Pos => site.unit_of_pyvene(Unit::Pos),
            Self::Head => Unit::Head,
            Self::HeadPos => Unit::HeadPos,
            Self::Step => Unit::Step,
            Self::QueryPos if site.is_pattern() => Unit::Pos,
            Self::QueryPos => {
                return Err(
                    "alignable_unit: `q_pos` is of attention_weight and attention_scores; expected \
                     pos, h, h.pos or t"
                        .to_owned(),
                );
            }
        })
    }
}

/// A representation in JSON: an object, or Python's named tuple as a list.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RepresentationJson {
    alignable_layer: usize,
    alignable_representation_type: String,
    alignable_unit: UnitJson,
    max_number_of_units: usize,
    alignable_low_rank_dimension: Option<usize>,
    subspace_partition: Option<Vec<Vec<usize>>>,
    group_key: Option<usize>,
    intervention_link_key: Option<usize>,
    // Not in align-transformers; after its fields, since a list gives them in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    alignable_latent_dimension: Option<usize>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    keep_last_dim: bool,
}

impl Default for RepresentationJson {
    fn default() -> Self {
        Self {
            alignable_layer: 0,
            alignable_representation_type: Component::BlockOutput.to_string(),
            alignable_unit: UnitJson::Pos,
            max_number_of_units: 1,
            alignable_low_rank_dimension: None,
            alignable_latent_dimension: None,
            keep_last_dim: false,
            subspace_partition: None,
            group_key: None,
            intervention_link_key: None,
        }
    }
}

impl TryFrom<RepresentationJson> for AlignableRepresentationConfig {
    type Error = String;

    fn try_from(json: RepresentationJson) -> Result<Self, String> {
        if json.max_number_of_units == 0 {
            return Err("max_number_of_units: expected at least 1, found 0".to_owned());
        }
        let site: RepresentationSite = json.alignable_representation_type.parse()?;
        let unit = json.alignable_unit.at(site)?;
        Ok(Self {
            layer: json.alignable_layer,
            site,
            intervention: InterventionType::Vanilla,
            unit,
            max_number_of_units: json.max_number_of_units,
            keep_last_dim: json.keep_last_dim,
            low_rank_dimension: json.alignable_low_rank_dimension,
            latent_dimension: json.alignable_latent_dimension,
            subspace_partition: json.subspace_partition,
            group_key: json.group_key,
            intervention_link_key: json.intervention_link_key,
        })
    }
}

/// A configuration in JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct ConfigJson {
    #[serde(default)]
    alignable_model_type: Option<String>,
    alignable_representations: Vec<AlignableRepresentationConfig>,
    #[serde(default)]
    alignable_interventions_type: Option<TypesJson>,
    #[serde(default)]
    mode: Mode,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// One type for all representations, or one for each.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "alignable_interventions_type: expected a name or a list of names"
)]
enum TypesJson {
    One(String),
    Each(Vec<String>),
}

/// Keys that Python writes next to the configuration and that add no information.
const IGNORED_KEYS: [&str; 2] = ["alignable_interventions_dimensions", "transformers_version"];

impl TryFrom<ConfigJson> for AlignableConfig {
    type Error = String;

    fn try_from(json: ConfigJson) -> Result<Self, String> {
        if let Some(unknown) = json
            .others
            .keys()
            .find(|key| !IGNORED_KEYS.contains(&key.as_str()))
        {
            return Err(format!(
                "unknown field `{unknown}`, expected alignable_model_type, \
                 alignable_representations, alignable_interventions_type or mode"
            ));
        }
        let mut representations = json.alignable_representations;
        let expected = representations.len();
        let names = match json.alignable_interventions_type {
            None => vec![InterventionType::Vanilla.name().to_owned(); expected],
            Some(TypesJson::One(name)) => vec![name; expected],
            Some(TypesJson::Each(names)) => names,
        };
        if names.len() != expected {
            return Err(format!(
                "alignable_interventions_type: expected one type, or one for each of {expected} \
                 representations, found {}",
                names.len()
            ));
        }
        for (representation, name) in representations.iter_mut().zip(names) {
            representation.intervention = name.parse()?;
        }
        Ok(Self {
            model_type: json.alignable_model_type,
            representations,
            mode: json.mode,
        })
    }
}

impl From<AlignableConfig> for ConfigJson {
    fn from(config: AlignableConfig) -> Self {
        let names = config.representations.iter().map(|r| r.intervention.name());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        let types = match names.iter().all(|name| *name == names[0]) {
            true => names.pop().map(TypesJson::One),
            false => Some(TypesJson::Each(names)),
        };
        Self {
            alignable_model_type: config.model_type,
            alignable_representations: config.representations,
            alignable_interventions_type: types,
            mode: config.mode,
            others: BTreeMap::new(),
        }
    }
}

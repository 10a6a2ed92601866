//! pyvene's `config.json`, for all releases.

use std::collections::HashMap;
use std::path::Path;

use burn_align_models::Component;
use serde_json::{Map, Value};

use super::LoadInterventionsError;
use crate::front::{
    AlignableConfig, AlignableRepresentationConfig, InterventionType, Mode, RepresentationSite,
    Unit,
};

/// The contents of a configuration.
pub(super) struct PyveneConfig {
    pub(super) config: AlignableConfig,
    pub(super) saved: Vec<SavedRepresentation>,
}

/// What the file says about a representation in addition to its configuration.
pub(super) struct SavedRepresentation {
    /// The names its file may have, the newest first.
    pub(super) files: Vec<String>,
    /// Whether it has its own constant source.
    pub(super) constant: bool,
    /// `interchange_dim`.
    pub(super) dimension: Dimension,
}

/// An `interchange_dim`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Dimension {
    Absent,
    One(usize),
    List(Vec<usize>),
}

/// Fields that change nothing.
const IGNORED: [&str; 12] = [
    "_name_or_path",
    "architectures",
    "dtype",
    "intervenable_interventions",
    "intervenable_model_type",
    "intervention_constant_sources",
    "model_type",
    "name_or_path",
    "sorted_keys",
    "torch_dtype",
    "transformers_version",
    "return_dict",
];

pub(super) fn read(
    file: &Path,
    mut fields: Map<String, Value>,
) -> Result<PyveneConfig, LoadInterventionsError> {
    let bad = |reason| LoadInterventionsError::Config {
        file: file.to_owned(),
        reason,
    };
    let model_type = match fields.get("intervenable_model_type") {
        Some(Value::String(name)) => Some(name.clone()),
        _ => None,
    };
    let mode = match fields.remove("mode") {
        None | Some(Value::Null) => Mode::Parallel,
        Some(mode) => serde_json::from_value(mode).map_err(|e| bad(format!("mode: {e}")))?,
    };
    let rows = fields.remove("representations");
    let rows = match rows.or_else(|| fields.remove("intervenable_representations")) {
        Some(Value::Array(rows)) if !rows.is_empty() => rows,
        other => {
            return Err(bad(format!(
                "representations: expected a list of at least one, found {}",
                shown(other.as_ref())
            )));
        }
    };
    let types = fields.remove("intervention_types");
    let types = match types.or_else(|| fields.remove("intervenable_interventions_type")) {
        Some(Value::Array(types)) if types.len() == rows.len() => types,
        Some(Value::String(one)) => vec![Value::String(one); rows.len()],
        other => {
            return Err(bad(format!(
                "intervention_types: expected one for each of {} representations, found {}",
                rows.len(),
                shown(other.as_ref())
            )));
        }
    };
    let dimensions = match fields.remove("intervention_dimensions") {
        None | Some(Value::Null) => vec![Value::Null; rows.len()],
        Some(Value::Array(dimensions)) if dimensions.len() == rows.len() => dimensions,
        other => {
            return Err(bad(format!(
                "intervention_dimensions: expected one for each of {} representations, found {}",
                rows.len(),
                shown(other.as_ref())
            )));
        }
    };
    let unknown = fields
        .iter()
        .find(|(key, value)| !IGNORED.contains(&key.as_str()) && !value.is_null());
    if let Some((key, value)) = unknown {
        return Err(bad(format!(
            "`{key}`: unknown field, found {}: it may change the computation",
            shown(Some(value))
        )));
    }

    let mut representations = Vec::new();
    let mut saved: Vec<SavedRepresentation> = Vec::new();
    let mut stems: HashMap<String, usize> = HashMap::new();
    for (index, ((row, class), dimension)) in
        rows.into_iter().zip(types).zip(dimensions).enumerate()
    {
        let kind = class_kind(file, index, &class)?;
        let row = Row { file, index, row };
        let Parsed {
            representation,
            constant,
            stem,
        } = row.read(kind)?;
        // Representations with the same name are numbered.
        let number = stems.entry(stem.clone()).or_default();
        let files = file_names(&stem, *number);
        *number += 1;
        let dimension = read_dimension(&dimension).ok_or_else(|| {
            bad(format!(
                "intervention_dimensions[{index}]: expected null, a number or a list of numbers, \
                 found {dimension}"
            ))
        })?;
        representations.push(representation);
        saved.push(SavedRepresentation {
            files,
            constant,
            dimension,
        });
    }
    let mut config = AlignableConfig::new(representations).with_mode(mode);
    config.model_type = model_type;
    Ok(PyveneConfig { config, saved })
}

fn shown(value: Option<&Value>) -> String {
    const MOST: usize = 80;
    let text = value.map_or("none".to_owned(), Value::to_string);
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn read_dimension(value: &Value) -> Option<Dimension> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    match value {
        Value::Null => Some(Dimension::Absent),
        Value::Array(list) => {
            let list: Option<Vec<usize>> = list.iter().map(number).collect();
            list.map(Dimension::List)
        }
        value => number(value).map(Dimension::One),
    }
}

fn class_kind(
    file: &Path,
    representation: usize,
    class: &Value,
) -> Result<InterventionType, LoadInterventionsError> {
    let unknown = |reason| LoadInterventionsError::UnknownClass {
        file: file.to_owned(),
        representation,
        class: shown(Some(class)),
        reason,
    };
    let Value::String(name) = class else {
        return Err(unknown("expected the name of a class".to_owned()));
    };
    // A user's own class may have the same name as one of these.
    let module = name.trim_start_matches("<class '");
    let known = ["pyvene.", "pyreft.", "models.interventions."];
    if module.contains('.') && !known.iter().any(|known| module.starts_with(known)) {
        return Err(unknown(
            "expected a class of pyvene or pyreft; build it with \
             AlignableModel::with_interventions"
                .to_owned(),
        ));
    }
    name.parse().map_err(unknown)
}

/// `layer_0_comp_block_output_unit_pos_nunit_1#0` and the forms of earlier releases.
fn file_names(stem: &str, number: usize) -> Vec<String> {
    let underscored = stem.replace('.', "_");
    let mut names = vec![
        format!("intkey_{underscored}#{number}.bin"),
        format!("intkey_{stem}#{number}.bin"),
    ];
    if let Some((layer, rest)) = stem.split_once(".comp.") {
        names.push(format!("intkey_{layer}.repr.{rest}#{number}.bin"));
    }
    names
}

struct Row<'a> {
    file: &'a Path,
    index: usize,
    row: Value,
}

struct Parsed {
    representation: AlignableRepresentationConfig,
    constant: bool,
    /// The key without its number, with dots.
    stem: String,
}

impl Row<'_> {
    fn read(&self, kind: InterventionType) -> Result<Parsed, LoadInterventionsError> {
        let Value::Array(fields) = &self.row else {
            return Err(self.bad("expected a list of 8, 13 or 14 fields", &self.row));
        };
        // Where the partition and the keys are.
        let partition = match fields.len() {
            8 => 5,
            13 | 14 => 7,
            _ => return Err(self.bad("expected a list of 8, 13 or 14 fields", &self.row)),
        };
        let layer = self.number(&fields[0])?.unwrap_or(0);
        let Value::String(component) = &fields[1] else {
            return Err(self.bad("expected the name of a component", &fields[1]));
        };
        let unit_name = match &fields[2] {
            Value::Null => "pos",
            Value::String(name) => name,
            other => return Err(self.bad("expected a unit", other)),
        };
        let unit: Unit = serde_json::from_value(unit_name.into())
            .map_err(|_| self.bad("expected the unit pos, h, h.pos or t", &fields[2]))?;
        let units = self.number(&fields[3])?.unwrap_or(1);
        if units == 0 {
            return Err(self.bad("expected a max_number_of_units of at least 1", &fields[3]));
        }
        let (layer, site, stem) = match component.contains('.') {
            false => {
                let site = component
                    .parse()
                    .map_err(|error: String| self.bad(&error, &Value::String(component.clone())))?;
                let stem = format!("layer.{layer}.comp.{component}.unit.{unit_name}.nunit.{units}");
                (layer, site, stem)
            }
            true => {
                let Some((in_layer, site)) = parse_path(component) else {
                    return Err(self.unsupported(
                        "component",
                        &fields[1],
                        "expected a component by name, such as block_output, or the path of a \
                         module of GPT-2 or LLaMA that corresponds to one",
                    ));
                };
                let stem = format!("comp.{component}.unit.{unit_name}.nunit.{units}");
                (in_layer.unwrap_or(layer), site, stem)
            }
        };
        let mut representation = AlignableRepresentationConfig::new(layer, site)
            .with_intervention(kind)
            .with_unit(site.unit_of_pyvene(unit));
        representation.max_number_of_units = units;
        representation.keep_last_dim = kind.treats_units_alike();
        representation.low_rank_dimension = self.number(&fields[4])?;
        representation.subspace_partition = match &fields[partition] {
            Value::Null => None,
            parts => Some(
                serde_json::from_value(parts.clone())
                    .map_err(|_| self.bad("expected a partition, a list of lists", parts))?,
            ),
        };
        representation.group_key = self.number(&fields[partition + 1])?;
        representation.intervention_link_key = self.number(&fields[partition + 2])?;
        let mut constant = false;
        if partition == 7 {
            self.check_type(&fields[5], kind)?;
            for (field, what) in [
                (6, "intervention"),
                (10, "moe_key"),
                (11, "source_representation"),
            ] {
                if !fields[field].is_null() {
                    return Err(self.unsupported(what, &fields[field], "expected null"));
                }
            }
            constant = match &fields[12] {
                Value::Null => false,
                Value::Bool(constant) => *constant,
                other => return Err(self.bad("expected hidden_source_representation", other)),
            };
            if let Some(latent) = fields.get(13) {
                representation.latent_dimension = self.number(latent)?;
            }
        }
        Ok(Parsed {
            representation,
            constant,
            stem,
        })
    }

    /// The type may also be given here.
    fn check_type(
        &self,
        field: &Value,
        kind: InterventionType,
    ) -> Result<(), LoadInterventionsError> {
        if field.is_null() || class_kind(self.file, self.index, field)? == kind {
            return Ok(());
        }
        Err(self.bad(
            "expected the intervention_type of intervention_types",
            field,
        ))
    }

    fn number(&self, value: &Value) -> Result<Option<usize>, LoadInterventionsError> {
        if value.is_null() {
            return Ok(None);
        }
        // No model has larger sizes, and their products could overflow.
        let number = value.as_u64().filter(|number| *number <= 1 << 24);
        match number {
            Some(number) => Ok(Some(number as usize)),
            None => Err(self.bad("expected null or a number", value)),
        }
    }

    fn bad(&self, expected: &str, found: &Value) -> LoadInterventionsError {
        LoadInterventionsError::Config {
            file: self.file.to_owned(),
            reason: format!(
                "representations[{}]: {expected}, found {}",
                self.index,
                shown(Some(found))
            ),
        }
    }

    fn unsupported(
        &self,
        what: &'static str,
        found: &Value,
        remedy: &'static str,
    ) -> LoadInterventionsError {
        LoadInterventionsError::Unsupported {
            file: self.file.to_owned(),
            representation: self.index,
            what,
            found: shown(Some(found)),
            remedy,
        }
    }
}

/// The layer and the place of `transformer.h[0].mlp.output`, the input or output of a module.
fn parse_path(path: &str) -> Option<(Option<usize>, RepresentationSite)> {
    let inner = path
        .strip_prefix("transformer.")
        .or_else(|| path.strip_prefix("model."))
        .unwrap_or(path);
    if matches!(inner, "ln_f.output" | "norm.output") {
        return Some((None, RepresentationSite::FinalNorm));
    }
    let (gpt2, inner) = match (inner.strip_prefix("h["), inner.strip_prefix("layers[")) {
        (Some(inner), _) => (true, inner),
        (_, Some(inner)) => (false, inner),
        (None, None) => return None,
    };
    let (layer, place) = inner.split_once("].")?;
    if layer.len() > 6 || !layer.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let component = match (gpt2, place) {
        (_, "input") => Component::BlockInput,
        (_, "output") => Component::BlockOutput,
        (_, "mlp.input") => Component::MlpInput,
        (_, "mlp.output") => Component::MlpOutput,
        (true, "mlp.act.output") | (false, "mlp.act_fn.output") => Component::MlpActivation,
        (true, "attn.input") | (false, "self_attn.input") => Component::AttentionInput,
        (true, "attn.output") | (false, "self_attn.output") => Component::AttentionOutput,
        (true, "attn.c_proj.input") | (false, "self_attn.o_proj.input") => {
            Component::AttentionValueOutput
        }
        (false, "self_attn.q_proj.output") => Component::QueryOutput,
        (false, "self_attn.k_proj.output") => Component::KeyOutput,
        (false, "self_attn.v_proj.output") => Component::ValueOutput,
        (true, "ln_2.input") | (false, "post_attention_layernorm.input") => Component::ResidualMid,
        _ => return None,
    };
    Some((Some(layer.parse().ok()?), component.into()))
}

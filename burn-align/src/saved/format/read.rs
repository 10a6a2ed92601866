//! Reading this crate's own format.

use std::path::Path;

use burn::tensor::backend::Backend;
use serde_json::{Map, Value};

use super::{
    ALONE, COMPOSED, INTERVENTIONS, NAMED, Named, PARTS, SWAPPED, Swapped, TENSORS, WIDTHS,
};
use crate::front::{AlignableConfig, distinct_interventions};
use crate::interventions::parts::{PartError, Reader, field};
use crate::interventions::{
    BuiltinFeaturizer, BuiltinIntervention, BuiltinMask, BuiltinOperation, Composed, Featurizer,
    TokenGrouping,
};
use crate::saved::{LoadInterventionsError, SavedInterventions, Tensors, of_safetensors};

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
    let mut tensors = Tensors::open(&folder.join(TENSORS), of_safetensors)?;
    let mut interventions = Vec::new();
    for (index, description) in descriptions.into_iter().enumerate() {
        let fields = serde_json::from_value(description)
            .map_err(|error| bad(format!("interventions[{index}]: {error}")))?;
        let built = build(Source {
            index,
            fields,
            tensors: &mut tensors,
            device,
            named: None,
            nested: false,
        });
        interventions.push(built.map_err(|error| match error {
            PartError::Description(reason) => bad(format!("interventions[{index}]: {reason}")),
            PartError::Load(error) => error,
        })?);
    }
    tensors.finish()?;
    Ok(SavedInterventions {
        config,
        interventions,
        widths,
    })
}

/// The intervention of a description. Its tensors are taken from the others.
fn build<B: Backend>(mut from: Source<'_, B>) -> Result<BuiltinIntervention<B>, PartError> {
    let kind = text(&mut from.fields, "kind")?;
    from.named = NAMED.iter().find(|named| named.kind == kind);
    from.nested = kind == COMPOSED;
    let kinds = match from.named {
        Some(named) => named.parts.map(Some),
        None if from.nested => [None; 3],
        None => [Some(ALONE[0]), Some(kind.as_str()), Some(ALONE[1])],
    };
    let alone = from.named.is_none() && !from.nested;

    let featurizer = from.part(0, kinds, None, BuiltinFeaturizer::restore)?;
    let features = featurizer.dims().map(|[_d, features]| features);
    let operation = from.part(1, kinds, features, BuiltinOperation::restore)?;
    let mask = from.part(2, kinds, features, BuiltinMask::restore)?;
    let mut it = Composed::of(featurizer, operation).with_mask(mask);
    if !alone {
        it = it.with_tokens(grouping(&mut from.fields)?);
    }
    let changed = match from.named.map(|named| named.swapped) {
        Some(Swapped::All) => None,
        Some(Swapped::Count) => {
            let (count, most): (usize, _) = (field(&mut from.fields, SWAPPED)?, features);
            if most.is_some_and(|most| count > most) {
                return Err(PartError::Description(format!(
                    "swapped: expected at most {}, the number of directions, found {count}",
                    most.unwrap_or(0)
                )));
            }
            (Some(count) != most).then(|| (0..count).collect::<Vec<usize>>())
        }
        None if alone => None,
        Some(Swapped::List) | None => field(&mut from.fields, SWAPPED)?,
    };
    if let Some(changed) = changed {
        let count = it.dims().map_or(usize::MAX, |[_d, features]| features);
        if let Some(found) = changed.iter().find(|feature| **feature >= count) {
            return Err(PartError::Description(format!(
                "swapped: expected features below {count}, found {found}"
            )));
        }
        it = it.with_changed(changed);
    }
    nothing_left(&from.fields)?;
    Ok(it.into())
}

/// Where an intervention comes from.
struct Source<'a, B: Backend> {
    index: usize,
    fields: Map<String, Value>,
    tensors: &'a mut Tensors,
    device: &'a B::Device,
    named: Option<&'static Named>,
    /// Whether each part has its own fields.
    nested: bool,
}

impl<B: Backend> Source<'_, B> {
    /// One of the three parts, of this kind or of the kind that its fields name.
    fn part<T>(
        &mut self,
        part: usize,
        kinds: [Option<&str>; 3],
        features: Option<usize>,
        restore: impl FnOnce(&str, &mut Reader<'_, B>) -> Result<T, PartError>,
    ) -> Result<T, PartError> {
        let name = PARTS[part];
        let mut own: Map<String, Value> = match self.nested {
            true => field(&mut self.fields, name)?,
            false => Map::new(),
        };
        let kind = match kinds[part] {
            Some(kind) => kind.to_owned(),
            None => text(&mut own, "kind")?,
        };
        let mut reader = Reader {
            fields: if self.nested {
                &mut own
            } else {
                &mut self.fields
            },
            tensors: self.tensors,
            prefix: match self.nested {
                true => format!("{}.{name}", self.index),
                false => self.index.to_string(),
            },
            renamed: self.named.map_or(&[], |named| named.renamed),
            features,
            device: self.device,
        };
        let built = restore(&kind, &mut reader)?;
        nothing_left(&own)?;
        Ok(built)
    }
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<String, PartError> {
    field(fields, name)
}

fn grouping(fields: &mut Map<String, Value>) -> Result<TokenGrouping, PartError> {
    match field(fields, "tokens")? {
        TokenGrouping::Joint(0) => Err(PartError::Description(
            "tokens: expected at least 1 unit in a vector, found 0".to_owned(),
        )),
        tokens => Ok(tokens),
    }
}

/// Checks that every field has been used.
fn nothing_left(fields: &Map<String, Value>) -> Result<(), PartError> {
    match fields.keys().next() {
        Some(name) => Err(PartError::Description(format!("unknown field `{name}`"))),
        None => Ok(()),
    }
}

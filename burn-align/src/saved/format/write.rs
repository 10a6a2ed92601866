//! Writing this crate's own format.

use std::path::Path;

use burn::tensor::backend::Backend;
use burn_align_models::files::{Replacement, WriteError};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    ALONE, COMPOSED, INTERVENTIONS, NAMED, Named, PARTS, SWAPPED, Swapped, TENSORS, WIDTHS,
};
use crate::front::{AlignableConfig, distinct_interventions};
use crate::interventions::parts::{StoredTensors, Writer};
use crate::interventions::{BuiltinIntervention, Featurizer};
use crate::saved::{CONFIG, SaveInterventionsError};

/// Writes a folder. Trailing `None`s of the widths may be left out.
pub(in crate::saved) fn save<B: Backend>(
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
    let mut tensors = StoredTensors::new();
    let descriptions = interventions.iter().enumerate();
    let descriptions: Result<Vec<Value>, _> = descriptions
        .map(|(index, intervention)| describe(intervention, index, &mut tensors))
        .collect();
    let json = config_json(config, descriptions?, widths)?;
    let views = tensors.iter().map(|(name, (shape, bytes))| {
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
    descriptions: Vec<Value>,
    widths: &[Option<usize>],
) -> Result<String, SaveInterventionsError> {
    let failed = |reason: String| SaveInterventionsError::Config { reason };
    let mut json = serde_json::to_value(config)
        .map_err(|error| failed(format!("cannot be written as JSON: {error}")))?;
    let read = AlignableConfig::deserialize(&json);
    if !read.is_ok_and(|read| read == *config) {
        return Err(failed(
            "expected one that reads back unchanged; it would read back as a different one, or \
             not at all"
                .to_owned(),
        ));
    }
    json[INTERVENTIONS] = descriptions.into();
    if widths.iter().any(Option::is_some) {
        json[WIDTHS] = widths.into();
    }
    Ok(format!("{json:#}\n"))
}

/// The description of an intervention. Its tensors are put to the others.
fn describe<B: Backend>(
    it: &BuiltinIntervention<B>,
    index: usize,
    tensors: &mut StoredTensors,
) -> Result<Value, SaveInterventionsError> {
    let parts = [it.featurizer.kind(), it.operation.kind(), it.mask.kind()];
    let fits = |named: &&Named| {
        named.parts == parts
            && match named.swapped {
                Swapped::All => it.changed().is_none(),
                Swapped::Count => it
                    .changed()
                    .is_none_or(|list| list.iter().copied().eq(0..list.len())),
                Swapped::List => true,
            }
    };
    let named = NAMED.iter().find(fits);
    let alone = [parts[0], parts[2]] == ALONE && it.changed().is_none();
    let mut fields = [Map::new(), Map::new(), Map::new()];
    let features = it.featurizer.dims().map(|[_d, features]| features);
    let mut store = |part: usize, name: &str| {
        let prefix = match named.is_some() || alone {
            true => index.to_string(),
            false => format!("{index}.{name}"),
        };
        let mut out = Writer {
            fields: &mut fields[part],
            tensors,
            prefix,
            renamed: named.map_or(&[], |named| named.renamed),
            features,
            index,
        };
        match part {
            0 => it.featurizer.store(&mut out),
            1 => it.operation.store(&mut out),
            _ => it.mask.store(&mut out),
        }
    };
    for (part, name) in PARTS.into_iter().enumerate() {
        store(part, name)?;
    }
    let mut all = Map::new();
    if !alone {
        all.insert("tokens".to_owned(), json!(it.tokens()));
    }
    match named {
        Some(named) => {
            all.insert("kind".to_owned(), named.kind.into());
            all.extend(fields.into_iter().flatten());
            let swapped = match named.swapped {
                Swapped::All => return Ok(all.into()),
                Swapped::Count => json!(it.changed().map(<[usize]>::len).or(features)),
                Swapped::List => json!(it.changed()),
            };
            all.insert(SWAPPED.to_owned(), swapped);
        }
        None if alone => {
            all.insert("kind".to_owned(), parts[1].into());
            all.extend(fields.into_iter().flatten());
        }
        None => {
            all.insert("kind".to_owned(), COMPOSED.into());
            for ((name, kind), mut fields) in PARTS.into_iter().zip(parts).zip(fields) {
                fields.insert("kind".to_owned(), kind.into());
                all.insert(name.to_owned(), fields.into());
            }
            all.insert(SWAPPED.to_owned(), json!(it.changed()));
        }
    }
    Ok(all.into())
}

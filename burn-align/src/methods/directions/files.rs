//! A direction in a folder.

use std::path::Path;

use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{Direction, DirectionMethod, DirectionNorms, DirectionProvenance, Separation};
use crate::methods::saved_result::{LoadResultError, ResultFiles, SaveResultError};
use crate::methods::saved_site::SavedSite;
use crate::methods::saved_tensor::finite_f32;

const FILES: ResultFiles = ResultFiles {
    what: "direction",
    writer: "Direction::save",
    description: "direction.json",
    tensors: "direction.safetensors",
};
const VECTOR: &str = "direction";

/// A direction without its vector.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    site: SavedSite,
    method: DirectionMethod,
    norms: DirectionNorms,
    separation: Separation,
    control: Separation,
    provenance: DirectionProvenance,
}

impl Direction {
    /// Writes `direction.json` and `direction.safetensors` into a folder, which is created if it
    /// does not exist. An existing direction is replaced once everything is written, and left
    /// unchanged if writing fails.
    ///
    /// # Errors
    /// If the direction would not read back, because it is empty or has a number that is not
    /// finite, or if the files cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), SaveResultError> {
        let bad = |reason| FILES.not_readable(reason);
        let description = Description {
            site: self.site.into(),
            method: self.method,
            norms: self.norms,
            separation: self.separation,
            control: self.control,
            provenance: self.provenance.clone(),
        };
        check(&self.vector).map_err(bad)?;
        let json = serde_json::to_string_pretty(&description);
        let json = json.map_err(|error| bad(error.to_string()))?;
        let read = serde_json::from_str::<Description>(&json);
        if !read.is_ok_and(|read| read == description) {
            let reason = "expected finite numbers in everything but the vector, found others";
            return Err(bad(reason.to_owned()));
        }
        let vector = self.vector.clone();
        let tensor = (VECTOR.to_owned(), vec![vector.len()], vector);
        FILES.save(folder.as_ref(), &json, &[tensor])
    }

    /// Reads a folder written by [`save`](Self::save).
    ///
    /// # Errors
    /// If the folder has no direction, or a file of it is damaged.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, LoadResultError> {
        let folder = folder.as_ref();
        let description: Description = FILES.description(folder)?;
        let bad = |error| FILES.wrong_description(folder, format!("site: {error}"));
        Ok(Self {
            vector: FILES.tensors(folder, read_vector)?,
            site: description.site.site().map_err(bad)?,
            method: description.method,
            norms: description.norms,
            separation: description.separation,
            control: description.control,
            provenance: description.provenance,
        })
    }
}

fn read_vector(tensors: &SafeTensors<'_>) -> Result<Vec<f32>, String> {
    let names = tensors.names();
    if names != [VECTOR] {
        return Err(format!("expected one tensor, `{VECTOR}`, found {names:?}"));
    }
    let tensor = tensors.tensor(VECTOR).map_err(|error| error.to_string())?;
    // Of any width, but a vector.
    let width: usize = tensor.shape().iter().product();
    let vector = finite_f32(VECTOR, &tensor, &[width])?;
    check(&vector)?;
    Ok(vector)
}

/// Checks that a vector is a direction.
fn check(vector: &[f32]) -> Result<(), String> {
    if let Some(feature) = vector.iter().position(|value| !value.is_finite()) {
        return Err(format!(
            "vector: expected finite numbers, found {} as feature {feature}",
            vector[feature]
        ));
    }
    if vector.iter().all(|value| *value == 0.0) {
        return Err("vector: expected at least one number other than 0, found none".to_owned());
    }
    Ok(())
}

//! A direction in a folder.

use std::fs;
use std::io;
use std::path::Path;

use burn_align_models::files::{Replacement, cut_off};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::{
    Direction, DirectionMethod, DirectionNorms, DirectionProvenance, LoadDirectionError,
    SaveDirectionError, Separation,
};
use crate::methods::saved_site::SavedSite;

const DESCRIPTION: &str = "direction.json";
const TENSORS: &str = "direction.safetensors";
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
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), SaveDirectionError> {
        let bad = |reason| SaveDirectionError::Direction { reason };
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
        let bytes: Vec<u8> = self.vector.iter().flat_map(|it| it.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![self.vector.len()], &bytes)
            .map_err(|error| bad(error.to_string()))?;
        let tensors = serialize([(VECTOR, view)], None).map_err(|error| bad(error.to_string()))?;
        let mut files = Replacement::new(folder.as_ref())?;
        files.write(TENSORS, &tensors)?;
        files.write(DESCRIPTION, format!("{json}\n").as_bytes())?;
        Ok(files.finish()?)
    }

    /// Reads a folder written by [`save`](Self::save).
    ///
    /// # Errors
    /// If the folder has no direction, or a file of it is damaged.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, LoadDirectionError> {
        let folder = folder.as_ref();
        let file = folder.join(DESCRIPTION);
        let json = match fs::read(&file) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = folder.to_owned();
                return Err(if cut_off(&folder, DESCRIPTION) {
                    LoadDirectionError::CutOff { folder }
                } else {
                    LoadDirectionError::NoDirection { folder }
                });
            }
            Err(cause) => return Err(LoadDirectionError::Io { file, cause }),
        };
        let bad = |reason| LoadDirectionError::File {
            file: file.clone(),
            reason,
        };
        let description: Description = serde_json::from_slice(&json)
            .map_err(|error| bad(format!("expected the description of a direction: {error}")))?;
        Ok(Self {
            vector: read_vector(&folder.join(TENSORS))?,
            site: description
                .site
                .site()
                .map_err(|error| bad(format!("site: {error}")))?,
            method: description.method,
            norms: description.norms,
            separation: description.separation,
            control: description.control,
            provenance: description.provenance,
        })
    }
}

fn read_vector(file: &Path) -> Result<Vec<f32>, LoadDirectionError> {
    let bad = |reason| LoadDirectionError::File {
        file: file.to_owned(),
        reason,
    };
    let bytes = fs::read(file).map_err(|cause| LoadDirectionError::Io {
        file: file.to_owned(),
        cause,
    })?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| bad(format!("expected safetensors: {error}")))?;
    let names = tensors.names();
    if names != [VECTOR] {
        return Err(bad(format!(
            "expected one tensor, `{VECTOR}`, found {names:?}"
        )));
    }
    let tensor = tensors
        .tensor(VECTOR)
        .map_err(|error| bad(error.to_string()))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape().len() != 1 {
        return Err(bad(format!(
            "tensor `{VECTOR}`: expected a vector of f32, found {} of shape {:?}",
            tensor.dtype(),
            tensor.shape()
        )));
    }
    let (values, _) = tensor.data().as_chunks::<4>();
    let vector: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
    check(&vector).map_err(bad)?;
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

//! Tensors by name, taken one after another until none is left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::LoadInterventionsError;
use crate::interventions::{Orthonormal, OrthonormalMap};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Values,
}

/// Its values, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    /// Floats that f32 represents exactly.
    F32(Vec<f32>),
    /// Integers.
    I64(Vec<i64>),
    /// A type that no parameter has.
    Other(String),
}

/// The tensors of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tensors {
    pub(super) file: PathBuf,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl Tensors {
    pub(super) fn new(file: &Path, tensors: BTreeMap<String, Stored>) -> Self {
        Self {
            file: file.to_owned(),
            tensors,
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A matrix or vector of floats. Sizes that are `None` may be any, but not 0.
    pub(crate) fn take<B: Backend, const D: usize>(
        &mut self,
        name: &str,
        expected: [Option<usize>; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D>, LoadInterventionsError> {
        let Stored { shape, values } = self.stored(name)?;
        let fits = |(found, expected): (&usize, &Option<usize>)| match expected {
            Some(expected) => found == expected,
            None => *found > 0,
        };
        if shape.len() != D || !shape.iter().zip(&expected).all(fits) {
            return Err(self.wrong_shape(name, &expected, shape));
        }
        let Values::F32(values) = values else {
            return Err(self.wrong_dtype(name, "f32, f16 or bf16", &values));
        };
        let data = TensorData::new(values, shape);
        Ok(Tensor::from_data(data, (device, DType::F32)))
    }

    /// A single float.
    pub(super) fn float(&mut self, name: &str) -> Result<f64, LoadInterventionsError> {
        let Stored { shape, values } = self.stored(name)?;
        match values {
            Values::F32(values) if values.len() == 1 => Ok(values[0].into()),
            Values::F32(_) => Err(self.wrong_shape(name, &[], shape)),
            _ => Err(self.wrong_dtype(name, "f32, f16 or bf16", &values)),
        }
    }

    /// One integer, if there is one with this name. It is not removed.
    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        match &self.tensors.get(name)?.values {
            Values::I64(values) if values.len() == 1 => Some(values[0]),
            _ => None,
        }
    }

    /// Integers: one, or a list.
    pub(super) fn integers(
        &mut self,
        name: &str,
    ) -> Result<(Vec<usize>, Vec<i64>), LoadInterventionsError> {
        let Stored { shape, values } = self.stored(name)?;
        match values {
            Values::I64(values) if shape.len() <= 1 => Ok((shape, values)),
            Values::I64(_) => Err(self.wrong_shape(name, &[None], shape)),
            _ => Err(self.wrong_dtype(name, "i64", &values)),
        }
    }

    /// A matrix with orthonormal columns, whose two tensors have these names.
    pub(crate) fn orthonormal<B: Backend>(
        &mut self,
        [parameter, base]: [&str; 2],
        expected: [Option<usize>; 2],
        map: impl FnOnce([usize; 2]) -> OrthonormalMap,
        device: &B::Device,
    ) -> Result<Orthonormal<B>, LoadInterventionsError> {
        let matrix = self.take::<B, 2>(parameter, expected, device)?;
        let [d, rank] = matrix.dims();
        let map = map([d, rank]);
        let square = matches!(
            map,
            OrthonormalMap::MatrixExponential | OrthonormalMap::Cayley
        );
        if rank > d || (square && rank != d) {
            let expected = if square {
                format!("[{d}, {d}], a square matrix for the map {map:?}")
            } else {
                format!("[{d}, rank] with a rank of at most {d}")
            };
            return Err(LoadInterventionsError::WrongShape {
                file: self.file.clone(),
                tensor: parameter.to_owned(),
                expected,
                found: vec![d, rank],
            });
        }
        let base = match map {
            OrthonormalMap::Retraction => None,
            _ => Some(self.take(base, [Some(d), Some(d)], device)?),
        };
        Ok(Orthonormal::from_parameter(matrix, base, map))
    }

    /// Checks that every tensor has been taken.
    pub(super) fn finish(self) -> Result<(), LoadInterventionsError> {
        if self.tensors.is_empty() {
            return Ok(());
        }
        Err(LoadInterventionsError::UnusedTensors {
            file: self.file,
            tensors: self.tensors.into_keys().collect(),
        })
    }

    fn stored(&mut self, name: &str) -> Result<Stored, LoadInterventionsError> {
        let stored = self.tensors.remove(name);
        stored.ok_or_else(|| LoadInterventionsError::MissingTensor {
            file: self.file.clone(),
            tensor: name.to_owned(),
        })
    }

    fn wrong_shape(
        &self,
        name: &str,
        expected: &[Option<usize>],
        found: Vec<usize>,
    ) -> LoadInterventionsError {
        let expected: Vec<String> = expected
            .iter()
            .map(|size| size.map_or("_".to_owned(), |size| size.to_string()))
            .collect();
        LoadInterventionsError::WrongShape {
            file: self.file.clone(),
            tensor: name.to_owned(),
            expected: format!("[{}]", expected.join(", ")),
            found,
        }
    }

    fn wrong_dtype(
        &self,
        name: &str,
        expected: &'static str,
        found: &Values,
    ) -> LoadInterventionsError {
        LoadInterventionsError::WrongDType {
            file: self.file.clone(),
            tensor: name.to_owned(),
            expected,
            found: match found {
                Values::F32(_) => "f32".to_owned(),
                Values::I64(_) => "i64".to_owned(),
                Values::Other(dtype) => dtype.clone(),
            },
        }
    }
}

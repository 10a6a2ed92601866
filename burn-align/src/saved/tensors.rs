//! Tensors of a file by name, taken one after another until none is left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend, bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::FileError;
use super::pickle::PickleError;
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
    /// Floats that f32 may have to round.
    F64(Vec<f64>),
    /// Integers.
    I64(Vec<i64>),
    /// A type that no parameter has.
    Other(String),
}

/// A tensor of floats in memory, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Array<const D: usize> {
    pub(crate) shape: [usize; D],
    pub(crate) values: Vec<f32>,
}

impl<const D: usize> Array<D> {
    pub(crate) fn tensor<B: Backend>(self, device: &B::Device) -> Tensor<B, D> {
        let data = TensorData::new(self.values, self.shape);
        Tensor::from_data(data, (device, DType::F32))
    }
}

/// The tensors of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tensors {
    pub(crate) file: PathBuf,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl Tensors {
    /// Reads a file, whose tensors this function finds.
    pub(crate) fn open<E: Into<PickleError>>(
        file: &Path,
        parse: impl FnOnce(&[u8]) -> Result<BTreeMap<String, Stored>, E>,
    ) -> Result<Self, FileError> {
        let path = || file.to_owned();
        let bytes = fs::read(file).map_err(|cause| FileError::Io {
            file: path(),
            cause,
        })?;
        let tensors = parse(&bytes).map_err(|error| match error.into() {
            PickleError::Forbidden(global) => FileError::ForbiddenGlobal {
                file: path(),
                global,
            },
            PickleError::Malformed(reason) => FileError::Unreadable {
                file: path(),
                reason,
            },
        })?;
        Ok(Self {
            file: path(),
            tensors,
        })
    }

    /// The same with all floats in f32, rounded as PyTorch rounds tensors that it loads into a
    /// module in f32.
    ///
    /// # Errors
    /// If a number is beyond the range of f32.
    pub(crate) fn rounded(mut self) -> Result<Self, FileError> {
        for (name, stored) in &mut self.tensors {
            let Values::F64(values) = &stored.values else {
                continue;
            };
            let mut finite = values.iter().filter(|value| value.is_finite());
            if let Some(found) = finite.find(|value| !(**value as f32).is_finite()) {
                return Err(FileError::Unreadable {
                    reason: format!(
                        "tensor `{name}`: expected numbers within the range of f32, found {found:e}"
                    ),
                    file: self.file,
                });
            }
            let rounded = values.iter().map(|value| *value as f32);
            stored.values = Values::F32(rounded.collect());
        }
        Ok(self)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether another file has the same tensor with this name, bit by bit, or also has none.
    pub(crate) fn has_same(&self, other: &Self, name: &str) -> bool {
        let [ours, theirs] = [self, other].map(|it| it.tensors.get(name));
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            return ours == theirs;
        };
        let is_same = match (&ours.values, &theirs.values) {
            (Values::F32(ours), Values::F32(theirs)) => {
                let mut pairs = ours.iter().zip(theirs);
                pairs.all(|(ours, theirs)| ours.to_bits() == theirs.to_bits())
            }
            (ours, theirs) => ours == theirs,
        };
        // As many numbers, then.
        is_same && ours.shape == theirs.shape
    }

    /// The names of the tensors that are left.
    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// The shape of a tensor; empty if it is not there.
    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        match self.tensors.get(name) {
            Some(stored) => &stored.shape,
            None => &[],
        }
    }

    /// Gives a tensor another name, if it is there.
    pub(crate) fn rename(&mut self, old: &str, new: &str) {
        if let Some(stored) = self.tensors.remove(old) {
            self.tensors.insert(new.to_owned(), stored);
        }
    }

    /// Leaves out a tensor that the computation does not need.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// A tensor of floats. Sizes that are `None` may be any, but not 0.
    pub(crate) fn take<const D: usize>(
        &mut self,
        name: &str,
        expected: [Option<usize>; D],
    ) -> Result<Array<D>, FileError> {
        let Stored { shape, values } = self.stored(name)?;
        let fits = |(found, expected): (&usize, &Option<usize>)| match expected {
            Some(expected) => found == expected,
            None => *found > 0,
        };
        let fitting = shape.iter().zip(&expected).all(fits);
        let Some(shape) = <[usize; D]>::try_from(&shape[..]).ok().filter(|_| fitting) else {
            return Err(self.wrong_shape(name, &expected, shape));
        };
        match values {
            Values::F32(values) => Ok(Array { shape, values }),
            other => Err(self.wrong_dtype(name, FLOATS, &other)),
        }
    }

    /// The same on a device.
    pub(crate) fn tensor<B: Backend, const D: usize>(
        &mut self,
        name: &str,
        expected: [Option<usize>; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D>, FileError> {
        Ok(self.take(name, expected)?.tensor(device))
    }

    /// Whether a tensor is there and has only finite floats.
    pub(crate) fn is_finite(&self, name: &str) -> bool {
        match self.tensors.get(name).map(|stored| &stored.values) {
            Some(Values::F32(values)) => values.iter().all(|value| value.is_finite()),
            _ => false,
        }
    }

    /// A single float.
    pub(super) fn float(&mut self, name: &str) -> Result<f64, FileError> {
        let Stored { shape, values } = self.stored(name)?;
        match values {
            Values::F32(values) if values.len() == 1 => Ok(values[0].into()),
            Values::F32(_) => Err(self.wrong_shape(name, &[], shape)),
            other => Err(self.wrong_dtype(name, FLOATS, &other)),
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
    pub(crate) fn integers(&mut self, name: &str) -> Result<(Vec<usize>, Vec<i64>), FileError> {
        let Stored { shape, values } = self.stored(name)?;
        match values {
            Values::I64(values) if shape.len() <= 1 => Ok((shape, values)),
            Values::I64(_) => Err(self.wrong_shape(name, &[None], shape)),
            other => Err(self.wrong_dtype(name, "i64", &other)),
        }
    }

    /// A matrix with orthonormal columns, whose two tensors have these names.
    pub(crate) fn orthonormal<B: Backend>(
        &mut self,
        [parameter, base]: [&str; 2],
        expected: [Option<usize>; 2],
        map: impl FnOnce([usize; 2]) -> OrthonormalMap,
        device: &B::Device,
    ) -> Result<Orthonormal<B>, FileError> {
        let matrix = self.tensor::<B, 2>(parameter, expected, device)?;
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
            return Err(FileError::WrongShape {
                file: self.file.clone(),
                tensor: parameter.to_owned(),
                expected,
                found: vec![d, rank],
            });
        }
        let base = match map {
            OrthonormalMap::Retraction => None,
            _ => Some(self.tensor(base, [Some(d), Some(d)], device)?),
        };
        Ok(Orthonormal::from_parameter(matrix, base, map))
    }

    /// Checks that every tensor has been taken.
    pub(crate) fn finish(self) -> Result<(), FileError> {
        if self.tensors.is_empty() {
            return Ok(());
        }
        Err(FileError::UnusedTensors {
            file: self.file,
            tensors: self.tensors.into_keys().collect(),
        })
    }

    fn stored(&mut self, name: &str) -> Result<Stored, FileError> {
        let stored = self.tensors.remove(name);
        stored.ok_or_else(|| FileError::MissingTensor {
            file: self.file.clone(),
            tensor: name.to_owned(),
        })
    }

    fn wrong_shape(&self, name: &str, expected: &[Option<usize>], found: Vec<usize>) -> FileError {
        let expected: Vec<String> = expected
            .iter()
            .map(|size| size.map_or("_".to_owned(), |size| size.to_string()))
            .collect();
        FileError::WrongShape {
            file: self.file.clone(),
            tensor: name.to_owned(),
            expected: format!("[{}]", expected.join(", ")),
            found,
        }
    }

    fn wrong_dtype(&self, name: &str, expected: &'static str, found: &Values) -> FileError {
        FileError::WrongDType {
            file: self.file.clone(),
            tensor: name.to_owned(),
            expected,
            found: match found {
                Values::F32(_) => "f32".to_owned(),
                Values::F64(_) => "f64".to_owned(),
                Values::I64(_) => "i64".to_owned(),
                Values::Other(dtype) => dtype.clone(),
            },
        }
    }
}

/// The floats that are read exactly.
const FLOATS: &str = "f32, f16 or bf16";

/// The tensors of a safetensors file by name, or what is wrong with it.
pub(crate) fn of_safetensors(bytes: &[u8]) -> Result<BTreeMap<String, Stored>, String> {
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|error| format!("expected safetensors: {error}"))?;
    let tensors = tensors.iter().map(|(name, view)| {
        let shape = view.shape().to_vec();
        let values = values(&view);
        (name.to_owned(), Stored { shape, values })
    });
    Ok(tensors.collect())
}

fn values(view: &TensorView<'_>) -> Values {
    fn each<T, const SIZE: usize>(data: &[u8], read: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
        let (elements, _) = data.as_chunks::<SIZE>();
        elements.iter().map(|element| read(*element)).collect()
    }
    let data = view.data();
    match view.dtype() {
        Dtype::F64 => Values::F64(each(data, f64::from_le_bytes)),
        Dtype::F32 => Values::F32(each(data, f32::from_le_bytes)),
        Dtype::F16 => Values::F32(each(data, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Values::F32(each(data, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::I64 => Values::I64(each(data, i64::from_le_bytes)),
        Dtype::I32 => Values::I64(each(data, |b| i32::from_le_bytes(b).into())),
        other => Values::Other(other.to_string()),
    }
}

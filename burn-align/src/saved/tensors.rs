//! Tensors of a file by name, taken one after another until none is left.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend, bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

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

/// Why the tensors of a file cannot be used. What is loaded has an error with the same variants, in
/// its own words.
#[derive(Debug)]
pub(crate) enum TensorError {
    Io {
        file: PathBuf,
        cause: io::Error,
    },
    Unreadable {
        file: PathBuf,
        reason: String,
    },
    ForbiddenGlobal {
        file: PathBuf,
        global: String,
    },
    MissingTensor {
        file: PathBuf,
        tensor: String,
    },
    UnusedTensors {
        file: PathBuf,
        tensors: Vec<String>,
    },
    WrongShape {
        file: PathBuf,
        tensor: String,
        expected: String,
        found: Vec<usize>,
    },
    WrongDType {
        file: PathBuf,
        tensor: String,
        expected: &'static str,
        found: String,
    },
}

/// Gives an error the variants of a [`TensorError`].
macro_rules! from_tensor_error {
    ($error:ident) => {
        $crate::saved::from_tensor_error! {
            $error:
            Io { file, cause }
            Unreadable { file, reason }
            ForbiddenGlobal { file, global }
            MissingTensor { file, tensor }
            UnusedTensors { file, tensors }
            WrongShape { file, tensor, expected, found }
            WrongDType { file, tensor, expected, found }
        }
    };
    ($error:ident: $($variant:ident { $($field:ident),* })*) => {
        impl From<$crate::saved::TensorError> for $error {
            fn from(error: $crate::saved::TensorError) -> Self {
                match error {
                    $($crate::saved::TensorError::$variant { $($field),* } => {
                        Self::$variant { $($field),* }
                    })*
                }
            }
        }
    };
}
pub(crate) use from_tensor_error;

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
    ) -> Result<Self, TensorError> {
        let path = || file.to_owned();
        let bytes = fs::read(file).map_err(|cause| TensorError::Io {
            file: path(),
            cause,
        })?;
        let tensors = parse(&bytes).map_err(|error| match error.into() {
            PickleError::Forbidden(global) => TensorError::ForbiddenGlobal {
                file: path(),
                global,
            },
            PickleError::Malformed(reason) => TensorError::Unreadable {
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
    pub(crate) fn rounded(mut self) -> Result<Self, TensorError> {
        for (name, stored) in &mut self.tensors {
            let Values::F64(values) = &stored.values else {
                continue;
            };
            let mut finite = values.iter().filter(|value| value.is_finite());
            if let Some(found) = finite.find(|value| !(**value as f32).is_finite()) {
                return Err(TensorError::Unreadable {
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
    ) -> Result<Array<D>, TensorError> {
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
    ) -> Result<Tensor<B, D>, TensorError> {
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
    pub(super) fn float(&mut self, name: &str) -> Result<f64, TensorError> {
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
    pub(crate) fn integers(&mut self, name: &str) -> Result<(Vec<usize>, Vec<i64>), TensorError> {
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
    ) -> Result<Orthonormal<B>, TensorError> {
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
            return Err(TensorError::WrongShape {
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
    pub(crate) fn finish(self) -> Result<(), TensorError> {
        if self.tensors.is_empty() {
            return Ok(());
        }
        Err(TensorError::UnusedTensors {
            file: self.file,
            tensors: self.tensors.into_keys().collect(),
        })
    }

    fn stored(&mut self, name: &str) -> Result<Stored, TensorError> {
        let stored = self.tensors.remove(name);
        stored.ok_or_else(|| TensorError::MissingTensor {
            file: self.file.clone(),
            tensor: name.to_owned(),
        })
    }

    fn wrong_shape(
        &self,
        name: &str,
        expected: &[Option<usize>],
        found: Vec<usize>,
    ) -> TensorError {
        let expected: Vec<String> = expected
            .iter()
            .map(|size| size.map_or("_".to_owned(), |size| size.to_string()))
            .collect();
        TensorError::WrongShape {
            file: self.file.clone(),
            tensor: name.to_owned(),
            expected: format!("[{}]", expected.join(", ")),
            found,
        }
    }

    fn wrong_dtype(&self, name: &str, expected: &'static str, found: &Values) -> TensorError {
        TensorError::WrongDType {
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

//! The tensors of a dictionary's files, taken one after another until none is left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend, bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{DictionaryError, npz};
use crate::saved::{PickleError, Stored, Values, state_dict};

/// The tensors of a file.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) file: PathBuf,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor in memory, row by row.
#[derive(Clone, Debug)]
pub(super) struct Array<const D: usize> {
    pub(super) shape: [usize; D],
    pub(super) values: Vec<f32>,
}

impl<const D: usize> Array<D> {
    pub(super) fn tensor<B: Backend>(self, device: &B::Device) -> Tensor<B, D> {
        let data = TensorData::new(self.values, self.shape);
        Tensor::from_data(data, (device, DType::F32))
    }
}

impl Array<1> {
    /// A vector of one value.
    pub(super) fn full(count: usize, value: f32) -> Self {
        Self {
            shape: [count],
            values: vec![value; count],
        }
    }
}

impl Array<2> {
    /// Rows and columns exchanged.
    pub(super) fn transposed(self) -> Self {
        /// Edge of the blocks, so that both sides stay in the cache.
        const BLOCK: usize = 32;
        let [rows, columns] = self.shape;
        let mut values = vec![0.0; self.values.len()];
        for top in (0..rows).step_by(BLOCK) {
            for left in (0..columns).step_by(BLOCK) {
                for row in top..rows.min(top + BLOCK) {
                    for column in left..columns.min(left + BLOCK) {
                        values[column * rows + row] = self.values[row * columns + column];
                    }
                }
            }
        }
        Self {
            shape: [columns, rows],
            values,
        }
    }

    /// Every value multiplied.
    pub(super) fn times(mut self, factor: f32) -> Self {
        self.values.iter_mut().for_each(|value| *value *= factor);
        self
    }
}

impl Array<3> {
    /// `[a, b, c]` → `[b, a, c]`, without the first `skipped` of `b`.
    pub(super) fn by_middle(self, skipped: usize) -> Self {
        let [outer, middle, inner] = self.shape;
        let mut values = Vec::with_capacity(self.values.len());
        for at in skipped..middle {
            for from in 0..outer {
                let start = (from * middle + at) * inner;
                values.extend_from_slice(&self.values[start..start + inner]);
            }
        }
        Self {
            shape: [middle.saturating_sub(skipped), outer, inner],
            values,
        }
    }
}

impl Weights {
    /// Reads a file: safetensors, an archive of NumPy, or a state dict of PyTorch.
    pub(super) fn read(file: &Path) -> Result<Self, DictionaryError> {
        let bytes = fs::read(file).map_err(|cause| DictionaryError::Io {
            file: file.to_owned(),
            cause,
        })?;
        let unreadable = |reason| DictionaryError::Unreadable {
            file: file.to_owned(),
            reason,
        };
        let extension = file.extension().and_then(|extension| extension.to_str());
        let tensors = match extension {
            Some("safetensors") => of_safetensors(&bytes).map_err(unreadable)?,
            Some("npz") => npz::read(&bytes).map_err(unreadable)?,
            _ => state_dict(&bytes).map_err(|error| match error {
                PickleError::Forbidden(global) => DictionaryError::ForbiddenGlobal {
                    file: file.to_owned(),
                    global,
                },
                PickleError::Malformed(reason) => unreadable(reason),
            })?,
        };
        Ok(Self {
            file: file.to_owned(),
            tensors,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of the tensors that are left.
    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// The shape of a tensor; empty if it is not there.
    pub(super) fn shape(&self, name: &str) -> &[usize] {
        match self.tensors.get(name) {
            Some(stored) => &stored.shape,
            None => &[],
        }
    }

    /// Gives a tensor another name, if it is there.
    pub(super) fn rename(&mut self, old: &str, new: &str) {
        if let Some(stored) = self.tensors.remove(old) {
            self.tensors.insert(new.to_owned(), stored);
        }
    }

    /// Leaves out a tensor that the computation does not need.
    pub(super) fn ignore(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// A tensor of floats. Sizes that are `None` may be any, but not 0.
    pub(super) fn take<const D: usize>(
        &mut self,
        name: &str,
        expected: [Option<usize>; D],
    ) -> Result<Array<D>, DictionaryError> {
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
            Values::I64(_) => Err(self.wrong_dtype(name, "i64".to_owned())),
            Values::Other(dtype) => Err(self.wrong_dtype(name, dtype)),
        }
    }

    /// A float for each feature: a vector, or one number for all.
    pub(super) fn per_feature(
        &mut self,
        name: &str,
        features: usize,
    ) -> Result<Array<1>, DictionaryError> {
        match self.shape(name) {
            [] if self.has(name) => {
                let value = self.take::<0>(name, [])?.values[0];
                Ok(Array::full(features, value))
            }
            [1] if features > 1 => {
                let value = self.take(name, [Some(1)])?.values[0];
                Ok(Array::full(features, value))
            }
            _ => self.take(name, [Some(features)]),
        }
    }

    /// One integer that is not negative.
    pub(super) fn whole_number(&mut self, name: &str) -> Result<usize, DictionaryError> {
        let Stored { shape, values } = self.stored(name)?;
        let number = match &values {
            _ if shape.iter().any(|size| *size != 1) => None,
            Values::I64(values) => values.first().and_then(|n| usize::try_from(*n).ok()),
            _ => None,
        };
        number.ok_or_else(|| DictionaryError::UnsupportedTensor {
            file: self.file.clone(),
            tensor: name.to_owned(),
            reason: format!("expected a whole number, found shape {shape:?}"),
        })
    }

    /// Checks that every tensor has been taken.
    pub(super) fn finish(self) -> Result<(), DictionaryError> {
        match self.tensors.is_empty() {
            true => Ok(()),
            false => Err(DictionaryError::UnusedTensors {
                file: self.file,
                tensors: self.tensors.into_keys().collect(),
            }),
        }
    }

    fn stored(&mut self, name: &str) -> Result<Stored, DictionaryError> {
        let stored = self.tensors.remove(name);
        stored.ok_or_else(|| DictionaryError::MissingTensor {
            file: self.file.clone(),
            tensor: name.to_owned(),
        })
    }

    fn wrong_shape(
        &self,
        name: &str,
        expected: &[Option<usize>],
        found: Vec<usize>,
    ) -> DictionaryError {
        let expected: Vec<String> = expected
            .iter()
            .map(|size| size.map_or("_".to_owned(), |size| size.to_string()))
            .collect();
        DictionaryError::WrongShape {
            file: self.file.clone(),
            tensor: name.to_owned(),
            expected: format!("[{}]", expected.join(", ")),
            found,
        }
    }

    fn wrong_dtype(&self, name: &str, found: String) -> DictionaryError {
        DictionaryError::WrongDType {
            file: self.file.clone(),
            tensor: name.to_owned(),
            expected: "f32, f16 or bf16",
            found,
        }
    }
}

fn of_safetensors(bytes: &[u8]) -> Result<BTreeMap<String, Stored>, String> {
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
        Dtype::F32 => Values::F32(each(data, f32::from_le_bytes)),
        Dtype::F16 => Values::F32(each(data, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Values::F32(each(data, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => Values::F32(each(data, |b| f64::from_le_bytes(b) as f32)),
        Dtype::I64 => Values::I64(each(data, i64::from_le_bytes)),
        Dtype::I32 => Values::I64(each(data, |b| i32::from_le_bytes(b).into())),
        other => Values::Other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::Array;

    #[test]
    fn axes_are_exchanged() {
        let matrix = Array {
            shape: [33, 70],
            values: (0..33 * 70).map(|i| i as f32).collect(),
        };
        let transposed = matrix.clone().transposed();
        assert_eq!(transposed.shape, [70, 33]);
        assert_eq!(transposed.values[69 * 33 + 32], matrix.values[32 * 70 + 69]);
        assert_eq!(transposed.transposed().values, matrix.values);
        let cube = Array {
            shape: [2, 3, 1],
            values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        };
        let by_middle = cube.by_middle(1);
        assert_eq!(by_middle.shape, [2, 2, 1]);
        assert_eq!(by_middle.values, [1.0, 4.0, 2.0, 5.0]);
    }
}

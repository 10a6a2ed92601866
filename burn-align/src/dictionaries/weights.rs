//! The tensors of a dictionary's files, and arrays in the layout of this crate.

use std::path::Path;

use super::{DictionaryError, npz};
use crate::saved::{of_safetensors, state_dict};

pub(super) use crate::saved::{Array, Tensors as Weights};

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
    /// Reads a file: safetensors, an archive of NumPy, or a state dict of PyTorch. Floats in f64
    /// are rounded to f32: publishers' own loaders copy them into modules in f32.
    pub(super) fn read(file: &Path) -> Result<Self, DictionaryError> {
        let extension = file.extension().and_then(|extension| extension.to_str());
        let read = match extension {
            Some("safetensors") => Self::open(file, of_safetensors)?,
            Some("npz") => Self::open(file, npz::read)?,
            _ => Self::open(file, state_dict)?,
        };
        Ok(read.rounded()?)
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
            _ => Ok(self.take(name, [Some(features)])?),
        }
    }

    /// One integer that is not negative.
    pub(super) fn whole_number(&mut self, name: &str) -> Result<usize, DictionaryError> {
        let (_, numbers) = self.integers(name)?;
        let number = match numbers[..] {
            [number] => usize::try_from(number).ok(),
            _ => None,
        };
        number.ok_or_else(|| DictionaryError::UnsupportedTensor {
            file: self.file.clone(),
            tensor: name.to_owned(),
            reason: format!("expected a whole number, found {numbers:?}"),
        })
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

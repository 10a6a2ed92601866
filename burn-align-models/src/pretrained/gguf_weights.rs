//! The tensors of a GGUF file as the weights of a Hugging Face checkpoint.

use super::gguf::architecture::{Architecture, Role, Rows};
use super::gguf::{Gguf, GgufError, GgufTensor};
use crate::quants::{BlockFormat, QuantizedMatrix, dequantize};

/// A tensor of a GGUF file, in the layout of a Hugging Face checkpoint.
pub(super) struct GgufWeight {
    tensor: GgufTensor,
    /// `None` if the type can't be dequantised.
    format: Option<BlockFormat>,
    rows: Rows,
    transposed: bool,
}

impl GgufWeight {
    /// All tensors of a file that belong to the model, by their Hugging Face names; an unknown one
    /// keeps its name.
    pub(super) fn all(gguf: &Gguf) -> Result<Vec<(String, Self)>, GgufError> {
        let architecture = Architecture::of(gguf)?;
        let mut all = Vec::new();
        for tensor in gguf.tensors() {
            let (name, rows, transposed) = match architecture.tensor(gguf, &tensor.name)? {
                Some(Role::Configuration) => continue,
                Some(Role::Tensor {
                    name,
                    rows,
                    transposed,
                }) => (name, rows, transposed),
                None => (tensor.name.clone(), Rows::AsTheyAre, false),
            };
            if let Rows::Paired { heads } = rows {
                let rows = tensor.shape.first().copied().unwrap_or(0);
                if rows == 0 || !rows.is_multiple_of(heads.saturating_mul(2)) {
                    return Err(GgufError::WrongTensor {
                        tensor: tensor.name.clone(),
                        expected: format!("rows for {heads} heads of an even number of features"),
                        found: format!("{rows} rows"),
                    });
                }
            }
            if transposed && tensor.shape.len() != 2 {
                return Err(GgufError::WrongTensor {
                    tensor: tensor.name.clone(),
                    expected: "a matrix".to_owned(),
                    found: format!("{:?}", tensor.shape),
                });
            }
            let weight = Self {
                tensor: tensor.clone(),
                format: BlockFormat::from_ggml_type(tensor.ggml_type.id()),
                rows,
                transposed,
            };
            all.push((name, weight));
        }
        Ok(all)
    }

    /// The shape in a Hugging Face checkpoint.
    pub(super) fn shape(&self) -> Vec<usize> {
        let mut shape = self.tensor.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    pub(super) fn is_readable(&self) -> bool {
        self.format.is_some()
    }

    /// The matrix in its stored form, `[d_output, d_input]`, with its rows in Hugging Face's order;
    /// `None` if it is not a matrix, or already f32.
    pub(super) fn matrix(&self) -> Option<QuantizedMatrix> {
        let format = self.format.filter(|format| *format != BlockFormat::F32)?;
        let [rows, cols] = self.tensor.shape[..] else {
            return None;
        };
        let matrix = QuantizedMatrix::new(format, [rows, cols], self.tensor.bytes.clone()).ok()?;
        Some(match self.rows.order(rows) {
            Some(order) => matrix.select_rows(&order),
            None => matrix,
        })
    }

    /// The name of its storage type.
    pub(super) fn type_name(&self) -> &str {
        self.tensor.ggml_type.name()
    }

    pub(super) fn bytes(&self) -> usize {
        self.tensor.bytes.as_ref().len()
    }

    /// The numbers, in row-major order.
    ///
    /// # Panics
    /// Unless it [can be read](Self::is_readable).
    pub(super) fn read(&self) -> Vec<f32> {
        let format = self.format.expect("a type that can be read");
        let count: usize = self.tensor.shape.iter().product();
        let mut numbers = vec![0.0; count];
        dequantize(format, self.tensor.bytes.as_ref(), &mut numbers);
        let rows = self.tensor.shape.first().copied().unwrap_or(0);
        if let Some(order) = self.rows.order(rows) {
            let width = count / rows;
            let row = |from: usize| numbers[from * width..][..width].iter().copied();
            numbers = order.into_iter().flat_map(row).collect();
        }
        if self.transposed {
            let [rows, cols] = self.tensor.shape[..] else {
                unreachable!("checked when the file was opened");
            };
            let mut turned = vec![0.0; count];
            for (row, numbers) in numbers.chunks(cols).enumerate() {
                for (col, number) in numbers.iter().enumerate() {
                    turned[col * rows + row] = *number;
                }
            }
            numbers = turned;
        }
        numbers
    }
}

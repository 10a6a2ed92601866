//! The tensors of a GGUF file as the weights of a Hugging Face checkpoint.

use super::gguf::architecture::{Architecture, Role, Target};
use super::gguf::{Gguf, GgufError, GgufTensor};
use crate::quants::{BlockFormat, QuantizedMatrix, dequantize};

/// A tensor of a GGUF file, or some of its rows, in the layout of a Hugging Face checkpoint.
pub(super) struct GgufWeight {
    tensor: GgufTensor,
    /// `None` if the type can't be dequantised.
    format: Option<BlockFormat>,
    target: Target,
}

impl GgufWeight {
    /// All tensors of a file that belong to the model, by their Hugging Face names; an unknown one
    /// keeps its name.
    pub(super) fn all(gguf: &Gguf) -> Result<Vec<(String, Self)>, GgufError> {
        let architecture = Architecture::of(gguf)?;
        let mut all = Vec::new();
        for tensor in gguf.tensors() {
            let targets = match architecture.tensor(gguf, &tensor.name)? {
                Some(Role::Configuration) => continue,
                Some(Role::Tensors(targets)) => targets,
                None => vec![Target::named(tensor.name.clone())],
            };
            for target in targets {
                let weight = Self::of(tensor, target)?;
                all.push((weight.target.name.clone(), weight));
            }
        }
        Ok(all)
    }

    fn of(tensor: &GgufTensor, target: Target) -> Result<Self, GgufError> {
        let wrong = |expected: String, found: String| GgufError::WrongTensor {
            tensor: tensor.name.clone(),
            expected,
            found,
        };
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if let Some(expected) = target.rows.expected(rows) {
            return Err(wrong(expected, format!("{rows} rows")));
        }
        if target.transposed && tensor.shape.len() != 2 {
            return Err(wrong("a matrix".to_owned(), format!("{:?}", tensor.shape)));
        }
        Ok(Self {
            tensor: tensor.clone(),
            format: BlockFormat::from_ggml_type(tensor.ggml_type.id()),
            target,
        })
    }

    /// The shape in a Hugging Face checkpoint.
    pub(super) fn shape(&self) -> Vec<usize> {
        let mut shape = self.tensor.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = self.target.rows.count(*rows);
        }
        if self.target.transposed {
            shape.reverse();
        }
        shape
    }

    pub(super) fn is_readable(&self) -> bool {
        self.format.is_some()
    }

    /// The matrix in its stored form, `[d_output, d_input]`, with its rows in Hugging Face's order;
    /// `None` if it is not a matrix, already f32, or has other numbers than the file.
    pub(super) fn matrix(&self) -> Option<QuantizedMatrix> {
        let format = self.format.filter(|format| *format != BlockFormat::F32)?;
        if self.target.offset != 0.0 {
            return None;
        }
        let [rows, cols] = self.tensor.shape[..] else {
            return None;
        };
        let matrix = QuantizedMatrix::new(format, [rows, cols], self.tensor.bytes.clone()).ok()?;
        Some(match self.target.rows.order(rows) {
            Some(order) => matrix.select_rows(&order),
            None => matrix,
        })
    }

    /// Tells the system that the file's bytes are not needed for now.
    pub(super) fn release(&self) {
        self.tensor.bytes.release();
    }

    /// The name of its storage type.
    pub(super) fn type_name(&self) -> &str {
        self.tensor.ggml_type.name()
    }

    /// The number of its bytes in the file.
    pub(super) fn bytes(&self) -> usize {
        let bytes = self.tensor.bytes.as_ref().len();
        match self.tensor.shape.first() {
            Some(rows) => bytes / rows * self.target.rows.count(*rows),
            None => bytes,
        }
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
        if let Some(order) = self.target.rows.order(rows) {
            let width = count / rows;
            let row = |from: usize| numbers[from * width..][..width].iter().copied();
            numbers = order.into_iter().flat_map(row).collect();
        }
        if self.target.offset != 0.0 {
            for number in &mut numbers {
                *number += self.target.offset;
            }
        }
        if self.target.transposed {
            let [cols, rows] = self.shape()[..] else {
                unreachable!("checked when the file was opened");
            };
            let mut turned = vec![0.0; numbers.len()];
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

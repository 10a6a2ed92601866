//! A matrix that stays as it is stored.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::{BlockFormat, widen_part};

/// A matrix in blocks along its rows, or a part of one: a handle to bytes in memory or in a mapped
/// file, cheap to clone.
///
/// # Shapes
/// - of a projection's weight in a GGUF file: `[d_output, d_input]`
/// - of a token embedding: `[vocab, d_model]`
#[derive(Clone)]
pub struct QuantizedMatrix {
    format: BlockFormat,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Of the bytes, those of the first row.
    first: usize,
    rows: usize,
    /// Elements of a row as it is stored.
    stored: usize,
    /// Those that belong to this part.
    cols: Range<usize>,
}

/// Bytes that are not a matrix of the format and the shape that they are said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizedMatrixError {
    /// Rows end within a block.
    #[error(
        "rows of {cols} elements are not whole blocks of {format}, of {} elements each; \
         store the matrix in a format with shorter blocks, such as Q8_0",
        format.block_elements()
    )]
    PartialBlock {
        /// How the elements are said to be stored.
        format: BlockFormat,
        /// Elements of a row.
        cols: usize,
    },
    /// Too few bytes, or too many.
    #[error("a matrix of {rows} × {cols} in {format} has {expected} bytes, found {found}")]
    WrongLength {
        /// How the elements are said to be stored.
        format: BlockFormat,
        /// Rows.
        rows: usize,
        /// Elements of a row.
        cols: usize,
        /// Bytes of such a matrix.
        expected: u128,
        /// Bytes that there are.
        found: usize,
    },
}

impl QuantizedMatrix {
    /// The matrix `[rows, cols]` that these bytes are: a `Vec<u8>`, or a part of a mapped file.
    ///
    /// # Errors
    /// If rows are not whole blocks, or there are not as many bytes.
    pub fn new(
        format: BlockFormat,
        [rows, cols]: [usize; 2],
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    ) -> Result<Self, QuantizedMatrixError> {
        if !cols.is_multiple_of(format.block_elements()) {
            return Err(QuantizedMatrixError::PartialBlock { format, cols });
        }
        let blocks = rows as u128 * (cols / format.block_elements()) as u128;
        let expected = blocks * format.block_bytes() as u128;
        let found = bytes.as_ref().len();
        if expected != found as u128 {
            return Err(QuantizedMatrixError::WrongLength {
                format,
                rows,
                cols,
                expected,
                found,
            });
        }
        Ok(Self {
            format,
            bytes: Arc::new(bytes),
            first: 0,
            rows,
            stored: cols,
            cols: 0..cols,
        })
    }

    /// How the elements are stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// `[rows, cols]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.cols.len()]
    }

    /// Some of the rows, without a copy.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of {}",
            self.rows
        );
        Self {
            first: self.first + rows.start * self.row_bytes(),
            rows: rows.len(),
            ..self.clone()
        }
    }

    /// Some of the columns, without a copy; they need not begin or end with a block.
    ///
    /// # Panics
    /// If there are no such columns.
    pub fn cols(&self, cols: Range<usize>) -> Self {
        assert!(
            cols.start <= cols.end && cols.end <= self.cols.len(),
            "columns {cols:?} of {}",
            self.cols.len()
        );
        let before = self.cols.start;
        Self {
            cols: before + cols.start..before + cols.end,
            ..self.clone()
        }
    }

    /// A copy of rows, as they are stored, in this order: those of LLaMA's queries and keys are in
    /// another one in GGUF files.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let size = self.row_bytes();
        let mut copy = Vec::with_capacity(rows.len() * size);
        let all = self.blocks();
        for row in rows {
            assert!(*row < self.rows, "row {row} of {}", self.rows);
            copy.extend_from_slice(&all[row * size..][..size]);
        }
        Self {
            bytes: Arc::new(copy),
            first: 0,
            rows: rows.len(),
            ..self.clone()
        }
    }

    /// The elements in f32, row by row.
    pub fn dequantize(&self) -> Vec<f32> {
        let [rows, cols] = self.dims();
        let mut elements = vec![0.0; rows * cols];
        if cols > 0 {
            let rows = elements.chunks_mut(cols).enumerate();
            rows.for_each(|(row, out)| self.read_row(row, out));
        }
        elements
    }

    /// The elements in a tensor `[rows, cols]`, rounded to this dtype, a float.
    pub fn to_tensor<B: Backend>(&self, device: &B::Device, dtype: DType) -> Tensor<B, 2> {
        let data = TensorData::new(self.dequantize(), self.dims()).convert_dtype(dtype);
        Tensor::from_data(data, (device, dtype))
    }

    /// The elements in a tensor `[cols, rows]`, rounded to this dtype, a float.
    pub(crate) fn to_transposed_tensor<B: Backend>(
        &self,
        device: &B::Device,
        dtype: DType,
    ) -> Tensor<B, 2> {
        /// So many neighbours are written before the next ones, which are far away.
        const TILE: usize = 16;
        let [rows, cols] = self.dims();
        let mut elements = vec![0.0; cols * rows];
        let mut room = vec![0.0; TILE * cols];
        for first in (0..rows).step_by(TILE) {
            let count = TILE.min(rows - first);
            for row in 0..count {
                self.read_row(first + row, &mut room[row * cols..][..cols]);
            }
            for col in 0..cols {
                let to = &mut elements[col * rows + first..][..count];
                for (row, to) in to.iter_mut().enumerate() {
                    *to = room[row * cols + col];
                }
            }
        }
        let data = TensorData::new(elements, [cols, rows]).convert_dtype(dtype);
        Tensor::from_data(data, (device, dtype))
    }

    /// Writes the elements of a row, in f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` does not have as many elements as it.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols.len(), "elements of a row");
        let blocks = &self.blocks()[row * self.row_bytes()..];
        widen_part(self.format, blocks, self.cols.start, out);
    }

    /// From the first row on, whole rows as they are stored.
    pub(crate) fn blocks(&self) -> &[u8] {
        let all: &[u8] = (*self.bytes).as_ref();
        &all[self.first..][..self.rows * self.row_bytes()]
    }

    /// Where the first element is, and from a row to the next, counted in elements.
    pub(crate) fn layout(&self) -> (usize, usize) {
        (self.cols.start, self.stored)
    }

    fn row_bytes(&self) -> usize {
        self.stored / self.format.block_elements() * self.format.block_bytes()
    }
}

impl fmt::Debug for QuantizedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.dims();
        write!(f, "QuantizedMatrix({rows} × {cols}, {})", self.format)
    }
}

//! A matrix that stays in its stored form.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::{BlockFormat, widen_part};

/// A matrix in blocks along its rows, or a part of one: a handle to bytes in memory or in a mapped
/// file, so cloning is cheap.
///
/// # Shapes
/// - a projection's weight in a GGUF file: `[d_output, d_input]`
/// - of a token embedding: `[vocab, d_model]`
#[derive(Clone)]
pub struct QuantizedMatrix {
    format: BlockFormat,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Offset of the first row in the bytes.
    first: usize,
    rows: usize,
    /// Elements per stored row.
    stored: usize,
    /// The columns that belong to this part.
    cols: Range<usize>,
}

/// Bytes that do not match the given format and shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizedMatrixError {
    /// Rows that end within a block.
    #[error(
        "rows of {cols} elements are not whole blocks of {format}, of {} elements each; \
         store the matrix in a format with shorter blocks, such as Q8_0",
        format.block_elements()
    )]
    PartialBlock {
        /// The format.
        format: BlockFormat,
        /// Elements of a row.
        cols: usize,
    },
    /// Too few bytes, or too many.
    #[error("expected {expected} bytes for a matrix of {rows} × {cols} in {format}, found {found}")]
    WrongLength {
        /// The format.
        format: BlockFormat,
        /// Rows.
        rows: usize,
        /// Elements of a row.
        cols: usize,
        /// Bytes of a matrix of this format and shape.
        expected: u128,
        /// Bytes found.
        found: usize,
    },
}

impl QuantizedMatrix {
    /// A matrix `[rows, cols]` from its bytes: a `Vec<u8>`, or a part of a mapped file.
    ///
    /// # Errors
    /// If rows are not whole blocks, or the number of bytes is wrong.
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
    /// If the rows are out of range.
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
    /// If the columns are out of range.
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

    /// A copy of rows in this order, in their stored form: GGUF files hold the rows of LLaMA's
    /// queries and keys in a different order.
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
    pub fn to_transposed_tensor<B: Backend>(
        &self,
        device: &B::Device,
        dtype: DType,
    ) -> Tensor<B, 2> {
        let [rows, cols] = self.dims();
        let data = TensorData::new(self.dequantize_transposed(), [cols, rows]);
        Tensor::from_data(data.convert_dtype(dtype), (device, dtype))
    }

    /// The elements in f32, column by column.
    fn dequantize_transposed(&self) -> Vec<f32> {
        /// This many neighbours are written before moving on to the next ones, which are far away.
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
        elements
    }

    /// Writes the elements of a row, in f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` does not have its number of elements.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols.len(), "elements of a row");
        let blocks = &self.blocks()[row * self.row_bytes()..];
        widen_part(self.format, blocks, self.cols.start, out);
    }

    /// The blocks of the stored rows, one row after another: of some of the columns, too, they are
    /// whole rows. [`layout`](Self::layout) tells where the elements are.
    pub fn blocks(&self) -> &[u8] {
        let all: &[u8] = (*self.bytes).as_ref();
        &all[self.first..][..self.rows * self.row_bytes()]
    }

    /// Where the elements are in [`blocks`](Self::blocks): the offset of the first one, which need
    /// not begin a block, and the stride between rows, in elements.
    pub fn layout(&self) -> (usize, usize) {
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

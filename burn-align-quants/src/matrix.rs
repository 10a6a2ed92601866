//! A matrix that stays in its stored form.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::{BlockFormat, LANES, LONGEST_BYTES, widen_part};

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
    order: Order,
    /// The row of the bytes that is the first one of this part.
    first: usize,
    rows: usize,
    /// Elements per stored row.
    stored: usize,
    /// The columns that belong to this part.
    cols: Range<usize>,
}

/// How the rows lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// One after another, as in a GGUF file.
    Rows,
    /// In panels.
    Panels,
}

/// The elements of a matrix in blocks, from one of them on.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    format: BlockFormat,
    order: Order,
    bytes: &'a [u8],
    /// Elements per stored row.
    stored: usize,
    /// The number of the first element among those of the stored rows: it need not begin a block.
    first: usize,
}

/// Whole panels of a matrix, from one of its elements on.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    /// The format.
    pub format: BlockFormat,
    /// From the block that holds the element on, of the first panel.
    pub bytes: &'a [u8],
    /// Elements of that block before it.
    pub skip: usize,
    /// Bytes from the panels of 16 rows to those of the next 16.
    pub stride: usize,
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
            order: Order::Rows,
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
            first: self.first + rows.start,
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
        let mut copy = vec![0; rows.len() * self.row_bytes()];
        for (row, copy) in rows.iter().zip(copy.chunks_mut(self.row_bytes().max(1))) {
            self.copy_row(*row, copy);
        }
        Self {
            bytes: Arc::new(copy),
            order: Order::Rows,
            first: 0,
            rows: rows.len(),
            ..self.clone()
        }
    }

    /// The same matrix in the order in which products of a few rows read it fastest: a copy whose
    /// rows lie side by side, [`LANES`] at a time, where its format [can](BlockFormat::on_panels).
    pub fn in_panels(&self) -> Self {
        let (elements, size) = (self.format.block_elements(), self.format.block_bytes());
        let per_row = self.stored / elements;
        let can = self.order == Order::Rows && per_row > 0;
        let Some(parts) = self.format.parts().filter(|_| can) else {
            return self.clone();
        };
        let stored = &self.elements().bytes[self.first * self.row_bytes()..];
        let mut copy = vec![0; self.rows.next_multiple_of(LANES) * self.row_bytes()];
        for row in 0..self.rows {
            let blocks = stored[row * self.row_bytes()..].chunks_exact(size);
            let panels = &mut copy[row / LANES * per_row * LANES * size..];
            let panels = panels.chunks_exact_mut(LANES * size).take(per_row);
            for (block, panel) in blocks.zip(panels) {
                parts.put(block, row % LANES, panel);
            }
        }
        Self {
            bytes: Arc::new(copy),
            order: Order::Panels,
            first: 0,
            ..self.clone()
        }
    }

    /// Copies the blocks of a stored row.
    fn copy_row(&self, row: usize, copy: &mut [u8]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let blocks = Blocks {
            first: (self.first + row) * self.stored,
            ..self.elements()
        };
        for (number, copy) in copy.chunks_mut(self.format.block_bytes()).enumerate() {
            blocks.copy(number, copy);
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
        self.elements().from(row * self.stored).widen(out);
    }

    /// The elements, from the first one on. Those of the next row begin
    /// [`stride`](Self::stride) elements later.
    pub fn elements(&self) -> Blocks<'_> {
        Blocks {
            format: self.format,
            order: self.order,
            bytes: (*self.bytes).as_ref(),
            stored: self.stored,
            first: self.first * self.stored + self.cols.start,
        }
    }

    /// Elements from a row to the next: of some of the columns, too, they are stored as whole rows.
    pub fn stride(&self) -> usize {
        self.stored
    }

    /// The number of bytes that the stored rows take, without what fills up the last panels.
    pub fn num_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.stored / self.format.block_elements() * self.format.block_bytes()
    }
}

impl<'a> Blocks<'a> {
    /// Skips this many elements.
    #[inline(always)]
    pub fn from(self, elements: usize) -> Self {
        Self {
            first: self.first + elements,
            ..self
        }
    }

    /// Writes elements of one row to `out`, in f32, from the first one on. It is inlined into the
    /// calling function, and compiled for its vectors.
    ///
    /// # Panics
    /// If there are too few elements; in panels, if the row ends before the last of them.
    #[inline(always)]
    pub fn widen(self, out: &mut [f32]) {
        let (elements, size) = (self.format.block_elements(), self.format.block_bytes());
        match self.order {
            Order::Rows => widen_part(self.format, self.bytes, self.first, out),
            Order::Panels => {
                let of_row = self.first.checked_rem(self.stored).unwrap_or_default();
                assert!(out.len() <= self.stored - of_row, "the row ends before");
                let (mut at, mut rest) = (self.first % elements, out);
                let mut number = 0;
                while !rest.is_empty() {
                    let mut block = [0; LONGEST_BYTES];
                    self.copy(number, &mut block[..size]);
                    let (out, others) = rest.split_at_mut(rest.len().min(elements - at));
                    widen_part(self.format, &block[..size], at, out);
                    (at, rest, number) = (0, others, number + 1);
                }
            }
        }
    }

    /// Copies the block with this number from the one on that holds the first element.
    #[inline(always)]
    fn copy(self, number: usize, copy: &mut [u8]) {
        let (elements, size) = (self.format.block_elements(), self.format.block_bytes());
        let block = self.first % self.stored / elements + number;
        let (row, per_row) = (self.first / self.stored, self.stored / elements);
        match self.format.parts().filter(|_| self.order == Order::Panels) {
            Some(parts) => {
                let panel = &self.bytes[(row / LANES * per_row + block) * LANES * size..];
                parts.take(&panel[..LANES * size], row % LANES, copy);
            }
            None => copy.copy_from_slice(&self.bytes[(row * per_row + block) * size..][..size]),
        }
    }

    /// The panels, from the first element on; `None` if the rows do not lie side by side, or the
    /// element's row is not the first of 16.
    #[inline(always)]
    pub fn panels(self) -> Option<Panels<'a>> {
        let (elements, size) = (self.format.block_elements(), self.format.block_bytes());
        if self.order != Order::Panels || self.stored == 0 {
            return None;
        }
        let (row, col) = (self.first / self.stored, self.first % self.stored);
        let stride = self.stored / elements * LANES * size;
        row.is_multiple_of(LANES).then(|| Panels {
            format: self.format,
            bytes: &self.bytes[row / LANES * stride + col / elements * LANES * size..],
            skip: col % elements,
            stride,
        })
    }
}

impl fmt::Debug for QuantizedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.dims();
        write!(f, "QuantizedMatrix({rows} × {cols}, {})", self.format)
    }
}

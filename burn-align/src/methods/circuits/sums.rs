//! The products of writers' changes with readers' gradients.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Tensor, backend::Backend};

use super::changes::{Written, narrowed};
use super::{CircuitError, Edge, EdgeGraph};
use crate::engine::read_numbers;

/// Sums of products for blocks of edges: some readers that read the same writers.
pub(super) struct Sums<B: Backend> {
    /// For the first writer and the first reader of a block, `[writer, reader]`.
    blocks: BTreeMap<[usize; 2], Tensor<B, 2>>,
}

impl<B: Backend> Sums<B> {
    pub(super) fn new() -> Self {
        Self {
            blocks: BTreeMap::new(),
        }
    }

    fn add(&mut self, first: [usize; 2], products: Tensor<B, 2>) {
        let sum = match self.blocks.remove(&first) {
            Some(sum) => sum + products,
            None => products,
        };
        self.blocks.insert(first, sum);
    }

    /// Adds all sums, times a factor, to the scores of their edges. Reads from the device.
    ///
    /// - values: in the order of [`EdgeGraph::edges`]
    pub(super) fn add_to(
        self,
        values: &mut [f64],
        graph: &EdgeGraph,
        factor: f64,
    ) -> Result<(), CircuitError> {
        let mut edges = Vec::new();
        let mut numbers = Vec::new();
        for ([first_writer, first_reader], block) in self.blocks {
            let [writers, readers] = block.dims();
            for writer in first_writer..first_writer + writers {
                let readers = first_reader..first_reader + readers;
                edges.extend(readers.map(|reader| Edge { writer, reader }));
            }
            numbers.push(block.reshape([writers * readers]));
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let numbers = read_numbers(Tensor::cat(numbers, 0))?;
        for (edge, number) in edges.into_iter().zip(numbers) {
            values[graph.check(edge)?] += factor * number;
        }
        Ok(())
    }
}

/// Changes of some writers, widened some positions at a time. If all positions fit, they are
/// widened once.
pub(super) struct Widened<'a, 'm, M: Backend> {
    graph: &'a EdgeGraph,
    written: &'a Written<'m, M>,
    /// The writers of which edges are scored.
    writers: Range<usize>,
    /// How many positions at a time.
    positions: usize,
    whole: OnceCell<Tensor<M, 2>>,
}

impl<'a, 'm, M: Backend> Widened<'a, 'm, M> {
    pub(super) fn new(
        graph: &'a EdgeGraph,
        written: &'a Written<'m, M>,
        writers: Range<usize>,
        positions: usize,
    ) -> Self {
        Self {
            graph,
            written,
            writers,
            positions: positions.max(1),
            whole: OnceCell::new(),
        }
    }

    /// The scored writers that come before a reader.
    pub(super) fn before(&self, reader: usize) -> Range<usize> {
        let end = self.writers.end.min(self.graph.before(reader));
        self.writers.start..end.max(self.writers.start)
    }

    /// Positions, in parts.
    pub(super) fn chunks(&self) -> Vec<Range<usize>> {
        let [_batch, pos] = self.written.outputs().size();
        let starts = (0..pos).step_by(self.positions);
        let chunks = starts.map(|start| start..pos.min(start + self.positions));
        chunks.collect()
    }

    /// The changes of the first of the writers, up to `end`.
    ///
    /// # Shapes
    /// - output: `[writer, batch * position * d_model]`
    pub(super) fn at(&self, end: usize, positions: &Range<usize>) -> Tensor<M, 2> {
        let [_batch, pos] = self.written.outputs().size();
        if *positions != (0..pos) {
            return self.rows(self.writers.start..end, positions.clone());
        }
        let whole = || self.rows(self.writers.clone(), positions.clone());
        let whole = self.whole.get_or_init(whole).clone();
        whole.narrow(0, 0, end - self.writers.start)
    }

    fn rows(&self, writers: Range<usize>, positions: Range<usize>) -> Tensor<M, 2> {
        let count = writers.len();
        let rows = self.written.at(self.graph, writers, positions);
        let [rows_and_batch, pos, width] = rows.dims();
        rows.reshape([count, rows_and_batch / count.max(1) * pos * width])
    }
}

/// Adds the products of all writers before some readers with the gradients at the readers.
///
/// - first: index of the first reader; all read the same writers
/// - inner: from the backend of the model to that of the gradients
///
/// # Shapes
/// - gradients: for each reader, `[batch, pos, d_model]`
pub(super) fn add_products<B: Backend, M: Backend>(
    sums: &mut Sums<B>,
    widened: &Widened<'_, '_, M>,
    first: usize,
    gradients: &[Tensor<B, 3>],
    inner: impl Fn(Tensor<M, 2>) -> Tensor<B, 2>,
) {
    let writers = widened.before(first);
    if writers.is_empty() || gradients.is_empty() {
        return;
    }
    for positions in widened.chunks() {
        let changes = inner(widened.at(writers.end, &positions)); // [writer, cell]
        let [_writer, cell] = changes.dims();
        let own = gradients.iter().map(|x| narrowed(x, &positions));
        let own = Tensor::cat(own.collect(), 0).reshape([gradients.len(), cell]);
        let products = changes.matmul(own.transpose()); // [writer, reader]
        sums.add([writers.start, first], products);
    }
}

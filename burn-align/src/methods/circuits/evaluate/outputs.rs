//! What writers have written in the patched run so far.

use std::ops::Range;

use burn::tensor::{Tensor, backend::Backend};

/// Sums of this many rows or fewer are added up writer by writer, instead of copying what all
/// writers have written into one matrix.
const FEW_ROWS: usize = 4;

/// The change in each writer that somebody takes, from what the ablated run has to what the
/// patched run computes: one row a writer and circuit, over all examples and positions.
pub(super) struct Outputs<B: Backend> {
    circuits: usize,
    /// `[1 + slot, circuit, value]`: those of the first slots, with an ablated stream before them.
    merged: Option<Tensor<B, 3>>,
    /// `[1, circuit, value]` of each slot after these.
    recent: Vec<Tensor<B, 3>>,
}

impl<B: Backend> Outputs<B> {
    pub(super) fn new(circuits: usize) -> Self {
        Self {
            circuits,
            merged: None,
            recent: Vec::new(),
        }
    }

    /// Number of slots that were written.
    pub(super) fn slots(&self) -> usize {
        self.merged_slots() + self.recent.len()
    }

    fn merged_slots(&self) -> usize {
        self.merged
            .as_ref()
            .map_or(0, |merged| merged.dims()[0] - 1)
    }

    /// Keeps the change in the writer of the next slot. In circuits that are not named it is zero.
    ///
    /// # Shapes
    /// - change: `[circuit, value]`, those that are named, in order
    pub(super) fn write(&mut self, circuits: &[usize], change: Tensor<B, 2>) {
        let [_circuit, values] = change.dims();
        let all = match circuits.len() == self.circuits {
            true => change,
            false => {
                let zeros = Tensor::zeros([1, values], (&change.device(), change.dtype()));
                let rows = (0..self.circuits).map(|circuit| {
                    let named = circuits.iter().position(|named| *named == circuit);
                    match named {
                        Some(row) => change.clone().narrow(0, row, 1),
                        None => zeros.clone(),
                    }
                });
                Tensor::cat(rows.collect(), 0)
            }
        };
        self.recent.push(all.unsqueeze_dim::<3>(0));
    }

    /// Sums of the ablated stream and the changes in the first slots.
    ///
    /// # Shapes
    /// - stream: `[1, value]`
    /// - weights: `[circuit, row, 1 + slot]`; the stream's are 1
    /// - output: `[circuit, row, value]`
    pub(super) fn weighted(&mut self, stream: Tensor<B, 2>, weights: Tensor<B, 3>) -> Tensor<B, 3> {
        let [circuits, rows, columns] = weights.dims();
        let [_one, values] = stream.dims();
        let stream = stream.unsqueeze_dim::<3>(0); // [1, 1, value]
        if rows > FEW_ROWS && columns == self.slots() + 1 {
            let stream = stream.repeat_dim(1, circuits);
            let parts = [stream].into_iter().chain(self.parts());
            let merged = Tensor::cat(parts.collect(), 0); // [1 + slot, circuit, value]
            self.recent.clear();
            self.merged = Some(merged.clone());
            return weights.matmul(merged.swap_dims(0, 1));
        }
        let mut sum = stream.expand([circuits, rows, values]);
        let mut first = 1;
        for part in self.parts() {
            let [slots, _circuit, _value] = part.dims();
            if first + slots > columns {
                break;
            }
            let own = weights.clone().narrow(2, first, slots);
            sum = sum + own.matmul(part.swap_dims(0, 1));
            first += slots;
        }
        sum
    }

    /// Sums of the changes in some slots.
    ///
    /// # Shapes
    /// - weights: `[circuit, row, slot]`
    /// - output: `[circuit, row, value]`
    pub(super) fn weighted_part(&self, slots: Range<usize>, weights: Tensor<B, 3>) -> Tensor<B, 3> {
        let mut parts = Vec::new();
        let mut first = 0;
        for part in self.parts() {
            let [count, _circuit, _value] = part.dims();
            let (start, end) = (slots.start.max(first), slots.end.min(first + count));
            if start < end {
                parts.push(part.narrow(0, start - first, end - start));
            }
            first += count;
        }
        weights.matmul(Tensor::cat(parts, 0).swap_dims(0, 1))
    }

    /// All slots, in order, `[slot, circuit, value]`.
    fn parts(&self) -> Vec<Tensor<B, 3>> {
        let merged = self.merged.iter().filter(|_| self.merged_slots() > 0);
        let merged = merged.map(|merged| merged.clone().narrow(0, 1, self.merged_slots()));
        merged.chain(self.recent.iter().cloned()).collect()
    }
}

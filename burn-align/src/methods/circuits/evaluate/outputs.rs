//! What writers have written in the patched run so far.

use std::ops::Range;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::part_of_rows;

/// Sums of this many rows or fewer are added up part by part: they are not worth a copy of what
/// writers have written.
const FEW_ROWS: usize = 4;

/// The change in each writer that somebody takes, from what the ablated run has to what the
/// patched run computes: one row a writer and circuit, over all examples and positions.
///
/// Slots that were written one by one are joined into parts, of which each takes one matrix
/// product and one addition. Joining parts copies them, so it waits until the additions that it
/// would have saved are as large as the copy.
pub(super) struct Outputs<B: Backend> {
    circuits: usize,
    /// `[slot, circuit, value]`: all slots, in order.
    parts: Vec<Tensor<B, 3>>,
    /// Number of parts that are joined; each part after them is one slot.
    joined: usize,
    /// Rows that were added since all parts were joined into one.
    added: usize,
}

impl<B: Backend> Outputs<B> {
    pub(super) fn new(circuits: usize) -> Self {
        Self {
            circuits,
            parts: Vec::new(),
            joined: 0,
            added: 0,
        }
    }

    /// Number of slots that were written.
    fn slots(&self) -> usize {
        slots(&self.parts)
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
        self.parts.push(all.unsqueeze_dim::<3>(0));
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
        let is_new = self.parts.len() > self.joined;
        if rows > FEW_ROWS && is_new && columns == self.slots() + 1 {
            return self.joined_and_weighted(stream, weights);
        }
        let sum = stream.expand([circuits, rows, values]);
        let changes = products(&self.parts, 0..columns - 1, &weights, 1);
        changes.fold(sum, |sum, more| sum + more)
    }

    /// The same for all slots. Those that are not joined yet are.
    fn joined_and_weighted(&mut self, stream: Tensor<B, 3>, weights: Tensor<B, 3>) -> Tensor<B, 3> {
        let [circuits, rows, _columns] = weights.dims();
        self.added += self.joined * rows;
        if self.added >= self.slots() {
            (self.joined, self.added) = (0, 0);
        }
        // The stream comes before what is joined, so that it takes no addition.
        let recent = self.parts.split_off(self.joined);
        let (before, count) = (self.slots(), slots(&recent));
        let recent = [stream.repeat_dim(1, circuits)].into_iter().chain(recent);
        let recent = Tensor::cat(recent.collect(), 0); // [1 + slot, circuit, value]
        let own = match before {
            0 => weights.clone(),
            before => {
                let of_slots = weights.clone().narrow(2, 1 + before, count);
                Tensor::cat(vec![weights.clone().narrow(2, 0, 1), of_slots], 2)
            }
        };
        let sum = own.matmul(recent.clone().swap_dims(0, 1));
        let changes = products(&self.parts, 0..before, &weights, 1);
        let sum = changes.fold(sum, |sum, more| sum + more);
        self.parts.push(recent.narrow(0, 1, count));
        self.joined = self.parts.len();
        sum
    }

    /// Sums of the changes in some slots; `None` for no slots.
    ///
    /// # Shapes
    /// - weights: `[circuit, row, slot]`
    /// - output: `[circuit, row, value]`
    pub(super) fn weighted_part(
        &self,
        slots: Range<usize>,
        weights: &Tensor<B, 3>,
    ) -> Option<Tensor<B, 3>> {
        products(&self.parts, slots, weights, 0).reduce(|sum, more| sum + more)
    }
}

/// Number of slots of some parts.
fn slots<B: Backend>(parts: &[Tensor<B, 3>]) -> usize {
    parts.iter().map(|part| part.dims()[0]).sum()
}

/// The weighted changes in some slots, summed over the slots of each part. Parts are not copied.
///
/// - column: of the weights of the first of these slots
///
/// # Shapes
/// - parts: `[slot, circuit, value]` each, all slots in order
/// - weights: `[circuit, row, column]`
/// - output: `[circuit, row, value]` each
fn products<B: Backend>(
    parts: &[Tensor<B, 3>],
    slots: Range<usize>,
    weights: &Tensor<B, 3>,
    column: usize,
) -> impl Iterator<Item = Tensor<B, 3>> {
    let mut next = 0;
    parts.iter().filter_map(move |part| {
        let [count, _circuit, _value] = part.dims();
        let first = next;
        next += count;
        let (start, end) = (slots.start.max(first), slots.end.min(next));
        if start >= end {
            return None;
        }
        let changes = part_of_rows(part.clone(), start - first..end - first);
        let own = weights.clone();
        let own = own.narrow(2, column + start - slots.start, end - start);
        Some(own.matmul(changes.swap_dims(0, 1)))
    })
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;

    const CIRCUITS: usize = 2;
    const VALUES: usize = 3;

    /// Small whole numbers, so that sums have no rounding.
    fn whole<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<Flex, D> {
        let count: usize = shape.iter().product();
        let numbers = (0..count).map(|index| ((seed + 1) * (index + 2) * 7 % 11) as f32 - 5.0);
        let data = TensorData::new(numbers.collect::<Vec<f32>>(), shape);
        Tensor::from_data(data, &Default::default())
    }

    fn numbers<const D: usize>(x: Tensor<Flex, D>) -> Vec<f32> {
        x.into_data().to_vec().expect("f32 values")
    }

    /// Layers of some heads and an MLP, whose inputs are read in any number of rows.
    #[test]
    fn sums_are_those_of_all_slots_however_they_are_kept() {
        let mut most = 0;
        for heads in [1, 3] {
            for rows in [1, FEW_ROWS + 1, 3 * FEW_ROWS] {
                let mut outputs = Outputs::<Flex>::new(CIRCUITS);
                let mut written: Vec<Tensor<Flex, 3>> = Vec::new();
                for layer in 0..20 {
                    for (writers, rows) in [(heads, rows), (1, 1)] {
                        let columns = 1 + written.len();
                        let stream = whole([1, VALUES], layer);
                        let weights = whole([CIRCUITS, rows, columns], layer + rows);
                        let ones = Tensor::ones_like(&weights).narrow(2, 0, 1);
                        let weights = match columns {
                            1 => ones,
                            _ => {
                                let own = weights.narrow(2, 1, columns - 1);
                                Tensor::cat(vec![ones, own], 2)
                            }
                        };
                        let found = outputs.weighted(stream.clone(), weights.clone());
                        let stream = stream.unsqueeze_dim::<3>(0).repeat_dim(1, CIRCUITS);
                        let all = [vec![stream], written.clone()].concat();
                        let all = Tensor::cat(all, 0).swap_dims(0, 1);
                        assert_eq!(numbers(found), numbers(weights.matmul(all)));
                        most = most.max(outputs.joined);
                        for writer in 0..writers {
                            let change = whole([CIRCUITS, VALUES], layer + 5 * writer);
                            outputs.write(&[0, 1], change.clone());
                            written.push(change.unsqueeze_dim::<3>(0));
                        }
                    }
                }
                let slots = 1..written.len() - 1;
                let weights = whole([CIRCUITS, rows, slots.len()], 3);
                let own = Tensor::cat(written[slots.clone()].to_vec(), 0).swap_dims(0, 1);
                let found = outputs.weighted_part(slots, &weights);
                let found = found.expect("slots are written");
                assert!(outputs.weighted_part(0..0, &weights).is_none());
                assert_eq!(numbers(found), numbers(weights.matmul(own)));
            }
        }
        assert!(most > 2, "parts are always joined at once");
    }

    #[test]
    fn circuits_that_are_not_named_have_no_change() {
        let mut outputs = Outputs::<Flex>::new(3);
        outputs.write(&[0, 2], whole([2, VALUES], 1));
        let stream = Tensor::<Flex, 2>::zeros([1, VALUES], &Default::default());
        let weights = Tensor::<Flex, 3>::ones([3, 1, 2], &Default::default());
        let found = numbers(outputs.weighted(stream, weights));
        let change = numbers(whole([2, VALUES], 1));
        assert_eq!(found[..VALUES], change[..VALUES]);
        assert_eq!(found[VALUES..2 * VALUES], [0.0; VALUES]);
        assert_eq!(found[2 * VALUES..], change[VALUES..]);
    }
}

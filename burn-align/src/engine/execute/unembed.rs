//! From the residual stream to the logits that are read.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::Run;
use crate::engine::cells::{Cells, gather};
use crate::engine::plan::Read;
use crate::engine::schedule::StageGroups;
use crate::engine::stages::Stage;
use crate::interventions::Intervention;

impl<B: Backend, I: Intervention<B>> Run<'_, B, I> {
    /// Computes the logits that are read, at their positions only.
    pub(super) fn unembed<M: AlignableTransformer<B>>(
        &mut self,
        x: Tensor<B, 3>,
        normed: bool,
        current: &StageGroups,
        model: &M,
    ) {
        let [rows, pos, d_model] = x.dims();
        let mut cells = Cells::default();
        let mut wanted = Vec::new();
        let group_of = current.groups.by_world();
        let reads = self.schedule.reads.at(Stage::Unembed).iter();
        let open = reads.filter(|index| self.values[**index].is_none());
        let here = open.filter_map(|index| {
            let group = group_of.get(self.plan.reads[*index].world())?;
            Some((group, *index))
        });
        let mut here: Vec<(usize, usize)> = here.collect();
        here.sort_unstable();
        for (group, index) in here {
            let Read::Logits { world, positions } = &self.plan.reads[index] else {
                continue;
            };
            let start = current.layout.first_row(group);
            let input = self.schedule.sizes.of(world.0);
            let units = positions.units(&input.lengths);
            let unit_count = units.positions.count(input.pos);
            let sizes = [input.pos, 1];
            let place = |example: usize, _head: usize, position: usize| {
                current.layout.token(start + example, position)
            };
            cells.append(Cells::of_units(&units, input.batch, sizes, place));
            wanted.push((index, [input.batch, unit_count]));
        }
        // [cell, d_model]
        let x = gather(&x.reshape([rows, 1, pos, d_model]), &cells, &self.tables);
        let x = x.unsqueeze_dim::<3>(0); // [1, cell, d_model]
        let x = match normed {
            true => x,
            false => model.final_norm(x),
        };
        let mut first: usize = 0;
        for part in self.parts_to_unembed(&wanted) {
            let all = part.iter().map(|(_, [batch, units])| batch * units).sum();
            let x = part_of(x.clone(), 1, first, all);
            first += all;
            let logits = model.unembed(x).squeeze_dim::<2>(0); // [cell, vocab]
            let [_all, vocab] = logits.dims();
            let mut start: usize = 0;
            for (index, [batch, units]) in part.iter().copied() {
                let count = batch * units;
                // Slicing a tensor of the right shape gives a view; slicing while reshaping would
                // copy.
                let divides = all.is_multiple_of(units) && start.is_multiple_of(units);
                let logits = logits.clone();
                self.values[index] = Some(match divides {
                    true => {
                        let logits = logits.reshape([all / units, units, vocab]);
                        part_of(logits, 0, start / units, batch)
                    }
                    false => logits
                        .narrow(0, start, count)
                        .reshape([batch, units, vocab]),
                });
                start += count;
            }
        }
    }

    /// The reads whose logits come from one product: all, except that with gradients there are no
    /// more than make a product worth its weight. The gradient of a part of the logits is as large
    /// as the whole, and nearly all of it zeros.
    fn parts_to_unembed<'r>(
        &self,
        reads: &'r [(usize, [usize; 2])],
    ) -> Vec<&'r [(usize, [usize; 2])]> {
        const ENOUGH: usize = 16;
        if !B::ad_enabled(&self.device) {
            return vec![reads];
        }
        let (mut parts, mut start, mut cells) = (Vec::new(), 0, 0);
        for (index, (_, [batch, units])) in reads.iter().enumerate() {
            cells += batch * units;
            if cells >= ENOUGH {
                parts.push(&reads[start..=index]);
                (start, cells) = (index + 1, 0);
            }
        }
        if start < reads.len() {
            parts.push(&reads[start..]);
        }
        parts
    }
}

/// Some entries of an axis. The whole is returned as it is: the gradient of a slice would be copied.
fn part_of<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    axis: usize,
    first: usize,
    count: usize,
) -> Tensor<B, D> {
    match x.dims()[axis] == count {
        true => x,
        false => x.narrow(axis, first, count),
    }
}

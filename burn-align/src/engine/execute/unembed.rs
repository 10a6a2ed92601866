//! From the residual stream to the logits that are read.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::{part_of_rows, sums_parts_in_place};

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
        for part in self.parts_to_unembed(&wanted, &x) {
            let all: usize = part.iter().map(|(_, [batch, units])| batch * units).sum();
            let x = match all == x.dims()[1] {
                true => x.clone(),
                false => x.clone().narrow(1, first, all),
            };
            first += all;
            let logits = model.unembed(x).squeeze_dim::<2>(0); // [cell, vocab]
            for (index, logits) in Self::split(logits, part) {
                self.values[index] = Some(logits);
            }
        }
    }

    /// The logits of each of some reads, `[batch, unit, vocab]`, with its index.
    ///
    /// # Shapes
    /// - logits: `[cell, vocab]`
    fn split(
        logits: Tensor<B, 2>,
        reads: &[(usize, [usize; 2])],
    ) -> impl Iterator<Item = (usize, Tensor<B, 3>)> {
        let [all, vocab] = logits.dims();
        let mut by_width = BTreeMap::new();
        let mut start: usize = 0;
        reads.iter().map(move |(index, [batch, units])| {
            // Slicing a tensor of the right shape gives a view; slicing while reshaping would copy.
            let divides = *units > 0 && all.is_multiple_of(*units) && start.is_multiple_of(*units);
            let width = if divides { *units } else { 1 };
            let shaped = || logits.clone().reshape([all / width, width, vocab]);
            let whole = by_width.entry(width).or_insert_with(shaped).clone();
            let end = start + batch * units;
            let own = part_of_rows(whole, start / width..end / width);
            start = end;
            let own = match divides {
                true => own,
                false => own.reshape([*batch, *units, vocab]),
            };
            (*index, own)
        })
    }

    /// The reads whose logits come from one product: all, except that with gradients there are no
    /// more than it takes for the weight to be worth reading. The gradient of a part of the logits
    /// is as large as the whole, and nearly all of it zeros, unless those of parts are summed in
    /// place.
    ///
    /// - x: what logits are computed from
    fn parts_to_unembed<'r>(
        &self,
        reads: &'r [(usize, [usize; 2])],
        x: &Tensor<B, 3>,
    ) -> Vec<&'r [(usize, [usize; 2])]> {
        if !B::ad_enabled(&self.device) {
            return vec![reads];
        }
        let enough = match sums_parts_in_place(x) {
            true => 256,
            false => 16,
        };
        let (mut parts, mut start, mut cells) = (Vec::new(), 0, 0);
        for (index, (_, [batch, units])) in reads.iter().enumerate() {
            cells += batch * units;
            if cells >= enough {
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

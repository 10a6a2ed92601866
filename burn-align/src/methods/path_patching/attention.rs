//! How attention's output changes when some of its heads receive a sender, by arithmetic alone.
//!
//! Everything before the attention is frozen. Queries, keys and values therefore read the base's
//! residual stream, with or without the sender's difference added. Only the receiving heads change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, ByHead, ModelDims, Pass, Tables};

use super::frozen::{Changes, Clean, by_head};
use super::{PathPatch, Receiver, ReceiverInput, Sender};
use crate::engine::Indices;
use crate::paths::PathError;

/// Most rows to compute together.
const ROWS: usize = 512;

/// The layer, if only queries, keys and values of one layer receive.
pub(super) fn layer_of(patch: &PathPatch) -> Option<usize> {
    let layers = patch.receivers.iter().map(|receiver| match receiver.input {
        ReceiverInput::Query { layer, .. }
        | ReceiverInput::Key { layer, .. }
        | ReceiverInput::Value { layer, .. } => Some(layer),
        ReceiverInput::Mlp { .. } | ReceiverInput::Logits => None,
    });
    let layers: Option<BTreeSet<usize>> = layers.collect();
    layers.filter(|layers| layers.len() == 1)?.pop_first()
}

/// Whether only queries receive.
pub(super) fn only_queries(patch: &PathPatch) -> bool {
    let mut receivers = patch.receivers.iter();
    receivers.all(|receiver| matches!(receiver.input, ReceiverInput::Query { .. }))
}

/// The change in the output of the receivers' layer of attention, `[batch, pos, d_model]`, for
/// those patches that only one layer's attention receives.
///
/// - `which`: indices of patches
pub(super) fn changes<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    clean: &Clean<'_, B>,
    which: &[usize],
    patches: &[PathPatch],
    sent: &Changes<'_, B>,
) -> Result<BTreeMap<usize, Tensor<B, 3>>, PathError> {
    // Patches to the same receivers are computed together.
    let mut to_same: HashMap<&[Receiver], (usize, Vec<usize>)> = HashMap::new();
    for index in which {
        if let Some(layer) = layer_of(&patches[*index]) {
            let same = to_same.entry(&patches[*index].receivers);
            same.or_insert_with(|| (layer, Vec::new())).1.push(*index);
        }
    }
    let [batch, pos] = [clean.base.batch(), clean.base.pos()];
    let mut changes = BTreeMap::new();
    for (receivers, (layer, which)) in to_same {
        let attention = Receiving {
            dims: model.dims(),
            heads: by_head(model)?,
            pass: Pass::new(pos, &model.device(), &Tables::new()),
            clean,
            layer,
            receivers,
        };
        for together in which.chunks((ROWS / batch).max(1)) {
            let added = together.iter().map(|index| {
                let senders: Vec<&Sender> = patches[*index].senders.iter().collect();
                sent.of(&senders)
            });
            let change = attention.change(&added.collect::<Vec<_>>());
            for (number, index) in together.iter().enumerate() {
                changes.insert(*index, change.clone().narrow(0, number * batch, batch));
            }
        }
    }
    Ok(changes)
}

/// A layer's attention, some of whose inputs receive.
struct Receiving<'a, B: Backend> {
    dims: &'a ModelDims,
    heads: &'a dyn ByHead<B>,
    pass: Pass<B>,
    clean: &'a Clean<'a, B>,
    layer: usize,
    receivers: &'a [Receiver],
}

impl<B: Backend> Receiving<'_, B> {
    /// The change in the attention's output if these are added to the stream, stacked along the
    /// batch axis.
    fn change(&self, added: &[Tensor<B, 3>]) -> Tensor<B, 3> {
        let stream = self.clean.streams[&self.layer].clone();
        let base = Tensor::cat(vec![stream; added.len()], 0);
        let added = Tensor::cat(added.to_vec(), 0);
        let mut change: Option<Tensor<B, 3>> = None;
        for head in self.receiving_heads() {
            let streams = self.received_by(head).map(|positions| {
                if positions.is_empty() {
                    return base.clone();
                }
                if positions.contains(&&Indices::All) {
                    return base.clone() + added.clone();
                }
                let masks = positions.into_iter().map(|at| self.clean.mask(at, &added));
                let mask = masks.reduce(|a, b| a.max_pair(b)).expect("there are some");
                let [rows, ..] = added.dims();
                let [batch, ..] = mask.dims();
                base.clone() + added.clone() * mask.repeat_dim(0, rows / batch)
            });
            let mixed = self.mixed(head, streams) - self.mixed_before(head, &base);
            let output = self.heads.head_output(self.layer, head, mixed);
            change = Some(match change {
                Some(change) => change + output,
                None => output,
            });
        }
        change.expect("a patch has a receiver")
    }

    fn mixed(&self, head: usize, streams: [Tensor<B, 3>; 3]) -> Tensor<B, 3> {
        (self.heads).head_mixed(self.layer, head, streams, &self.pass)
    }

    /// What a head mixes in the base, repeated as often as `base` repeats the base.
    fn mixed_before(&self, head: usize, base: &Tensor<B, 3>) -> Tensor<B, 3> {
        let batch = self.clean.base.batch();
        let [rows, ..] = base.dims();
        let once = base.clone().narrow(0, 0, batch);
        let mixed = self.mixed(head, [once.clone(), once.clone(), once]);
        mixed.repeat_dim(0, rows / batch)
    }

    /// The query heads that receive through any of their inputs.
    fn receiving_heads(&self) -> Vec<usize> {
        let receives = |head: &usize| self.received_by(*head).iter().any(|at| !at.is_empty());
        (0..self.dims.heads).filter(receives).collect()
    }

    /// The positions at which queries, keys and values of a query head receive.
    fn received_by(&self, head: usize) -> [Vec<&Indices>; 3] {
        let kv_head = head / (self.dims.heads / self.dims.kv_heads);
        let layer = self.layer;
        let inputs = [
            ReceiverInput::Query { layer, head },
            ReceiverInput::Key { layer, kv_head },
            ReceiverInput::Value { layer, kv_head },
        ];
        inputs.map(|input| {
            let receivers = self.receivers.iter();
            let receivers = receivers.filter(|receiver| receiver.input == input);
            receivers.map(|receiver| &receiver.positions).collect()
        })
    }
}

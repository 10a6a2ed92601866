//! Attention under autodiff.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::{Tensor, backend::Backend, ops::FloatTensor};
use burn_flex::{Flex, FlexTensor};

use super::Attending;
use crate::autodiff::{generic, recognise};
use crate::memory;
use crate::strided::in_vectors;

#[derive(Debug)]
struct OfAttention;

impl Backward<Flex, 3> for OfAttention {
    type State = Attending;

    fn backward(self, ops: Ops<Attending, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let of_mixed = in_vectors(gradients.consume::<Flex>(&ops.node));
        let found = ops.state.gradients(&of_mixed);
        memory::give(of_mixed);
        ops.state.heads.into_iter().for_each(memory::give);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(node) = parent {
                gradients.register::<Flex>(node.id, gradient);
            }
        }
    }
}

/// Attends; `None` unless all are f32 tensors of the autodiff backend on Flex, and if there is no
/// kernel for what comes before them.
///
/// - attending: from queries, keys and values
pub(super) fn attend<B: Backend>(
    heads: [&Tensor<B, 4>; 3],
    attending: impl FnOnce([FlexTensor; 3]) -> Option<Attending>,
) -> Option<Tensor<B, 4>> {
    let [q, k, v] = heads.map(|x| recognise(x.clone()).ok());
    let heads: [FloatTensor<Autodiff<Flex>>; 3] = [q?, k?, v?];
    let nodes = heads.each_ref().map(|x| x.node.clone());
    let attending = attending(heads.map(|x| in_vectors(x.primitive)))?;
    let mixed = attending.mixed();
    let mixed = match OfAttention
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => prepared.finish(attending, mixed),
        OpsKind::UnTracked(prepared) => prepared.finish(mixed),
    };
    Some(generic(mixed))
}

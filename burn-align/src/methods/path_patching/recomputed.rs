//! Path patching in which MLPs between sender and receiver react, so the senders' run must be
//! computed.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, ModelDims, Site, TokenBatch};

use super::{PathEffects, PathPatch};
use crate::engine::{Edit, LogitPositions, Operand, Plan, ReadId, RunOptions, Units, WorldId};
use crate::methods::sweep::to_rows;
use crate::paths::{Node, PathError, Worlds};

pub(super) fn run<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    inputs: [&TokenBatch; 2],
    patches: &[PathPatch],
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<PathEffects, PathError> {
    let dims = model.dims();
    let mut plan = Plan::new();
    let [base_input, source_input] = inputs.map(|tokens| plan.tokens(tokens));
    let base = plan.world(base_input, []);
    let source = plan.world(source_input, []);
    let mut worlds = vec![base, source];
    for patch in patches {
        let edits = sender_edits(patch, [base, source], dims);
        let record = plan.world(base_input, edits);
        // If only the logits receive, what they read in the record is the result.
        worlds.push(match patch.is_direct() {
            true => record,
            false => plan.world(base_input, receiver_edits(patch, [base, record], dims)),
        });
    }
    let reads: Vec<ReadId> = worlds
        .into_iter()
        .map(|world| plan.read_logits(world, LogitPositions::Last))
        .collect();
    let results = plan.run_with(model, &Worlds::interventions(), options)?;
    let values = reads
        .iter()
        .map(|read| metric(results.get(*read).squeeze_dim(1)).mean());
    let mut values = to_rows(values.collect(), reads.len())?.remove(0);
    plan.check_finite(&values, model, &Worlds::interventions(), options)?;
    let patched = values.split_off(2);
    Ok(PathEffects {
        base: values[0],
        source: values[1],
        patched,
    })
}

/// The senders' outputs from the source, all later attention from the base.
fn sender_edits(patch: &PathPatch, [base, source]: [WorldId; 2], dims: &ModelDims) -> Vec<Edit> {
    let first = patch.senders.iter().map(|sender| sender.node.depth(dims));
    let first = first.min().expect("checked");
    let last = patch.receivers.iter();
    let last = last.map(|receiver| receiver.input.depth(dims));
    let last = last.max().expect("checked");
    let mut edits = Vec::new();
    for layer in 0..dims.layers {
        let depth = Node::Attention { layer }.depth(dims);
        if first < depth && depth < last {
            // Before the output projection, where the heads are still separate.
            let site = Site::Block(layer, Component::AttentionValueOutput);
            edits.push(Edit::from_world(base, site, Units::ALL, Worlds::SWAP));
        }
    }
    for sender in &patch.senders {
        let units = Units::positions(sender.positions.clone());
        edits.push(match sender.node {
            Node::Head { layer, head } => {
                let site = Site::Block(layer, Component::AttentionValueOutput);
                Edit::from_world(source, site, units.of_head(head), Worlds::SWAP)
            }
            node => Edit::from_world(source, node.output(dims), units, Worlds::SWAP),
        });
    }
    edits
}

/// The recorded inputs of the receivers.
fn receiver_edits(patch: &PathPatch, [base, record]: [WorldId; 2], dims: &ModelDims) -> Vec<Edit> {
    let edits = patch.receivers.iter().flat_map(|receiver| {
        let units = Units::positions(receiver.positions.clone());
        match receiver.input.site(dims) {
            Some((site, head)) => {
                let units = match head {
                    Some(head) => units.of_head(head),
                    None => units,
                };
                vec![Edit::from_world(record, site, units, Worlds::SWAP)]
            }
            None => {
                let site = dims.last_stream();
                let of = |world| Operand::Activation {
                    world,
                    site,
                    units: Units::ALL,
                };
                vec![
                    Edit::new(site, Units::ALL, Worlds::ADD, of(record)),
                    Edit::new(site, Units::ALL, Worlds::SUBTRACT, of(base)),
                ]
            }
        }
    });
    edits.collect()
}

//! Path patching: identities, two methods that agree, and references.

mod identities;
mod oracle;
mod receivers;
mod reference;
#[cfg(feature = "flex")]
mod refused;
mod streams;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_align::engine::{Indices, LogitPositions, Plan, RunOptions};
use burn_align::methods::logit_differences;
use burn_align::paths::{HeadInput, Hop, Node, Stream, Value, Worlds};
use burn_align_models::{AlignableTransformer, Decoder, ModelDims, TokenBatch};

use crate::support::{tokens, values};

/// Small models of two families; the second shares two key-value heads among four.
pub(crate) const MODELS: [&str; 2] = ["gpt2_plain", "llama_gqa"];

/// Those, two with parallel blocks, and two with norms after attention and MLP.
pub(crate) const FAMILIES: [&str; 6] = [
    "gpt2_plain",
    "llama_gqa",
    "gpt_neox_plain",
    "phi_plain",
    "gemma2_plain",
    "olmo2_plain",
];

/// How many nodes come before one on a chain. The logits' depth is `2 * layers + 1`.
pub(crate) fn depth(node: Node, dims: &ModelDims) -> usize {
    match (node, dims.parallel) {
        (Node::Embedding, _) => 0,
        (Node::Attention { layer } | Node::Head { layer, .. }, false) => 2 * layer + 1,
        (Node::Mlp { layer }, false) => 2 * layer + 2,
        (Node::Attention { layer } | Node::Head { layer, .. } | Node::Mlp { layer }, true) => {
            layer + 1
        }
    }
}

/// Three inputs of two examples of five tokens.
pub(crate) fn inputs() -> [TokenBatch; 3] {
    [
        tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6, 5, 3]]),
        tokens(&[&[2, 7, 1, 8, 2], &[8, 1, 8, 2, 8]]),
        tokens(&[&[31, 4, 15, 9, 26], &[40, 0, 12, 33, 7]]),
    ]
}

fn metric<B: Backend>(logits: Tensor<B, 2>) -> Tensor<B, 1> {
    logit_differences(logits, &[5, 30], &[17, 2])
}

fn whole() -> RunOptions {
    RunOptions::default()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= tolerance,
            "{what}, {index}: expected {expected}, found {found}"
        );
    }
}

/// A head and an input of it.
fn hop(layer: usize, head: usize, input: HeadInput) -> Hop {
    Hop::Head { layer, head, input }
}

/// One node reads the second input at a position; the run continues with its output.
pub(crate) fn reads_at(node: Node, position: usize, dims: &ModelDims) -> Stream {
    let before = Node::all(dims)
        .into_iter()
        .filter(|other| depth(*other, dims) < depth(node, dims));
    let read = before.fold(Stream::clean(0), |stream, other| {
        stream.with(other, Indices::Same(vec![position]), Value::Clean(1))
    });
    let read = || Box::new(read.clone());
    let value = match node {
        Node::Mlp { .. } => Value::Mlp(read()),
        _ => Value::Attention {
            query: read(),
            key: read(),
            value: read(),
        },
    };
    Stream::clean(0).with_run(node, Indices::All, value)
}

/// Logits of streams, after the last token.
pub(crate) fn logits_of<B: Backend>(
    model: &Decoder<B>,
    inputs: &[TokenBatch],
    streams: &[Stream],
) -> Vec<Vec<f32>> {
    let inputs: Vec<&TokenBatch> = inputs.iter().collect();
    let mut plan = Plan::new();
    let mut worlds = Worlds::new(&mut plan, model.dims(), &inputs).expect("alike");
    let reads: Vec<_> = streams
        .iter()
        .map(|stream| {
            let world = worlds.logits(&mut plan, stream).expect("valid");
            plan.read_logits(world, LogitPositions::Last)
        })
        .collect();
    let results = plan.run(model, &Worlds::interventions()).expect("valid");
    reads
        .iter()
        .map(|read| values(results.get(*read)))
        .collect()
}

//! From senders to receivers, with MLPs frozen and recomputed.

use burn::tensor::backend::Backend;
use burn_align::engine::Indices;
use burn_align::methods::{
    Mlps, PathPatch, Receiver, ReceiverInput, Sender, head_effects, patch_paths, patch_streams,
    path_grid, path_patch,
};
use burn_align::paths::{Node, Path, Stream, Value};
use burn_align_models::AlignableTransformer;

use super::{FAMILIES, MODELS, assert_close, depth, inputs, metric, whole};
use crate::support::{load, tokens};

on_every_backend!(
    heads_are_patched_with_recomputed_mlps_in_every_family,
    direct_effects_are_the_same_in_both_ways,
    receivers_are_the_same_with_both_methods,
    frozen_and_recomputed_differ_by_what_mlps_say,
    a_shared_key_is_the_key_of_each_head,
    positions_tell_examples_apart,
    receivers_at_positions_are_the_same_with_both_methods,
    heads_without_a_receiver_change_nothing,
);

/// All later attention keeps its output, MLPs react.
fn heads_are_patched_with_recomputed_mlps_in_every_family<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let dims = model.dims();
        let [base, source, _] = inputs();
        let inputs = [&base, &source];
        let heads = Node::heads(dims);
        let patches = heads
            .iter()
            .map(|head| PathPatch::new(*head, ReceiverInput::Logits));
        let patches: Vec<PathPatch> = patches.collect();
        let streams = heads.iter().map(|head| {
            let later = Node::all(dims).into_iter().filter(|node| {
                matches!(node, Node::Attention { .. }) && depth(*node, dims) > depth(*head, dims)
            });
            let told = Stream::clean(0).with_run(*head, Indices::All, Value::Clean(1));
            later.fold(told, |stream, attention| {
                stream.with_run(attention, Indices::All, Value::Clean(0))
            })
        });
        let streams: Vec<Stream> = streams.collect();
        let trees = patch_streams(&model, &inputs, &streams, metric, &whole()).expect("valid");
        let found = path_patch(&model, inputs, &patches, Mlps::Recomputed, metric, &whole());
        let found = found.expect("valid");
        assert_close(&found.patched, &trees, 1e-5, name);
        let mut changes = found.patched.iter().map(|value| (value - found.base).abs());
        assert!(changes.any(|change| change > 1e-4), "{name}");
    }
}

fn direct_effects_are_the_same_in_both_ways<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let nodes: Vec<Node> = Node::heads(model.dims())
            .into_iter()
            .chain(Node::all(model.dims()))
            .collect();
        let sets: Vec<Vec<Path>> = nodes.iter().map(|node| vec![Path::new(*node)]).collect();
        let patches = nodes
            .iter()
            .map(|node| PathPatch::new(*node, ReceiverInput::Logits));
        let patches: Vec<PathPatch> = patches.collect();
        let inputs = [&base, &source];
        let trees = patch_paths(&model, inputs, &sets, metric, &whole()).expect("valid");
        let direct = path_patch(&model, inputs, &patches, Mlps::Frozen, metric, &whole());
        let direct = direct.expect("valid");
        assert_close(&direct.patched, &trees.patched, 1e-5, name);
        assert_close(
            &[direct.base, direct.source],
            &[trees.base, trees.source],
            1e-5,
            name,
        );
        let mut numbers = direct.patched;
        numbers.sort_by(f64::total_cmp);
        numbers.dedup_by(|a, b| (*a - *b).abs() < 1e-6);
        assert!(numbers.len() + 1 >= nodes.len(), "{name}: {numbers:?}");
    }
}

/// One head's query, key or value, or an MLP, reads from a head or the embedding; everything else
/// is free.
fn receivers_are_the_same_with_both_methods<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let [base, source, _] = inputs();
    let senders = [
        Node::Embedding,
        Node::Head { layer: 0, head: 2 },
        Node::Mlp { layer: 0 },
    ];
    let (layer, kv_head) = (1, 3);
    let mut patches = Vec::new();
    let mut streams = Vec::new();
    for sender in senders {
        let told = || Box::new(Stream::clean(0).with(sender, Indices::All, Value::Clean(1)));
        let clean = || Box::new(Stream::clean(0));
        let head = |query, key, value| {
            let computed = Value::Attention { query, key, value };
            let node = Node::Head { layer, head: 3 };
            Stream::clean(0).with_run(node, Indices::All, computed)
        };
        let mlp = Value::Mlp(told());
        let mlp = Stream::clean(0).with_run(Node::Mlp { layer }, Indices::All, mlp);
        let receivers = [
            (
                ReceiverInput::Query { layer, head: 3 },
                head(told(), clean(), clean()),
            ),
            (
                ReceiverInput::Key { layer, kv_head },
                head(clean(), told(), clean()),
            ),
            (
                ReceiverInput::Value { layer, kv_head },
                head(clean(), clean(), told()),
            ),
            (ReceiverInput::Mlp { layer }, mlp),
        ];
        for (receiver, stream) in receivers {
            patches.push(PathPatch::new(sender, receiver));
            streams.push(stream);
        }
        // Two of them at once.
        patches.push(PathPatch {
            senders: vec![sender.into()],
            receivers: vec![
                ReceiverInput::Query { layer, head: 3 }.into(),
                ReceiverInput::Key { layer, kv_head }.into(),
            ],
        });
        streams.push(head(told(), told(), clean()));
    }
    let inputs = [&base, &source];
    let trees = patch_streams(&model, &inputs, &streams, metric, &whole()).expect("valid");
    let found = path_patch(&model, inputs, &patches, Mlps::Frozen, metric, &whole());
    let found = found.expect("valid");
    assert_close(&found.patched, &trees, 1e-5, "gpt2_plain");
    for value in &found.patched {
        assert!((value - found.base).abs() > 1e-5, "something changes");
    }
}

/// A sender with no MLP between it and its receivers reaches them in the same way.
fn frozen_and_recomputed_differ_by_what_mlps_say<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let patch = |node, input| PathPatch::new(node, input);
        let query = ReceiverInput::Query { layer: 1, head: 1 };
        let patches = [
            patch(Node::Mlp { layer: 0 }, query),
            patch(Node::Mlp { layer: 1 }, ReceiverInput::Logits),
            patch(
                Node::Head { layer: 1, head: 0 },
                ReceiverInput::Mlp { layer: 1 },
            ),
            patch(Node::Head { layer: 0, head: 0 }, query),
            patch(Node::Head { layer: 1, head: 0 }, ReceiverInput::Logits),
        ];
        let run = |mlps| {
            let inputs = [&base, &source];
            path_patch(&model, inputs, &patches, mlps, metric, &whole())
                .expect("valid")
                .patched
        };
        let [frozen, recomputed] = [Mlps::Frozen, Mlps::Recomputed].map(run);
        assert_close(&frozen[..3], &recomputed[..3], 1e-5, name);
        for index in 3..5 {
            let difference = (frozen[index] - recomputed[index]).abs();
            assert!(difference > 1e-4, "{name}: MLPs make a difference");
        }
    }
}

/// Under grouped queries, a key-value head that receives is each of its query heads receiving.
fn a_shared_key_is_the_key_of_each_head<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let [base, source, _] = inputs();
    let sender = Node::Head { layer: 0, head: 1 };
    for (kv_head, heads) in [(0, [0, 1]), (1, [2, 3])] {
        let told = Stream::clean(0).with(sender, Indices::All, Value::Clean(1));
        let mut stream = Stream::clean(0);
        for head in heads {
            let computed = Value::Attention {
                query: Box::new(Stream::clean(0)),
                key: Box::new(told.clone()),
                value: Box::new(Stream::clean(0)),
            };
            stream = stream.with_run(Node::Head { layer: 1, head }, Indices::All, computed);
        }
        let patch = PathPatch::new(sender, ReceiverInput::Key { layer: 1, kv_head });
        let inputs = [&base, &source];
        let tree = patch_streams(&model, &inputs, &[stream], metric, &whole()).expect("valid");
        let found = path_patch(&model, inputs, &[patch], Mlps::Frozen, metric, &whole());
        assert_close(&found.expect("valid").patched, &tree, 1e-5, "llama_gqa");
    }
}

/// Senders at different positions in each example, with both methods; and examples of several
/// lengths.
fn positions_tell_examples_apart<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let base = tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]]);
        let source = tokens(&[&[2, 7, 1, 8, 2], &[8, 1, 8]]);
        let last = Indices::Each(vec![vec![4], vec![2]]);
        let other = Indices::Each(vec![vec![1], vec![0]]);
        let node = Node::Head { layer: 1, head: 2 };
        let sets = [&last, &other].map(|p| vec![Path::new(node).at(p.clone())]);
        let patches = [&last, &other].map(|positions| {
            let positions = positions.clone();
            PathPatch::new(Sender { node, positions }, ReceiverInput::Logits)
        });
        let inputs = [&base, &source];
        let all = patch_paths(&model, inputs, &[vec![Path::new(node)]], metric, &whole());
        let all = all.expect("valid");
        let trees = patch_paths(&model, inputs, &sets, metric, &whole()).expect("valid");
        let direct = path_patch(&model, inputs, &patches, Mlps::Frozen, metric, &whole());
        // The logits read the last position alone.
        let expected = [all.patched[0], all.base];
        assert_close(&trees.patched, &expected, 1e-5, name);
        assert_close(&direct.expect("valid").patched, &expected, 1e-5, name);
        assert!((all.patched[0] - all.base).abs() > 1e-4, "{name}");

        let query = ReceiverInput::Query { layer: 1, head: 0 };
        let first = Node::Head { layer: 0, head: 2 };
        let at = |positions| Receiver {
            input: query,
            positions,
        };
        let patches = [at(Indices::All), at(last.clone()), at(other.clone())]
            .map(|receiver| PathPatch::new(first, receiver));
        let found = path_patch(&model, inputs, &patches, Mlps::Frozen, metric, &whole());
        let found = found.expect("valid").patched;
        // In the last layer, the query at the last position is the only one that counts.
        assert_close(&found, &[found[0], found[0], all.base], 1e-5, name);
        assert!((found[0] - all.base).abs() > 1e-5, "{name}");
    }
}

/// Queries, keys and values that receive at some positions, for prompts with the same beginning.
fn receivers_at_positions_are_the_same_with_both_methods<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let base = tokens(&[&[3, 1, 4, 1, 5], &[3, 1, 6, 2, 7]]);
        let source = tokens(&[&[3, 1, 8, 1, 2], &[3, 1, 4, 9, 7]]);
        let inputs_of_heads = [
            ReceiverInput::Query { layer: 1, head: 1 },
            ReceiverInput::Key {
                layer: 1,
                kv_head: 0,
            },
            ReceiverInput::Value {
                layer: 1,
                kv_head: 1,
            },
        ];
        let lists = [
            vec![Indices::All],
            vec![Indices::Same(vec![2, 4])],
            vec![Indices::Each(vec![vec![4], vec![3]])],
            // One input at two places, which meet.
            vec![Indices::Same(vec![2, 4]), Indices::Same(vec![3, 4])],
        ];
        let mut patches: Vec<PathPatch> = Vec::new();
        for positions in &lists {
            let receivers = |input| {
                let at = positions.iter().cloned();
                at.map(move |positions| Receiver { input, positions })
            };
            let mut all = Vec::new();
            for input in inputs_of_heads {
                all.extend(receivers(input));
                patches.push(PathPatch {
                    // Between this sender and the receivers is no other MLP.
                    senders: vec![Node::Mlp { layer: 0 }.into()],
                    receivers: receivers(input).collect(),
                });
            }
            patches.push(PathPatch {
                senders: vec![Node::Mlp { layer: 0 }.into()],
                receivers: all,
            });
        }
        let run = |mlps| {
            let inputs = [&base, &source];
            let effects = path_patch(&model, inputs, &patches, mlps, metric, &whole());
            effects.expect("valid")
        };
        let [frozen, recomputed] = [Mlps::Frozen, Mlps::Recomputed].map(run);
        assert_close(&frozen.patched, &recomputed.patched, 1e-5, name);
        let mut numbers = frozen.patched;
        numbers.push(frozen.base);
        numbers.sort_by(f64::total_cmp);
        numbers.dedup_by(|a, b| (*a - *b).abs() < 1e-6);
        assert!(numbers.len() >= 12, "{name}: they have separate effects");
    }
}

fn heads_without_a_receiver_change_nothing<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let [base, source, _] = inputs();
    let inputs = [&base, &source];
    let query = ReceiverInput::Query { layer: 1, head: 1 };
    for mlps in [Mlps::Frozen, Mlps::Recomputed] {
        let receivers = [query.into()];
        let grid = head_effects(&model, inputs, &receivers, mlps, metric, &whole());
        let grid = grid.expect("valid");
        assert_eq!(
            (grid.patched.rows.len(), grid.patched.columns.len()),
            (2, 4)
        );
        assert_eq!(grid.patched.values[1], [grid.base; 4]);
        assert!(
            grid.patched.values[0]
                .iter()
                .all(|value| *value != grid.base)
        );
        assert_eq!(grid.relative_changes().values[1], [0.0; 4]);

        let senders = [Node::Embedding, Node::Head { layer: 0, head: 3 }].map(Sender::from);
        let receivers = [query, ReceiverInput::Logits].map(Receiver::from);
        let pairs = path_grid(&model, inputs, &senders, &receivers, mlps, metric, &whole());
        let pairs = pairs.expect("valid");
        assert_eq!(pairs.patched.rows, ["embedding", "0.3"]);
        assert_eq!(pairs.patched.columns, ["1.1.q", "logits"]);
        let same = [pairs.patched.values[1][0]];
        assert_close(&same, &[grid.patched.values[0][3]], 1e-6, "the same cell");
        let text = serde_json::to_string(&pairs).expect("plain data");
        assert_eq!(
            serde_json::from_str::<burn_align::methods::PathGrid>(&text).expect("the same"),
            pairs
        );
    }
}

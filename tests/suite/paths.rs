//! Path patching: identities, two methods that agree, and references.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Indices, LogitPositions, Plan, RunOptions, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    Mlps, PathPatch, Receiver, ReceiverInput, Sender, SweepGrid, head_effects, logit_differences,
    patch_paths, patch_streams, path_grid, path_patch, sweep,
};
use burn_align::paths::{HeadInput, Hop, Node, Path, PathError, Stream, Value, Worlds};
use burn_align_models::{AlignableTransformer, Component, Decoder, ModelDims, Site, TokenBatch};

use crate::support::{load, max_difference, tokens, values};

mod oracle;
mod reference;
#[cfg(feature = "flex")]
mod refused;

on_every_backend!(
    no_path_is_the_base_and_all_paths_are_the_source,
    every_path_from_the_embedding_is_the_source,
    what_nodes_add_is_the_residual_stream,
    what_layers_add_is_what_blocks_pass_on,
    mlps_of_parallel_blocks_do_not_read_their_attention,
    heads_before_a_norm_change_what_it_gives,
    heads_are_patched_with_recomputed_mlps_in_every_family,
    direct_effects_are_the_same_in_both_ways,
    receivers_are_the_same_with_both_methods,
    frozen_and_recomputed_differ_by_what_mlps_say,
    a_shared_key_is_the_key_of_each_head,
    positions_tell_examples_apart,
    receivers_at_positions_are_the_same_with_both_methods,
    heads_without_a_receiver_change_nothing,
    a_budget_changes_nothing,
    a_run_that_goes_on_is_an_interchange,
    a_position_that_is_read_may_be_another_inputs,
);

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

fn no_path_is_the_base_and_all_paths_are_the_source<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let everything = Node::all(model.dims()).into_iter().map(Path::new);
        let heads = Node::heads(model.dims()).into_iter();
        let one_by_one = heads.chain(
            Node::all(model.dims())
                .into_iter()
                .filter(|node| !matches!(node, Node::Attention { .. })),
        );
        let sets = [
            Vec::new(),
            everything.collect(),
            one_by_one.map(Path::new).collect(),
        ];
        let effects = patch_paths(&model, [&base, &source], &sets, metric, &whole());
        let effects = effects.expect("valid");
        let (b, s) = (effects.base, effects.source);
        assert!((b - s).abs() > 0.01, "{name}: base and source differ");
        assert_close(&effects.patched, &[b, s, s], 1e-5, name);
        let tolerance = 2e-5 / (b - s).abs();
        assert_close(&effects.shares(), &[0.0, 1.0, 1.0], tolerance, name);
    }
}

/// Every path from the embedding on, with separate heads.
fn all_paths(dims: &ModelDims) -> Vec<Path> {
    let mut paths = vec![Path::new(Node::Embedding)];
    for layer in 0..dims.layers {
        let through = |hop: Hop, paths: &[Path]| -> Vec<Path> {
            paths.iter().map(|path| path.clone().through(hop)).collect()
        };
        let before = paths.clone();
        for head in 0..dims.heads {
            for input in HeadInput::ALL {
                paths.extend(through(hop(layer, head, input), &before));
            }
        }
        let before = match dims.parallel {
            true => before,
            false => paths.clone(),
        };
        paths.extend(through(Hop::Mlp { layer }, &before));
    }
    paths
}

fn every_path_from_the_embedding_is_the_source<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let paths = all_paths(model.dims());
        assert_eq!(
            paths.len(),
            match name {
                "gpt_neox_plain" => 64,
                "phi_plain" => 196,
                _ => 676,
            }
        );
        let effects = patch_paths(&model, [&base, &source], &[paths], metric, &whole());
        let effects = effects.expect("valid");
        assert_close(&effects.patched, &[effects.source], 2e-5, name);
    }
}

/// The differences of all nodes' outputs add up to that of the final residual stream.
fn what_nodes_add_is_the_residual_stream<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let mut plan = Plan::new();
        let worlds = [&base, &source].map(|tokens| {
            let input = plan.tokens(tokens);
            plan.world(input, [])
        });
        let mut sites = vec![Site::Embedding];
        for layer in 0..2 {
            let components = [Component::MlpOutput, Component::AttentionValueOutput];
            sites.extend(components.map(|component| Site::Block(layer, component)));
        }
        sites.push(Site::Block(1, Component::BlockOutput));
        let reads: Vec<_> = sites
            .iter()
            .map(|site| worlds.map(|world| plan.read(world, *site, Units::ALL)))
            .collect();
        let results = plan.run(&model, &Worlds::interventions()).expect("valid");
        let difference = |index: usize| {
            let [base, source] = reads[index].map(|read| results.get(read));
            source - base
        };
        let heads = model.by_head().expect("it has heads");
        let mut sum = difference(0);
        for layer in 0..2 {
            sum = sum + difference(1 + 2 * layer);
            let mixed = difference(2 + 2 * layer);
            for head in 0..4 {
                let own = mixed.clone().narrow(2, head * 4, 4);
                sum = sum + heads.head_output(layer, head, own);
            }
        }
        let expected = difference(5).into_data();
        assert!(max_difference(sum, &expected) <= 2e-5, "{name}");
    }
}

/// The embedding and everything that attention and MLPs have added to it are what a block passes on.
fn what_layers_add_is_what_blocks_pass_on<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let dims = model.dims();
        let [base, ..] = inputs();
        let mut plan = Plan::new();
        let input = plan.tokens(&base);
        let world = plan.world(input, []);
        let embedding = plan.read(world, Site::Embedding, Units::ALL);
        let mut layers = Vec::new();
        for layer in 0..dims.layers {
            let components = [
                dims.added_by_attention(),
                dims.added_by_mlp(),
                Component::BlockOutput,
            ];
            let read = |component| plan.read(world, Site::Block(layer, component), Units::ALL);
            layers.push(components.map(read));
        }
        let results = plan.run(&model, &Worlds::interventions()).expect("valid");
        let mut sum = results.get(embedding);
        for (layer, reads) in layers.into_iter().enumerate() {
            let [attention, mlp, output] = reads.map(|read| results.get(read));
            sum = sum + attention + mlp;
            let expected = output.into_data();
            let difference = max_difference(sum.clone(), &expected);
            assert!(difference <= 2e-5, "{name}, layer {layer}: {difference}");
        }
    }
}

fn mlps_of_parallel_blocks_do_not_read_their_attention<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let dims = model.dims();
        assert_eq!(
            dims.parallel,
            ["gpt_neox_plain", "phi_plain"].contains(&name)
        );
        for sender in [
            Node::Attention { layer: 1 },
            Node::Head { layer: 1, head: 1 },
        ] {
            let path = Path::new(sender).through(Hop::Mlp { layer: 1 });
            let expected = match dims.parallel {
                false => Ok(()),
                true => Err(PathError::NotAfter {
                    sender,
                    receiver: "m1".to_owned(),
                }),
            };
            assert_eq!(path.check(dims), expected, "{name}");
        }
        let next = Path::new(Node::Mlp { layer: 0 }).through(hop(1, 0, HeadInput::Key));
        assert_eq!(next.check(dims), Ok(()), "{name}");
        let same = Path::new(Node::Mlp { layer: 1 }).through(hop(1, 0, HeadInput::Key));
        assert!(same.check(dims).is_err(), "{name}");
    }
}

/// What a receiver reads if it sees these senders, and everything else goes on freely.
fn received(input: ReceiverInput, told: &Stream, dims: &ModelDims) -> Stream {
    let clean = &Stream::clean(0);
    let each = dims.heads / dims.kv_heads;
    let heads = |layer, heads: std::ops::Range<usize>, streams: [&Stream; 3]| {
        heads.fold(clean.clone(), |stream, head| {
            let [query, key, value] = streams.map(|stream| Box::new(stream.clone()));
            let computed = Value::Attention { query, key, value };
            stream.with_run(Node::Head { layer, head }, Indices::All, computed)
        })
    };
    let of_kv_head = |kv_head| kv_head * each..(kv_head + 1) * each;
    match input {
        ReceiverInput::Logits => told.clone(),
        ReceiverInput::Mlp { layer } => {
            let reads = Value::Mlp(Box::new(told.clone()));
            clean
                .clone()
                .with_run(Node::Mlp { layer }, Indices::All, reads)
        }
        ReceiverInput::Query { layer, head } => heads(layer, head..head + 1, [told, clean, clean]),
        ReceiverInput::Key { layer, kv_head } => {
            heads(layer, of_kv_head(kv_head), [clean, told, clean])
        }
        ReceiverInput::Value { layer, kv_head } => {
            heads(layer, of_kv_head(kv_head), [clean, clean, told])
        }
    }
}

/// The sum of the heads goes through a norm, so what one head changes depends on the others, and two
/// heads of a layer change something else than both by themselves.
fn heads_before_a_norm_change_what_it_gives<B: Backend>(device: &B::Device) {
    for name in ["gemma2_plain", "olmo2_plain"] {
        let model = load::<B>(name, device);
        let dims = model.dims();
        assert!(dims.post_norms);
        let [base, source, _] = inputs();
        let inputs = [&base, &source];
        let at = |node, positions: &[usize]| Sender {
            node,
            positions: Indices::Same(positions.to_vec()),
        };
        let head = |layer, head| Node::Head { layer, head };
        let below: [Vec<Sender>; 5] = [
            vec![head(0, 0).into()],
            vec![head(0, 0).into(), head(0, 3).into()],
            vec![
                head(0, 3).into(),
                Node::Mlp { layer: 0 }.into(),
                head(0, 1).into(),
            ],
            vec![at(head(0, 2), &[1, 3]), at(head(0, 1), &[3, 4])],
            vec![Node::Embedding.into(), head(0, 1).into()],
        ];
        let above: [Vec<Sender>; 2] = [
            vec![head(1, 0).into(), head(0, 1).into(), head(1, 2).into()],
            vec![at(head(1, 3), &[4]), head(1, 1).into()],
        ];
        let (layer, kv_head) = (1, dims.kv_heads - 1);
        let heads = [
            ReceiverInput::Query { layer, head: 3 },
            ReceiverInput::Key { layer, kv_head },
            ReceiverInput::Value { layer, kv_head },
        ];
        let others = [ReceiverInput::Mlp { layer }, ReceiverInput::Logits];
        let mut cells: Vec<(&Vec<Sender>, ReceiverInput)> = Vec::new();
        for receiver in heads.into_iter().chain(others) {
            cells.extend(below.iter().map(|senders| (senders, receiver)));
        }
        for receiver in others {
            cells.extend(above.iter().map(|senders| (senders, receiver)));
        }
        let streams = cells.iter().map(|(senders, receiver)| {
            let told = senders.iter().fold(Stream::clean(0), |stream, sender| {
                stream.with(sender.node, sender.positions.clone(), Value::Clean(1))
            });
            received(*receiver, &told, dims)
        });
        let streams: Vec<Stream> = streams.collect();
        let patches = cells.iter().map(|(senders, receiver)| PathPatch {
            senders: senders.to_vec(),
            receivers: vec![(*receiver).into()],
        });
        let patches: Vec<PathPatch> = patches.collect();
        let trees = patch_streams(&model, &inputs, &streams, metric, &whole()).expect("valid");
        let run = |patches: &[PathPatch]| {
            path_patch(&model, inputs, patches, Mlps::Frozen, metric, &whole()).expect("valid")
        };
        let found = run(&patches);
        assert_close(&found.patched, &trees, 1e-5, name);
        for (value, (_, receiver)) in found.patched.iter().zip(&cells) {
            let change = (value - found.base).abs();
            assert!(change > 1e-6, "{name}: {receiver} changes");
        }
        // Only the last position is computed if only the logits receive.
        let (direct, expected): (Vec<PathPatch>, Vec<f64>) = patches
            .into_iter()
            .zip(&trees)
            .filter(|(patch, _)| patch.receivers[0].input == ReceiverInput::Logits)
            .unzip();
        assert_close(&run(&direct).patched, &expected, 1e-5, name);
    }
}

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

fn a_budget_changes_nothing<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let [base, source, _] = inputs();
    let inputs = [&base, &source];
    let paths = all_paths(model.dims());
    let paths: Vec<Vec<Path>> = paths.chunks(80).map(<[Path]>::to_vec).collect();
    let receivers = [ReceiverInput::Value {
        layer: 1,
        kv_head: 1,
    }
    .into()];
    let run = |options: &RunOptions| {
        let trees = patch_paths(&model, inputs, &paths, metric, options).expect("valid");
        let grid = head_effects(
            &model,
            inputs,
            &receivers,
            Mlps::Recomputed,
            metric,
            options,
        );
        [trees.patched, grid.expect("valid").patched.values.concat()].concat()
    };
    let parts = run(&whole().with_max_rows(200));
    assert_close(&parts, &run(&whole()), 1e-5, "llama_gqa");
}

fn a_run_that_goes_on_is_an_interchange<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let words: Vec<String> = (0..5).map(|word| word.to_string()).collect();
        let grid = SweepGrid::layers_and_positions(Component::MlpOutput, 2, &words);
        let (inputs, swap) = ([&base, &source], VanillaIntervention);
        let swept = sweep(&model, &swap, inputs, &grid, metric, &whole()).expect("valid");
        let cells = (0..2).flat_map(|layer| (0..5).map(move |position| (layer, position)));
        let streams = cells.map(|(layer, position)| {
            let (node, at) = (Node::Mlp { layer }, Indices::Same(vec![position]));
            Stream::clean(0).with_run(node, at, Value::Clean(1))
        });
        let streams: Vec<Stream> = streams.collect();
        let found = patch_streams(&model, &inputs, &streams, metric, &whole()).expect("valid");
        assert_close(&found, &swept.values.concat(), 1e-6, name);
    }
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

/// As `"positions"` are branched in nano-causal-interventions.
fn a_position_that_is_read_may_be_another_inputs<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let inputs = [&base, &source];
        let words: Vec<String> = (0..5).map(|word| word.to_string()).collect();
        for component in [Component::AttentionInput, Component::MlpInput] {
            let grid = SweepGrid::layers_and_positions(component, 2, &words);
            let swept = sweep(
                &model,
                &VanillaIntervention,
                inputs,
                &grid,
                metric,
                &whole(),
            );
            let cells = (0..2).flat_map(|layer| (0..5).map(move |position| (layer, position)));
            let streams = cells.map(|(layer, position)| {
                let node = match component {
                    Component::MlpInput => Node::Mlp { layer },
                    _ => Node::Attention { layer },
                };
                reads_at(node, position, model.dims())
            });
            let streams: Vec<Stream> = streams.collect();
            let found = patch_streams(&model, &inputs, &streams, metric, &whole()).expect("valid");
            let expected = swept.expect("valid").values.concat();
            assert_close(&found, &expected, 1e-5, name);
        }
    }
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

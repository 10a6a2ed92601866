//! What nodes and layers add to the residual stream.

use burn::tensor::backend::Backend;
use burn_align::engine::{Indices, Plan, Units};
use burn_align::methods::{Mlps, PathPatch, ReceiverInput, Sender, patch_streams, path_patch};
use burn_align::paths::{HeadInput, Hop, Node, Path, PathError, Stream, Value, Worlds};
use burn_align_models::{AlignableTransformer, Component, ModelDims, Site};

use super::{FAMILIES, MODELS, assert_close, hop, inputs, metric, whole};
use crate::support::{load, max_difference};

on_every_backend!(
    what_nodes_add_is_the_residual_stream,
    what_layers_add_is_what_blocks_pass_on,
    mlps_of_parallel_blocks_do_not_read_their_attention,
    heads_before_a_norm_change_what_it_gives,
);

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

/// The embedding and everything that attention and MLPs have added to it are what a block passes
/// on.
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

/// The sum of the heads goes through a norm, so what one head changes depends on the others, and
/// two heads of a layer change something else than both by themselves.
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

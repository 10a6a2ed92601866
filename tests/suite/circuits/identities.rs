//! What scores of edges are made of: sums over readers, small patches, direct paths.

use burn::backend::Autodiff;
use burn::tensor::{DType, Int, Tensor, backend::Backend};
use burn_align::engine::{RunOptions, Units};
use burn_align::methods::attribution::{AtpOptions, Patching, attribution_patching};
use burn_align::methods::circuits::{
    Edge, EdgeGraph, EdgeOptions, Reader, eap, eap_ig_inputs, patch_all_edges, patch_edges,
};
use burn_align::methods::{Mlps, PathPatch, ReceiverInput, logit_differences, path_patch};
use burn_align::paths::Node;
use burn_align_models::{AlignableTransformer, Component, Decoder, Site, TokenBatch};

use super::{assert_scores, base, metric, noising, source};
use crate::support::{FAMILIES, load, of_gradients, tokens};

on_every_backend!(
    edges_of_a_writer_sum_to_its_attribution,
    small_patches_are_what_eap_estimates,
    direct_paths_are_edges,
    one_step_at_the_source_is_a_gradient_there,
);

/// A writer's output is read by all readers after it and by nothing else, so its gradient is the
/// sum of theirs.
fn edges_of_a_writer_sum_to_its_attribution<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<Autodiff<B>>(name, device);
        let dims = model.dims().clone();
        let scores = eap(&model, &noising(), &metric(), &EdgeOptions::default());
        let scores = scores.unwrap_or_else(|error| panic!("{name}: {error}"));
        let graph = scores.graph();
        let nodes = graph.writers().iter().map(|writer| match *writer {
            Node::Head { layer, head } => {
                let site = Site::Block(layer, Component::AttentionValueOutput);
                (site, Units::head(head))
            }
            Node::Mlp { layer } => (Site::Block(layer, dims.added_by_mlp()), Units::ALL),
            Node::Embedding | Node::Attention { .. } => (Site::Embedding, Units::ALL),
        });
        let nodes: Vec<(Site, Units)> = nodes.collect();
        let options = AtpOptions::default();
        let effects = attribution_patching(&model, &noising(), &nodes, &metric(), &options);
        let effects = effects.expect("valid").means();
        let mut sums = vec![0.0; effects.len()];
        for (edge, score) in graph.edges().zip(scores.values()) {
            sums[edge.writer] -= score; // of the loss
        }
        assert_scores(&sums, &effects, of_gradients::<B>(device, 2e-4), name);
    }
}

/// The vectors of some tokens, moved by a share of the way towards those of others.
fn embedded<B: Backend>(
    model: &Decoder<B>,
    base: &TokenBatch,
    other: &TokenBatch,
    share: f64,
) -> Tensor<B, 3> {
    let table = model.token_embedding().cast(DType::F32);
    let [_vocab, width] = table.dims();
    let vectors = |tokens: &TokenBatch| {
        let ids: Tensor<B, 2, Int> = tokens.to_tensor(&model.device());
        let [batch, pos] = ids.dims();
        let vectors = table.clone().select(0, ids.reshape([batch * pos]));
        vectors.reshape([batch, pos, width])
    };
    let (base, other) = (vectors(base), vectors(other));
    base.clone() + (other - base) * share
}

/// Differences that are a small part of those between the prompts, in both directions, so that what
/// is left is of third order.
fn small_patches_are_what_eap_estimates<B: Backend>(device: &B::Device) {
    const SHARE: f64 = 3e-3;
    let base = tokens(&[&[3, 1, 4, 1, 5, 9], &[9, 2, 6, 5, 3, 5]]);
    let other = tokens(&[&[2, 7, 1, 8, 2, 8], &[8, 1, 8, 2, 8, 4]]);
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let tracked = load::<Autodiff<B>>(name, device);
        let patching = |share: f64| -> Patching<B> {
            let source = embedded(&model, &base, &other, share);
            Patching::noising(embedded(&model, &base, &other, 0.0), source)
        };
        let options = EdgeOptions::default();
        let both = [SHARE, -SHARE].map(|share| {
            let exact = patch_all_edges(&model, &patching(share), &metric(), &options);
            let exact = exact.unwrap_or_else(|error| panic!("{name}: {error}"));
            let estimate = eap(&tracked, &patching(share), &metric(), &options);
            let estimate = estimate.unwrap_or_else(|error| panic!("{name}: {error}"));
            [exact.values().to_vec(), estimate.values().to_vec()]
        });
        let [up, down] = both;
        let central = |which: usize| -> Vec<f64> {
            let pairs = up[which].iter().zip(&down[which]);
            pairs
                .map(|(up, down)| (up - down) / (2.0 * SHARE))
                .collect()
        };
        assert_scores(&central(1), &central(0), 1e-2, name);
    }
}

/// The change of an edge alone is that of a direct path, where no heads share what is read. The
/// prompts begin with the same token, so only later positions are computed.
fn direct_paths_are_edges<B: Backend>(device: &B::Device) {
    let other = tokens(&[&[3, 7, 1, 8, 2], &[9, 1, 8, 2, 8]]);
    let patching = Patching::<B>::noising(base(), other.clone());
    for name in ["gpt2_plain", "gpt_neox_plain", "llama_gqa", "phi_plain"] {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("it has heads");
        let is_grouped = model.dims().kv_heads < model.dims().heads;
        let edges = graph.edges().filter_map(|edge| {
            let receiver = match graph.readers()[edge.reader] {
                Reader::Query { layer, head } => ReceiverInput::Query { layer, head },
                Reader::Key { .. } | Reader::Value { .. } if is_grouped => return None,
                Reader::Key { layer, head } => ReceiverInput::Key {
                    layer,
                    kv_head: head,
                },
                Reader::Value { layer, head } => ReceiverInput::Value {
                    layer,
                    kv_head: head,
                },
                Reader::Mlp { layer } => ReceiverInput::Mlp { layer },
                Reader::Logits => ReceiverInput::Logits,
            };
            let patch = PathPatch::new(graph.writers()[edge.writer], receiver);
            Some((edge, patch))
        });
        let (edges, patches): (Vec<Edge>, Vec<PathPatch>) = edges.unzip();
        let run = RunOptions::default();
        let difference = |logits: Tensor<B, 2>| logit_differences(logits, &[5, 30], &[17, 2]);
        let inputs = [&base(), &other];
        let paths = path_patch(&model, inputs, &patches, Mlps::Frozen, difference, &run);
        let paths = paths.expect("valid");
        let expected = paths.patched.iter().map(|patched| paths.base - patched);
        let options = EdgeOptions::default();
        let found = patch_edges(&model, &patching, &edges, &metric(), &options).expect("valid");
        assert_scores(&found, &expected.collect::<Vec<_>>(), 1e-4, name);
    }
}

/// The path of one step is the source alone, so swapping the prompts changes the sign of
/// differences only.
fn one_step_at_the_source_is_a_gradient_there<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "qwen3_plain"] {
        let model = load::<Autodiff<B>>(name, device);
        let options = EdgeOptions::default().with_steps(1);
        let found = eap_ig_inputs(&model, &noising(), &metric(), &options).expect("valid");
        let swapped = Patching::noising(source(), base());
        let expected = eap(&model, &swapped, &metric(), &options).expect("valid");
        let expected: Vec<f64> = expected.values().iter().map(|score| -score).collect();
        assert_scores(found.values(), &expected, 1e-4, name);
        let denoising = Patching::denoising(base(), source());
        let same = eap(&model, &denoising, &metric(), &options).expect("valid");
        let same: Vec<f64> = same.values().iter().map(|score| -score).collect();
        assert_scores(&same, &expected, 1e-6, name);
    }
}

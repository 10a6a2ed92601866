//! Causal scrubbing: identities, draws, budgets, and a reference.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::Indices;
use burn_align::methods::{
    Donors, Feature, Hypothesis, Place, ScrubOptions, ScrubTree, Scrubbed, Unimportant,
    cross_entropies, scrub, scrub_ablations,
};
use burn_align::paths::{HeadInput, Node};
use burn_align_models::{AlignableTransformer, Decoder, ModelInput, TokenBatch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::paths::{FAMILIES, MODELS, depth};
use crate::support::load;

mod reference;
#[cfg(feature = "flex")]
mod refused;
mod tree;

on_every_backend!(
    the_whole_input_recovers_everything,
    the_empty_hypothesis_is_the_randomised_loss,
    a_seed_gives_the_same_numbers,
    a_budget_changes_nothing,
    samples_are_averaged_by_example,
    an_ablated_node_is_one_that_computes_nothing,
    what_does_not_matter_may_come_apart,
    the_output_may_start_from_another_example,
    large_trees_stay_within_the_budget,
    the_error_of_the_draws_is_what_seeds_differ_by,
);

pub(crate) type Example = Vec<u32>;

/// Random prompts of five tokens below 40, of which the first is one of three.
pub(crate) fn dataset(count: usize) -> TokenBatch {
    numbered_dataset(7, count)
}

fn numbered_dataset(seed: u64, count: usize) -> TokenBatch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rows = (0..count).map(|_| {
        let mut row: Vec<u32> = (0..5).map(|_| rng.random_range(0..40)).collect();
        row[0] %= 3;
        row
    });
    TokenBatch::new(rows.collect()).expect("a batch")
}

/// The expected next token; any will do.
pub(crate) fn label(tokens: &Example) -> u32 {
    tokens[0] + tokens[4] / 2
}

pub(crate) fn token(position: usize) -> Feature<Example> {
    Feature::new(format!("token {position}"), move |tokens: &Example| {
        tokens[position]
    })
}

/// The loss of predicting the labels.
pub(crate) fn scrubbed<B: Backend>(
    model: &impl AlignableTransformer<B>,
    tree: &ScrubTree,
    tokens: &TokenBatch,
) -> Scrubbed {
    scrub(model, tree, |logits, examples| {
        loss(logits, examples, tokens)
    })
    .expect("valid")
}

pub(crate) fn loss<B: Backend>(
    logits: Tensor<B, 2>,
    examples: &[usize],
    tokens: &TokenBatch,
) -> Tensor<B, 1> {
    let labels = examples
        .iter()
        .map(|example| label(&tokens.ids()[*example]));
    cross_entropies(logits, &labels.collect::<Vec<_>>())
}

fn treeified<B: Backend>(
    hypothesis: &Hypothesis<Example>,
    model: &Decoder<B>,
    tokens: &TokenBatch,
    options: &ScrubOptions,
) -> ScrubTree {
    let tree = hypothesis.treeify(model.dims(), tokens, tokens.ids(), options);
    tree.expect("a hypothesis about this model")
}

/// A bit of everything.
fn some_hypothesis() -> Hypothesis<Example> {
    let head = |layer, head| Node::Head { layer, head };
    let last = Indices::Same(vec![4]);
    Hypothesis::new()
        .node("says", Place::from(head(1, 0)).at(last.clone()), token(0))
        .node("says too", head(1, 2), token(0))
        .node("mlp", Node::Mlp { layer: 0 }, token(4))
        .node("asks", Place::stream().at(last), token(4))
        .node("tells", head(0, 1), token(0))
        .node("words", Node::Embedding, token(4))
        .output_reads(["says", "says too", "mlp"])
        .head_reads("says", HeadInput::Query, ["asks"])
        .head_reads("says", HeadInput::Key, ["tells", "mlp"])
        .head_reads("says too", HeadInput::Value, ["tells"])
        .mlp_reads("mlp", ["words"])
}

/// Every node reads everything that comes before it, in one piece or in many; all of it agrees on
/// the whole input.
fn everything<B: Backend>(model: &Decoder<B>, by_head: bool) -> Hypothesis<Example> {
    let dims = model.dims();
    let all = Node::all(dims).into_iter().flat_map(|node| match node {
        Node::Attention { layer } if by_head => {
            let heads = 0..dims.heads;
            heads.map(|head| Node::Head { layer, head }).collect()
        }
        node => vec![node],
    });
    let all: Vec<Node> = all.collect();
    let mut hypothesis = Hypothesis::new();
    for node in &all {
        hypothesis = hypothesis.node(node.to_string(), *node, Feature::input());
    }
    for reader in &all {
        let before = all
            .iter()
            .filter(|node| depth(**node, dims) < depth(*reader, dims));
        let before: Vec<String> = before.map(ToString::to_string).collect();
        let name = reader.to_string();
        hypothesis = match reader {
            Node::Embedding => hypothesis,
            Node::Mlp { .. } => hypothesis.mlp_reads(name, before),
            _ => HeadInput::ALL
                .into_iter()
                .fold(hypothesis, |hypothesis, input| {
                    hypothesis.head_reads(name.clone(), input, before.clone())
                }),
        };
    }
    hypothesis.output_reads(all.iter().map(ToString::to_string))
}

fn the_whole_input_recovers_everything<B: Backend>(device: &B::Device) {
    let tokens = dataset(12);
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let mut flat = Hypothesis::new();
        for node in Node::all(model.dims()) {
            flat = flat.node(node.to_string(), node, Feature::input());
        }
        let flat = flat.output_reads(Node::all(model.dims()).iter().map(ToString::to_string));
        let stream = Hypothesis::new()
            .node("all", Place::stream(), Feature::input())
            .output_reads(["all"]);
        let hypotheses = [
            flat,
            stream,
            everything(&model, false),
            everything(&model, true),
        ];
        for hypothesis in hypotheses {
            for unimportant in [Unimportant::Shared, Unimportant::Apart] {
                let options = ScrubOptions::default().with_unimportant(unimportant);
                let tree = treeified(&hypothesis, &model, &tokens, &options);
                let found = scrubbed(&model, &tree, &tokens);
                assert_eq!(found.recovered(), 1.0, "{name}: {hypothesis:?}");
                assert_eq!(found.kl, 0.0);
                assert_eq!(found.standard_error(), 0.0);
                assert!((found.random - found.model).abs() > 1e-3);
                assert!(found.random_kl > 1e-3);
            }
        }
    }
}

fn the_empty_hypothesis_is_the_randomised_loss<B: Backend>(device: &B::Device) {
    let tokens = dataset(12);
    for name in MODELS {
        let model = load::<B>(name, device);
        let options = ScrubOptions::default().with_donors(Donors::WithoutSelf);
        let tree = treeified(&Hypothesis::new(), &model, &tokens, &options);
        let found = scrubbed(&model, &tree, &tokens);
        assert_eq!(found.recovered(), 0.0);
        assert_eq!(found.kl, found.random_kl);
        // The other anchors come from elsewhere.
        let mut expected = [0.0; 2];
        for (example, donor) in tree.unimportant(0).iter().enumerate() {
            assert_ne!(example, *donor);
            for (sum, from) in expected.iter_mut().zip([example, *donor]) {
                let one = tokens.select(&[from]).expect("there").to_tensor(device);
                let logits = model
                    .forward(ModelInput::Tokens(one))
                    .narrow(1, 4, 1)
                    .squeeze_dim::<2>(1);
                let value = loss(logits, &[example], &tokens).into_data();
                *sum += value.iter::<f64>().sum::<f64>() / 12.0;
            }
        }
        for (found, expected) in [found.model, found.random].into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
    }
}

fn a_seed_gives_the_same_numbers<B: Backend>(device: &B::Device) {
    let tokens = dataset(30);
    let model = load::<B>("gpt2_plain", device);
    let run = |seed| {
        let options = ScrubOptions::default().with_seed(seed);
        let tree = treeified(&some_hypothesis(), &model, &tokens, &options);
        scrubbed(&model, &tree, &tokens)
    };
    let first = run(3);
    assert_eq!(first, run(3));
    let other = run(4);
    assert_eq!(first.model, other.model);
    assert_ne!(first.scrubbed, other.scrubbed);
    assert_ne!(first.random, other.random);
}

fn assert_close(found: &Scrubbed, expected: &Scrubbed, what: &str) {
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-5, "{what}: {a} is not {b}");
    assert_eq!(found.losses.len(), expected.losses.len(), "{what}");
    for (found, expected) in found.losses.iter().zip(&expected.losses) {
        for (found, expected) in found.iter().zip(expected) {
            close(*found, *expected);
        }
    }
    close(found.kl, expected.kl);
    close(found.random_kl, expected.random_kl);
}

fn a_budget_changes_nothing<B: Backend>(device: &B::Device) {
    let tokens = dataset(23);
    for name in MODELS {
        let model = load::<B>(name, device);
        for unimportant in [Unimportant::Shared, Unimportant::Apart] {
            let options = ScrubOptions::default().with_unimportant(unimportant);
            let tree = treeified(&some_hypothesis(), &model, &tokens, &options);
            let whole = scrubbed(&model, &tree, &tokens);
            assert_eq!(tree.explain(&model).expect("valid").chunks, 1);
            let needed = tree.explain(&model).expect("valid").max_rows;
            for max_rows in [needed / 23 + 3, needed / 2] {
                let options = options.clone().with_max_rows(max_rows);
                let tree = treeified(&some_hypothesis(), &model, &tokens, &options);
                let explained = tree.explain(&model).expect("valid");
                assert!(explained.max_rows <= max_rows, "{explained:?}");
                assert!(explained.chunks > 1, "{explained:?}");
                let parts = scrubbed(&model, &tree, &tokens);
                assert_close(&parts, &whole, name);
            }
        }
    }
}

fn samples_are_averaged_by_example<B: Backend>(device: &B::Device) {
    let tokens = dataset(10);
    let model = load::<B>("gpt2_plain", device);
    let options = ScrubOptions::default().with_samples(3);
    let tree = treeified(&some_hypothesis(), &model, &tokens, &options);
    let found = scrubbed(&model, &tree, &tokens);
    // The same rows, as separate examples: what is drawn for a row depends only on the row.
    let rows: Vec<usize> = tree.examples();
    assert_eq!(rows[..4], [0, 0, 0, 1]);
    let values = std::cell::RefCell::new(Vec::new());
    scrub(&model, &tree, |logits, examples| {
        assert_eq!(examples, rows);
        let value = loss(logits, examples, &tokens);
        let numbers: Vec<f64> = value.to_data().iter::<f64>().collect();
        values.borrow_mut().push(numbers);
        value
    })
    .expect("valid");
    let values = values.into_inner();
    assert_eq!(values.len(), 3);
    for (example, losses) in found.losses.iter().enumerate() {
        for (loss, values) in losses.iter().zip(&values) {
            let rows = &values[3 * example..3 * example + 3];
            let mean = rows.iter().sum::<f64>() / 3.0;
            assert!((loss - mean).abs() < 1e-6);
        }
    }
}

fn an_ablated_node_is_one_that_computes_nothing<B: Backend>(device: &B::Device) {
    let tokens = dataset(30);
    let names = ["says", "says too", "mlp", "asks", "tells", "words"];
    for model in MODELS {
        let model = load::<B>(model, device);
        let options = ScrubOptions::default();
        let tree = treeified(&some_hypothesis(), &model, &tokens, &options);
        let loss = |logits, examples: &[usize]| loss(logits, examples, &tokens);
        let ablations = scrub_ablations(&model, &tree, &tree.each_node(), loss).expect("valid");
        assert_close(&ablations.whole, &scrubbed(&model, &tree, &tokens), "whole");
        assert_eq!(ablations.nodes.len(), names.len());
        for (ablation, name) in ablations.nodes.iter().zip(names) {
            assert_eq!(ablation.nodes, [name]);
            let hypothesis = without_features(&[name]);
            let tree = treeified(&hypothesis, &model, &tokens, &options);
            let expected = scrubbed(&model, &tree, &tokens);
            assert_close(&ablation.without, &expected, name);
            let carries = ablations.whole.recovered() - expected.recovered();
            assert!((ablation.carries - carries).abs() < 1e-3);
            assert!(ablation.without.scrubbed != ablations.whole.scrubbed);
            assert!(ablation.standard_error > 0.0);
        }
        // Two at once, and in parts, of rows and of ablations.
        let pair = ["asks", "tells"];
        let mut sets = tree.each_node();
        sets.push(pair.map(str::to_owned).to_vec());
        let both = treeified(&without_features(&pair), &model, &tokens, &options);
        let both = scrubbed(&model, &both, &tokens);
        for max_rows in [400, 20] {
            let options = options.clone().with_max_rows(max_rows);
            let tree = treeified(&some_hypothesis(), &model, &tokens, &options);
            let parts = scrub_ablations(&model, &tree, &sets, loss).expect("valid");
            assert_close(&parts.whole, &ablations.whole, "whole");
            for (part, node) in parts.nodes.iter().zip(&ablations.nodes) {
                assert_close(&part.without, &node.without, "part");
            }
            assert_close(&parts.nodes[6].without, &both, "both");
        }
    }
}

/// [`some_hypothesis`] with features replaced by nothing.
fn without_features(names: &[&str]) -> Hypothesis<Example> {
    let head = |layer, head| Node::Head { layer, head };
    let last = Indices::Same(vec![4]);
    let feature = |own: &str, feature| match names.contains(&own) {
        true => Feature::nothing(),
        false => feature,
    };
    let says = Place::from(head(1, 0)).at(last.clone());
    Hypothesis::new()
        .node("says", says, feature("says", token(0)))
        .node("says too", head(1, 2), feature("says too", token(0)))
        .node("mlp", Node::Mlp { layer: 0 }, feature("mlp", token(4)))
        .node("asks", Place::stream().at(last), feature("asks", token(4)))
        .node("tells", head(0, 1), feature("tells", token(0)))
        .node("words", Node::Embedding, feature("words", token(4)))
        .output_reads(["says", "says too", "mlp"])
        .head_reads("says", HeadInput::Query, ["asks"])
        .head_reads("says", HeadInput::Key, ["tells", "mlp"])
        .head_reads("says too", HeadInput::Value, ["tells"])
        .mlp_reads("mlp", ["words"])
}

fn what_does_not_matter_may_come_apart<B: Backend>(device: &B::Device) {
    let tokens = dataset(12);
    let model = load::<B>("gpt2_plain", device);
    let options = ScrubOptions::default().with_unimportant(Unimportant::Apart);
    let tree = treeified(&some_hypothesis(), &model, &tokens, &options);
    // The logits read a head of layer 1, so its heads come apart, and layer 0's do not.
    let draws: Vec<&[usize]> = [
        Node::Embedding,
        Node::Attention { layer: 0 },
        Node::Head { layer: 1, head: 3 },
        Node::Mlp { layer: 1 },
    ]
    .into_iter()
    .map(|node| tree.unimportant_part(0, None, node).expect("read"))
    .collect();
    for (index, draw) in draws.iter().enumerate() {
        assert!(!draws[..index].contains(draw));
    }
    let head = Node::Head { layer: 0, head: 3 };
    assert_eq!(tree.unimportant_part(0, None, head), None);
    let apart = scrubbed(&model, &tree, &tokens);
    let shared = treeified(
        &some_hypothesis(),
        &model,
        &tokens,
        &ScrubOptions::default(),
    );
    assert_eq!(shared.unimportant_part(0, None, Node::Embedding), None);
    let shared = scrubbed(&model, &shared, &tokens);
    assert_eq!(apart.random, shared.random);
    assert_ne!(apart.scrubbed, shared.scrubbed);
}

fn the_output_may_start_from_another_example<B: Backend>(device: &B::Device) {
    let tokens = dataset(60);
    let model = load::<B>("gpt2_plain", device);
    let hypothesis = Hypothesis::new()
        .node("all", Place::stream(), Feature::input())
        .output_feature(token(0))
        .output_reads(["all"]);
    let options = ScrubOptions::default();
    let tree = treeified(&hypothesis, &model, &tokens, &options);
    assert_ne!(tree.donors(0), tree.examples());
    let found = scrubbed(&model, &tree, &tokens);
    // The model's predictions for the donors, with the examples' labels.
    let mut expected = 0.0;
    for (example, donor) in tree.donors(0).iter().enumerate() {
        assert_eq!(tokens.ids()[example][0], tokens.ids()[*donor][0]);
        let one = tokens.select(&[*donor]).expect("there").to_tensor(device);
        let logits = model
            .forward(ModelInput::Tokens(one))
            .narrow(1, 4, 1)
            .squeeze_dim::<2>(1);
        let value = loss(logits, &[example], &tokens).into_data();
        expected += value.iter::<f64>().sum::<f64>() / 60.0;
    }
    assert!((found.scrubbed - expected).abs() < 1e-5);
}

/// The results of many seeds on one dataset vary as much as reported.
fn the_error_of_the_draws_is_what_seeds_differ_by<B: Backend>(device: &B::Device) {
    const RUNS: u64 = 60;
    let model = load::<B>("gpt2_plain", device);
    let hypothesis = Hypothesis::new()
        .node("last", Place::stream(), token(4))
        .output_reads(["last"]);
    let tokens = numbered_dataset(7, 40);
    let runs = (0..RUNS).map(|seed| {
        let options = ScrubOptions::default().with_seed(seed).with_samples(4);
        let tree = treeified(&hypothesis, &model, &tokens, &options);
        scrubbed(&model, &tree, &tokens)
    });
    let runs: Vec<Scrubbed> = runs.collect();
    let mean = |value: &dyn Fn(&Scrubbed) -> f64| runs.iter().map(value).sum::<f64>() / RUNS as f64;
    let middle = mean(&Scrubbed::recovered);
    let spread = mean(&|run| (run.recovered() - middle).powi(2)).sqrt();
    let draws = mean(&|run| run.draw_error().powi(2)).sqrt();
    // The standard error of 60 runs' spread is 9 %.
    let ratio = spread / draws;
    assert!(
        (0.7..1.4).contains(&ratio),
        "spread {spread}, reported as {draws}"
    );
    let both = mean(&|run| run.standard_error().powi(2)).sqrt();
    assert!(
        both > 1.1 * draws,
        "{both} does not account for other examples"
    );
}

/// Every head; those of the second layer read from those of the first. Each position separately.
fn large() -> Hypothesis<Example> {
    let mut hypothesis = Hypothesis::new();
    let (mut streams, mut first) = (Vec::new(), Vec::new());
    for position in 0..5 {
        let at = Indices::Same(vec![position]);
        let name = format!("stream {position}");
        let stream = Place::stream().at(at.clone());
        hypothesis = hypothesis.node(name.clone(), stream, token(position));
        streams.push(name);
        for head in 0..4 {
            let place = Place::from(Node::Head { layer: 0, head }).at(at.clone());
            let name = format!("0.{head} {position}");
            hypothesis = hypothesis.node(name.clone(), place, token(position));
            first.push(name);
        }
    }
    for layer in 0..2 {
        for head in 0..4 {
            let name = format!("{layer}.{head}");
            hypothesis = hypothesis
                .node(name.clone(), Node::Head { layer, head }, token(0))
                .head_reads(name.clone(), HeadInput::Query, streams.clone())
                .output_reads([name.clone()]);
            let heard = if layer == 0 { &streams } else { &first };
            for input in [HeadInput::Key, HeadInput::Value] {
                hypothesis = hypothesis.head_reads(name.clone(), input, heard.clone());
            }
        }
    }
    hypothesis
}

fn large_trees_stay_within_the_budget<B: Backend>(device: &B::Device) {
    let tokens = dataset(256);
    let model = load::<B>("gpt2_plain", device);
    let options = ScrubOptions::default();
    assert_eq!(options.max_rows, 4096);
    let tree = treeified(&large(), &model, &tokens, &options);
    assert_eq!(tree.nodes().len(), 249);
    let explained = tree.explain(&model).expect("valid");
    assert_eq!(explained.rows, 256);
    assert!(explained.max_rows <= 4096, "{explained:?}");
    // Nor are chunks much smaller than the budget allows.
    assert!(explained.max_rows > 3000, "{explained:?}");
    // One row of each of the tree's runs exists at a time.
    let rows = explained.max_rows * explained.chunks / explained.rows;
    assert!(rows < 2 * tree.nodes().len(), "{explained:?}");
    let found = scrubbed(&model, &tree, &tokens);
    assert_eq!(found.losses.len(), 256);
    assert!(found.scrubbed.is_finite() && found.kl > 0.0);
}

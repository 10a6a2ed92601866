//! Trees and what is drawn for them. No model is run.

use burn_align::engine::Indices;
use burn_align::methods::{
    Donors, Feature, Hypothesis, NodeAblation, Place, ScrubOptions, ScrubTree, Scrubbed,
    Unimportant,
};
use burn_align::paths::{HeadInput, Node};
use burn_align_models::{ModelDims, TokenBatch};

use super::{Example, dataset, some_hypothesis, token};
use crate::support::tokens;

pub(super) fn dims() -> ModelDims {
    ModelDims {
        layers: 2,
        heads: 4,
        kv_heads: 4,
        d_model: 16,
        d_head: 4,
        d_mlp: 32,
        gated_mlp: false,
        rotary: false,
        vocab: 41,
        max_positions: Some(16),
        qk_norm: false,
        post_norms: false,
        parallel: false,
    }
}

fn tree(
    hypothesis: &Hypothesis<Example>,
    tokens: &TokenBatch,
    options: &ScrubOptions,
) -> ScrubTree {
    let tree = hypothesis.treeify(&dims(), tokens, tokens.ids(), options);
    tree.expect("a hypothesis about the model")
}

#[test]
fn nodes_are_in_the_tree_once_for_each_way() {
    let tokens = dataset(30);
    let tree = tree(&some_hypothesis(), &tokens, &ScrubOptions::default());
    let found: Vec<(&str, Option<usize>, Option<HeadInput>)> = tree
        .nodes()
        .iter()
        .map(|node| (&*node.name, node.reader, node.input))
        .collect();
    let [q, k, v] = HeadInput::ALL.map(Some);
    let expected = [
        ("output", None, None),
        ("says", Some(0), None),
        ("says too", Some(0), None),
        ("mlp", Some(0), None),
        ("asks", Some(1), q),
        ("tells", Some(1), k),
        ("mlp", Some(1), k),
        ("tells", Some(2), v),
        ("words", Some(3), None),
        ("words", Some(6), None),
    ];
    assert_eq!(found, expected);
}

#[test]
fn donors_agree_with_those_of_the_reader() {
    let prompts = dataset(60);
    for donors in [Donors::WithSelf, Donors::WithoutSelf] {
        let options = ScrubOptions::default().with_samples(4).with_donors(donors);
        let hypothesis = Hypothesis::new()
            .node("a", Node::Head { layer: 1, head: 0 }, token(0))
            .node(
                "b",
                Node::Head { layer: 0, head: 0 },
                Feature::new("parity", |t: &Example| t[3] % 2),
            )
            .node("c", Node::Embedding, Feature::nothing())
            .output_reads(["a"])
            .head_reads("a", HeadInput::Key, ["b", "c"]);
        let tree = tree(&hypothesis, &prompts, &options);
        assert_eq!(tree.rows(), 240);
        let ids = prompts.ids();
        let mut selves = 0;
        for (index, node) in tree.nodes().iter().enumerate() {
            let Some(reader) = node.reader else {
                assert_eq!(tree.donors(index), tree.examples());
                continue;
            };
            let pairs = tree.donors(reader).iter().zip(tree.donors(index));
            for (&from, &donor) in pairs {
                match &*node.name {
                    "a" => assert_eq!(ids[from][0], ids[donor][0]),
                    "b" => assert_eq!(ids[from][3] % 2, ids[donor][3] % 2),
                    _ => {}
                }
                selves += usize::from(from == donor);
            }
            let unimportant = tree.unimportant(index).iter().zip(tree.donors(index));
            selves += unimportant
                .filter(|(random, donor)| random == donor)
                .count();
        }
        match donors {
            Donors::WithSelf => assert!(selves > 0),
            Donors::WithoutSelf => assert_eq!(selves, 0),
        }
    }
}

#[test]
fn all_that_agree_are_equally_probable() {
    let rows: Vec<Vec<u32>> = (0..8).map(|row| vec![row % 2, row]).collect();
    let prompts = TokenBatch::new(rows).expect("a batch");
    let hypothesis = Hypothesis::new()
        .node(
            "a",
            Node::Embedding,
            Feature::new("parity", |t: &Example| t[0]),
        )
        .output_reads(["a"]);
    for (donors, count) in [(Donors::WithSelf, 4), (Donors::WithoutSelf, 3)] {
        let options = ScrubOptions::default()
            .with_samples(2000)
            .with_donors(donors);
        let tree = tree(&hypothesis, &prompts, &options);
        for example in 0..8 {
            let rows = 2000 * example..2000 * (example + 1);
            let drawn = |of: usize| {
                tree.donors(1)[rows.clone()]
                    .iter()
                    .filter(|d| **d == of)
                    .count()
            };
            for of in 0..8 {
                let may = of % 2 == example % 2 && (of != example || donors == Donors::WithSelf);
                let expected = if may { 2000 / count } else { 0 };
                // Five standard deviations of a binomial with 2000 draws are at most 112.
                assert!(drawn(of).abs_diff(expected) <= 112, "{example} {of}");
                assert!(may || drawn(of) == 0);
            }
        }
    }
}

#[test]
fn draws_do_not_depend_on_other_nodes() {
    let prompts = dataset(60);
    let options = ScrubOptions::default().with_seed(5);
    let whole = tree(&some_hypothesis(), &prompts, &options);
    let part = Hypothesis::new()
        .node("mlp", Node::Mlp { layer: 0 }, token(4))
        .node("words", Node::Embedding, token(4))
        .output_reads(["mlp"])
        .mlp_reads("mlp", ["words"]);
    let part = tree(&part, &prompts, &options);
    for (index, other) in [(0, 0), (1, 3), (2, 8)] {
        assert_eq!(part.nodes()[index].name, whole.nodes()[other].name);
        assert_eq!(part.donors(index), whole.donors(other));
        assert_eq!(part.unimportant(index), whole.unimportant(other));
    }
    // The same node read twice draws twice.
    assert_ne!(whole.donors(5), whole.donors(7));
    assert_ne!(whole.donors(3), whole.donors(6));
    let other = tree(&some_hypothesis(), &prompts, &options.with_seed(6));
    assert_ne!(other.donors(3), whole.donors(3));
    assert_ne!(other.unimportant(0), whole.unimportant(0));
}

#[test]
fn examples_are_drawn_for_those_of_their_length() {
    let prompts = tokens(&[&[1, 2], &[1, 3], &[1, 2, 3], &[1, 3, 4], &[1, 2, 5]]);
    let hypothesis = Hypothesis::new()
        .node("a", Node::Embedding, token(0))
        .output_reads(["a"]);
    for unimportant in [Unimportant::Shared, Unimportant::Apart] {
        let options = ScrubOptions::default()
            .with_samples(50)
            .with_unimportant(unimportant);
        let tree = tree(&hypothesis, &prompts, &options);
        let attention = Node::Attention { layer: 0 };
        let part = tree.unimportant_part(0, None, attention);
        let drawn = [Some(tree.donors(1)), Some(tree.unimportant(0)), part];
        for drawn in drawn.into_iter().flatten() {
            let mut others = 0;
            for (row, donor) in drawn.iter().enumerate() {
                let example = row / 50;
                assert_eq!(example < 2, *donor < 2);
                others += usize::from(example != *donor);
            }
            assert!(others > 50);
        }
        assert_eq!(part.is_some(), unimportant == Unimportant::Apart);
    }
}

#[test]
fn a_tree_as_a_picture() {
    let prompts = tokens(&[&[1, 2, 3], &[4, 5, 6]]);
    let hypothesis = Hypothesis::new()
        .node(
            "head",
            Place::from(Node::Head { layer: 1, head: 2 }).at(Indices::Same(vec![2])),
            token(1),
        )
        .node("key", Node::Embedding, Feature::input())
        .output_reads(["head"])
        .head_reads("head", HeadInput::Key, ["key"]);
    let options = ScrubOptions::default().with_donors(Donors::WithSelf);
    let tree = tree(&hypothesis, &prompts, &options);
    let other = |node: usize| tree.unimportant(node)[1];
    let diagram = tree.diagram(1, |example| format!("example {example}"));
    let dot = diagram.to_dot();
    let expected = format!(
        r#"digraph scrubbed {{
  rankdir=LR;
  "n0" [shape=ellipse, peripheries=2, label="output\nexample 1\nelse example {}"];
  "n1" [shape=ellipse, label="head\n1.2@[2]\ntoken 1\nexample 1\nelse example {}"];
  "n2" [shape=box, label="key\nembedding\nthe whole input\nexample 1"];
  "n1" -> "n0";
  "n2" -> "n1" [label="k"];
}}
"#,
        other(0),
        other(1)
    );
    assert_eq!(dot, expected);
    let apart = options.with_unimportant(Unimportant::Apart);
    let apart = hypothesis.treeify(&dims(), &prompts, prompts.ids(), &apart);
    let dot = apart
        .expect("valid")
        .diagram(0, |example| example.to_string())
        .to_dot();
    assert!(dot.contains(r#"label="output\n0\nelse others""#), "{dot}");
}

/// Numbers that can be worked out by hand.
#[test]
fn recovered_loss_and_its_error() {
    let of = |losses: Vec<[f64; 3]>| {
        let mean =
            |index: usize| losses.iter().map(|row| row[index]).sum::<f64>() / losses.len() as f64;
        Scrubbed {
            model: mean(0),
            random: mean(1),
            scrubbed: mean(2),
            kl: 0.0,
            random_kl: 0.0,
            sample_losses: losses.clone(),
            losses,
        }
    };
    // Half is recovered of each: no error.
    let half = of(vec![[0.0, 2.0, 1.0], [1.0, 5.0, 3.0], [0.0, 1.0, 0.5]]);
    assert_eq!(half.recovered(), 0.5);
    assert!(half.standard_error() < 1e-12);
    // All and nothing of two equal ones: terms ±2 × 0.5 about 0, sd √2, over √2, over 2.
    let mixed = of(vec![[0.0, 2.0, 0.0], [0.0, 2.0, 2.0]]);
    assert_eq!(mixed.recovered(), 0.5);
    assert_eq!(mixed.draw_error(), mixed.standard_error());
    assert!((mixed.standard_error() - 0.5).abs() < 1e-12);
    let [low, high] = mixed.interval();
    assert!((low - (0.5 - 0.98)).abs() < 1e-12 && (high - 1.48).abs() < 1e-12);
    let ablation = NodeAblation {
        nodes: vec!["a".to_owned()],
        without: mixed,
        carries: 0.25,
        standard_error: 0.1,
    };
    let [low, high] = ablation.interval();
    assert!((low - 0.054).abs() < 1e-12 && (high - 0.446).abs() < 1e-12);
}

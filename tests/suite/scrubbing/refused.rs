//! User errors, detected before anything is computed.

use burn::backend::Flex;
use burn_align::engine::{Indices, PlanError};
use burn_align::methods::{
    Donors, Feature, Hypothesis, Place, ScrubError, ScrubOptions, scrub, scrub_ablations,
};
use burn_align::paths::{HeadInput, Node, PathError};
use burn_align_models::{AlignableTransformer, TokenBatch};

use super::tree::dims;
use super::{Example, dataset, loss, some_hypothesis, token};
use crate::counted::Counted;
use crate::support::{load, message, tokens};

fn refused(hypothesis: Hypothesis<Example>) -> ScrubError {
    refused_with(&hypothesis, &dataset(30), &ScrubOptions::default())
}

fn refused_with(
    hypothesis: &Hypothesis<Example>,
    tokens: &TokenBatch,
    options: &ScrubOptions,
) -> ScrubError {
    let tree = hypothesis.treeify(&dims(), tokens, tokens.ids(), options);
    tree.expect_err("wrong")
}

fn head(layer: usize, head: usize) -> Node {
    Node::Head { layer, head }
}

/// One node that the output reads.
fn one(place: impl Into<Place>) -> Hypothesis<Example> {
    Hypothesis::new()
        .node("a", place, token(0))
        .output_reads(["a"])
}

#[test]
fn names_that_no_node_has() {
    let error = refused(one(head(0, 0)).output_reads(["b"]));
    let (reader, name) = ("the output".to_owned(), "b".to_owned());
    assert_eq!(error, ScrubError::UnknownNode { reader, name });
    assert_eq!(
        error.to_string(),
        "the output reads \"b\": no node of the hypothesis has this name"
    );
    let error = refused(one(Node::Mlp { layer: 0 }).mlp_reads("a", ["b"]));
    assert_eq!(
        error.to_string(),
        "\"a\" reads \"b\": no node of the hypothesis has this name"
    );
    let error = refused(one(head(0, 0)).mlp_reads("b", ["a"]));
    let reader = "b".to_owned();
    assert_eq!(error, ScrubError::UnknownReader { reader });
    let error = refused(one(head(0, 0)).node("a", head(0, 1), token(0)));
    let name = "a".to_owned();
    assert_eq!(error, ScrubError::SameName { name });
}

#[test]
fn nodes_that_read_each_other() {
    let mlp = |layer| Node::Mlp { layer };
    let hypothesis = one(mlp(1))
        .node("b", mlp(0), token(0))
        .node("c", mlp(0), token(0))
        .mlp_reads("a", ["b"])
        .mlp_reads("b", ["c"])
        .mlp_reads("c", ["b"]);
    let names = ["b", "c", "b"].map(str::to_owned).to_vec();
    let error = refused(hypothesis);
    assert_eq!(error, ScrubError::Cycle { names });
    assert_eq!(
        error.to_string(),
        "nodes read each other: b reads c reads b"
    );
    let names = ["a", "a"].map(str::to_owned).to_vec();
    assert_eq!(
        refused(one(mlp(1)).mlp_reads("a", ["a"])),
        ScrubError::Cycle { names }
    );
}

#[test]
fn nodes_that_nobody_reads() {
    let hypothesis = one(head(0, 0))
        .node("b", Node::Mlp { layer: 0 }, token(0))
        .node("c", Node::Embedding, token(0))
        .mlp_reads("b", ["c"]);
    let name = "b".to_owned();
    assert_eq!(refused(hypothesis), ScrubError::NotRead { name });
}

#[test]
fn parts_that_the_model_does_not_have() {
    for node in [head(2, 0), head(0, 4), Node::Mlp { layer: 2 }] {
        let error = refused(one(node));
        let (layers, heads) = (2, 4);
        let cause = PathError::NoSuchNode {
            node,
            layers,
            heads,
        };
        let name = "a".to_owned();
        assert_eq!(error, ScrubError::Path { name, cause });
    }
    assert_eq!(
        message(&refused(one(head(2, 0)))),
        "\"a\": 2.0: the model has no such node; it has 2 layers of 4 heads"
    );
}

#[test]
fn parts_that_do_not_lie_before_their_readers() {
    for read in [head(1, 1), head(1, 0), Node::Mlp { layer: 1 }] {
        let hypothesis =
            one(head(1, 0))
                .node("b", read, token(0))
                .head_reads("a", HeadInput::Key, ["b"]);
        let error = refused(hypothesis);
        assert!(matches!(error, ScrubError::NotBefore { .. }), "{error}");
    }
    let hypothesis = one(head(1, 0))
        .node("b", Node::Mlp { layer: 1 }, token(0))
        .head_reads("a", HeadInput::Key, ["b"]);
    assert_eq!(
        refused(hypothesis).to_string(),
        "\"a\" reads \"b\", which is m1: expected a part of the model that comes before its reader"
    );
}

#[test]
fn inputs_that_a_part_does_not_have() {
    let key = |hypothesis: Hypothesis<Example>| {
        hypothesis
            .node("b", Node::Embedding, token(0))
            .head_reads("a", HeadInput::Key, ["b"])
    };
    let whole = |hypothesis: Hypothesis<Example>| {
        hypothesis
            .node("b", Node::Embedding, token(0))
            .mlp_reads("a", ["b"])
    };
    for hypothesis in [
        key(one(Node::Mlp { layer: 0 })),
        key(one(Node::Embedding)),
        key(one(Place::stream())),
        whole(one(head(0, 0))),
        whole(one(Node::Attention { layer: 0 })),
        whole(one(Node::Embedding)),
        whole(one(Place::stream())),
    ] {
        let error = refused(hypothesis);
        assert!(matches!(error, ScrubError::NoSuchInput { .. }), "{error}");
    }
    assert_eq!(
        refused(whole(one(head(0, 0)))).to_string(),
        "\"a\" is 0.0: expected a part that reads by one input (an MLP)"
    );
}

#[test]
fn parts_named_twice() {
    let at =
        |node: Node, positions: &[usize]| Place::from(node).at(Indices::Same(positions.to_vec()));
    let both = |a: Place, b: Place| {
        Hypothesis::new()
            .node("a", a, token(0))
            .node("b", b, token(1))
            .output_reads(["a", "b"])
    };
    for (a, b) in [
        (head(0, 0).into(), head(0, 0).into()),
        (head(0, 0).into(), at(head(0, 0), &[1])),
        (at(head(0, 0), &[1, 2]), at(head(0, 0), &[2])),
        (head(0, 0).into(), Node::Attention { layer: 0 }.into()),
        (Node::Embedding.into(), Place::stream()),
    ] {
        let error = refused(both(a, b));
        let [reader, first, second] = ["the output", "a", "b"].map(str::to_owned);
        assert_eq!(
            error,
            ScrubError::Overlap {
                reader,
                first,
                second
            }
        );
    }
    let apart = both(at(head(0, 0), &[1, 2]), at(head(0, 0), &[3]));
    let prompts = dataset(30);
    let options = ScrubOptions::default();
    assert!(
        apart
            .treeify(&dims(), &prompts, prompts.ids(), &options)
            .is_ok()
    );
    let error = refused(one(head(0, 0)).output_reads(["a"]));
    let [reader, name] = ["the output", "a"].map(str::to_owned);
    assert_eq!(error, ScrubError::ReadTwice { reader, name });
}

#[test]
fn positions_that_examples_do_not_have() {
    let prompts = tokens(&[&[1, 2, 3], &[1, 2]]);
    let options = ScrubOptions::default();
    let place = Place::from(head(0, 0));
    let error = refused_with(
        &one(place.clone().at(Indices::Same(vec![2]))),
        &prompts,
        &options,
    );
    let name = || "a".to_owned();
    let (example, position, length) = (1, 2, 2);
    let expected = ScrubError::NoSuchPosition {
        name: name(),
        example,
        position,
        length,
    };
    assert_eq!(error, expected);
    let each = Indices::Each(vec![vec![2]]);
    let error = refused_with(&one(place.clone().at(each)), &prompts, &options);
    let (expected, found) = (2, 1);
    let expected = ScrubError::Positions {
        name: name(),
        expected,
        found,
    };
    assert_eq!(error, expected);
    let apart = options.with_unimportant(burn_align::methods::Unimportant::Apart);
    let error = refused_with(&one(place.at(Indices::Same(vec![1]))), &prompts, &apart);
    let (reader, name) = ("the output".to_owned(), name());
    assert_eq!(error, ScrubError::ApartLengths { reader, name });
}

#[test]
fn examples_without_a_donor() {
    let prompts = tokens(&[&[0, 1], &[1, 2], &[0, 3], &[2, 2]]);
    let options = ScrubOptions::default();
    let hypothesis = one(head(0, 0));
    let treeified = hypothesis.treeify(&dims(), &prompts, prompts.ids(), &options);
    assert!(treeified.is_ok());
    let without = options.clone().with_donors(Donors::WithoutSelf);
    let error = refused_with(&hypothesis, &prompts, &without);
    assert_eq!(
        error.to_string(),
        "\"a\": no other example agrees with example 1 on \"token 0\" and has as many tokens; \
         add examples, or let them be drawn for themselves (Donors::WithSelf)"
    );
    let output = Hypothesis::new().output_feature(Feature::input());
    let error = refused_with(&output, &prompts, &without);
    assert!(
        error.to_string().starts_with("the output: no other"),
        "{error}"
    );
    let single = tokens(&[&[0, 1]]);
    let error = refused_with(&Hypothesis::new(), &single, &without);
    let (name, feature) = ("what does not matter".to_owned(), "nothing".to_owned());
    let example = 0;
    let expected = ScrubError::NoDonor {
        name,
        feature,
        example,
    };
    assert_eq!(error, expected);
}

#[test]
fn examples_and_samples_are_counted() {
    let prompts = dataset(30);
    let options = ScrubOptions::default();
    let hypothesis = one(head(0, 0));
    let error = hypothesis.treeify(&dims(), &prompts, &prompts.ids()[..29], &options);
    let (expected, found) = (30, 29);
    assert_eq!(
        error.expect_err("wrong"),
        ScrubError::Examples { expected, found }
    );
    let none = options.with_samples(0);
    let error = refused_with(&hypothesis, &prompts, &none);
    assert_eq!(error, ScrubError::NoSample);
}

#[test]
fn nothing_runs_that_does_not_fit() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default()));
    let prompts = dataset(30);
    let options = ScrubOptions::default().with_max_rows(4);
    let tree = some_hypothesis().treeify(model.dims(), &prompts, prompts.ids(), &options);
    let tree = tree.expect("a hypothesis about the model");
    let run = |tree, prompts: &TokenBatch| {
        let result = scrub(&model, tree, |logits, examples| {
            loss(logits, examples, prompts)
        });
        result.expect_err("wrong")
    };
    let error = run(&tree, &prompts);
    let ScrubError::RowBudget { needed, max_rows } = error else {
        panic!("{error}");
    };
    assert_eq!(max_rows, 4);
    assert!(
        needed > 4 && needed <= 2 + tree.nodes().len() * 2,
        "{needed}"
    );
    assert_eq!(tree.explain(&model).expect_err("wrong"), error);
    let unknown = vec![vec!["b".to_owned()]];
    let loss = |logits, examples: &[usize]| loss(logits, examples, &prompts);
    let error = scrub_ablations(&model, &tree, &unknown, loss).expect_err("wrong");
    let name = "b".to_owned();
    assert_eq!(error, ScrubError::UnknownAblation { name });
    // A token that the model does not know.
    let mut ids = prompts.ids().to_vec();
    ids[17][3] = 10_000;
    let prompts = TokenBatch::new(ids).expect("a batch");
    let options = ScrubOptions::default().with_max_rows(100);
    let tree = some_hypothesis().treeify(model.dims(), &prompts, prompts.ids(), &options);
    let error = run(&tree.expect("only the plan is wrong"), &prompts);
    assert!(
        matches!(error, ScrubError::Plan(PlanError::Input { .. })),
        "{error:?}"
    );
    assert_eq!(model.stages(), 0);
}

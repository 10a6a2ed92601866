//! User errors, detected before anything is computed.

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_align::engine::{Indices, PlanError, RunOptions};
use burn_align::methods::{
    Mlps, PathEffects, PathPatch, ReceiverInput, Sender, patch_paths, patch_streams, path_patch,
};
use burn_align::paths::{HeadInput, Hop, Node, Path, PathError, Stream, Value};
use burn_align_models::{AlignableTransformer, ModelDims, TokenBatch};

use super::{hop, inputs};
use crate::counted::Counted;
use crate::support::{load, tokens};

fn metric(logits: Tensor<Flex, 2>) -> Tensor<Flex, 1> {
    logits.sum_dim(1).squeeze_dim(1)
}

/// The error, which comes before the model has run.
fn before_running<T: std::fmt::Debug>(
    name: &str,
    run: impl FnOnce(&Counted<Flex>) -> Result<T, PathError>,
) -> PathError {
    let model = Counted::new(load::<Flex>(name, &Default::default()));
    let error = run(&model).expect_err("wrong");
    assert_eq!(model.stages(), 0, "{error}");
    error
}

fn patches(name: &str, patches: &[PathPatch]) -> PathError {
    let [base, source, _] = inputs();
    let run = |mlps| {
        before_running(name, |model| {
            let options = RunOptions::default();
            path_patch(model, [&base, &source], patches, mlps, metric, &options)
        })
    };
    let error = run(Mlps::Frozen);
    assert_eq!(run(Mlps::Recomputed), error);
    error
}

fn paths(set: Vec<Path>) -> PathError {
    let [base, source, _] = inputs();
    before_running("gpt2_plain", |model| {
        let options = RunOptions::default();
        patch_paths(model, [&base, &source], &[set], metric, &options)
    })
}

fn stream(stream: Stream) -> PathError {
    let [base, source, _] = inputs();
    before_running("gpt2_plain", |model| {
        let options = RunOptions::default();
        patch_streams(model, &[&base, &source], &[stream], metric, &options)
    })
}

fn dims() -> ModelDims {
    let model = load::<Flex>("gpt2_plain", &Default::default());
    model.dims().clone()
}

fn head(layer: usize, head: usize) -> Node {
    Node::Head { layer, head }
}

#[test]
fn nodes_that_the_model_does_not_have() {
    let logits = ReceiverInput::Logits;
    let unknown = |node| PathError::NoSuchNode {
        node,
        layers: 2,
        heads: 4,
    };
    for node in [head(2, 0), head(0, 4), Node::Mlp { layer: 2 }] {
        let error = patches("gpt2_plain", &[PathPatch::new(node, logits)]);
        assert_eq!(error, unknown(node));
        assert_eq!(paths(vec![Path::new(node)]), unknown(node));
        let one = Stream::clean(0).with(node, Indices::All, Value::Clean(1));
        assert_eq!(stream(one), unknown(node));
    }
    assert_eq!(
        unknown(head(2, 0)).to_string(),
        "2.0: the model has no such node; it has 2 layers of 4 heads"
    );
    let query = ReceiverInput::Query { layer: 1, head: 4 };
    let error = patches("gpt2_plain", &[PathPatch::new(Node::Embedding, query)]);
    assert_eq!(error, unknown(head(1, 4)));
}

#[test]
fn key_value_heads_are_fewer() {
    for receiver in [
        ReceiverInput::Key {
            layer: 1,
            kv_head: 2,
        },
        ReceiverInput::Value {
            layer: 1,
            kv_head: 2,
        },
    ] {
        let error = patches("llama_gqa", &[PathPatch::new(Node::Embedding, receiver)]);
        let expected = PathError::NoSuchKvHead {
            receiver: receiver.to_string(),
            found: 2,
            kv_heads: 2,
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn receivers_that_do_not_come_after() {
    let query = ReceiverInput::Query { layer: 1, head: 0 };
    for sender in [head(1, 1), Node::Mlp { layer: 1 }] {
        let error = patches("gpt2_plain", &[PathPatch::new(sender, query)]);
        let expected = PathError::NotAfter {
            sender,
            receiver: "1.0.q".to_owned(),
        };
        assert_eq!(error, expected);
    }
    assert_eq!(
        patches("gpt2_plain", &[PathPatch::new(head(1, 1), query)]).to_string(),
        "1.0.q does not come after 1.1: expected a node that reads the residual stream after 1.1 \
         has added to it"
    );
    // Each of several must have its counterpart.
    let several = PathPatch {
        senders: vec![Node::Embedding.into(), Node::Mlp { layer: 1 }.into()],
        receivers: vec![query.into()],
    };
    assert!(matches!(
        patches("gpt2_plain", &[several]),
        PathError::NotAfter { .. }
    ));
    let back = Path::new(head(1, 0)).through(hop(0, 0, HeadInput::Query));
    assert!(matches!(paths(vec![back]), PathError::NotAfter { .. }));
    let beside = Path::new(head(1, 0)).through(hop(1, 1, HeadInput::Query));
    assert!(matches!(paths(vec![beside]), PathError::NotAfter { .. }));
    let late = Stream::clean(0).with(Node::Mlp { layer: 1 }, Indices::All, Value::Clean(1));
    let value = Value::Mlp(Box::new(late));
    let error = stream(Stream::clean(0).with(Node::Mlp { layer: 0 }, Indices::All, value));
    assert!(matches!(error, PathError::NotAfter { .. }));
}

#[test]
fn patches_from_or_to_nothing() {
    let patch = |senders: Vec<Sender>, receivers| PathPatch { senders, receivers };
    let nobody = patch(Vec::new(), vec![ReceiverInput::Logits.into()]);
    let to_nobody = patch(vec![Node::Embedding.into()], Vec::new());
    let right = PathPatch::new(Node::Embedding, ReceiverInput::Logits);
    let error = patches("gpt2_plain", &[right.clone(), nobody]);
    assert_eq!(
        error,
        PathError::Empty {
            patch: 1,
            what: "sender"
        }
    );
    let error = patches("gpt2_plain", &[to_nobody]);
    assert_eq!(
        error,
        PathError::Empty {
            patch: 0,
            what: "receiver"
        }
    );
}

#[test]
fn outputs_that_are_changed_twice() {
    let overlap = |first, second| PathError::Overlap { first, second };
    let attention = Node::Attention { layer: 0 };
    let set = vec![Path::new(attention), Path::new(head(0, 1))];
    assert_eq!(paths(set), overlap(attention, head(0, 1)));
    // The run has no heads there, so none of them can be replaced for the reader.
    let whole = Stream::clean(0).with_run(attention, Indices::Same(vec![1]), Value::Clean(1));
    let one = |positions| {
        whole
            .clone()
            .with(head(0, 1), Indices::Same(positions), Value::Clean(1))
    };
    assert_eq!(stream(one(vec![0, 1])), overlap(attention, head(0, 1)));
    one(vec![0, 2]).check(&dims(), 2).expect("elsewhere it can");
    let at = |positions| Path::new(head(0, 1)).at(positions);
    let set = vec![at(Indices::Same(vec![1, 2])), at(Indices::All)];
    assert_eq!(paths(set), overlap(head(0, 1), head(0, 1)));
    let twice = PathPatch {
        senders: vec![attention.into(), head(0, 1).into()],
        receivers: vec![ReceiverInput::Logits.into()],
    };
    assert_eq!(
        patches("gpt2_plain", &[twice]),
        overlap(attention, head(0, 1))
    );
}

#[test]
fn values_and_inputs_that_there_are_not() {
    let mlp = Node::Mlp { layer: 0 };
    let clean = || Box::new(Stream::clean(0));
    let attention = Value::Attention {
        query: clean(),
        key: clean(),
        value: clean(),
    };
    let error = stream(Stream::clean(0).with(mlp, Indices::All, attention));
    let expected = PathError::WrongValue {
        node: mlp,
        expected: "an MLP",
        found: "attention",
    };
    assert_eq!(error, expected);
    let none = PathError::NoSuchInput { found: 2, count: 2 };
    assert_eq!(stream(Stream::clean(2)), none);
    let deep = Stream::clean(0).with(mlp, Indices::All, Value::Clean(2));
    assert_eq!(stream(deep), none);
}

#[test]
fn inputs_of_different_sizes() {
    let run = |base: &TokenBatch, source: &TokenBatch| -> [PathError; 2] {
        let options = RunOptions::default();
        let patch = PathPatch::new(Node::Embedding, ReceiverInput::Logits);
        let direct = |model: &Counted<Flex>| -> Result<PathEffects, PathError> {
            let (inputs, mlps) = ([base, source], Mlps::Frozen);
            path_patch(
                model,
                inputs,
                std::slice::from_ref(&patch),
                mlps,
                metric,
                &options,
            )
        };
        let tree = |model: &Counted<Flex>| {
            patch_paths(model, [base, source], &[Vec::new()], metric, &options)
        };
        [
            before_running("gpt2_plain", direct),
            before_running("gpt2_plain", tree),
        ]
    };
    let base = tokens(&[&[1, 2, 3], &[4, 5]]);
    let lengths = PathError::Lengths {
        input: 1,
        example: 1,
        expected: 2,
        found: 3,
    };
    let found = run(&base, &tokens(&[&[1, 2, 3], &[4, 5, 6]]));
    assert_eq!(found, [lengths.clone(), lengths]);
    let batch = PathError::Batch {
        input: 1,
        expected: 2,
        found: 1,
    };
    let found = run(&base, &tokens(&[&[1, 2, 3]]));
    assert_eq!(found, [batch.clone(), batch]);
}

#[test]
fn positions_are_checked_with_the_plan() {
    let far = Path::new(Node::Embedding)
        .at(Indices::Same(vec![5]))
        .through(Hop::Mlp { layer: 0 });
    let error = paths(vec![far]);
    assert!(
        matches!(
            error,
            PathError::Plan(PlanError::PositionOutOfRange { found: 5, .. })
        ),
        "{error:?}"
    );
    let sender = Sender {
        node: head(0, 0),
        positions: Indices::Same(vec![5]),
    };
    let error = patches(
        "gpt2_plain",
        &[PathPatch::new(sender, ReceiverInput::Logits)],
    );
    assert!(
        matches!(
            error,
            PathError::Plan(PlanError::PositionOutOfRange { found: 5, .. })
        ),
        "{error:?}"
    );
}

/// `Counted` does not provide what its heads add, which only frozen patches from heads need.
#[test]
fn models_that_do_not_provide_what_a_head_adds() {
    let [base, source, _] = inputs();
    let run = |model: &Counted<Flex>, node, mlps| {
        let patch = PathPatch::new(node, ReceiverInput::Logits);
        let (inputs, options) = ([&base, &source], RunOptions::default());
        path_patch(model, inputs, &[patch], mlps, metric, &options)
    };
    let error = before_running("gpt2_plain", |model| run(model, head(0, 0), Mlps::Frozen));
    assert_eq!(error, PathError::NoHeadOutput);
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default()));
    run(&model, head(0, 0), Mlps::Recomputed).expect("run instead");
    run(&model, Node::Embedding, Mlps::Frozen).expect("the embedding's output is known");
}

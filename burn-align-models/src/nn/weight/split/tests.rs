//! A weight in parts computes what the whole does.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::backend::flex::FlexDevice;
use burn::backend::{Autodiff, Flex};
use burn::module::{AutodiffModule, Module};
use burn::tensor::{Distribution, Int};

use super::*;
use crate::nn::{Projection, TokenEmbedding};
use crate::{AlignableTransformer, Decoder, FromPretrained, LoadOptions, ModelInput, Readout};

type B = Flex;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
    Tensor::random(shape, Distribution::Default, &FlexDevice)
}

fn equal<const D: usize>(found: Tensor<B, D>, expected: Tensor<B, D>) {
    assert_eq!(found.dims(), expected.dims());
    assert_eq!(found.into_data(), expected.into_data());
}

/// A matrix, and the same in parts of at most this many bytes.
fn both(most_bytes: u64) -> [Projection<B>; 2] {
    let whole = random([96, 200]);
    let bias = Param::from_tensor(random([200]));
    let values = whole.to_data();
    let whole = Projection::new(Param::from_tensor(whole), Some(bias));
    let mut split = whole.clone();
    let set = split.weight.set_in_parts(&values, most_bytes);
    set.expect("of the same shape");
    [whole, split]
}

#[test]
fn parts_multiply_as_the_whole_does() {
    // Columns of 96 numbers: 64 at a time, the last 8 by themselves.
    let [whole, split] = both(70 * 96 * 4);
    assert_eq!(split.weight.parts().len(), 4);
    assert_eq!(split.dims(), whole.dims());
    let x = random([2, 3, 96]);
    equal(split.forward(x.clone()), whole.forward(x.clone()));
    // In one part, and in three.
    for outputs in [70..100, 60..130, 192..200, 0..200] {
        equal(
            split.forward_part(outputs.clone(), x.clone()),
            whole.forward_part(outputs, x.clone()),
        );
    }
    for none in [0..0, 70..70, 200..200] {
        for projection in [&split, &whole] {
            let nothing = projection.forward_part(none.clone(), x.clone());
            assert_eq!(nothing.dims(), [2, 3, 0]);
            let outputs = projection.weight.outputs(none.clone());
            let dims: Vec<[usize; 2]> = outputs.iter().map(|it| it.dims()).collect();
            assert_eq!(dims, [[96, 0]]);
        }
    }
    let of_head = x.narrow(2, 32, 16);
    equal(
        split.contribution(32..48, of_head.clone()),
        whole.contribution(32..48, of_head),
    );
    equal(split.weight.val(), whole.weight.val());
}

/// A table of 300 tokens, and the same in five parts.
fn tables() -> [TokenEmbedding<B>; 2] {
    let table = random([300, 32]);
    let values = table.to_data();
    let whole = TokenEmbedding::new(Param::from_tensor(table));
    let mut split = whole.clone();
    let set = split.weight.set_in_parts(&values, 64 * 32 * 4);
    set.expect("of the same shape");
    assert_eq!(split.weight.parts().len(), 5);
    [whole, split]
}

#[test]
fn parts_are_looked_up_as_the_whole_is() {
    let [whole, split] = tables();
    let ids = [[0, 63, 64, 299], [128, 127, 191, 192]];
    let tokens = Tensor::<B, 2, Int>::from_ints(ids, &FlexDevice);
    equal(split.forward(tokens.clone()), whole.forward(tokens));
    let x = random([1, 5, 32]);
    equal(split.unembed(x.clone()), whole.unembed(x));
}

/// Flex checks indices.
#[test]
fn unknown_tokens_are_refused_in_parts_as_in_the_whole() {
    for unknown in [-1, 300, 5000] {
        let tokens = Tensor::<B, 2, Int>::from_ints([[0, unknown, 299]], &FlexDevice);
        for table in tables() {
            let found = catch_unwind(AssertUnwindSafe(|| table.forward(tokens.clone())));
            assert!(found.is_err(), "token {unknown}");
        }
    }
}

#[test]
fn parts_are_one_frozen_parameter_to_burn() {
    let [whole, split] = both(70 * 96 * 4);
    assert_eq!(split.num_params(), whole.num_params());
    let record = split.clone().into_record();
    equal(record.weight.val(), whole.weight.val());
    let tracked = Projection::<Autodiff<B>>::from_inner(split.clone());
    assert_eq!(tracked.weight.parts().len(), 4);
    let x = random([1, 2, 96]);
    equal(tracked.valid().forward(x.clone()), whole.forward(x));
    // A row or a column is not split.
    let [_, finest] = both(1);
    assert_eq!(finest.weight.parts().len(), 200);
}

#[test]
fn a_model_loads_in_parts() {
    let load = |most: Option<u64>| {
        let options = LoadOptions::default();
        let options = match most {
            None => options,
            Some(most) => options.with_max_tensor_bytes(most),
        };
        let source = "bundled:price-tagging";
        Decoder::<B>::from_pretrained(source, &options, &FlexDevice).expect("it is bundled")
    };
    let [whole, split] = [None, Some(1000)].map(|most| load(most).model);
    assert!(split.embedding.weight.parts().len() > 1);
    let ids = [[1, 5, 3, 2, 7]];
    let tokens = Tensor::<B, 2, Int>::from_ints(ids, &FlexDevice);
    let logits = |model: &Decoder<B>| model.forward(ModelInput::Tokens(tokens.clone()));
    equal(logits(&split), logits(&whole));
    // Directions of tokens.
    let [found, expected] = [&split, &whole].map(|model| model.unembedding(&[3, 1]).0);
    equal(found, expected);
    for model in [&split, &whole] {
        assert_eq!(model.unembedding(&[]).0.dims(), [0, 64]);
    }
}

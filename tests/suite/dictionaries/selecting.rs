//! Some features of a dictionary, and edits that keep the error.

use burn::backend::{Autodiff, Flex};
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use burn_align::dictionaries::{
    ActiveFeatures, Dictionary, DictionaryError, DictionaryKind, FeatureActivation, InputNorm,
};

use super::{Case, Expected, cases, difference};
use crate::support::{message, values};

type B = Flex;

const SELECTED: [usize; 4] = [17, 3, 8, 21];

fn x(expected: &Expected, case: &Case) -> Tensor<B, 2> {
    expected.tensor(&case.name, "x", &Default::default())
}

#[test]
fn selected_features_are_those_of_all() {
    let expected = Expected::read();
    for case in cases() {
        let dictionary = case.load::<B>(&Default::default()).dictionary;
        let x = x(&expected, &case);
        let selection = dictionary.select(&SELECTED).expect("they exist");
        let found = values(selection.encode(x.clone()).transpose());
        let all = values(dictionary.encode(x.clone()).transpose());
        let rows = all.len() / dictionary.features();
        for (column, feature) in SELECTED.into_iter().enumerate() {
            let found = &found[column * rows..][..rows];
            let wanted = &all[feature * rows..][..rows];
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
            assert!(found.iter().zip(wanted).all(close), "{}", case.name);
        }
    }
}

#[test]
fn a_contribution_is_the_change_of_the_reconstruction() {
    let expected = Expected::read();
    for case in cases() {
        let dictionary = case.load::<B>(&Default::default()).dictionary;
        let x = x(&expected, &case);
        let selection = dictionary.select(&SELECTED).expect("they exist");
        let features = dictionary.encode(x.clone());
        let [rows, all] = features.dims();
        let kept: Vec<f32> = (0..rows * all)
            .map(|at| f32::from(!SELECTED.contains(&(at % all))))
            .collect();
        let kept = TensorData::new(kept, [rows, all]);
        let ablated = features.clone() * Tensor::from_data(kept, &x.device());
        let change = dictionary.decode(features.clone(), &x) - dictionary.decode(ablated, &x);
        let part = selection.contribution(selection.encode(x.clone()), &x);
        let found = difference(part, &change.into_data());
        assert!(found <= 1e-5, "{}: {found}", case.name);

        if dictionary.kind() == DictionaryKind::Autoencoder {
            let nothing = features.clone() - features;
            let edited = x.clone() + dictionary.contribution(nothing, &x);
            assert_eq!(bits(edited), bits(x), "{}", case.name);
        }
    }
}

fn bits(x: Tensor<B, 2>) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

#[test]
fn what_cannot_be_selected_is_an_error() {
    let case = &cases()[0];
    let dictionary = case.load::<B>(&Default::default()).dictionary;
    let error = |features: &[usize]| dictionary.select(features).expect_err("it is an error");
    assert!(matches!(
        error(&[3, 24]),
        DictionaryError::NoSuchFeature {
            feature: 24,
            features: 24
        }
    ));
    assert!(matches!(
        error(&[3, 4, 3]),
        DictionaryError::RepeatedFeature { feature: 3 }
    ));
    assert!(matches!(error(&[]), DictionaryError::NoFeatures));
    assert!(message(&error(&[99])).contains("below 24"));
}

/// An autoencoder of two features, which fire for the two coordinates.
fn identity() -> Dictionary<B> {
    let device = Default::default();
    let eye = || Tensor::<B, 2>::eye(2, &device);
    let zeros = || Tensor::<B, 1>::zeros([2], &device);
    let activation = FeatureActivation::relu();
    Dictionary::new((eye(), zeros()), activation, (eye(), zeros())).expect("it fits")
}

fn row(values: [f32; 2]) -> Tensor<B, 2> {
    Tensor::from_data([values], &Default::default())
}

#[test]
fn nothing_active_reconstructs_the_bias() {
    let mut dictionary = identity();
    dictionary.decoder_bias = dictionary.decoder_bias.map(|bias| bias + 0.5);
    let x = row([-1.0, -2.0]);
    let active = ActiveFeatures::of(&dictionary.encode(x.clone()));
    assert!(active.features().is_empty() && active.values().is_none());
    assert_eq!(values(active.decode(&dictionary, &x)), [0.5, 0.5]);
    assert_eq!(values(dictionary.reconstruct(x)), [0.5, 0.5]);
}

#[test]
fn a_row_of_zeros_stays_one_under_every_norm() {
    for norm in [
        InputNorm::None,
        InputNorm::ConstantNorm,
        InputNorm::LayerNorm,
    ] {
        let dictionary = identity().with_input_norm(norm);
        assert_eq!(values(dictionary.reconstruct(row([0.0, 0.0]))), [0.0, 0.0]);
    }
}

#[test]
fn folding_keeps_what_is_trained() {
    let device = Default::default();
    let matrix = |shape: [usize; 2]| {
        let count = shape[0] * shape[1];
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.3).sin()).collect();
        Tensor::<Autodiff<B>, 2>::from_data(TensorData::new(values, shape), &device)
    };
    let vector = |count| matrix([1, count]).reshape([count]);
    let thresholds = vector(5).abs();
    let dictionary = Dictionary::new(
        (matrix([3, 5]), vector(5)),
        FeatureActivation::jump_relu(thresholds),
        (matrix([5, 3]), vector(3)),
    );
    let dictionary = dictionary.expect("it fits");
    let folded = |it: Dictionary<Autodiff<B>>| {
        let scaled = it.with_input_scale(2.0);
        scaled.with_unit_decoder().expect("features do not compete")
    };
    for (dictionary, trained) in [(dictionary.clone(), true), (dictionary.no_grad(), false)] {
        let folded = folded(dictionary);
        assert_eq!(folded.encoder.is_require_grad(), trained);
        if trained {
            let y = folded.decode(folded.encode(matrix([4, 3])), &matrix([4, 3]));
            let gradients = y.sum().backward();
            assert!(folded.decoder.val().grad(&gradients).is_some());
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let device = Default::default();
    let matrix = |shape: [usize; 2]| Tensor::<B, 2>::zeros(shape, &device);
    let vector = |count: usize| Tensor::<B, 1>::zeros([count], &device);
    let new = |encoder: [usize; 3], activation, decoder: [usize; 3]| {
        let [d_in, features, biases] = encoder;
        let encoder = (matrix([d_in, features]), vector(biases));
        let [features, d_out, biases] = decoder;
        Dictionary::new(
            encoder,
            activation,
            (matrix([features, d_out]), vector(biases)),
        )
    };
    let relu = FeatureActivation::<B>::relu;
    assert!(new([2, 3, 3], relu(), [3, 2, 2]).is_ok());
    let mut wrong = vec![
        new([2, 3, 4], relu(), [3, 2, 2]),
        new([2, 3, 3], relu(), [4, 2, 2]),
        new([2, 3, 3], relu(), [3, 2, 3]),
        new([2, 3, 3], FeatureActivation::top_k(0), [3, 2, 2]),
        new([2, 3, 3], FeatureActivation::top_k(4), [3, 2, 2]),
        new(
            [2, 3, 3],
            FeatureActivation::jump_relu(vector(2)),
            [3, 2, 2],
        ),
        new(
            [2, 3, 3],
            FeatureActivation::gated(vector(3), vector(2)),
            [3, 2, 2],
        ),
    ];
    let transcoder = || new([2, 3, 3], relu(), [3, 4, 4]).expect("it fits");
    assert_eq!(transcoder().kind(), DictionaryKind::Transcoder);
    wrong.push(transcoder().with_kind(DictionaryKind::Autoencoder));
    wrong.push(transcoder().with_subtracted_bias(true));
    wrong.push(transcoder().with_skip(matrix([4, 2])));
    for (index, wrong) in wrong.into_iter().enumerate() {
        let error = wrong.err().unwrap_or_else(|| panic!("{index} is no error"));
        assert!(matches!(error, DictionaryError::Misfit { .. }), "{error}");
    }
}

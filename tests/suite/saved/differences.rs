//! Outputs and gradients, compared with those that are expected.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use burn_align::interventions::{
    BuiltinFeaturizer, BuiltinIntervention, BuiltinMask, BuiltinOperation, OrthonormalMap,
};

use crate::support::values;

fn largest(data: &TensorData) -> f32 {
    let values: Vec<f32> = data.to_vec().expect("f32 values");
    values.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// Lower bound for the scale of a gradient's error. A gradient that vanishes, as for a rotation
/// whose directions are all exchanged, is a sum of terms as large as other gradients.
pub(super) fn gradient_scale(tensors: &BTreeMap<String, TensorData>, prefix: &str) -> f32 {
    let gradients = tensors.iter().filter(|(name, _)| name.starts_with(prefix));
    let all = gradients.map(|(_, data)| largest(data));
    all.fold(1e-2, f32::max) / 4.0
}

/// The largest difference, as a share of the largest value that is expected, or of `at_least`.
pub(super) fn difference<B: Backend, const D: usize>(
    found: Tensor<B, D>,
    expected: &TensorData,
    at_least: f32,
) -> f32 {
    assert_eq!(found.dims()[..], expected.shape[..], "shapes differ");
    let scale = largest(expected).max(at_least);
    let expected: Vec<f32> = expected.to_vec().expect("f32 values");
    let found = values(found);
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d <= max { max } else { d }) / scale
}

/// Gradients by name, as pyvene's tensors have them.
pub(super) fn gradients<B: AutodiffBackend>(
    it: &BuiltinIntervention<B>,
    all: &B::Gradients,
) -> BTreeMap<&'static str, Tensor<B::InnerBackend, 2>> {
    let mut named = BTreeMap::new();
    let mut put = |name, gradient: Option<Tensor<B::InnerBackend, 2>>| {
        named.extend(gradient.map(|gradient| (name, gradient)));
    };
    fn of<B: AutodiffBackend, const D: usize>(
        param: &Param<Tensor<B, D>>,
        all: &B::Gradients,
        transposed: bool,
    ) -> Option<Tensor<B::InnerBackend, 2>> {
        let gradient = param.val().grad(all)?;
        let shape = gradient.dims();
        let gradient = match shape[..] {
            [rows, columns] => gradient.reshape([rows, columns]),
            [entries] => gradient.reshape([1, entries]),
            _ => unreachable!("matrices and vectors"),
        };
        Some(if transposed {
            gradient.transpose()
        } else {
            gradient
        })
    }
    match (&it.featurizer, &it.mask) {
        (_, BuiltinMask::Boundary(it)) => {
            put("intervention_boundaries", of(&it.boundary, all, false));
        }
        (BuiltinFeaturizer::Rotation(_), BuiltinMask::SigmoidMask(it)) => {
            put("masks", of(&it.logits, all, false));
        }
        (_, BuiltinMask::SigmoidMask(it)) => put("mask", of(&it.logits, all, false)),
        _ => {}
    }
    match &it.featurizer {
        BuiltinFeaturizer::Rotation(it) => put("raw", of(&it.rotation.parameter, all, false)),
        BuiltinFeaturizer::Autoencoder(it) => {
            let it = it.dictionary();
            put("autoencoder.encoder.0.weight", of(&it.encoder, all, true));
            put(
                "autoencoder.encoder.0.bias",
                of(&it.encoder_bias, all, false),
            );
            put("autoencoder.decoder.0.weight", of(&it.decoder, all, true));
            put(
                "autoencoder.decoder.0.bias",
                of(&it.decoder_bias, all, false),
            );
        }
        BuiltinFeaturizer::JumpReluAutoencoder(it) => {
            let it = it.dictionary();
            put("W_enc", of(&it.encoder, all, false));
            put("b_enc", of(&it.encoder_bias, all, false));
            put("W_dec", of(&it.decoder, all, false));
            put("b_dec", of(&it.decoder_bias, all, false));
        }
        _ => {}
    }
    match &it.operation {
        BuiltinOperation::ConstantSource(it) => {
            put("source_representation", of(&it.source, all, false));
        }
        BuiltinOperation::Reft(it) => {
            if let Some(rotation) = &it.rotation {
                let name = match rotation.map() {
                    OrthonormalMap::Retraction => "rotate_layer.weight",
                    _ => "raw",
                };
                put(name, of(&rotation.parameter, all, false));
            }
            if let Some(projection) = &it.projection {
                put("proj_layer.weight", of(projection, all, true));
            }
            if let Some(bias) = &it.projection_bias {
                put("proj_layer.bias", of(bias, all, false));
            }
            match &it.weight {
                Some(weight) => {
                    put("learned_source.weight", of(weight, all, true));
                    put("learned_source.bias", of(&it.bias, all, false));
                }
                None => put("learned_source", of(&it.bias, all, false)),
            }
        }
        _ => {}
    }
    named
}

//! Models whose weights stay in the blocks of GGUF files: the same models.

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, backend::Backend, f16};
use burn_align::engine::{Edit, LogitPositions, Plan, Units};
use burn_align::interventions::{
    Orthonormal, OrthonormalMap, RotatedSpaceIntervention, TokenGrouping, VanillaIntervention,
};
use burn_align_models::nn::{Weight, keeps_quantized};
use burn_align_models::pretrained::Family;
use burn_align_models::quants::{BlockFormat, QuantizedMatrix};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, Pass, SavePretrained,
    Site, Tables, TokenBatch,
};

use crate::support::{tokens, values};

on_every_backend!(
    a_quantized_model_computes_what_its_tensors_would,
    gradients_pass_through_quantized_weights,
    a_quantized_model_is_saved_as_its_tensors,
    all_weights_may_be_quantized,
);

const MODELS: [&str; 3] = [
    "bundled:price-tagging",
    "bundled:capitals",
    "bundled:induction",
];

fn load<B: Backend>(name: &str, device: &B::Device) -> Decoder<B> {
    let loaded = Decoder::from_pretrained(name, &LoadOptions::default(), device);
    loaded.expect("it is part of the crate").model
}

fn weights_mut<B: Backend>(model: &mut Decoder<B>) -> Vec<(String, &mut Weight<B>)> {
    model.weights_mut()
}

/// The nearest blocks of Q8_0: a scale for each 32, by which the largest is 127.
fn q8_0(elements: &[f32]) -> Vec<u8> {
    let mut blocks = Vec::new();
    for elements in elements.chunks(32) {
        let largest = elements.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let scale = f16::from_f32(largest / 127.0);
        let inverse = match scale.to_f32() {
            0.0 => 0.0,
            scale => 1.0 / scale,
        };
        blocks.extend(scale.to_le_bytes());
        blocks.extend(elements.iter().map(|x| (x * inverse).round() as i8 as u8));
    }
    blocks
}

/// The model with its weights as a GGUF file would have them, and with tensors of the same values.
fn quantized_and_dense<B: Backend>(name: &str, device: &B::Device) -> [Decoder<B>; 2] {
    let mut model = load::<B>(name, device);
    for (path, weight) in weights_mut(&mut model) {
        let embedding = path == "embedding.weight";
        let tensor = match embedding {
            true => weight.val(),
            false => weight.val().transpose(),
        };
        let (shape, elements) = (tensor.dims(), values(tensor));
        // One of them in another format, as in every file.
        let (format, bytes) = match path.contains("mlp") {
            true => {
                let halves = elements
                    .iter()
                    .flat_map(|x| f16::from_f32(*x).to_le_bytes());
                (BlockFormat::F16, halves.collect())
            }
            false => (BlockFormat::Q8_0, q8_0(&elements)),
        };
        let matrix = QuantizedMatrix::new(format, shape, bytes).expect("whole blocks");
        let fits = weight.set_quantized(matrix, DType::F32);
        fits.unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    // A record has the values of its tensors, which then take the place of the blocks.
    let record = model.clone().into_record();
    let dense = model.clone().load_record(record).no_grad();
    [model, dense]
}

fn batch() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5, 9], &[2, 6, 5, 3, 5, 8]])
}

/// To the bit where the blocks are multiplied; where both are tensors, these may lie differently in
/// memory, and a backend may add in another order.
fn assert_equal<B: Backend>(found: &[f32], expected: &[f32], context: &str) {
    assert!(expected.iter().any(|x| x.abs() > 1e-3), "{context}");
    if keeps_quantized::<B>() {
        assert!(found == expected, "{context}");
    }
    assert_eq!(found.len(), expected.len(), "{context}");
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(difference <= 1e-4 * largest, "{context}: {difference}");
    }
}

fn a_quantized_model_computes_what_its_tensors_would<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let [mut quantized, dense] = quantized_and_dense::<B>(name, device);
        for (path, weight) in weights_mut(&mut quantized) {
            let kept = weight.quantized().is_some();
            assert_eq!(kept, keeps_quantized::<B>(), "{path}");
        }
        // A run with swaps, and what path patching needs from a model.
        let results = [&quantized, &dense].map(|model| {
            let mut plan = Plan::new();
            let (base, source) = (
                plan.tokens(&batch()),
                plan.tokens(&tokens(&[&[7; 6], &[8; 6]])),
            );
            let source = plan.world(source, []);
            let site = Site::Block(1, Component::AttentionValueOutput);
            let swap = Edit::from_world(source, site, Units::position(2), 0);
            let world = plan.world(base, [swap]);
            let read = plan.read_logits(world, LogitPositions::All);
            let interventions = [VanillaIntervention];
            let logits = plan.run(model, &interventions).expect("valid").get(read);

            let dims = model.dims();
            let x = Tensor::<B, 3>::ones([2, 3, dims.d_model], device) * 0.3;
            let pass = Pass::new(3, device, &Tables::new());
            let heads = model.by_head().expect("it has heads");
            let mixed = heads.head_mixed(1, 2, [x.clone(), x.clone() * 2.0, x], &pass);
            let output = heads.head_output(1, 2, mixed.clone());
            [values(logits), values(mixed), values(output)]
        });
        let [found, expected] = &results;
        for (part, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_equal::<B>(found, expected, &format!("{name}, {part}"));
        }
    }
}

fn gradients_pass_through_quantized_weights<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let models = quantized_and_dense::<Autodiff<B>>(name, device);
        let [found, expected] = models.map(|model| {
            let d_model = model.dims().d_model;
            let rotation = Orthonormal::random([d_model, 4], OrthonormalMap::Retraction, 0, device);
            let rotation = rotation.expect("a possible shape");
            let das = RotatedSpaceIntervention::new(rotation, TokenGrouping::Each);
            let mut plan = Plan::new();
            let (base, source) = (
                plan.tokens(&batch()),
                plan.tokens(&tokens(&[&[7; 6], &[8; 6]])),
            );
            let source = plan.world(source, []);
            let site = Site::Block(0, Component::BlockOutput);
            let swap = Edit::from_world(source, site, Units::position(2), 0);
            let world = plan.world(base, [swap]);
            let read = plan.read_logits(world, LogitPositions::Last);
            let logits = plan
                .run(&model, std::slice::from_ref(&das))
                .expect("valid")
                .get(read);
            let gradients = (logits.clone() * logits).sum().backward();

            struct First<'a, B: Backend>(
                &'a <Autodiff<B> as burn::tensor::backend::AutodiffBackend>::Gradients,
                Vec<f32>,
            );
            impl<B: Backend> ModuleVisitor<Autodiff<B>> for First<'_, B> {
                fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
                    if let Some(gradient) = param.val().grad(self.0) {
                        self.1.extend(values(gradient));
                    }
                }
            }
            let mut first = First::<B>(&gradients, Vec::new());
            das.visit(&mut first);
            first.1
        });
        assert_equal::<B>(&found, &expected, name);
    }
}

/// Paths and values of all parameters.
fn parameters<B: Backend>(model: &Decoder<B>) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    struct All(Vec<String>, Vec<(String, Vec<usize>, Vec<f32>)>);
    impl<B: Backend> ModuleVisitor<B> for All {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let shape = param.dims().to_vec();
            self.1.push((self.0.join("."), shape, values(param.val())));
        }
    }
    let mut all = All(Vec::new(), Vec::new());
    model.visit(&mut all);
    all.1
}

fn a_quantized_model_is_saved_as_its_tensors<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let loaded = Decoder::<B>::from_pretrained(name, &LoadOptions::default(), device);
        let config = loaded.expect("it is part of the crate").config;
        let [quantized, dense] = quantized_and_dense::<B>(name, device);
        let folder = tempfile::tempdir().expect("a folder");
        quantized
            .save_pretrained(&config, None, folder.path())
            .expect("saved");
        let again = Decoder::<B>::from_pretrained(folder.path(), &LoadOptions::default(), device);
        let again = again.expect("it has been written").model;
        assert!(parameters(&again) == parameters(&dense), "{name}");
    }
}

/// So that no weight of a file is dequantised because it was not listed.
fn all_weights_may_be_quantized<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let mut model = load::<B>(name, device);
        let mut expected: Vec<String> = parameters(&model)
            .into_iter()
            .filter(|(path, shape, _)| shape.len() == 2 && path != "positions.weight")
            .map(|(path, ..)| path)
            .collect();
        let mut found: Vec<String> = weights_mut(&mut model)
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{name}");
    }
}

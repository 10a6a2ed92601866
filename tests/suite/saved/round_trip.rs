//! Every kind of intervention, saved and loaded.

use std::fs;
use std::path::Path;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_align::dictionaries::{Dictionary, FeatureActivation, InputNorm};
use burn_align::front::{
    AlignableConfig, AlignableModel, AlignableRepresentationConfig, InterventionType,
};
use burn_align::interventions::{
    Add, AddNorm, AdditionIntervention, AutoencoderIntervention, Boundary,
    BoundlessRotatedSpaceIntervention, BuiltinIntervention, Clamp, Composed, ConstantSource,
    ConstantSourceIntervention, DictionaryFeatures, Directions, Fill, FillIntervention, Identity,
    Interpolate, Intervention, JumpReluAutoencoderIntervention, LambdaIntervention,
    NoiseIntervention, Operands, Orthonormal, OrthonormalMap, Pca, PcaIntervention,
    ReftIntervention, ReftKind, RotatedSpaceIntervention, Rotation, Scale, ScalingIntervention,
    SigmoidMask, SigmoidMaskIntervention, SigmoidMaskRotatedSpaceIntervention, SourceOperation,
    SubtractionIntervention, Swap, TokenGrouping, VanillaIntervention,
};
use burn_align::saved::SavedInterventions;
use burn_align_models::nn::Activation;
use burn_align_models::{Component, Decoder};

use super::{bits, config_of};
use crate::support::{message, read_tensors, values};

on_every_backend!(
    everything_comes_back_bit_by_bit,
    what_cannot_be_saved_is_an_error,
);

/// Every kind of intervention, on 16 features.
pub(super) fn all_interventions<B: Backend>(device: &B::Device) -> Vec<BuiltinIntervention<B>> {
    let each = TokenGrouping::Each;
    let rotation = |rank, map| Orthonormal::random([16, rank], map, 7, device).expect("fits");
    let vector = |seed: f32, n: usize| -> Tensor<B, 1> {
        let values: Vec<f32> = (0..n).map(|i| (seed + i as f32 * 1.7).sin()).collect();
        Tensor::from_data(TensorData::new(values, [n]), (device, DType::F32))
    };
    let matrix = |seed: f32, [m, n]: [usize; 2]| vector(seed, m * n).reshape([m, n]);
    let square = OrthonormalMap::MatrixExponential;
    let mut boundless = BoundlessRotatedSpaceIntervention::new(rotation(16, square), each)
        .with_temperature(0.1 + 0.2);
    boundless.mask.boundary = Param::from_tensor(vector(0.3, 1));
    let mut masked = SigmoidMaskRotatedSpaceIntervention::new(
        rotation(16, OrthonormalMap::Cayley),
        TokenGrouping::Joint(1),
    )
    .with_temperature(f64::INFINITY);
    masked.mask.logits = Param::from_tensor(vector(0.4, 16));
    let mut mask = SigmoidMaskIntervention::new(16, each, device).with_temperature(1.0 / 3.0);
    mask.mask.logits = Param::from_tensor(vector(0.5, 16));
    let coder = || {
        AutoencoderIntervention::new(
            (matrix(1.0, [16, 20]), vector(2.0, 20)),
            (matrix(3.0, [20, 16]), vector(4.0, 16)),
            each,
        )
    };
    let jump = || {
        JumpReluAutoencoderIntervention::new(
            (matrix(1.0, [16, 20]), vector(2.0, 20)),
            vector(5.0, 20),
            (matrix(3.0, [20, 16]), vector(4.0, 16)),
            each,
        )
    };
    let mut all: Vec<BuiltinIntervention<B>> = vec![
        VanillaIntervention.into(),
        AdditionIntervention.into(),
        SubtractionIntervention.into(),
        FillIntervention { value: -0.0 }.into(),
        FillIntervention::KNOCK_OUT.into(),
        FillIntervention {
            value: f64::NEG_INFINITY,
        }
        .into(),
        ScalingIntervention { factor: 0.1 }.into(),
        NoiseIntervention::new(NoiseIntervention::LEVEL, u64::MAX).into(),
        boundless.into(),
        masked.into(),
        mask.into(),
        PcaIntervention::new(matrix(6.0, [5, 16]), vector(7.0, 16), vector(8.0, 16), each).into(),
        coder().into(),
        coder().with_swapped(vec![3, 0, 19]).into(),
        jump().into(),
        jump().with_swapped(Vec::new()).into(),
    ];
    for operation in [
        SourceOperation::Swap,
        SourceOperation::Add,
        SourceOperation::Subtract,
    ] {
        all.push(ConstantSourceIntervention::new(vector(9.0, 16), operation).into());
    }
    for (rank, map) in [
        (16, OrthonormalMap::Retraction),
        (3, OrthonormalMap::Retraction),
        (16, OrthonormalMap::MatrixExponential),
        (16, OrthonormalMap::Cayley),
        (3, OrthonormalMap::Householder),
        (16, OrthonormalMap::Householder),
    ] {
        let it = RotatedSpaceIntervention::new(rotation(rank, map), TokenGrouping::Joint(1));
        all.push(it.clone().into());
        all.push(it.with_swapped(2).into());
    }
    for kind in [
        ReftKind::LoReft,
        ReftKind::NoReft,
        ReftKind::ConsReft,
        ReftKind::LobiReft,
        ReftKind::DiReft,
        ReftKind::NodiReft,
    ] {
        for map in [OrthonormalMap::Retraction, OrthonormalMap::Householder] {
            let it = ReftIntervention::new(kind, rotation(3, map), 11);
            all.push(it.with_activation(Activation::GeluTanh).into());
        }
    }
    all.extend(compositions(device, &vector, &matrix));
    all
}

/// Compositions that have no name of their own.
fn compositions<B: Backend>(
    device: &B::Device,
    vector: &impl Fn(f32, usize) -> Tensor<B, 1>,
    matrix: &impl Fn(f32, [usize; 2]) -> Tensor<B, 2>,
) -> Vec<BuiltinIntervention<B>> {
    let rotation = |rank| {
        let map = OrthonormalMap::Retraction;
        Rotation::new(Orthonormal::random([16, rank], map, 3, device).expect("fits"))
    };
    let pca = Pca::new(matrix(6.0, [5, 16]), vector(7.0, 16), vector(8.0, 16));
    let along = || Directions::along(vector(1.5, 16)).expect("a direction");
    let boundary = |features| Boundary::new(vector(0.3, 1), features, 0.7);
    let constant = ConstantSource::new(vector(2.5, 3), SourceOperation::Add);
    let mut all = vec![
        Composed::of(rotation(16), Swap)
            .with_changed(vec![3, 1])
            .into(),
        Composed::of(rotation(3), Clamp::between(-0.5, f64::INFINITY)).into(),
        Composed::of(rotation(3), constant).into(),
        Composed::of(
            rotation(3),
            ReftIntervention::new(
                ReftKind::LoReft,
                Orthonormal::random([3, 2], OrthonormalMap::Retraction, 1, device).expect("fits"),
                5,
            ),
        )
        .into(),
        Composed::of(rotation(4), Interpolate { share: 0.3 })
            .with_mask(boundary(4))
            .into(),
        Composed::of(along(), AddNorm { factor: 2.0 }).into(),
        Composed::alone(Scale { factor: 2.0 })
            .with_changed(vec![2, 5])
            .into(),
        Composed::of(along(), Fill::ZERO)
            .with_tokens(TokenGrouping::Joint(1))
            .into(),
        Composed::of(pca, Add)
            .with_mask(SigmoidMask::new(vector(0.1, 5), 0.5))
            .into(),
        Composed::of(Identity, Scale { factor: 3.0 })
            .with_mask(boundary(16))
            .into(),
    ];
    let dictionary = |activation| {
        let encoder = (matrix(1.0, [16, 20]), vector(2.0, 20));
        let decoder = (matrix(3.0, [20, 16]), vector(4.0, 16));
        let it = Dictionary::new(encoder, activation, decoder).expect("fits");
        it.with_subtracted_bias(true).expect("fits")
    };
    let scaled = |it: Dictionary<B>| it.with_input_norm(InputNorm::ConstantNorm);
    for dictionary in [
        dictionary(FeatureActivation::relu()),
        scaled(dictionary(FeatureActivation::jump_relu(vector(5.0, 20)))),
        dictionary(FeatureActivation::gated(vector(5.0, 20), vector(6.0, 20))),
        dictionary(FeatureActivation::top_k(4)),
        dictionary(FeatureActivation::abs_top_k(4)),
    ] {
        let few = DictionaryFeatures::selected(dictionary.clone(), &[7, 0, 19]).expect("there");
        let whole = DictionaryFeatures::new(dictionary).expect("an autoencoder");
        all.push(Composed::of(whole, Swap).into());
        all.push(Composed::of(few, Fill { value: 2.0 }).into());
    }
    all
}

fn apply<B: Backend>(it: &BuiltinIntervention<B>, device: &B::Device) -> Vec<u32> {
    let wave = |phase: f32| {
        let values: Vec<f32> = (0..32).map(|i| (phase + i as f32).cos()).collect();
        let data = TensorData::new(values, [2, 1, 16]);
        Tensor::<B, 3>::from_data(data, (device, DType::F32))
    };
    let source = it.needs_source().then(|| wave(2.0));
    let output = it.apply(wave(0.0), Operands::new(source, None));
    values(output).into_iter().map(f32::to_bits).collect()
}

fn everything_comes_back_bit_by_bit<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("not/there/yet");
    let interventions = all_interventions::<B>(device);
    let count = interventions.len();
    let before: Vec<_> = interventions
        .iter()
        .map(|it| (bits(it), apply(it, device)))
        .collect();
    let saved = SavedInterventions::new(config_of(count), interventions);
    saved.save(&folder).expect("it can be saved");
    // Over what is there.
    saved.save(&folder).expect("it can be saved again");
    let files = fs::read_dir(&folder).expect("a folder").count();
    assert_eq!(files, 2, "nothing unfinished is left");

    let loaded = SavedInterventions::<B>::load(&folder, device).expect("it loads");
    assert_eq!(loaded.config, saved.config);
    for (index, (it, (parameters, output))) in loaded.interventions.iter().zip(&before).enumerate()
    {
        assert_eq!(&bits(it), parameters, "intervention {index}");
        assert_eq!(&apply(it, device), output, "intervention {index}: {it:?}");
    }
    // Everything but tensors is in the configuration: saved again, it is the same text.
    let again = folder.join("again");
    loaded.save(&again).expect("it can be saved");
    for name in ["config.json", "interventions.safetensors"] {
        let [first, second] = [&folder, &again].map(|f| fs::read(f.join(name)).expect("a file"));
        assert_eq!(first, second, "{name}");
    }
    // Onto another backend.
    let other = SavedInterventions::<Autodiff<B>>::load(&folder, device).expect("it loads");
    for (it, (parameters, _)) in other.interventions.iter().zip(&before) {
        assert_eq!(&bits(it), parameters);
    }

    // In a model, with links, and representations without their own intervention.
    let model: Decoder<B> = crate::support::load("gpt2_plain", device);
    let at = |layer| AlignableRepresentationConfig::new(layer, Component::MlpOutput);
    let [first, second] = [0, 1].map(|layer| at(layer).with_low_rank(3).with_link(4));
    let config = AlignableConfig::new([
        first,
        at(0).with_intervention(InterventionType::Collect),
        at(0).with_intervention(InterventionType::Skip),
        at(1).with_intervention(InterventionType::Noise),
        second,
    ]);
    let alignable = AlignableModel::new_seeded(config, model.clone(), 5).expect("it fits");
    let folder = folder.join("linked");
    alignable
        .save_interventions(&folder)
        .expect("it can be saved");
    let loaded = AlignableModel::load(&folder, model).expect("it loads");
    assert_eq!(loaded.config(), alignable.config());
    assert_eq!(loaded.interventions().len(), 3);
    for (a, b) in loaded.interventions().iter().zip(alignable.interventions()) {
        assert_eq!(bits(a), bits(b));
    }
    let stored = read_tensors(&folder.join("interventions.safetensors"));
    assert_eq!(stored.keys().collect::<Vec<_>>(), ["0.rotation.parameter"]);
}

fn what_cannot_be_saved_is_an_error<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let fails = |saved: SavedInterventions<B>, folder: &Path, part: &str| {
        let error = saved.save(folder).expect_err(part);
        let message = message(&error);
        assert!(message.contains(part), "expected `{part}` in: {message}");
    };
    let none = || SavedInterventions::new(config_of(1), Vec::new());
    fails(none(), folder.path(), "expected 1 intervention");
    let vanilla = |config| SavedInterventions::new(config, vec![VanillaIntervention.into()]);
    let mut config = config_of(1);
    config.representations[0].max_number_of_units = 0;
    fails(vanilla(config), folder.path(), "cannot be saved");
    let doubled = Tensor::<B, 1>::from_data(TensorData::from([1.0_f64]), (device, DType::F64));
    // If a backend has no f64, there is nothing to reject.
    if doubled.dtype() == DType::F64 {
        let it = ConstantSourceIntervention::new(doubled, SourceOperation::Add);
        let saved = SavedInterventions::new(config_of(1), vec![it.into()]);
        fails(saved, folder.path(), "tensor `0.source`: expected f32");
    }
    let closure = LambdaIntervention::new(|base, _operands| base);
    let saved = SavedInterventions::new(config_of(1), vec![closure.into()]);
    fails(saved, folder.path(), "intervention 0 is a closure");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    let occupied = folder.path().join("a file");
    fs::write(&occupied, "").expect("written");
    fails(vanilla(config_of(1)), &occupied, "cannot be written");
    // A folder is where the file should be: nothing unfinished is left.
    fs::create_dir(folder.path().join("config.json")).expect("made");
    fails(vanilla(config_of(1)), folder.path(), "cannot be written");
    let left = fs::read_dir(folder.path()).expect("a folder");
    let left = left.map(|entry| entry.expect("readable").file_name());
    assert!(
        left.into_iter()
            .all(|name| !name.to_string_lossy().ends_with(".part"))
    );
}

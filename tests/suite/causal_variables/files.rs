//! Submissions in folders, the track's and ours.

use std::fs;
use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, backend::Backend};
use burn_align::interventions::{
    Add, BuiltinFeaturizer, BuiltinIntervention, Composed, Directions, Identity, Orthonormal,
    OrthonormalMap, Pca, Rotation, SigmoidMask, Swap, TokenGrouping,
};
use burn_align::methods::causal_variables::{
    Submission, SubmissionUnit, SubmittedFeatures, TrackModel, TrackTask, VariableCell,
};

use super::{expected, folder, numbers};
use crate::support::{message, values};

on_every_backend!(
    the_track_s_submissions_load,
    submissions_read_back_the_same,
    masks_become_indices,
    what_the_track_cannot_express_is_refused,
    contradictory_files_are_refused,
);

fn last(layer: usize) -> SubmissionUnit {
    SubmissionUnit::residual_stream(layer, "last_token")
}

#[track_caller]
fn intervention<'a, B: Backend>(
    submission: &'a Submission<B>,
    unit: &SubmissionUnit,
) -> &'a BuiltinIntervention<B> {
    let features = submission.get(unit).expect("the unit");
    features.intervention().expect("an intervention")
}

#[track_caller]
fn rotation<'a, B: Backend>(
    submission: &'a Submission<B>,
    unit: &SubmissionUnit,
) -> &'a Orthonormal<B> {
    match &intervention(submission, unit).featurizer {
        BuiltinFeaturizer::Rotation(rotation) => &rotation.rotation,
        other => panic!("{other:?}"),
    }
}

fn the_track_s_submissions_load<B: Backend>(device: &B::Device) {
    let heads = Submission::<B>::load(folder().join("heads"), device).expect("a submission");
    let tracked = Submission::<Autodiff<B>>::load(folder().join("heads"), device);
    let tracked = tracked.expect("a submission");
    let expected = expected();
    let subspaces = expected["subspaces"].as_object().expect("subspaces");
    assert_eq!(heads.units().count(), subspaces.len());
    for (unit, matrix) in subspaces {
        let unit: SubmissionUnit = unit.parse().expect("a unit");
        let found = rotation(&heads, &unit);
        let rows = matrix.as_array().expect("rows").iter();
        let matrix: Vec<f64> = rows.flat_map(numbers).collect();
        for (found, expected) in values(found.matrix()).into_iter().zip(&matrix) {
            assert!((f64::from(found) - expected).abs() < 1e-5, "{unit}");
        }
        let trains = rotation(&tracked, &unit).parameter.is_require_grad();
        assert_eq!(trains, unit.layer() != 3, "{unit}");
        assert_eq!(intervention(&heads, &unit).changed(), None);
    }
    let residual = Submission::<B>::load(folder().join("residual"), device).expect("a submission");
    let neurons = intervention(&residual, &last(3))
        .changed()
        .expect("indices");
    assert_eq!(neurons, (64..128).collect::<Vec<_>>());
}

fn submissions_read_back_the_same<B: Backend>(device: &B::Device) {
    let random = |shape, map| Orthonormal::<B>::random(shape, map, 5, device).expect("a rotation");
    let swap =
        |rotation| -> BuiltinIntervention<B> { Composed::of(Rotation::new(rotation), Swap).into() };
    let columns = Tensor::<B, 2>::from_floats([[3.0], [0.0], [4.0]], device);
    let directions = Directions::spanned_by(columns).expect("a direction");
    let units = [
        (last(0), swap(random([6, 2], OrthonormalMap::Householder))),
        (
            last(1),
            swap(random([6, 6], OrthonormalMap::MatrixExponential)),
        ),
        (last(2), swap(random([6, 2], OrthonormalMap::Retraction))),
        (last(3), swap(random([6, 6], OrthonormalMap::Cayley))),
        (last(4), Composed::of(directions, Swap).into()),
        (
            last(5),
            Composed::of(Identity, Swap).with_changed(vec![1, 4]).into(),
        ),
    ];
    let scratch = tempfile::tempdir().expect("a folder");
    let submission = Submission::<B>::new(units);
    submission.save(scratch.path()).expect("saved");
    fs::write(scratch.path().join("some__results.json"), "{}").expect("written");
    let again = Submission::<B>::load(scratch.path(), device).expect("loaded");
    for layer in 0..4 {
        let [before, after] = [&submission, &again].map(|it| rotation(it, &last(layer)));
        let pairs = values(before.matrix())
            .into_iter()
            .zip(values(after.matrix()));
        let off = pairs
            .map(|(before, after)| (before - after).abs())
            .fold(0.0, f32::max);
        assert!(off < 1e-5, "layer {layer}: {off}");
        if layer < 2 {
            // Those are PyTorch's own parameters.
            assert_eq!(
                values(before.parameter.val()),
                values(after.parameter.val())
            );
        }
    }
    let direction = rotation(&again, &last(4));
    assert!(!direction.parameter.is_require_grad());
    let direction = values(direction.matrix());
    assert!((direction[0] - 0.6).abs() < 1e-6 && (direction[2] - 0.8).abs() < 1e-6);
    assert_eq!(intervention(&again, &last(5)).changed(), Some(&[1, 4][..]));
    // What has been loaded is saved as it was.
    let second = tempfile::tempdir().expect("a folder");
    let heads = folder().join("heads");
    let heads = Submission::<B>::load(&heads, device).expect("a submission");
    heads.save(second.path()).expect("saved");
    let again = Submission::<B>::load(second.path(), device).expect("loaded");
    for (unit, _) in heads.units() {
        let matrices = [&heads, &again].map(|it| values(rotation(it, unit).matrix()));
        assert_eq!(matrices[0], matrices[1], "{unit}");
    }
}

fn masks_become_indices<B: Backend>(device: &B::Device) {
    let logits = Tensor::<B, 1>::from_floats([0.1, -0.1, 2.0, 3.0], device);
    let mask = SigmoidMask::new(logits, 0.01);
    let swap = Composed::of(Identity, Swap).with_mask(mask);
    let some = swap.clone().with_changed(vec![0, 1, 2]);
    let scratch = tempfile::tempdir().expect("a folder");
    let submission = Submission::<B>::new([(last(0), swap.into()), (last(1), some.into())]);
    submission.save(scratch.path()).expect("saved");
    let file = |name: &str| fs::read_to_string(scratch.path().join(name)).expect("a file");
    assert_eq!(
        file("ResidualStream(Layer-0,Token-last_token)_indices"),
        "[0,2,3]"
    );
    assert_eq!(
        file("ResidualStream(Layer-1,Token-last_token)_indices"),
        "[0,2]"
    );
    // Without its modules it is a dictionary's.
    for end in ["_featurizer", "_inverse_featurizer"] {
        let name = format!("ResidualStream(Layer-1,Token-last_token){end}");
        fs::remove_file(scratch.path().join(name)).expect("removed");
    }
    let again = Submission::<B>::load(scratch.path(), device).expect("loaded");
    let Some(SubmittedFeatures::Dictionary(Some(indices))) = again.get(&last(1)) else {
        panic!("{again:?}");
    };
    assert_eq!(indices, &[0, 2]);
}

fn what_the_track_cannot_express_is_refused<B: Backend>(device: &B::Device) {
    let scratch = tempfile::tempdir().expect("a folder");
    let save = |unit: SubmissionUnit, it: BuiltinIntervention<B>| {
        let error = Submission::new([(unit, it)]).save(scratch.path());
        message(&error.expect_err("a misfit"))
    };
    let found = save(last(0), Add.into());
    assert!(
        found.contains("expected an interchange (Swap), found `add"),
        "{found}"
    );
    let square = Tensor::<B, 2>::eye(2, device);
    let ones = Tensor::<B, 1>::ones([2], device);
    let pca = Pca::new(square, ones.zeros_like(), ones);
    let found = save(last(0), Composed::of(pca, Swap).into());
    assert!(
        found.contains("found `pca`; for principal components, use Directions"),
        "{found}"
    );
    let rotation = Orthonormal::<B>::random([4, 1], OrthonormalMap::Retraction, 0, device);
    let rotation = Rotation::new(rotation.expect("a rotation"));
    let joint = Composed::of(rotation, Swap).with_tokens(TokenGrouping::Joint(2));
    let found = save(last(0), joint.into());
    assert!(found.contains("use TokenGrouping::Each"), "{found}");
    for name in ["", "a/b", "a)b", "a,b"] {
        let found = save(SubmissionUnit::residual_stream(0, name), Swap.into());
        assert!(found.contains("letters, digits and `_-.`"), "{found}");
    }
    let none = Submission::<B>::new([])
        .save(scratch.path())
        .expect_err("nothing");
    assert!(message(&none).contains("at least one unit"));
    assert_eq!(fs::read_dir(scratch.path()).expect("a folder").count(), 0);
}

fn contradictory_files_are_refused<B: Backend>(device: &B::Device) {
    let unit = last(0);
    let random = |seed| {
        let rotation = Orthonormal::<B>::random([4, 2], OrthonormalMap::Householder, seed, device);
        Composed::of(Rotation::new(rotation.expect("a rotation")), Swap)
    };
    let folders = [0, 1].map(|seed| {
        let scratch = tempfile::tempdir().expect("a folder");
        let submission = Submission::<B>::new([(unit.clone(), random(seed).into())]);
        submission.save(scratch.path()).expect("saved");
        scratch
    });
    let [folder, other] = folders.each_ref().map(|it| it.path());
    let file = |folder: &Path, end: &str| folder.join(format!("{unit}{end}"));
    let load = || {
        let error = Submission::<B>::load(folder, device).expect_err("a contradiction");
        message(&error)
    };
    assert!(Submission::<B>::load(folder, device).is_ok());
    let good = fs::read(file(folder, "_featurizer")).expect("a file");

    fs::copy(file(other, "_featurizer"), file(folder, "_featurizer")).expect("copied");
    assert!(
        load().contains("rotate.parametrizations.weight.0.base"),
        "{}",
        load()
    );
    // The bytes of one number, which then do not have the archive's checksum.
    let values = values(random(0).featurizer.rotation.matrix());
    let old = values[1].to_le_bytes();
    let changed = |new: [u8; 4]| {
        let mut bytes = good.clone();
        for at in 0..bytes.len() - 4 {
            if bytes[at..at + 4] == old {
                bytes[at..at + 4].copy_from_slice(&new);
            }
        }
        bytes
    };
    for end in ["_featurizer", "_inverse_featurizer"] {
        fs::write(file(folder, end), changed(f32::NAN.to_le_bytes())).expect("written");
    }
    assert!(load().contains("not readable"), "{}", load());

    for end in ["_featurizer", "_inverse_featurizer"] {
        fs::write(file(folder, end), &good).expect("written");
    }
    fs::write(file(folder, "_indices"), "[2]").expect("written");
    assert!(
        load().contains("expected indices of 2 features, found 2"),
        "{}",
        load()
    );
    fs::write(file(folder, "_indices"), "{}").expect("written");
    assert!(load().contains("a list of features in JSON"), "{}", load());
    fs::write(file(folder, "_indices"), "null").expect("written");
    fs::remove_file(file(folder, "_inverse_featurizer")).expect("removed");
    assert!(
        load().contains("_inverse_featurizer: expected this file"),
        "{}",
        load()
    );
    fs::write(folder.join("ResidualStream(3)_indices"), "null").expect("written");
    assert!(
        load().contains("expected ResidualStream(Layer-LAYER,Token-POSITION)"),
        "{}",
        load()
    );
    let empty = tempfile::tempdir().expect("a folder");
    let error = Submission::<B>::load(empty.path(), device).expect_err("no unit");
    assert!(message(&error).contains("expected files of units"));
}

#[test]
fn units_have_the_names_of_all_versions() {
    for separator in [':', '_', '-'] {
        let text = format!("AttentionHead(Layer{separator}7,Head{separator}6,Token{separator}all)");
        let unit: SubmissionUnit = text.parse().expect("a unit");
        assert_eq!(unit, SubmissionUnit::attention_head(7, 6, "all"));
        assert_eq!(unit.to_string(), "AttentionHead(Layer-7,Head-6,Token-all)");
    }
    for text in [
        "",
        "ResidualStream(Layer-0)",
        "ResidualStream(Layer-x,Token-a)",
        "Mlp(Layer-0,Token-a)",
    ] {
        assert!(text.parse::<SubmissionUnit>().is_err(), "{text}");
    }
}

#[test]
fn the_leaderboard_has_26_cells() {
    let cells: Vec<VariableCell> = VariableCell::all().collect();
    assert_eq!(cells.len(), 26);
    for cell in &cells {
        assert_eq!(cell.to_string().parse::<VariableCell>().as_ref(), Ok(cell));
    }
    let cell = VariableCell::new(
        TrackTask::FourAnswerMcqa,
        TrackModel::Gemma2,
        "answer_pointer",
    );
    let name = "4_answer_MCQA_Gemma2ForCausalLM_answer_pointer";
    assert_eq!(cell.expect("a cell").to_string(), name);
    let none = VariableCell::new(TrackTask::Arithmetic, TrackModel::Gpt2, "ones_carry");
    assert!(message(&none.expect_err("no such cell")).contains("such as ioi_task_GPT2"));
}

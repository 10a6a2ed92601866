//! Folders with other bytes than were saved.

use std::fs;
use std::path::PathBuf;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_align::interventions::{Composed, Directions, Fill};
use burn_align::saved::{FileError, LoadInterventionsError, SavedInterventions};

use super::round_trip::all_interventions;
use super::{config_of, copy, trainable};
use crate::pickles::{archive, push_text};
use crate::support::message;

on_every_backend!(
    damaged_folders_are_errors,
    directions_must_be_orthonormal,
    code_is_refused,
    no_pickle_takes_long,
);

fn damaged_folders_are_errors<B: Backend>(device: &B::Device) {
    let own = tempfile::tempdir().expect("a folder");
    let interventions = all_interventions::<B>(device);
    let saved = SavedInterventions::new(config_of(interventions.len()), interventions);
    saved.save(own.path()).expect("it can be saved");
    let folders = [own.path().to_owned()].into_iter().chain(
        ["rotated", "boundless", "low_rank", "loreft", "old_repr"].map(|n| trainable().join(n)),
    );
    for from in folders {
        let folder = copy(&from);
        for entry in from.read_dir().expect("a folder") {
            let file = entry.expect("readable").path();
            let name = file.file_name().expect("a name").to_owned();
            if name.to_string_lossy().starts_with("expected") {
                continue;
            }
            let whole = fs::read(&file).expect("a file");
            let to = folder.path().join(&name);
            let step = (whole.len() / 150).max(1);
            for cut in (0..whole.len() - 1).step_by(step) {
                fs::write(&to, &whole[..cut]).expect("written");
                let loaded = SavedInterventions::<B>::load(folder.path(), device);
                assert!(loaded.is_err(), "{} cut to {cut}", file.display());
            }
            // Any byte may be wrong; this gives an error or a different value.
            let mut state = 1_u64;
            for _ in 0..300 {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let mut bytes = whole.clone();
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] ^= (state >> 20) as u8 | 1;
                fs::write(&to, &bytes).expect("written");
                let _ = SavedInterventions::<B>::load(folder.path(), device);
            }
            fs::write(&to, &whole).expect("written");
        }
        SavedInterventions::<B>::load(folder.path(), device).expect("whole again");
    }
}

/// Outside of directions that are not orthonormal, something would change too.
fn directions_must_be_orthonormal<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let columns = Tensor::<B, 2>::from_floats([[3.0, 0.0], [0.0, 2.0], [4.0, 0.0]], device);
    let directions = Directions::spanned_by(columns).expect("of full rank");
    let it = Composed::of(directions, Fill::ZERO);
    let saved = SavedInterventions::new(config_of(1), vec![it.into()]);
    saved.save(folder).expect("it can be saved");
    SavedInterventions::<B>::load(folder, device).expect("it loads");
    let load = |shape: Vec<usize>, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes);
        let views = [("0.featurizer.directions", view.expect("it fits"))];
        let file = folder.join("interventions.safetensors");
        safetensors::tensor::serialize_to_file(views, None, &file).expect("written");
        SavedInterventions::<B>::load(folder, device)
    };
    load(vec![3, 2], &[0.6, 0.0, 0.0, 1.0, 0.8, 0.0]).expect("orthonormal");
    for [a, b] in [
        [0.6, 0.1],
        [0.7, 0.0],
        [f32::NAN, 0.0],
        [f32::INFINITY, 0.0],
    ] {
        let error = load(vec![3, 2], &[a, b, 0.0, 1.0, 0.8, 0.0]).expect_err("not orthonormal");
        assert!(
            matches!(&error, LoadInterventionsError::NotOrthonormal { tensor, deviation, .. }
                if tensor == "0.featurizer.directions" && *deviation > 1e-3),
            "{error}"
        );
        let message = message(&error);
        assert!(
            message.contains("expected orthonormal columns"),
            "{message}"
        );
    }
    let error = load(vec![2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).expect_err("too many");
    assert!(
        matches!(
            error,
            LoadInterventionsError::File(FileError::WrongShape { .. })
        ),
        "{error}"
    );
}

fn code_is_refused<B: Backend>(device: &B::Device) {
    let error = SavedInterventions::<B>::load(trainable().join("evil"), device);
    let error = error.expect_err("it must be refused");
    assert!(
        matches!(&error, LoadInterventionsError::File(FileError::ForbiddenGlobal { global, .. })
            if global.ends_with("system")),
        "{error}"
    );
    for folder in [trainable().join("evil"), PathBuf::from(".")] {
        assert!(!folder.join("pwned.txt").exists());
    }
}

/// A pickle with very many names, all of one tensor.
fn no_pickle_takes_long<B: Backend>(device: &B::Device) {
    const NAMES: usize = 300_000;
    let mut pickle = b"\x80\x02}(".to_vec();
    push_text(&mut pickle, "0");
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    push_text(&mut pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    push_text(&mut pickle, "0");
    push_text(&mut pickle, "cpu");
    // (storage, offset 0, shape (0,), stride (1,), False, {}), remembered as 0
    pickle.extend(b"K\x00tQK\x00K\x00\x85K\x01\x85\x89}tRq\x00");
    for name in 1..NAMES {
        push_text(&mut pickle, &name.to_string());
        pickle.extend(b"h\x00");
    }
    pickle.extend(b"u.");
    let folder = copy(&trainable().join("rotated"));
    let name = "intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin";
    fs::write(folder.path().join(name), archive(&pickle)).expect("written");
    let begin = std::time::Instant::now();
    let error = SavedInterventions::<B>::load(folder.path(), device).expect_err("no rotation");
    assert!(
        matches!(
            error,
            LoadInterventionsError::File(FileError::MissingTensor { .. })
        ),
        "{error}"
    );
    // A second is plenty; comparing all pairs of names would take a minute.
    let took = begin.elapsed();
    assert!(took.as_secs() < 20, "it takes {took:?}");
}

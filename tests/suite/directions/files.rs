//! Files of directions, and control vectors, which are those of llama.cpp's own writer
//! (`make_control_vector.py`).

use std::fs;

use burn_align::methods::{
    Direction, DirectionMethod, DirectionOptions, LoadResultError, PromptPositions, find_direction,
};
use burn_align::saved::{ControlVector, ControlVectorError};
use burn_align_models::{Component, ModelDims, Site};

use super::{SITE, planted, planted_pairs};
use crate::support::{fixtures, message};

#[test]
fn a_direction_reads_back() {
    let data = planted_pairs(&planted(12, 40, 3.0, 5));
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("new");
    for (site, method) in [
        (SITE, DirectionMethod::MeanDifference),
        (Site::Embedding, DirectionMethod::Probe { l2: 0.3 }),
        (Site::FinalNorm, DirectionMethod::Lat),
        (
            Site::Block(3, Component::AttentionValueOutput),
            DirectionMethod::PrincipalComponent,
        ),
    ] {
        let options = DirectionOptions::default()
            .with_model("a model")
            .with_labels("höflich", "\"rude\"")
            .with_positions(&PromptPositions::From(1))
            .with_seed(u64::MAX);
        let direction = find_direction(&data, site, method, &options).expect("a direction");
        direction.save(&folder).expect("written");
        assert_eq!(Direction::load(&folder).expect("read"), direction);
    }
    assert_eq!(fs::read_dir(&folder).expect("the folder").count(), 2);

    let saved = Direction::load(&folder).expect("read");
    let mut damaged = saved.clone();
    damaged.vector[2] = f32::NAN;
    let error = damaged.save(&folder).expect_err("not finite");
    assert_eq!(
        message(&error),
        "the direction cannot be saved: vector: expected finite numbers, found NaN as feature 2"
    );
    damaged.vector = vec![0.0; 12];
    let error = damaged.save(&folder).expect_err("no direction");
    assert!(message(&error).contains("other than 0"), "{error:?}");
    damaged = saved.clone();
    damaged.norms.unscaled = f64::INFINITY;
    let error = damaged.save(&folder).expect_err("not finite");
    assert!(message(&error).contains("finite numbers"), "{error:?}");
    assert_eq!(Direction::load(&folder).expect("unchanged"), saved);

    let (json, tensors) = ("direction.json", "direction.safetensors");
    let text = fs::read_to_string(folder.join(json)).expect("text");
    let refused = |contents: &str| {
        fs::write(folder.join(json), contents).expect("written");
        message(&Direction::load(&folder).expect_err("damaged"))
    };
    let unknown = refused(&text.replace("attention_value_output", "attention"));
    assert!(
        unknown.contains("unknown component `attention`"),
        "{unknown}"
    );
    let more = refused(&text.replace("\"site\"", "\"more\": 1, \"site\""));
    assert!(more.contains("unknown field `more`"), "{more}");
    let cut = refused(&text[..text.len() / 2]);
    assert!(cut.contains("expected the description of a"), "{cut}");
    fs::write(folder.join(json), &text).expect("written");
    assert_eq!(Direction::load(&folder).expect("whole again"), saved);

    let bytes = fs::read(folder.join(tensors)).expect("bytes");
    fs::write(folder.join(tensors), &bytes[..bytes.len() - 4]).expect("written");
    let error = Direction::load(&folder).expect_err("cut off");
    assert!(
        message(&error).contains("expected safetensors"),
        "{error:?}"
    );
    fs::remove_file(folder.join(tensors)).expect("removed");
    let error = Direction::load(&folder).expect_err("no vector");
    assert!(matches!(error, LoadResultError::Io { .. }), "{error:?}");
    fs::rename(folder.join(json), folder.join("direction.json.part")).expect("renamed");
    let error = Direction::load(&folder).expect_err("interrupted");
    assert!(matches!(error, LoadResultError::CutOff { .. }), "{error:?}");
    let found = message(&error);
    let expected = "saving a direction here was interrupted, direction.json is missing";
    assert!(found.contains(expected), "{found}");
    let error = Direction::load(folder.join("nowhere")).expect_err("no folder");
    assert!(message(&error).contains("no direction.json"), "{error:?}");
}

/// The vectors of `make_control_vector.py`.
fn control_vector() -> ControlVector {
    let directions = [1, 2, 10].map(|layer| {
        let vector = (0..10).map(|feature| (feature - layer) as f32 / 8.0);
        (layer as usize, vector.collect())
    });
    ControlVector::new("llama", directions).expect("vectors")
}

#[test]
fn control_vectors_are_those_of_the_gguf_package() {
    let file = fixtures().join("control_vector.gguf");
    let expected = fs::read(&file).expect("the fixture");
    let vector = control_vector();
    assert_eq!(vector.to_gguf(), expected);
    let read = ControlVector::load(&file).expect("a control vector");
    assert_eq!(read, vector);
    assert_eq!(read.model_hint(), "llama");
    assert_eq!(read.directions().len(), 3);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("new").join("vector.gguf");
    for _ in 0..2 {
        vector.save(&file).expect("written");
        assert_eq!(fs::read(&file).expect("the file"), expected);
    }
    assert_eq!(
        fs::read_dir(folder.path().join("new")).expect("it").count(),
        1
    );
}

#[test]
fn control_vectors_that_are_refused() {
    let new = |directions: &[(usize, &[f32])]| {
        let directions = directions.iter();
        let directions = directions.map(|(layer, vector)| (*layer, vector.to_vec()));
        let refused = ControlVector::new("llama", directions).expect_err("refused");
        message(&refused)
    };
    for (found, expected) in [
        (new(&[]), "expected a vector with at least one feature"),
        (new(&[(1, &[])]), "expected a vector with at least one"),
        (new(&[(0, &[1.0])]), "layer 0: expected layers from 1 on"),
        (
            new(&[(1, &[1.0]), (4, &[1.0, 2.0])]),
            "layer 4: expected 1 features, found 2",
        ),
        (
            new(&[(3, &[1.0]), (3, &[2.0])]),
            "layer 3: expected one vector, found two",
        ),
        (
            new(&[(3, &[1.0, f32::INFINITY])]),
            "layer 3, feature 1: expected a finite number, found inf",
        ),
    ] {
        assert!(found.starts_with(expected), "{found}");
    }

    let dims = ModelDims::features(2, 16, 5);
    let error = control_vector().check(&dims).expect_err("10 wide");
    assert_eq!(message(&error), "layer 1: expected 16 features, found 10");
    let deep = ControlVector::new("gpt2", [(2, vec![0.5; 16])]).expect("vectors");
    let error = deep.check(&dims).expect_err("two blocks");
    assert!(
        message(&error).starts_with("layer 2: expected layers below 2"),
        "{error:?}"
    );

    let gguf = fixtures().join("gguf").join("kinds.gguf");
    let error = ControlVector::load(&gguf).expect_err("something else");
    assert!(
        message(&error).ends_with(
            "expected a control vector (general.architecture `controlvector`), found `llama`"
        ),
        "{error:?}"
    );
    let error = ControlVector::load(fixtures().join("paths.json")).expect_err("not GGUF");
    assert!(
        matches!(error, ControlVectorError::Gguf { .. }),
        "{error:?}"
    );
    let error = ControlVector::load(fixtures().join("nowhere")).expect_err("no file");
    assert!(
        matches!(error, ControlVectorError::Gguf { .. }),
        "{error:?}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("vector.gguf");
    let bytes = control_vector().to_gguf();
    let at = |text: &[u8]| {
        let mut windows = bytes.windows(text.len());
        windows.position(|it| it == text).expect("there")
    };
    let name = at(b"direction.2");
    let changed = |place: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[place] = value;
        fs::write(&file, bytes).expect("written");
        message(&ControlVector::load(&file).expect_err("refused"))
    };
    for (place, value, expected) in [
        (
            name,
            b'D',
            "expected the name `direction.LAYER`, found another",
        ),
        (
            name + 10,
            b'x',
            "expected the name `direction.LAYER`, found another",
        ),
        (name + 10, b'0', "layer 0: expected layers from 1 on"),
        // The type, after the number of axes and one size.
        (
            name + 11 + 4 + 8,
            26,
            "`direction.2`: expected F32, found I32",
        ),
    ] {
        let found = changed(place, value);
        assert!(found.contains(expected), "{found}");
    }
    fs::write(&file, &bytes[..bytes.len() - 32]).expect("written");
    let error = ControlVector::load(&file).expect_err("cut off");
    assert!(
        matches!(error, ControlVectorError::Gguf { .. }),
        "{error:?}"
    );
    let error = control_vector().save("/").expect_err("no name");
    assert!(matches!(error, ControlVectorError::Io { .. }), "{error:?}");
}

//! Folders whose contents cannot be reproduced.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use burn::tensor::backend::Backend;
use burn_align::front::{AlignableModel, Mode};
use burn_align::interventions::{
    BuiltinFeaturizer, Orthonormal, OrthonormalMap, RotatedSpaceIntervention, TokenGrouping,
};
use burn_align::saved::SavedInterventions;
use burn_align_models::{Component, Decoder};
use serde_json::{Value, json};

use super::{bits, config_of, copy, only, read_json, trainable};
use crate::support::{load, message, values};

on_every_backend!(
    what_is_not_there_is_an_error,
    linked_parameters_must_agree,
    a_constant_source_goes_to_each_unit,
);

fn what_is_not_there_is_an_error<B: Backend>(device: &B::Device) {
    let fails = |folder: &Path, part: &str| {
        let error = SavedInterventions::<B>::load(folder, device).expect_err(part);
        let message = message(&error);
        assert!(message.contains(part), "expected `{part}` in: {message}");
    };
    fails(Path::new("/nowhere"), "no config.json");

    // Ours.
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let rotation = Orthonormal::random([16, 3], OrthonormalMap::Retraction, 0, device);
    let it = RotatedSpaceIntervention::<B>::new(rotation.expect("fits"), TokenGrouping::Each);
    let saved = SavedInterventions::new(config_of(1), vec![it.into()]);
    saved.save(folder).expect("it can be saved");
    let file = folder.join("config.json");
    let whole = read_json(&file);
    let with = |change: &dyn Fn(&mut Value), part: &str| {
        let mut json = whole.clone();
        change(&mut json);
        fs::write(&file, json.to_string()).expect("written");
        fails(folder, part);
        fs::write(&file, whole.to_string()).expect("written");
    };
    with(
        &|json| json["interventions"][0]["kind"] = json!("teleport"),
        "unknown variant `teleport`",
    );
    with(
        &|json| json["interventions"][0]["map"] = json!("bogus"),
        "unknown variant `bogus`",
    );
    with(
        &|json| json["interventions"][0]["map"] = json!("householder"),
        "0.rotation.base",
    );
    with(
        &|json| json["interventions"][0]["map"] = json!("cayley"),
        "a square matrix",
    );
    with(
        &|json| json["interventions"][0]["extra"] = json!(1),
        "extra",
    );
    with(
        &|json| json["interventions"][0]["swapped"] = json!(4),
        "at most 3",
    );
    with(&|json| json["interventions"] = json!([]), "expected 1");
    with(&|json| json["surprise"] = json!(1), "surprise");
    with(
        &|json| json["interventions"][0] = json!({"kind": "vanilla"}),
        "also found 0.rotation.parameter",
    );
    with(
        &|json| {
            json["interventions"][0] =
                json!({"kind": "sigmoid_mask", "tokens": "each", "temperature": 1})
        },
        "0.mask",
    );
    with(
        &|json| {
            json.as_object_mut()
                .expect("an object")
                .remove("interventions");
        },
        "expected `interventions`",
    );
    let write = |name: &str, dtype, shape: Vec<usize>, bytes: &[u8]| {
        let view = safetensors::tensor::TensorView::new(dtype, shape, bytes).expect("fits");
        let file = folder.join("interventions.safetensors");
        safetensors::tensor::serialize_to_file([(name, view)], None, &file).expect("written");
    };
    use safetensors::Dtype;
    // Halves are read exactly: the first column is (1, 0, …).
    let one = [0x00, 0x3c];
    let halves = [&one[..], &[0; 94]].concat();
    write("0.rotation.parameter", Dtype::F16, vec![16, 3], &halves);
    let Ok(loaded) = SavedInterventions::<B>::load(folder, device) else {
        panic!("f16 is read");
    };
    let BuiltinFeaturizer::Rotation(it) = &loaded.interventions[0].featurizer else {
        panic!("a rotation was saved");
    };
    let expected: Vec<f32> = (0..48).map(|i| f32::from(u8::from(i == 0))).collect();
    assert_eq!(values(it.rotation.matrix()), expected);
    write("0.rotation.parameter", Dtype::F32, vec![2, 3], &[0; 24]);
    fails(folder, "expected shape");
    write("0.rotation.parameter", Dtype::F32, vec![48], &[0; 192]);
    fails(folder, "expected shape [_, _], found [48]");
    write("0.rotation.parameter", Dtype::F64, vec![16, 3], &[0; 384]);
    fails(folder, "expected f32");
    write("0.rotation", Dtype::F32, vec![16, 3], &[0; 192]);
    fails(folder, "0.rotation.parameter");
    fs::remove_file(folder.join("interventions.safetensors")).expect("it was there");
    fails(folder, "interventions.safetensors: cannot be read");

    // Those of pyvene.
    let with = |name: &str, change: &dyn Fn(&mut Value), part: &str| {
        let folder = copy(&trainable().join(name));
        let file = folder.path().join("config.json");
        let mut json = read_json(&file);
        change(&mut json);
        fs::write(&file, json.to_string()).expect("written");
        fails(folder.path(), part);
    };
    let class =
        |name: &'static str| move |json: &mut Value| json["intervention_types"][0] = json!(name);
    with(
        "rotated",
        &class("pyvene.models.interventions.TeleportIntervention"),
        "TeleportIntervention",
    );
    with(
        "rotated",
        &class("<class '__main__.RotatedSpaceIntervention'>"),
        "a class of pyvene or pyreft",
    );
    with(
        "rotated",
        &class("<class 'pyvene.models.interventions.SigmoidMaskIntervention'>"),
        "`mask`",
    );
    with(
        "boundless",
        &class("<class 'pyvene.models.interventions.RotatedSpaceIntervention'>"),
        "also found",
    );
    with(
        "rotated",
        &|json| json["representations"][0][0] = json!(1),
        "belongs to none",
    );
    with(
        "rotated",
        &|json| json["representations"][0][1] = json!("transformer.h[0].attn.c_attn.output"),
        "component",
    );
    with(
        "rotated",
        &|json| json["representations"][0][1] = json!("bogus/x"),
        "expected one of",
    );
    with(
        "rotated",
        &|json| json["representations"][0][10] = json!(0),
        "moe_key",
    );
    with("rotated", &|json| json["novelty"] = json!(true), "novelty");
    with(
        "low_rank",
        &|json| json["representations"][0][4] = json!(2),
        "expected shape [_, 2], found [16, 3]",
    );
    with(
        "zero",
        &|json| json["intervention_dimensions"][0] = json!([1, 2]),
        "interchange_dim",
    );
    let folder = copy(&trainable().join("rotated"));
    for entry in folder.path().read_dir().expect("a folder") {
        let file = entry.expect("readable").path();
        if file.extension().is_some_and(|extension| extension == "bin") {
            fs::remove_file(file).expect("it was there");
        }
    }
    fails(folder.path(), "found no such file");
    // Only part of the features, which only the model can tell.
    let folder = copy(&trainable().join("zero"));
    let file = folder.path().join("config.json");
    let mut json = read_json(&file);
    json["intervention_dimensions"][0] = json!(5);
    fs::write(&file, json.to_string()).expect("written");
    let model: Decoder<B> = crate::support::load("gpt2_plain", device);
    let again = folder.path().join("again");
    let saved = SavedInterventions::<B>::load(folder.path(), device).expect("it loads");
    saved.save(&again).expect("it can be saved");
    for folder in [folder.path(), &again] {
        let error = AlignableModel::<B, _>::load(folder, model.clone()).expect_err("5 of 16");
        let found = message(&error);
        assert!(
            found.contains("expected an intervention on all 16 features"),
            "{found}"
        );
    }
    let file = again.join("config.json");
    let mut json = read_json(&file);
    for wrong in [json!([16, 16]), json!("all")] {
        json["changed_features"] = wrong;
        fs::write(&file, json.to_string()).expect("written");
        fails(&again, "changed_features: expected");
    }
    let loaded = AlignableModel::<B, _>::load(trainable().join("addition_by_path"), model);
    let loaded = loaded.expect("it loads");
    assert_eq!(loaded.config().mode, Mode::Parallel);
    assert_eq!(
        loaded.config().representations[0].site,
        Component::MlpOutput.into()
    );
}

/// Two representations of `rotated` that share its intervention, each with its own file.
fn linked_parameters_must_agree<B: Backend>(device: &B::Device) {
    let folder = copy(&trainable().join("rotated"));
    let file = folder.path().join("config.json");
    let mut json = read_json(&file);
    json["representations"][0][9] = json!(2);
    for list in [
        "representations",
        "intervention_types",
        "intervention_dimensions",
    ] {
        let first = json[list][0].clone();
        json[list].as_array_mut().expect("a list").push(first);
    }
    fs::write(&file, json.to_string()).expect("written");
    let name = |number| format!("intkey_layer_0_comp_block_output_unit_pos_nunit_1#{number}.bin");
    let [first, second] = [0, 1].map(|number| folder.path().join(name(number)));

    // pyvene writes one for each; it is one intervention.
    fs::copy(&first, &second).expect("copied");
    let saved = SavedInterventions::<B>::load(folder.path(), device).expect("it loads");
    assert_eq!(saved.interventions.len(), 1);
    let other = trainable().join("rotated_interchange");
    let other = other.join("intkey_layer_1_comp_mlp_output_unit_pos_nunit_1#0.bin");
    fs::copy(other, &second).expect("copied");
    let error = SavedInterventions::<B>::load(folder.path(), device).expect_err("they differ");
    let found = message(&error);
    assert!(
        found.contains("expected the same parameters as for representation 0"),
        "{found}"
    );

    // Without a model that has the layer.
    let mut json = read_json(&trainable().join("rotated/config.json"));
    json["representations"][0][0] = json!(7);
    let folder = copy(&trainable().join("rotated"));
    fs::write(folder.path().join("config.json"), json.to_string()).expect("written");
    let renamed = name(0).replace("layer_0", "layer_7");
    fs::rename(folder.path().join(name(0)), folder.path().join(renamed)).expect("renamed");
    let model: Decoder<B> = load("gpt2_plain", device);
    let error = AlignableModel::<B, _>::load(folder.path(), model).expect_err("2 layers");
    let found = message(&error);
    assert!(
        found.starts_with("representation 0: the model has no"),
        "{found}"
    );
}

/// Its `embed_dim` is that of all units together.
fn a_constant_source_goes_to_each_unit<B: Backend>(device: &B::Device) {
    let folder = copy(&trainable().join("addition_constant"));
    let file = folder.path().join("config.json");
    let mut json = read_json(&file);
    json["representations"][0][3] = json!(2);
    json["intervention_dimensions"][0] = json!(32);
    fs::write(&file, json.to_string()).expect("written");
    let [one, two] = [1, 2].map(|units| {
        let name = format!("intkey_layer_0_comp_block_output_unit_pos_nunit_{units}#0.bin");
        folder.path().join(name)
    });
    // The storages of both dimensions are 16 as i64; in the archive's copy they become 32.
    let bytes = fs::read(&one).expect("a file");
    fs::write(&two, with_dimensions(&bytes, 32)).expect("written");
    fs::remove_file(&one).expect("it was there");
    let loaded = SavedInterventions::<B>::load(folder.path(), device);
    let loaded = loaded.unwrap_or_else(|error| panic!("{}", message(&error)));
    let reference = only::<B>(&trainable().join("addition_constant"), device);
    assert_eq!(bits(&loaded.interventions[0]), bits(&reference));
    // Neither of one unit nor of two.
    fs::write(&two, with_dimensions(&bytes, 48)).expect("written");
    let error = SavedInterventions::<B>::load(folder.path(), device).expect_err("three units");
    let found = message(&error);
    assert!(found.contains("embed_dim: found [48]"), "{found}");
}

/// An archive with another number in each storage of one integer.
fn with_dimensions(archive: &[u8], dimension: i64) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(archive)).expect("an archive");
    let mut new = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).expect("an entry");
        let name = file.name().to_owned();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("readable");
        if name.contains("/data/") && bytes.len() == 8 {
            bytes = dimension.to_le_bytes().to_vec();
        }
        new.start_file(name, stored).expect("an entry");
        new.write_all(&bytes).expect("written");
    }
    new.finish().expect("an archive").into_inner()
}

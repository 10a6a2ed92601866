//! When a disk is full, a folder is not writable, or a program is killed while it saves, nothing
//! that was there is lost, and the error is reported.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use burn::backend::Flex;
use burn_align::diagram::Diagram;
use burn_align::front::{AlignableConfig, AlignableRepresentationConfig};
use burn_align::interventions::{BuiltinOperation, ConstantSourceIntervention, SourceOperation};
use burn_align::methods::Grid;
use burn_align::saved::{LoadInterventionsError, SaveInterventionsError, SavedInterventions};
use burn_align_models::pretrained::{LoadError, SaveError};
use burn_align_models::{
    Component, Decoder, FromPretrained, LoadOptions, Pretrained, SavePretrained,
};
use workbench::plot::{heat_map, write_diagram};

use crate::support::{checkpoints, message};

type Saved = SavedInterventions<Flex>;
type Loaded = Pretrained<Decoder<Flex>, burn_align_models::DecoderConfig>;

/// Marks a process started by another test.
const FOLDER: &str = "BURN_ALIGN_TEST_DISK";

/// An intervention whose tensor repeats the layer that its configuration names.
fn interventions(layer: usize) -> Saved {
    let config = AlignableConfig::new([AlignableRepresentationConfig::new(
        layer,
        Component::BlockOutput,
    )]);
    let source = burn::tensor::Tensor::<Flex, 1>::full([4096], layer as f32, &Default::default());
    let it = ConstantSourceIntervention::new(source, SourceOperation::Swap);
    SavedInterventions::new(config, vec![it.into()])
}

/// The layer of saved interventions, checked to come from a single save.
fn layer(saved: &Saved) -> usize {
    let layer = saved.config.representations[0].layer;
    let BuiltinOperation::ConstantSource(it) = &saved.interventions[0].operation else {
        panic!("{:?}", saved.interventions);
    };
    let values: Vec<f32> = it.source.val().into_data().iter().collect();
    assert!(values.iter().all(|it| *it == layer as f32), "of two saves");
    layer
}

fn load(folder: &Path) -> Result<Saved, LoadInterventionsError> {
    Saved::load(folder, &Default::default())
}

fn model(name: &str) -> Loaded {
    let folder = checkpoints()[name].clone();
    let loaded = Decoder::from_pretrained(folder, &LoadOptions::default(), &Default::default());
    loaded.expect("a fixture")
}

fn save_model(loaded: &Loaded, folder: &Path) -> Result<(), SaveError> {
    let tokenizer = loaded.tokenizer.as_ref();
    loaded
        .model
        .save_pretrained(&loaded.config, tokenizer, folder)
}

fn grid(value: f64) -> Grid {
    let names: Vec<String> = (0..8).map(|n| format!("{n}")).collect();
    Grid {
        rows: names.clone(),
        columns: names,
        values: vec![vec![value; 8]; 8],
    }
}

fn draw(file: &Path, value: f64) -> anyhow::Result<()> {
    heat_map(file, "title", ["x", "y"], &grid(value))
}

/// The files below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => drop(files.insert(path.clone(), fs::read(path).expect("readable"))),
        }
    }
    files
}

/// Saves everything that can be saved below a folder; returns the errors.
fn save_all(folder: &Path, number: usize) -> Vec<Option<String>> {
    let interventions = interventions(number).save(folder.join("interventions"));
    assert!(matches!(
        interventions,
        Ok(()) | Err(SaveInterventionsError::Io { .. })
    ));
    let name = ["gpt2_plain", "gpt2_relu"][number];
    let model = save_model(&model(name), &folder.join("model"));
    assert!(matches!(
        model,
        Ok(()) | Err(SaveError::Io { .. } | SaveError::Weights { .. })
    ));
    let history = folder.join("grid.json");
    let json = serde_json::to_string(&grid(number as f64)).expect("JSON");
    let of = |error: &dyn std::error::Error| message(error);
    vec![
        interventions.err().map(|error| of(&error)),
        model.err().map(|error| of(&error)),
        said(draw(&folder.join("grid.svg"), number as f64)),
        said(draw(&folder.join("grid.png"), number as f64)),
        said(workbench::files::write(&history, json.repeat(9))),
    ]
}

fn said(result: anyhow::Result<()>) -> Option<String> {
    result.err().map(|error| format!("{error:#}"))
}

/// This test program, running one test that is otherwise ignored, under a shell.
fn again(test: &str, shell: &str, folder: &Path) -> Command {
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("{shell} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "is run by another test, where files may not grow"]
fn saves_on_a_full_disk() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    for error in save_all(Path::new(&folder), 1) {
        let error = error.expect("there is no room");
        assert!(error.contains("File too large"), "{error}");
        assert!(error.contains(&*folder.to_string_lossy()), "{error}");
    }
}

/// A file that may not grow beyond 1 KiB is equivalent to a full disk.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(save_all(folder.path(), 0), vec![None; 5]);
    let before = files(folder.path());
    assert_eq!(before.len(), 2 + 2 + 3, "{:?}", before.keys());
    let full = "trap '' XFSZ; ulimit -f 1;";
    let Output {
        status,
        stdout,
        stderr,
    } = again("disk::saves_on_a_full_disk", full, folder.path())
        .output()
        .expect("it runs");
    let said = [stdout, stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    assert!(status.success(), "{said:?}");
    assert!(said[0].contains("1 passed"), "{said:?}");
    assert_eq!(files(folder.path()), before);
    assert_eq!(
        layer(&load(&folder.path().join("interventions")).expect("whole")),
        0
    );
    // With room again, everything is replaced, and nothing else is left.
    assert_eq!(save_all(folder.path(), 1), vec![None; 5]);
    let after = files(folder.path());
    assert!(after.keys().eq(before.keys()), "{:?}", after.keys());
    assert_eq!(
        layer(&load(&folder.path().join("interventions")).expect("whole")),
        1
    );
}

/// A folder in which nothing can be written. Permissions do not apply to root; the system's own
/// folders accept no files from anyone.
#[cfg(target_os = "linux")]
fn read_only(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).expect("it is ours");
    let probe = folder.join("probe");
    if fs::write(&probe, "").is_err() {
        return folder.to_owned();
    }
    fs::remove_file(probe).expect("written");
    PathBuf::from("/proc/self")
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_is_read_only_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let read_only = read_only(folder.path());
    for error in save_all(&read_only, 0) {
        let error = error.expect("it cannot be written to");
        assert!(error.contains(&*read_only.to_string_lossy()), "{error}");
        let why = ["Permission denied", "No such file", "Read-only"];
        assert!(why.iter().any(|why| error.contains(why)), "{error}");
    }
    let diagram = Diagram {
        name: "graph",
        nodes: Vec::new(),
        arrows: Vec::new(),
    };
    let error = write_diagram(&read_only.join("graph.dot"), &diagram).expect_err("refused");
    assert!(format!("{error:#}").contains("graph.dot"), "{error:#}");
    assert!(files(folder.path()).is_empty());
}

#[test]
#[ignore = "is run, and killed, by another test"]
fn saves_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let both = [0, 1].map(interventions);
    for number in (0..).map(|n| n % 2) {
        both[number].save(&folder).expect("saved");
    }
}

/// Kills a program that alternately saves one and the other, many times.
#[test]
#[cfg(unix)]
fn a_killed_program_leaves_the_files_of_one_save() {
    let folder = tempfile::tempdir().expect("a folder");
    interventions(0).save(folder.path()).expect("saved");
    let mut cut_off = 0;
    for kill in 0..20 {
        let started = again("disk::saves_until_it_is_killed", "", folder.path()).spawn();
        let mut child: Child = started.expect("it starts");
        std::thread::sleep(Duration::from_micros(60_000 + 1_337 * kill));
        child.kill().expect("it runs");
        child.wait().expect("it has ended");
        match load(folder.path()) {
            Ok(saved) => drop(layer(&saved)),
            Err(error) => {
                assert!(
                    matches!(error, LoadInterventionsError::CutOff { .. }),
                    "{error}"
                );
                cut_off += 1;
                finish(folder.path());
            }
        }
    }
    let _ = workbench::out!("{cut_off} of 20 were killed while files were being replaced");
}

/// Follows the error message of an interrupted save.
fn finish(folder: &Path) {
    for file in files(folder).into_keys() {
        if file.extension().is_some_and(|it| it == "part") {
            fs::rename(&file, file.with_extension("")).expect("renamed");
        }
    }
    layer(&load(folder).expect("whole"));
}

#[test]
fn a_save_that_was_cut_off_can_be_finished() {
    let [older, newer] = [0, 1].map(|number| {
        let folder = tempfile::tempdir().expect("a folder");
        interventions(number).save(folder.path()).expect("saved");
        folder
    });
    let (config, tensors) = ("config.json", "interventions.safetensors");
    for done in [0, 1] {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |from: &Path, name: &str, to: &str| {
            fs::copy(from.join(name), folder.path().join(to)).expect("copied");
        };
        put(older.path(), tensors, tensors);
        put(older.path(), config, "config.json.old");
        put(newer.path(), config, "config.json.part");
        match done {
            0 => put(newer.path(), tensors, "interventions.safetensors.part"),
            _ => put(newer.path(), tensors, tensors),
        }
        let error = load(folder.path()).expect_err("interrupted");
        let expected = format!(
            "{}: saving interventions here was interrupted, config.json is missing; the new files \
             are complete: remove .part from the names that end with it",
            folder.path().display()
        );
        assert_eq!(message(&error), expected);
        finish(folder.path());
        assert_eq!(layer(&load(folder.path()).expect("whole")), 1);
    }
    // The leftovers of an earlier killed save are overwritten.
    fs::write(older.path().join("config.json.part"), "half").expect("written");
    assert_eq!(layer(&load(older.path()).expect("whole")), 0);
    interventions(1).save(older.path()).expect("saved");
    assert_eq!(layer(&load(older.path()).expect("whole")), 1);
    assert_eq!(files(older.path()).len(), 2);
    // A model reports the same.
    fs::rename(
        older.path().join(config),
        older.path().join("config.json.part"),
    )
    .expect("there");
    let loaded = Decoder::<Flex>::from_pretrained(
        older.path(),
        &LoadOptions::default(),
        &Default::default(),
    );
    let error = loaded.expect_err("interrupted");
    assert!(matches!(error, LoadError::CutOff { .. }), "{error}");
}

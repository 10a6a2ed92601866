//! Which code belongs in which part of the libraries, checked in their sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const LIBRARIES: [&str; 4] = [
    "burn-align-quants/src",
    "burn-align-flex/src",
    "burn-align-models/src",
    "burn-align/src",
];

/// All source files of the libraries and the workbench open with a line that says what they are
/// for.
#[test]
fn every_file_says_what_it_is_for() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    for room in LIBRARIES.into_iter().chain(["src"]) {
        sources(&root.join(room), &mut files);
    }
    files.retain(|file| {
        let text = fs::read_to_string(file).expect("text");
        let purpose = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("//! "));
        purpose.is_none_or(|purpose| purpose.trim().is_empty())
    });
    assert!(files.is_empty(), "no `//!` line on top of {files:?}");
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The lines of code of the libraries that have one of these words, without comments and tests:
/// how many there are in each file.
fn lines_with(words: &[&str]) -> BTreeMap<String, usize> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    for library in LIBRARIES {
        sources(&root.join(library), &mut files);
    }
    assert!(files.len() > 100, "{}", files.len());
    let mut found = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(root).expect("below the root");
        let mut parts = name.iter();
        if parts.any(|part| part == "tests.rs" || part == "tests") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("text");
        let code = text.split("#[cfg(test)]\nmod tests {").next();
        let lines = code.into_iter().flat_map(str::lines);
        let count = lines
            .filter(|line| !line.trim_start().starts_with("//"))
            .filter(|line| words.iter().any(|word| line.contains(word)))
            .count();
        if count > 0 {
            found.insert(name.to_string_lossy().replace('\\', "/"), count);
        }
    }
    found
}

#[track_caller]
fn assert_only_in(words: &[&str], rooms: &[&str]) {
    let found = lines_with(words);
    let elsewhere: Vec<_> = found
        .keys()
        .filter(|file| !rooms.iter().any(|room| file.starts_with(room)))
        .collect();
    assert!(elsewhere.is_empty(), "{words:?} in {elsewhere:?}");
    for room in rooms {
        let used = found.keys().any(|file| file.starts_with(room));
        assert!(used, "{room} has no {words:?} any more");
    }
}

/// A host that waits for a GPU keeps it idle. So a pass through a model reads nothing back: neither
/// the engine nor a model has a line that could, and among the interventions only rotations by the
/// matrix exponential or Cayley's map do, which choose their number of steps by a norm.
#[test]
fn a_pass_reads_nothing_back_from_the_device() {
    let reads = lines_with(&["into_data", "to_data(", "into_scalar", "to_vec::<"]);
    let expected = [
        // Requested by a caller, after a plan has run.
        ("burn-align/src/engine/host.rs", 1),
        // Between passes: widths, bases, and how far a rotation is from orthonormal. In a pass: the
        // norms of these two maps.
        ("burn-align/src/interventions/featurizers/directions.rs", 1),
        ("burn-align/src/interventions/featurizers/pca.rs", 1),
        ("burn-align/src/interventions/masks/boundary.rs", 1),
        ("burn-align/src/interventions/orthonormal.rs", 4),
        // Tokens whose vectors are in blocks, on a backend that is the host.
        ("burn-align-models/src/nn/embedding.rs", 1),
        // Indices of tokens and labels, on a backend that is the host.
        ("burn-align-flex/src/attention/classes.rs", 1),
        ("burn-align/src/training/losses.rs", 1),
        // The largest features, which Burn 0.21 sorts on the host, and those that are active.
        ("burn-align/src/dictionaries/activation.rs", 1),
        ("burn-align/src/dictionaries/selection.rs", 1),
        // Files.
        ("burn-align/src/dictionaries/save.rs", 1),
        ("burn-align/src/interventions/parts.rs", 1),
        ("burn-align/src/training/checkpoint/tensors.rs", 1),
        // Text for people.
        ("burn-align-models/src/top_tokens.rs", 1),
    ];
    let expected = expected.map(|(file, count)| (file.to_owned(), count));
    assert_eq!(reads, BTreeMap::from(expected));
}

#[test]
fn models_and_interventions_do_no_io() {
    assert_only_in(
        &[
            "std::fs",
            " fs::",
            "(fs::",
            "File::open",
            "File::create",
            "std::net",
            "ureq",
        ],
        &[
            "burn-align-models/src/files.rs",
            "burn-align-models/src/pretrained/",
            "burn-align/src/dictionaries/",
            "burn-align/src/methods/causal_variables/files/",
            "burn-align/src/methods/circuits/files/",
            "burn-align/src/methods/saved_result.rs",
            "burn-align/src/saved/",
            "burn-align/src/training/checkpoint",
        ],
    );
}

#[test]
fn the_engine_names_no_model() {
    let named = lines_with(&["Gpt2", "Llama", "gpt2", "llama", "Decoder"]);
    let engine: Vec<_> = named
        .keys()
        .filter(|file| file.starts_with("burn-align/src/engine"))
        .collect();
    assert!(engine.is_empty(), "{engine:?}");
}

#[test]
fn only_the_kernels_name_a_backend() {
    assert_only_in(
        &[
            "burn_flex",
            "burn_ndarray",
            "backend::Flex",
            "NdArray",
            "Wgpu",
            "Vulkan",
            "Cuda",
        ],
        &["burn-align-flex/src/"],
    );
}

#[test]
fn the_libraries_print_nothing() {
    assert_only_in(&["print!(", "println!(", "dbg!("], &[]);
}

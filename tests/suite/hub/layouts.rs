//! Caches as other programs leave them, without a hub.

use std::fs;
use std::path::Path;

use burn_align_models::LoadOptions;
use burn_align_models::pretrained::HubProblem;
use tempfile::TempDir;

use super::server::{Hub, Shelf};
use super::{assert_loads, assert_names, cache, lay_out, load, problem};
use crate::support::checkpoints;

const COMMIT: &str = "607a30d783dfa663caf39e06633721c8d4cfcd7e";

/// Options for a hub that does not exist.
fn no_hub(cache: &TempDir) -> LoadOptions {
    LoadOptions::default()
        .with_offline(false)
        // Nothing listens on port 1.
        .with_hub_endpoint("http://127.0.0.1:1")
        .with_hub_cache(cache.path().join("hub"))
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).expect("a copy");
}

fn write_ref(cache: &TempDir, revision: &str, commit: &str) {
    let file = cache
        .path()
        .join("hub/models--tiny--gpt2/refs")
        .join(revision);
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    fs::write(file, commit).expect("a file");
}

#[test]
fn snapshots_without_links_load_with_the_network_down() {
    for fixture in ["gpt2_plain", "gpt2_sharded"] {
        let cache = cache();
        lay_out(&cache, &checkpoints()[fixture], COMMIT, copy);
        // Neither a reference nor markers, nor a tokenizer.
        for revision in [COMMIT, &COMMIT[..7]] {
            for offline in [true, false] {
                let options = no_hub(&cache).with_offline(offline);
                assert_loads("tiny/gpt2", &options.with_revision(revision), fixture);
            }
        }
        load("tiny/gpt2", &no_hub(&cache)).expect_err("no reference");
        for revision in ["main", "v1.0", "refs/pr/1"] {
            write_ref(&cache, revision, COMMIT);
            for offline in [true, false] {
                let options = no_hub(&cache).with_offline(offline);
                assert_loads("tiny/gpt2", &options.with_revision(revision), fixture);
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn links_to_blobs_are_followed() {
    let cache = cache();
    let link = |from: &Path, to: &Path| {
        let name = from.file_name().expect("a name");
        let blobs = to.ancestors().nth(3).expect("the model").join("blobs");
        // Version 2 keeps blobs of all models together, and links to them.
        let shared = cache.path().join("hub/blobs");
        fs::create_dir_all(&shared).expect("a folder");
        copy(from, &shared.join(name));
        let target = Path::new("../../blobs").join(name);
        std::os::unix::fs::symlink(target, blobs.join(name)).expect("a link");
        let target = Path::new("../../blobs").join(name);
        std::os::unix::fs::symlink(target, to).expect("a link");
    };
    lay_out(&cache, &checkpoints()["gpt2_plain"], COMMIT, link);
    write_ref(&cache, "main", COMMIT);
    assert_loads("tiny/gpt2", &no_hub(&cache), "gpt2_plain");

    // A link to a blob that is gone is not a file, and is replaced.
    let blob = cache.path().join("hub/blobs/model.safetensors");
    fs::remove_file(blob).expect("the blob");
    let error = load("tiny/gpt2", &no_hub(&cache)).expect_err("a blob is gone");
    assert_names(&error, &["model.safetensors", "refused"]);
    assert!(matches!(problem(error), HubProblem::Unreachable { .. }));
    let hub = Hub::start(Shelf::new("tiny/gpt2", &checkpoints()["gpt2_plain"]));
    assert_loads("tiny/gpt2", &hub.options(&cache), "gpt2_plain");
}

#[test]
fn a_complete_commit_is_not_asked_for() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let hub = Hub::start(Shelf::new("tiny/gpt2", fixture));
    lay_out(&cache, fixture, COMMIT, copy);
    let folder = cache.path().join("hub/models--tiny--gpt2");
    let markers = folder.join(".no_exist").join(COMMIT);
    fs::create_dir_all(&markers).expect("a folder");
    for absent in ["tokenizer.json", "tokenizer_config.json"] {
        fs::write(markers.join(absent), "").expect("a marker");
    }
    let options = hub.options(&cache).with_revision(COMMIT);
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
    assert!(hub.requests().is_empty());

    // Version 2 lists all files of a commit instead.
    fs::remove_dir_all(folder.join(".no_exist")).expect("the markers");
    fs::create_dir_all(folder.join("trees")).expect("a folder");
    let tree = r#"{"format_version": 1, "files": {"config.json": {"size": 1, "blob_id": "0"}}}"#;
    fs::write(folder.join(format!("trees/{COMMIT}.json")), tree).expect("a listing");
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
    assert!(hub.requests().is_empty());
}

#[test]
fn what_is_incomplete_is_named() {
    let (cache, fixture) = (cache(), &checkpoints()["gpt2_sharded"]);
    let missing = [1, 3].map(|number| format!("model-{number:05}-of-00004.safetensors"));
    lay_out(&cache, fixture, COMMIT, |from, to| {
        if !missing.iter().any(|name| from.ends_with(name)) {
            copy(from, to);
        }
    });
    write_ref(&cache, "main", COMMIT);
    for offline in [true, false] {
        let error = load("tiny/gpt2", &no_hub(&cache).with_offline(offline));
        let error = error.expect_err("two shards are missing");
        assert_names(&error, &[&missing.join(", "), "not in the cache"]);
        assert!(!error.to_string().contains("00002-of"), "{error}");
    }
    // Only these are fetched.
    let hub = Hub::start(Shelf::new("tiny/gpt2", fixture));
    let commit = hub.shelf().add("tiny/gpt2", "main", fixture);
    let model = cache.path().join("hub/models--tiny--gpt2");
    let snapshots = model.join("snapshots");
    fs::rename(snapshots.join(COMMIT), snapshots.join(commit)).expect("another name");
    assert_loads("tiny/gpt2", &hub.options(&cache), "gpt2_sharded");
    let fetched = hub.fetched();
    let names = fetched.iter().filter_map(|file| file.split_once('/'));
    let names: Vec<&str> = names.map(|it| it.1).collect();
    assert_eq!(names, missing);
}

/// `hf download --local-dir` leaves files and, in `.cache`, information about them.
#[test]
fn a_local_folder() {
    let folder = cache();
    for entry in checkpoints()["gpt2_plain"].read_dir().expect("the fixture") {
        let from = entry.expect("an entry").path();
        let name = from.file_name().expect("a name");
        copy(&from, &folder.path().join(name));
    }
    let hidden = folder.path().join(".cache/huggingface/download");
    fs::create_dir_all(&hidden).expect("a folder");
    let metadata = format!("{COMMIT}\n0\n1764150000.0\n");
    fs::write(hidden.join("config.json.metadata"), metadata).expect("a file");
    let path = folder.path().to_str().expect("UTF-8");
    assert_loads(path, &LoadOptions::default(), "gpt2_plain");
}

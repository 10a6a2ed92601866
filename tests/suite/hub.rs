//! Loading from a hub (here a small local HTTP server) and from the cache.

mod layouts;
mod server;

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::backend::Flex;
use burn_align_models::pretrained::{CheckpointError, HubProblem, LoadError, fetch_file};
use burn_align_models::{Decoder, DecoderConfig, FromPretrained, LoadOptions, Pretrained};
use serde_json::json;
use tempfile::TempDir;

use crate::loading::logits;
use crate::scratch::Scratch;
use crate::support::{checkpoints, fixtures};
use server::{Hub, Shelf};

type Loaded = Pretrained<Decoder<Flex>, DecoderConfig>;

fn cache() -> TempDir {
    tempfile::tempdir().expect("a folder for temporary files")
}

fn load(id: &str, options: &LoadOptions) -> Result<Loaded, LoadError> {
    Decoder::from_pretrained(id, options, &Default::default())
}

/// Checks that a model computes what the fixture computes.
fn assert_same(loaded: &Loaded, fixture: &str) {
    let (options, device) = (LoadOptions::default(), Default::default());
    let folder = checkpoints()[fixture].as_path().to_owned();
    let expected = Decoder::<Flex>::from_pretrained(folder, &options, &device);
    let expected = expected.expect("the fixture");
    assert_eq!(loaded.config, expected.config);
    assert_eq!(
        logits(&loaded.model, &device),
        logits(&expected.model, &device)
    );
}

fn assert_loads(id: &str, options: &LoadOptions, fixture: &str) {
    assert_same(&load(id, options).expect("the model"), fixture);
}

/// Checks that an error is the hub's and names these.
fn assert_names(error: &LoadError, texts: &[&str]) {
    assert!(matches!(error, LoadError::Hub(_)), "{error:?}");
    for text in texts {
        assert!(
            error.to_string().contains(text),
            "{text} is not in: {error}"
        );
    }
}

fn problem(error: LoadError) -> HubProblem {
    match error {
        LoadError::Hub(error) => error.problem,
        error => panic!("not the hub's: {error:?}"),
    }
}

/// `gpt2_plain` with a tokenizer.
fn with_tokenizer() -> Scratch {
    let scratch = Scratch::copy("gpt2_plain");
    let bpe = fixtures().join("tokenizers/bpe.json");
    fs::copy(bpe, scratch.file("tokenizer.json")).expect("a copy");
    scratch
}

#[test]
fn a_complete_model_is_loaded_without_asking() {
    let (repository, cache) = (with_tokenizer(), cache());
    let hub = Hub::start(Shelf::new("tiny/gpt2", repository.path()));
    let mut options = hub.options(&cache);

    let loaded = load("tiny/gpt2", &options).expect("the model");
    assert_same(&loaded, "gpt2_plain");
    let tokenizer = loaded.tokenizer().expect("a tokenizer");
    assert_eq!(tokenizer.encode("The capital").expect("ids").len(), 2);
    let fetched = hub.fetched();
    assert!(fetched.len() >= 3, "{fetched:?}");

    hub.requests();
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
    assert!(hub.requests().is_empty());

    // Whether the branch has moved is only checked on request, once.
    options.update = true;
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
    let asked = hub.requests();
    let path = "/tiny/gpt2/resolve/main/config.json";
    assert!(
        matches!(&asked[..], [one] if one.method == "HEAD" && one.path == path),
        "{asked:?}"
    );

    options.offline = true;
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
    assert!(hub.requests().is_empty());
}

#[test]
fn every_file_is_of_one_commit() {
    let (old, new, cache) = (with_tokenizer(), Scratch::copy("gpt2_relu"), cache());
    let mut shelf = Shelf::empty();
    let next = shelf.add("tiny/gpt2", "next", new.path());
    let first = shelf.add("tiny/gpt2", "main", old.path());
    // The branch moves while its files are fetched.
    shelf.moves_after = Some(("config.json".into(), next.clone()));
    let hub = Hub::start(shelf);
    assert_loads("tiny/gpt2", &hub.options(&cache), "gpt2_plain");
    let fetched = hub.fetched();
    assert!(
        fetched.iter().all(|file| file.starts_with(&first)),
        "{fetched:?}"
    );
    let loaded = load("tiny/gpt2", &hub.options(&cache).with_update(true)).expect("the model");
    assert_same(&loaded, "gpt2_relu");
    assert!(loaded.tokenizer.is_none(), "of the older commit");
    let fetched = hub.fetched();
    assert!(
        fetched.iter().all(|file| file.starts_with(&next)),
        "{fetched:?}"
    );
}

#[test]
fn a_tokenizer_is_optional() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let hub = Hub::start(Shelf::new("tiny/gpt2", fixture));
    let options = hub.options(&cache);
    let loaded = load("tiny/gpt2", &options).expect("the model");
    assert!(matches!(loaded.tokenizer(), Err(LoadError::NoTokenizer)));
    assert_same(&loaded, "gpt2_plain");
    // Its absence is remembered.
    hub.requests();
    assert_loads(
        "tiny/gpt2",
        &options.clone().with_update(true),
        "gpt2_plain",
    );
    assert_eq!(hub.requests().len(), 1);
    drop(hub);
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
}

#[test]
fn offline_without_a_cache() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let hub = Hub::start(Shelf::new("tiny/gpt2", fixture));
    let commit = "0123456789".repeat(4);
    for revision in ["main", &commit] {
        let options = hub.options(&cache).with_offline(true);
        let error = load("tiny/gpt2", &options.with_revision(revision));
        let error = error.expect_err("an empty cache");
        assert_names(
            &error,
            &[
                "tiny/gpt2",
                revision,
                "config.json",
                "not in the cache, and offline",
            ],
        );
        assert!(matches!(problem(error), HubProblem::Offline { .. }));
    }
    assert!(hub.requests().is_empty());
}

#[test]
fn models_that_the_hub_does_not_give() {
    const TERMS: &str = "accept its terms";
    for (status, code, text) in [
        // The public hub's response for a model that does not exist.
        (401, Some("RepoNotFound"), "no such model"),
        (404, Some("RepoNotFound"), "no such model"),
        (401, None, "no such model"),
        (404, None, "no such model"),
        (401, Some("GatedRepo"), TERMS),
        (403, Some("GatedRepo"), TERMS),
        (403, None, "access refused (403"),
    ] {
        let (mut shelf, cache) = (Shelf::empty(), cache());
        shelf.trouble = Some((status, code));
        let hub = Hub::start(shelf);
        let error = load("tiny/unknown", &hub.options(&cache)).expect_err("no such model");
        assert_names(
            &error,
            &["tiny/unknown (main)", "config.json", text, "HF_TOKEN"],
        );
        assert_eq!(
            matches!(problem(error), HubProblem::Gated { .. }),
            text == TERMS
        );
        assert!(hub.fetched().is_empty());
    }
}

#[test]
fn a_hub_in_trouble() {
    let (mut shelf, cache) = (Shelf::empty(), cache());
    shelf.trouble = Some((500, None));
    let hub = Hub::start(shelf);
    let options = hub.options(&cache);
    let error = load("tiny/gpt2", &options).expect_err("a failing hub");
    assert_names(&error, &["tiny/gpt2", "config.json", "status code 500"]);
    drop(hub);
    let error = load("tiny/gpt2", &options).expect_err("no hub");
    assert_names(
        &error,
        &["tiny/gpt2", "config.json", "refused", "HF_ENDPOINT"],
    );
    assert!(matches!(problem(error), HubProblem::Unreachable { .. }));
}

#[test]
fn a_broken_download_goes_on_where_it_ended() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let mut shelf = Shelf::new("tiny/gpt2", fixture);
    shelf.broken_after = 5000;
    let hub = Hub::start(shelf);
    let options = hub.options(&cache);
    let error = load("tiny/gpt2", &options).expect_err("a broken download");
    assert_names(&error, &["tiny/gpt2", "model.safetensors", "after 5000 of"]);
    assert!(matches!(
        problem(error),
        HubProblem::BrokenOff { received: 5000, .. }
    ));
    // Missing files are named if the hub cannot be reached.
    let error = load("tiny/gpt2", &options.clone().with_offline(true));
    let error = error.expect_err("no weights");
    assert_names(&error, &["model.safetensors", "offline"]);
    assert!(!error.to_string().contains("config.json"), "{error}");

    hub.shelf().broken_after = usize::MAX;
    hub.requests();
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
    let ranges: Vec<_> = hub.requests().into_iter().filter_map(|r| r.range).collect();
    assert_eq!(ranges, ["bytes=5000-"]);
}

#[test]
fn a_broken_download_of_a_newer_commit() {
    let (old, new, cache) = (with_tokenizer(), Scratch::copy("gpt2_relu"), cache());
    let hub = Hub::start(Shelf::new("tiny/gpt2", old.path()));
    let options = hub.options(&cache);
    assert_loads("tiny/gpt2", &options, "gpt2_plain");
    hub.shelf().add("tiny/gpt2", "main", new.path());
    hub.shelf().broken_after = 5000;
    let update = options.clone().with_update(true);
    load("tiny/gpt2", &update).expect_err("a broken download");
    // The branch stays at the older one, with all its files.
    let loaded = load("tiny/gpt2", &options.clone().with_offline(true)).expect("the model");
    assert_same(&loaded, "gpt2_plain");
    assert!(loaded.tokenizer.is_some());
    // And then both are there.
    hub.shelf().broken_after = usize::MAX;
    assert_loads("tiny/gpt2", &update, "gpt2_relu");
    drop(hub);
    assert_loads("tiny/gpt2", &options, "gpt2_relu");
    assert_loads("tiny/gpt2", &update, "gpt2_relu");
}

#[test]
fn what_comes_is_checked() {
    // The SHA-256 of `abc`, and of `cba` if it is flipped.
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let (scratch, cache) = (Scratch::empty(), cache());
    scratch.write("model.gguf", "abc");
    let mut shelf = Shelf::new("tiny/gguf", scratch.path());
    shelf.etag = Some(sha256.to_owned());
    shelf.flipped = true;
    let hub = Hub::start(shelf);
    let options = hub.options(&cache);
    let fetch = || fetch_file("tiny/gguf", "model.gguf", &options);
    for _ in 0..2 {
        let error = fetch().expect_err("a damaged file");
        assert_names(&error, &["model.gguf", sha256, "damaged"]);
        assert!(matches!(problem(error), HubProblem::Damaged { .. }));
    }
    hub.shelf().flipped = false;
    // Leftovers of another program, with different bytes.
    let blobs = options.hub_cache.as_ref().expect("a cache");
    let blobs = blobs.join("models--tiny--gguf/blobs");
    fs::write(blobs.join(format!("{sha256}.incomplete")), "xy").expect("a file");
    let path = fetch().expect("the file");
    assert_eq!(fs::read_to_string(path).expect("the file"), "abc");
    let asked = hub.requests();
    assert!(
        asked
            .iter()
            .any(|it| it.range.as_deref() == Some("bytes=2-"))
    );
    let left: Vec<_> = fs::read_dir(blobs).expect("the folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn shards_are_fetched() {
    let (fixture, cache) = (&checkpoints()["gpt2_sharded"], cache());
    let hub = Hub::start(Shelf::new("sharded", fixture));
    let mut options = hub.options(&cache);
    assert_loads("sharded", &options, "gpt2_sharded");
    options.offline = true;
    assert_loads("sharded", &options, "gpt2_sharded");
    options.offline = false;
    drop(hub);
    assert_loads("sharded", &options, "gpt2_sharded");

    // A missing shard is noticed even if the rest is in the cache.
    let (scratch, cache) = (Scratch::copy("gpt2_sharded"), self::cache());
    scratch.remove("model-00002-of-00004.safetensors");
    let hub = Hub::start(Shelf::new("sharded", scratch.path()));
    let error = load("sharded", &hub.options(&cache)).expect_err("a missing shard");
    assert_names(&error, &["sharded", "model-00002-of-00004.safetensors"]);
    assert!(matches!(problem(error), HubProblem::NoSuchFile { .. }));
    // Its absence is known then.
    let error = load("sharded", &hub.options(&cache).with_offline(true));
    let error = error.expect_err("a missing shard");
    assert_names(&error, &["model-00002-of-00004.safetensors"]);
}

#[test]
fn parts_of_a_file_are_fetched_together() {
    let (scratch, cache) = (Scratch::empty(), cache());
    let part = |number: u32| format!("q8/model-{number:05}-of-00003.gguf");
    for number in 1..=3 {
        let name = part(number);
        scratch.write(name.rsplit('/').next().expect("a name"), number.to_string());
    }
    let hub = Hub::start(Shelf::new("tiny/gguf", scratch.path()));
    let options = hub.options(&cache);
    let first = fetch_file("tiny/gguf", &part(1), &options).expect("the file");
    hub.requests();
    let folder = first.parent().expect("a folder");
    for number in 1..=3 {
        let name = part(number);
        let path = folder.join(name.rsplit('/').next().expect("a name"));
        assert_eq!(
            fs::read_to_string(path).expect("a part"),
            number.to_string()
        );
    }
    let offline = options.clone().with_offline(true);
    assert_eq!(
        fetch_file("tiny/gguf", &part(1), &offline).ok(),
        Some(first)
    );
    let error = fetch_file("tiny/gguf", "other.gguf", &offline).expect_err("not there");
    assert_names(&error, &["other.gguf", "offline"]);
    let error = fetch_file("tiny/gguf", "other.gguf", &options).expect_err("not there");
    assert_names(&error, &["other.gguf", "no such file", "/tiny/gguf/tree/"]);
    for name in ["../other.gguf", "/etc/passwd", ""] {
        hub.requests();
        let error = fetch_file("tiny/gguf", name, &options).expect_err("elsewhere");
        assert!(matches!(problem(error), HubProblem::BadName { .. }));
        assert!(hub.requests().is_empty(), "{name}");
    }
}

#[test]
fn a_repository_without_weights() {
    let (scratch, cache) = (Scratch::copy("gpt2_plain"), cache());
    scratch.remove("model.safetensors");
    let hub = Hub::start(Shelf::new("tiny/gpt2", scratch.path()));
    let error = load("tiny/gpt2", &hub.options(&cache)).expect_err("no weights");
    assert_names(
        &error,
        &[
            "tiny/gpt2",
            "model.safetensors.index.json",
            "save_pretrained",
        ],
    );
}

#[test]
fn an_index_that_leaves_the_repository() {
    let outside = cache();
    let absolute = outside.path().join("model-00001-of-00004.safetensors");
    let absolute = absolute.to_str().expect("a path in UTF-8");
    for name in [absolute, "../../../../model-00001-of-00004.safetensors"] {
        let (scratch, cache) = (Scratch::copy("gpt2_sharded"), cache());
        let index = json!({"weight_map": {"wte.weight": name}});
        scratch.write("model.safetensors.index.json", index.to_string());
        let hub = Hub::start(Shelf::new("tiny/gpt2", scratch.path()));
        let error = load("tiny/gpt2", &hub.options(&cache)).expect_err("a file elsewhere");
        assert!(
            matches!(
                error,
                LoadError::Checkpoint(CheckpointError::BadIndex { .. })
            ),
            "{error:?}"
        );
        assert!(error.to_string().contains(name), "{error}");
        let asked = hub.requests();
        assert!(
            !asked.iter().any(|r| r.path.contains("-of-00004")),
            "{asked:?}"
        );
        let written = fs::read_dir(outside.path()).expect("the folder").count();
        assert_eq!(written, 0, "written outside of the cache");
    }
}

#[test]
fn revisions_are_told_apart() {
    let (main, old, cache) = (
        &checkpoints()["gpt2_plain"],
        &checkpoints()["gpt2_relu"],
        cache(),
    );
    let mut shelf = Shelf::new("tiny/gpt2", main);
    let commit = shelf.add("tiny/gpt2", "refs/pr/1", old);
    shelf.add("tiny/gpt2", "v1.0", old);
    shelf.add("tiny/gpt2", &commit[..7], old);
    let hub = Hub::start(shelf);
    let options = |revision: &str| hub.options(&cache).with_revision(revision);
    assert_loads("tiny/gpt2", &options("main"), "gpt2_plain");
    hub.requests();
    assert_loads("tiny/gpt2", &options("refs/pr/1"), "gpt2_relu");
    let asked = hub.requests();
    let first = "/tiny/gpt2/resolve/refs%2Fpr%2F1/config.json";
    assert_eq!(asked[0].path, first);
    // A revision is resolved once; other forms of the same commit fetch nothing again.
    for revision in ["v1.0", &commit[..7], &commit, "refs/pr/1"] {
        let options = options(revision);
        assert_loads("tiny/gpt2", &options, "gpt2_relu");
        assert!(hub.fetched().is_empty(), "{revision}");
        assert_loads("tiny/gpt2", &options.with_offline(true), "gpt2_relu");
    }
    // A commit never changes.
    hub.requests();
    assert_loads("tiny/gpt2", &options(&commit), "gpt2_relu");
    assert!(hub.requests().is_empty());
    let error = load("tiny/gpt2", &options("v2")).expect_err("no such revision");
    assert_names(&error, &["tiny/gpt2 (v2)", "no such branch, tag or commit"]);
    for revision in ["", "..", "../../main", "/main"] {
        let error = load("tiny/gpt2", &options(revision)).expect_err("no revision");
        assert!(matches!(problem(error), HubProblem::BadName { .. }));
    }
    hub.requests();
    hub.shelf().trouble = Some((500, None));
    assert_loads("tiny/gpt2", &options("v1.0"), "gpt2_relu");
    drop(hub);
}

#[test]
fn models_that_are_elsewhere_today() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let mut shelf = Shelf::new("owner/gpt2", fixture);
    shelf.renamed.insert("gpt2".into(), "owner/gpt2".into());
    shelf.elsewhere = true;
    let hub = Hub::start(shelf);
    assert_loads("gpt2", &hub.options(&cache), "gpt2_plain");
    let asked = hub.requests();
    assert!(asked.iter().any(|it| it.path.starts_with("/owner/gpt2/")));
    assert_loads(
        "gpt2",
        &hub.options(&cache).with_offline(true),
        "gpt2_plain",
    );
}

/// `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean the same as in Python.
///
/// The variables of a running program must not be changed, so the test runs itself again.
#[test]
fn the_environment_is_respected() {
    const CHILD: &str = "BURN_ALIGN_TEST_HUB_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let loaded = load("tiny/gpt2", &LoadOptions::default()).expect("the model");
        return assert_same(&loaded, "gpt2_plain");
    }
    let (repository, home) = (with_tokenizer(), cache());
    let mut shelf = Shelf::new("tiny/gpt2", repository.path());
    shelf.elsewhere = true;
    let hub = Hub::start(shelf);
    let run = |offline: &str| {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "hub::the_environment_is_respected"])
            .env(CHILD, "1")
            .env("HF_HOME", home.path())
            .env("HF_ENDPOINT", hub.endpoint())
            .env("HF_TOKEN", "hf_secret")
            .env("HF_HUB_OFFLINE", offline)
            .env("NO_PROXY", "127.0.0.1")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env_remove("HF_HUB_DISABLE_IMPLICIT_TOKEN")
            .output()
            .expect("the program runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        hub.requests()
    };
    let asked = run("0");
    assert!(asked.iter().any(|request| !request.is_of_the_hub()));
    for request in asked {
        // The token is not sent to hosts that the hub redirects to.
        assert_eq!(
            request.authorization.as_deref(),
            request.is_of_the_hub().then_some("Bearer hf_secret"),
            "{}",
            request.path
        );
    }
    assert!(home.path().join("hub/models--tiny--gpt2").is_dir());
    assert!(run("1").is_empty(), "asked although offline");
}

/// Lays a cache out by hand: the files of a fixture as a commit.
fn lay_out(cache: &TempDir, fixture: &Path, commit: &str, place: impl Fn(&Path, &Path)) {
    let model = cache.path().join("hub/models--tiny--gpt2");
    let snapshot = model.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).expect("a folder");
    fs::create_dir_all(model.join("blobs")).expect("a folder");
    for entry in fixture.read_dir().expect("the fixture") {
        let from = entry.expect("an entry").path();
        place(&from, &snapshot.join(from.file_name().expect("a name")));
    }
}

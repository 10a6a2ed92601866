//! Loading from a hub, which is a small HTTP server on this machine.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use burn::backend::Flex;
use burn_align_models::pretrained::{CheckpointError, LoadError};
use burn_align_models::{
    FromPretrained, LanguageModel, LanguageModelConfig, LoadOptions, Pretrained,
};
use serde_json::json;
use tempfile::TempDir;

use crate::loading::logits;
use crate::scratch::Scratch;
use crate::support::{checkpoints, fixtures};

type Loaded = Pretrained<LanguageModel<Flex>, LanguageModelConfig>;

/// A hub until it is dropped.
struct Hub {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

/// What was asked of a hub.
#[derive(Clone, Debug)]
struct Request {
    path: String,
    range: Option<String>,
    authorization: Option<String>,
}

/// What a hub has and does.
struct Shelf {
    /// The folder of each repository and revision, by `/{id}/resolve/{revision}/`.
    folders: Vec<(String, PathBuf)>,
    /// Status for everything else.
    otherwise: u16,
    /// Bytes of a body after which the connection breaks.
    broken_after: usize,
}

impl Shelf {
    fn new(repositories: &[(&str, &Path)]) -> Self {
        let folders = repositories
            .iter()
            .map(|(repository, folder)| (format!("/{repository}/"), folder.to_path_buf()));
        Self {
            folders: folders.collect(),
            otherwise: 404,
            broken_after: usize::MAX,
        }
    }

    /// The commit and the content of the file at `path`.
    fn find(&self, path: &str) -> Option<(String, Vec<u8>)> {
        let (repository, folder) = self.folders.iter().find(|(r, _)| path.starts_with(r))?;
        // A hub that means harm has a file of every name.
        let file = path.rsplit('/').next()?;
        let content = fs::read(folder.join(file)).ok()?;
        Some((format!("{:040x}", hash(repository)), content))
    }

    fn answer(&self, stream: &mut TcpStream, request: &Request) -> io::Result<()> {
        let Some((commit, content)) = self.find(&request.path) else {
            let status = self.otherwise;
            return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
        };
        let size = content.len();
        let (first, last) = match request.range.as_deref().and_then(parse_range) {
            Some((first, last)) => (first, last.unwrap_or(size - 1)),
            None => (0, size - 1),
        };
        let body = &content[first..=last];
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Range: bytes {first}-{last}/{size}\r\nETag: \"{:016x}\"\r\n\
             X-Repo-Commit: {commit}\r\n\r\n",
            body.len(),
            hash(&content),
        )?;
        stream.write_all(&body[..body.len().min(self.broken_after)])
    }
}

/// `bytes=FIRST-` or `bytes=FIRST-LAST`.
fn parse_range(range: &str) -> Option<(usize, Option<usize>)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()))
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn read_request(stream: &TcpStream) -> io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request {
        path,
        range: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(request)
}

impl Hub {
    fn start(shelf: Shelf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (seen, stop) = (Arc::default(), Arc::default());
        let (log, stopped): (Arc<Mutex<Vec<Request>>>, Arc<AtomicBool>) =
            (Arc::clone(&seen), Arc::clone(&stop));
        let server = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(mut stream) = stream else { continue };
                let Ok(request) = read_request(&stream) else {
                    continue;
                };
                log.lock().expect("the log").push(request.clone());
                // A client that hangs up is the client's matter.
                let _ = shelf.answer(&mut stream, &request);
            }
        });
        Self {
            address,
            seen,
            stop,
            server: Some(server),
        }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked since this was last called.
    fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.seen.lock().expect("the log"))
    }

    fn options(&self, cache: &TempDir) -> LoadOptions {
        LoadOptions::default()
            .with_offline(false)
            .with_hub_endpoint(self.endpoint())
            .with_hub_cache(cache.path().join("hub"))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn cache() -> TempDir {
    tempfile::tempdir().expect("a folder for temporary files")
}

fn load(id: &str, options: &LoadOptions) -> Result<Loaded, LoadError> {
    LanguageModel::from_pretrained(id, options, &Default::default())
}

/// Checks that a model computes what the fixture computes.
fn assert_same(loaded: &Loaded, fixture: &str) {
    let (options, device) = (LoadOptions::default(), Default::default());
    let folder = checkpoints()[fixture].as_path().to_owned();
    let expected = LanguageModel::<Flex>::from_pretrained(folder, &options, &device);
    let expected = expected.expect("the fixture");
    assert_eq!(loaded.config, expected.config);
    assert_eq!(
        logits(&loaded.model, &device),
        logits(&expected.model, &device)
    );
}

/// Checks that an error is the hub's and names these.
fn assert_names(error: &LoadError, texts: &[&str]) {
    assert!(matches!(error, LoadError::Hub { .. }), "{error:?}");
    for text in texts {
        assert!(
            error.to_string().contains(text),
            "{text} is not in: {error}"
        );
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
fn the_second_load_asks_for_nothing() {
    let (repository, cache) = (with_tokenizer(), cache());
    let hub = Hub::start(Shelf::new(&[("tiny/gpt2/resolve/main", repository.path())]));
    let mut options = hub.options(&cache);

    let loaded = load("tiny/gpt2", &options).expect("the model");
    assert_same(&loaded, "gpt2_plain");
    let tokenizer = loaded.tokenizer().expect("a tokenizer");
    assert_eq!(tokenizer.encode("The capital").expect("ids").len(), 2);
    let asked = hub.requests();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let path = format!("/tiny/gpt2/resolve/main/{file}");
        assert!(asked.iter().any(|request| request.path == path), "{file}");
    }

    for offline in [false, true] {
        options.offline = offline;
        assert_same(
            &load("tiny/gpt2", &options).expect("the model"),
            "gpt2_plain",
        );
        assert!(hub.requests().is_empty(), "offline: {offline}");
    }
}

#[test]
fn a_tokenizer_is_optional() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let hub = Hub::start(Shelf::new(&[("tiny/gpt2/resolve/main", fixture)]));
    let loaded = load("tiny/gpt2", &hub.options(&cache)).expect("the model");
    assert!(matches!(loaded.tokenizer(), Err(LoadError::NoTokenizer)));
    assert_same(&loaded, "gpt2_plain");
}

#[test]
fn offline_without_a_cache() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let hub = Hub::start(Shelf::new(&[("tiny/gpt2/resolve/main", fixture)]));
    let options = hub.options(&cache).with_offline(true);
    let error = load("tiny/gpt2", &options).expect_err("an empty cache");
    assert_names(
        &error,
        &["tiny/gpt2", "config.json", "not in the cache, and offline"],
    );
    assert!(hub.requests().is_empty());
}

#[test]
fn models_that_the_hub_does_not_give() {
    // The public hub answers 401 for a model that does not exist.
    for status in [401, 403, 404] {
        let (mut shelf, cache) = (Shelf::new(&[]), cache());
        shelf.otherwise = status;
        let hub = Hub::start(shelf);
        let error = load("tiny/unknown", &hub.options(&cache)).expect_err("no such model");
        assert_names(
            &error,
            &[
                "tiny/unknown (main)",
                "config.json",
                "no such model",
                "HF_TOKEN",
            ],
        );
    }
}

#[test]
fn a_hub_in_trouble() {
    let (mut shelf, cache) = (Shelf::new(&[]), cache());
    shelf.otherwise = 500;
    let hub = Hub::start(shelf);
    let options = hub.options(&cache);
    let error = load("tiny/gpt2", &options).expect_err("a failing hub");
    assert_names(&error, &["tiny/gpt2", "config.json", "status code 500"]);
    drop(hub);
    let error = load("tiny/gpt2", &options).expect_err("no hub");
    assert_names(&error, &["tiny/gpt2", "config.json", "refused"]);
}

#[test]
fn a_broken_download_goes_on_where_it_ended() {
    let (fixture, cache) = (&checkpoints()["gpt2_plain"], cache());
    let repositories: &[(&str, &Path)] = &[("tiny/gpt2/resolve/main", fixture)];
    let mut shelf = Shelf::new(repositories);
    shelf.broken_after = 5000;
    let hub = Hub::start(shelf);
    let error = load("tiny/gpt2", &hub.options(&cache)).expect_err("a broken download");
    assert_names(&error, &["tiny/gpt2", "model.safetensors"]);

    let hub = Hub::start(Shelf::new(repositories));
    let loaded = load("tiny/gpt2", &hub.options(&cache)).expect("the model");
    assert_same(&loaded, "gpt2_plain");
    let ranges: Vec<_> = hub.requests().into_iter().filter_map(|r| r.range).collect();
    assert!(ranges.contains(&"bytes=5000-".to_owned()), "{ranges:?}");
}

#[test]
fn shards_are_fetched() {
    let (fixture, cache) = (&checkpoints()["gpt2_sharded"], cache());
    let hub = Hub::start(Shelf::new(&[("sharded/resolve/main", fixture)]));
    let mut options = hub.options(&cache);
    assert_same(
        &load("sharded", &options).expect("the model"),
        "gpt2_sharded",
    );
    options.offline = true;
    assert_same(
        &load("sharded", &options).expect("the model"),
        "gpt2_sharded",
    );

    // A shard that is gone is missed even where the rest is in the cache.
    let (scratch, cache) = (Scratch::copy("gpt2_sharded"), self::cache());
    scratch.remove("model-00002-of-00004.safetensors");
    let hub = Hub::start(Shelf::new(&[("sharded/resolve/main", scratch.path())]));
    let error = load("sharded", &hub.options(&cache)).expect_err("a missing shard");
    assert_names(&error, &["sharded", "model-00002-of-00004.safetensors"]);
}

#[test]
fn a_repository_without_weights() {
    let (scratch, cache) = (Scratch::copy("gpt2_plain"), cache());
    scratch.remove("model.safetensors");
    let hub = Hub::start(Shelf::new(&[("tiny/gpt2/resolve/main", scratch.path())]));
    let error = load("tiny/gpt2", &hub.options(&cache)).expect_err("no weights");
    assert_names(&error, &["tiny/gpt2", "model.safetensors.index.json"]);
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
        let hub = Hub::start(Shelf::new(&[("tiny/gpt2/resolve/main", scratch.path())]));
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
        assert!(!asked.iter().any(|r| r.path.contains("00001")), "{asked:?}");
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
    let hub = Hub::start(Shelf::new(&[
        ("tiny/gpt2/resolve/main", main),
        ("tiny/gpt2/resolve/refs%2Fpr%2F1", old),
    ]));
    let mut options = hub.options(&cache);
    assert_same(
        &load("tiny/gpt2", &options).expect("the model"),
        "gpt2_plain",
    );
    hub.requests();
    options.revision = "refs/pr/1".into();
    assert_same(
        &load("tiny/gpt2", &options).expect("the model"),
        "gpt2_relu",
    );
    let asked = hub.requests();
    assert!(!asked.is_empty());
    assert!(
        asked
            .iter()
            .all(|r| r.path.starts_with("/tiny/gpt2/resolve/refs%2Fpr%2F1/")),
        "{asked:?}"
    );
    options.revision = "v2".into();
    let error = load("tiny/gpt2", &options).expect_err("no such revision");
    assert_names(&error, &["tiny/gpt2 (v2)", "config.json"]);
}

/// `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean in Python.
///
/// The variables of a running program are not to be changed, so the test runs itself again.
#[test]
fn the_environment_is_respected() {
    const CHILD: &str = "BURN_ALIGN_TEST_HUB_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let loaded = load("tiny/gpt2", &LoadOptions::default()).expect("the model");
        return assert_same(&loaded, "gpt2_plain");
    }
    let (repository, home) = (with_tokenizer(), cache());
    let hub = Hub::start(Shelf::new(&[("tiny/gpt2/resolve/main", repository.path())]));
    let run = |offline: &str| {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "hub::the_environment_is_respected"])
            .env(CHILD, "1")
            .env("HF_HOME", home.path())
            .env("HF_ENDPOINT", hub.endpoint())
            .env("HF_TOKEN", "hf_secret")
            .env("HF_HUB_OFFLINE", offline)
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
    assert!(!asked.is_empty());
    for request in asked {
        assert_eq!(
            request.authorization.as_deref(),
            Some("Bearer hf_secret"),
            "{}",
            request.path
        );
    }
    assert!(home.path().join("hub/models--tiny--gpt2").is_dir());
    assert!(run("1").is_empty(), "asked although offline");
}

//! A hub on this machine: responds like the public one, for files of models.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use burn_align_models::LoadOptions;
use tempfile::TempDir;

/// A hub until it is dropped.
pub(crate) struct Hub {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

/// A request to a hub.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    host: String,
}

impl Request {
    /// Whether the request went to the hub itself, not to the host where it keeps weights.
    pub(crate) fn is_of_the_hub(&self) -> bool {
        self.host.starts_with("127.")
    }
}

/// What a hub has and does.
#[derive(Clone)]
pub(crate) struct Shelf {
    /// The folder of each commit, by the model's id and the commit.
    commits: BTreeMap<(String, String), PathBuf>,
    /// The commit of each branch, tag and abbreviation, by the model's id and its name.
    refs: BTreeMap<(String, String), String>,
    /// Names that models had before.
    pub(crate) renamed: BTreeMap<String, String>,
    /// Status and `X-Error-Code` of every response, if set.
    pub(crate) trouble: Option<(u16, Option<&'static str>)>,
    /// Bytes of a body after which the connection breaks.
    pub(crate) broken_after: usize,
    /// An etag for all files.
    pub(crate) etag: Option<String>,
    /// Whether weights are on another host.
    pub(crate) elsewhere: bool,
    /// Bytes that are flipped in transit.
    pub(crate) flipped: bool,
    /// The file after which the branch `main` moves to this folder's commit.
    pub(crate) moves_after: Option<(String, String)>,
}

impl Shelf {
    /// One model whose `main` is this folder.
    pub(crate) fn new(id: &str, folder: &Path) -> Self {
        let mut shelf = Self::empty();
        shelf.add(id, "main", folder);
        shelf
    }

    pub(crate) fn empty() -> Self {
        Self {
            commits: BTreeMap::new(),
            refs: BTreeMap::new(),
            renamed: BTreeMap::new(),
            trouble: None,
            broken_after: usize::MAX,
            etag: None,
            elsewhere: false,
            flipped: false,
            moves_after: None,
        }
    }

    /// Makes a folder the newest commit of a branch, and returns the commit.
    pub(crate) fn add(&mut self, id: &str, revision: &str, folder: &Path) -> String {
        let commit = format!("{:040x}", hash((id, folder)));
        let key = (id.to_owned(), commit.clone());
        self.commits.insert(key, folder.to_owned());
        let key = (id.to_owned(), revision.to_owned());
        self.refs.insert(key, commit.clone());
        commit
    }

    /// The response to a request: status, headers and body.
    fn answer(&mut self, request: &Request) -> Answer {
        if let Some((status, code)) = self.trouble {
            return Answer::refusal(status, code, None);
        }
        let path = request.path.trim_start_matches('/');
        let Some((id, rest)) = path.split_once("/resolve/") else {
            return Answer::refusal(404, None, None);
        };
        if let Some(name) = self.renamed.get(id) {
            let mut answer = Answer::refusal(307, None, None);
            answer.header("Location", format!("/{name}/resolve/{rest}"));
            return answer;
        }
        if !self.commits.keys().any(|(known, _)| known == id) {
            return Answer::refusal(401, Some("RepoNotFound"), None);
        }
        let (revision, file) = rest.split_once('/').expect("a file");
        let key = (id.to_owned(), revision.replace("%2F", "/"));
        let commit = self.refs.get(&key).unwrap_or(&key.1).clone();
        let Some(folder) = self.commits.get(&(key.0.clone(), commit.clone())) else {
            return Answer::refusal(404, Some("RevisionNotFound"), None);
        };
        if self.moves_after.as_ref().is_some_and(|it| it.0 == file)
            && let Some((_, next)) = self.moves_after.take()
        {
            self.refs.insert((key.0, "main".into()), next);
        }
        // A malicious hub has a file of every name.
        let name = file.rsplit('/').next().expect("a name");
        let Ok(mut content) = fs::read(folder.join(name)) else {
            return Answer::refusal(404, Some("EntryNotFound"), Some(&commit));
        };
        let etag = format!("{:016x}", hash(&content));
        let etag = self.etag.clone().unwrap_or(etag);
        if self.flipped {
            content.iter_mut().for_each(|byte| *byte ^= 1);
        }
        if self.elsewhere && request.is_of_the_hub() && file.ends_with(".safetensors") {
            let mut answer = Answer::refusal(302, None, Some(&commit));
            answer.header("X-Linked-Etag", format!("\"{etag}\""));
            answer.header("X-Linked-Size", content.len().to_string());
            let host = request.host.replace("127.0.0.1", "localhost");
            answer.header("Location", format!("http://{host}{}", request.path));
            return answer;
        }
        let size = content.len();
        let first = request.range.as_deref().and_then(parse_range);
        let mut answer = Answer::refusal(if first.is_some() { 206 } else { 200 }, None, None);
        answer.header("ETag", format!("\"{etag}\""));
        answer.header("X-Repo-Commit", commit);
        if let Some(first) = first {
            answer.header(
                "Content-Range",
                format!("bytes {first}-{}/{size}", size - 1),
            );
        }
        answer.body = content.split_off(first.unwrap_or(0));
        answer
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn refusal(status: u16, code: Option<&str>, commit: Option<&str>) -> Self {
        let mut answer = Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        };
        for (name, value) in [("X-Error-Code", code), ("X-Repo-Commit", commit)] {
            if let Some(value) = value {
                answer.header(name, value.to_owned());
            }
        }
        answer
    }

    fn header(&mut self, name: &'static str, value: String) {
        self.headers.push((name, value));
    }

    fn send(&self, stream: &mut TcpStream, body: bool, broken_after: usize) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} It Is\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        write!(stream, "{head}Content-Length: {}\r\n\r\n", self.body.len())?;
        if body {
            stream.write_all(&self.body[..self.body.len().min(broken_after)])?;
        }
        Ok(())
    }
}

/// `bytes=FIRST-`
fn parse_range(range: &str) -> Option<usize> {
    range
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn read_request(stream: &TcpStream) -> io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        range: None,
        authorization: None,
        host: String::new(),
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            "host" => request.host = value.to_owned(),
            _ => {}
        }
    }
    Ok(request)
}

impl Hub {
    pub(crate) fn start(shelf: Shelf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut hub = Self {
            address,
            shelf: Arc::new(Mutex::new(shelf)),
            seen: Arc::default(),
            stop: Arc::default(),
            server: None,
        };
        let (shelf, log, stopped) = (
            Arc::clone(&hub.shelf),
            Arc::clone(&hub.seen),
            Arc::clone(&hub.stop),
        );
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
                let (answer, broken_after) = {
                    let mut shelf = shelf.lock().expect("the shelf");
                    (shelf.answer(&request), shelf.broken_after)
                };
                // A client that hangs up is not an error.
                let _ = answer.send(&mut stream, request.method == "GET", broken_after);
            }
        });
        hub.server = Some(server);
        hub
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("the shelf")
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests since this was last called.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.seen.lock().expect("the log"))
    }

    /// The files that were fetched since, with the revision: `main/config.json`.
    pub(crate) fn fetched(&self) -> Vec<String> {
        let requests = self.requests().into_iter();
        let fetched = requests.filter(|request| request.method == "GET");
        let name = |request: Request| {
            request
                .path
                .split_once("/resolve/")
                .map(|it| it.1.to_owned())
        };
        fetched.filter_map(name).collect()
    }

    pub(crate) fn options(&self, cache: &TempDir) -> LoadOptions {
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

//! Requests to the hub.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::{Agent, RedirectAuthHeaders, Response};

use super::cache::Commit;
use super::error::HubProblem;
use super::variables::Settings;

/// A model on a hub.
pub(super) struct Remote<'a> {
    id: &'a str,
    settings: &'a Settings,
    /// Asks for what is known of files; leaves redirects to us.
    questions: Agent,
    /// Fetches files, wherever the hub has them.
    downloads: Agent,
}

/// What a hub says about a file.
pub(super) enum Answer {
    /// There is one.
    File(Entry),
    /// There is none in this commit.
    NoFile(Option<Commit>),
}

/// A file on a hub.
pub(super) struct Entry {
    pub(super) commit: Option<Commit>,
    /// Names the content.
    pub(super) etag: String,
    pub(super) size: u64,
}

impl<'a> Remote<'a> {
    pub(super) fn new(id: &'a str, settings: &'a Settings) -> Self {
        let agent = || {
            let timeout = settings.patience(false);
            ureq::builder()
                .try_proxy_from_env(!settings.no_proxy)
                .timeout_connect(timeout)
                .timeout_read(settings.download_timeout)
                .resolver(move |host: &str| resolve(host, timeout))
                .user_agent(concat!(
                    env!("CARGO_PKG_NAME"),
                    "/",
                    env!("CARGO_PKG_VERSION")
                ))
        };
        Self {
            id,
            settings,
            questions: agent().redirects(0).build(),
            downloads: agent()
                .redirects(10)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .build(),
        }
    }

    fn url(&self, revision: &str, file: &str) -> String {
        let (endpoint, id) = (&self.settings.endpoint, self.id);
        let (revision, file) = (quote(revision, ""), quote(file, "/"));
        format!("{endpoint}/{id}/resolve/{revision}/{file}")
    }

    /// The page of the model, or of something that belongs to it.
    pub(super) fn page(&self, rest: &str) -> String {
        format!("{}/{}{rest}", self.settings.endpoint, self.id)
    }

    fn request(&self, agent: &Agent, method: &str, url: &str) -> ureq::Request {
        // Of a compressed body, the size would be another.
        let request = agent
            .request(method, url)
            .set("Accept-Encoding", "identity");
        match &self.settings.token.secret {
            Some(secret) => request.set("Authorization", &format!("Bearer {secret}")),
            None => request,
        }
    }

    /// Asks what a file is, without fetching it.
    pub(super) fn ask(
        &self,
        revision: &str,
        file: &str,
        timeout: Duration,
    ) -> Result<Answer, HubProblem> {
        let mut url = self.url(revision, file);
        let mut commit = None;
        // A model that has another name today, and files that the hub keeps elsewhere itself.
        for _ in 0..5 {
            let request = self.request(&self.questions, "HEAD", &url).timeout(timeout);
            let response = match request.call() {
                Ok(response) => response,
                Err(ureq::Error::Status(_, response)) => {
                    return self.refusal(file, &url, &response);
                }
                Err(ureq::Error::Transport(error)) => return Err(unreachable_for(file, &error)),
            };
            commit = commit.or_else(|| commit_of(&response));
            match self.redirect_on_the_hub(&response) {
                Some(next) => url = next,
                None => return entry(file, &url, &response, commit).map(Answer::File),
            }
        }
        Err(bad_answer(file, &url, "it redirects without end"))
    }

    fn redirect_on_the_hub(&self, response: &Response) -> Option<String> {
        let location = response.header("Location")?;
        let endpoint = &self.settings.endpoint;
        let origin_end = endpoint.find("://").map_or(0, |scheme| scheme + 3);
        let origin_end = endpoint[origin_end..]
            .find('/')
            .map_or(endpoint.len(), |slash| origin_end + slash);
        let origin = &endpoint[..origin_end];
        if !(300..400).contains(&response.status()) {
            None
        } else if location.starts_with('/') && !location.starts_with("//") {
            Some(format!("{origin}{location}"))
        } else {
            let path = location.strip_prefix(origin)?;
            path.starts_with('/').then(|| location.to_owned())
        }
    }

    /// What it means that the hub does not answer with a file.
    fn refusal(&self, file: &str, url: &str, response: &Response) -> Result<Answer, HubProblem> {
        let (status, commit) = (response.status(), commit_of(response));
        let message = response
            .header("X-Error-Message")
            .unwrap_or("no reason given");
        let (file, token) = (file.to_owned(), self.settings.token.place.clone());
        match (response.header("X-Error-Code"), status) {
            (Some("EntryNotFound"), _) => Ok(Answer::NoFile(commit)),
            (Some("RevisionNotFound"), _) => Err(HubProblem::NoSuchRevision {
                file,
                url: self.page("/commits/main"),
            }),
            (Some("GatedRepo"), _) => Err(HubProblem::Gated {
                file,
                url: self.page(""),
                token,
            }),
            (Some("RepoNotFound"), _) => Err(HubProblem::NoSuchModel { file, token }),
            (None, 404) if commit.is_some() => Ok(Answer::NoFile(commit)),
            (None, 404) => Ok(Answer::NoFile(None)),
            // The public hub's answer for models that do not exist, and for private ones.
            (None, 401) if message != "Invalid credentials in Authorization header" => {
                Err(HubProblem::NoSuchModel { file, token })
            }
            (_, 401 | 403) => Err(HubProblem::Refused {
                file,
                status,
                message: message.to_owned(),
                token,
            }),
            _ => Err(bad_answer(
                &file,
                url,
                &format!("status code {status}: {message}"),
            )),
        }
    }

    /// Fetches a file of a commit, going on where `part` ends.
    pub(super) fn download(
        &self,
        commit: &Commit,
        file: &str,
        entry: &Entry,
        part: &Path,
    ) -> Result<(), DownloadError> {
        let there = fs::metadata(part).map_or(0, |it| it.len());
        if there > entry.size {
            fs::remove_file(part)?;
            return self.download(commit, file, entry, part);
        }
        if there < entry.size || there == 0 {
            self.append(commit, file, entry, part, there)?;
        }
        match check(file, entry, part) {
            // What was there before was perhaps another program's, and bad.
            Err(DownloadError::Hub(HubProblem::Damaged { .. })) if there > 0 => {
                self.append(commit, file, entry, part, 0)?;
                check(file, entry, part)
            }
            result => result,
        }
    }

    fn append(
        &self,
        commit: &Commit,
        file: &str,
        entry: &Entry,
        part: &Path,
        mut there: u64,
    ) -> Result<(), DownloadError> {
        let url = self.url(commit.as_str(), file);
        let mut request = self.request(&self.downloads, "GET", &url);
        if there > 0 {
            request = request.set("Range", &format!("bytes={there}-"));
        }
        let response = match request.call() {
            Ok(response) => response,
            // It cannot go on there.
            Err(ureq::Error::Status(416, _)) if there > 0 => {
                return self.append(commit, file, entry, part, 0);
            }
            Err(ureq::Error::Status(_, response)) => {
                return Err(match self.refusal(file, &url, &response) {
                    Err(problem) => problem,
                    Ok(_) => bad_answer(file, &url, "the file is gone"),
                }
                .into());
            }
            Err(ureq::Error::Transport(error)) => return Err(unreachable_for(file, &error).into()),
        };
        let first = response.header("Content-Range").and_then(first_byte);
        match (response.status(), first.unwrap_or(0)) {
            (206, first) if first == there => {}
            (200, _) => there = 0,
            (status, first) => {
                let reason = format!("status code {status}, bytes from {first}, not from {there}");
                return Err(bad_answer(file, &url, &reason).into());
            }
        }
        let part = File::options()
            .create(true)
            .append(there > 0)
            .truncate(there == 0)
            .write(true)
            .open(part)?;
        receive(response, part, file, there, entry.size)
    }
}

/// Writes what comes, and no more than was announced.
fn receive(
    response: Response,
    part: File,
    file: &str,
    there: u64,
    expected: u64,
) -> Result<(), DownloadError> {
    let mut body = Counted {
        inner: response.into_reader(),
        failed: None,
    };
    let mut part = BufWriter::with_capacity(1 << 20, part);
    let limit = expected.saturating_sub(there) + 1;
    let copied = io::copy(&mut io::Read::take(&mut body, limit), &mut part)?;
    part.flush()?;
    let received = there + copied;
    if received < expected {
        let cause = body
            .failed
            .map_or("the connection was closed".into(), |it| it.to_string());
        return Err(DownloadError::Hub(HubProblem::BrokenOff {
            file: file.to_owned(),
            received,
            expected,
            cause,
        }));
    }
    Ok(())
}

/// A body whose failure is its end, so that what came before is kept and told from a full disk.
struct Counted<R> {
    inner: R,
    failed: Option<io::Error>,
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failed = Some(error);
                Ok(0)
            }
            read => read,
        }
    }
}

/// Why a file was not fetched: because of the hub, or because of this machine.
#[derive(Debug)]
pub(super) enum DownloadError {
    Hub(HubProblem),
    Io(io::Error),
}

impl From<HubProblem> for DownloadError {
    fn from(problem: HubProblem) -> Self {
        Self::Hub(problem)
    }
}

impl From<io::Error> for DownloadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Compares a file with its size and, where the etag is one, its SHA-256 (of files in LFS).
///
/// What differs is removed.
fn check(file: &str, entry: &Entry, part: &Path) -> Result<(), DownloadError> {
    let size = fs::metadata(part)?.len();
    let (expected, found) = if size != entry.size {
        (format!("{} bytes", entry.size), format!("{size} or more"))
    } else if entry.etag.len() == 64 && entry.etag.chars().all(|c| c.is_ascii_hexdigit()) {
        let mut hasher = Sha256::new();
        io::copy(&mut File::open(part)?, &mut hasher)?;
        let found: String = hasher
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        (entry.etag.to_lowercase(), found)
    } else {
        return Ok(());
    };
    if expected == found {
        return Ok(());
    }
    fs::remove_file(part)?;
    let file = file.to_owned();
    Err(DownloadError::Hub(HubProblem::Damaged {
        file,
        expected,
        found,
    }))
}

fn commit_of(response: &Response) -> Option<Commit> {
    Commit::parse(response.header("X-Repo-Commit")?)
}

fn entry(
    file: &str,
    url: &str,
    response: &Response,
    commit: Option<Commit>,
) -> Result<Entry, HubProblem> {
    let header = |names: &[&str]| {
        let value = names.iter().find_map(|name| response.header(name));
        value.ok_or_else(|| bad_answer(file, url, &format!("no {}", names.join(", no "))))
    };
    let etag = header(&["X-Linked-Etag", "ETag"])?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    // The name of a file of ours.
    if etag.is_empty() || etag.len() > 200 || !etag.chars().all(plain) {
        return Err(bad_answer(file, url, &format!("the ETag `{etag}`")));
    }
    let size = match (300..400).contains(&response.status()) {
        true => header(&["X-Linked-Size"])?,
        false => header(&["X-Linked-Size", "Content-Length"])?,
    };
    Ok(Entry {
        commit,
        etag: etag.to_owned(),
        size: match size.trim().parse() {
            Ok(size) => size,
            Err(_) => return Err(bad_answer(file, url, &format!("the size `{size}`"))),
        },
    })
}

/// The first byte of `bytes 5-9/10`.
fn first_byte(range: &str) -> Option<u64> {
    let range = range.trim().strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}

/// Every byte but letters, digits, `_.-~` and `safe` as `%XX`.
fn quote(text: &str, safe: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "_.-~".contains(c) || safe.contains(c) {
            quoted.push(c);
        } else {
            quoted.push_str(&format!("%{byte:02X}"));
        }
    }
    quoted
}

/// Looks addresses up for no longer than this: the system's own patience is half a minute.
fn resolve(host: &str, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    std::thread::spawn(move || {
        let addresses = host.to_socket_addrs().map(Iterator::collect);
        // Nobody waits any more.
        let _ = sender.send(addresses);
    });
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer about the address");
    receiver.recv_timeout(timeout).map_err(late)?
}

fn bad_answer(file: &str, url: &str, reason: &str) -> HubProblem {
    HubProblem::BadAnswer {
        file: file.to_owned(),
        url: url.to_owned(),
        reason: reason.to_owned(),
    }
}

fn unreachable_for(file: &str, error: &ureq::Transport) -> HubProblem {
    HubProblem::Unreachable {
        files: vec![file.to_owned()],
        folder: Default::default(),
        cause: error.to_string(),
    }
}

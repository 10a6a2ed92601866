//! Requests to the hub.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

use ureq::{Agent, RedirectAuthHeaders, Response};

use super::cache::Commit;
use super::error::HubProblem;
use super::variables::Settings;

/// A model on a hub.
pub(super) struct Remote<'a> {
    id: &'a str,
    settings: &'a Settings,
    /// Requests metadata of files; redirects are handled here.
    questions: Agent,
    /// Fetches files, following redirects.
    pub(super) downloads: Agent,
}

/// A hub's response about a file.
pub(super) enum Answer {
    /// It exists.
    File(Entry),
    /// This commit has no such file.
    NoFile(Option<Commit>),
}

/// A file on a hub.
pub(super) struct Entry {
    pub(super) commit: Option<Commit>,
    /// Identifies the content.
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

    pub(super) fn url(&self, revision: &str, file: &str) -> String {
        let (endpoint, id) = (&self.settings.endpoint, self.id);
        let (revision, file) = (quote(revision, ""), quote(file, "/"));
        format!("{endpoint}/{id}/resolve/{revision}/{file}")
    }

    /// The URL of the model's page, or of a page below it.
    pub(super) fn page(&self, rest: &str) -> String {
        format!("{}/{}{rest}", self.settings.endpoint, self.id)
    }

    pub(super) fn request(&self, agent: &Agent, method: &str, url: &str) -> ureq::Request {
        // A compressed body would have a different size.
        let request = agent
            .request(method, url)
            .set("Accept-Encoding", "identity");
        match &self.settings.token.secret {
            Some(secret) => request.set("Authorization", &format!("Bearer {secret}")),
            None => request,
        }
    }

    /// Requests a file's metadata, without fetching it.
    pub(super) fn ask(
        &self,
        revision: &str,
        file: &str,
        timeout: Duration,
    ) -> Result<Answer, HubProblem> {
        let mut url = self.url(revision, file);
        let mut commit = None;
        // A renamed model, or a file that the hub itself stores elsewhere.
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
        Err(bad_answer(file, &url, "too many redirects"))
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

    /// The meaning of a response other than a file.
    pub(super) fn refusal(
        &self,
        file: &str,
        url: &str,
        response: &Response,
    ) -> Result<Answer, HubProblem> {
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
            // The public hub's response for models that do not exist, and for private ones.
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
    // Used as a local file name.
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

/// Resolves addresses with this timeout: the system's own is half a minute.
fn resolve(host: &str, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    std::thread::spawn(move || {
        let addresses = host.to_socket_addrs().map(Iterator::collect);
        // The receiver has given up.
        let _ = sender.send(addresses);
    });
    let late = |_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            "the address could not be resolved in \
                                                            time",
        )
    };
    receiver.recv_timeout(timeout).map_err(late)?
}

pub(super) fn bad_answer(file: &str, url: &str, reason: &str) -> HubProblem {
    HubProblem::BadAnswer {
        file: file.to_owned(),
        url: url.to_owned(),
        reason: reason.to_owned(),
    }
}

pub(super) fn unreachable_for(file: &str, error: &ureq::Transport) -> HubProblem {
    HubProblem::Unreachable {
        files: vec![file.to_owned()],
        folder: Default::default(),
        cause: error.to_string(),
    }
}

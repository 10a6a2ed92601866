//! One commit of a model: which files are cached, and which are fetched.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::cache::{Commit, Held};
use super::download::DownloadError;
use super::error::HubProblem;
use super::files::Session;
use super::remote::{Answer, Entry, Remote};

/// One commit of a model.
pub(super) struct Pinned<'a> {
    pub(super) session: &'a Session<'a>,
    pub(super) commit: Commit,
    /// Whether the cache has everything needed.
    pub(super) cached: bool,
    /// How long to wait for the first response.
    pub(super) patience: Duration,
    pub(super) remote: Option<Remote<'a>>,
    /// Whether the hub has responded usefully.
    pub(super) answered: Cell<bool>,
    /// Why the hub is no longer contacted.
    pub(super) refusal: RefCell<Option<HubProblem>>,
    /// Whether the revision pointed to another commit before.
    pub(super) moved: bool,
}

impl Pinned<'_> {
    /// A file; `None` if the commit has none, or if the hub cannot be contacted.
    pub(super) fn want(&self, file: &str) -> Result<Option<PathBuf>, HubProblem> {
        let session = self.session;
        match session.store.look(&self.commit, file) {
            Held::File(path) => return Ok(Some(path)),
            Held::Absent => return Ok(None),
            Held::Unknown => {}
        }
        let Some(remote) = self
            .remote
            .as_ref()
            .filter(|_| self.refusal.borrow().is_none())
        else {
            return Ok(None);
        };
        let patience = match self.answered.get() {
            true => session.settings.patience(false),
            false => self.patience,
        };
        match remote.ask(self.commit.as_str(), file, patience) {
            Ok(Answer::File(entry)) => {
                self.check_commit(remote, file, entry.commit.as_ref())?;
                self.answered.set(true);
                self.bring(remote, file, &entry).map(Some)
            }
            Ok(Answer::NoFile(commit)) => {
                // Only a hub's response counts, not that of another kind of server.
                if commit.is_some() {
                    self.check_commit(remote, file, commit.as_ref())?;
                    session.store.mark_absent(&self.commit, file);
                    self.answered.set(true);
                }
                Ok(None)
            }
            Err(problem) if self.answered.get() => Err(session.located(problem, None)),
            // The cache may have everything needed.
            Err(problem) => {
                self.refusal.replace(Some(problem));
                Ok(None)
            }
        }
    }

    fn check_commit(
        &self,
        remote: &Remote<'_>,
        file: &str,
        answered: Option<&Commit>,
    ) -> Result<(), HubProblem> {
        let (asked, answered) = (
            self.commit.as_str(),
            answered.unwrap_or(&self.commit).as_str(),
        );
        if asked == answered {
            return Ok(());
        }
        Err(HubProblem::BadAnswer {
            file: file.to_owned(),
            url: remote.page(""),
            reason: format!("asked for commit {asked}, got commit {answered}"),
        })
    }

    /// Fetches a file, unless its content is already there.
    fn bring(&self, remote: &Remote<'_>, file: &str, entry: &Entry) -> Result<PathBuf, HubProblem> {
        let store = &self.session.store;
        let brought = || {
            let _lock = store.lock(&entry.etag)?;
            // Another program may have been faster.
            if let Held::File(path) = store.look(&self.commit, file) {
                return Ok(path);
            }
            let blob = store.blob(&entry.etag);
            let new = !blob.is_file();
            if new {
                let part = store.blob(&format!("{}.incomplete", entry.etag));
                remote.download(&self.commit, file, entry, &part)?;
                fs::rename(&part, &blob)?;
            }
            Ok(store.link(&entry.etag, &self.commit, file, new)?)
        };
        brought().map_err(|error: DownloadError| match error {
            DownloadError::Hub(problem) => self.session.located(problem, None),
            DownloadError::Io(cause) => HubProblem::Io {
                file: file.to_owned(),
                folder: store.folder().to_owned(),
                cause,
            },
        })
    }

    /// A required file. If the hub cannot be contacted for it, it is added to `missing`.
    pub(super) fn need(
        &self,
        file: &str,
        hint: &'static str,
        missing: &mut Vec<String>,
    ) -> Result<Option<PathBuf>, HubProblem> {
        let found = self.want(file)?;
        let asked = self.remote.is_some() && self.refusal.borrow().is_none();
        let absent = asked || self.session.store.look(&self.commit, file) == Held::Absent;
        if found.is_none() && absent {
            let tree = format!("/tree/{}", self.commit.as_str());
            let page = format!(
                "{}/{}{tree}",
                self.session.settings.endpoint, self.session.id
            );
            return Err(HubProblem::NoSuchFile {
                file: file.to_owned(),
                url: page,
                hint,
            });
        }
        if found.is_none() {
            missing.push(file.to_owned());
        }
        Ok(found)
    }

    /// Reports what is missing, or records that the revision is now this commit.
    pub(super) fn finish(&self, missing: Vec<String>) -> Result<(), HubProblem> {
        if missing.is_empty() {
            if self.moved {
                self.session
                    .store
                    .remember(self.session.revision, &self.commit);
            }
            return Ok(());
        }
        Err(match self.refusal.take() {
            Some(problem) => self.session.located(problem, Some(missing)),
            None => self.session.offline_without(missing),
        })
    }
}

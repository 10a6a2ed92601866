//! Which files a model needs, and from which commit.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::{Commit, Held, Store, stays_inside};
use super::error::{HubError, HubProblem};
use super::pinned::Pinned;
use super::remote::{Answer, Entry, Remote};
use super::variables::{Settings, of_process};
use crate::pretrained::checkpoint::shard_names;
use crate::pretrained::{CONFIG, LoadError, LoadOptions};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Fetched if they exist: the files that determine tokens.
const OPTIONAL: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// Fetches a model's files into the cache and returns their folder there.
///
/// Files that the cache holds are not fetched again. A branch or a tag is looked up once, to see
/// whether it has moved; if the hub cannot be reached, the cached files are used.
pub(crate) fn fetch(id: &str, options: &LoadOptions) -> Result<PathBuf, LoadError> {
    let session = Session::new(id, options)?;
    session.fetch().map_err(|problem| session.failed(problem))
}

/// Fetches one file of a model on the hub into the cache and returns its path there.
///
/// If the file is in several parts (`NAME-00001-of-00003.gguf`), all of them are fetched into the
/// same folder. The options give the revision, the cache and the hub.
///
/// # Errors
/// [`LoadError::Hub`] if the file's name leads out of the repository, if there is no such model,
/// revision or file, if access is refused, or if the file is not in the cache and the hub cannot be
/// reached.
pub fn fetch_file(id: &str, file: &str, options: &LoadOptions) -> Result<PathBuf, LoadError> {
    let session = Session::new(id, options)?;
    let fetched = session.fetch_file(file);
    fetched.map_err(|problem| session.failed(problem))
}

/// Why files could not be obtained: because of the hub, or because of their contents.
enum Failure {
    Hub(HubProblem),
    Load(LoadError),
}

impl From<HubProblem> for Failure {
    fn from(problem: HubProblem) -> Self {
        Self::Hub(problem)
    }
}

/// One model and revision.
pub(super) struct Session<'a> {
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
    offline: bool,
    /// Whether to contact the hub even if the cache holds everything.
    update: bool,
    pub(super) settings: Settings,
    pub(super) store: Store,
}

impl<'a> Session<'a> {
    fn new(id: &'a str, options: &'a LoadOptions) -> Result<Self, LoadError> {
        let settings = Settings::read(&of_process, options);
        let store = Store::new(&settings.cache, id, settings.symlinks);
        let session = Self {
            id,
            revision: &options.revision,
            offline: options.offline,
            update: options.update,
            settings,
            store,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if !stays_inside(id) || !id.chars().all(plain) || id.matches('/').count() > 1 {
            return Err(session.bad_name("the name of a model", id, "`name` or `owner/name`"));
        }
        if !stays_inside(session.revision) {
            let expected = "a branch, a tag, a commit or `refs/pr/1`";
            return Err(session.bad_name("a revision", session.revision, expected));
        }
        Ok(session)
    }

    fn bad_name(&self, what: &'static str, found: &str, expected: &'static str) -> LoadError {
        self.failed(Failure::Hub(HubProblem::BadName {
            what,
            found: found.to_owned(),
            expected,
        }))
    }

    fn failed(&self, failure: Failure) -> LoadError {
        match failure {
            Failure::Load(error) => error,
            Failure::Hub(problem) => LoadError::from(HubError {
                id: self.id.to_owned(),
                revision: self.revision.to_owned(),
                problem,
            }),
        }
    }

    fn fetch(&self) -> Result<PathBuf, Failure> {
        let pinned = self.pin(CONFIG, &|commit| is_complete_model(&self.store, commit))?;
        let mut missing = Vec::new();
        let hint = "; to load a GGUF file, give its name";
        pinned.need(CONFIG, hint, &mut missing)?;
        // The hub is not contacted about a complete commit, not even for optional files.
        if !pinned.cached || self.update {
            for file in OPTIONAL {
                pinned.want(file)?;
            }
        }
        if !pinned.cached && pinned.want(WEIGHTS)?.is_none() {
            let hint = ", nor model.safetensors; convert a checkpoint in another format with \
                        `save_pretrained` in `transformers`";
            match pinned.need(INDEX, hint, &mut missing)? {
                Some(index) => {
                    for shard in shards(&index).map_err(Failure::Load)? {
                        pinned.need(&shard, "; it is named in the index", &mut missing)?;
                    }
                }
                None => {
                    missing.pop();
                    missing.push(format!("{WEIGHTS} (or {INDEX})"));
                }
            }
        }
        pinned.finish(missing)?;
        Ok(self.store.snapshot(&pinned.commit))
    }

    fn fetch_file(&self, file: &str) -> Result<PathBuf, Failure> {
        if !stays_inside(file) {
            return Err(Failure::Hub(HubProblem::BadName {
                what: "the name of a file",
                found: file.to_owned(),
                expected: "a path inside the repository",
            }));
        }
        let parts = parts_of(file);
        let pinned = self.pin(file, &|commit| {
            let held = |part: &String| matches!(self.store.look(commit, part), Held::File(_));
            parts.iter().all(held)
        })?;
        let mut missing = Vec::new();
        for part in &parts {
            pinned.need(part, "", &mut missing)?;
        }
        pinned.finish(missing)?;
        Ok(self.store.snapshot(&pinned.commit).join(file))
    }

    /// Resolves the revision, once. `probe` is the file to ask for, and `complete` tells whether
    /// the cache has everything needed of a commit.
    fn pin(
        &self,
        probe: &str,
        complete: &dyn Fn(&Commit) -> bool,
    ) -> Result<Pinned<'_>, HubProblem> {
        let remote = (!self.offline).then(|| Remote::new(self.id, &self.settings));
        let fixed = Commit::from_revision(self.revision);
        let by_cache = match &fixed {
            Some(commit) => Some(commit.clone()),
            None => self.store.commit_of(self.revision),
        };
        let cached = by_cache.as_ref().is_some_and(complete);
        let remote = remote.filter(|_| !cached || self.update);
        let patience = self.settings.patience(cached);
        let pinned = |commit, remote, answered, refusal, moved| Pinned {
            session: self,
            cached: complete(&commit),
            commit,
            patience,
            remote,
            answered: Cell::new(answered),
            refusal: RefCell::new(refusal),
            moved,
        };
        let remote = match (remote, &by_cache) {
            (Some(remote), _) if fixed.is_none() => remote,
            (remote, Some(commit)) => {
                return Ok(pinned(commit.clone(), remote, false, None, false));
            }
            _ => return Err(self.offline_without(vec![probe.to_owned()])),
        };
        match self.resolve(&remote, probe, patience) {
            Ok(commit) => {
                // A loadable commit is not given up before a newer one is complete.
                if !cached {
                    self.store.remember(self.revision, &commit);
                }
                let moved = by_cache.as_ref() != Some(&commit);
                Ok(pinned(commit, Some(remote), true, None, moved))
            }
            // A deleted revision is not loaded from the cache either.
            Err(problem @ HubProblem::NoSuchRevision { .. }) => Err(problem),
            Err(problem) => match by_cache {
                Some(commit) => Ok(pinned(commit, Some(remote), false, Some(problem), false)),
                None => Err(self.located(problem, None)),
            },
        }
    }

    /// Asks the hub for the commit of the revision.
    fn resolve(
        &self,
        remote: &Remote<'_>,
        probe: &str,
        patience: Duration,
    ) -> Result<Commit, HubProblem> {
        match remote.ask(self.revision, probe, patience)? {
            Answer::File(Entry { commit, .. }) => commit.ok_or_else(|| HubProblem::BadAnswer {
                file: probe.to_owned(),
                url: remote.page(""),
                reason: "no X-Repo-Commit, so this is not a hub".to_owned(),
            }),
            Answer::NoFile(commit) => commit.ok_or_else(|| HubProblem::NoSuchModel {
                file: probe.to_owned(),
                token: self.settings.token.place.clone(),
            }),
        }
    }

    pub(super) fn offline_without(&self, files: Vec<String>) -> HubProblem {
        let folder = self.store.folder().to_owned();
        HubProblem::Offline { files, folder }
    }

    /// Adds which files are missing, and where, if the hub cannot be reached.
    pub(super) fn located(&self, problem: HubProblem, missing: Option<Vec<String>>) -> HubProblem {
        match problem {
            HubProblem::Unreachable { files, cause, .. } => HubProblem::Unreachable {
                files: missing.unwrap_or(files),
                folder: self.store.folder().to_owned(),
                cause,
            },
            problem => problem,
        }
    }
}

/// Whether the cache has the configuration and all weights of a commit.
fn is_complete_model(store: &Store, commit: &Commit) -> bool {
    let held = |file: &str| match store.look(commit, file) {
        Held::File(path) => Some(path),
        Held::Absent | Held::Unknown => None,
    };
    let all_shards = |index: PathBuf| {
        shards(&index).is_ok_and(|shards| shards.iter().all(|shard| held(shard).is_some()))
    };
    held(CONFIG).is_some() && (held(WEIGHTS).is_some() || held(INDEX).is_some_and(all_shards))
}

/// The files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>, LoadError> {
    let json = fs::read_to_string(index).map_err(|cause| LoadError::Io {
        file: index.to_owned(),
        cause,
    })?;
    Ok(shard_names(index, &json)?)
}

/// All parts of a file in parts, such as `NAME-00002-of-00003.gguf`; otherwise the file itself.
fn parts_of(file: &str) -> Vec<String> {
    let numbered = || {
        let (name, total) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (name, number) = name.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.chars().all(|c| c.is_ascii_digit());
        let all: u32 = total.parse().ok().filter(|_| is_number(total))?;
        let number: u32 = number.parse().ok().filter(|_| is_number(number))?;
        let name = move |part| format!("{name}-{part:05}-of-{total}.gguf");
        (1..=all)
            .contains(&number)
            .then(|| (1..=all).map(name).collect())
    };
    numbered().unwrap_or_else(|| vec![file.to_owned()])
}

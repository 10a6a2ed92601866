//! The layout of the cache: one folder per model, as in Python's `huggingface_hub`.
//!
//! ```text
//! models--owner--name/
//!   blobs/<etag>                      contents, each once
//!   refs/<branch, tag, refs/pr/1>     the commit that a revision was
//!   snapshots/<commit>/<file>         a relative link to a blob, or a file
//!   .no_exist/<commit>/<file>         empty: the commit has no such file
//!   trees/<commit>.json               all files of the commit, where version 2 was here
//! .locks/models--owner--name/<etag>.lock
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The hash of a commit, which is also a folder's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit(String);

impl Commit {
    /// From the hash given by a hub or the cache.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = (1..=64).contains(&text.len());
        let fits = fits && text.chars().all(|c| c.is_ascii_alphanumeric());
        fits.then(|| Self(text.to_owned()))
    }

    /// From a revision that can only be a commit.
    pub(super) fn from_revision(revision: &str) -> Option<Self> {
        let fits = revision.len() == 40 && revision.chars().all(is_lower_hex);
        fits.then(|| Self(revision.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_lower_hex(c: char) -> bool {
    matches!(c, '0'..='9' | 'a'..='f')
}

/// What the cache knows about a file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Its path.
    File(PathBuf),
    /// The commit has no such file.
    Absent,
    /// Nothing.
    Unknown,
}

/// The folder of one model.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    locks: PathBuf,
    symlinks: bool,
}

/// The listing kept by version 2 of `huggingface_hub`.
#[derive(Deserialize)]
struct Tree {
    format_version: u32,
    files: BTreeMap<String, IgnoredAny>,
}

impl Store {
    pub(super) fn new(cache: &Path, id: &str, symlinks: bool) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self {
            folder: cache.join(&name),
            locks: cache.join(".locks").join(name),
            symlinks,
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.folder.join("snapshots").join(commit.as_str())
    }

    /// The commit that a branch or a tag pointed to when it was last resolved; for an abbreviated
    /// commit, the only snapshot with that prefix.
    pub(super) fn commit_of(&self, revision: &str) -> Option<Commit> {
        if let Ok(text) = fs::read_to_string(self.reference(revision)) {
            return Commit::parse(&text);
        }
        if revision.len() < 5 || !revision.chars().all(is_lower_hex) {
            return None;
        }
        let snapshots = fs::read_dir(self.folder.join("snapshots")).ok()?;
        let names = snapshots.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names = names.filter(|name| name.starts_with(revision));
        let name = names.next()?;
        names.next().is_none().then(|| Commit::parse(&name))?
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    /// Remembers the commit of a revision. A read-only cache is not an error here.
    pub(super) fn remember(&self, revision: &str, commit: &Commit) {
        let file = self.reference(revision);
        if fs::read_to_string(&file).is_ok_and(|text| text == commit.as_str()) {
            return;
        }
        let mut part = file.clone().into_os_string();
        part.push(format!(".{}.tmp", std::process::id()));
        let written = parent(&file)
            .and_then(fs::create_dir_all)
            .and_then(|()| fs::write(&part, commit.as_str()))
            .and_then(|()| fs::rename(&part, &file));
        if written.is_err() {
            let _ = fs::remove_file(part);
        }
    }

    pub(super) fn look(&self, commit: &Commit, file: &str) -> Held {
        let path = self.snapshot(commit).join(file);
        if path.is_file() {
            return Held::File(path);
        }
        if self.marker(commit, file).is_file() {
            return Held::Absent;
        }
        match self.tree(commit) {
            Some(tree) if !tree.files.contains_key(file) => Held::Absent,
            _ => Held::Unknown,
        }
    }

    fn marker(&self, commit: &Commit, file: &str) -> PathBuf {
        let folder = self.folder.join(".no_exist");
        folder.join(commit.as_str()).join(file)
    }

    fn tree(&self, commit: &Commit) -> Option<Tree> {
        let file = format!("trees/{}.json", commit.as_str());
        let json = fs::read_to_string(self.folder.join(file)).ok()?;
        let tree: Tree = serde_json::from_str(&json).ok()?;
        (tree.format_version == 1).then_some(tree)
    }

    /// Remembers that a commit has no such file. A read-only cache is not an error here.
    pub(super) fn mark_absent(&self, commit: &Commit, file: &str) {
        let marker = self.marker(commit, file);
        let _ = parent(&marker)
            .and_then(fs::create_dir_all)
            .and_then(|()| File::create(&marker));
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Keeps other programs from fetching the same blob until the result is dropped.
    pub(super) fn lock(&self, etag: &str) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        fs::create_dir_all(self.folder.join("blobs"))?;
        let file = self.locks.join(format!("{etag}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(file)?;
        match file.lock() {
            // Not every file system has locks.
            Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
            _ => Ok(file),
        }
    }

    /// Puts a blob into a snapshot; `new` means that no other snapshot can link to it yet.
    pub(super) fn link(
        &self,
        etag: &str,
        commit: &Commit,
        file: &str,
        new: bool,
    ) -> io::Result<PathBuf> {
        let (blob, path) = (self.blob(etag), self.snapshot(commit).join(file));
        fs::create_dir_all(parent(&path)?)?;
        // A link to a blob that is gone.
        if path.is_symlink() && !path.exists() {
            fs::remove_file(&path)?;
        }
        let up = "../".repeat(2 + Path::new(file).components().count() - 1);
        let linked = if self.symlinks {
            symlink(&Path::new(&up).join("blobs").join(etag), &path)
        } else {
            Err(io::ErrorKind::Unsupported.into())
        };
        match linked {
            Err(_) if path.exists() => {}
            Err(_) if new => fs::rename(&blob, &path)?,
            Err(_) => {
                let part = blob.with_extension(format!("{}.copy", std::process::id()));
                fs::copy(&blob, &part)?;
                fs::rename(&part, &path)?;
            }
            Ok(()) => {}
        }
        Ok(path)
    }
}

fn parent(file: &Path) -> io::Result<&Path> {
    file.parent().ok_or(io::ErrorKind::InvalidInput.into())
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    // Links on Windows do not work with forward slashes.
    let target: PathBuf = target.components().collect();
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a path only leads downwards.
pub(super) fn stays_inside(path: &str) -> bool {
    let plain = Path::new(path)
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    plain && !path.is_empty() && !path.contains(['\\', '\0']) && !path.split('/').any(str::is_empty)
}

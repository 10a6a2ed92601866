//! Downloads from the hub: resumed where an earlier attempt ended, and verified.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use ureq::Response;

use super::cache::Commit;
use super::error::HubProblem;
use super::remote::{Entry, Remote, bad_answer, unreachable_for};

impl Remote<'_> {
    /// Fetches a file of a commit, resuming where `part` ends.
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
            // The earlier part may be from another program, and damaged.
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
            // It cannot be resumed.
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

/// Writes the body, but no more than was announced.
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

/// A body that ends where it fails, so that the bytes before are kept, and the failure is
/// distinguished from a full disk.
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

/// Compares a file with its size and, if the etag is one, its SHA-256 (for files in LFS).
///
/// A file that differs is removed.
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

/// The first byte of `bytes 5-9/10`.
fn first_byte(range: &str) -> Option<u64> {
    let range = range.trim().strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}

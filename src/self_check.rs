//! The self-check of a GPU backend: run once for each device, driver and build, and kept.
//!
//! Programs refuse to compute on a backend that fails it, unless they are told to with
//! `--unchecked`. CPU backends need none: they have neither a driver nor kernels that are chosen by
//! speed, so the tests of the suite say the same on every machine. A remote backend is checked by
//! its server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, ensure};
use burn::backend::Autodiff;
use burn_align::self_check::{Part, REVISION, Report, check_part};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::attempt::attempt;
use crate::backends::{BackendChoice, DTypeChoice, DeviceInfo, last_words};
use crate::{complain, files, on_backend, out};

/// The environment variable that tells a process to run a part of the check of a backend and exit:
/// `cuda bf16 products`.
const VARIABLE: &str = "BURN_ALIGN_SELF_CHECK";

/// Processes at a time, at most: each keeps some memory of the device. With autotuning, which keeps
/// the kernel that was fastest, each has the device to itself.
const MOST_PROCESSES: usize = if cfg!(feature = "autotune") { 1 } else { 4 };

/// What a report is about. Any change makes a new check necessary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    backend: String,
    dtype: String,
    device: String,
    driver: String,
    build: String,
}

/// A report in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    subject: Subject,
    report: Report,
}

impl Subject {
    fn new(backend: BackendChoice, dtype: DTypeChoice, device: &DeviceInfo) -> Self {
        Self {
            backend: backend.name(),
            dtype: dtype.to_string(),
            device: device.name.clone(),
            driver: device.driver.clone(),
            build: build(),
        }
    }

    /// The file of the report.
    fn file(&self, folder: &Path) -> PathBuf {
        let Self {
            backend,
            dtype,
            device,
            driver,
            build,
        } = self;
        let hash = hash(&format!("{device}\n{driver}\n{build}"));
        folder.join(format!("self-check-{backend}-{dtype}-{hash:016x}.json"))
    }
}

/// Everything in this build that decides which kernels run.
fn build() -> String {
    format!(
        "burn-align {}, dependencies {:016x}, checks {REVISION}, fusion {}, autotune {}",
        env!("CARGO_PKG_VERSION"),
        hash(include_str!("../Cargo.lock")),
        cfg!(feature = "fusion"),
        cfg!(feature = "autotune"),
    )
}

/// FNV-1a, which is the same in every version of Rust.
fn hash(text: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = text.bytes();
    bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

/// The folder of kept reports: `burn-align` in the user's cache, beside the one in which CubeCL
/// keeps what autotuning has found. `None` if the environment names no place for it.
fn folder() -> Option<PathBuf> {
    let place = |variable: &str| env::var_os(variable).filter(|it| !it.is_empty());
    let home = |below: &str| Some(PathBuf::from(place("HOME")?).join(below));
    let cache = match place("XDG_CACHE_HOME") {
        Some(cache) => Some(PathBuf::from(cache)),
        None if cfg!(windows) => place("LOCALAPPDATA").map(PathBuf::from),
        None if cfg!(target_os = "macos") => home("Library/Caches"),
        None => home(".cache"),
    };
    Some(cache?.join("burn-align"))
}

/// Refuses a GPU backend that has not passed its self-check, in f32 and in the dtype: what models
/// compute in f32 whatever their dtype counts too.
///
/// # Errors
/// If a check fails or cannot be run.
pub(crate) fn require(
    backend: BackendChoice,
    dtype: DTypeChoice,
    device: &DeviceInfo,
) -> Result<()> {
    if backend.is_cpu() || backend.is_remote() {
        return Ok(());
    }
    let mut dtypes = vec![DTypeChoice::F32, dtype];
    dtypes.dedup();
    for dtype in dtypes {
        let report = match kept(backend, dtype, device) {
            Some(report) => report,
            None => {
                complain!(
                    "checking backend `{backend}` on {} in {dtype}, once for this device, driver \
                     and build",
                    device.name
                );
                let report = run(backend, dtype, device);
                report
                    .with_context(|| format!("backend `{backend}` on {}; {REMEDY}", device.name))?
            }
        };
        ensure!(
            report.passed(),
            "backend `{backend}` on {} computes wrong numbers: {report}\n{REMEDY}",
            device.name
        );
    }
    Ok(())
}

/// What to do without a backend that passes.
const REMEDY: &str = "use another backend, or a build without the feature `fusion` or `autotune`; \
                      --unchecked computes nevertheless";

/// The kept report of this device, driver and build, if there is one.
pub fn kept(backend: BackendChoice, dtype: DTypeChoice, device: &DeviceInfo) -> Option<Report> {
    read(&folder()?, &Subject::new(backend, dtype, device))
}

/// Checks a backend in a dtype that its device supports, and keeps the report. On a GPU, processes
/// of this program do so, since a fault may end a process: one for each part of the check, several
/// at a time if there are cores for them, since each is busy with a compiler of kernels.
///
/// # Errors
/// If the check cannot be run, or did not survive.
pub fn run(backend: BackendChoice, dtype: DTypeChoice, device: &DeviceInfo) -> Result<Report> {
    let report = match backend.is_cpu() {
        true => {
            let parts = Part::ALL.map(|part| run_here(backend, dtype, part));
            joined(parts.into_iter().collect::<Result<_>>()?)
        }
        false => run_apart(backend, dtype)?,
    };
    let subject = Subject::new(backend, dtype, device);
    let written = folder().map(|folder| write(&folder, &subject, &report));
    if let Some(Err(error)) = written {
        complain!("note: the result of the self-check is not kept: {error:#}");
    }
    Ok(report)
}

/// The kept report about a subject. A damaged file counts as none.
fn read(folder: &Path, subject: &Subject) -> Option<Report> {
    let bytes = fs::read(subject.file(folder)).ok()?;
    let kept: Kept = serde_json::from_slice(&bytes).ok()?;
    (kept.subject == *subject && !kept.report.checks.is_empty()).then_some(kept.report)
}

/// Keeps a report.
fn write(folder: &Path, subject: &Subject, report: &Report) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let kept = Kept {
        subject: subject.clone(),
        report: report.clone(),
    };
    files::write(&subject.file(folder), serde_json::to_vec_pretty(&kept)?)
}

fn run_here(backend: BackendChoice, dtype: DTypeChoice, part: Part) -> Result<Report> {
    let dtype = dtype.dtype();
    attempt(|| {
        on_backend!(backend, |B, device| Ok(check_part::<Autodiff<B>>(part, &device, dtype)), remote: {
            Err(anyhow!("a remote backend is checked by its server"))
        })
    })
}

/// The parts of a report, one after another.
fn joined(parts: Vec<Report>) -> Report {
    parts.into_iter().fold(Report::default(), Report::and)
}

fn run_apart(backend: BackendChoice, dtype: DTypeChoice) -> Result<Report> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let processes = cores.min(MOST_PROCESSES);
    let left = Mutex::new(Part::ALL.into_iter().enumerate());
    let found = Mutex::new(Part::ALL.map(|_| None));
    let work = || {
        let next = || left.lock().ok()?.next();
        for (index, part) in std::iter::from_fn(next) {
            let report = run_part(backend, dtype, part);
            if let Ok(mut found) = found.lock() {
                found[index] = Some(report);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..processes {
            scope.spawn(work);
        }
    });
    let found = found.into_inner().context("a thread has panicked")?;
    // What failed beside others, for want of memory for example, is tried again alone.
    let parts = Part::ALL.into_iter().zip(found);
    let reports = parts.map(|(part, report)| match report {
        Some(Err(_)) if processes > 1 => run_part(backend, dtype, part),
        Some(report) => report,
        None => Err(anyhow!("the self-check in {dtype} was not completed")),
    });
    Ok(joined(reports.collect::<Result<_>>()?))
}

/// Runs a part in a process of this program.
fn run_part(backend: BackendChoice, dtype: DTypeChoice, part: Part) -> Result<Report> {
    let program = env::current_exe().context("cannot find this program")?;
    let name = name(part)?;
    let output = Command::new(program)
        .env(VARIABLE, format!("{backend} {dtype} {name}"))
        .output()
        .context("cannot start a second process")?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut lines = stdout.lines().rev();
    let report: Option<Report> = lines.find_map(|line| serde_json::from_str(line).ok());
    let report = report.filter(|report| !report.checks.is_empty());
    report.ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let words = last_words(&stderr).unwrap_or_default();
        anyhow!(
            "the self-check of {name} in {dtype} ended with {}: {words}",
            output.status
        )
    })
}

/// The name of a part in the environment variable.
fn name(part: Part) -> Result<String> {
    let name = serde_json::to_value(part)?;
    Ok(name.as_str().context("not a name")?.to_owned())
}

/// Checks a backend and exits, if this process was started for that.
pub(crate) fn answer() {
    let Ok(request) = env::var(VARIABLE) else {
        return;
    };
    let answered = || -> Result<()> {
        let words: Vec<&str> = request.split(' ').collect();
        let [backend, dtype, part] = words[..] else {
            return Err(anyhow!("expected a backend, a dtype and a part"));
        };
        let backend = BackendChoice::compiled(backend).context("not compiled in")?;
        let dtype = DTypeChoice::from_str(dtype, false).map_err(|error| anyhow!(error))?;
        let part = serde_json::from_value(part.into())?;
        let report = run_here(backend, dtype, part)?;
        out!("{}", serde_json::to_string(&report)?)
    };
    match answered() {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            complain!("{VARIABLE}: {error:#}");
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;
    use burn_align::self_check::{Check, Finding, Operation};

    use super::*;

    fn subject(driver: &str) -> Subject {
        Subject {
            backend: "cuda".to_owned(),
            dtype: "bf16".to_owned(),
            device: "a GPU".to_owned(),
            driver: driver.to_owned(),
            build: build(),
        }
    }

    fn report() -> Report {
        Report {
            checks: vec![Check {
                operation: Operation::Product,
                sizes: vec![vec![5, 96], vec![96, 40]],
                dtype: DType::BF16,
                finding: Finding::NotFinite { count: 3, of: 200 },
            }],
        }
    }

    #[test]
    fn reports_are_kept_for_their_device_driver_and_build() {
        let place = tempfile::tempdir().expect("a folder");
        // The folder does not exist before the first report.
        let folder = place.path().join("burn-align");
        assert_eq!(read(&folder, &subject("580")), None);
        write(&folder, &subject("580"), &report()).expect("a writable folder");
        assert_eq!(read(&folder, &subject("580")), Some(report()));
        assert_eq!(read(&folder, &subject("581")), None);
        let other_build = Subject {
            build: "another".to_owned(),
            ..subject("580")
        };
        assert_eq!(read(&folder, &other_build), None);
    }

    #[test]
    fn damaged_reports_count_as_none() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path();
        write(folder, &subject("580"), &report()).expect("a writable folder");
        let file = subject("580").file(folder);
        let whole = fs::read(&file).expect("it was written");
        let damaged: [&[u8]; 4] = [&whole[..whole.len() / 2], b"", b"{}", b"null"];
        for damaged in damaged {
            fs::write(&file, damaged).expect("a writable file");
            assert_eq!(read(folder, &subject("580")), None);
        }
        // A report about something else, under this name.
        write(folder, &subject("581"), &report()).expect("a writable folder");
        fs::copy(subject("581").file(folder), &file).expect("a copy");
        assert_eq!(read(folder, &subject("580")), None);
        // No checks are no evidence.
        write(folder, &subject("580"), &Report::default()).expect("a writable folder");
        assert_eq!(read(folder, &subject("580")), None);
    }

    #[test]
    fn every_part_has_a_name_that_is_read_again() {
        for part in Part::ALL {
            let name = name(part).expect("a name");
            assert!(!name.contains(' '), "{name}");
            let read: Part = serde_json::from_value(name.into()).expect("a part");
            assert_eq!(read, part);
        }
    }

    #[test]
    fn hashes_do_not_depend_on_the_version_of_rust() {
        // Published test vectors of FNV-1a, 64 bits.
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }
}

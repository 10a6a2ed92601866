//! Damaged files: whatever a request, a checkpoint, a tokenizer, a folder of interventions or the
//! state of a training run contains, it is read or rejected, without a panic, a hang, or excessive
//! memory.
//!
//! ```sh
//! cargo test --release --test fuzz                                  # seconds
//! FUZZ_SECONDS=600 cargo test --release --test fuzz -- checkpoints  # ten minutes of one of them
//! ```
//!
//! Each case damages one randomly chosen file of a valid input in a few places: bytes, numbers and
//! words. `FUZZ_SEED` is the first seed; a failing case prints its own.

mod amplified;
mod damage;
#[path = "../pickles.rs"]
mod pickles;
mod targets;
mod tokenizers;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use workbench::out;

use crate::damage::damage;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that a case may take in addition to ten times its input: a running model, threads, error
/// texts.
pub(crate) const SLACK: usize = 16 << 20;
const LONGEST: Duration = Duration::from_secs(5);

/// Files by name.
pub(crate) type Folder = BTreeMap<String, Vec<u8>>;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The selected files of a folder.
pub(crate) fn read_folder(folder: &Path, keep: impl Fn(&str) -> bool) -> Folder {
    let entries = fs::read_dir(folder).expect("a fixture");
    let files = entries.map(|entry| entry.expect("readable").path());
    files
        .filter_map(|file| {
            let name = file.file_name()?.to_str()?.to_owned();
            keep(&name).then(|| (name, fs::read(&file).expect("readable")))
        })
        .collect()
}

/// Tests run one at a time, because memory is measured.
static TURN: Mutex<()> = Mutex::new(());

/// Damages inputs of a corpus and reads them until the time is up.
///
/// - `slack`: bytes that a case may take in addition to ten times its input
/// - `read`: whether the input was read or rejected, given its files in a folder
pub(crate) fn fuzz(corpus: &[Folder], slack: usize, read: impl Fn(&Path) -> bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let number = |name: &str, default| {
        let value = std::env::var(name).ok();
        value.map_or(default, |value| value.parse().expect("a number"))
    };
    let time = Duration::from_secs(number("FUZZ_SECONDS", 3));
    let first = number("FUZZ_SEED", 0);
    let scratch = tempfile::tempdir().expect("a folder for temporary files");
    // The undamaged input is read; this also fills caches.
    for folder in corpus {
        write(folder, scratch.path());
        assert!(read(scratch.path()), "{:?}", folder.keys());
    }
    let start = Instant::now();
    let (mut cases, mut accepted, mut most) = (0, 0, 0.0_f64);
    for seed in first.. {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut folder = corpus.choose(&mut random).expect("a corpus").clone();
        let names: Vec<String> = folder.keys().cloned().collect();
        let damaged = names.choose(&mut random).expect("a file").clone();
        let file = folder.get_mut(&damaged).expect("it has this name");
        *file = damage(file, &mut random);
        let size: usize = folder.values().map(Vec::len).sum();
        write(&folder, scratch.path());

        MEMORY.reset_peak_usage();
        let (before, began) = (MEMORY.current_usage(), Instant::now());
        let outcome = catch_unwind(AssertUnwindSafe(|| read(scratch.path())));
        let (mut took, took_bytes) = (began.elapsed(), MEMORY.peak_usage().saturating_sub(before));
        if took >= LONGEST && outcome.is_ok() {
            // The machine may have been busy.
            write(&folder, scratch.path());
            let again = Instant::now();
            read(scratch.path());
            took = took.min(again.elapsed());
        }
        let kept = || {
            let kept = std::env::temp_dir().join(format!("fuzz-{seed}"));
            fs::create_dir_all(&kept).expect("a folder");
            write(&folder, &kept);
            format!("FUZZ_SEED={seed}, {damaged}, in {}", kept.display())
        };
        match outcome {
            Ok(was_read) => accepted += usize::from(was_read),
            Err(_) => panic!("a panic: {}", kept()),
        }
        assert!(took < LONGEST, "{took:?}: {}", kept());
        assert!(
            took_bytes <= 10 * size + slack,
            "{took_bytes} bytes for {size}: {}",
            kept()
        );
        most = most.max(took_bytes as f64 / size.max(1) as f64);
        cases += 1;
        if start.elapsed() > time {
            break;
        }
    }
    let _ = out!("{cases} cases, {accepted} read, at most {most:.1} bytes per byte");
    // Some damage goes unnoticed, such as in weights; but not all of it.
    assert!(accepted < cases, "nothing was refused");
}

/// Peak bytes allocated by `run`, beyond what is already there.
pub(crate) fn taken<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = run();
    (MEMORY.peak_usage().saturating_sub(before), result)
}

/// Makes a folder contain exactly these files.
fn write(files: &Folder, folder: &Path) {
    for entry in fs::read_dir(folder).expect("there") {
        let file = entry.expect("readable").path();
        let known = file.file_name().and_then(|name| name.to_str());
        if known.is_none_or(|name| !files.contains_key(name)) {
            fs::remove_file(file).expect("a file");
        }
    }
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).expect("written");
    }
}

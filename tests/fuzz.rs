//! Damaged files: whatever stands in a request, a checkpoint or a folder of interventions, it is
//! read or refused, without a panic, a hang, or memory out of proportion.
//!
//! ```sh
//! cargo test --release --test fuzz                                  # seconds
//! FUZZ_SECONDS=600 cargo test --release --test fuzz -- checkpoints  # ten minutes of one of them
//! ```
//!
//! Each case damages one file of a valid input, chosen by chance, in a few places: bytes, numbers
//! and words. `FUZZ_SEED` is the first seed; a case that fails says its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::backend::Flex;
use burn_align::saved::SavedInterventions;
use burn_align_models::{FromPretrained, LanguageModel, LoadOptions, Pretrained};
use peak_alloc::PeakAlloc;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use workbench::out;
use workbench::requests::Request;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a case may take beside ten times its input: a model that is run, threads, error texts.
const SLACK: usize = 16 << 20;
const LONGEST: Duration = Duration::from_secs(5);

/// Files by name.
type Folder = BTreeMap<String, Vec<u8>>;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The files of a folder that are part of it.
fn read_folder(folder: &Path, keep: impl Fn(&str) -> bool) -> Folder {
    let entries = fs::read_dir(folder).expect("a fixture");
    let files = entries.map(|entry| entry.expect("readable").path());
    files
        .filter_map(|file| {
            let name = file.file_name()?.to_str()?.to_owned();
            keep(&name).then(|| (name, fs::read(&file).expect("readable")))
        })
        .collect()
}

/// Tests run one at a time, for memory is measured.
static TURN: Mutex<()> = Mutex::new(());

/// Damages inputs of a corpus and reads them until the time is over.
///
/// - `read`: whether the input was read, or refused; given its files in a folder
fn fuzz(corpus: &[Folder], read: impl Fn(&Path) -> bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let number = |name: &str, default| {
        let value = std::env::var(name).ok();
        value.map_or(default, |value| value.parse().expect("a number"))
    };
    let time = Duration::from_secs(number("FUZZ_SECONDS", 3));
    let first = number("FUZZ_SEED", 0);
    let scratch = tempfile::tempdir().expect("a folder for temporary files");
    // What is undamaged is read; it also fills what is made once.
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
        let (took, took_bytes) = (began.elapsed(), MEMORY.peak_usage().saturating_sub(before));
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
            took_bytes <= 10 * size + SLACK,
            "{took_bytes} bytes for {size}: {}",
            kept()
        );
        most = most.max(took_bytes as f64 / size as f64);
        cases += 1;
        if start.elapsed() > time {
            break;
        }
    }
    let _ = out!("{cases} cases, {accepted} read, at most {most:.1} bytes per byte");
    // Damage that nobody notices, such as in weights, is as it should be; but not all of it.
    assert!(accepted < cases, "nothing was refused");
}

/// Makes a folder contain these files and no others.
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

/// The same file with some damage. Of an archive, what is in it is damaged.
fn damage(file: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    if file.starts_with(b"PK") && random.random_bool(0.9) {
        return damage_archive(file, random);
    }
    let mut file = file.to_vec();
    for _ in 0..random.random_range(1..=3) {
        damage_once(&mut file, random);
    }
    file
}

fn damage_archive(file: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(Cursor::new(file)).expect("an archive");
    let damaged = random.random_range(0..archive.len());
    let mut written = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("readable");
        // The pickle is what has most to say.
        if index == damaged || entry.name().ends_with(".pkl") {
            damage_once(&mut bytes, random);
        }
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        written.start_file(entry.name(), stored).expect("a name");
        written.write_all(&bytes).expect("in memory");
    }
    written.finish().expect("in memory").into_inner()
}

/// Numbers and words that ask for trouble.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1e9",
    "0.5",
    "-0.0",
    "1e308",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e-320",
];
const WORDS: [&str; 8] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[[]]",
    "[null]",
    "\"\\u0000\"",
];

fn damage_once(file: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    if file.is_empty() {
        return file.push(random.random());
    }
    // Headers and configurations stand in front.
    let reach = match random.random_bool(0.5) {
        true => file.len().min(512),
        false => file.len(),
    };
    let at = random.random_range(0..reach);
    let length = random.random_range(0..=(file.len() - at).min(16));
    match random.random_range(0..8) {
        0 => file[at] ^= 1 << random.random_range(0..8),
        1 => file[at] = random.random(),
        2 => file.truncate(at),
        3 => drop(file.drain(at..at + length)),
        4 => {
            let copy = file[at..at + length].to_vec();
            drop(file.splice(at..at, copy));
        }
        5 => {
            let bytes = (0..length).map(|_| random.random()).collect::<Vec<u8>>();
            drop(file.splice(at..at, bytes));
        }
        // The next number, or the next value, is another one.
        6 => {
            let digit = |byte: &u8| byte.is_ascii_digit();
            if let Some(start) = file[at..].iter().position(digit) {
                let start = at + start;
                let digits = file[start..].iter().take_while(|byte| digit(byte)).count();
                let number = NUMBERS.choose(random).expect("there are some");
                drop(file.splice(start..start + digits, number.bytes()));
            }
        }
        _ => {
            if let Some(colon) = file[at..].iter().position(|byte| *byte == b':') {
                let start = at + colon + 1;
                let end = file[start..]
                    .iter()
                    .position(|byte| b",}]\n".contains(byte));
                let end = end.map_or(file.len(), |end| start + end);
                let word = WORDS.choose(random).expect("there are some");
                drop(file.splice(start..end, word.bytes()));
            }
        }
    }
}

/// Requests of the example `intervene`, read and answered.
#[test]
fn requests() {
    let folder = fixtures().join("interventions");
    let mut corpus: Vec<Folder> = Vec::new();
    let all = read_folder(&folder, |name| name.ends_with(".json"));
    // Some of each kind.
    for bytes in all.into_values().step_by(5) {
        let text = String::from_utf8(bytes).expect("text");
        let model = if text.contains("gpt2_plain") {
            "gpt2_plain"
        } else {
            "llama_gqa"
        };
        if text.contains(model) {
            corpus.push([(format!("{model}.json"), text.into_bytes())].into());
        }
    }
    let device = Default::default();
    let load = |name: &str| {
        let folder = fixtures().join("checkpoints").join(name);
        LanguageModel::<Flex>::from_pretrained(folder, &LoadOptions::default(), &device)
            .expect("a fixture")
    };
    let models = ["gpt2_plain", "llama_gqa"].map(|name| (name, load(name)));
    fuzz(&corpus, |folder| {
        let (name, model) = models
            .iter()
            .find(|(name, _)| folder.join(format!("{name}.json")).exists())
            .expect("one of them");
        let bytes = fs::read(folder.join(format!("{name}.json"))).expect("written");
        let Ok(text) = String::from_utf8(bytes) else {
            return false;
        };
        let Ok(request) = Request::parse(&text) else {
            return false;
        };
        request.answer(folder, model, &device).is_ok()
    });
}

/// Checkpoints: `config.json`, weights and tokenizers.
#[test]
fn checkpoints() {
    let names = [
        "gpt2_plain",
        "gpt2_f16",
        "gpt2_sharded",
        "llama_gqa",
        "llama_rope_llama3",
        "llama_rope_yarn",
        "mistral_window",
        "qwen2_tied",
    ];
    let corpus = names.map(|name| {
        let folder = fixtures().join("checkpoints").join(name);
        read_folder(&folder, |name| {
            name == "config.json" || name.contains(".safetensors")
        })
    });
    let device = Default::default();
    fuzz(&corpus, |folder| {
        let loaded: Result<Pretrained<LanguageModel<Flex>, _>, _> =
            LanguageModel::from_pretrained(folder, &LoadOptions::default(), &device);
        loaded.is_ok()
    });
}

/// Folders of interventions, our own and those of pyvene.
#[test]
fn interventions() {
    let device = Default::default();
    let mut corpus: Vec<Folder> = Vec::new();
    for entry in fs::read_dir(fixtures().join("trainable")).expect("a fixture") {
        let folder = entry.expect("readable").path();
        let name = folder.file_name().and_then(|name| name.to_str());
        if !folder.is_dir() || name == Some("evil") {
            continue;
        }
        let pyvene = read_folder(&folder, |name| {
            name == "config.json" || name.ends_with(".bin")
        });
        // The same in our own format.
        if let Ok(saved) = SavedInterventions::<Flex>::load(&folder, &device) {
            let own = tempfile::tempdir().expect("a folder for temporary files");
            if saved.save(own.path()).is_ok() {
                corpus.push(read_folder(own.path(), |_| true));
            }
            corpus.push(pyvene);
        }
    }
    assert!(corpus.len() > 30, "{} folders", corpus.len());
    fuzz(&corpus, |folder| {
        SavedInterventions::<Flex>::load(folder, &device).is_ok()
    });
}

//! What repeats take besides time, and telling a profiler when they begin and end.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};

use serde_json::{Value, json};

/// Names the file in which `benches/count.c` counts what the process allocates and copies.
const COUNTS: &str = "BURN_ALIGN_COUNTS";
/// Names the two pipes of `perf record --control`, separated by a comma.
const SAMPLER: &str = "BURN_ALIGN_PERF";
/// Clock ticks a second in `/proc/self/stat`: `USER_HZ` of Linux on every common architecture.
const TICKS: f64 = 100.0;

/// What the process has used since it began.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// Seconds that its threads ran, all together.
    cpu: f64,
    /// Page faults that needed no disk: memory that was touched for the first time.
    page_faults: u64,
    /// What [`COUNTED`] names; empty if nothing counts.
    counts: Vec<u64>,
}

/// The counters of `benches/count.c`, in their order in its file.
const COUNTED: [&str; 6] = [
    "allocated_bytes",
    "allocations",
    "copied_bytes",
    "copies",
    "zeroed_bytes",
    "zeroings",
];

impl Usage {
    /// Up to now; `None` where the system does not tell.
    pub(crate) fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // Fields are counted after the name, which may have blanks and parentheses: `man
        // proc_pid_stat` has the state as field 3.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu: (field(14)? + field(15)?) as f64 / TICKS,
            page_faults: field(10)?,
            counts: counts().unwrap_or_default(),
        })
    }

    /// What each of some repeats took since `before`, in so many seconds.
    pub(crate) fn per_repeat(self, before: &Self, seconds: f64, repeats: usize) -> PerRepeat {
        let each = |count: u64| count as f64 / repeats as f64;
        let counts = self.counts.iter().zip(&before.counts);
        PerRepeat {
            cores_busy: (self.cpu - before.cpu) / seconds,
            page_faults: each(self.page_faults - before.page_faults),
            counts: counts
                .map(|(now, before)| each(now.saturating_sub(*before)))
                .collect(),
        }
    }
}

/// The counters of the process, if `benches/count.c` is loaded.
fn counts() -> Option<Vec<u64>> {
    let bytes = fs::read(std::env::var_os(COUNTS)?).ok()?;
    let (counts, _) = bytes.as_chunks::<8>();
    let counts: Vec<u64> = counts.iter().map(|it| u64::from_ne_bytes(*it)).collect();
    (counts.len() == COUNTED.len()).then_some(counts)
}

/// What a repeat took.
#[derive(Clone, Debug)]
pub(crate) struct PerRepeat {
    /// Cores that were busy on average.
    cores_busy: f64,
    page_faults: f64,
    /// What [`COUNTED`] names, or nothing.
    counts: Vec<f64>,
}

impl PerRepeat {
    /// Adds it to a line of JSON.
    pub(crate) fn add_to(&self, line: &mut Value) {
        line["cores_busy"] = json!(self.cores_busy);
        line["page_faults"] = json!(self.page_faults.round());
        for (name, count) in COUNTED.iter().zip(&self.counts) {
            line[*name] = json!(count.round());
        }
    }
}

/// While it lives, a profiler takes samples, if one waits for that.
pub(crate) struct Sampling(Option<Sampler>);

struct Sampler {
    control: File,
    answers: BufReader<File>,
}

impl Sampling {
    /// Begins to take samples.
    pub(crate) fn begin() -> Self {
        let mut sampler = Sampler::open();
        if let Some(sampler) = &mut sampler {
            sampler.tell("enable");
        }
        Self(sampler)
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        if let Some(sampler) = &mut self.0 {
            sampler.tell("disable");
        }
    }
}

impl Sampler {
    fn open() -> Option<Self> {
        let pipes = std::env::var(SAMPLER).ok()?;
        let (control, answers) = pipes.split_once(',')?;
        Some(Self {
            control: OpenOptions::new().write(true).open(control).ok()?,
            answers: BufReader::new(File::open(answers).ok()?),
        })
    }

    /// Waits until it is done. A profiler that has ended is not an error.
    fn tell(&mut self, command: &str) {
        if writeln!(self.control, "{command}").is_ok() {
            let _ = self.answers.read_line(&mut String::new());
        }
    }
}

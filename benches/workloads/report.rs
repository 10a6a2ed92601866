//! Reporting the timings: JSON lines and tables.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::Table;
use serde_json::json;
use workbench::console::write_line;
use workbench::table::{align_numbers, table};
use workbench::{complain, out};

use crate::columns::{Column, Columns};
use crate::memory::{Kind, Peak};
use crate::timing::Times;
use crate::work::Work;

/// The result of a workload.
pub(crate) struct Outcome {
    /// Index of the workload.
    pub(crate) row: usize,
    /// Index of the backend and dtype.
    pub(crate) column: usize,
    pub(crate) times: Result<Times>,
    pub(crate) peak: Option<Peak>,
    /// MiB of resident memory before it.
    pub(crate) before: Option<u64>,
    /// What it cannot do without, if that is known.
    pub(crate) work: Option<Work>,
}

/// All outcomes, written down as they come in.
pub(crate) struct Report<'a> {
    /// The model's name.
    model: String,
    /// Names of workloads.
    rows: Vec<&'a str>,
    columns: &'a Columns,
    outcomes: Vec<Outcome>,
    lines: Option<Box<dyn Write>>,
}

impl<'a> Report<'a> {
    /// An empty report, which writes JSON lines to the file if there is one; `-` is standard
    /// output.
    pub(crate) fn new(
        model: String,
        rows: Vec<&'a str>,
        columns: &'a Columns,
        json: Option<&Path>,
    ) -> Result<Self> {
        let create = |path: &Path| -> Result<Box<dyn Write>> {
            if path == Path::new("-") {
                return Ok(Box::new(io::stdout()));
            }
            let file = File::create(path).with_context(|| path.display().to_string())?;
            Ok(Box::new(file))
        };
        Ok(Self {
            model,
            rows,
            columns,
            outcomes: Vec::new(),
            lines: json.map(create).transpose()?,
        })
    }

    /// Adds an outcome: prints a progress line, and writes one of JSON.
    pub(crate) fn add(&mut self, outcome: Outcome) -> Result<()> {
        let column = &self.columns.usable[outcome.column];
        let row = self.rows[outcome.row];
        match &outcome.times {
            Ok(times) => complain!("{column} {row}: {}", cell(times)),
            Err(error) => complain!("{column} {row}: cannot: {error:#}"),
        }
        if let Some(lines) = &mut self.lines {
            let line = line(&self.model, row, column, &outcome);
            write_line(lines, format_args!("{line}"))?;
        }
        self.outcomes.push(outcome);
        Ok(())
    }

    /// Whether any workload was timed.
    pub(crate) fn has_times(&self) -> bool {
        self.outcomes.iter().any(|outcome| outcome.times.is_ok())
    }

    /// Prints the tables, and what could not be run.
    pub(crate) fn print(&self, baseline: usize, memory: bool) -> Result<()> {
        out!("{}", self.times(baseline))?;
        if self.columns.usable.len() > 1 {
            let name = &self.columns.usable[baseline];
            out!("median of the repeats ± (slowest - fastest) / median, × the median of {name}")?;
        } else {
            out!("median of the repeats ± (slowest - fastest) / median")?;
        }
        if memory {
            out!("\nPeak memory: of the process, or what the backend's allocator holds (*)")?;
            out!("{}", self.memory())?;
        }
        for reason in &self.columns.left_out {
            out!("left out: {reason}")?;
        }
        for outcome in &self.outcomes {
            if let Err(error) = &outcome.times {
                let column = &self.columns.usable[outcome.column];
                out!("cannot: {column} {}: {error:#}", self.rows[outcome.row])?;
            }
        }
        Ok(())
    }

    fn find(&self, row: usize, column: usize) -> Option<&Outcome> {
        let mut all = self.outcomes.iter();
        all.find(|outcome| (outcome.row, outcome.column) == (row, column))
    }

    fn found_times(&self, row: usize, column: usize) -> Option<&Times> {
        self.find(row, column)?.times.as_ref().ok()
    }

    fn times(&self, baseline: usize) -> Table {
        let several = self.columns.usable.len() > 1;
        self.table(|row, column| {
            let times = self.found_times(row, column)?;
            let ratio = match self.found_times(row, baseline) {
                Some(base) if several => format!("  {:.2}×", times.median() / base.median()),
                _ => String::new(),
            };
            Some(format!("{}{ratio}", cell(times)))
        })
    }

    fn memory(&self) -> Table {
        self.table(|row, column| {
            let peak = self.find(row, column)?.peak?;
            let star = match peak.kind {
                Kind::Resident => "",
                Kind::Pool => " *",
            };
            Some(format!("{} MiB{star}", peak.mib))
        })
    }

    /// A row for each workload, a column for each backend and dtype.
    fn table(&self, cell: impl Fn(usize, usize) -> Option<String>) -> Table {
        let columns = self.columns.usable.iter().map(ToString::to_string);
        let mut table = table(["workload".to_owned()].into_iter().chain(columns));
        for (row, name) in self.rows.iter().enumerate() {
            let cells = (0..self.columns.usable.len())
                .map(|column| cell(row, column).unwrap_or_else(|| "-".to_owned()));
            table.add_row([(*name).to_owned()].into_iter().chain(cells));
        }
        align_numbers(&mut table);
        table
    }
}

/// `52.1 ms ± 4 %`.
fn cell(times: &Times) -> String {
    let seconds = times.median();
    let spread = 100.0 * times.spread();
    if seconds < 10.0 {
        format!("{:.1} ms ±{spread:3.0} %", 1e3 * seconds)
    } else {
        format!("{seconds:.1} s ±{spread:3.0} %")
    }
}

/// An outcome as JSON.
fn line(model: &str, row: &str, column: &Column, outcome: &Outcome) -> serde_json::Value {
    let mut line = json!({
        "workload": row,
        "backend": column.backend.name(),
        "dtype": column.dtype.to_string(),
        "device": column.device,
        "model": model,
        "threads": rayon::current_num_threads(),
    });
    match &outcome.times {
        Ok(times) => {
            line["seconds"] = json!(times.median());
            line["spread"] = json!(times.spread());
            line["repeats"] = json!(times.repeats());
            if let Some(usage) = times.usage() {
                usage.add_to(&mut line);
            }
        }
        Err(error) => line["error"] = json!(format!("{error:#}")),
    }
    if let Some(work) = outcome.work {
        work.add_to(&mut line);
    }
    if let Some(peak) = outcome.peak {
        line["peak_mib"] = json!(peak.mib);
        line["peak_of"] = json!(peak.kind.name());
        if let (Kind::Resident, Some(before)) = (peak.kind, outcome.before) {
            line["before_mib"] = json!(before);
        }
    }
    line
}

//! Which backends can be used on this machine, and how precisely do they compute?
//!
//! ```sh
//! cargo run --release --features wgpu,cuda --example backends
//! cargo run --release --features wgpu,cuda --example backends -- --self-check
//! cargo run --release --features wgpu,cuda --example backends -- --parity
//! ```
//!
//! Prints a table of all backends: whether this build contains them, whether they work here, on
//! which device and in which dtypes, and whether they have passed their self-check, which every
//! program runs before it first computes on a GPU. Never fails: a backend whose driver may be
//! missing is tried in a separate process, and its row says why it cannot be used.
//!
//! `--self-check` runs that check anew on each backend that works, on the CPU too, in each of its
//! dtypes: operations and small models against plain loops in f64. This fails if a result is wrong,
//! and names the operation, its sizes, and the public report that may explain it.
//!
//! `--parity` also runs the small checkpoints of the test suite on each backend that works, in each
//! of its dtypes, and prints the largest differences from what `transformers` computes in f32, next
//! to those that the tests allow. This fails if one is larger. It takes seconds on the CPU, minutes
//! on a software GPU.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use workbench::attempt::attempt;
use workbench::backends::{ALL_BACKENDS, BackendChoice, DTypeChoice, DeviceInfo, probe};
use workbench::parity::{Difference, Differences, Tolerance, measure, tolerance};
use workbench::table::table;
use workbench::{on_backend, out, self_check};

/// Shows which backends can be used on this machine.
#[derive(Parser)]
struct Args {
    /// Compare logits and activations with those of `transformers`, in every dtype.
    #[arg(long)]
    parity: bool,
    /// Check operations and small models in every dtype, and keep the result for other programs.
    #[arg(long)]
    self_check: bool,
    /// Only this backend.
    #[arg(long, value_enum)]
    backend: Option<BackendChoice>,
    /// Only these dtypes, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    dtype: Vec<DTypeChoice>,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        let only = args.backend.map(BackendChoice::name);
        let names = ALL_BACKENDS
            .into_iter()
            .filter(|name| only.as_ref().is_none_or(|only| only == name));
        let mut usable = Vec::new();
        let headers = [
            "backend",
            "compiled",
            "usable",
            "device",
            "dtypes",
            "self-check",
        ];
        let mut table = table(headers);
        for name in names {
            table.add_row(row(name, &mut usable));
        }
        out!("{table}")?;
        let wanted = |dtype: &DTypeChoice| args.dtype.is_empty() || args.dtype.contains(dtype);
        let columns: Vec<Column> = usable
            .iter()
            .flat_map(|(backend, info)| {
                let dtypes = dtypes(info).into_iter().filter(wanted);
                dtypes.map(move |dtype| (*backend, dtype, info))
            })
            .collect();
        ensure!(
            !usable.is_empty() || !(args.self_check || args.parity),
            "there is nothing to check: no such backend works here"
        );
        if args.self_check {
            check(&columns)?;
        }
        if args.parity {
            parity(&columns)?;
        }
        Ok(())
    })
}

/// A backend and a dtype in which its device computes.
type Column<'a> = (BackendChoice, DTypeChoice, &'a DeviceInfo);

/// The dtypes in which a device computes.
fn dtypes(info: &DeviceInfo) -> Vec<DTypeChoice> {
    let all = DTypeChoice::value_variants().iter().copied();
    all.filter(|dtype| info.dtypes.contains(&dtype.to_string()))
        .collect()
}

/// A backend's row; usable backends are collected.
fn row(name: &str, usable: &mut Vec<(BackendChoice, DeviceInfo)>) -> [String; 6] {
    let none = || "-".to_owned();
    let Some(backend) = BackendChoice::compiled(name) else {
        let compiled = format!("no: --features {name}");
        return [name.to_owned(), compiled, none(), none(), none(), none()];
    };
    let yes = || "yes".to_owned();
    match probe(backend) {
        Ok(info) => {
            let dtypes = info.dtypes.join(", ");
            let checked = checked(backend, &info);
            let device = info.name.clone();
            let row = [name.to_owned(), yes(), yes(), device, dtypes, checked];
            usable.push((backend, info));
            row
        }
        Err(reason) => {
            let usable = format!("no: {reason}");
            [name.to_owned(), yes(), usable, none(), none(), none()]
        }
    }
}

/// What is known from the self-checks of this device, driver and build.
fn checked(backend: BackendChoice, info: &DeviceInfo) -> String {
    let reports = dtypes(info).into_iter().map(|dtype| {
        let verdict = match self_check::kept(backend, dtype, info) {
            None => return None,
            Some(report) if report.passed() => "passed".to_owned(),
            Some(report) => format!("{} failed", report.failures().count()),
        };
        Some(format!("{dtype} {verdict}"))
    });
    let known: Vec<String> = reports.flatten().collect();
    match known.is_empty() {
        true if backend.is_cpu() => "not needed".to_owned(),
        true => "not run yet".to_owned(),
        false => known.join(", "),
    }
}

/// Runs the self-checks and prints what they find.
fn check(columns: &[Column<'_>]) -> Result<()> {
    let mut table = table(["backend", "dtype", "checks", "failed", "seconds"]);
    let (mut findings, mut failures) = (Vec::new(), Vec::new());
    for (backend, dtype, info) in columns {
        let start = Instant::now();
        let report = self_check::run(*backend, *dtype, info);
        let seconds = format!("{:.1}", start.elapsed().as_secs_f64());
        let [checks, failed] = match &report {
            Ok(report) => [report.checks.len(), report.failures().count()].map(|it| it.to_string()),
            Err(_) => ["-".to_owned(), "it did not end".to_owned()],
        };
        table.add_row([backend.name(), dtype.to_string(), checks, failed, seconds]);
        if !report.as_ref().is_ok_and(|report| report.passed()) {
            failures.push(format!("{backend}/{dtype}"));
        }
        let finding = match report {
            Ok(report) => report.to_string(),
            Err(error) => format!("{error:#}"),
        };
        findings.push(format!("{backend}/{dtype} on {}: {finding}", info.name));
    }
    out!("{table}")?;
    for finding in findings {
        out!("{finding}")?;
    }
    ensure!(
        failures.is_empty(),
        "wrong results: {}",
        failures.join(", ")
    );
    Ok(())
}

/// Measures, prints and judges differences from `transformers`.
fn parity(columns: &[Column<'_>]) -> Result<()> {
    let mut table = table(["backend", "dtype", "logits", "activations", "allowed"]);
    let mut failures = Vec::new();
    for (backend, dtype, _info) in columns {
        let found =
            attempt(|| on_backend!(*backend, |B, device| measure::<B>(dtype.dtype(), &device)));
        let allowed = tolerance(*dtype);
        let cells = match &found {
            Ok(found) => [worst(&found.logits), worst(&found.activations)],
            Err(error) => [format!("cannot: {error:#}"), "-".to_owned()],
        };
        if !found.is_ok_and(|found| is_within(&found, allowed)) {
            failures.push(format!("{backend}/{dtype}"));
        }
        let allowed = match allowed {
            Tolerance::Absolute(most) => format!("{most:.0e}"),
            Tolerance::Relative(most) => format!("{most:.1e} of the largest"),
        };
        let [logits, activations] = cells;
        table.add_row([
            backend.name(),
            dtype.to_string(),
            logits,
            activations,
            allowed,
        ]);
    }
    out!("{table}")?;
    out!("largest absolute difference / the same relative to the largest value of its tensor")?;
    ensure!(
        failures.is_empty(),
        "too far from `transformers`: {}",
        failures.join(", ")
    );
    Ok(())
}

/// The largest absolute and relative differences, which may be from different tensors.
fn worst(differences: &[Difference]) -> String {
    // The larger of two, where NaN counts as the largest.
    let largest = |of: fn(&Difference) -> f32| {
        let values = differences.iter().map(of);
        values.max_by(f32::total_cmp).unwrap_or(f32::NAN)
    };
    let [absolute, relative] = [largest(|it| it.absolute), largest(Difference::relative)];
    format!("{absolute:.1e} / {relative:.1e}")
}

fn is_within(found: &Differences, allowed: Tolerance) -> bool {
    let mut all = found.logits.iter().chain(&found.activations);
    all.all(|difference| difference.is_within(allowed))
}

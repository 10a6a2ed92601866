//! Which backends can be used on this machine, and how precisely do they compute?
//!
//! ```sh
//! cargo run --release --features wgpu,cuda --example backends
//! cargo run --release --features wgpu,cuda --example backends -- --parity
//! ```
//!
//! Prints a table of all backends: whether this build contains them, whether they work here, on
//! which device and in which dtypes. Never fails: a backend whose driver may be missing is tried in
//! a separate process, and its row says why it cannot be used.
//!
//! `--parity` also runs the small checkpoints of the test suite on each backend that works, in each of
//! its dtypes, and prints the largest differences from what `transformers` computes in f32, next to
//! those that the tests allow. This fails if one is larger. It takes seconds on the CPU, minutes on
//! a software GPU.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use workbench::attempt::attempt;
use workbench::backends::{ALL_BACKENDS, BackendChoice, DTypeChoice, DeviceInfo, probe};
use workbench::parity::{Difference, Differences, Tolerance, measure, tolerance};
use workbench::table::table;
use workbench::{on_backend, out};

/// Shows which backends can be used on this machine.
#[derive(Parser)]
struct Args {
    /// Compare logits and activations with those of `transformers`, in every dtype.
    #[arg(long)]
    parity: bool,
    /// Only this backend.
    #[arg(long, value_enum)]
    backend: Option<BackendChoice>,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        let only = args.backend.map(BackendChoice::name);
        let names = ALL_BACKENDS
            .into_iter()
            .filter(|name| only.as_ref().is_none_or(|only| only == name));
        let mut usable = Vec::new();
        let mut table = table(["backend", "compiled", "usable", "device", "dtypes"]);
        for name in names {
            table.add_row(row(name, &mut usable));
        }
        out!("{table}")?;
        if args.parity {
            parity(&usable)?;
        }
        Ok(())
    })
}

/// A backend's row; usable backends are collected.
fn row(name: &str, usable: &mut Vec<(BackendChoice, DeviceInfo)>) -> [String; 5] {
    let none = || "-".to_owned();
    let Some(backend) = BackendChoice::compiled(name) else {
        let compiled = format!("no: --features {name}");
        return [name.to_owned(), compiled, none(), none(), none()];
    };
    let yes = || "yes".to_owned();
    match probe(backend) {
        Ok(info) => {
            let dtypes = info.dtypes.join(", ");
            let row = [name.to_owned(), yes(), yes(), info.name.clone(), dtypes];
            usable.push((backend, info));
            row
        }
        Err(reason) => {
            let usable = format!("no: {reason}");
            [name.to_owned(), yes(), usable, none(), none()]
        }
    }
}

/// Measures, prints and judges differences from `transformers`.
fn parity(usable: &[(BackendChoice, DeviceInfo)]) -> Result<()> {
    let mut table = table(["backend", "dtype", "logits", "activations", "allowed"]);
    let mut failures = Vec::new();
    for (backend, info) in usable {
        let all = DTypeChoice::value_variants().iter();
        for dtype in all.filter(|dtype| info.dtypes.contains(&dtype.to_string())) {
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

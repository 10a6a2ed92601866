//! Which backends can be used on this machine?
//!
//! ```sh
//! cargo run --release --features wgpu,cuda --example backends
//! ```
//!
//! Prints a table of all backends: whether this build contains them, whether they work here, on
//! which device and in which dtypes. Never fails: a backend whose driver is missing is tried in a
//! process of its own, and its row says why it cannot be used.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use workbench::backends::{ALL_BACKENDS, BackendChoice, probe};
use workbench::out;
use workbench::table::table;

/// Shows which backends can be used on this machine.
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    workbench::run(backends)
}

fn backends(_args: Args) -> Result<()> {
    let mut table = table(["backend", "compiled", "usable", "device", "dtypes"]);
    for name in ALL_BACKENDS {
        let row = match BackendChoice::compiled(name) {
            None => [
                name.to_owned(),
                format!("no: --features {name}"),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
            ],
            Some(backend) => match probe(backend) {
                Ok(info) => [
                    name.to_owned(),
                    "yes".to_owned(),
                    "yes".to_owned(),
                    info.name,
                    info.dtypes.join(", "),
                ],
                Err(reason) => [
                    name.to_owned(),
                    "yes".to_owned(),
                    format!("no: {reason}"),
                    "-".to_owned(),
                    "-".to_owned(),
                ],
            },
        };
        table.add_row(row);
    }
    out!("{table}")?;
    Ok(())
}

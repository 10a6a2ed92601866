//! Code shared by the examples, benchmarks and tests of burn-align: choosing the backend, printing,
//! tables, pictures, progress bars, fixtures, and training small models.

pub mod attempt;
pub mod backends;
pub mod circuit_curves;
pub mod circuit_requests;
pub mod console;
pub mod devices;
pub mod files;
pub mod fit;
pub mod fixtures;
pub mod ioi;
mod memory;
pub mod models;
pub mod parity;
pub mod plot;
pub mod progress;
pub mod queues;
pub mod requests;
mod scale;
pub mod self_check;
pub mod table;
pub mod words;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

pub use backends::{BackendArgs, BackendChoice};
pub use devices::DeviceArgs;
pub use memory::run_options;
pub use models::{LoadArgs, ModelArgs};

/// Runs a program that computes in this thread: reads its arguments, and reports an error in one
/// place.
///
/// Exit status: 0, or 1 after an error, or 2 after wrong arguments.
pub fn run<A: Parser>(program: impl FnOnce(A) -> Result<()>) -> ExitCode {
    run_waiting(|args| {
        // As one of the pool's, this thread takes part in what it starts on the CPU, instead of
        // falling asleep until the others are done. Fails only where there is a pool already.
        let _ = rayon::ThreadPoolBuilder::new()
            .use_current_thread()
            .build_global();
        program(args)
    })
}

/// As [`run`], for a program whose other threads compute while this one waits: as one of the pool's,
/// it would be given work and never do it.
pub fn run_waiting<A: Parser>(program: impl FnOnce(A) -> Result<()>) -> ExitCode {
    backends::answer_probe();
    match program(A::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The code in the README.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
mod readme {}

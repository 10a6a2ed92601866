//! Which backends and dtypes to compare.

use std::fmt;

use anyhow::{Result, bail};
use clap::ValueEnum;
use workbench::backends::{BackendChoice, DTypeChoice, DeviceInfo, probe};

/// A backend and a dtype.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) backend: BackendChoice,
    pub(crate) dtype: DTypeChoice,
    /// The device's name.
    pub(crate) device: String,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.dtype)
    }
}

/// The columns to compare, and why the rest is left out.
pub(crate) struct Columns {
    pub(crate) usable: Vec<Column>,
    pub(crate) left_out: Vec<String>,
}

/// The requested backends and dtypes. Without backends, all that are compiled in and work here,
/// except software GPUs; without dtypes, f32 on the CPU, and everything that a GPU computes in.
///
/// # Errors
/// If nothing is left.
pub(crate) fn choose(backends: &[BackendChoice], dtypes: &[DTypeChoice]) -> Result<Columns> {
    let mut columns = Columns {
        usable: Vec::new(),
        left_out: Vec::new(),
    };
    let all = if backends.is_empty() {
        BackendChoice::value_variants()
    } else {
        backends
    };
    for backend in all {
        match probe(*backend) {
            Err(reason) => columns.left_out.push(format!("{backend}: {reason}")),
            Ok(device) if backends.is_empty() && device.software => {
                columns.left_out.push(format!(
                    "{backend}: {} is a GPU in software; --backend {backend} takes it nevertheless",
                    device.name
                ));
            }
            Ok(device) => columns.add(*backend, dtypes, &device),
        }
    }
    if columns.usable.is_empty() {
        bail!(
            "no backend is left: {}\n`cargo run --release --example backends` tells which work \
             here",
            columns.left_out.join("; ")
        );
    }
    Ok(columns)
}

impl Columns {
    fn add(&mut self, backend: BackendChoice, dtypes: &[DTypeChoice], device: &DeviceInfo) {
        let defaults: &[DTypeChoice] = if backend.is_cpu() {
            &[DTypeChoice::F32]
        } else {
            DTypeChoice::value_variants()
        };
        for dtype in if dtypes.is_empty() { defaults } else { dtypes } {
            let computes = device.dtypes.contains(&dtype.to_string());
            let column = Column {
                backend,
                dtype: *dtype,
                device: device.name.clone(),
            };
            if computes {
                self.usable.push(column);
            } else if dtypes.contains(dtype) {
                self.left_out.push(format!(
                    "{column}: {} does not compute in {dtype}; it does in {}",
                    device.name,
                    device.dtypes.join(", ")
                ));
            }
        }
    }

    /// The index of a column among the usable ones; the first if there is no name.
    ///
    /// # Errors
    /// If there is none with this name.
    pub(crate) fn position(&self, name: Option<&str>) -> Result<usize> {
        let Some(name) = name else {
            return Ok(0);
        };
        let names: Vec<String> = self.usable.iter().map(ToString::to_string).collect();
        match names.iter().position(|found| found == name) {
            Some(index) => Ok(index),
            None => bail!("--baseline {name}: expected one of {}", names.join(", ")),
        }
    }
}

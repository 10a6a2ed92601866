//! Backends panic at what they cannot do.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, anyhow};

/// Runs something that a backend may panic at, and gives what it said as an error.
///
/// # Errors
/// Those of `run`, or what it panicked with.
pub fn attempt<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|payload| Err(anyhow!(panic_message(&*payload).to_owned())))
}

/// What was said when something gave up.
fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked")
}

//! Turning panics of backends into errors.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, anyhow};

/// Runs something that may panic in a backend, and returns the panic as an error.
///
/// # Errors
/// The errors of `run`, or the panic's message.
pub fn attempt<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|payload| Err(anyhow!(panic_message(&*payload).to_owned())))
}

/// The message of a panic.
fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked")
}

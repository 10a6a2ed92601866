//! Printing to readers that may go away.

use std::fmt;
use std::io::{self, Write};

use anyhow::{Context, Result};

/// Prints a line on standard output, like `println!`, but returns an error where that panics.
///
/// A reader that stops reading, as in `… | head -1`, is not an error: nothing more is printed, and
/// the program continues.
#[macro_export]
macro_rules! out {
    ($($line:tt)*) => {
        $crate::console::print(format_args!($($line)*))
    };
}

/// Prints a line on standard error, like `eprintln!`, if it can be printed.
#[macro_export]
macro_rules! complain {
    ($($line:tt)*) => {
        $crate::console::print_error(format_args!($($line)*))
    };
}

/// Implements [`out!`](crate::out).
///
/// # Errors
/// If standard output cannot be written to, other than because its reader has gone away.
pub fn print(line: fmt::Arguments<'_>) -> Result<()> {
    write_line(io::stdout().lock(), line).context("standard output")
}

/// Implements [`complain!`](crate::complain).
pub fn print_error(line: fmt::Arguments<'_>) {
    // Nothing else can be done.
    let _ = write_line(io::stderr().lock(), line);
}

/// Writes a line for a reader that may have gone away.
///
/// # Errors
/// If it cannot be written for any other reason.
pub fn write_line(mut to: impl Write, line: fmt::Arguments<'_>) -> io::Result<()> {
    match writeln!(to, "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

//! What programs print, to readers that may go away.

use std::fmt;
use std::io::{self, Write};

use anyhow::{Context, Result};

/// Prints a line on standard output, like `println!`, and gives an error where that panics.
///
/// A reader that has seen enough, as in `… | head -1`, is no error: nothing more is printed, and
/// the program goes on with its work.
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

/// What [`out!`](crate::out) does.
///
/// # Errors
/// If standard output cannot be written to, for another reason than that nobody reads it.
pub fn print(line: fmt::Arguments<'_>) -> Result<()> {
    write_line(io::stdout().lock(), line).context("standard output")
}

/// What [`complain!`](crate::complain) does.
pub fn print_error(line: fmt::Arguments<'_>) {
    // There is nobody left to tell.
    let _ = write_line(io::stderr().lock(), line);
}

/// Writes a line for a reader that may have gone away.
///
/// # Errors
/// If it cannot be written, for another reason than that.
pub fn write_line(mut to: impl Write, line: fmt::Arguments<'_>) -> io::Result<()> {
    match writeln!(to, "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

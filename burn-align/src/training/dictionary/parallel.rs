//! Loops over rows, divided among threads.

use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

/// Multiplications that are not worth another thread.
pub(super) const SMALL: usize = 1 << 18;

/// Runs a task on consecutive parts of `0..count`, and returns what the parts give, in order. What
/// a task gives for an index must not depend on the part that it is in.
///
/// - work: multiplications in all
pub(super) fn in_parts<T: Send>(
    count: usize,
    work: usize,
    task: impl Fn(Range<usize>) -> T + Sync,
) -> Vec<T> {
    let threads = match work <= SMALL {
        true => 1,
        false => thread::available_parallelism().map_or(1, usize::from),
    };
    let size = count.div_ceil(threads).max(1);
    if size >= count {
        return vec![task(0..count)];
    }
    thread::scope(|scope| {
        let task = &task;
        let parts = (0..count).step_by(size);
        let parts = parts.map(|start| scope.spawn(move || task(start..count.min(start + size))));
        let parts: Vec<_> = parts.collect();
        let done = parts.into_iter().map(|part| match part.join() {
            Ok(found) => found,
            Err(panic) => resume_unwind(panic),
        });
        done.collect()
    })
}

/// Puts the parts of a list together.
pub(super) fn joined<T>(parts: Vec<Vec<T>>) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or_default();
    for part in parts {
        all.extend(part);
    }
    all
}
